"""Tokens to text and the reason of the end, whatever the chunks."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.core.status import TextGenerationStatus as Status
from quire.pipelines.text.text_stream import TextDelta, TextStream
from quire.pipelines.tokenizer import TextTokenizer

TEXT = "Hello world 日本語 🙂 the lazy dog. The quick brown fox"


@pytest.fixture(params=["byte_level", "llama"])
def tokenizer(request: pytest.FixtureRequest, tokenizer_folders: dict[str, Path]) -> TextTokenizer:
    return TextTokenizer.from_folder(tokenizer_folders[request.param])


def run(
    stream: TextStream, chunks: list[list[int]], status: Status
) -> tuple[str, int, list[int], TextDelta]:
    text, count, offsets = "", 0, []
    for index, chunk in enumerate(chunks):
        delta = stream.feed(chunk, status if index == len(chunks) - 1 else Status.ACTIVE)
        text += delta.text
        count += delta.num_tokens
        offsets += delta.offsets
        if delta.finish_reason is not None:
            break
    return text, count, offsets, delta


@given(data=st.data())
@pytest.mark.parametrize("family", ["byte_level", "llama"])
def test_chunks_do_not_change_the_outcome(
    tokenizer_folders: dict[str, Path], family: str, data: st.DataObject
) -> None:
    tokenizer = TextTokenizer.from_folder(tokenizer_folders[family])
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    start = data.draw(st.integers(0, len(TEXT) - 1))
    stop = TEXT[start : start + data.draw(st.integers(1, 6))]
    params = SamplingParams(stop=(stop, "zzz"), min_new_tokens=data.draw(st.integers(0, 10)))
    status = data.draw(st.sampled_from([Status.MAXIMUM_LENGTH, Status.END_OF_SEQUENCE]))
    borders = sorted(data.draw(st.sets(st.integers(1, len(ids) - 1))))
    chunks = [ids[a:b] for a, b in zip([0, *borders], [*borders, len(ids)], strict=True)]

    whole = run(TextStream(tokenizer, params, starts_fresh=True), [ids], status)
    cut = run(TextStream(tokenizer, params, starts_fresh=True), chunks, status)

    assert cut[:3] == whole[:3]
    assert cut[3].finish_reason == whole[3].finish_reason
    assert cut[3].stop_reason == whole[3].stop_reason


def test_stop_string_ends_the_text_and_the_count(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("Hello world, how are you", add_special_tokens=False)
    stream = TextStream(tokenizer, SamplingParams(stop=("world",)), starts_fresh=True)

    delta = stream.feed(ids, Status.ACTIVE)

    assert delta.text == "Hello "
    assert (delta.finish_reason, delta.stop_reason) == ("stop", "world")
    assert tokenizer.decode(ids[: delta.num_tokens]).startswith("Hello world")
    assert delta.num_tokens < len(ids)
    assert stream.is_finished


def test_held_back_text_is_given_out_at_the_end(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("Hello wor", add_special_tokens=False)
    stream = TextStream(tokenizer, SamplingParams(stop=("world",)), starts_fresh=True)

    first = stream.feed(ids, Status.ACTIVE)
    last = stream.feed([], Status.MAXIMUM_LENGTH)

    assert (first.text, last.text) == ("Hello ", "wor")
    assert last.finish_reason == "length"


@pytest.mark.parametrize(
    ("status", "reason", "stops_at"),
    [
        (Status.END_OF_SEQUENCE, "stop", False),
        (Status.STOP_TOKEN, "stop", True),
        (Status.MAXIMUM_LENGTH, "length", False),
    ],
)
def test_reasons_of_the_end(
    tokenizer: TextTokenizer, status: Status, reason: str, stops_at: bool
) -> None:
    ids = tokenizer.encode("Hello world", add_special_tokens=False)

    delta = TextStream(tokenizer, SamplingParams(), starts_fresh=True).feed(ids, status)

    shown = ids if status is Status.MAXIMUM_LENGTH else ids[:-1]
    assert delta.text == tokenizer.decode(shown)
    assert delta.num_tokens == len(ids)
    assert delta.finish_reason == reason
    assert delta.stop_reason == (ids[-1] if stops_at else None)


def test_stop_strings_wait_for_min_new_tokens(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("dog dog dog dog", add_special_tokens=False)
    params = SamplingParams(stop=("dog",), min_new_tokens=len(ids) // 2)

    delta = TextStream(tokenizer, params, starts_fresh=True).feed(ids, Status.ACTIVE)

    assert delta.text.count("dog") >= 1
    assert delta.stop_reason == "dog"
    assert delta.num_tokens > len(ids) // 2


def test_offsets_point_into_the_text(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("Hello world", add_special_tokens=False)

    delta = TextStream(tokenizer, SamplingParams(), starts_fresh=True).feed(
        ids, Status.MAXIMUM_LENGTH
    )

    for index, offset in enumerate(delta.offsets):
        assert tokenizer.decode(ids[:index]) == delta.text[:offset]


def test_feeding_past_the_end_is_an_error(tokenizer: TextTokenizer) -> None:
    stream = TextStream(tokenizer, SamplingParams())
    stream.feed([10], Status.MAXIMUM_LENGTH)

    with pytest.raises(ValueError, match="after the end"):
        stream.feed([11], Status.ACTIVE)
