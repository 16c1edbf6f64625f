"""The memory plan: sums, defaults, overrides, and the messages when something does not fit."""

import json
from pathlib import Path

import pytest

from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.kv_cache.memory_plan import MemoryPlan, format_bytes, plan_memory

GIB = 1024**3

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 1024,
}

PAGE_BYTES = 32 * 2 * 2 * 2 * 16 * 4
"""page_size x (k and v) x layers x kv heads x head_dim x fp32"""


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return make_spec(tmp_path)


def make_spec(folder: Path, **fields: object) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **fields}))
    return load_model_spec(folder)


def plan(
    spec: ModelSpec, memory: int, dtype: str = "float32", device_type: str = "cpu", **fields: object
) -> MemoryPlan:
    settings = ModelSettings.model_validate({"max_batch_size": 4, **fields})
    return plan_memory(
        spec, settings, dtype=dtype, device_type=device_type, device_memory_bytes=memory
    )


def bytes_of(memory_plan: MemoryPlan) -> dict[str, int]:
    return {row.name: row.num_bytes for row in memory_plan.rows}


def memory_for_pages(spec: ModelSpec, num_pages: float, **fields: object) -> int:
    """Device memory of which all is used when `num_pages` pages are planned."""
    rows = bytes_of(plan(spec, 64 * GIB, **fields))
    return rows["weights"] + rows["activations"] + int(num_pages * PAGE_BYTES)


def test_default_pages_are_twice_what_full_batches_need(spec: ModelSpec) -> None:
    result = plan(spec, 64 * GIB)

    assert result.num_pages == 2 * 4 * 1024 // 32
    assert result.max_length == 1024
    assert result.concurrency == 8.0
    assert bytes_of(result)["kv_cache"] == result.num_pages * PAGE_BYTES
    assert result.notes == ()


def test_rows_add_up_to_no_more_than_the_usable_memory(spec: ModelSpec) -> None:
    memory = memory_for_pages(spec, 100.5) * 2

    result = plan(spec, memory, device_memory_utilization=0.5)

    assert result.num_pages == 100
    assert result.usable_bytes == memory // 2
    left = result.usable_bytes - sum(bytes_of(result).values())
    assert 0 <= left < PAGE_BYTES


def test_weights_row_counts_parameters_and_rotary_table(spec: ModelSpec) -> None:
    rotary = 1024 * 16 * 4

    assert bytes_of(plan(spec, GIB))["weights"] == 4 * spec.num_parameters + rotary
    assert bytes_of(plan(spec, GIB, "bfloat16"))["weights"] == 2 * spec.num_parameters + rotary


def test_repacked_tied_head_is_counted_on_a_cpu_without_the_library_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied = make_spec(tmp_path, tie_word_embeddings=True)

    def weights_on(device_type: str) -> int:
        return bytes_of(plan(tied, GIB, "bfloat16", device_type))["weights"]

    monkeypatch.setattr("quire.pipelines.kv_cache.memory_plan.library", object)
    assert weights_on("cpu") == weights_on("cuda")
    monkeypatch.setattr("quire.pipelines.kv_cache.memory_plan.library", lambda: None)
    assert weights_on("cpu") - weights_on("cuda") == 1000 * 64 * 2


def test_given_pages_and_given_memory_override_the_default(spec: ModelSpec) -> None:
    assert plan(spec, 64 * GIB, kv_cache_pages=40).num_pages == 40
    assert plan(spec, 64 * GIB, kv_cache_memory=40 * PAGE_BYTES + 1).num_pages == 40


def test_max_length_is_lowered_to_what_fits_and_the_plan_says_so(spec: ModelSpec) -> None:
    result = plan(spec, memory_for_pages(spec, 10.5), device_memory_utilization=1.0)

    assert (result.num_pages, result.max_length) == (10, 320)
    assert result.concurrency == 1.0
    note = "max_length is lowered from the model's 1024 to 320: "
    note += "10 pages of KV memory are available, 32 are needed"
    assert result.notes == (note,)


