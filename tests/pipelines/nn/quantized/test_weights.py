"""Packed weights against the numbers they were packed from, whole, cut, stacked and multiplied."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parity.families.quantized import AT_LOAD, METHODS

from quire.config.errors import ConfigError, ModelError
from quire.kernels.linear.cpu_native import CompiledLinear
from quire.kernels.native import library
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encodings import Encoding, PackedEncoding
from quire.pipelines.architectures.quantized.at_load import ENCODINGS
from quire.pipelines.architectures.quantized.float8 import Float8Encoding, Float8InputScaleSpec
from quire.pipelines.architectures.quantized.modelopt import read_modelopt
from quire.pipelines.architectures.quantized.read import read_quant_config
from quire.pipelines.nn.linear import Linear, StackedLinear
from quire.pipelines.nn.linear_weight import LinearWeight
from quire.pipelines.nn.sharding import ShardingStrategy
from quire.pipelines.nn.weight_kinds import WEIGHT_KINDS

CPU = torch.device("cpu")
F32 = torch.float32
OUT, IN = 256, 384
ALL = {**METHODS, **{f"{name} at load": method for name, method in AT_LOAD.items()}}


class Tensors(dict[str, torch.Tensor]):
    """A checkpoint in memory."""

    def host(self, name: str) -> torch.Tensor:
        return self[name]


def encoding_of(name: str) -> Encoding:
    method = ALL[name]
    if name.endswith(" at load"):
        return ENCODINGS[name.removesuffix(" at load")]
    if method.own_file:
        return read_modelopt(ConfigFile("x", method.own_file["quantization"])).encoding
    config = ConfigFile("config.json", {"quantization_config": method.config})
    return read_quant_config(config, Path("nowhere")).encoding


def random_weight(out_dim: int = OUT, in_dim: int = IN, seed: int = 0) -> torch.Tensor:
    return torch.randn(out_dim, in_dim, generator=torch.Generator().manual_seed(seed))


def packed(name: str, weight: torch.Tensor) -> tuple[torch.Tensor, LinearWeight]:
    """The numbers that `weight` became, and our reading of them."""
    numbers, tensors = ALL[name].quantize(weight)
    encoding = encoding_of(name)
    return numbers, WEIGHT_KINDS[type(encoding)].from_tensors(encoding, tensors, F32)


def layer(name: str, tensors: Mapping[str, torch.Tensor]) -> Linear:
    checkpoint = Tensors({f"a.{suffix}": tensor for suffix, tensor in tensors.items()})
    return Linear(IN, OUT, F32, CPU, quantization_encoding=encoding_of(name), name="a").load(
        checkpoint
    )


@pytest.mark.parametrize("name", ALL)
def test_the_numbers_are_those_that_were_packed(name: str) -> None:
    numbers, weight = packed(name, random_weight())

    assert (weight.out_dim, weight.in_dim) == (OUT, IN)
    torch.testing.assert_close(weight.dense(), numbers, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_parts_are_the_parts_of_the_numbers(name: str) -> None:
    numbers, weight = packed(name, random_weight())
    rows, columns = [slice(128, 256), slice(0, 128)], slice(128, 384)
    if "order" in name:
        with pytest.raises(ValueError, match="order of activations"):
            weight.select(rows, columns)
        columns = slice(0, IN)

    part = weight.select(rows, columns)

    expected = torch.cat([numbers[run, columns] for run in rows])
    assert (part.out_dim, part.in_dim) == expected.shape
    torch.testing.assert_close(part.dense(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("gptq", [slice(0, 4)], slice(0, IN)),
        ("gptq", [slice(0, OUT)], slice(0, 48)),
        ("gptq one group", [slice(0, OUT)], slice(0, 4)),
        ("awq", [slice(4, 16)], slice(0, IN)),
        ("awq", [slice(0, OUT)], slice(16, IN)),
        ("fp8 blocks", [slice(0, 64)], slice(0, IN)),
        ("fp8 blocks", [slice(0, OUT)], slice(0, 192)),
        ("nvfp4", [slice(0, OUT)], slice(0, 24)),
        ("mxfp4 compressed", [slice(0, OUT)], slice(16, IN)),
        ("q4_0 at load", [slice(0, OUT)], slice(0, 16)),
    ],
)
def test_a_cut_through_a_group_is_an_error(name: str, rows: list[slice], columns: slice) -> None:
    _, weight = packed(name, random_weight())

    with pytest.raises(ValueError, match="cannot be cut at"):
        weight.select(rows, columns)


@pytest.mark.parametrize("name", ALL)
def test_projections_of_their_own_scales_are_one_matrix(name: str) -> None:
    parts = [packed(name, 0.1**seed * random_weight(128, IN, seed)) for seed in range(3)]
    numbers = torch.cat([part for part, _ in parts])
    weights = [weight for _, weight in parts]

    stack = type(weights[0]).stack(weights)

    if "nvfp4" in name:
        assert stack is None
        stack = type(weights[0]).stack([weights[1], weights[1]])
        numbers = torch.cat([parts[1][0]] * 2)
    assert stack is not None
    torch.testing.assert_close(stack.dense(), numbers, rtol=1e-6, atol=1e-7)


def quantized_input(x: torch.Tensor, spec: Float8InputScaleSpec) -> torch.Tensor:
    """x after its way through fp8, by hand."""
    if spec.origin.value == "static":
        scale = torch.tensor(0.02)
    else:
        group = spec.block_size[1] if spec.block_size else x.shape[1]
        scale = x.unflatten(1, (-1, group)).abs().amax(2) / 448
        scale = scale.repeat_interleave(group, 1)
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).double() * scale.double()


def through_int8(x: torch.Tensor) -> torch.Tensor:
    scale = x.float().abs().amax(1, keepdim=True) / 127
    return (x.float() / scale).round().double() * scale.double()


def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (
        "pipelines.nn.quantized.int8",
        "pipelines.architectures.encodings",
        "kernels.linear.cpu_native",
        "kernels.w8a8.prepared",
    ):
        monkeypatch.setattr(f"quire.{module}.library", lambda: None)


@pytest.mark.parametrize("name", ALL)
def test_the_kernels_of_a_gpu_compute_with_these_numbers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their definitions, that is, which run anywhere."""
    without_library(monkeypatch)
    numbers, weight = packed(name, random_weight())
    x, bias = torch.randn(5, IN), torch.randn(OUT)
    encoding = encoding_of(name)
    config = encoding.config if isinstance(encoding, Float8Encoding) else None
    seen = x.double()
    if config is not None and config.input_scale is not None:
        seen = quantized_input(x, config.input_scale)
    elif name == "fp8 at load":
        scale = x.abs().amax(1, keepdim=True) / 448
        seen = (x / scale).to(torch.float8_e4m3fn).double() * scale.double()
    elif "w8a8" in name:
        seen = through_int8(x)

    assert weight.is_packed_on(torch.device("cuda"))
    assert weight.is_packed_on(CPU) == ("w8a8" in name)
    actual = weight.apply_packed(bias, CPU)(x)

    expected = seen @ numbers.double().t() + bias
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


