"""Incremental decoding equals decoding everything at the end."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from quire.pipelines.text.detokenizer import Detokenizer
from quire.pipelines.tokenizer import TextTokenizer

FAMILIES = ["byte_level", "llama", "metaspace"]


def pieces(
    tokenizer: TextTokenizer, ids: list[int], *, starts_fresh: bool = True
) -> tuple[list[str], str]:
    detokenizer = Detokenizer(tokenizer, starts_fresh=starts_fresh)
    return [detokenizer.feed(token) for token in ids], detokenizer.finish()


@pytest.mark.parametrize("family", FAMILIES)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_pieces_join_to_the_library_s_text(
    tokenizer_folders: dict[str, Path], family: str, text: str
) -> None:
    folder = tokenizer_folders[family]
    tokenizer = TextTokenizer.from_folder(folder)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text)

    given_out, rest = pieces(tokenizer, ids)

    assert "".join(given_out) == backend.decode(ids)
    assert rest == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_no_part_of_a_character_is_given_out(
    tokenizer_folders: dict[str, Path], family: str
) -> None:
    tokenizer = TextTokenizer.from_folder(tokenizer_folders[family])
    ids = tokenizer.encode("🦖 ж 漢字 🏳️‍🌈", add_special_tokens=False)

    given_out, _ = pieces(tokenizer, ids)

    assert "" in given_out
    assert not any("\ufffd" in piece for piece in given_out)


@given(st.data())
def test_bytes_that_are_not_utf8_come_out_as_in_a_whole_decode(
    tokenizer_folders: dict[str, Path], data: st.DataObject
) -> None:
    tokenizer = TextTokenizer.from_folder(tokenizer_folders["byte_level"])
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))

    given_out, rest = pieces(tokenizer, ids)

    assert "".join(given_out) + rest == tokenizer.decode(ids)


def test_unfinished_character_at_the_end_is_a_replacement(
    tokenizer_folders: dict[str, Path],
) -> None:
    tokenizer = TextTokenizer.from_folder(tokenizer_folders["llama"])
    ids = tokenizer.encode("a🦖", add_special_tokens=False)[:-1]

    given_out, rest = pieces(tokenizer, ids)

    assert ("".join(given_out), rest) == ("a", "\ufffd")


@pytest.mark.parametrize("family", ["llama", "metaspace"])
def test_continuation_keeps_its_first_space(
    tokenizer_folders: dict[str, Path], family: str
) -> None:
    tokenizer = TextTokenizer.from_folder(tokenizer_folders[family])
    ids = tokenizer.encode("Hello", add_special_tokens=False)

    assert "".join(pieces(tokenizer, ids, starts_fresh=False)[0]) == " Hello"
    assert "".join(pieces(tokenizer, ids, starts_fresh=True)[0]) == "Hello"


def test_special_tokens_have_no_text_and_do_not_count_as_the_first(
    tokenizer_folders: dict[str, Path],
) -> None:
    tokenizer = TextTokenizer.from_folder(tokenizer_folders["llama"])
    assert tokenizer.bos_token_id is not None

    given_out, _ = pieces(tokenizer, [tokenizer.bos_token_id, *tokenizer.encode("Hello")])

    assert "".join(given_out) == "Hello"
