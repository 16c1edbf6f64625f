"""Multi-head latent attention as data (DeepSeek-V2, https://arxiv.org/abs/2405.04434).

No torch. `pipelines/nn/latent_attention.py` computes it.
"""

from dataclasses import dataclass

from quire.pipelines.architectures.encodings import ITEM_BYTES
from quire.pipelines.architectures.parts import (
    KVLayerSpec,
    LinearSpec,
    NormSpec,
    SelfAttentionSpec,
)
from quire.pipelines.architectures.quant_config import QuantConfig

MAX_LATENT_DIM = 512
MAX_LATENT_DIM_FLOAT32_CUDA = 256
MAX_LATENT_ROPE_DIM = 128
"""What `kernels.flare_mla_decode_ragged` takes: multiples of 8 up to these."""


@dataclass(frozen=True, kw_only=True)
class AbsorbedSpec(LinearSpec):
    """The projection from a latent to keys and values, [H, nope + value, latent] in meaning.

    Computed as plain numbers, whatever its encoding: queries and results are multiplied by it, and
    no latent ever is.
    """

    def device_bytes(self, quant: QuantConfig, dtype: str, device_type: str) -> int:
        return self.num_parameters * ITEM_BYTES[dtype]


@dataclass(frozen=True, kw_only=True)
class LatentAttentionSpec(SelfAttentionSpec):
    """A token's keys and values of all heads are projections of one latent, which is cached.

    A head's query is `nope_dim` numbers, which meet the latent's, then `rope_dim` that turn, as
    does the one rotated key that all heads share. `q` reads x, or the norm of `q_a` of x where
    queries are projected through a low rank too. `kv_a` gives the latent, which `kv_a_norm` is
    of, then the rotated key. `scale` multiplies the scores.
    """

    num_heads: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    latent_dim: int
    q_a: LinearSpec | None = None
    q_a_norm: NormSpec | None = None
    q: LinearSpec
    kv_a: LinearSpec
    kv_a_norm: NormSpec
    kv_b: AbsorbedSpec
    output: LinearSpec
    scale: float

    @property
    def cached_dim(self) -> int:
        """Numbers that a token leaves in the cache."""
        return self.latent_dim + self.rope_dim

    @property
    def kv_layer(self) -> KVLayerSpec:
        return KVLayerSpec(num_heads=1, key_dim=self.cached_dim, value_dim=0)

    @property
    def flops_per_key(self) -> int:
        return 2 * self.num_heads * (self.cached_dim + self.latent_dim)

    @property
    def width(self) -> int:
        # Queries before and after absorption, and the result over latents by token and by head.
        head = self.nope_dim + self.rope_dim + self.cached_dim + 2 * self.latent_dim
        return self.num_heads * head + self.cached_dim
