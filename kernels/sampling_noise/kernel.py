"""Triton: counter-based noise, the same integers as `quire.kernels.sampling.noise`."""

import triton
import triton.language as tl

from quire.kernels.sampling import noise

GOLDEN = tl.constexpr(noise.GOLDEN)
MIX_1 = tl.constexpr(noise.MIX_1)
MIX_2 = tl.constexpr(noise.MIX_2)
KEY_START_0 = tl.constexpr(noise.KEY_STARTS[0])
KEY_START_1 = tl.constexpr(noise.KEY_STARTS[1])
UNIFORM_STEP = tl.constexpr(noise.UNIFORM_STEP)
LEAST_UNIFORM = tl.constexpr(noise.LEAST_UNIFORM)


@triton.jit
def _mix(words):
    words = (words ^ (words >> 16)) * tl.full((1,), MIX_1, tl.uint32)
    words = (words ^ (words >> 13)) * tl.full((1,), MIX_2, tl.uint32)
    return words ^ (words >> 16)


@triton.jit
def _key_word(START: tl.constexpr, seed, choice, position):
    golden = tl.full((1,), GOLDEN, tl.uint32)
    key = _mix((tl.full((1,), START, tl.uint32) + golden) ^ seed.to(tl.uint32))
    key = _mix((key + golden) ^ (seed >> 32).to(tl.uint32))
    key = _mix((key + golden) ^ choice.to(tl.uint32))
    return _mix((key + golden) ^ position.to(tl.uint32))


@triton.jit
def load_key(seeds, choices, positions, row, stream, step):
    """The two key words of a row, as `noise.row_keys`; blocks of one element.

    `stream` sets bits of the choice, `step` counts from the row's position.
    """
    one = row + tl.arange(0, 1)
    seed = tl.load(seeds + one)
    choice = tl.load(choices + one) ^ stream
    position = tl.load(positions + one) + step
    key_0 = _key_word(KEY_START_0, seed, choice, position)
    return key_0, _key_word(KEY_START_1, seed, choice, position)


@triton.jit
def uniform_noise(token, key_0, key_1):
    """Uniform in (0, 1) from `noise.token_words`."""
    words = token.to(tl.uint32) * tl.full((1,), GOLDEN, tl.uint32) + key_0
    words = _mix(_mix(words) ^ key_1)
    return tl.maximum((words >> 8).to(tl.float32) * UNIFORM_STEP, LEAST_UNIFORM)


@triton.jit
def gumbel_noise(token, key_0, key_1):
    """As `noise.gumbel` of `noise.token_words`."""
    return -tl.log(-tl.log(uniform_noise(token, key_0, key_1)))
