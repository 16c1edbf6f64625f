"""Rotary position embedding tables, one class per scaling method.

A table is a function of the configuration and of `max_length` alone, never of the request, so
the same position always turns by the same angle.
"""

import math

import torch

from quire.pipelines.architectures.rope_spec import RopeKind, RopeSpec


class RotaryEmbedding:
    """Rotary embedding (https://arxiv.org/abs/2104.09864) for positions below `max_length`."""

    def __init__(self, spec: RopeSpec, max_length: int) -> None:
        self.spec = spec
        self.rotary_dim = spec.rotary_dim
        self.max_length = max_length

    def frequencies(self) -> torch.Tensor:
        """Angle per position of each pair of dimensions, fp32 [rotary_dim / 2]."""
        return 1.0 / self.wavelengths(self.spec.theta)

    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0

    def wavelengths(self, theta: float) -> torch.Tensor:
        """theta^(2i / rotary_dim): positions per radian, fp32 [rotary_dim / 2]."""
        exponents = torch.arange(0, self.rotary_dim, 2, dtype=torch.float32) / self.rotary_dim
        return torch.pow(theta, exponents)

    def cos_sin(self, device: torch.device) -> torch.Tensor:
        """fp32 [max_length, rotary_dim]: cosines, then sines. Computed on the CPU for any device."""
        positions = torch.arange(self.max_length, dtype=torch.float32)
        angles = torch.outer(positions, self.frequencies())
        table = torch.cat([angles.cos(), angles.sin()], dim=-1) * self.attention_factor()
        return table.to(device)


class NoRotaryEmbedding(RotaryEmbedding):
    """Turns nothing, in bits: cosines are 1 and sines 0."""

    def frequencies(self) -> torch.Tensor:
        return torch.zeros(self.rotary_dim // 2)


class LinearScalingRotaryEmbedding(RotaryEmbedding):
    """Positions divided by `factor`."""

    def frequencies(self) -> torch.Tensor:
        return super().frequencies() / self.spec.factor


class DynamicRotaryEmbedding(RotaryEmbedding):
    """NTK scaling of theta, for the length `max_length` from the first token on.

    transformers grows the factor with the sequence, which turns earlier keys by other angles
    than they were cached with; here it is fixed.
    """

    def frequencies(self) -> torch.Tensor:
        spec, dim = self.spec, self.rotary_dim
        length = max(self.max_length, spec.original_max_position)
        stretch = spec.factor * length / spec.original_max_position - (spec.factor - 1)
        return 1.0 / self.wavelengths(spec.theta * stretch ** (dim / (dim - 2)))


class Llama3RotaryEmbedding(RotaryEmbedding):
    """Long waves are slowed by `factor`, short ones kept, those between blended (Llama 3.1)."""

    def frequencies(self) -> torch.Tensor:
        spec, kept = self.spec, super().frequencies()
        slowed = kept / spec.factor
        periods = spec.original_max_position * kept / (2 * math.pi)
        blend = (periods - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
        return torch.lerp(slowed, kept, blend.clamp(0, 1))


class YarnRotaryEmbedding(RotaryEmbedding):
    """YaRN (https://arxiv.org/abs/2309.00071)."""

    def frequencies(self) -> torch.Tensor:
        spec = self.spec
        kept = super().frequencies()
        low, high = self._dimension(spec.beta_fast), self._dimension(spec.beta_slow)
        if spec.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.rotary_dim - 1)
        steps = torch.arange(self.rotary_dim // 2, dtype=torch.float32) - low
        # 0.001 keeps the ramp defined where both ends meet, as in the paper's code.
        ramp = (steps / (high - low or 0.001)).clamp(0, 1)
        return torch.lerp(kept, kept / spec.factor, ramp)

    def _dimension(self, rotations: float) -> float:
        """The dimension whose wave turns `rotations` times in the original context."""
        span = self.spec.original_max_position / (rotations * 2 * math.pi)
        return self.rotary_dim * math.log(span) / (2 * math.log(self.spec.theta))

    def attention_factor(self) -> float:
        spec = self.spec
        if spec.attention_factor is not None:
            return spec.attention_factor
        if spec.mscale and spec.mscale_all_dim:
            return self._magnitude(spec.mscale) / self._magnitude(spec.mscale_all_dim)
        return self._magnitude(1.0)

    def _magnitude(self, mscale: float) -> float:
        factor = self.spec.factor
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class LongRoPERotaryEmbedding(RotaryEmbedding):
    """LongRoPE (https://arxiv.org/abs/2402.13753): a factor per dimension.

    The long factors hold for every position when `max_length` exceeds the original context,
    else the short ones.
    """

    def frequencies(self) -> torch.Tensor:
        spec = self.spec
        is_long = self.max_length > spec.original_max_position
        factors = torch.tensor(spec.long_factor if is_long else spec.short_factor)
        return 1.0 / (factors * self.wavelengths(spec.theta))

    def attention_factor(self) -> float:
        spec = self.spec
        if spec.attention_factor is not None:
            return spec.attention_factor
        if spec.factor <= 1:
            return 1.0
        return math.sqrt(1 + math.log(spec.factor) / math.log(spec.original_max_position))


def rotary_embedding(spec: RopeSpec, max_length: int) -> RotaryEmbedding:
    """The embedding that `spec.kind` names."""
    kinds: dict[RopeKind, type[RotaryEmbedding]] = {
        "none": NoRotaryEmbedding,
        "default": RotaryEmbedding,
        "linear": LinearScalingRotaryEmbedding,
        "dynamic": DynamicRotaryEmbedding,
        "llama3": Llama3RotaryEmbedding,
        "yarn": YarnRotaryEmbedding,
        "longrope": LongRoPERotaryEmbedding,
    }
    return kinds[spec.kind](spec, max_length)
