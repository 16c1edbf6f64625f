"""Layers in parts, one per device, against the whole layer: stacked projections, heads, MLPs."""

import pytest
import torch

from quire.config.errors import ModelError
from quire.pipelines.architectures.quantized.gptq_awq import GPTQEncoding
from quire.pipelines.nn.gptq_linear import GPTQLinear
from quire.pipelines.nn.linear import StackedLinear, row_order_of_groups
from quire.pipelines.nn.mlp import MLP
from quire.pipelines.nn.parallel import ColumnParallelLinear, DistributedMLP, RowParallelLinear
from quire.pipelines.nn.sharding import ShardingStrategy

CPU = torch.device("cpu")
F32 = torch.float32
HEAD_DIM = 8
HIDDEN = 32
DEVICES = (1, 2, 4)


class Tensors(dict[str, torch.Tensor]):
    """A checkpoint in memory."""

    def host(self, name: str) -> torch.Tensor:
        return self[name]


class Once(Tensors):
    """A checkpoint that gives each tensor once, as that of a worker does."""

    def host(self, name: str) -> torch.Tensor:
        return self.pop(name)


def checkpoint(**shapes: tuple[int, int]) -> Tensors:
    """A weight [N, K] and a bias of each name."""
    generator = torch.Generator().manual_seed(0)
    found = Tensors()
    for name, (out_dim, in_dim) in shapes.items():
        found[f"{name}.weight"] = torch.randn(out_dim, in_dim, generator=generator)
        found[f"{name}.bias"] = torch.randn(out_dim, generator=generator)
    return found


def inputs(columns: int = HIDDEN) -> torch.Tensor:
    return torch.randn(5, columns, generator=torch.Generator().manual_seed(1))


def product(x: torch.Tensor, weights: Tensors, name: str) -> torch.Tensor:
    return torch.nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def qkv_layer(kv_heads: int, *, is_stacked: bool) -> tuple[StackedLinear, Tensors]:
    """q of 4 heads, k and v of `kv_heads`; the checkpoint has both forms."""
    sizes = (4 * HEAD_DIM, kv_heads * HEAD_DIM, kv_heads * HEAD_DIM)
    weights = checkpoint(**{n: (size, HIDDEN) for n, size in zip("qkv", sizes, strict=True)})
    for suffix in ("weight", "bias"):
        weights[f"qkv.{suffix}"] = torch.cat([weights[f"{name}.{suffix}"] for name in "qkv"])
    names = ["qkv"] if is_stacked else list("qkv")
    return StackedLinear(HIDDEN, sizes, names, F32, CPU, is_stacked, has_bias=True), weights


