"""The tokenizer in a GGUF file, as the tokenizer.json that would say the same. No torch.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What they mean is what llama.cpp
makes of them (https://github.com/ggml-org/llama.cpp, `src/llama-vocab.cpp`), but for the
normalization of Qwen's texts, which the models' own tokenizers have and llama.cpp has not.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.gguf_config import ENDS_OF_TURN
from quire.pipelines.weights.gguf_header import read_gguf_header

Json = dict[str, Any]

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
"""Token types; normal ones are 1 and bytes 6."""

_PADDING = re.compile(r"\[PAD\d+\]")
"""What converters fill a vocabulary with up to the rows of the embedding."""

_SPACE = "\u2581"

_NAMED: Mapping[str, str] = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
"""By the name in tokenizer_config.json; the spelling is llama.cpp's."""

_SENTENCEPIECE_IDS: Mapping[str, int] = {"bos_token": 1, "eos_token": 2, "unk_token": 0}

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = _TEKKEN.replace(r"\p{M}]+|", r"\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|")
_GPT4O = _GPT4O.replace(r"\p{M}]*|", r"\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|")
_GPT4O = _GPT4O.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@dataclass(frozen=True, kw_only=True)
class _Split:
    """How a kind of byte-level BPE cuts text into words: by each pattern in turn.

    `ignores_merges`: a word that is a token needs no merges. `adds_bos` where no key says it.
    """

    patterns: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False
    normalizer: str | None = None


_LLAMA3_SPLIT = _Split(patterns=(_LLAMA3,), ignores_merges=True, adds_bos=True)
_SPLITS: Mapping[str, _Split] = {
    "default": _Split(
        patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    ),
    "gpt-2": _Split(patterns=(_GPT2,)),
    "phi-2": _Split(patterns=(_GPT2,)),
    "gpt-4o": _Split(patterns=(_GPT4O,)),
    "llama-bpe": _LLAMA3_SPLIT,
    "llama3": _LLAMA3_SPLIT,
    "llama-v3": _LLAMA3_SPLIT,
    "dbrx": _Split(patterns=(_LLAMA3,)),
    "smaug-bpe": _Split(patterns=(_LLAMA3,)),
    "qwen2": _Split(patterns=(_QWEN2,), normalizer="NFC"),
    "deepseek-r1-qwen": _Split(patterns=(_QWEN2,)),
    "smollm": _Split(patterns=(r"\p{N}", _GPT2)),
    "tekken": _Split(patterns=(_TEKKEN,), ignores_merges=True, adds_bos=True),
}
"""By `tokenizer.ggml.pre`."""


@dataclass(frozen=True)
class GgufTokenizer:
    """What `TextTokenizer` is made of: a tokenizer.json, named tokens and the chat template."""

    data: bytes
    special_tokens: Mapping[str, str]
    chat_template: str | None


def read_gguf_tokenizer(path: Path) -> GgufTokenizer:
    """Raises ModelError where the file has no tokenizer, or one that is not supported."""
    metadata = ConfigFile(str(path), read_gguf_header(path).metadata)
    vocabulary = _Vocabulary.read(metadata)
    is_sentencepiece = vocabulary.model == "llama"
    body = _sentencepiece(metadata, vocabulary) if is_sentencepiece else _byte_level(metadata)
    named = _named_tokens(metadata, vocabulary)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added_tokens(_strips_after(metadata)),
        "normalizer": body.normalizer,
        "pre_tokenizer": body.pre_tokenizer,
        "post_processor": _post_processor(metadata, named, body.adds_bos),
        "decoder": body.decoder,
        "model": {
            "type": "BPE",
            # Byte-level models leave out a byte that has no token.
            "unk_token": (
                vocabulary.tokens[named["unk_token"]]
                if is_sentencepiece and "unk_token" in named
                else None
            ),
            "vocab": vocabulary.ids,
            **body.model,
        },
    }
    key = "tokenizer.chat_template"
    return GgufTokenizer(
        orjson.dumps(tokenizer),
        {name: vocabulary.tokens[id] for name, id in named.items()},
        metadata.string(key) if metadata.has(key) else None,
    )


@dataclass(frozen=True)
class _Vocabulary:
    model: str
    tokens: Sequence[str]
    kinds: Sequence[int]

    @classmethod
    def read(cls, metadata: ConfigFile) -> "_Vocabulary":
        model = metadata.string("tokenizer.ggml.model")
        if model not in ("gpt2", "llama"):
            raise metadata.wrong("tokenizer.ggml.model", "gpt2 or llama")
        key = "tokenizer.ggml.tokens"
        tokens = [token or f"[EMPTY_{id}]" for id, token in enumerate(metadata.strings(key))]
        if len(set(tokens)) != len(tokens):
            raise metadata.wrong(key, "each token once")
        kinds: Sequence[float] = [1] * len(tokens)
        key = "tokenizer.ggml.token_type"
        if metadata.has(key):
            kinds = metadata.numbers(key)
        if len(kinds) != len(tokens):
            raise metadata.wrong(key, f"{len(tokens)} numbers, one for each token")
        control = [
            _CONTROL if token in ENDS_OF_TURN else int(kind)
            for token, kind in zip(tokens, kinds, strict=True)
        ]
        return cls(model, tokens, control)

    @property
    def ids(self) -> dict[str, int]:
        return {
            token: id
            for id, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind != _UNUSED or not _PADDING.fullmatch(token)
        }

    def added_tokens(self, strip_after: bool) -> list[Json]:
        """Those that are found in a text before all else."""
        return [
            {
                "id": id,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": strip_after and kind == _CONTROL and token not in _NOT_STRIPPED,
                "normalized": False,
                "special": kind != _USER_DEFINED,
            }
            for id, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]


