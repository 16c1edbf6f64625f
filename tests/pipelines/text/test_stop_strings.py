"""Stop strings do not depend on where the text was cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.pipelines.text.stop_strings import StopStrings

words = st.text("ab<", min_size=1, max_size=5)


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the first end of any stop string wins, the longest of those."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


def could_begin(text: str, stops: list[str]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    lengths = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(lengths, default=0)


@given(
    pieces=st.lists(st.text("ab<c", max_size=6), max_size=12),
    stops=st.lists(words, min_size=1, max_size=4),
)
def test_any_cut_gives_the_reference_and_holds_back_no_more_than_needed(
    pieces: list[str], stops: list[str]
) -> None:
    matcher = StopStrings(stops)
    released, fed = "", ""
    for piece in pieces:
        released += matcher.feed(piece)
        fed += piece
        if matcher.matched is None:
            assert released == fed[: len(fed) - could_begin(fed, stops)]
    if matcher.matched is None:
        released += matcher.finish()

    assert (released, matcher.matched) == reference("".join(pieces), stops)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("abcd", ["abcd", "bc"], ("a", "bc")),
        ("xabc", ["bc", "abc"], ("x", "abc")),
        ("aab", ["ab"], ("a", "ab")),
        ("\n\nUser:", ["\n\nUser:", "\n\nUser: x"], ("", "\n\nUser:")),
        ("no stop here", ["STOP"], ("no stop here", None)),
        ("日本語。次", ["。"], ("日本語", "。")),
    ],
)
def test_examples(text: str, stops: list[str], expected: tuple[str, str | None]) -> None:
    for size in range(1, len(text) + 1):
        matcher = StopStrings(stops)
        cuts = [text[at : at + size] for at in range(0, len(text), size)]
        released = "".join(matcher.feed(cut) for cut in cuts) + matcher.finish()
        assert (released, matcher.matched) == expected


def test_nothing_comes_after_a_match() -> None:
    matcher = StopStrings(["."])

    assert matcher.feed("one. two") == "one"
    assert matcher.feed("three.") == ""
    assert matcher.finish() == ""


def test_without_stop_strings_all_text_passes() -> None:
    matcher = StopStrings([])

    assert matcher.feed("anything") == "anything"
    assert matcher.finish() == ""
