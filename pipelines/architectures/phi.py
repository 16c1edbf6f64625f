"""Phi-1, Phi-1.5 and Phi-2 (https://arxiv.org/abs/2309.05463): attention and feed-forward read the
same norm side by side; everything has a bias."""

from quire.pipelines.architectures.common import (
    DecoderSizes,
    decoder_spec,
    layer_norm,
    llama_attention,
    plain_mlp,
    read_activation,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.parts import HeadNormSpec, LayerSpec
from quire.pipelines.architectures.spec import ModelSpec


def read_phi(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    if config.boolean("tie_word_embeddings", False):
        raise config.wrong("tie_word_embeddings", "false: the head has a bias")
    sizes = DecoderSizes.read(config)
    epsilon = config.number("layer_norm_eps", 1e-5)
    rope = sizes.rope(config, default_share=0.5)
    activation = read_activation(config, default="gelu_new")
    has_head_norm = config.boolean("qk_layernorm", False)

    def head_norm(prefix: str) -> HeadNormSpec:
        queries = (f"{prefix}q_layernorm",) * sizes.num_heads
        keys = (f"{prefix}k_layernorm",) * sizes.num_kv_heads
        return HeadNormSpec(
            names=queries + keys, dim=sizes.head_dim, epsilon=epsilon, has_bias=True
        )

    def layer(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}."
        return LayerSpec(
            attention=llama_attention(
                sizes,
                f"{prefix}self_attn.",
                rope,
                has_qkv_bias=True,
                has_output_bias=True,
                head_norm=head_norm(f"{prefix}self_attn.") if has_head_norm else None,
                output_name="dense",
            ),
            mlp=plain_mlp(
                (f"{prefix}mlp.fc1", f"{prefix}mlp.fc2"),
                sizes.hidden_size,
                sizes.intermediate_size,
                activation=activation,
            ),
            attention_norm=layer_norm(f"{prefix}input_layernorm", sizes.hidden_size, epsilon),
            is_parallel=True,
        )

    return decoder_spec(
        config,
        "PhiForCausalLM",
        sizes,
        [layer(index) for index in range(sizes.num_layers)],
        final_norm=layer_norm("model.final_layernorm", sizes.hidden_size, epsilon),
        head_has_bias=True,
    )
