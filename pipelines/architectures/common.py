"""What the files of most decoders share: reading the usual keys, and parts with the usual names.

No torch. An architecture's file reads what is its own and composes a `ModelSpec` with these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quire.config.errors import ModelError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.parts import (
    AttentionSpec,
    EmbeddingSpec,
    HeadNormSpec,
    LayerSpec,
    LinearSpec,
    MLPSpec,
    NormSpec,
    QueryScale,
)
from quire.pipelines.architectures.rope_spec import RopeSpec, read_rope
from quire.pipelines.architectures.spec import Dtype, ModelSpec

MAX_HEAD_DIM = 256
"""The widest head the attention kernels take."""

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
"""transformers' name of an activation to that of `kernels.activations`."""


@dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """The sizes that nearly every decoder's config.json has, under their usual keys."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int

    @classmethod
    def read(cls, config: ConfigFile, *, default_head_dim: int | None = None) -> "DecoderSizes":
        """`default_head_dim` is meant where `head_dim` is missing; None: hidden / heads.

        Raises:
            ModelError: a key is missing or wrong, or a head is one that the kernels do not take.
        """
        hidden_size = config.integer("hidden_size")
        num_heads = config.integer("num_attention_heads")
        head_dim = config.integer("head_dim", default_head_dim or max(hidden_size // num_heads, 1))
        check_head_dim(config, head_dim)
        num_kv_heads = config.integer("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise config.wrong("num_key_value_heads", f"a divisor of {num_heads} attention heads")
        return cls(
            vocab_size=config.integer("vocab_size"),
            hidden_size=hidden_size,
            num_layers=config.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            intermediate_size=config.integer("intermediate_size"),
            max_position_embeddings=config.integer("max_position_embeddings"),
        )

    def rope(
        self,
        config: ConfigFile,
        *,
        default_share: float | None = None,
        default_theta: float = 10000.0,
    ) -> RopeSpec:
        """The rotary embedding that config.json describes; defaults as of `read_rope`."""
        return read_rope(
            config,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_position_embeddings,
            default_share=default_share,
            default_theta=default_theta,
        )

    def qkv(
        self, prefix: str, *, has_bias: bool = False, fused_name: str | None = None
    ) -> LinearSpec:
        """q, k and v, stored apart as `{prefix}q_proj`, ... or together as `{prefix}{fused_name}`."""
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        names = (fused_name,) if fused_name else ("q_proj", "k_proj", "v_proj")
        return LinearSpec(
            names=tuple(f"{prefix}{name}" for name in names),
            in_dim=self.hidden_size,
            out_dims=tuple(count * self.head_dim for count in heads),
            has_bias=has_bias,
        )

    def attention_output(self, name: str, *, has_bias: bool = False) -> LinearSpec:
        """From all heads back to the hidden size."""
        return LinearSpec(
            names=(name,),
            in_dim=self.num_heads * self.head_dim,
            out_dims=(self.hidden_size,),
            has_bias=has_bias,
        )


def llama_attention(
    sizes: DecoderSizes,
    prefix: str,
    rope: RopeSpec,
    *,
    has_qkv_bias: bool = False,
    has_output_bias: bool = False,
    scale: float | None = None,
    q_norm: NormSpec | None = None,
    k_norm: NormSpec | None = None,
    head_norm: HeadNormSpec | None = None,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    query_scale: QueryScale | None = None,
    fused_name: str | None = None,
    output_name: str = "o_proj",
) -> AttentionSpec:
    """Attention with Llama's weight names; `prefix` is `model.layers.0.self_attn.` or alike."""
    return AttentionSpec(
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        qkv=sizes.qkv(prefix, has_bias=has_qkv_bias, fused_name=fused_name),
        output=sizes.attention_output(f"{prefix}{output_name}", has_bias=has_output_bias),
        rope=rope,
        scale=sizes.head_dim**-0.5 if scale is None else scale,
        q_norm=q_norm,
        k_norm=k_norm,
        head_norm=head_norm,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        query_scale=query_scale,
    )


def gated_mlp(
    prefix: str,
    hidden_size: int,
    inner_size: int,
    *,
    activation: str = "silu",
    has_bias: bool = False,
    fused_name: str | None = None,
) -> MLPSpec:
    """Gate, up and down with Llama's names; `prefix` is `model.layers.0.mlp.` or alike."""
    names = (fused_name,) if fused_name else ("gate_proj", "up_proj")
    return MLPSpec(
        up=LinearSpec(
            names=tuple(f"{prefix}{name}" for name in names),
            in_dim=hidden_size,
            out_dims=(inner_size, inner_size),
            has_bias=has_bias,
        ),
        down=LinearSpec(
            names=(f"{prefix}down_proj",),
            in_dim=inner_size,
            out_dims=(hidden_size,),
            has_bias=has_bias,
        ),
        activation=activation,
    )


def plain_mlp(
    names: tuple[str, str],
    hidden_size: int,
    inner_size: int,
    *,
    activation: str,
    has_bias: bool = True,
    encoding: Encoding | None = None,
) -> MLPSpec:
    """Up and down, called `names`, without a gate."""
    up, down = names
    return MLPSpec(
        up=LinearSpec(
            names=(up,),
            in_dim=hidden_size,
            out_dims=(inner_size,),
            has_bias=has_bias,
            encoding=encoding,
        ),
        down=LinearSpec(
            names=(down,),
            in_dim=inner_size,
            out_dims=(hidden_size,),
            has_bias=has_bias,
            encoding=encoding,
        ),
        activation=activation,
    )


