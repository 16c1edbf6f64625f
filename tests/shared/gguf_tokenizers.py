"""Small tokenizers of the kinds that GGUF files hold, and their metadata as converters write it."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import gguf
import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

CORPUS = (
    "The quick brown fox jumps over the lazy dog. It's 1234567 o'clock, they'll say; I'D rather not!",
    "Größe, naïve café, 東京都 は 日本の首都です。 Привет, мир! שלום مرحبا 😀👍🏽",
    "def add(a, b):\n    return a + b  # trailing   spaces   \n\n\tif x >= 10:\r\n\t\tprint('x\u00a0y')\n",
    "e\u0301 versus \u00e9, ½ ² ３ ٣ and $100.50 <b>bold</b> a_b-c~d^e|f 12 345 6789",
)
CONTROL = ("<|begin|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>")
USER_DEFINED = ("<think>", "</think>")

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+"


def _split(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), byte_level]


_LETTERS = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"{_LETTERS}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_LETTERS}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
)

# As the tokenizer.json of GPT-2, Llama 3, Qwen2.5, SmolLM2 and Phi-4-mini have them.
PRE_TOKENIZERS: Mapping[str, Sequence[pre_tokenizers.PreTokenizer]] = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": _split(rf"{_CONTRACTIONS}{_WORD}|\p{{N}}{{1,3}}{_REST}"),
    "qwen2": _split(rf"{_CONTRACTIONS}{_WORD}|\p{{N}}{_REST}"),
    "gpt-4o": _split(
        rf"{_CASED}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
}


@functools.cache
def byte_level(pre: str) -> Tokenizer:
    """A byte-level BPE trained on `CORPUS`, with the parts of the model that `pre` stands for."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(PRE_TOKENIZERS[pre]))
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in CONTROL]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in USER_DEFINED])
    return tokenizer


@functools.cache
def sentencepiece(has_prefix: bool) -> Tokenizer:
    """A BPE with byte fallback as Llama 2's (with a space before each text) or Gemma's."""
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "\u2581")]
    after: list[decoders.Decoder] = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if has_prefix:
        steps.insert(0, normalizers.Prepend("\u2581"))
        after.append(decoders.Strip(" ", 1, 0))
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(after)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # Words are cut while training only: else it would learn whole sentences.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    texts = [text for text in CORPUS if text.isascii()]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=420, special_tokens=names, show_progress=False)
    )
    tokenizer.pre_tokenizer = None
    added = [AddedToken(token, normalized=False, special=True) for token in names[:3]]
    return _only_added(tokenizer, added)


def _only_added(tokenizer: Tokenizer, added: list[AddedToken]) -> Tokenizer:
    """The tokenizer with no other added tokens: training adds the bytes as such."""
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = []
    fresh = Tokenizer.from_str(json.dumps(data))
    fresh.add_special_tokens(added)
    return fresh


def tokens_of(tokenizer: Tokenizer) -> list[str]:
    """Every token, by id."""
    found = sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    assert [id for _, id in found] == list(range(len(found)))
    return [token for token, _ in found]


def merges_of(tokenizer: Tokenizer) -> list[str]:
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _kinds(tokens: Iterable[str]) -> list[int]:
    types = gguf.TokenType
    kinds = dict.fromkeys(("<s>", "</s>"), types.CONTROL)
    kinds |= dict.fromkeys((f"<0x{byte:02X}>" for byte in range(256)), types.BYTE)
    kinds["<unk>"] = types.UNKNOWN
    return [int(kinds.get(token, types.NORMAL)) for token in tokens]


def add_byte_level(
    writer: gguf.GGUFWriter, pre: str, *, add_bos: bool | None = None, padded_to: int = 0
) -> None:
    """The metadata of `byte_level(pre)`."""
    tokenizer = byte_level(pre)
    add_bpe(writer, tokenizer, pre, padded_to=padded_to)
    writer.add_bos_token_id(tokenizer.token_to_id("<|begin|>"))
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)


def add_bpe(writer: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str, *, padded_to: int = 0) -> None:
    """The metadata of a byte-level BPE whose pre-tokenizer llama.cpp calls `pre`."""
    tokens = tokens_of(tokenizer)
    added = tokenizer.get_added_tokens_decoder()
    kinds = [_kind(added.get(id)) for id in range(len(tokens))]
    for id in range(len(tokens), padded_to):
        tokens.append(f"[PAD{id}]")
        kinds.append(int(gguf.TokenType.UNUSED))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges_of(tokenizer))


def _kind(added: AddedToken | None) -> int:
    if added is None:
        return int(gguf.TokenType.NORMAL)
    return int(gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED)


def add_sentencepiece(writer: gguf.GGUFWriter, has_prefix: bool) -> None:
    """The metadata of `sentencepiece(has_prefix)`; scores are the merges' ranks, as in Llama's."""
    tokenizer = sentencepiece(has_prefix)
    tokens = tokens_of(tokenizer)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges_of(tokenizer)):
        ranks.setdefault(merge.replace(" ", ""), rank)
    kinds = _kinds(tokens)
    scores = [
        -float(ranks.get(token, len(ranks) + id)) if kind == gguf.TokenType.NORMAL else 0.0
        for id, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    ]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(has_prefix)


def write_vocabulary(path: str, add: Callable[[gguf.GGUFWriter], None]) -> None:
    """A file with metadata and one tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    add(writer)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
