"""Weights in the formats of quantized checkpoints, packed by hand from the formats' descriptions.

Each function takes a weight [N, K] in float32 and gives its dequantized numbers and the tensors of
the checkpoint by suffix.
"""

import gguf
import torch

Tensors = dict[str, torch.Tensor]

GROUP = 32
BLOCK = 128
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def words(
    numbers: torch.Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))
) -> torch.Tensor:
    """Numbers 0 to 15, eight to an int32 along `dim`; `order[i]` is the place of nibble i."""
    eights = numbers.to(torch.int64).unflatten(dim, (-1, 8))
    total = sum(eights.select(dim + 1, place) << 4 * i for i, place in enumerate(order))
    assert isinstance(total, torch.Tensor)
    return (total - (total >> 31 << 32)).to(torch.int32).contiguous()


def int4_groups(
    weight: torch.Tensor, group: torch.Tensor, lowest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers 0 to 15 [K, N], zero points and float16 scales [groups, N]; `group` of each row."""
    rows = weight.t()
    parts = [rows[group == index] for index in range(int(group.max()) + 1)]
    low = torch.stack([part.amin(0) for part in parts])
    high = torch.stack([part.amax(0) for part in parts])
    scales = ((high - low) / 15).to(torch.float16)
    zeros = (-low / scales.float()).round().clamp(lowest, 15)
    numbers = (rows / scales[group].float() + zeros[group]).round().clamp(0, 15)
    return numbers, zeros, scales


def dequantized(
    numbers: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group: torch.Tensor
) -> torch.Tensor:
    return ((numbers - zeros[group]) * scales[group].float()).t().contiguous()


def gptq(
    weight: torch.Tensor, *, group_size: int = GROUP, offset: int = 1, order: bool = False
) -> tuple[torch.Tensor, Tensors]:
    in_dim = weight.shape[1]
    group = torch.arange(in_dim) // (in_dim if group_size == -1 else group_size)
    if order:
        group = group[torch.randperm(in_dim, generator=torch.Generator().manual_seed(in_dim))]
    numbers, zeros, scales = int4_groups(weight, group, lowest=offset)
    return dequantized(numbers, zeros, scales, group), {
        "qweight": words(numbers, 0),
        "qzeros": words(zeros - offset, 1),
        "scales": scales,
        "g_idx": group.to(torch.int32),
    }


def gptq_with_bias(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    numbers, tensors = gptq(weight)
    return numbers, {**tensors, "bias": torch.zeros(weight.shape[0], dtype=torch.float16)}


def awq(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    group = torch.arange(weight.shape[1]) // GROUP
    numbers, zeros, scales = int4_groups(weight, group, lowest=0)
    return dequantized(numbers, zeros, scales, group), {
        "qweight": words(numbers, 1, AWQ_COLUMNS),
        "qzeros": words(zeros, 1, AWQ_COLUMNS),
        "scales": scales,
    }


def pack_quantized(
    weight: torch.Tensor, *, symmetric: bool = True, order: bool = False
) -> tuple[torch.Tensor, Tensors]:
    in_dim = weight.shape[1]
    group = torch.arange(in_dim) // GROUP
    if order:
        group = group[torch.randperm(in_dim, generator=torch.Generator().manual_seed(in_dim))]
    numbers, zeros, scales = int4_groups(weight, group, lowest=0)
    if symmetric:
        greatest = torch.stack([weight.t()[group == g].abs().amax(0) for g in group.unique()])
        scales, zeros = (greatest / 7.5).to(torch.float16), torch.full_like(zeros, 8)
        numbers = (weight.t() / scales[group].float() + 8).round().clamp(0, 15)
    found = {
        "weight_packed": words(numbers.t(), 1),
        "weight_scale": scales.t().contiguous(),
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }
    if not symmetric:
        found["weight_zero_point"] = words(zeros.t(), 0)
    if order:
        found["weight_g_idx"] = group.to(torch.int32)
    return dequantized(numbers, zeros, scales, group), found


def float8(
    weight: torch.Tensor,
    *,
    by: str,
    suffix: str = "weight_scale",
    inputs: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, Tensors]:
    """`by`: tensor, row or block; `inputs`: the name of the scale of activations."""
    out_dim, in_dim = weight.shape
    sizes = {"tensor": (out_dim, in_dim), "row": (1, in_dim), "block": (BLOCK, BLOCK)}[by]
    scale = torch.stack(
        [
            torch.stack([part.abs().amax() / 448 for part in band.split(sizes[1], 1)])
            for band in weight.split(sizes[0])
        ]
    ).to(dtype)
    rows, columns = torch.arange(out_dim) // sizes[0], torch.arange(in_dim) // sizes[1]
    whole = scale.float()[rows][:, columns]
    stored = (weight / whole).clamp(-448, 448).to(torch.float8_e4m3fn)
    found = {"weight": stored, suffix: scale.reshape(()) if by == "tensor" else scale}
    if inputs is not None:
        found[inputs] = torch.tensor([0.02])
    return stored.float() * whole, found


def e2m1_bytes(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest e2m1 numbers, and their codes two to a byte."""
    code = (values.abs()[..., None] - E2M1).abs().argmin(-1)
    numbers = E2M1[code].copysign(values)
    nibbles = code + 8 * (values < 0)
    return numbers, (nibbles[:, 0::2] + 16 * nibbles[:, 1::2]).to(torch.uint8)


def nvfp4(weight: torch.Tensor, *, compressed: bool) -> tuple[torch.Tensor, Tensors]:
    scale_2 = weight.abs().amax() / (6 * 448)
    # A power of 2, so that its inverse is exact.
    scale_2 = torch.exp2(scale_2.log2().ceil())
    scale = (weight.unflatten(1, (-1, 16)).abs().amax(2) / 6 / scale_2).to(torch.float8_e4m3fn)
    whole = (scale.float() * scale_2).repeat_interleave(16, 1)
    numbers, packed = e2m1_bytes(weight / whole)
    if compressed:
        found = {
            "weight_packed": packed,
            "weight_global_scale": (1 / scale_2)[None],
            "input_global_scale": torch.tensor([30.0]),
        }
    else:
        found = {"weight": packed, "weight_scale_2": scale_2, "input_scale": torch.tensor(0.03)}
    return numbers * whole, {**found, "weight_scale": scale}


def mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    exponent = (weight.unflatten(1, (-1, 32)).abs().amax(2) / 6).log2().ceil()
    whole = torch.exp2(exponent).repeat_interleave(32, 1)
    numbers, packed = e2m1_bytes(weight / whole)
    return numbers * whole, {
        "weight_packed": packed,
        "weight_scale": (exponent + 127).to(torch.uint8),
    }


def int8(weight: torch.Tensor, by: str = "row") -> tuple[torch.Tensor, Tensors]:
    """As compressed-tensors: -128 too, as the range is taken to be 255 wide."""
    greatest = weight.abs().amax(1, keepdim=True) if by == "row" else weight.abs().amax()[None]
    scale = (greatest / 127.5).to(torch.bfloat16)
    numbers = (weight / scale.float()).round().clamp(-128, 127)
    return numbers * scale.float(), {"weight": numbers.to(torch.int8), "weight_scale": scale}


def int8_at_load(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale, {"weight": weight}


def float8_at_load(weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    return float8(weight, by="row")[0], {"weight": weight}


def blocks_at_load(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, Tensors]:
    """By the gguf package."""
    name = gguf.GGMLQuantizationType[kind]
    stored = gguf.quants.quantize(weight.numpy(), name)
    return torch.from_numpy(gguf.quants.dequantize(stored, name)), {"weight": weight}
