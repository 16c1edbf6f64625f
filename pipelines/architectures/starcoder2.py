"""StarCoder2 (https://arxiv.org/abs/2402.19173): layer norms, biases, a feed-forward without gate."""

from quire.pipelines.architectures.common import (
    DecoderSizes,
    decoder_spec,
    layer_norm,
    llama_attention,
    plain_mlp,
    read_activation,
    read_window,
)
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.parts import LayerSpec
from quire.pipelines.architectures.spec import ModelSpec


def read_starcoder2(config: ConfigFile) -> ModelSpec:
    """Raises ModelError for a key that is missing or wrong."""
    sizes = DecoderSizes.read(config)
    epsilon = config.number("norm_epsilon", 1e-5)
    rope = sizes.rope(config)
    activation = read_activation(config, default="gelu_pytorch_tanh")
    has_bias = config.boolean("use_bias", True)
    window = read_window(config)

    def layer(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}."
        return LayerSpec(
            attention=llama_attention(
                sizes,
                f"{prefix}self_attn.",
                rope,
                has_qkv_bias=has_bias,
                has_output_bias=has_bias,
                sliding_window=window,
            ),
            mlp=plain_mlp(
                (f"{prefix}mlp.c_fc", f"{prefix}mlp.c_proj"),
                sizes.hidden_size,
                sizes.intermediate_size,
                activation=activation,
                has_bias=has_bias,
            ),
            attention_norm=layer_norm(f"{prefix}input_layernorm", sizes.hidden_size, epsilon),
            mlp_norm=layer_norm(f"{prefix}post_attention_layernorm", sizes.hidden_size, epsilon),
        )

    return decoder_spec(
        config,
        "Starcoder2ForCausalLM",
        sizes,
        [layer(index) for index in range(sizes.num_layers)],
        final_norm=layer_norm("model.norm", sizes.hidden_size, epsilon),
        tie_by_default=True,
    )
