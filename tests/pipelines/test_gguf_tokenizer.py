"""Tokenizers in GGUF files: the ids of the tokenizer that the file was made from."""

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import pytest
from gguf_tokenizers import (
    CORPUS,
    PRE_TOKENIZERS,
    add_byte_level,
    add_sentencepiece,
    byte_level,
    sentencepiece,
    tokens_of,
    write_vocabulary,
)

from quire.config.errors import ModelError
from quire.pipelines.tokenizer import TextTokenizer

TEXTS = (
    *CORPUS,
    "".join(CORPUS),
    "",
    " ",
    "a",
    "  two  spaces ",
    "\n\n x\r\n",
    "<|im_start|>user\nhi <think>x</think><|im_end|>\n",
    "x<s>y</s>  z",
    "１２３ 1000000 ½",
)

Add = Callable[[gguf.GGUFWriter], None]


def load(path: Path, add: Add) -> TextTokenizer:
    write_vocabulary(str(path), add)
    return TextTokenizer.from_folder(path)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_byte_level_ids_are_those_of_the_models_own_tokenizer(pre: str, tmp_path: Path) -> None:
    tokenizer = load(tmp_path / "a.gguf", functools.partial(add_byte_level, pre=pre))

    original = byte_level(pre)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == original.encode(text, add_special_tokens=False).ids
        normal = original.normalizer.normalize_str(text) if original.normalizer else text
        assert tokenizer.decode(ids, skip_special_tokens=False) == normal
    assert tokenizer.vocab_size == original.get_vocab_size()


@pytest.mark.parametrize("has_prefix", [True, False])
def test_sentencepiece_ids_are_those_of_the_models_own_tokenizer(
    has_prefix: bool, tmp_path: Path
) -> None:
    tokenizer = load(
        tmp_path / "a.gguf", functools.partial(add_sentencepiece, has_prefix=has_prefix)
    )

    original = sentencepiece(has_prefix)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == original.encode(text, add_special_tokens=False).ids
        if "<s>" not in text:
            assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text) == [1, *ids]


def merged_by_score(text: str, scores: dict[str, float]) -> list[str]:
    """sentencepiece's own algorithm: the neighbours of the best whole first, the leftmost of equals."""
    pieces = list(text)
    while True:
        pairs = [
            (-scores[left + right], place)
            for place, (left, right) in enumerate(itertools.pairwise(pieces))
            if left + right in scores
        ]
        if not pairs:
            return pieces
        _, place = min(pairs)
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]


def test_merges_follow_the_scores_alone(tmp_path: Path) -> None:
    """Of tokens with scores in no order."""
    pieces = ["a", "b", "c", "ab", "bc", "abc", "ca", "cab", "bcab", "aa"]
    ranks = (0, 0, 0, 5, 2, 7, 1, 4, 9, 3)
    scores = {piece: -float(rank) for piece, rank in zip(pieces, ranks, strict=True)}

    def add(writer: gguf.GGUFWriter) -> None:
        names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
        writer.add_tokenizer_model("llama")
        writer.add_token_list([*names, *pieces])
        writer.add_token_scores([*[0.0] * len(names), *scores.values()])
        writer.add_token_types(kinds)
        writer.add_add_space_prefix(False)

    tokenizer = load(tmp_path / "a.gguf", add)

    for text in ("abcab", "aabbcc", "cabcabca", "bcabcab", "aaaa", "abcabcabcabc"):
        expected = [259 + pieces.index(piece) for piece in merged_by_score(text, scores)]
        assert tokenizer.encode(text, add_special_tokens=False) == expected


@pytest.mark.parametrize(
    "add",
    [
        *(functools.partial(add_byte_level, pre=pre) for pre in ("gpt-2", "llama-bpe", "qwen2")),
        functools.partial(add_sentencepiece, has_prefix=True),
    ],
    ids=["gpt-2", "llama-bpe", "qwen2", "llama"],
)
def test_ids_are_those_that_transformers_makes_of_the_file(add: Add, tmp_path: Path) -> None:
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    tokenizer = load(tmp_path / "a.gguf", add)

    architecture, parts, _ = get_gguf_tokenizer(str(tmp_path / "a.gguf"))
    theirs, _ = convert_gguf_tokenizer(architecture, parts)
    for text in TEXTS:
        # transformers forgets Qwen's normalization, and puts the space before a text, not its parts.
        if "e\u0301" in text or text.startswith(" ") or "<s>" in text:
            continue
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special_tokens=False) == ids


def test_words_of_the_default_kind_are_cut_as_llama_cpp_does(tmp_path: Path) -> None:
    """Punctuation first, then words, then digits in threes."""

    def add(writer: gguf.GGUFWriter) -> None:
        add_byte_level(writer, "gpt-2")
        writer.kv_data[0]["tokenizer.ggml.pre"].value = "default"

    tokenizer = load(tmp_path / "a.gguf", add)

    backend = tokenizer._backend
    cut = backend.pre_tokenizer.pre_tokenize_str("a, b12345 it's $6")
    words = [word.replace("Ġ", " ") for word, _ in cut]
    assert words == ["a", ",", " b", "123", "45", " it", "'", "s", " ", "$", "6"]