def test_a_given_max_length_that_does_not_fit_is_an_error_with_the_way_out(
    spec: ModelSpec,
) -> None:
    with pytest.raises(
        ConfigError,
        match="max_length 1000 needs 32 pages of KV memory, 10 are available: lower max_length "
        "to 320, or raise kv_cache_pages",
    ):
        plan(spec, 64 * GIB, max_length=1000, kv_cache_pages=10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 1025}, "max_length 1025 exceeds.*max_position_embeddings 1024$"),
        ({"kv_cache_pages": 9, "kv_cache_memory": GIB}, "kv_cache_pages and kv_cache_memory are"),
        ({"kv_cache_memory": PAGE_BYTES - 1}, "kv_cache_memory 16.00 KiB is less than one page"),
        ({"kv_cache_pages": 10**9}, "kv_cache_pages 1000000000 is 1000000000 pages;.* pages fit"),
        (
            {"max_batch_input_tokens": 16},
            "max_batch_input_tokens 16 is less than page_size 32",
        ),
    ],
)
def test_contradicting_settings_are_named(
    fields: dict[str, object], message: str, spec: ModelSpec
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(spec, 64 * GIB, **fields)


def test_a_model_that_does_not_fit_is_an_error_with_all_numbers(spec: ModelSpec) -> None:
    with pytest.raises(ConfigError, match=r"does not fit: weights .* exceed the 921.60 KiB"):
        plan(spec, 1024**2)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 4096),
        ({"rope_type": "dynamic", "factor": 2.0}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "yarn", "factor": 4.0}, 4096),
    ],
)
def test_scaled_rope_allows_a_longer_max_length_when_asked(
    rope: dict[str, object], limit: int, tmp_path: Path
) -> None:
    scaled = make_spec(tmp_path, rope_parameters=rope)

    assert plan(scaled, 64 * GIB).max_length == 1024
    assert plan(scaled, 64 * GIB, max_length=limit).max_length == limit
    with pytest.raises(ConfigError, match=f"max_length {limit + 1} exceeds"):
        plan(scaled, 64 * GIB, max_length=limit + 1)


