"""Experts by either device's way, MXFP4 as float8, and rows that know nothing of each other."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from quire.config.errors import ModelError
from quire.kernels import moe_router
from quire.kernels.fp4 import dequantize_mxfp4
from quire.kernels.linear.tile_plan import TilePlans
from quire.kernels.moe_create_indices import moe_create_indices
from quire.pipelines.architectures import moe_reader
from quire.pipelines.architectures.moe_parts import (
    ExpertsSpec,
    GateSpec,
    MoESpec,
    Mxfp4Experts,
    RouterSpec,
    SeparateExperts,
    StackedExperts,
)
from quire.pipelines.architectures.quant_config import UNQUANTIZED, QuantConfig
from quire.pipelines.architectures.quantized.float8 import (
    BLOCKWISE,
    PER_BLOCK,
    PER_TOKEN,
    ROWWISE,
    STATIC_INPUT,
    TENSOR,
    Float8Config,
    Float8Encoding,
)
from quire.pipelines.nn.expert_loader import ExpertLoader
from quire.pipelines.nn.experts import Groups
from quire.pipelines.nn.moe import MoE
from quire.pipelines.nn.mxfp4 import as_float8
from quire.pipelines.weights.loader import WeightLoader
from quire.pipelines.weights.tensor_entry import TensorEntry

SIZES = {"prefix": "e.", "num_experts": 5, "top_k": 2, "hidden_size": 64, "inner_size": 96}
GPT_OSS = GateSpec(alpha=1.702, limit=0.8, up_offset=1.0)
SPECS: dict[str, ExpertsSpec] = {
    "separate": SeparateExperts(**SIZES),
    "separate with biases": SeparateExperts(**SIZES, has_bias=True),
    "stacked": StackedExperts(**SIZES),
    "interleaved": StackedExperts(**SIZES, has_bias=True, interleaved=True, gate=GPT_OSS),
    "mxfp4": Mxfp4Experts(**SIZES, has_bias=True, interleaved=True, gate=GPT_OSS),
}
FP8 = {
    "fp8 blocks": Float8Encoding(
        config=Float8Config(BLOCKWISE, PER_BLOCK), scale_names=("weight_scale_inv",)
    ),
    "fp8 rows": Float8Encoding(config=Float8Config(ROWWISE, PER_TOKEN)),
    "fp8 tensor": Float8Encoding(config=Float8Config(TENSOR, STATIC_INPUT)),
}
SPECS |= {name: SeparateExperts(**{**SIZES, "inner_size": 128}) for name in FP8}


def quant_of(name: str) -> QuantConfig:
    return QuantConfig(FP8[name]) if name in FP8 else UNQUANTIZED


class RandomWeights:
    """The tensors that experts need, random."""

    source = "random"

    def __init__(self, spec: ExpertsSpec, quant: QuantConfig = UNQUANTIZED) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tensors: dict[str, torch.Tensor] = {}
        for name, tensor in spec.tensors(quant).items():
            if tensor.dtypes == ("U8",):
                low, high = (118, 126) if name.endswith("scales") else (0, 256)
                values = torch.randint(low, high, tensor.shape, generator=generator)
                self.tensors[name] = values.to(torch.uint8)
            elif "scale" in name:
                self.tensors[name] = torch.rand(tensor.shape, generator=generator) / 4 + 0.1
            elif tensor.dtypes == ("F8_E4M3",):
                values = torch.randn(tensor.shape, generator=generator)
                self.tensors[name] = values.to(torch.float8_e4m3fn)
            else:
                self.tensors[name] = torch.randn(tensor.shape, generator=generator) / 8
        self.entries: Mapping[str, TensorEntry] = {
            name: TensorEntry(Path("x"), name, "F32", tuple(tensor.shape), 0, tensor.nbytes)
            for name, tensor in self.tensors.items()
        }

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def loader_of(
    weights: RandomWeights, dtype: torch.dtype = torch.float32, quant: QuantConfig = UNQUANTIZED
) -> ExpertLoader:
    loader = WeightLoader(
        weights, weights.entries, dtype, torch.device("cpu"), lambda fraction: None
    )
    return ExpertLoader(loader, quant, TilePlans())


def test_fp8_stays_fp8_only_where_every_expert_is() -> None:
    spec, encoding = SeparateExperts(**{**SIZES, "inner_size": 128}), FP8["fp8 blocks"]
    wrong_size = SeparateExperts(**SIZES)

    assert spec.is_float8(QuantConfig(encoding))
    assert not spec.is_float8(QuantConfig(encoding, ("e.3",)))
    assert not wrong_size.is_float8(QuantConfig(encoding))
    for quant, other in (
        (QuantConfig(encoding, ("e.3",)), spec),
        (QuantConfig(encoding), wrong_size),
    ):
        experts = loader_of(RandomWeights(other, quant), torch.bfloat16, quant).grouped(other)
        assert experts.up.weight.dtype == torch.bfloat16


def groups_of(tokens: int, spec: ExpertsSpec) -> Groups:
    """Two experts each, the last expert left out."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.stack(
        [torch.randperm(spec.num_experts - 1, generator=generator)[:2] for _ in range(tokens)]
    )
    return Groups(*moe_create_indices(chosen.int().flatten(), spec.num_experts))


