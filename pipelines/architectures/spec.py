"""`ModelSpec`: everything Quire knows about a model before it reads a weight. No torch.

The spec owns the table of weight names and shapes: the loader checks a checkpoint against it
and the model asks for its weights by these names.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from quire.config.errors import ConfigError, ModelError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.registry import SupportedArchitecture, find_architecture
from quire.pipelines.architectures.rope_spec import RopeSpec, read_rope

Dtype = Literal["float32", "bfloat16", "float16"]

ITEM_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

MAX_HEAD_DIM = 256
"""The widest head the attention kernels take."""

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer of the Llama family.

    `attention_bias` is a bias on q, k and v, `output_bias` on the attention's output projection,
    `mlp_bias` on gate, up and down. `sliding_windows` has one entry per layer, None where the
    layer attends to everything before it.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope: RopeSpec
    tie_word_embeddings: bool
    attention_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]
    max_position_embeddings: int
    checkpoint_dtype: Dtype
    """What config.json declares; float32 where it declares nothing."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Of config.json and generation_config.json together."""

    def end_token_ids(self, tokenizer_eos: int | None) -> tuple[int, ...]:
        """`eos_token_ids` and the tokenizer's own: fine-tuned models often declare only that."""
        extra = () if tokenizer_eos is None else (tokenizer_eos,)
        return tuple(dict.fromkeys((*self.eos_token_ids, *extra)))

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Checkpoint name to shape of every weight, in the order the model uses them."""
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_layers):
            for name, shape in self._layer_shapes().items():
                shapes[f"{layer_prefix(layer)}{name}"] = shape
        shapes[FINAL_NORM] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes[LM_HEAD] = (self.vocab_size, self.hidden_size)
        return shapes

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
        for name, shape, has_bias in (
            ("self_attn.q_proj", (query, hidden), self.attention_bias),
            ("self_attn.k_proj", (key, hidden), self.attention_bias),
            ("self_attn.v_proj", (key, hidden), self.attention_bias),
            ("self_attn.o_proj", (hidden, query), self.output_bias),
            ("mlp.gate_proj", (inner, hidden), self.mlp_bias),
            ("mlp.up_proj", (inner, hidden), self.mlp_bias),
            ("mlp.down_proj", (hidden, inner), self.mlp_bias),
        ):
            shapes[f"{name}.weight"] = shape
            if has_bias:
                shapes[f"{name}.bias"] = shape[:1]
        if self.qk_norm:
            shapes["self_attn.q_norm.weight"] = (self.head_dim,)
            shapes["self_attn.k_norm.weight"] = (self.head_dim,)
        shapes["post_attention_layernorm.weight"] = (hidden,)
        return shapes

    @property
    def num_parameters(self) -> int:
        return sum(prod(shape) for shape in self.weight_shapes().values())

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of the weights on the device, each held once."""
        return self.num_parameters * ITEM_BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Bytes that one token's keys and values take in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * ITEM_BYTES[dtype]

    @property
    def longest_context(self) -> int:
        """The greatest `max_length` the rotary embedding is made for.

        Linear and dynamic scaling state the length before it in `max_position_embeddings`, and
        YaRN may.
        """
        factor = self.rope.factor
        match self.rope.kind:
            case "linear" | "dynamic":
                return int(self.max_position_embeddings * factor)
            case "yarn":
                scaled = int(self.rope.original_max_position * factor)
                return max(self.max_position_embeddings, scaled)
        return self.max_position_embeddings

    def flops_per_token(self, context_length: int) -> int:
        """Multiplications and additions of one decoded token after `context_length` others."""
        embedding = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        matmuls = 2 * (self.num_parameters - embedding)
        spans = (min(context_length, window or context_length) for window in self.sliding_windows)
        return matmuls + 4 * self.num_heads * self.head_dim * sum(spans)

    def serving_dtype(self, requested: str, device_type: str) -> Dtype:
        """The dtype of weights and activations for the setting `dtype` on `cpu` or `cuda`.

        `auto` keeps the checkpoint's, except float16 on a CPU, which has no fast float16 matmul:
        there it is float32, which holds every float16 exactly.

        Raises:
            ConfigError: float16 is asked for on a CPU.
        """
        match requested:
            case "float16" if device_type == "cpu":
                raise ConfigError("dtype float16 is not served on a CPU: use bfloat16 or float32")
            case "float32" | "bfloat16" | "float16":
                return requested
        if device_type == "cpu" and self.checkpoint_dtype == "float16":
            return "float32"
        return self.checkpoint_dtype