def test_table_shows_every_row_and_note(spec: ModelSpec) -> None:
    result = plan(spec, memory_for_pages(spec, 10.5), device_memory_utilization=1.0)

    lines = result.table().splitlines()

    assert lines[0].split() == ["weights", *format_bytes(bytes_of(result)["weights"]).split()]
    assert [line.split("  ")[0] for line in lines[:8]] == [
        "weights",
        "activations",
        "kv cache",
        "planned",
        "usable",
        "free on device",
        "pages",
        "max length",
    ]
    assert lines[-2].endswith("1.0 requests of max length")
    assert lines[-1] == result.notes[0]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (3 * GIB, "3.00 GiB"),
        (2**52, "4096.00 TiB"),
    ],
)
def test_bytes_are_shown_in_the_largest_fitting_unit(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


WINDOWED = {"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 4, "sliding_window": 64}
WINDOWED |= {"use_sliding_window": True, "max_window_layers": 1}
LAYER_BYTES = PAGE_BYTES // 2


@pytest.fixture
def hybrid(tmp_path: Path) -> ModelSpec:
    """One layer that keeps all tokens, three with a window of 64."""
    return make_spec(tmp_path, **WINDOWED)


def pages_of(memory_plan: MemoryPlan) -> dict[int | None, int]:
    return {group.window: group.num_pages for group in memory_plan.groups}


def test_with_a_window_pages_are_planned_for_the_windows_of_two_batches(
    hybrid: ModelSpec,
) -> None:
    """A window of 64 is in 3 pages at most, and admission wants one more; a step of 128 has 4."""
    result = plan(hybrid, 64 * GIB, max_batch_input_tokens=128)

    assert pages_of(result) == {None: 2 * 4 * 32, 64: 2 * 4 * 4 + 4}
    assert result.num_pages == 256 + 36
    assert result.concurrency == 8.0
    assert bytes_of(result)["kv_cache"] == (256 + 3 * 36) * LAYER_BYTES
    assert [line.split("  ")[0] for line in result.table().splitlines()[6:8]] == [
        "pages",
        "pages, window 64",
    ]


def test_a_window_as_long_as_the_context_saves_nothing(hybrid: ModelSpec) -> None:
    result = plan(hybrid, 64 * GIB, max_length=64)

    assert pages_of(result) == {None: 16, 64: 16}


def test_memory_for_one_hybrid_context_is_enough(hybrid: ModelSpec) -> None:
    given = {"max_batch_input_tokens": 128}
    rows = bytes_of(plan(hybrid, 64 * GIB, **given))
    needed = rows["weights"] + rows["activations"] + (32 + 3 * 7) * LAYER_BYTES

    enough = plan(hybrid, needed, device_memory_utilization=1.0, **given)
    less = plan(hybrid, needed - 1, device_memory_utilization=1.0, **given)

    assert (enough.max_length, pages_of(enough)) == (1024, {None: 32, 64: 7})
    # Uniform pages would hold a context of 13 pages here.
    assert (less.max_length, pages_of(less)) == (31 * 32, {None: 31, 64: 7})
    note = "max_length is lowered from the model's 1024 to 992: "
    note += "31 pages of KV memory are available, 32 are needed"
    assert less.notes == (note,)


@pytest.mark.parametrize(
    ("full", "windowed"),
    [(32, 7), (32, 8), (32, 12), (32, 19), (32, 20), (100, 20), (128, 20), (160, 24), (256, 36)],
)
def test_the_windows_of_a_batch_come_first_once_one_long_context_fits(
    full: int, windowed: int, hybrid: ModelSpec
) -> None:
    memory = (full + 3 * windowed) * LAYER_BYTES

    result = plan(hybrid, 64 * GIB, max_batch_input_tokens=128, kv_cache_memory=memory)

    # Windows come by whole contexts: 4 pages each beside the 4 of a step.
    assert pages_of(result) == {None: full, 64: 16 if windowed == 19 else windowed}
    assert bytes_of(result)["kv_cache"] <= memory


def test_given_pages_are_those_of_the_group_that_needs_most(hybrid: ModelSpec) -> None:
    given = {"max_batch_input_tokens": 128}
    assert pages_of(plan(hybrid, 64 * GIB, kv_cache_pages=64, **given)) == {None: 64, 64: 20}
    with pytest.raises(ConfigError, match="lower max_length to 320"):
        plan(hybrid, 64 * GIB, kv_cache_pages=10, max_length=1000, **given)


def test_a_model_of_windows_alone_needs_no_more_than_a_window_and_a_step(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, architectures=["MistralForCausalLM"], sliding_window=64)

    default = plan(spec, 64 * GIB, max_batch_input_tokens=128)
    tight = plan(spec, 64 * GIB, max_batch_input_tokens=128, kv_cache_pages=7)

    assert pages_of(default) == {64: 2 * 4 * 7}
    assert (tight.max_length, tight.concurrency) == (1024, 1.0)


def test_pages_that_attention_chunks_do_not_begin_with_are_refused_before_loading(
    tmp_path: Path,
) -> None:
    moe = {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 16}
    llama4 = {"architectures": ["Llama4ForCausalLM"], "attention_chunk_size": 96, **moe}
    spec = make_spec(tmp_path, **llama4, intermediate_size_mlp=96)

    assert {group.window for group in plan(spec, GIB, page_size=32).groups} == {96}
    message = "page_size: expected a divisor of the model's attention_chunk_size 96, found 64"
    with pytest.raises(ConfigError, match=message):
        plan(spec, GIB, page_size=64)