def test_specs_allow_what_the_router_takes() -> None:
    assert moe_reader.MAX_EXPERTS == moe_router.MAX_EXPERTS


@pytest.mark.parametrize("name", SPECS)
def test_the_ways_of_both_devices_agree(name: str) -> None:
    spec, quant = SPECS[name], quant_of(name)
    weights = RandomWeights(spec, quant)
    x_TC = torch.randn(40, 64, generator=torch.Generator().manual_seed(2))
    groups = groups_of(40, spec)

    prepared = loader_of(weights, quant=quant).prepared(spec)(x_TC, groups, 2)
    grouped = loader_of(weights, quant=quant).grouped(spec)(x_TC, groups, 2)

    assert prepared.abs().max() > 0.5
    torch.testing.assert_close(grouped, prepared, rtol=1e-5, atol=1e-5)


def test_a_gpu_holds_what_the_memory_plan_counts() -> None:
    for name, spec in SPECS.items():
        quant = quant_of(name)
        experts = loader_of(RandomWeights(spec, quant), torch.bfloat16, quant).grouped(spec)
        tensors = [part for matrix in (experts.up, experts.down) for part in matrix]
        held = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        assert held == spec.device_bytes(quant, "bfloat16", "cuda")


@pytest.mark.parametrize("name", ["separate", "interleaved", "mxfp4"])
def test_numbers_that_are_not_finite_are_refused(name: str) -> None:
    weights = RandomWeights(SPECS[name])
    damaged = [key for key in weights.tensors if "down" in key and not key.endswith("blocks")][-1]
    tensor = weights.tensors[damaged]
    tensor.view(-1)[-1] = 255 if tensor.dtype == torch.uint8 else torch.inf

    for way in ("prepared", "grouped"):
        with pytest.raises(ModelError, match=f"x: {damaged}: expected finite values"):
            getattr(loader_of(weights), way)(SPECS[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights_input", [False, True])
def test_a_token_has_the_same_bits_alone_and_among_others(
    dtype: torch.dtype, weights_input: bool
) -> None:
    # Sums so long that a GEMM library cuts them by the number of rows.
    sizes = {**SIZES, "hidden_size": 768, "inner_size": 1600}
    experts = SeparateExperts(**sizes)
    spec = MoESpec(
        router=RouterSpec(names=("r",), in_dim=768, out_dims=(5,)),
        experts=experts,
        weights_input=weights_input,
    )
    # A quarter of the pairs is the first expert's, and one expert has hardly any.
    router = torch.randn(5, 768) / 20
    plans = loader_of(RandomWeights(experts), dtype)
    moe = MoE(
        spec,
        lambda x: (x.float()[:, None] * router).sum(-1) + torch.tensor([0.5, 0, 0, 0, -2]),
        plans.prepared(experts),
    )
    x_TC = torch.randn(150, 768).to(dtype)

    together = moe(x_TC)

    for start, end in ((0, 1), (1, 3), (3, 40), (149, 150), (40, 149)):
        assert torch.equal(moe(x_TC[start:end]), together[start:end])
    assert torch.equal(moe(x_TC.flip(0)).flip(0), together)


def random_mxfp4(rows: int, groups: int, spread: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    packed = torch.randint(0, 256, (rows, groups * 16), generator=generator)
    scales = torch.randint(100, 100 + spread, (rows, groups), generator=generator)
    return packed.to(torch.uint8), scales.to(torch.uint8)


def test_mxfp4_is_exact_in_float8_within_fourteen_powers_of_two() -> None:
    packed, scales = random_mxfp4(64, 9, 15)
    # A group of zeros does not count, whatever its scale.
    packed[0, :16], scales[0, 0] = 0x80, 254

    weight, row_scale = as_float8(packed, scales)

    assert weight.dtype == torch.float8_e4m3fn
    assert torch.equal(weight.float() * row_scale, dequantize_mxfp4(packed, scales))


def test_mxfp4_beyond_is_off_by_little_of_the_greatest() -> None:
    packed, scales = random_mxfp4(64, 9, 60)
    expected = dequantize_mxfp4(packed, scales)

    weight, row_scale = as_float8(packed, scales)

    error = (weight.float() * row_scale - expected).abs().amax(1)
    assert error.max() > 0
    assert (error <= expected.abs().amax(1) * 2.0**-18).all()


def test_a_scale_that_is_nan_stays_nan() -> None:
    packed, scales = random_mxfp4(2, 3, 5)
    scales[1, 2] = 255

    row_scale = as_float8(packed, scales)[1]

    assert row_scale.isnan().flatten().tolist() == [False, True]
