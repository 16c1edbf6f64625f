"""Attention on a CPU, by the compiled kernel of each instruction set and by torch's: close to
float64, and a token's bits are a function of its context alone."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire.kernels.cases import random_ragged_batch
from quire.kernels.flash_attention_ragged import cpu, cpu_torch, flash_attention_ragged
from quire.kernels.flash_attention_ragged.cpu_native import flash_attention_ragged_native
from quire.kernels.flash_attention_ragged.cpu_torch import flash_attention_ragged_torch
from quire.kernels.flash_attention_ragged.reference import flash_attention_ragged_reference
from quire.kernels.native import InstructionSet, library

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
Attention = Callable[..., torch.Tensor]
Rows = list[tuple[int, int, int]]

NATIVE = library()
SETS = () if NATIVE is None else tuple(s for s in InstructionSet if s <= NATIVE.instruction_set)
NATIVE_PATHS = [
    pytest.param(
        partial(flash_attention_ragged_native, native=NATIVE, instruction_set=s), id=s.name.lower()
    )
    for s in SETS
]
PATHS = [*NATIVE_PATHS, pytest.param(flash_attention_ragged_torch, id="torch")]
TYPES = [
    pytest.param((torch.float32, torch.float32), id="fp32"),
    pytest.param((torch.bfloat16, torch.bfloat16), id="bf16"),
    pytest.param((torch.float32, FP8), id="fp32-fp8"),
    pytest.param((torch.bfloat16, FP8), id="bf16-fp8"),
]
FEATURES = [
    pytest.param({}, id="plain"),
    pytest.param({"sliding_window": 77}, id="window"),
    pytest.param({"sliding_window": 1}, id="window-1"),
    pytest.param({"soft_cap": 2.0}, id="soft-cap"),
    pytest.param({"sinks": True}, id="sinks"),
    pytest.param({"sinks": True, "soft_cap": 5.0, "sliding_window": 520}, id="all"),
]

# The variants share their control flow: one meets every feature, the others all at once.
EXACT = [
    pytest.param(*path.values, *features.values, id=f"{path.id}-{features.id}")
    for path in NATIVE_PATHS
    for features in (FEATURES if path is NATIVE_PATHS[-1] else FEATURES[-1:])
]


@dataclasses.dataclass
class Histories:
    """Contexts with fixed queries, keys and values, to be run in many ways."""

    heads: tuple[int, int, int]
    q: list[torch.Tensor]
    k: list[torch.Tensor]
    v: list[torch.Tensor]
    options: dict[str, Any]

    @classmethod
    def draw(
        cls,
        lengths: list[int],
        heads: tuple[int, int, int],
        types: tuple[torch.dtype, torch.dtype],
        **options: Any,
    ) -> "Histories":
        generator = torch.Generator().manual_seed(sum(lengths))
        q_heads, kv_heads, dim = heads

        def values(count: int, dtype: torch.dtype) -> list[torch.Tensor]:
            return [torch.randn(n, count, dim, generator=generator).to(dtype) for n in lengths]

        if options.get("sinks") is True:
            options["sinks"] = torch.randn(q_heads, generator=generator)
        if types[1] == FP8:
            options |= {"k_scale": 0.75, "v_scale": 1.5}
        q, k, v = (
            values(n, t)
            for n, t in zip((q_heads, kv_heads, kv_heads), types[:1] + types[1:] * 2, strict=True)
        )
        return cls(heads, q, k, v, {"scale": dim**-0.5, **options})

    def inputs(self, rows: Rows, page_size: int = 16, seed: int = 0) -> dict[str, Any]:
        """One step of `rows`, (context, first position, tokens) each, single tokens first.

        Memory that no token has written holds NaN.
        """
        generator = torch.Generator().manual_seed(seed)
        new, old = [n for _, _, n in rows], [start for _, start, _ in rows]
        batch, pages = random_ragged_batch(new, old, page_size, CPU, generator)
        shape = (pages, self.heads[1], page_size, self.heads[2])
        caches = [torch.full(shape, torch.nan).to(self.k[0].dtype).view(torch.uint8) for _ in "kv"]
        for line, (context, _, _) in enumerate(rows):
            keys = torch.arange(batch.kv_lengths[line])
            place = batch.lookup_table[line].long()[keys // page_size], keys % page_size
            for cache, values in zip(caches, (self.k, self.v), strict=True):
                cache[place[0], :, place[1]] = values[context][: len(keys)].view(torch.uint8)
        return {
            "q_THD": torch.cat([self.q[i][start : start + n] for i, start, n in rows]),
            "k_cache": caches[0].view(self.k[0].dtype),
            "v_cache": caches[1].view(self.k[0].dtype),
            "batch": batch,
            **self.options,
        }

    def run(
        self, attention: Attention, rows: Rows, page_size: int = 16, seed: int = 0
    ) -> list[torch.Tensor]:
        out = attention(**self.inputs(rows, page_size, seed))
        return list(torch.split(out, [n for _, _, n in rows]))

    def whole(self, attention: Attention, context: int) -> torch.Tensor:
        """A context as one prefill, alone."""
        return self.run(attention, [(context, 0, len(self.q[context]))], 64)[0]


def in_float64(inputs: dict[str, Any]) -> torch.Tensor:
    wide = {name: inputs[name].double().nan_to_num(0.0) for name in ("k_cache", "v_cache")}
    return flash_attention_ragged_reference(**{**inputs, **wide, "q_THD": inputs["q_THD"].double()})


def assert_close(attention: Attention, inputs: dict[str, Any]) -> None:
    out = attention(**inputs)
    assert out.dtype == inputs["q_THD"].dtype
    tolerance = 2e-2 if out.dtype == torch.bfloat16 else 6e-6
    torch.testing.assert_close(
        out.double(), in_float64(inputs), atol=tolerance, rtol=tolerance / 4, equal_nan=False
    )


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(actual.contiguous().view(torch.uint8), expected.view(torch.uint8))


MIXED: Rows = [
    (0, 0, 1),
    (0, 14, 1),
    (1, 600, 1),
    (1, 511, 1),
    (0, 3, 21),
    (1, 500, 40),
    (0, 0, 15),
]


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("attention", PATHS)
def test_equals_float64(attention: Attention, types: Any, features: dict[str, Any]) -> None:
    histories = Histories.draw([30, 620], (6, 2, 40), types, **features)
    assert_close(attention, histories.inputs(MIXED))


@pytest.mark.parametrize("heads", [(14, 2, 64), (4, 4, 8), (71, 1, 16), (2, 1, 256), (8, 2, 120)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention", NATIVE_PATHS)
def test_head_shapes(attention: Attention, dtype: torch.dtype, heads: tuple[int, int, int]) -> None:
    histories = Histories.draw([30, 620], heads, (dtype, dtype))
    assert_close(attention, histories.inputs(MIXED, 32))


@pytest.mark.skipif(NATIVE is None, reason="no compiled library")
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_shape_equals_float64(data: st.DataObject) -> None:
    draw = data.draw
    kv_heads = draw(st.integers(1, 3))
    heads = (kv_heads * draw(st.integers(1, 9)), kv_heads, 8 * draw(st.integers(1, 12)))
    lengths = draw(st.lists(st.integers(1, 700), min_size=1, max_size=3))
    rows = []
    for context, length in enumerate(lengths):
        start = draw(st.integers(0, length - 1))
        rows.append((context, start, draw(st.integers(1, min(length - start, 40)))))
    rows.sort(key=lambda row: row[2] != 1)
    types = draw(st.sampled_from([parameter.values[0] for parameter in TYPES]))
    options = {
        "sliding_window": draw(st.none() | st.integers(1, 800)),
        "soft_cap": draw(st.none() | st.floats(0.5, 50)),
        "sinks": True if draw(st.booleans()) else None,
    }
    histories = Histories.draw(lengths, heads, types, **options)
    inputs = histories.inputs(rows, draw(st.sampled_from([16, 32, 64, 128])))
    chosen = partial(
        flash_attention_ragged_native, native=NATIVE, instruction_set=draw(st.sampled_from(SETS))
    )
    assert_close(chosen, inputs)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def assert_same_rows(outs: list[torch.Tensor], step: Rows, whole: list[torch.Tensor]) -> None:
    for (context, start, count), out in zip(step, outs, strict=True):
        assert_same_bits(out, whole[context][start : start + count])


STEPS: list[Rows] = [
    [(0, 599, 1), (1, 44, 1), (0, 0, 1), (0, 17, 100)],
    [(0, 511, 1), (0, 512, 1), (2, 0, 70), (1, 3, 30), (0, 500, 100)],
    [(1, 0, 45)],
    [(2, 1070, 1)],
    [(0, 64, 1), *[(1, i, 1) for i in range(45)], (0, 63, 66)],
    [(2, 1023, 1), (2, 1024, 1), (2, 1000, 71)],
]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize(("attention", "features"), EXACT)
def test_bits_do_not_depend_on_batch_cut_pages_or_threads(
    attention: Attention, types: Any, features: dict[str, Any]
) -> None:
    histories = Histories.draw([600, 45, 1071], (6, 2, 40), types, **features)
    whole = [histories.whole(attention, context) for context in range(3)]
    for seed, step in enumerate(STEPS):
        torch.set_num_threads(1 + seed % 2)
        assert_same_rows(histories.run(attention, step, 16 << seed % 4, seed), step, whole)


@pytest.mark.parametrize("features", [{"sinks": True}, {"soft_cap": 2.0, "sinks": True}], ids=str)
@pytest.mark.parametrize("types", [TYPES[0], TYPES[3]])
def test_bits_of_torch_do_not_depend_on_batch_cut_or_pages(
    types: Any, features: dict[str, Any]
) -> None:
    attention = flash_attention_ragged_torch
    histories = Histories.draw([525, 45], (6, 2, 64), types, **features)
    step: Rows = [(0, 511, 1), (0, 512, 1), (1, 44, 1), (1, 3, 30), (0, 505, 20)]
    whole = [histories.whole(attention, context) for context in range(2)]
    assert_same_rows(histories.run(attention, step), step, whole)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention", NATIVE_PATHS)
def test_split_contexts_have_the_bits_of_whole_ones(
    attention: Attention, dtype: torch.dtype
) -> None:
    """Few contexts are cut into splits for the threads; many, or one thread, are not."""
    histories = Histories.draw([2600], (4, 1, 64), (dtype, dtype), sinks=True)
    rows = [(0, p, 1) for p in (2599, 511, 512, 1023, 1024, 0)] * 3
    many = histories.run(attention, rows)
    for row, expected in zip(rows[:6], many, strict=False):
        assert_same_bits(histories.run(attention, [row], 128, 1)[0], expected)
    torch.set_num_threads(1)
    assert_same_bits(histories.run(attention, rows[:1], 32, 2)[0], many[0])


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("attention", NATIVE_PATHS)
def test_a_later_token_does_not_reach_an_earlier_one(attention: Attention, types: Any) -> None:
    """Not even NaN, which times zero is NaN; nor keys that a window has left behind."""
    histories = Histories.draw([40], (3, 1, 24), types, sliding_window=8)
    before = histories.whole(attention, 0)
    for tensors in (histories.k, histories.v):
        tensors[0][21:23] = torch.full(tensors[0][21:23].shape, torch.nan).to(tensors[0].dtype)
    after = histories.whole(attention, 0)
    assert_same_bits(after[:21], before[:21])
    assert after[21:30].isnan().all()
    assert_same_bits(after[30:], before[30:])


@pytest.mark.parametrize("attention", PATHS)
@pytest.mark.parametrize("factor", [300.0, 1e30, 0.0, -0.0])
def test_extreme_scores(attention: Attention, factor: float) -> None:
    histories = Histories.draw([70], (2, 1, 16), (torch.float32, torch.float32))
    histories.k[0] *= factor
    inputs = histories.inputs([(0, 0, 70)])
    # The scores themselves have the rounding errors of float32.
    torch.testing.assert_close(
        attention(**inputs).double(), in_float64(inputs), atol=1e-3, rtol=0, equal_nan=False
    )


@pytest.mark.parametrize("attention", PATHS)
def test_every_float8_is_read_exactly(attention: Attention) -> None:
    """With one visible key the output is its value."""
    bits = torch.arange(256, dtype=torch.uint8)
    finite = bits[(bits & 0x7F) != 0x7F].repeat(2)[:256].view(16, 1, 16)
    histories = Histories.draw([16], (1, 1, 16), (torch.float32, FP8), sliding_window=1)
    histories.v[0] = finite.view(FP8)
    out = histories.whole(attention, 0)
    assert torch.equal(out, finite.view(FP8).float() * 1.5)


def test_the_torch_path_serves_where_nothing_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "library", lambda: None)
    histories = Histories.draw([30], (6, 2, 40), (torch.bfloat16, torch.bfloat16), sinks=True)
    inputs = histories.inputs([(0, 0, 30)])
    assert_same_bits(flash_attention_ragged(**inputs), flash_attention_ragged_torch(**inputs))


def test_a_cpu_whose_tiles_are_not_exact_runs_tokens_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such a CPU (AVX2) must get the same shape of torch's call for every token."""
    monkeypatch.setattr(cpu_torch, "_may_share_tiles", lambda *_: False)
    calls = []
    flash = cpu_torch._flash

    def recording(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> Any:
        calls.append((q.shape[2], k.shape[2] % cpu_torch.SPLIT_KEYS))
        return flash(q, k, *rest)

    monkeypatch.setattr(cpu_torch, "_flash", recording)
    histories = Histories.draw([90, 530], (14, 2, 64), (torch.float32, torch.float32))
    whole = histories.whole(flash_attention_ragged_torch, 1)
    outs = histories.run(flash_attention_ragged_torch, [(0, 5, 1), (1, 507, 23)])
    assert_same_bits(outs[1], whole[507:])
    assert set(calls) == {(cpu_torch.ROW_TILE, 0)}


@pytest.mark.skipif(NATIVE is None, reason="no compiled library")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lookup_table", 10_000),
        ("lookup_table", -1),
        ("cache_lengths", 10_000),
        ("cache_lengths", -1),
        ("input_row_offsets", 3),
    ],
)
def test_a_batch_outside_its_tensors_is_refused(field: str, value: int) -> None:
    histories = Histories.draw([30], (2, 1, 16), (torch.float32, torch.float32))
    inputs = histories.inputs([(0, 20, 5)])
    broken = torch.full_like(getattr(inputs["batch"], field), value)
    inputs["batch"] = dataclasses.replace(inputs["batch"], **{field: broken})
    with pytest.raises(ValueError, match="batch must have its tokens among the 5 of q_THD"):
        flash_attention_ragged_native(**inputs, native=NATIVE)