def rms_norm(name: str, dim: int, epsilon: float) -> NormSpec:
    """The RMS norm of Llama."""
    return NormSpec(name=name, dim=dim, epsilon=epsilon)


def layer_norm(name: str, dim: int, epsilon: float) -> NormSpec:
    """A layer norm with a bias."""
    return NormSpec(name=name, dim=dim, epsilon=epsilon, kind="layer", has_bias=True)


def decoder_spec(
    config: ConfigFile,
    architecture: str,
    sizes: DecoderSizes,
    layers: Sequence[LayerSpec],
    *,
    final_norm: NormSpec,
    embedding_scale: float = 1.0,
    is_embedding_scale_rounded: bool = False,
    logit_scale: float = 1.0,
    logit_soft_cap: float | None = None,
    tie_by_default: bool = False,
    head_has_bias: bool = False,
    prefix: str = "model.",
    embedding_name: str = "embed_tokens",
    head_name: str = "lm_head",
) -> ModelSpec:
    """A decoder whose embedding and head have Llama's names, and the usual keys read."""
    tied = config.boolean("tie_word_embeddings", tie_by_default)
    head = LinearSpec(
        names=(head_name,),
        in_dim=sizes.hidden_size,
        out_dims=(sizes.vocab_size,),
        has_bias=head_has_bias,
    )
    return ModelSpec(
        architecture=architecture,
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        embedding=EmbeddingSpec(
            name=f"{prefix}{embedding_name}.weight",
            vocab_size=sizes.vocab_size,
            dim=sizes.hidden_size,
            scale=embedding_scale,
            is_scale_rounded=is_embedding_scale_rounded,
        ),
        layers=tuple(layers),
        final_norm=final_norm,
        lm_head=None if tied else head,
        tied_head=f"{head_name}.weight" if tied else None,
        logit_scale=logit_scale,
        logit_soft_cap=logit_soft_cap,
        max_position_embeddings=sizes.max_position_embeddings,
        base_prefix=prefix,
        checkpoint_dtype=read_dtype(config),
        bos_token_id=next(iter(config.token_ids("bos_token_id")), None),
        eos_token_ids=config.token_ids("eos_token_id"),
    )


def check_head_dim(config: ConfigFile, head_dim: int) -> None:
    """Raise ModelError for a head that the attention kernels do not take."""
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        raise ModelError(
            f"{config.name}: head_dim: expected a multiple of 8 up to {MAX_HEAD_DIM}, "
            f"found {head_dim}"
        )


def check_whole_heads(config: ConfigFile, sizes: DecoderSizes) -> None:
    """Raise ModelError where the heads together are not as wide as the hidden state."""
    if sizes.num_heads * sizes.head_dim != sizes.hidden_size:
        expected = f"heads of {sizes.head_dim} that fill a hidden_size of {sizes.hidden_size}"
        raise config.wrong("num_attention_heads", expected)


def refuse_true(config: ConfigFile, *keys: str) -> None:
    """Raise ModelError where one of `keys`, of things that are not served, is true."""
    for key in keys:
        if config.boolean(key, False):
            raise config.wrong(key, "false")


def read_activation(config: ConfigFile, key: str = "hidden_act", default: str = "silu") -> str:
    """The kind of `kernels.activations` that config.json names.

    Raises:
        ModelError: another activation.
    """
    name = config.string(key, default)
    if name not in ACTIVATIONS:
        raise config.wrong(key, f"one of {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def read_window(config: ConfigFile) -> int | None:
    """`sliding_window` of all layers; null or missing: none."""
    return config.integer("sliding_window") if config.has("sliding_window") else None


def read_layer_types(config: ConfigFile, num_layers: int, allowed: set[str]) -> tuple[str, ...]:
    """`layer_types`, one of `allowed` for each layer.

    Raises:
        ModelError: another number of them, or another type.
    """
    kinds = config.strings("layer_types")
    if len(kinds) != num_layers or not set(kinds) <= allowed:
        raise config.wrong("layer_types", f"{num_layers} of {' or '.join(sorted(allowed))}")
    return kinds


def windows_by_layer(config: ConfigFile, num_layers: int) -> tuple[int | None, ...]:
    """Qwen's way: `use_sliding_window`, then `layer_types` or `max_window_layers`."""
    use_window = config.boolean("use_sliding_window", False)
    window = config.integer("sliding_window") if use_window else None
    if not config.has("layer_types"):
        first = config.integer("max_window_layers", minimum=0) if use_window else num_layers
        return tuple(window if layer >= first else None for layer in range(num_layers))
    allowed = {"full_attention"} if window is None else {"full_attention", "sliding_attention"}
    kinds = read_layer_types(config, num_layers, allowed)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def read_dtype(config: ConfigFile) -> Dtype:
    """What config.json declares; float32 where it declares nothing."""
    key = "torch_dtype" if config.has("torch_dtype") and not config.has("dtype") else "dtype"
    match config.string(key, "float32"):
        case "float32" | "bfloat16" | "float16" as dtype:
            return dtype
    raise config.wrong(key, "float32, bfloat16 or float16")
