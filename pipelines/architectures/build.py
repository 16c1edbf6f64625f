"""Builds the model that a `ModelSpec` describes: for each part its layer, with its weights."""

from dataclasses import dataclass, replace

import torch

from quire.kernels.linear.cpu_native import NativeLinear
from quire.kernels.linear.tile_plan import TilePlans
from quire.kernels.native import library
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.latent_parts import LatentAttentionSpec
from quire.pipelines.architectures.moe_parts import MoESpec
from quire.pipelines.architectures.parts import (
    AttentionSpec,
    FeedForwardSpec,
    HeadNormSpec,
    LayerSpec,
    LinearSpec,
    MLPSpec,
    NormSpec,
    SelfAttentionSpec,
)
from quire.pipelines.architectures.quant_config import QuantConfig
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.nn.attention import Attention, AttentionWithRope, PositionScale
from quire.pipelines.nn.embedding import Embedding, Table, plain_table
from quire.pipelines.nn.expert_loader import ExpertLoader
from quire.pipelines.nn.latent_attention import LatentAttention
from quire.pipelines.nn.linear import Linear, StackedLinear
from quire.pipelines.nn.linear_weight import Apply, DenseWeight, LinearWeight
from quire.pipelines.nn.mlp import MLP
from quire.pipelines.nn.moe import MoE
from quire.pipelines.nn.norm import HeadLayerNorm, LayerNorm, Norm, RMSNorm
from quire.pipelines.nn.rotary_embedding import rotary_embedding
from quire.pipelines.nn.transformer import Transformer
from quire.pipelines.nn.transformer_block import TransformerBlock
from quire.pipelines.nn.weight_kinds import WEIGHT_KINDS
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
            num_groups=spec.num_groups,
        )
        return layer.load(self.loader)

    def tied_head(self, weight_VC: torch.Tensor, encoding: Encoding | None) -> Apply:
        weight: LinearWeight = DenseWeight(weight_VC)
        if encoding is not None:
            kind = WEIGHT_KINDS[type(encoding)]
            weight = kind.from_tensors(encoding, {"weight": weight_VC.cpu()}, self.dtype)
        return weight.prepare(None, self.device, self.plans)

    def rms_norm(self, spec: NormSpec) -> RMSNorm:
        weight = self.loader.take(f"{spec.name}.weight") if spec.has_weight else self.ones(spec.dim)
        return RMSNorm(
            weight,
            spec.epsilon,
            weight_offset=spec.weight_offset,
            multiply_before_cast=spec.multiply_before_cast,
        )

    def ones(self, dim: int) -> torch.Tensor:
        return torch.ones(dim, dtype=self.dtype, device=self.device)

    def norm(self, spec: NormSpec) -> Norm:
        if spec.kind == "rms":
            return self.rms_norm(spec)
        bias = self.loader.take(f"{spec.name}.bias") if spec.has_bias else None
        return LayerNorm(self.loader.take(f"{spec.name}.weight"), bias, spec.epsilon)

    def head_norm(self, spec: HeadNormSpec) -> HeadLayerNorm:
        def rows(suffix: str) -> torch.Tensor:
            taken = {n: self.loader.take(f"{n}.{suffix}") for n in dict.fromkeys(spec.names)}
            return torch.stack([taken[name] for name in spec.names])

        return HeadLayerNorm(rows("weight"), rows("bias") if spec.has_bias else None, spec.epsilon)

    def dense(self, spec: LinearSpec) -> torch.Tensor:
        """The numbers of a layer without bias, [N, K], however they are stored."""
        (name,) = spec.names
        layer = Linear(
            spec.in_dim,
            spec.out_dim,
            self.dtype,
            self.device,
            quant_config=self.quant,
            quantization_encoding=spec.encoding,
            name=name,
        )
        return layer.read(self.loader)[0].dense().to(self.device)

    def attention(self, spec: SelfAttentionSpec) -> Attention:
        match spec:
            case AttentionSpec():
                return self.attention_with_rope(spec)
            case LatentAttentionSpec():
                return self.latent_attention(spec)
        raise TypeError(f"no layer computes {type(spec).__name__}")

    def latent_attention(self, spec: LatentAttentionSpec) -> LatentAttention:
        q_a = None
        if spec.q_a and spec.q_a_norm:
            q_a = self.linear(spec.q_a), self.rms_norm(spec.q_a_norm)
        return LatentAttention(
            spec,
            q_a,
            self.linear(spec.q),
            (self.linear(spec.kv_a), self.rms_norm(spec.kv_a_norm)),
            self.dense(spec.kv_b),
            self.linear(spec.output),
            self.plans,
        )

    def attention_with_rope(self, spec: AttentionSpec) -> AttentionWithRope:
        wqkv = self.linear(spec.qkv)
        qk_norm = None
        if spec.q_norm and spec.k_norm:
            qk_norm = self.rms_norm(spec.q_norm), self.rms_norm(spec.k_norm)
        sinks = None if spec.sinks is None else self.loader.take(spec.sinks.name).float()
        query_scale = None
        if spec.query_scale:
            longest = spec.rope.longest_context
            query_scale = PositionScale(spec.query_scale, longest, self.dtype, self.device)
        return AttentionWithRope(
            spec,
            wqkv,
            self.linear(spec.output),
            qk_norm,
            sinks,
            query_scale,
            self.head_norm(spec.head_norm) if spec.head_norm else None,
        )

    def mlp(self, spec: MLPSpec) -> MLP:
        return MLP(self.linear(spec.up), self.linear(spec.down), spec.activation)

    def feed_forward(self, spec: FeedForwardSpec) -> Apply:
        match spec:
            case MLPSpec():
                return self.mlp(spec)
            case MoESpec():
                return self.moe(spec)
        raise TypeError(f"no layer computes {type(spec).__name__}")

    def moe(self, spec: MoESpec) -> MoE:
        of_router = replace(self, dtype=torch.float32) if spec.router.in_float32 else self
        bias = spec.correction_bias
        return MoE(
            spec,
            of_router.linear(spec.router),
            ExpertLoader(self.loader, self.quant, self.plans).load(spec.experts),
            # Not in the dtype of the model: it decides between close scores.
            correction_bias=self.loader.host(bias.name).float().to(self.device) if bias else None,
            shared=self.mlp(spec.shared) if spec.shared else None,
            shared_gate=self.linear(spec.shared_gate) if spec.shared_gate else None,
        )

    def block(self, spec: LayerSpec) -> TransformerBlock:
        attention, mlp = self.attention(spec.attention), self.feed_forward(spec.mlp)
        norms = {
            field: self.norm(norm)
            for field in _NORM_FIELDS
            if (norm := getattr(spec, field)) is not None
        }
        return TransformerBlock(spec, attention, mlp, norms)

    def embedding(self, model: ModelSpec) -> tuple[Embedding, Apply | None]:
        """The embedding, and the head where it is the same matrix."""
        spec, native = model.embedding, library() if self.device.type == "cpu" else None
        head: Apply | None = None
        table: Table
        if native is not None and model.lm_head is None and model.tied_encoding is None:
            # The head's layout gives rows too: it is the only copy.
            blocks = self.loader.blocks(spec.name)
            tied = NativeLinear(
                next(blocks), None, native=native, more_rows=blocks, out_features=spec.vocab_size
            )
            table, head = tied.rows, tied
        else:
            weight_VC = self.loader.take(spec.name)
            table = plain_table(weight_VC)
            if model.lm_head is None:
                head = self.tied_head(weight_VC, model.tied_encoding)
        dtype = self.loader.dtype
        return Embedding(table, dtype, spec.scale, is_scale_rounded=spec.is_scale_rounded), head


def build_decoder(
    spec: ModelSpec, loader: WeightLoader, *, max_length: int, exact: bool
) -> Transformer:
    """Take every weight from `loader` and build the model, on the loader's device.

    Raises:
        ModelError: a weight cannot be read or is not finite.
    """
    device = loader.device
    builder = Builder(loader, spec.quant, loader.dtype, device, TilePlans() if exact else None)
    embedding, tied_head = builder.embedding(spec)
    positions = None if spec.positions is None else loader.take(spec.positions.name)
    blocks = [builder.block(layer) for layer in spec.layers]
    norm = builder.norm(spec.final_norm)
    head = tied_head if spec.lm_head is None else builder.linear(spec.lm_head)
    assert head is not None
    loader.finish()
    ropes = {layer.attention.rope for layer in spec.layers}
    tables = {rope: rotary_embedding(rope, max_length).cos_sin(device) for rope in ropes}
    return Transformer(spec, embedding, blocks, norm, head, tables, positions)