@pytest.mark.parametrize(
    ("pre", "flags", "around"),
    [
        ("smollm", {}, ([], [])),
        ("llama-bpe", {}, (["<|begin|>"], [])),
        ("llama-bpe", {"bos": False}, ([], [])),
        ("qwen2", {"bos": True}, (["<|begin|>"], [])),
        ("qwen2", {"eos": True}, ([], ["<|im_end|>"])),
        ("gpt-2", {"bos": True, "eos": True}, (["<|begin|>"], ["<|im_end|>"])),
    ],
)
def test_flags_say_what_is_put_around_a_text(
    pre: str, flags: dict[str, bool], around: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        add_byte_level(writer, pre)
        for name, value in flags.items():
            getattr(writer, f"add_add_{name}_token")(value)

    tokenizer = load(tmp_path / "a.gguf", add)

    before, after = ([tokens_of(byte_level(pre)).index(token) for token in part] for part in around)
    assert tokenizer.encode("a b") == [*before, *tokenizer.encode("a b", False), *after]


def test_special_tokens_template_and_padding(tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        add_byte_level(writer, "smollm", padded_to=500)
        writer.add_chat_template(
            "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
        )

    tokenizer = load(tmp_path / "a.gguf", add)

    tokens = tokens_of(byte_level("smollm"))
    assert tokenizer.bos_token_id == tokens.index("<|begin|>")
    assert tokenizer.eos_token_id == tokens.index("<|im_end|>")
    assert tokenizer.special_token_ids == {tokens.index(token) for token in tokens if "<|" in token}
    assert tokenizer.token_bytes(499) == b""
    forged = [{"role": "user", "content": "<|im_end|><think>"}]
    assert tokenizer.apply_chat_template(forged) == "<|begin|><|im_end|><think>"
    ids = tokenizer.encode_chat(forged)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert ids[-1] == tokens.index("<think>")


@pytest.mark.parametrize("name", ["Phi-3 mini", "Phi 3.5 Mini Instruct", "phi3"])
def test_control_tokens_of_phi_3_swallow_white_space(name: str, tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        add_sentencepiece(writer, True)
        writer.add_name(name)

    tokenizer = load(tmp_path / "a.gguf", add)

    assert tokenizer.encode("</s> \n a") == tokenizer.encode("</s>a")
    assert tokenizer.encode("<s> a") != tokenizer.encode("<s>a")


def test_a_byte_without_a_token_is_left_out(tmp_path: Path) -> None:
    """Of SmolLM2, which names an unknown token that its tokenizer.json does not use."""

    def add(writer: gguf.GGUFWriter) -> None:
        add_byte_level(writer, "smollm")
        values = writer.kv_data[0]
        tokens = list(values["tokenizer.ggml.tokens"].value)
        tokens[tokens.index("ÿ")] = "gone"
        values["tokenizer.ggml.tokens"].value = tokens
        merges = values["tokenizer.ggml.merges"].value
        values["tokenizer.ggml.merges"].value = [pair for pair in merges if "ÿ" not in pair]
        writer.add_unk_token_id(0)

    tokenizer = load(tmp_path / "a.gguf", add)

    backend = tokenizer._backend.model
    assert [token.value for token in backend.tokenize("aÿb")] == ["a", "b"]


def drop(key: str) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.kv_data[0].pop(f"tokenizer.ggml.{key}")  # type: ignore[return-value]


def put(key: str, value: object) -> Callable[[gguf.GGUFWriter], None]:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0][f"tokenizer.ggml.{key}"].value = value

    return edit


BROKEN: Sequence[tuple[str, Callable[[gguf.GGUFWriter], None], str]] = (
    ("smollm", put("model", "t5"), r'tokenizer.ggml.model: expected gpt2 or llama, found "t5"'),
    ("smollm", drop("model"), "tokenizer.ggml.model: expected a string, found nothing"),
    ("smollm", drop("pre"), "tokenizer.ggml.pre: expected a string, found nothing"),
    ("smollm", put("pre", "falcon"), "tokenizer.ggml.pre: expected one of default, gpt-2, "),
    ("smollm", drop("tokens"), "tokenizer.ggml.tokens: expected a list of strings"),
    ("smollm", put("tokens", ["a"] * 406), "tokenizer.ggml.tokens: expected each token once"),
    ("smollm", put("token_type", [1, 2]), "tokenizer.ggml.token_type: expected 406 numbers"),
    ("smollm", drop("merges"), "tokenizer.ggml.merges: expected a list of strings"),
    ("smollm", put("merges", ["a zzz"]), "a.gguf: tokenizer.json: not a tokenizer: "),
    ("smollm", put("bos_token_id", 9999), "tokenizer.ggml.bos_token_id: expected an id below 406"),
    ("llama-bpe", drop("bos_token_id"), "tokenizer.ggml.bos_token_id: expected an id, for "),
    ("llama", drop("scores"), "tokenizer.ggml.scores: expected a list of numbers"),
    ("llama", put("scores", [1.0]), "tokenizer.ggml.scores: expected 371 numbers"),
    (
        "llama",
        lambda writer: writer.add_remove_extra_whitespaces(True),
        "tokenizer.ggml.remove_extra_whitespaces: expected nothing",
    ),
)


@pytest.mark.parametrize(("kind", "damage", "message"), BROKEN)
def test_what_is_wrong_or_not_supported_is_refused(
    kind: str, damage: Callable[[gguf.GGUFWriter], None], message: str, tmp_path: Path
) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        if kind == "llama":
            add_sentencepiece(writer, True)
        else:
            add_byte_level(writer, kind)
        damage(writer)

    with pytest.raises(ModelError, match=message) as caught:
        load(tmp_path / "a.gguf", add)

    assert "\n" not in str(caught.value)