_NOT_STRIPPED = ("<s>", "<|endoftext|>")
_PHI_3 = re.compile(r"phi[-_ ]?3", re.IGNORECASE)


def _strips_after(metadata: ConfigFile) -> bool:
    """Whether control tokens swallow the white space after them: of Phi-3 and 3.5, whose names
    converters have written with each of these signs."""
    return _PHI_3.search(metadata.string("general.name", "")) is not None


@dataclass(frozen=True, kw_only=True)
class _Body:
    """The parts of a tokenizer.json that depend on the kind of tokenizer."""

    normalizer: Json | None
    pre_tokenizer: Json | None
    decoder: Json
    model: Json
    adds_bos: bool


def _byte_level(metadata: ConfigFile) -> _Body:
    key = "tokenizer.ggml.pre"
    pre = metadata.string(key)
    if pre not in _SPLITS:
        raise metadata.wrong(key, f"one of {', '.join(_SPLITS)}")
    split = _SPLITS[pre]
    merges = []
    for merge in metadata.strings("tokenizer.ggml.merges"):
        left, _, right = merge[1:].partition(" ")
        merges.append((merge[:1] + left, right))
    steps: list[Json] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in split.patterns
    ]
    byte_level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps.append({"type": "ByteLevel", **byte_level})
    return _Body(
        normalizer=None if split.normalizer is None else {"type": split.normalizer},
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
        decoder={"type": "ByteLevel", **byte_level},
        model={
            "merges": merges,
            "byte_fallback": False,
            "fuse_unk": False,
            "ignore_merges": split.ignores_merges,
        },
        adds_bos=split.adds_bos,
    )


def _sentencepiece(metadata: ConfigFile, vocabulary: _Vocabulary) -> _Body:
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        full = f"tokenizer.ggml.{key}"
        if metadata.has(full) and not (
            key.startswith("remove") and not metadata.boolean(full, False)
        ):
            raise metadata.wrong(full, "nothing for a tokenizer of the model llama")
    key = "tokenizer.ggml.scores"
    scores = metadata.numbers(key)
    if len(scores) != len(vocabulary.tokens):
        raise metadata.wrong(key, f"{len(vocabulary.tokens)} numbers, one for each token")
    has_prefix = metadata.boolean("tokenizer.ggml.add_space_prefix", True)
    spaces: Json = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back: Json = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if has_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    prefix: list[Json] = [{"type": "Prepend", "prepend": _SPACE}] if has_prefix else []
    return _Body(
        normalizer={"type": "Sequence", "normalizers": [*prefix, spaces]},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
        model={
            "merges": list(_merges(vocabulary, scores)),
            "byte_fallback": True,
            "fuse_unk": True,
            "ignore_merges": False,
        },
        adds_bos=True,
    )


def _merges(vocabulary: _Vocabulary, scores: Sequence[float]) -> Iterable[tuple[str, str]]:
    """Each way to make a token of two others, the best token first.

    sentencepiece merges the neighbours whose whole has the best score; BPE the pair of best rank.
    """
    known = {
        token
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        if kind not in (_UNKNOWN, _CONTROL)
    }
    for _, token in sorted(zip(scores, vocabulary.tokens, strict=True), key=lambda pair: -pair[0]):
        if token in known:
            for cut in range(1, len(token)):
                if token[:cut] in known and token[cut:] in known:
                    yield token[:cut], token[cut:]


def _named_tokens(metadata: ConfigFile, vocabulary: _Vocabulary) -> dict[str, int]:
    """Ids of `bos_token` and so on, those that there are."""
    named = {}
    defaults = _SENTENCEPIECE_IDS if vocabulary.model == "llama" else {}
    for name, suffix in _NAMED.items():
        key = f"tokenizer.ggml.{suffix}"
        if not metadata.has(key) and name not in defaults:
            continue
        id = metadata.integer(key, defaults.get(name), minimum=0)
        if id < len(vocabulary.tokens):
            named[name] = id
        elif metadata.has(key):
            raise metadata.wrong(key, f"an id below {len(vocabulary.tokens)}")
    return named


def _post_processor(metadata: ConfigFile, named: Mapping[str, int], adds_bos: bool) -> Json | None:
    """What puts the tokens around a text that the flags ask for."""
    ids: dict[str, int] = {}
    for name, default in (("bos_token", adds_bos), ("eos_token", False)):
        flag = f"tokenizer.ggml.add_{name}"
        if metadata.boolean(flag, default):
            if name not in named:
                raise metadata.wrong(f"tokenizer.ggml.{_NAMED[name]}", f"an id, for {flag}")
            ids[name] = named[name]
    if not ids:
        return None

    def template(kinds: Sequence[str]) -> list[Json]:
        pieces: list[Json] = []
        for type_id, kind in enumerate(kinds):
            parts = [
                {"SpecialToken": {"id": "bos_token", "type_id": type_id}},
                {"Sequence": {"id": kind, "type_id": type_id}},
                {"SpecialToken": {"id": "eos_token", "type_id": type_id}},
            ]
            pieces += [
                part for part in parts if "Sequence" in part or part["SpecialToken"]["id"] in ids
            ]
        return pieces

    return {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("AB"),
        "special_tokens": {
            name: {"id": name, "ids": [id], "tokens": [name]} for name, id in ids.items()
        },
    }
