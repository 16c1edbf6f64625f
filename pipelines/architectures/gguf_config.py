"""The keys of a config.json, from the metadata of a GGUF file. No torch.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's `gguf-py/gguf/
constants.py`. A key of the architecture that is not read here is refused: it may change what the
model computes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.gguf_rope import rope_scaling, rotated_share
from quire.pipelines.architectures.gguf_settings import GgufSettings, Values
from quire.pipelines.weights.gguf_file import GgufFile
from quire.pipelines.weights.gguf_names import gguf_names

_ENDS_BY_KEY = ("eos_token_id", "eot_token_id", "eom_token_id")
ENDS_OF_TURN = frozenset(
    (
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<EOT>",
    )
)
"""What ends a reply, whatever type the file gives it, as in llama.cpp: some have it wrong, and files
name one end at most."""

_ENDS_OF_TEXT = frozenset(("<eos>", "</s>"))
"""The same where these are control tokens; others have them as the HTML that they look like."""

_CONTROL = 3
"""The token type of control tokens."""

_KEYS = frozenset(
    (
        "attention.causal",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "expert_count",
        "expert_used_count",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "vocab_size",
        # These say nothing that a decoder computes with.
        "pooling_type",
        "rope.scaling.finetuned",
        "tensor_data_layout",
    )
)


_OF_IMAGES = ("vision.", "mm.")
"""Beginnings of keys of a vision tower, whose tensors are refused where they are in the same file."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What one `general.architecture` is; `read` gives the keys that are its own."""

    read: Callable[[GgufSettings], Values]
    keys: frozenset[str] = frozenset()
    """Further keys that are read."""


def read_gguf_config(file: GgufFile) -> ConfigFile:
    """What config.json would say of the model in `file`.

    Raises:
        ModelError: a key is missing, wrong or not known, or the architecture is not supported.
    """
    gguf_names(file)
    model = GgufSettings(file, file.metadata.string("general.architecture"))
    row = _ROWS[model.architecture]
    if file.metadata.string("general.type", "model") != "model":
        raise file.metadata.wrong("general.type", "model")
    for key in file.metadata:
        prefix, _, name = key.partition(".")
        if name.startswith(_OF_IMAGES):
            continue
        if prefix == model.architecture and name not in _KEYS | row.keys:
            raise file.metadata.wrong(key, f"no such key of {prefix}")
    if not file.metadata.boolean(model.key("attention.causal"), True):
        raise model.wrong("attention.causal", "true")
    return ConfigFile(str(file.path), {**_common(model), **row.read(model)})


def _common(model: GgufSettings) -> Values:
    metadata = model.metadata
    head_dim = model.head_dim
    if model.integer("attention.value_length", head_dim) != head_dim:
        raise model.wrong("attention.value_length", f"{head_dim}, as attention.key_length")
    values: Values = {
        "dtype": _dtype(model.file),
        "head_dim": head_dim,
        "hidden_size": model.integer("embedding_length"),
        "intermediate_size": model.integer("feed_forward_length"),
        "max_position_embeddings": model.integer("context_length"),
        "num_attention_heads": model.heads,
        "num_hidden_layers": _num_layers(model),
        "num_key_value_heads": model.integer("attention.head_count_kv", model.heads),
        "rms_norm_eps": model.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": model.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": not model.has_tensor("output.weight"),
        "vocab_size": model.integer("vocab_size", _num_tokens(model)),
        "eos_token_id": _end_tokens(metadata),
    }
    if metadata.has("tokenizer.ggml.bos_token_id"):
        values["bos_token_id"] = metadata.integer("tokenizer.ggml.bos_token_id", minimum=0)
    share = rotated_share(model, head_dim)
    if share != 1.0:
        values["partial_rotary_factor"] = share
    scaling = rope_scaling(model)
    if scaling:
        values["rope_scaling"] = scaling
    if "original_max_position_embeddings" in scaling:
        values["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    return values


def _num_layers(model: GgufSettings) -> int:
    count, most = model.integer("block_count"), len(model.file.entries)
    if count > most:
        raise model.wrong("block_count", f"at most {most}, the number of tensors")
    return count


def _num_tokens(model: GgufSettings) -> int | None:
    """The length of the vocabulary; without one, what the embedding has rows for."""
    key = "tokenizer.ggml.tokens"
    if model.metadata.has(key):
        return len(model.metadata.strings(key))
    entry = model.file.entries.get("token_embd.weight")
    return None if entry is None else entry.shape[0]


def _end_tokens(metadata: ConfigFile) -> list[int]:
    keys = (f"tokenizer.ggml.{name}" for name in _ENDS_BY_KEY)
    ends = [metadata.integer(key, minimum=0) for key in keys if metadata.has(key)]
    if metadata.has("tokenizer.ggml.tokens") and metadata.has("tokenizer.ggml.token_type"):
        tokens = metadata.strings("tokenizer.ggml.tokens")
        kinds = metadata.numbers("tokenizer.ggml.token_type")
        ends += [
            id
            for id, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
            if token in ENDS_OF_TURN or (kind == _CONTROL and token in _ENDS_OF_TEXT)
        ]
    return list(dict.fromkeys(ends))


def _dtype(file: GgufFile) -> str:
    """Of the matrices' numbers; what was quantized, was bfloat16 before in nearly all models."""
    sizes: dict[str, int] = {}
    for entry in file.entries.values():
        if len(entry.shape) > 1:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.num_bytes
    most = max(sizes, key=lambda dtype: sizes[dtype], default="F32")
    return {"F32": "float32", "F16": "float16"}.get(most, "bfloat16")


def _no_experts(model: GgufSettings) -> None:
    for name in ("expert_count", "expert_used_count"):
        if model.integer(name, 0, minimum=0):
            raise model.wrong(name, "0")


def _no_window(model: GgufSettings) -> None:
    if model.window:
        raise model.wrong("attention.sliding_window", "0")


def _llama(model: GgufSettings) -> Values:
    """Llama, Mistral and Mixtral, which llama.cpp's converter gives one name."""
    if model.integer("expert_count", 0, minimum=0):
        return {
            "architectures": ["MixtralForCausalLM"],
            "num_local_experts": model.integer("expert_count"),
            "num_experts_per_tok": model.integer("expert_used_count"),
            **({"sliding_window": model.window} if model.window else {}),
        }
    if model.window:
        return {"architectures": ["MistralForCausalLM"], "sliding_window": model.window}
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": model.has_tensor("blk.0.attn_q.bias"),
        "mlp_bias": model.has_tensor("blk.0.ffn_up.bias"),
    }


