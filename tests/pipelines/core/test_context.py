from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.pipelines.core.context import ContextWire, TextContext
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.core.status import TextGenerationStatus as Status

EOS, STOP = 2, 7


def context(prompt: int = 3, generated: tuple[int, ...] = (), **options: Any) -> TextContext:
    params = SamplingParams(
        stop_token_ids=(STOP,),
        **{
            name: options.pop(name)
            for name in list(options)
            if name in SamplingParams.__struct_fields__
        },
    )
    return TextContext(
        1,
        np.arange(10, 10 + prompt, dtype=np.int32),
        params,
        max_length=options.pop("max_length", 20),
        generated=np.array(generated, dtype=np.int32),
        eos_token_ids=(EOS,),
        **options,
    )


@pytest.mark.parametrize(
    ("options", "tokens", "status"),
    [
        ({}, [5], Status.ACTIVE),
        ({}, [EOS], Status.END_OF_SEQUENCE),
        ({}, [STOP], Status.STOP_TOKEN),
        ({"ignore_eos": True}, [EOS], Status.ACTIVE),
        ({"ignore_eos": True}, [STOP], Status.STOP_TOKEN),
        ({"max_new_tokens": 2}, [5], Status.ACTIVE),
        ({"max_new_tokens": 2}, [5, 5], Status.MAXIMUM_LENGTH),
        ({"max_new_tokens": 2}, [5, EOS], Status.END_OF_SEQUENCE),
        ({"max_length": 4}, [5], Status.MAXIMUM_LENGTH),
        ({"max_length": 5, "max_new_tokens": 9}, [5, 5], Status.MAXIMUM_LENGTH),
        ({"min_new_tokens": 1}, [5, EOS], Status.END_OF_SEQUENCE),
    ],
)
def test_a_context_ends_for_the_right_reason(
    options: dict[str, Any], tokens: list[int], status: Status
) -> None:
    subject = context(**options)
    for token in tokens:
        assert subject.status is Status.ACTIVE
        subject.update(token)
    assert subject.status is status
    assert subject.is_done == (status is not Status.ACTIVE)


def test_end_tokens_are_kept_off_until_min_new_tokens_are_there() -> None:
    subject = context(min_new_tokens=2)
    below = []
    for _ in range(3):
        below.append(subject.is_below_min_new_tokens)
        subject.update(5)
    assert below == [True, True, False]


def test_a_reset_keeps_the_prompt_boundary_and_the_limits() -> None:
    subject = context(max_new_tokens=3)
    subject.update(5)
    subject.update(6)
    subject.reset()
    assert subject.tokens.active_length == 5
    assert (subject.tokens.prompt_length, subject.tokens.generated_length) == (3, 2)
    subject.update(8)
    assert subject.status is Status.MAXIMUM_LENGTH


@pytest.mark.parametrize("prompt", [20, 21])
def test_a_prompt_without_room_for_a_token_is_refused(prompt: int) -> None:
    with pytest.raises(ValueError, match=f"{prompt} tokens; max_length 20"):
        context(prompt=prompt)


@given(
    prompt=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40),
    generated=st.lists(st.integers(0, 2**31 - 1), max_size=10),
    choice=st.integers(0, 127),
    priority=st.integers(-5, 5),
    salt=st.binary(max_size=8),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_wire_carries_all_that_a_resume_needs(
    prompt: list[int], generated: list[int], choice: int, priority: int, salt: bytes, seed: int
) -> None:
    subject = TextContext(
        2**62,
        np.array(prompt, dtype=np.int32),
        SamplingParams(seed=seed, min_new_tokens=4),
        max_length=64,
        generated=np.array(generated, dtype=np.int32),
        choice=choice,
        eos_token_ids=(EOS, 5),
        priority=priority,
        cache_salt=salt,
    )
    raw = msgspec.msgpack.encode(subject.to_wire())
    twin = TextContext.from_wire(msgspec.msgpack.decode(raw, type=ContextWire))
    assert twin.to_wire() == subject.to_wire()
    assert twin.tokens.prompt.tolist() == prompt
    assert twin.tokens.generated.tolist() == generated
    assert twin.max_new_tokens == subject.max_new_tokens
    assert twin.is_below_min_new_tokens == subject.is_below_min_new_tokens