def layer_prefix(layer: int) -> str:
    """What the weight names of a layer begin with."""
    return f"model.layers.{layer}."


def load_model_spec(folder: Path) -> ModelSpec:
    """Read config.json, and generation_config.json where there is one.

    Raises:
        ModelError: a file or key is missing, mistyped or out of range, the architecture is not
            supported, or the checkpoint is quantized.
    """
    config = ConfigFile.read(folder / "config.json")
    row = find_architecture(config.strings("architectures"), config.name)
    if config.has("quantization_config"):
        raise config.wrong("quantization_config", "no quantization")
    if config.string("hidden_act", "silu") != "silu":
        raise config.wrong("hidden_act", "silu")
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", row.default_head_dim or hidden_size // num_heads)
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        raise ModelError(
            f"{config.name}: head_dim: expected a multiple of 8 up to {MAX_HEAD_DIM}, "
            f"found {head_dim}"
        )
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of {num_heads} attention heads")
    max_position_embeddings = config.integer("max_position_embeddings")
    attention_bias = config.boolean("attention_bias", False)
    return ModelSpec(
        architecture=row.name,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=config.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=config.integer("intermediate_size"),
        rms_norm_eps=config.number("rms_norm_eps"),
        rope=read_rope(config, head_dim=head_dim, max_position_embeddings=max_position_embeddings),
        tie_word_embeddings=config.boolean("tie_word_embeddings", False),
        attention_bias=attention_bias if row.attention_bias is None else row.attention_bias,
        output_bias=attention_bias if row.output_bias is None else row.output_bias,
        mlp_bias=config.boolean("mlp_bias", False) if row.mlp_bias is None else row.mlp_bias,
        qk_norm=row.qk_norm,
        sliding_windows=_sliding_windows(config, row),
        max_position_embeddings=max_position_embeddings,
        checkpoint_dtype=_checkpoint_dtype(config),
        bos_token_id=next(iter(config.token_ids("bos_token_id")), None),
        eos_token_ids=_eos_token_ids(config, folder),
    )


def _sliding_windows(config: ConfigFile, row: SupportedArchitecture) -> tuple[int | None, ...]:
    num_layers = config.integer("num_hidden_layers")
    if row.windows == "none":
        return (None,) * num_layers
    if row.windows == "all":
        if config.has("layer_types"):
            raise config.wrong("layer_types", f"nothing for {row.name}")
        # transformers reads a missing key as 4096 here, so only a written null means no window.
        no_window = config.is_null("sliding_window")
        window = None if no_window else config.integer("sliding_window")
        return (window,) * num_layers
    use_window = config.boolean("use_sliding_window", False)
    window = config.integer("sliding_window") if use_window else None
    if not config.has("layer_types"):
        first = config.integer("max_window_layers", minimum=0) if use_window else num_layers
        return tuple(window if layer >= first else None for layer in range(num_layers))
    kinds = config.strings("layer_types")
    allowed = {"full_attention"} if window is None else {"full_attention", "sliding_attention"}
    if len(kinds) != num_layers or not set(kinds) <= allowed:
        raise config.wrong("layer_types", f"{num_layers} of {' or '.join(sorted(allowed))}")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _checkpoint_dtype(config: ConfigFile) -> Dtype:
    key = "torch_dtype" if config.has("torch_dtype") and not config.has("dtype") else "dtype"
    match config.string(key, "float32"):
        case "float32" | "bfloat16" | "float16" as dtype:
            return dtype
    raise config.wrong(key, "float32, bfloat16 or float16")


def _eos_token_ids(config: ConfigFile, folder: Path) -> tuple[int, ...]:
    ids = list(config.token_ids("eos_token_id"))
    generation = folder / "generation_config.json"
    if generation.is_file():
        ids += ConfigFile.read(generation).token_ids("eos_token_id")
    return tuple(dict.fromkeys(ids))