def _qwen2(model: GgufSettings) -> Values:
    _no_experts(model)
    _no_window(model)
    return {"architectures": ["Qwen2ForCausalLM"]}


def _qwen3(model: GgufSettings) -> Values:
    _no_experts(model)
    _no_window(model)
    has_bias = model.has_tensor("blk.0.attn_q.bias")
    return {"architectures": ["Qwen3ForCausalLM"], "attention_bias": has_bias}


def _qwen3_moe(model: GgufSettings) -> Values:
    _no_window(model)
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": model.has_tensor("blk.0.attn_q.bias"),
        "num_experts": model.integer("expert_count"),
        "num_experts_per_tok": model.integer("expert_used_count"),
        "moe_intermediate_size": model.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _phi3(model: GgufSettings) -> Values:
    _no_experts(model)
    window = {"sliding_window": model.window} if model.window else {}
    return {"architectures": ["Phi3ForCausalLM"], **window}


def _gemma(model: GgufSettings) -> Values:
    _no_experts(model)
    _no_window(model)
    return {"architectures": ["GemmaForCausalLM"]}


def _gemma2(model: GgufSettings) -> Values:
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "sliding_window": model.integer("attention.sliding_window"),
        **_soft_caps(model),
        **_query_scale(model, unusual_depth=46),
    }


def _gemma3(model: GgufSettings) -> Values:
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "sliding_window": model.integer("attention.sliding_window"),
        "sliding_window_pattern": model.integer("attention.sliding_window_pattern", 6),
        "rope_local_base_freq": model.number("rope.freq_base_swa", 10000.0),
        **_soft_caps(model),
        **_query_scale(model, unusual_depth=62),
    }


def _soft_caps(model: GgufSettings) -> Values:
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    return {name: model.number(name) for name in names if model.has(name)}


def _query_scale(model: GgufSettings, *, unusual_depth: int) -> Values:
    # No key has it: llama.cpp too knows the models of 27B by their depth.
    is_unusual = model.integer("block_count") == unusual_depth
    scalar = model.integer("embedding_length") // model.heads if is_unusual else model.head_dim
    return {"query_pre_attn_scalar": scalar}


_SOFT_CAPS = frozenset(("attn_logit_softcapping", "final_logit_softcapping"))
_GEMMA3_KEYS = _SOFT_CAPS | {"attention.sliding_window_pattern", "rope.freq_base_swa"}

_ROWS: Mapping[str, _Row] = {
    "llama": _Row(read=_llama),
    "qwen2": _Row(read=_qwen2),
    "qwen3": _Row(read=_qwen3),
    "qwen3moe": _Row(read=_qwen3_moe, keys=frozenset(("expert_feed_forward_length",))),
    "phi3": _Row(read=_phi3, keys=frozenset(("rope.scaling.attn_factor",))),
    "gemma": _Row(read=_gemma),
    "gemma2": _Row(read=_gemma2, keys=_SOFT_CAPS),
    "gemma3": _Row(read=_gemma3, keys=_GEMMA3_KEYS),
}
"""By `general.architecture`; each has its names in `GGUF_NAMES`."""