IN_GROUPS = [name for name in ALL if isinstance(encoding_of(name), PackedEncoding)]
IN_GROUPS = [name for name in IN_GROUPS if encoding_of(name).number_groups is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", IN_GROUPS)
def test_the_compiled_kernels_of_a_cpu_compute_with_groups(name: str, dtype: torch.dtype) -> None:
    if library() is None:
        pytest.skip("no compiled library")
    numbers, tensors = ALL[name].quantize(random_weight())
    encoding = encoding_of(name)
    weight = WEIGHT_KINDS[type(encoding)].from_tensors(encoding, tensors, dtype)
    x, bias = torch.randn(5, IN).to(dtype), torch.randn(OUT).to(dtype)

    assert weight.is_packed_on(CPU)
    apply = weight.prepare(bias, CPU, None)
    actual = apply(x)

    expected = x.double() @ numbers.double().t() + bias.double()
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)
    layer = apply if isinstance(apply, CompiledLinear) else apply._linear
    held = encoding.device_bytes(OUT, IN, "bfloat16", "cpu")
    assert layer._kept[0].nbytes <= held < OUT * IN * 2


@pytest.mark.parametrize("name", IN_GROUPS)
def test_without_compiled_kernels_a_cpu_dequantizes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_library(monkeypatch)
    numbers, tensors = ALL[name].quantize(random_weight())
    x = torch.randn(5, IN)

    actual = layer(name, tensors)(x)

    torch.testing.assert_close(actual, x @ numbers.t(), rtol=1e-4, atol=1e-4)
    held = encoding_of(name).device_bytes(OUT, IN, "bfloat16", "cpu")
    assert held == OUT * IN * 2


