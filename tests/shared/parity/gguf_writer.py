"""Writes transformers models as GGUF files, in the layout that llama.cpp's converter gives them.

Names, metadata keys, quantization and the file itself come from the `gguf` package.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as GgmlType

from quire.kernels.gguf.cases import random_blocks

ARCHITECTURES: Mapping[str, gguf.MODEL_ARCH] = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
"""By transformers' model_type."""

Chooser = Callable[[str], GgmlType]
"""From a tensor's GGUF name to the type it is stored as."""

_QUANTIZED_BY_PACKAGE = (
    *(GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.Q5_0, GgmlType.Q5_1, GgmlType.Q8_0),
    *(GgmlType.F16, GgmlType.BF16),
)


def all_of(kind: str) -> Chooser:
    """Every matrix as `kind`."""
    return lambda name: GgmlType[kind]


def mixed(name: str) -> GgmlType:
    """As Q4_K_M: more bits for values, for what leads out of the MLP, and for the embedding."""
    if any(part in name for part in ("attn_v", "ffn_down", "token_embd", "output.")):
        return GgmlType.Q6_K
    return GgmlType.Q5_K if "attn_k" in name else GgmlType.Q4_K


def mixed_small(name: str) -> GgmlType:
    """As Q4_K_M where rows are no multiple of 256: K types fall back to others."""
    if any(part in name for part in ("attn_v", "ffn_down", "token_embd", "output.")):
        return GgmlType.Q8_0
    return GgmlType.Q5_1 if "attn_k" in name else GgmlType.Q5_0


def write_gguf(
    model: transformers.PreTrainedModel,
    path: Path,
    choose: Chooser,
    *,
    tokenizer: Callable[[gguf.GGUFWriter], None] | None = None,
    edit: Callable[[gguf.GGUFWriter], None] | None = None,
    split_max_tensors: int = 0,
) -> Path:
    """`path`, with the model, which is given the numbers that the file stands for.

    `tokenizer` and `edit` add metadata. Quantizers that the package does not have are replaced by
    random blocks: a model with random weights loses nothing.
    """
    arch = ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch], split_max_tensors=split_max_tensors)
    _add_config(writer, model.config)
    for hook in (tokenizer, edit):
        if hook is not None:
            hook(writer)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for hf_name, tensor in _weights(model):
            name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
            assert name is not None, hf_name
            _add_tensor(writer, model.config, name, tensor, choose, generator)
    for name, factors in _rope_factors(model.config).items():
        writer.add_tensor(name, factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(model: transformers.PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Views into the model by the names of its checkpoints; experts stacked as [E, N, K]."""
    tied = model.config.tie_word_embeddings
    is_mixtral = model.config.model_type == "mixtral"
    gate, up, down = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        if is_mixtral:
            name = name.replace(".mlp.", ".block_sparse_moe.")
        prefix, is_experts, projection = name.partition(".experts.")
        if not is_experts:
            yield name, tensor
        elif projection == "down_proj":
            yield f"{prefix}.experts.{down}.weight", tensor
        else:
            for part, half in zip((gate, up), tensor.chunk(2, dim=1), strict=True):
                yield f"{prefix}.experts.{part}.weight", half


def _add_tensor(
    writer: gguf.GGUFWriter,
    config: Any,
    name: str,
    tensor: torch.Tensor,
    choose: Chooser,
    generator: torch.Generator,
) -> None:
    is_kept = tensor.ndim == 1 or "ffn_gate_inp" in name
    kind = GgmlType.F32 if is_kept else choose(name)
    if kind == GgmlType.F32:
        data = tensor.numpy().copy()
    elif kind in _QUANTIZED_BY_PACKAGE:
        data = gguf.quants.quantize(tensor.numpy(), kind)
    else:
        rows = tensor.flatten(0, -2)
        blocks = random_blocks(len(rows), rows.shape[1], kind.name, generator)
        data = blocks.view(*tensor.shape[:-1], -1).numpy()
    if kind != GgmlType.F32:
        tensor.copy_(torch.from_numpy(gguf.quants.dequantize(data, kind)))
    if name.endswith("_norm.weight") and config.model_type.startswith("gemma"):
        data = data + np.float32(1)
    if writer.arch == "llama" and (".attn_q." in name or ".attn_k." in name):
        is_query = ".attn_q." in name
        data = _interleaved(
            data, config.num_attention_heads if is_query else config.num_key_value_heads
        )
    writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=kind)


def _interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The two halves of each head's rows, one row of each in turn."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _add_config(writer: gguf.GGUFWriter, config: Any) -> None:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if getattr(config, "num_local_experts", None):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if getattr(config, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    _add_rope(writer, config, head_dim)


def _add_rope(writer: gguf.GGUFWriter, config: Any, head_dim: int) -> None:
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    original = rope.get("original_max_position_embeddings")
    match rope["rope_type"]:
        case "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        case "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(original)
        case "longrope":
            scale = config.max_position_embeddings / original
            writer.add_rope_scaling_orig_ctx_len(original)
            writer.add_rope_scaling_attn_factors(
                math.sqrt(1 + math.log(scale) / math.log(original))
            )


def _rope_factors(config: Any) -> dict[str, np.ndarray]:
    """The tensors of factors for each pair, by their names."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        kinds = ("long", "short")
        return {
            f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], np.float32)
            for kind in kinds
        }
    if rope.get("rope_type") == "llama3":
        head_dim = config.head_dim
        plain = rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
        compute = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"]
        scaled, _ = compute(config, torch.device("cpu"))
        return {"rope_freqs.weight": (plain / scaled.double().numpy()).astype(np.float32)}
    return {}