@pytest.mark.parametrize("attention", PATHS)
def test_no_tokens_give_no_rows(attention: Attention) -> None:
    histories = Histories.draw([30], (2, 1, 16), (torch.float32, torch.float32))
    inputs = histories.inputs([(0, 20, 5)])
    batch = inputs["batch"]
    empty = dataclasses.replace(
        batch,
        input_row_offsets=torch.zeros(1, dtype=torch.int32),
        cache_lengths=batch.cache_lengths[:0],
        lookup_table=batch.lookup_table[:0],
        positions=batch.positions[:0],
        slots=batch.slots[:0],
        query_lengths=(),
        kv_lengths=(),
        num_decode=0,
    )
    out = attention(**{**inputs, "q_THD": inputs["q_THD"][:0], "batch": empty})
    assert out.shape == (0, 2, 16)


@pytest.mark.parametrize("attention", NATIVE_PATHS)
def test_a_decode_step_allocates_little_beside_what_it_reads(attention: Attention) -> None:
    """The keys are read where they lie: what torch allocates is the result and split states."""
    contexts, keys, head_dim = 4, 4096, 64
    batch, num_pages = random_ragged_batch(
        [1] * contexts, [keys - 1] * contexts, 32, CPU, torch.Generator().manual_seed(0)
    )
    cache = torch.zeros(num_pages, 2, 32, head_dim, dtype=torch.bfloat16)
    q = torch.zeros(contexts, 4, head_dim, dtype=torch.bfloat16)

    with torch.profiler.profile(profile_memory=True) as profile:
        attention(q, cache, cache, batch, scale=1.0)

    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert 0 < allocated < 0.05 * 2 * cache.nbytes
