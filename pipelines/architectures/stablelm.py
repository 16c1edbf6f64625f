"""StableLM 3B and StableLM 2 (https://arxiv.org/abs/2402.17834): Llama with layer norms, and only
a part of each head turned."""

from quire.pipelines.architectures.common import (
    DecoderSizes,
    check_whole_heads,
    decoder_spec,
    gated_mlp,
    layer_norm,
    llama_attention,
    read_activation,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.parts import HeadNormSpec, LayerSpec
from quire.pipelines.architectures.spec import ModelSpec


def read_stablelm(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    check_whole_heads(config, sizes)
    epsilon = config.number("layer_norm_eps", 1e-5)
    rope = sizes.rope(config, default_share=0.25)
    activation = read_activation(config)
    has_bias = config.boolean("use_qkv_bias", False)
    has_head_norm = config.boolean("qk_layernorm", False)
    is_parallel = config.boolean("use_parallel_residual", False)

    def layer(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}."
        own_norm = layer_norm(f"{prefix}post_attention_layernorm", sizes.hidden_size, epsilon)
        return LayerSpec(
            attention=llama_attention(
                sizes,
                f"{prefix}self_attn.",
                rope,
                has_qkv_bias=has_bias,
                head_norm=_head_norm(f"{prefix}self_attn.", sizes, epsilon, has_head_norm),
            ),
            mlp=gated_mlp(
                f"{prefix}mlp.", sizes.hidden_size, sizes.intermediate_size, activation=activation
            ),
            attention_norm=layer_norm(f"{prefix}input_layernorm", sizes.hidden_size, epsilon),
            mlp_norm=None if is_parallel else own_norm,
            is_parallel=is_parallel,
        )

    return decoder_spec(
        config,
        "StableLmForCausalLM",
        sizes,
        [layer(index) for index in range(sizes.num_layers)],
        final_norm=layer_norm("model.norm", sizes.hidden_size, epsilon),
    )


def _head_norm(
    prefix: str, sizes: DecoderSizes, epsilon: float, is_there: bool
) -> HeadNormSpec | None:
    if not is_there:
        return None
    counts = (("q_layernorm", sizes.num_heads), ("k_layernorm", sizes.num_kv_heads))
    names = tuple(f"{prefix}{name}.norms.{head}" for name, count in counts for head in range(count))
    return HeadNormSpec(names=names, dim=sizes.head_dim, epsilon=epsilon)
