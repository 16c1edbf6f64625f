import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.pipelines.core.sampling_params import MAX_SEED, SamplingParams

IN_RANGE: dict[str, list[Any]] = {
    "temperature": [0.0, 1e-3, 2.0],
    "top_p": [1e-9, 0.5, 1.0],
    "min_p": [0.0, 1.0],
    "top_k": [-1, 1, 2**31 - 1],
    "frequency_penalty": [-2.0, 0.0, 2.0],
    "presence_penalty": [-2.0, 0.0, 2.0],
    "repetition_penalty": [1e-6, 1.0, 50.0],
    "max_new_tokens": [None, 1],
    "min_new_tokens": [0, 5],
    "seed": [0, MAX_SEED],
    "logprobs": [None, 0, 20],
    "stop": [(), ("a", "b")],
}
OUT_OF_RANGE: dict[str, list[Any]] = {
    "temperature": [-0.1, 2.1, math.nan, math.inf],
    "top_p": [0.0, -0.1, 1.1, math.nan, math.inf],
    "min_p": [-0.1, 1.1, math.nan],
    "top_k": [0, -2, 2**31],
    "frequency_penalty": [-2.1, 2.1, math.nan],
    "presence_penalty": [-2.1, 2.1, -math.inf],
    "repetition_penalty": [0.0, -1.0, math.nan, math.inf],
    "max_new_tokens": [0, -1],
    "min_new_tokens": [-1],
    "seed": [-1, MAX_SEED + 1],
    "logprobs": [-1],
    "stop": [("",), ("a", "")],
}


def cases(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in table.items() for value in values]


@pytest.mark.parametrize(("name", "value"), cases(IN_RANGE))
def test_bounds_are_accepted(name: str, value: Any) -> None:
    assert getattr(SamplingParams(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), cases(OUT_OF_RANGE))
def test_out_of_range_names_the_parameter_and_the_value(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be .*not {re.escape(str(value))}"):
        SamplingParams(**{name: value})


@given(value=st.floats())
def test_no_float_passes_as_temperature_unless_in_range(value: float) -> None:
    if 0.0 <= value <= 2.0:
        assert SamplingParams(temperature=value).is_greedy == (value == 0.0)
    else:
        with pytest.raises(ValueError, match="temperature"):
            SamplingParams(temperature=value)


@given(
    seed=st.integers(0, MAX_SEED),
    temperature=st.floats(0, 2),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3),
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=3),
    max_new_tokens=st.none() | st.integers(1, 2**31),
)
def test_the_wire_keeps_every_field(**fields: Any) -> None:
    fields["stop"], fields["stop_token_ids"] = (
        tuple(fields["stop"]),
        tuple(fields["stop_token_ids"]),
    )
    params = SamplingParams(**fields)
    raw = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(raw, type=SamplingParams) == params


def test_a_bad_value_on_the_wire_is_refused() -> None:
    raw = msgspec.msgpack.encode({"temperature": 9.0})
    with pytest.raises(msgspec.ValidationError, match="temperature must be between 0 and 2"):
        msgspec.msgpack.decode(raw, type=SamplingParams)


@pytest.mark.parametrize(
    "penalty", [{"frequency_penalty": 0.5}, {"presence_penalty": -1}, {"repetition_penalty": 1.1}]
)
def test_any_penalty_counts(penalty: dict[str, float]) -> None:
    assert SamplingParams(**penalty).has_penalties
    assert not SamplingParams().has_penalties
