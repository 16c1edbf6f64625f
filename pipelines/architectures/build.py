"""Builds the model that a `ModelSpec` describes: for each part its layer, with its weights."""

from dataclasses import dataclass

import torch

from quire.kernels.linear.tile_plan import TilePlans
from quire.pipelines.architectures.parts import (
    AttentionSpec,
    LayerSpec,
    LinearSpec,
    MLPSpec,
    NormSpec,
)
from quire.pipelines.architectures.quant_config import QuantConfig
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.nn.attention import AttentionWithRope
from quire.pipelines.nn.embedding import Embedding
from quire.pipelines.nn.linear import StackedLinear
from quire.pipelines.nn.linear_weight import Apply, DenseWeight
from quire.pipelines.nn.mlp import MLP
from quire.pipelines.nn.norm import LayerNorm, Norm, RMSNorm
from quire.pipelines.nn.rotary_embedding import rotary_embedding
from quire.pipelines.nn.transformer import Transformer, TransformerBlock
from quire.pipelines.weights.loader import WeightLoader

_NORM_FIELDS = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")


@dataclass(frozen=True)
class Builder:
    """Makes layers of parts; `plans` None: bits may depend on other rows."""

    loader: WeightLoader
    quant: QuantConfig
    dtype: torch.dtype
    device: torch.device
    plans: TilePlans | None

    def linear(self, spec: LinearSpec) -> StackedLinear:
        layer = StackedLinear(
            spec.in_dim,
            spec.out_dims,
            spec.names,
            self.dtype,
            self.device,
            stacked=len(spec.names) == 1,
            has_bias=spec.has_bias,
            quant_config=self.quant,
            quantization_encoding=spec.encoding,
            plans=self.plans,
        )
        return layer.load(self.loader)

    def rms_norm(self, spec: NormSpec) -> RMSNorm:
        return RMSNorm(
            self.loader.take(f"{spec.name}.weight"),
            spec.epsilon,
            weight_offset=spec.weight_offset,
            multiply_before_cast=spec.multiply_before_cast,
        )

    def norm(self, spec: NormSpec) -> Norm:
        if spec.kind == "rms":
            return self.rms_norm(spec)
        bias = self.loader.take(f"{spec.name}.bias") if spec.has_bias else None
        return LayerNorm(self.loader.take(f"{spec.name}.weight"), bias, spec.epsilon)

    def attention(self, spec: AttentionSpec) -> AttentionWithRope:
        wqkv = self.linear(spec.qkv)
        qk_norm = None
        if spec.q_norm and spec.k_norm:
            qk_norm = self.rms_norm(spec.q_norm), self.rms_norm(spec.k_norm)
        sinks = None if spec.sinks is None else self.loader.take(spec.sinks.name).float()
        return AttentionWithRope(spec, wqkv, self.linear(spec.output), qk_norm, sinks)

    def mlp(self, spec: MLPSpec) -> MLP:
        return MLP(self.linear(spec.up), self.linear(spec.down), spec.activation)

    def block(self, spec: LayerSpec) -> TransformerBlock:
        attention, mlp = self.attention(spec.attention), self.mlp(spec.mlp)
        norms = {
            field: self.norm(norm)
            for field in _NORM_FIELDS
            if (norm := getattr(spec, field)) is not None
        }
        return TransformerBlock(spec, attention, mlp, norms)


def build_decoder(
    spec: ModelSpec, loader: WeightLoader, *, max_length: int, exact: bool
) -> Transformer:
    """Take every weight from `loader` and build the model, on the loader's device.

    Raises:
        ModelError: a weight cannot be read or is not finite.
    """
    device = loader.device
    builder = Builder(loader, spec.quant, loader.dtype, device, TilePlans() if exact else None)
    embedding = Embedding(loader.take(spec.embedding.name), spec.embedding.scale)
    positions = None if spec.positions is None else loader.take(spec.positions.name)
    blocks = [builder.block(layer) for layer in spec.layers]
    norm = builder.norm(spec.final_norm)
    head: Apply = (
        DenseWeight(embedding.weight).prepare(None, device, builder.plans)
        if spec.lm_head is None
        else builder.linear(spec.lm_head)
    )
    loader.finish()
    ropes = {layer.attention.rope for layer in spec.layers}
    tables = {rope: rotary_embedding(rope, max_length).cos_sin(device) for rope in ropes}
    return Transformer(spec, embedding, blocks, norm, head, tables, positions)