@pytest.mark.parametrize("is_stacked", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("devices", DEVICES)
def test_each_device_has_whole_heads_and_the_keys_its_queries_meet(
    devices: int, kv_heads: int, is_stacked: bool
) -> None:
    layer, weights = qkv_layer(kv_heads, is_stacked=is_stacked)
    layer.sharding_strategy = ShardingStrategy.stacked_qkv(devices, 4, kv_heads, HEAD_DIM)
    x = inputs()
    q, k, v = (product(x, weights, name).view(5, -1, HEAD_DIM) for name in "qkv")

    parts = layer.shard([CPU] * devices)

    for index, part in enumerate(parts):
        heads = range(index * 4 // devices, (index + 1) * 4 // devices)
        keys = sorted({head * kv_heads // 4 for head in heads})
        expected = torch.cat([q[:, list(heads)], k[:, keys], v[:, keys]], dim=1).flatten(1)
        torch.testing.assert_close(part.load(weights)(x), expected)
        assert part.out_dims == tuple(n * HEAD_DIM for n in (len(heads), len(keys), len(keys)))


@pytest.mark.parametrize("devices", DEVICES)
def test_column_shards_of_stacked_projections_summed_are_the_whole(devices: int) -> None:
    layer, weights = qkv_layer(2, is_stacked=False)
    layer.sharding_strategy = ShardingStrategy.columnwise(devices)
    x = inputs()
    shares = x.chunk(devices, dim=-1)

    parts = layer.shard([CPU] * devices)

    found = sum(
        part.load(weights)(share.contiguous()) for part, share in zip(parts, shares, strict=True)
    )
    assert [part.out_dims for part in parts] == [layer.out_dims] * devices
    torch.testing.assert_close(found, product(x, weights, "qkv"))


@pytest.mark.parametrize("devices", DEVICES)
def test_rows_in_groups_are_ordered_before_they_are_divided(devices: int) -> None:
    weights = checkpoint(qkv=(3 * 4 * HEAD_DIM, HIDDEN))
    sizes = (4 * HEAD_DIM,) * 3
    layer = StackedLinear(HIDDEN, sizes, ["qkv"], F32, CPU, True, has_bias=True, num_groups=4)
    layer.sharding_strategy = ShardingStrategy.stacked_qkv(devices, 4, 4, HEAD_DIM)
    x = inputs()
    # As GPT-NeoX reads its own: heads, then q, k and v of each.
    by_head = product(x, weights, "qkv").view(5, 4, 3, HEAD_DIM).transpose(1, 2)

    parts = layer.shard([CPU] * devices)

    for index, part in enumerate(parts):
        heads = slice(index * 4 // devices, (index + 1) * 4 // devices)
        torch.testing.assert_close(part.load(weights)(x), by_head[:, :, heads].flatten(1))


def test_groups_of_uneven_projections_keep_their_shares() -> None:
    # Two groups of two rows of q and one each of k and v.
    order = row_order_of_groups((4, 2, 2), 2)

    rows = [row for run in order for row in range(8)[run]]

    assert rows == [0, 1, 4, 5, 2, 6, 3, 7]


def mlp_layer(*, is_gated: bool, activation: str) -> tuple[MLP, Tensors]:
    names = ["gate", "up"] if is_gated else ["up"]
    weights = checkpoint(gate=(48, HIDDEN), up=(48, HIDDEN), down=(HIDDEN, 48))
    up = StackedLinear(HIDDEN, (48,) * len(names), names, F32, CPU, has_bias=True)
    down = StackedLinear(48, (HIDDEN,), ["down"], F32, CPU, True, has_bias=True)
    return MLP(up, down, activation), weights


@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("devices", DEVICES)
def test_parts_of_an_mlp_sum_to_the_whole_on_every_device(devices: int, is_gated: bool) -> None:
    layer, weights = mlp_layer(is_gated=is_gated, activation="silu")
    x = inputs()
    inner = torch.nn.functional.silu(product(x, weights, "gate" if is_gated else "up"))
    inner = inner * product(x, weights, "up") if is_gated else inner
    expected = product(inner, weights, "down")
    layer.sharding_strategy = ShardingStrategy.rowwise(devices)
    parts = DistributedMLP(layer.shard([CPU] * devices), devices)

    found = parts.load(Once(weights))([x] * devices)

    assert len(found) == devices
    for result in found:
        torch.testing.assert_close(result, expected)


def test_a_replicated_mlp_is_whole_on_every_device() -> None:
    layer, weights = mlp_layer(is_gated=True, activation="gelu")
    layer.sharding_strategy = ShardingStrategy.replicate(2)
    x = inputs()
    inner = torch.nn.functional.gelu(product(x, weights, "gate")) * product(x, weights, "up")

    for part in layer.shard([CPU, CPU]):
        torch.testing.assert_close(part.load(weights)(x), product(inner, weights, "down"))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("devices", DEVICES)
def test_parallel_layers_give_the_whole_result_to_every_device(
    devices: int, has_bias: bool
) -> None:
    weights = checkpoint(a=(24, HIDDEN))
    if not has_bias:
        del weights["a.bias"]
    x, places = inputs(), [CPU] * devices
    expected = torch.nn.functional.linear(x, weights["a.weight"], weights.get("a.bias"))
    by_rows = ColumnParallelLinear(HIDDEN, 24, F32, places, name="a", has_bias=has_bias)
    by_columns = RowParallelLinear(HIDDEN, 24, F32, places, name="a", has_bias=has_bias)
    shares = [share.contiguous() for share in x.chunk(devices, dim=-1)]

    gathered = by_rows.load(Once(weights))([x] * devices)
    summed = by_columns.load(Once(weights))(shares)

    for result in (*gathered, *summed):
        torch.testing.assert_close(result, expected)
    assert len(gathered) == len(summed) == devices


def test_sums_over_devices_are_rounded_once() -> None:
    weights = checkpoint(a=(24, 512))
    x = inputs(512).bfloat16()
    layer = RowParallelLinear(512, 24, torch.bfloat16, [CPU] * 4, name="a", has_bias=True)
    shares = [share.contiguous() for share in x.chunk(4, dim=-1)]

    results = layer.load(weights)(shares)

    parts = [part(share).double() for part, share in zip(layer.parts, shares, strict=True)]
    for result in results:
        assert torch.equal(result, torch.stack(parts).sum(0).bfloat16())


def test_a_tied_weight_is_used_instead_of_the_checkpoints() -> None:
    tied = torch.randn(24, HIDDEN, generator=torch.Generator().manual_seed(2))
    layer = ColumnParallelLinear(HIDDEN, 24, F32, [CPU] * 2, tied)
    x = inputs()

    for result in layer.load(Tensors())([x, x]):
        torch.testing.assert_close(result, x @ tied.t())


def test_fewer_query_heads_than_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="2 query heads cannot be divided by 4 devices"):
        ShardingStrategy.stacked_qkv(4, 2, 2, HEAD_DIM)


def test_what_cannot_be_divided_is_refused() -> None:
    layer, _ = qkv_layer(2, is_stacked=False)
    with pytest.raises(ValueError, match="32 rows in units of 1 cannot be divided by 3"):
        ColumnParallelLinear(HIDDEN, 32, F32, [CPU] * 3)
    with pytest.raises(ValueError, match="32 columns cannot be divided by 3"):
        RowParallelLinear(HIDDEN, 32, F32, [CPU] * 3)
    with pytest.raises(ValueError, match="sharding_strategy None for 2"):
        layer.shard([CPU] * 2)
    with pytest.raises(ValueError, match=r"\(32, 32, 32\) are not \(32, 16, 16\)"):
        layer.sharding_strategy = ShardingStrategy.stacked_qkv(2, 4, 4, HEAD_DIM)
    layer.sharding_strategy = ShardingStrategy.stacked_qkv(3, 4, 2, HEAD_DIM)
    with pytest.raises(ValueError, match="32 rows in units of 8 cannot be divided by 3"):
        layer.shard([CPU] * 3)
    mlp, _ = mlp_layer(is_gated=True, activation="silu")
    with pytest.raises(ValueError, match="divided rowwise or replicated, not columnwise"):
        mlp.sharding_strategy = ShardingStrategy.columnwise(2)
    with pytest.raises(ValueError, match="1 parts of an MLP for 2 devices"):
        DistributedMLP([mlp], 2)


def gptq_checkpoint(in_dim: int, out_dim: int, group_size: int) -> tuple[Tensors, torch.Tensor]:
    """Random words, and the matrix [N, K] that they mean."""
    generator = torch.Generator().manual_seed(3)
    q = torch.randint(0, 16, (in_dim, out_dim), generator=generator)
    zeros = torch.randint(0, 15, (in_dim // group_size, out_dim), generator=generator)
    scales = torch.rand(in_dim // group_size, out_dim, generator=generator) + 0.5
    shifts = 4 * torch.arange(8)
    words = (q.view(-1, 8, out_dim) << shifts[:, None]).sum(1)
    zero_words = (zeros.view(zeros.shape[0], -1, 8) << shifts).sum(-1)
    weights = Tensors(
        {
            "a.qweight": words.to(torch.uint32).view(torch.int32),
            "a.qzeros": zero_words.to(torch.uint32).view(torch.int32),
            "a.scales": scales,
        }
    )
    group = torch.arange(in_dim) // group_size
    return weights, ((q - zeros[group] - 1) * scales[group]).t()


@pytest.mark.parametrize("devices", [1, 2])
def test_gptq_layers_whole_and_in_parts(devices: int) -> None:
    weights, meant = gptq_checkpoint(128, 64, 32)
    encoding = GPTQEncoding(group_size=32)
    layer = GPTQLinear(128, 64, F32, CPU, name="a", quantization_encoding=encoding)
    x, places = inputs(128), [CPU] * devices

    layer.sharding_strategy = ShardingStrategy.rowwise(devices)
    rows = [part.load(weights)(x) for part in layer.shard(places)]
    layer.sharding_strategy = ShardingStrategy.columnwise(devices)
    shares = [share.contiguous() for share in x.chunk(devices, dim=-1)]
    sums = [
        part.load(weights)(share) for part, share in zip(layer.shard(places), shares, strict=True)
    ]

    expected = x @ meant.t()
    assert isinstance(layer.shard(places)[0], GPTQLinear)
    for found in (layer.load(weights)(x), torch.cat(rows, dim=-1), torch.stack(sums).sum(0)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_a_gptq_layer_of_plain_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="a: expected gptq weights, found dense"):
        GPTQLinear(128, 64, F32, CPU, name="a")


def test_packed_rows_that_cannot_be_ordered_are_refused_by_name() -> None:
    weights, _ = gptq_checkpoint(128, 96, 32)
    encoding = GPTQEncoding(group_size=32)
    # Heads of 4 rows: half a word of eight.
    layer = StackedLinear(
        128, (32,) * 3, ["a"], F32, CPU, True, num_groups=8, quantization_encoding=encoding
    )

    with pytest.raises(ModelError, match="^a: .*8"):
        layer.load(weights)


def test_packed_rows_are_ordered_as_plain_ones_are() -> None:
    weights, meant = gptq_checkpoint(128, 96, 32)
    encoding = GPTQEncoding(group_size=32)
    layer = StackedLinear(
        128, (32,) * 3, ["a"], F32, CPU, True, num_groups=4, quantization_encoding=encoding
    )
    x = inputs(128)

    expected = (x @ meant.t()).view(5, 4, 3, 8).transpose(1, 2).flatten(1)
    torch.testing.assert_close(layer.load(weights)(x), expected, rtol=1e-4, atol=1e-3)