def test_a_gpu_without_fp8_is_refused_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.pipelines.nn.quantized.float8.capability_of", lambda _: 80)
    _, weight = packed("fp8 static", random_weight())

    with pytest.raises(ConfigError, match=r"compute capability 8.9 or more, found 8.0"):
        weight.apply_packed(None, torch.device("cuda"))


def test_fp8_weights_alone_are_dequantized_everywhere() -> None:
    encoding = encoding_of("fp8 static")
    assert isinstance(encoding, Float8Encoding)
    encoding = replace(encoding, config=replace(encoding.config, input_scale=None))
    _, tensors = METHODS["fp8 static"].quantize(random_weight())
    weight = WEIGHT_KINDS[Float8Encoding].from_tensors(encoding, tensors, F32)

    assert not weight.is_packed_on(torch.device("cuda"))


@pytest.mark.parametrize("name", ["gptq", "awq", "fp8 blocks", "nvfp4", "int8 at load"])
@pytest.mark.parametrize(("kind", "devices"), [("rowwise", 2), ("columnwise", 3)])
def test_the_devices_results_are_those_of_one(name: str, kind: str, devices: int) -> None:
    """A bias is added once, also where only the checkpoint has one (GPTQ)."""
    numbers, tensors = ALL[name].quantize(random_weight())
    bias, has_bias = torch.randn(OUT), name != "gptq"
    checkpoint = Tensors({f"a.{suffix}": tensor for suffix, tensor in tensors.items()})
    checkpoint["a.bias"] = bias
    encoding = encoding_of(name)
    whole = Linear(IN, OUT, F32, CPU, has_bias, quantization_encoding=encoding, name="a")
    whole.sharding_strategy = getattr(ShardingStrategy, kind)(devices)
    x = torch.randn(5, IN)

    parts = [part.load(checkpoint) for part in whole.shard([CPU] * devices)]

    if kind == "rowwise":
        actual = torch.cat([part(x) for part in parts], 1)
    else:
        own = [columns.contiguous() for columns in x.chunk(devices, 1)]
        results = [part(columns) for part, columns in zip(parts, own, strict=True)]
        actual = torch.stack(results).sum(0)
    torch.testing.assert_close(actual, x @ numbers.t() + bias, rtol=1e-4, atol=1e-4)


def test_runs_of_rows_that_follow_each_other_are_cut_as_one() -> None:
    """q, k and v in one weight, whose borders lie within a block of scales."""
    numbers, tensors = ALL["fp8 blocks"].quantize(random_weight(320))
    checkpoint = Tensors({f"a.{suffix}": tensor for suffix, tensor in tensors.items()})
    encoding = encoding_of("fp8 blocks")
    sizes = (192, 64, 64)
    whole = StackedLinear(IN, sizes, ["a"], F32, CPU, True, quantization_encoding=encoding)
    x = torch.randn(5, IN)

    whole.sharding_strategy = ShardingStrategy.stacked_qkv(1, 3, 1, 64)
    (part,) = whole.shard([CPU])
    torch.testing.assert_close(part.load(checkpoint)(x), x @ numbers.t(), rtol=1e-4, atol=1e-4)

    whole.sharding_strategy = ShardingStrategy.stacked_qkv(3, 3, 1, 64)
    with pytest.raises(ValueError, match="^a: rows in units of 128 cannot be cut at 64 of 320"):
        whole.shard([CPU] * 3)[0].load(checkpoint)


@pytest.mark.parametrize("name", ["fp8 static", "fp8 dynamic", "fp8 compressed channels"])
def test_a_gpu_has_room_for_the_scales_of_stacked_projections(name: str) -> None:
    encoding = encoding_of(name)
    weights = [packed(name, random_weight(128, IN, seed))[1] for seed in range(2)]
    stack = type(weights[0]).stack(weights)
    assert stack is not None and stack.weight_scale is not None

    held = stack.weight.nbytes + stack.weight_scale.nbytes
    assert held <= 2 * encoding.device_bytes(128, IN, "bfloat16", "cuda") <= held + 2 * 4


def stacked(name: str, weights: list[torch.Tensor], **extra: torch.Tensor) -> StackedLinear:
    """A layer that was read, of a checkpoint with `weights` as a, b and c."""
    checkpoint = Tensors(extra)
    for child, weight in zip("abc", weights, strict=False):
        for suffix, tensor in ALL[name].quantize(weight)[1].items():
            checkpoint.setdefault(f"{child}.{suffix}", tensor)
    layer = StackedLinear(
        IN,
        [len(weight) for weight in weights],
        list("abc")[: len(weights)],
        F32,
        CPU,
        quantization_encoding=encoding_of(name),
    )
    return layer.read(checkpoint)


