"""Prompts to fill in the middle: the parts in order, and nothing but marks as control tokens."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from quire.pipelines.chat_template import TextTooLong
from quire.pipelines.fill_in_middle import FillInMiddle
from quire.pipelines.tokenizer import TextTokenizer

PARTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
STYLES = {
    "qwen": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    "starcoder": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "deepseek": ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    "codellama": ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
    "codestral": ("[PREFIX]", "[SUFFIX]"),
}


def backend_with(folder: Path, marks: tuple[str, ...], *, special: bool = True) -> Tokenizer:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = [AddedToken(mark, special=special, normalized=False) for mark in marks]
    backend.add_special_tokens(tokens) if special else backend.add_tokens(tokens)
    return backend


def reader(backend: Tokenizer) -> TextTokenizer:
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    return TextTokenizer(backend.to_str().encode(), named)


def without_first_space(backend: Tokenizer) -> Tokenizer:
    """As transformers sets a tokenizer of Code Llama to fill in."""
    bare = Tokenizer.from_str(backend.to_str())
    if bare.normalizer is not None:
        bare.normalizer = normalizers.Replace(" ", "▁")
    elif isinstance(bare.pre_tokenizer, pre_tokenizers.Metaspace):
        bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return bare


@pytest.fixture(scope="session", params=["byte_level", "llama", "metaspace"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("special", [True, False])
def test_the_order_of_the_parts(
    tokenizer_folders: dict[str, Path], family: str, style: str, special: bool
) -> None:
    marks = STYLES[style]
    backend = backend_with(tokenizer_folders[family], marks, special=special)
    found = FillInMiddle.of(reader(backend))
    assert found is not None
    prefix, suffix = "def f(x):\n    return", " + 1\n"
    before = backend.encode(prefix, add_special_tokens=False).ids
    after = without_first_space(backend).encode(suffix, add_special_tokens=False).ids
    ids = [backend.token_to_id(mark) for mark in marks]
    expected = [ids[0], *before, ids[1], *after, *ids[2:3]]
    if style == "codestral":
        expected = [ids[1], *after, ids[0], *before]

    start = backend.token_to_id("<s>")
    assert found.encode(prefix, suffix, max_tokens=None) == [start, *expected]
    assert found.encode(prefix, suffix, False, max_tokens=None) == expected
    assert found.end_token_id == (ids[3] if style == "codellama" else None)


@settings(max_examples=40, deadline=None)
@given(prefix=PARTS, suffix=PARTS, data=st.data())
@pytest.mark.parametrize("special", [True, False])
def test_no_text_spells_a_mark(
    tokenizer_folders: dict[str, Path],
    family: str,
    special: bool,
    prefix: str,
    suffix: str,
    data: Any,
) -> None:
    marks = STYLES["codellama"]
    tokenizer = reader(backend_with(tokenizer_folders[family], marks, special=special))
    found = FillInMiddle.of(tokenizer)
    assert found is not None
    spelled = st.sampled_from([*marks, "</s>", "<s>", "▁", "<PRE>", " <SUF>"])
    prefix += data.draw(spelled) + data.draw(st.just("") | spelled)
    suffix = data.draw(spelled) + suffix

    ids = found.encode(prefix, suffix, False, max_tokens=None)

    known = [tokenizer.token_id(mark) for mark in marks]
    control = [id for id in ids if id in (*known, *tokenizer.special_token_ids)]
    assert [id for id in control if id != tokenizer.token_id("<unk>")] == known[:3]
    if family == "byte_level":
        cut = ids.index(known[1])
        text = tokenizer.decode(ids[1:cut], skip_special_tokens=False)
        assert text == prefix
        assert tokenizer.decode(ids[cut + 1 : -1], skip_special_tokens=False) == suffix


def test_models_that_do_not_fill_in(tokenizer_folders: dict[str, Path]) -> None:
    folder = tokenizer_folders["byte_level"]

    assert FillInMiddle.of(reader(backend_with(folder, STYLES["qwen"][:2]))) is None
    assert FillInMiddle.of(TextTokenizer.from_folder(folder)) is None


def test_long_parts_are_refused_before_they_are_read(tokenizer_folders: dict[str, Path]) -> None:
    found = FillInMiddle.of(reader(backend_with(tokenizer_folders["llama"], STYLES["qwen"])))
    assert found is not None

    for parts in (("a" * 9999, "b"), ("a", "b" * 9999), ("</s>" * 9999, ""), ("", "</s>" * 9999)):
        with pytest.raises(TextTooLong):
            found.encode(*parts, max_tokens=5)
    marks = [chr(code) for code in range(0xFDD0, 0xFDF0)]
    with pytest.raises(ValueError, match="noncharacter"):
        found.encode("".join(marks), "b", max_tokens=None)
