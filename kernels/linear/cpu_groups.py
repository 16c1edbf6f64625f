"""Stored formats as the matrices of whole numbers in groups that compiled layers compute with.

Four bits are numbers -8 to 7, eight neighbouring features of a row in a word, lowest bits first.
"""

import torch

from quire.kernels.gguf.encodings import in_features
from quire.kernels.gguf.reference import groups_of
from quire.kernels.gptq_awq.reference import AWQ_ORDER, unpack_words
from quire.kernels.linear.cpu_native import INT4, INT8, CompiledLinear, StoredMatrix
from quire.kernels.native import Library
from quire.kernels.native.number_groups import GGUF_GROUPS

_MIDDLE = 8
"""What a stored number 0 to 15 is more than ours."""
_NUMBERS_AT_ONCE = 4 * 1024**2
"""Unpacking takes several times the memory of its result."""


class PermutedLinear:
    """A layer whose weights meet the columns of x in another order.

    Args:
        linear: the layer in the order of its weights.
        perm_idx: [K], which column of x meets each.
    """

    def __init__(self, linear: CompiledLinear, perm_idx: torch.Tensor) -> None:
        self._linear = linear
        self._columns = perm_idx.long()

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        """[T, K] to [T, N]."""
        return self._linear(x_TK.index_select(1, self._columns))


def compiled(
    matrix: StoredMatrix,
    bias_N: torch.Tensor | None,
    dtype: torch.dtype,
    native: Library,
    perm_idx: torch.Tensor | None = None,
) -> CompiledLinear | PermutedLinear:
    """The layer of `matrix`; `perm_idx` as of `PermutedLinear`, or None."""
    linear = CompiledLinear(matrix, bias_N, dtype=dtype, native=native)
    return linear if perm_idx is None else PermutedLinear(linear, perm_idx)


def gptq_matrix(
    qweight: torch.Tensor, qzeros: torch.Tensor | None, scales: torch.Tensor, zero_offset: int
) -> StoredMatrix:
    """Of the tensors of `kernels.gptq_awq.matmul_gptq`, rows in the order of groups."""
    zeros = None if qzeros is None else (unpack_words(qzeros, 1) + zero_offset) & 15
    return _words_matrix(_signed_words(qweight).t().contiguous(), zeros, scales)


def awq_matrix(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> StoredMatrix:
    """Of the tensors of `kernels.gptq_awq.matmul_awq`."""
    in_dim, columns = qweight.shape
    words = torch.zeros(in_dim // 8, columns, 8, dtype=torch.int32)
    zeros = torch.empty(*qzeros.shape, 8, dtype=torch.int32)
    for nibble, place in enumerate(AWQ_ORDER):
        zeros[..., place] = qzeros >> 4 * nibble & 15
        for feature in range(8):
            words[..., place] |= (qweight[feature::8] >> 4 * nibble & 15) << 4 * feature
    words = _signed_words(words.flatten(1)).t().contiguous()
    return _words_matrix(words, zeros.flatten(1), scales)


def _signed_words(words: torch.Tensor) -> torch.Tensor:
    """Nibbles 0 to 15 as -8 to 7: the highest bit of each is the other one."""
    return words ^ -0x77777778


def _words_matrix(
    words_NK: torch.Tensor, zeros: torch.Tensor | None, scales: torch.Tensor
) -> StoredMatrix:
    """`zeros` and `scales` [groups, N]; zero points in the middle cost nothing."""
    scales = scales.float().contiguous()
    offsets = (
        None if zeros is None or bool((zeros == _MIDDLE).all()) else scales * (_MIDDLE - zeros)
    )
    return StoredMatrix(
        weight=words_NK,
        weight_type=INT4,
        out_features=words_NK.shape[0],
        in_features=words_NK.shape[1] * 8,
        scales=scales,
        offsets=offsets,
    )


def gguf_matrix(blocks: torch.Tensor, encoding: str) -> StoredMatrix:
    """Of blocks [N, bytes per row], uint8, of a type of GGUF."""
    layout, rows = GGUF_GROUPS[encoding], blocks.shape[0]
    width = in_features(blocks.shape[1], encoding)
    numbers = torch.empty(rows, width * layout.bits // 8, dtype=torch.uint8)
    scales = torch.empty(width // layout.size, rows)
    offsets = torch.empty_like(scales) if layout.has_offsets else None
    step = max(_NUMBERS_AT_ONCE // width, 1)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        found = groups_of(blocks[part].contiguous(), encoding)
        stored, shift = found.numbers.view(torch.int8).reshape(-1, width), 0
        if layout.bits == 4:
            if found.numbers.dtype is torch.uint8:
                shift = _MIDDLE
            nibbles = (stored - shift).view(torch.uint8) & 15
            numbers[part] = nibbles[:, ::2] | nibbles[:, 1::2] << 4
        else:
            numbers[part] = stored.view(torch.uint8)
        scales[:, part] = found.scale.reshape(len(stored), -1).t()
        if offsets is not None and found.offset is not None:
            offsets[:, part] = (found.offset + shift * found.scale).reshape(len(stored), -1).t()
    return StoredMatrix(
        weight=numbers,
        weight_type=INT4 if layout.bits == 4 else INT8,
        out_features=rows,
        in_features=width,
        scales=scales,
        offsets=offsets,
    )