def test_stacked_fp8_has_a_scale_per_row_and_the_greatest_scale_of_inputs() -> None:
    weights = [random_weight(16), 3 * random_weight(8)]
    scales = {"a.input_scale": torch.tensor([0.5]), "b.input_scale": torch.tensor([0.25])}

    layer = stacked("fp8 static", weights, **scales)

    expected = torch.cat([weight.abs().amax().expand(len(weight), 1) for weight in weights]) / 448
    assert layer.stacked_weight.dtype == torch.float8_e4m3fn
    assert layer.stacked_weight.shape == (24, IN)
    torch.testing.assert_close(layer.stacked_weight_scale, expected)
    assert layer.stacked_input_scale == 0.5
    assert layer.stacked_weight_scale_2 is None
    assert layer.stacked_bias is None


def test_stacked_nvfp4_of_different_scales_is_computed_apart() -> None:
    weights = [random_weight(16), 100 * random_weight(8)]
    layer = stacked("nvfp4", weights)

    second = METHODS["nvfp4"].quantize(weights[1])[1]["weight_scale_2"]
    assert layer.stacked_weight_scale_2 == second
    with pytest.raises(ValueError, match="a and the others cannot be one matrix"):
        _ = layer.stacked_weight
    x = torch.randn(3, IN)
    numbers = torch.cat([METHODS["nvfp4"].quantize(weight)[0] for weight in weights])
    torch.testing.assert_close(layer.place()(x), x @ numbers.t(), rtol=1e-4, atol=1e-3)


def test_what_was_read_is_let_go_of() -> None:
    layer = stacked("awq", [random_weight(16), random_weight(8)])
    assert layer.stacked_weight.shape == (IN, 3)
    layer.place()

    with pytest.raises(RuntimeError, match="not between read and place"):
        _ = layer.stacked_weight


def test_a_bias_that_only_the_checkpoint_has_is_added_beside_none() -> None:
    bias = torch.arange(16.0)
    layer = stacked("gptq", [random_weight(16), random_weight(8)], **{"a.bias": bias})

    stacked_bias = layer.stacked_bias
    assert stacked_bias is not None
    assert torch.equal(stacked_bias, torch.cat([bias, torch.zeros(8)]))


BAD: list[tuple[str, dict[str, torch.Tensor | None], str]] = [
    ("gptq", {"scales": torch.full((12, OUT), math.nan).half()}, "scales: expected finite"),
    ("gptq", {"g_idx": torch.full((IN,), 12, dtype=torch.int32)}, "g_idx: expected 0 to 11"),
    ("gptq", {"g_idx": torch.zeros(IN, dtype=torch.int32)}, "g_idx: expected 32 rows in each gr"),
    ("awq", {"scales": torch.full((12, OUT), math.inf).half()}, "scales: expected finite"),
    ("int4 compressed", {"weight_shape": torch.tensor([OUT, 8])}, r"weight_shape: expected \[256"),
    ("int4 compressed", {"weight_scale": torch.full((OUT, 12), math.nan)}, "weight_scale: exp"),
    ("fp8 static", {"weight_scale": None}, "expected weight_scale or weight_scale_inv, found noth"),
    ("fp8 static", {"weight_scale_inv": torch.tensor(1.0)}, "found weight_scale and weight_scale_"),
    ("fp8 static", {"weight_scale": torch.tensor(math.nan)}, "weight_scale: expected finite"),
    ("fp8 static", {"input_scale": torch.tensor(0.0)}, "scale of inputs: expected more than 0"),
    ("nvfp4", {"weight_scale_2": torch.tensor(math.inf)}, "weight_scale_2: expected finite"),
    ("nvfp4 compressed", {"weight_global_scale": torch.tensor([0.0])}, "another number than 0"),
    (
        "mxfp4 compressed",
        {"weight_scale": torch.full((OUT, 12), 255, dtype=torch.uint8)},
        "weight_scale: expected finite numbers, found NaN",
    ),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_numbers_that_cannot_be_are_an_error_with_the_layers_name(
    name: str, change: dict[str, torch.Tensor | None], message: str
) -> None:
    _, tensors = METHODS[name].quantize(random_weight())
    changed = {**tensors, **change}

    with pytest.raises(ModelError, match=f"a: .*{message}"):
        layer(name, {suffix: tensor for suffix, tensor in changed.items() if tensor is not None})
