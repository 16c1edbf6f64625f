"""Attention: close to float64, and a token's bits are a function of its context alone."""

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from quire.kernels.cases import Case, random_ragged_batch
from quire.kernels.flash_attention_ragged import flash_attention_ragged
from quire.kernels.flash_attention_ragged.cases import SERVED_CASES, SMALL_CASES
from quire.kernels.flash_attention_ragged.kernel import flash_attention_ragged_triton
from quire.kernels.flash_attention_ragged.reference import flash_attention_ragged_reference
from quire.kernels.ragged_batch import RaggedBatch

CPU = torch.device("cpu")
Attention = Callable[..., torch.Tensor]
PATHS = [
    pytest.param(flash_attention_ragged, id="cpu"),
    pytest.param(flash_attention_ragged_triton, id="triton"),
]


def in_float64(inputs: dict[str, Any]) -> torch.Tensor:
    wide = {name: inputs[name].double() for name in ("q_THD", "k_cache", "v_cache")}
    for name in ("k_cache", "v_cache"):
        wide[name] = wide[name].nan_to_num(0.0)
    return flash_attention_ragged_reference(**{**inputs, **wide})


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("attention", PATHS)
def test_equals_reference(attention: Attention, case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(1))
    out = attention(**inputs)
    assert out.dtype == case.dtype
    torch.testing.assert_close(
        out.double(), in_float64(inputs), atol=case.tolerance, rtol=0, equal_nan=False
    )


SMALL_SERVED = [
    case for case in SERVED_CASES if re.match(r"decode-b8-ctx256|prefill-.*k3", case.name)
]


@pytest.mark.parametrize("case", SMALL_SERVED, ids=lambda case: case.name)
def test_served_cases_equal_reference_on_the_cpu(case: Case) -> None:
    test_equals_reference(flash_attention_ragged, case)


@pytest.mark.parametrize("window", [None, 7])
def test_reference_equals_dense_attention(window: int | None) -> None:
    """The oracle of the oracle: torch's own attention with an explicit mask, in float64."""
    generator = torch.Generator().manual_seed(3)
    length, heads, kv_heads, head_dim = 50, 4, 2, 16
    batch, num_pages = random_ragged_batch([length], [0], 16, CPU, generator)
    q = torch.randn(length, heads, head_dim, dtype=torch.float64, generator=generator)
    k, v = torch.randn(2, length, kv_heads, head_dim, dtype=torch.float64, generator=generator)
    caches = torch.zeros(2, num_pages, kv_heads, 16, head_dim, dtype=torch.float64)
    for cache, values in zip(caches, (k, v), strict=True):
        cache[batch.slots // 16, :, batch.slots % 16] = values
    out = flash_attention_ragged_reference(
        q, caches[0], caches[1], batch, scale=0.3, sliding_window=window
    )
    distance = torch.arange(length)[:, None] - torch.arange(length)
    visible = (distance >= 0) & (distance < (window or length))
    dense = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1),
        k.transpose(0, 1),
        v.transpose(0, 1),
        attn_mask=visible,
        scale=0.3,
        enable_gqa=True,
    ).transpose(0, 1)
    torch.testing.assert_close(out, dense, atol=1e-12, rtol=0)


