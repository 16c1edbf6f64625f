"""GGUF blocks in plain torch: the definition of correct, and the CPU path."""

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import torch

from quire.kernels.gguf.encodings import block_parameters, in_features
from quire.kernels.linear.reference import linear_reference

CURVE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What nibbles stand for in IQ4_NL and IQ4_XS (`src/ggml-common.h`: kvalues_iq4nl)."""


class Groups(NamedTuple):
    """Whole numbers of 8 bits [..., groups, size], each group with a scale [..., groups, 1] float32.

    A weight is number * scale + offset, of which only some types have one, shaped as the scales.
    """

    numbers: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None = None

    def weights(self) -> torch.Tensor:
        """[..., groups * size] float32, in ggml's order of arithmetic."""
        scaled = self.scale * self.numbers.float()
        return (scaled if self.offset is None else scaled + self.offset).flatten(-2)


def _half(blocks: torch.Tensor, offset: int) -> torch.Tensor:
    """The float16 at `offset` of each block, as float32 [..., 1]."""
    return blocks[..., offset : offset + 2].contiguous().view(torch.float16).float()


def _signed(numbers: torch.Tensor, less: int) -> torch.Tensor:
    """uint8 to int8, `less` of each."""
    return numbers.view(torch.int8) - less


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Bytes [..., chunks, B] to numbers [..., chunks, 2, B]: low halves, then high halves."""
    return torch.stack((packed & 15, packed >> 4), -2)


def _one_group(
    numbers: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None
) -> Groups:
    """Numbers [..., 32] and what `_half` gives."""
    return Groups(
        numbers.unsqueeze(-2), scale[..., None], None if offset is None else offset[..., None]
    )


def _q4_0(blocks: torch.Tensor) -> Groups:
    """float16 d, 16 bytes: value = d * (nibble - 8), low nibbles first."""
    return _one_group(_signed(_nibbles(blocks[..., 2:]).flatten(-2), 8), _half(blocks, 0))


def _q4_1(blocks: torch.Tensor) -> Groups:
    """float16 d and m, 16 bytes: value = d * nibble + m."""
    numbers = _nibbles(blocks[..., 4:]).flatten(-2)
    return _one_group(numbers, _half(blocks, 0), _half(blocks, 2))


def _with_fifth_bits(blocks: torch.Tensor, offset: int) -> torch.Tensor:
    """4 bytes of fifth bits at `offset`, then 16 of nibbles: 32 numbers of 5 bits."""
    shift = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    fifth = (blocks[..., offset : offset + 4, None] >> shift & 1).flatten(-2)
    return _nibbles(blocks[..., offset + 4 :]).flatten(-2) | fifth << 4


def _q5_0(blocks: torch.Tensor) -> Groups:
    """float16 d: value = d * (number - 16)."""
    return _one_group(_signed(_with_fifth_bits(blocks, 2), 16), _half(blocks, 0))


def _q5_1(blocks: torch.Tensor) -> Groups:
    """float16 d and m: value = d * number + m."""
    return _one_group(_with_fifth_bits(blocks, 4), _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: torch.Tensor) -> Groups:
    """float16 d, 32 int8: value = d * number."""
    return _one_group(blocks[..., 2:].contiguous().view(torch.int8), _half(blocks, 0))


def _on_curve(nibbles: torch.Tensor) -> torch.Tensor:
    """The numbers that nibbles stand for in IQ4_NL and IQ4_XS."""
    return torch.tensor(CURVE, dtype=torch.int8, device=nibbles.device)[nibbles.int()]


def _iq4_nl(blocks: torch.Tensor) -> Groups:
    """float16 d, 16 bytes: value = d * CURVE[nibble]."""
    return _one_group(_on_curve(_nibbles(blocks[..., 2:]).flatten(-2)), _half(blocks, 0))


def _iq4_xs(blocks: torch.Tensor) -> Groups:
    """float16 d, upper 2 bits of 8 scales, their low 4, 128 bytes.

    value = d * (scale - 32) * CURVE[nibble], 32 numbers to a scale.
    """
    shift = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    high = (blocks[..., 2:4, None] >> shift & 3).flatten(-2)
    low = _nibbles(blocks[..., 4:8, None]).flatten(-3)
    scale = _half(blocks, 0) * ((low | high << 4).float() - 32)
    quants = _nibbles(torch.unflatten(blocks[..., 8:], -1, (8, 16))).flatten(-2)
    return Groups(_on_curve(quants), scale[..., None])


def _two_bits(packed: torch.Tensor) -> torch.Tensor:
    """64 bytes to [..., 16, 16]: of each 32 bytes the lowest bits, then the next, ..."""
    shift = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)[:, None]
    numbers = torch.unflatten(packed, -1, (2, 1, 32)) >> shift & 3
    return torch.unflatten(numbers.flatten(-3), -1, (16, 16))


def _q2_k(blocks: torch.Tensor) -> Groups:
    """16 bytes of scale (low half) and minimum, 64 bytes, float16 d and dmin.

    value = d * scale * number - dmin * minimum, 16 numbers to a scale.
    """
    scale = _half(blocks, 80) * (blocks[..., :16] & 15).float()
    minimum = _half(blocks, 82) * (blocks[..., :16] >> 4).float()
    return Groups(_two_bits(blocks[..., 16:80]), scale[..., None], -minimum[..., None])


def _q3_k(blocks: torch.Tensor) -> Groups:
    """32 bytes of upper bits, 64 of the lower two, 12 of scales, float16 d.

    value = d * (scale - 32) * (number - 4), 16 numbers to a scale. Bit i of the upper bits belongs
    to the i-th 32 numbers. Scales have their low 4 bits in the nibbles of bytes 0-7 and the upper 2
    in bytes 8-11.
    """
    shift = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    upper = torch.unflatten((blocks[..., None, :32] >> shift & 1).flatten(-2), -1, (16, 16))
    numbers = _signed(_two_bits(blocks[..., 32:96]) | upper << 2, 4)
    low = _nibbles(blocks[..., 96:104]).flatten(-2)
    high = (blocks[..., None, 104:108] >> shift[::2] & 3).flatten(-2)
    scale = _half(blocks, 108) * ((low | high << 4).float() - 32)
    return Groups(numbers, scale[..., None])


def _scales_and_minima(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float16 d and dmin, then 8 scales and 8 minima of 6 bits in 12 bytes: [..., 8, 1] each.

    The first 4 are in bits 0-5 of bytes 0-3 and 4-7; the others have their low 4 bits in bytes
    8-11 and the upper 2 in bits 6-7 of bytes 0-3 and 4-7.
    """
    low_scale, low_minimum, mixed = torch.unflatten(blocks[..., 4:16], -1, (3, 4)).unbind(-2)
    high_scale = (mixed & 15) | (low_scale >> 2 & 0x30)
    high_minimum = (mixed >> 4) | (low_minimum >> 2 & 0x30)
    scale = torch.cat((low_scale & 63, high_scale), -1).float()
    minimum = torch.cat((low_minimum & 63, high_minimum), -1).float()
    return (_half(blocks, 0) * scale)[..., None], (_half(blocks, 2) * minimum)[..., None]


