"""`EncoderSpec`: a bidirectional transformer that makes embeddings, as data. No torch."""

from collections.abc import Callable
from dataclasses import dataclass

from quire.pipelines.architectures.encodings import TensorSpec
from quire.pipelines.architectures.parts import (
    LinearSpec,
    MLPSpec,
    NormSpec,
    TensorPart,
    weight_owners,
)
from quire.pipelines.architectures.quant_config import UNQUANTIZED
from quire.pipelines.architectures.spec import Dtype

Names = Callable[[int], str]


@dataclass(frozen=True, kw_only=True)
class EncoderLayerSpec:
    """Attention to every token of the text, feed-forward; a norm after each sum."""

    qkv: LinearSpec
    output: LinearSpec
    attention_norm: NormSpec
    mlp: MLPSpec
    mlp_norm: NormSpec


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """BERT (https://arxiv.org/abs/1810.04805) and its kin.

    The rows of `words`, `positions` (from `first_position` on) and `token_type` (its row 0, for
    texts of one segment) are added up and normalized. `attention_bias` [buckets, heads] is added to
    scores by the distance of two tokens (MPNet).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_heads: int
    words: TensorPart
    positions: TensorPart
    first_position: int
    token_type: TensorPart | None
    embedding_norm: NormSpec
    layers: tuple[EncoderLayerSpec, ...]
    attention_bias: TensorPart | None
    max_length: int
    checkpoint_dtype: Dtype
    ignored_weights: tuple[str, ...] = ()

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def tensors(self) -> dict[str, TensorSpec]:
        """Checkpoint name to what is expected there."""
        found: dict[str, TensorSpec] = {}
        for owner in weight_owners(self):
            found.update(owner.tensors(UNQUANTIZED))
        return found

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may have this tensor although nothing reads it."""
        return name.startswith(self.ignored_weights)