@dataclasses.dataclass
class Contexts:
    """Histories with fixed queries, keys and values, to be run in many ways."""

    q: list[torch.Tensor]
    k: list[torch.Tensor]
    v: list[torch.Tensor]
    generator: torch.Generator
    window: int | None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    cache_dtype: torch.dtype | None = None

    @classmethod
    def draw(
        cls,
        lengths: Sequence[int],
        heads: tuple[int, int, int],
        dtype: torch.dtype,
        seed: int,
        window: int | None = None,
    ) -> "Contexts":
        generator = torch.Generator().manual_seed(seed)
        num_heads, kv_heads, head_dim = heads

        def tensors(count: int) -> list[torch.Tensor]:
            return [
                torch.randn(length, count, head_dim, generator=generator).to(dtype)
                for length in lengths
            ]

        return cls(tensors(num_heads), tensors(kv_heads), tensors(kv_heads), generator, window)

    def run(
        self, attention: Attention, rows: Sequence[tuple[int, int, int]], page_size: int
    ) -> list[torch.Tensor]:
        """Outputs of `rows`, (context, first position, tokens) each, as one step."""
        rows = sorted(rows, key=lambda row: row[2] != 1)
        batch, num_pages = random_ragged_batch(
            [count for _, _, count in rows],
            [start for _, start, _ in rows],
            page_size,
            CPU,
            self.generator,
        )
        k_cache, v_cache = self._caches(rows, batch, num_pages, page_size)
        q = torch.cat([self.q[i][start : start + count] for i, start, count in rows])
        out = attention(
            q,
            k_cache,
            v_cache,
            batch,
            scale=q.shape[2] ** -0.5,
            sliding_window=self.window,
            **self.options,
        )
        return list(torch.split(out, [count for _, _, count in rows]))

    def _caches(
        self,
        rows: Sequence[tuple[int, int, int]],
        batch: RaggedBatch,
        num_pages: int,
        page_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (num_pages, self.k[0].shape[1], page_size, self.k[0].shape[2])
        k_cache = torch.full(shape, torch.nan, dtype=self.k[0].dtype)
        v_cache = k_cache.clone()
        for line, (context, _, _) in enumerate(rows):
            keys = torch.arange(batch.kv_lengths[line])
            pages = batch.lookup_table[line].long()[keys // page_size]
            k_cache[pages, :, keys % page_size] = self.k[context][: len(keys)]
            v_cache[pages, :, keys % page_size] = self.v[context][: len(keys)]
        stored = self.cache_dtype or k_cache.dtype
        return k_cache.to(stored), v_cache.to(stored)

    def alone(self, attention: Attention, context: int) -> torch.Tensor:
        """One context as one prefill, by itself."""
        return self.run(attention, [(context, 0, len(self.q[context]))], 32)[0]


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    bits = torch.int16 if actual.dtype.itemsize == 2 else torch.int32
    assert torch.equal(actual.view(bits), expected.view(bits))


def random_steps(rng: random.Random, length: int) -> Iterator[tuple[int, int]]:
    """Cuts of a history into (first position, tokens), some of them single tokens."""
    position = 0
    while position < length:
        count = min(length - position, rng.choice([1, rng.randint(2, 40), rng.randint(2, 600)]))
        yield position, count
        position += count


HEADS = [(14, 2, 64), (9, 3, 64), (2, 2, 128), (4, 1, 80), (8, 2, 32), (3, 1, 256), (20, 1, 16)]
RUNS = [(1, heads) for heads in HEADS] + [(2, heads) for heads in HEADS[:2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("threads", "heads"), RUNS, ids=str, indirect=["threads"])
def test_bits_do_not_depend_on_batch_cut_or_pages(
    threads: int, heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    rng = random.Random(str((threads, heads, dtype)))
    window = rng.choice([None, None, rng.randint(1, 700)])
    lengths = [rng.randint(1, 700), rng.randint(1, 120), rng.randint(500, 900)]
    contexts = Contexts.draw(lengths, heads, dtype, rng.randrange(2**31), window)
    alone = [contexts.alone(flash_attention_ragged, i) for i in range(len(lengths))]
    for _ in range(2):
        cuts = [list(random_steps(rng, length)) for length in lengths]
        while any(cuts):
            # Each step runs a random subset of contexts, and strangers' decode rows beside them.
            rows = [
                (context, *cut.pop(0))
                for context, cut in enumerate(cuts)
                if cut and rng.random() < 0.8
            ]
            for _ in range(rng.choice([0, 0, 1, 3, 60])):
                context = rng.randrange(len(lengths))
                rows.append((context, rng.randrange(lengths[context]), 1))
            if not rows:
                continue
            rows.sort(key=lambda row: row[2] != 1)
            page_size = rng.choice([16, 32, 64, 128])
            outs = contexts.run(flash_attention_ragged, rows, page_size)
            for (context, start, count), out in zip(rows, outs, strict=True):
                assert_same_bits(out, alone[context][start : start + count])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_token_by_token_equals_one_prefill(threads: int, dtype: torch.dtype) -> None:
    contexts = Contexts.draw([300, 530], (14, 2, 64), dtype, 11)
    for context, length in enumerate([300, 530]):
        alone = contexts.alone(flash_attention_ragged, context)
        for position in [*range(20), 63, 64, 255, 256, 299, *range(505, length)]:
            if position < length:
                out = contexts.run(flash_attention_ragged, [(context, position, 1)], 16)[0]
                assert_same_bits(out, alone[position : position + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("window", [None, 40, 515])
def test_triton_prefill_equals_triton_decode(dtype: torch.dtype, window: int | None) -> None:
    """In the interpreter, hence only for the order of operations, not for GPU instructions."""
    attention = flash_attention_ragged_triton
    contexts = Contexts.draw([45, 1060], (6, 1, 32), dtype, 5, window)
    whole = contexts.run(attention, [(0, 0, 45), (1, 1000, 60)], 32)
    decode = [(0, p, 1) for p in (0, 44)] + [(1, p, 1) for p in (1023, 1024, 1059)]
    for (context, position, _), out in zip(
        decode, contexts.run(attention, decode, 128), strict=True
    ):
        row = position - (1000 if context else 0)
        assert_same_bits(out, whole[context][row : row + 1])
    chunks = contexts.run(attention, [(1, 1017, 30), (0, 13, 20)], 16)
    assert_same_bits(chunks[0], whole[1][17:47])
    assert_same_bits(chunks[1], whole[0][13:33])


FEATURES = {
    "cap": (torch.bfloat16, (4, 2, 64), None, {"soft_cap": 2.0}),
    "sinks": (torch.float32, (3, 1, 32), 40, {"sinks": torch.tensor([0.3, -1.0, 4.0])}),
    "fp8": (torch.bfloat16, (8, 1, 80), None, {"k_scale": 0.5, "v_scale": 3.0}),
    "fp8-fp32": (torch.float32, (2, 1, 32), 515, {"k_scale": 0.5, "v_scale": 3.0}),
    "fp16": (torch.float16, (2, 1, 128), 100, {}),
    "all": (
        torch.float16,
        (2, 2, 32),
        130,
        {"soft_cap": 5.0, "sinks": torch.tensor([2.0, 0.5]), "k_scale": 2.0, "v_scale": 0.1},
    ),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_triton_prefill_equals_triton_decode_with(feature: str) -> None:
    dtype, heads, window, options = FEATURES[feature]
    attention = flash_attention_ragged_triton
    contexts = Contexts.draw([640], heads, dtype, 7, window)
    contexts.options = options
    contexts.cache_dtype = torch.float8_e4m3fn if "k_scale" in options else None
    whole = contexts.run(attention, [(0, 500, 140)], 64)[0]
    decode = [(0, p, 1) for p in (500, 511, 512, 575, 639)]
    for (_, position, _), out in zip(decode, contexts.run(attention, decode, 16), strict=True):
        assert_same_bits(out, whole[position - 500 : position - 499])
    chunk = contexts.run(attention, [(0, 531, 70)], 128)[0]
    assert_same_bits(chunk, whole[31:101])
    assert not whole.isnan().any()


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")
@pytest.mark.parametrize("attention", PATHS)
def test_a_stranger_with_nan_keys_poisons_no_one(attention: Attention) -> None:
    contexts = Contexts.draw([40, 70, 33], (4, 2, 32), torch.float32, 6)
    rows = [(0, 39, 1), (2, 32, 1), (1, 20, 50)]
    before = contexts.run(attention, rows, 32)
    contexts.k[2].fill_(torch.nan)
    contexts.v[2].fill_(torch.nan)
    after = contexts.run(attention, rows, 32)
    assert_same_bits(after[0], before[0])
    assert_same_bits(after[2], before[2])
    assert after[1].isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_THD": torch.zeros(3, 4, 32).bfloat16()}, "must share one dtype"),
        ({"q_THD": torch.zeros(3, 4, 32).half()}, "must be of bfloat16 or float32, got float16"),
        ({"q_THD": torch.zeros(3, 4, 64)}, r"must both be \[pages, heads, page_size, 64\]"),
        ({"q_THD": torch.zeros(3, 3, 32)}, "3 query heads are no multiple of 2 key heads"),
        ({"q_THD": torch.zeros(2, 4, 32)}, "row for each of the batch's 3 tokens, got 2"),
        ({"q_THD": torch.zeros(3, 32, 4).transpose(1, 2)}, "must be contiguous"),
        ({"sliding_window": 0}, "sliding_window must be at least 1, got 0"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str) -> None:
    batch, num_pages = random_ragged_batch([1, 2], [3, 4], 16, CPU, torch.Generator())
    cache = torch.zeros(num_pages, 2, 16, 32)
    inputs = {"q_THD": torch.zeros(3, 4, 32), "k_cache": cache, "v_cache": cache, "batch": batch}
    with pytest.raises(ValueError, match=message):
        flash_attention_ragged(**{**inputs, "scale": 1.0, **change})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 2, 48, 32), "page_size must be a power of two from 16 to 128, got 48"),
        ((4, 2, 8, 32), "page_size must be a power of two from 16 to 128, got 8"),
        ((4, 2, 16, 36), "head_dim must be a multiple of 8 up to 256, got 36"),
        ((4, 2, 16, 264), "head_dim must be a multiple of 8 up to 256, got 264"),
    ],
)
def test_wrong_cache_shapes_are_named(shape: tuple[int, ...], message: str) -> None:
    batch, _ = random_ragged_batch([1], [3], 16, CPU, torch.Generator())
    cache = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        flash_attention_ragged(torch.zeros(1, 4, shape[3]), cache, cache, batch, scale=1.0)
