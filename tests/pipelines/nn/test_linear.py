"""The `Linear` family against torch's own product, whole and in parts."""

import pytest
import torch

from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.nn.linear import Linear, StackedLinear
from quire.pipelines.nn.sharding import ShardingStrategy

CPU = torch.device("cpu")
F32 = torch.float32


class Tensors(dict[str, torch.Tensor]):
    """A checkpoint in memory."""

    def host(self, name: str) -> torch.Tensor:
        return self[name]


def checkpoint(out_dims: dict[str, int], in_dim: int, *, has_bias: bool = True) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    found = Tensors()
    for name, out_dim in out_dims.items():
        found[f"{name}.weight"] = torch.randn(out_dim, in_dim, generator=generator)
        if has_bias:
            found[f"{name}.bias"] = torch.randn(out_dim, generator=generator)
    return found


def product(x: torch.Tensor, weights: Tensors, *names: str) -> torch.Tensor:
    linear = torch.nn.functional.linear
    parts = [linear(x, weights[f"{n}.weight"], weights.get(f"{n}.bias")) for n in names]
    return torch.cat(parts, dim=-1)


def test_a_linear_layer_is_a_product_and_a_bias() -> None:
    weights, x = checkpoint({"a": 24}, 32), torch.randn(5, 32)

    layer = Linear(32, 24, F32, CPU, has_bias=True, name="a").load(weights)

    torch.testing.assert_close(layer(x), product(x, weights, "a"))


def test_a_transposed_weight_is_stored_the_other_way() -> None:
    weights, x = checkpoint({"a": 24}, 32), torch.randn(5, 32)
    expected = product(x, weights, "a")
    weights["a.weight"] = weights["a.weight"].t().contiguous()

    layer = Linear(
        32, 24, F32, CPU, True, quantization_encoding=Encoding(is_transposed=True), name="a"
    ).load(weights)

    torch.testing.assert_close(layer(x), expected)


def test_weights_are_clipped() -> None:
    weights, x = checkpoint({"a": 24}, 32, has_bias=False), torch.randn(5, 32)

    layer = Linear(32, 24, F32, CPU, name="a", clip_weight=0.5).load(weights)

    torch.testing.assert_close(layer(x), x @ weights["a.weight"].clamp(-0.5, 0.5).t())


@pytest.mark.parametrize("stacked", [False, True])
def test_projections_are_stacked_once_at_load(stacked: bool) -> None:
    weights, x = checkpoint({"q": 24, "k": 8, "v": 8}, 32), torch.randn(5, 32)
    expected, names = product(x, weights, "q", "k", "v"), ["q", "k", "v"]
    if stacked:
        for suffix in ("weight", "bias"):
            weights[f"qkv.{suffix}"] = torch.cat([weights[f"{name}.{suffix}"] for name in names])
        names = ["qkv"]

    layer = StackedLinear(32, (24, 8, 8), names, F32, CPU, stacked=stacked, has_bias=True)

    assert layer.out_dim == 40
    torch.testing.assert_close(layer.load(weights)(x), expected)


def test_a_call_before_load_is_an_error_with_the_name() -> None:
    with pytest.raises(RuntimeError, match="mlp.up: called before load"):
        Linear(8, 8, F32, CPU, name="mlp.up")(torch.ones(1, 8))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_row_shards_side_by_side_and_column_shards_summed_are_the_whole(devices: int) -> None:
    weights, x = checkpoint({"a": 24}, 32), torch.randn(5, 32)
    expected, places = product(x, weights, "a"), [CPU] * devices
    layer = Linear(32, 24, F32, CPU, has_bias=True, name="a")

    layer.sharding_strategy = ShardingStrategy.rowwise(devices)
    rows = [part.load(weights)(x) for part in layer.shard(places)]
    layer.sharding_strategy = ShardingStrategy.columnwise(devices)
    inputs = x.chunk(devices, dim=-1)
    sums = [
        part.load(weights)(mine.contiguous())
        for part, mine in zip(layer.shard(places), inputs, strict=True)
    ]

    torch.testing.assert_close(torch.cat(rows, dim=-1), expected)
    torch.testing.assert_close(torch.stack(sums).sum(0), expected)
