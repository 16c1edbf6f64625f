"""`TextTokenizer`: text to token ids and token ids to bytes, from a model folder's tokenizer.json.

Control tokens in text. A completions prompt is the client's own: `<|im_end|>` in it is the control
token, which clients that apply the chat template themselves rely on. A chat message is what an end
user typed: control tokens spelled out in it are plain text, so nobody can end a turn or forge a
system message (`encode_chat`).

Every method may be called from any thread.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer

from quire.config.errors import ModelError
from quire.pipelines.chat_template import ChatTemplate, TextTooLong
from quire.pipelines.gguf_tokenizer import read_gguf_tokenizer
from quire.pipelines.token_decoder import TokenDecoder
from quire.pipelines.weights.gguf_file import is_gguf

_NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
TOOL_TEMPLATE = "additional_chat_templates/tool_use.jinja"
"""Beside chat_template.jinja, for conversations with tools."""
_NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Code points that Unicode reserves for use inside a program."""


_LONER = "\u263a"
"""A character that no tokenizer joins to what follows it, as mistral-common takes for granted."""


class TextTokenizer:
    """A model's tokenizer and chat template.

    Args:
        data: the contents of a tokenizer.json.
        special_tokens: named ones such as `bos_token`, by their text.
        chat_template: the template's source, if the model has one.

    Raises:
        ModelError: one line that says what is wrong with the data.
    """

    def __init__(
        self,
        data: bytes,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | None = None,
    ) -> None:
        try:
            self._backend = Tokenizer.from_str(data.decode())
            decoder = orjson.loads(data).get("decoder")
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            reason = " ".join(str(error).split())
            raise ModelError(f"tokenizer.json: not a tokenizer: {reason}") from None
        # A file may ask for cutting or padding, which would change prompts without a word.
        self._backend.no_truncation()
        self._backend.no_padding()
        named = dict(special_tokens or {})
        added = self._backend.get_added_tokens_decoder()
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        """One more than the largest token id."""
        self.longest_token_bytes = max((len(token.encode()) for token in vocabulary), default=1)
        self.special_tokens = {token.content: id for id, token in added.items() if token.special}
        """Control tokens by their spelling."""
        self.added_tokens = {token.content: id for id, token in added.items()}
        """Tokens that text is searched for before anything else, control tokens among them."""
        self.special_token_ids = frozenset(self.special_tokens.values())
        self.bos_token_id = vocabulary.get(named.get("bos_token", ""))
        self.eos_token_id = vocabulary.get(named.get("eos_token", ""))
        self.chat_template = None if chat_template is None else ChatTemplate(chat_template, named)
        self._spellings = tuple(
            token.content for token in added.values() if token.special and len(token.content) > 1
        )
        self._decoder = TokenDecoder(decoder)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_folder(cls, folder: Path | str) -> "TextTokenizer":
        """Read tokenizer.json and, where they exist, tokenizer_config.json,
        special_tokens_map.json and the chat templates; or a GGUF file.

        Raises:
            ModelError: a file is missing or wrong.
        """
        folder = Path(folder)
        if is_gguf(folder):
            found = read_gguf_tokenizer(folder)
            try:
                return cls(found.data, found.special_tokens, found.chat_template)
            except ModelError as error:
                raise ModelError(f"{folder}: {error}") from None
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{path}: not found; Quire reads tokenizers in the tokenizer.json form"
            )
        config = {
            **_read_json(folder / "special_tokens_map.json"),
            **_read_json(folder / "tokenizer_config.json"),
        }
        named = {name: _token_text(config[name]) for name in _NAMED_TOKENS if config.get(name)}
        return cls(path.read_bytes(), named, _read_chat_template(folder, config))

    def encode(
        self, text: str, add_special_tokens: bool = True, *, max_tokens: int | None = None
    ) -> list[int]:
        """Token ids of `text`; `add_special_tokens` adds what the model expects around a prompt,
        usually the beginning-of-sequence token.

        Raises:
            TextTooLong: the text must have more than `max_tokens` tokens; found without tokenizing.
        """
        self._check_size(text, max_tokens)
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_plain(
        self,
        text: str,
        *,
        also: Sequence[str] = (),
        starts_fresh: bool = True,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Token ids of `text`, in which control tokens and those of `also` are not to be spelled.

        `starts_fresh`: see `decode`.

        Raises:
            TextTooLong: as `encode`.
            ValueError: it holds every Unicode noncharacter.
        """
        self._check_size(text, max_tokens)
        mark = self._unused_marks([text], 1)[0]
        ids: list[int] = []
        for part in self._guard(text, mark, also).split(mark):
            is_first = starts_fresh and not ids
            ids += self.encode(part, False) if is_first else self._encode_further(part)
        return ids

    def _encode_further(self, text: str) -> list[int]:
        """The ids of `text` without the space that sentencepiece models put before the first word."""
        start = self.encode(_LONER, False)
        if self.fresh_bytes(self.token_bytes(start[0])) == self.token_bytes(start[0]):
            return self.encode(text, False)
        return self.encode(_LONER + text, False)[len(start) :]

    def token_id(self, token: str) -> int | None:
        """The id of a token of the vocabulary, by its spelling there."""
        return self._backend.token_to_id(token)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        chat_template_options: Mapping[str, Any] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        max_tokens: int | None = None,
    ) -> str:
        """The prompt's text for a conversation, in which the model may call `tools`.

        Raises:
            ValueError: the model has no chat template, or the template refused the messages.
            TextTooLong: the text must have more than `max_tokens` tokens.
        """
        if self.chat_template is None:
            raise ValueError("this model has no chat template")
        return self.chat_template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            options=chat_template_options,
            tools=tools,
            max_characters=None if max_tokens is None else self._max_bytes(max_tokens),
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        chat_template_options: Mapping[str, Any] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Token ids of a conversation. Control tokens come from the template alone.

        `continue_final_message` ends the prompt with the last message's content, so that the reply
        goes on with it. `add_special_tokens` adds what `encode` adds.

        A control token spelled out in a message is cut after its first character by a mark that
        no message holds; the parts are tokenized one by one, so neither is the control token.

        Raises:
            ValueError, TextTooLong: as `apply_chat_template`.
        """
        options = dict(chat_template_options or {})
        texts = list(_strings([*messages, options, tools]))
        mark, end = self._unused_marks(texts, 2)
        guarded = [self._guard(message, mark) for message in messages]
        if continue_final_message:
            guarded[-1] = {**guarded[-1], "content": (guarded[-1]["content"] or "") + end}
        rendered = self.apply_chat_template(
            guarded,
            self._guard(options, mark),
            tools=None if tools is None else [self._guard(tool, mark) for tool in tools],
            add_generation_prompt=add_generation_prompt,
            max_tokens=max_tokens,
        )
        if continue_final_message:
            rendered, is_printed, _ = rendered.rpartition(end)
            if not is_printed:
                raise ValueError("the chat template does not print the last message")
        ids: list[int] = []
        for part in rendered.split(mark):
            ids += self.encode(part, add_special_tokens=False, max_tokens=max_tokens)
        if add_special_tokens:
            before, after = self._around_prompts()
            return [*before, *ids, *after]
        return ids

    @property
    def start_token_ids(self) -> list[int]:
        """The tokens that `encode` adds before a text."""
        return self._around_prompts()[0]

    def _around_prompts(self) -> tuple[list[int], list[int]]:
        """The tokens that `encode` adds before and after a text."""
        bare, full = self.encode("a", False), self.encode("a")
        start = next(at for at in range(len(full)) if full[at : at + len(bare)] == bare)
        return full[:start], full[start + len(bare) :]

    def decode(
        self, ids: Sequence[int], *, skip_special_tokens: bool = True, starts_fresh: bool = True
    ) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        `starts_fresh`: the ids are a text of their own, so the space that sentencepiece models
        put before the first word is dropped; False keeps it, for ids that continue a text.
        """
        pieces: list[bytes] = []
        for id in ids:
            if skip_special_tokens and id in self.special_token_ids:
                continue
            piece = self.token_bytes(id)
            pieces.append(self.fresh_bytes(piece) if starts_fresh and not pieces else piece)
        return b"".join(pieces).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """What a token stands for in a text; empty for ids the tokenizer does not know."""
        known = self._bytes.get(id)
        if known is None:
            token = self._backend.id_to_token(id) if id >= 0 else None
            known = b"" if token is None else self._decoder.decode(token)
            self._bytes[id] = known
        return known

    def fresh_bytes(self, first: bytes) -> bytes:
        """The bytes of the first token of a text, without the space that marks a word's start."""
        return self._decoder.strip_first(first)

    def _check_size(self, text: str, max_tokens: int | None) -> None:
        if max_tokens is not None:
            size = len(text.encode())
            if size > self._max_bytes(max_tokens):
                least = -(-size // self.longest_token_bytes)
                raise TextTooLong(f"at least {least} tokens")

    def _max_bytes(self, max_tokens: int) -> int:
        return max_tokens * self.longest_token_bytes

    def _unused_marks(self, texts: Sequence[str], count: int) -> list[str]:
        marks = [c for c in _NONCHARACTERS if not any(c in text for text in texts)]
        if len(marks) < count:
            raise ValueError("the text holds every Unicode noncharacter")
        return marks[:count]

    def _guard(self, value: Any, mark: str, also: Sequence[str] = ()) -> Any:
        if isinstance(value, str):
            for spelling in (*self._spellings, *also):
                while spelling in value:
                    value = value.replace(spelling, f"{spelling[0]}{mark}{spelling[1:]}")
            return value
        if isinstance(value, Mapping):
            return {self._guard(key, mark): self._guard(item, mark) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._guard(item, mark) for item in value]
        return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ModelError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _token_text(value: Any) -> str:
    """A token is written as a string or as an object with `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ModelError(f"tokenizer_config.json: expected a token's text, found {value!r:.80}")
    return text


def _read_chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else the config's: a string, or a list with one named default. Where there
    is one named tool_use as well, it is for conversations with tools."""
    value = config.get("chat_template")
    for_tools: Any = None
    if isinstance(value, list):
        named = {row.get("name"): row.get("template") for row in value if isinstance(row, dict)}
        value, for_tools = named.get("default"), named.get("tool_use")
    default_file, tools_file = folder / "chat_template.jinja", folder / TOOL_TEMPLATE
    if default_file.is_file():
        value, for_tools = default_file.read_text(encoding="utf-8"), None
    if tools_file.is_file():
        for_tools = tools_file.read_text(encoding="utf-8")
    if value is not None and not isinstance(value, str):
        raise ModelError(
            f"tokenizer_config.json: chat_template: expected a string, found {type(value).__name__}"
        )
    if value is None or not isinstance(for_tools, str):
        return value
    # A `+` keeps the white space around the tag.
    return (
        f"{{% if tools is not none +%}}{for_tools.removesuffix(chr(10))}"
        f"{{%+ else +%}}{value.removesuffix(chr(10))}{{%+ endif %}}"
    )
