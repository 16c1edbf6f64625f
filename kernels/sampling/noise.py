"""Counter-based Gumbel noise: a pure function of (seed, choice, position, token id).

The integer mixer is MurmurHash3's 32-bit finalizer (Austin Appleby, public domain,
https://github.com/aappleby/smhasher). A row's key is two words, each a chain of mixes over the
key's parts; a token's word is mix(mix(token * GOLDEN + key 0) ^ key 1), for one row a permutation
of the 32-bit integers. The top 24 bits make u in (0, 1), and gumbel = -log(-log(u)).
Triton computes the same integers; the logarithms may differ in the last bit.
"""

import numpy as np
import torch
from numpy.typing import NDArray

GOLDEN = 0x9E3779B9
MIX_1 = 0x85EBCA6B
MIX_2 = 0xC2B2AE35
KEY_STARTS = (0x243F6A88, 0xB7E15162)
"""First digits of pi and e: two unlike chains for the two words of a key."""

UNIFORM_STEP = 2.0**-24
LEAST_UNIFORM = 2.0**-25
"""In place of 0."""

ACCEPTANCE_STREAM, RESIDUAL_STREAM = 1 << 30, 1 << 29
"""Bits of `choice` that set apart what is drawn at one position for more than one purpose."""

NOISE_RANGE = 20.0
"""More than the greatest gumbel (16.7) less the least (-2.9): who is further behind has lost."""


def _signed(word: int) -> int:
    """The int32 with the bits of `word`."""
    return word - (1 << 32) if word >= 1 << 31 else word


def mix(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's finalizer, element by element."""
    words = (words ^ (words >> np.uint32(16))) * np.uint32(MIX_1)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(MIX_2)
    return words ^ (words >> np.uint32(16))


def row_keys(
    seed: NDArray[np.int64], choice: NDArray[np.int32], position: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The two key words [R] of each row, as int32 with the bits of the unsigned words."""
    wide = seed.astype(np.int64).view(np.uint64)
    parts = (
        wide.astype(np.uint32),
        (wide >> np.uint64(32)).astype(np.uint32),
        choice.astype(np.int32).view(np.uint32),
        position.astype(np.int32).view(np.uint32),
    )
    keys = []
    for start in KEY_STARTS:
        key = np.full(seed.shape, start, dtype=np.uint32)
        for part in parts:
            key = mix((key + np.uint32(GOLDEN)) ^ part)
        keys.append(key.view(np.int32))
    return keys[0], keys[1]


def token_words(tokens: torch.Tensor, key_0: torch.Tensor, key_1: torch.Tensor) -> torch.Tensor:
    """The noise words of token ids, all int32; keys broadcast against tokens."""
    words = tokens * _signed(GOLDEN) + key_0
    return _mix_int32(_mix_int32(words).bitwise_xor_(key_1))


def uniform(words: torch.Tensor) -> torch.Tensor:
    """Uniform noise in (0, 1), float32, from int32 words."""
    return (words >> 8).bitwise_and_(0xFFFFFF).float().mul_(UNIFORM_STEP).clamp_(min=LEAST_UNIFORM)


def gumbel(words: torch.Tensor) -> torch.Tensor:
    """Gumbel noise, float32, from int32 words."""
    return uniform(words).log_().neg_().log_().neg_()


def _mix_int32(words: torch.Tensor) -> torch.Tensor:
    """`mix` on int32, in place: the masks make arithmetic shifts logical, products wrap."""
    words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF)).mul_(_signed(MIX_1))
    words.bitwise_xor_((words >> 13).bitwise_and_(0x7FFFF)).mul_(_signed(MIX_2))
    return words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF))