def _q4_k(blocks: torch.Tensor) -> Groups:
    """Scales and minima, 128 bytes: value = d * scale * nibble - dmin * minimum."""
    scale, minimum = _scales_and_minima(blocks)
    quants = _nibbles(torch.unflatten(blocks[..., 16:], -1, (4, 32))).flatten(-3, -2)
    return Groups(quants, scale, -minimum)


def _q5_k(blocks: torch.Tensor) -> Groups:
    """As Q4_K with a fifth bit: bit i of 32 bytes belongs to the i-th 32 numbers."""
    scale, minimum = _scales_and_minima(blocks)
    quants = _nibbles(torch.unflatten(blocks[..., 48:], -1, (4, 32))).flatten(-3, -2)
    shift = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    quants = quants | (blocks[..., None, 16:48] >> shift & 1) << 4
    return Groups(quants, scale, -minimum)


def _q6_k(blocks: torch.Tensor) -> Groups:
    """128 bytes of low 4 bits, 64 of upper 2, 16 int8 scales, float16 d.

    value = d * scale * (number - 32), 16 numbers to a scale. Each half of the block has 64 low
    bytes (low nibbles, then high nibbles) and 32 upper bytes (bits 0-1 for the first 32 numbers).
    """
    low = _nibbles(torch.unflatten(blocks[..., :128], -1, (2, 64))).flatten(-2)
    low = torch.unflatten(low, -1, (4, 32))
    shift = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)[:, None]
    high = torch.unflatten(blocks[..., 128:192], -1, (2, 1, 32)) >> shift & 3
    numbers = _signed((low | high << 4).flatten(-3), 32)
    scale = _half(blocks, 208) * blocks[..., 192:208].contiguous().view(torch.int8).float()
    return Groups(torch.unflatten(numbers, -1, (16, 16)), scale[..., None])


READERS: MappingProxyType[str, Callable[[torch.Tensor], Groups]] = MappingProxyType(
    {
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "IQ4_NL": _iq4_nl,
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
        "IQ4_XS": _iq4_xs,
    }
)


def groups_of(weight_bytes: torch.Tensor, encoding: str) -> Groups:
    """What blocks [N, bytes per row], uint8, say: of [N, blocks per row]."""
    rows, row_bytes = weight_bytes.shape
    size = block_parameters(encoding).block_size
    return READERS[encoding](weight_bytes.view(rows, row_bytes // size, size))


def dequantize_gguf_reference(
    weight_bytes: torch.Tensor, encoding: str, out_dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """As `dequantize_gguf`."""
    rows, row_bytes = weight_bytes.shape
    weights = groups_of(weight_bytes, encoding).weights()
    return weights.reshape(rows, in_features(row_bytes, encoding)).to(out_dtype)


def matmul_gguf_reference(
    x_TK: torch.Tensor,
    weight_bytes: torch.Tensor,
    encoding: str,
    bias_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `matmul_gguf`."""
    weight = dequantize_gguf_reference(weight_bytes, encoding, x_TK.dtype)
    return linear_reference(x_TK, weight, bias_N)
