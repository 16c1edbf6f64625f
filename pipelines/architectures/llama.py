"""Builds the decoder that Llama, Qwen2, Qwen3 and Mistral share from a checkpoint."""

import torch

from quire.kernels.linear.tile_plan import TilePlans
from quire.pipelines.architectures.spec import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    ModelSpec,
    layer_prefix,
)
from quire.pipelines.nn.attention import AttentionWithRope
from quire.pipelines.nn.embedding import Embedding
from quire.pipelines.nn.linear import Linear
from quire.pipelines.nn.mlp import MLP
from quire.pipelines.nn.norm import RMSNorm
from quire.pipelines.nn.rotary_embedding import rotary_embedding
from quire.pipelines.nn.transformer import Transformer, TransformerBlock
from quire.pipelines.weights.loader import WeightLoader


def build_decoder(
    spec: ModelSpec, loader: WeightLoader, device: torch.device, *, max_length: int, exact: bool
) -> Transformer:
    """Take every weight from `loader` and build the model that `spec` describes.

    Raises:
        ModelError: a weight cannot be read or is not finite.
    """
    plans = TilePlans() if exact else None
    embedding = Embedding(loader.take(EMBEDDING))
    blocks = [_block(spec, loader, layer, plans) for layer in range(spec.num_layers)]
    norm = RMSNorm(loader.take(FINAL_NORM), spec.rms_norm_eps)
    head = embedding.weight if spec.tie_word_embeddings else loader.take(LM_HEAD)
    loader.finish()
    rope = rotary_embedding(spec.rope, spec.head_dim, max_length)
    lm_head = Linear(head, None, plans)
    return Transformer(embedding, blocks, norm, lm_head, rope.cos_sin(device))


def _block(
    spec: ModelSpec, loader: WeightLoader, layer: int, plans: TilePlans | None
) -> TransformerBlock:
    prefix = layer_prefix(layer)

    def linear(*names: str) -> Linear:
        weight, bias = loader.take_linear(prefix, *names)
        return Linear(weight, bias, plans)

    def norm(name: str) -> RMSNorm:
        return RMSNorm(loader.take(f"{prefix}{name}.weight"), spec.rms_norm_eps)

    attention_norm = norm("input_layernorm")
    wqkv = linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    qk_norm = (norm("self_attn.q_norm"), norm("self_attn.k_norm")) if spec.qk_norm else None
    attention = AttentionWithRope(
        wqkv,
        linear("self_attn.o_proj"),
        num_heads=spec.num_heads,
        head_dim=spec.head_dim,
        qk_norm=qk_norm,
        sliding_window=spec.sliding_windows[layer],
    )
    mlp_norm = norm("post_attention_layernorm")
    mlp = MLP(linear("mlp.gate_proj", "mlp.up_proj"), linear("mlp.down_proj"))
    return TransformerBlock(attention_norm, attention, mlp_norm, mlp)
