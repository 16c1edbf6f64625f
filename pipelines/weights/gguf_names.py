"""GGUF's tensor names and layouts, and those of Hugging Face's checkpoints. No torch.

As llama.cpp's converter writes them (https://github.com/ggml-org/llama.cpp, `gguf-py/gguf/
tensor_mapping.py` and `convert_hf_to_gguf.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from quire.pipelines.weights.gguf_file import GgufFile
from quire.pipelines.weights.tensor_entry import TensorEntry

_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(\w+)\.(weight|bias)")

_OUTER: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "output.bias": "lm_head.bias",
}
_LLAMA_BLOCK: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS: Mapping[str, str] = {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_EXPERTS: Mapping[str, str] = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
    "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj",
}
_MIXTRAL_EXPERTS: Mapping[str, str] = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{expert}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{expert}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{expert}.w2",
}
_GEMMA_NORMS: Mapping[str, str] = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

ROPE_FACTORS = "rope_freqs.weight"
"""What each pair's frequency is divided by (Llama 3.1)."""
LONG_FACTORS = "rope_factors_long.weight"
SHORT_FACTORS = "rope_factors_short.weight"
"""The same for long and for short contexts (LongRoPE)."""


@dataclass(frozen=True, kw_only=True)
class GgufNames:
    """One architecture's tensors.

    `block` has what follows `blk.0.`, without `.weight` or `.bias`; `{expert}` stands in the names
    of experts, whose matrices GGUF stacks. Rows of `rotated` modules are
    stored with the two halves of each head interleaved. `norm_offset` was added to the weights of
    norms. `settings` are read with the configuration and are no weights of a layer.
    """

    block: Mapping[str, str]
    outer: Mapping[str, str] = field(default_factory=lambda: _OUTER)
    rotated: tuple[str, ...] = ()
    norm_offset: float = 0.0
    settings: tuple[str, ...] = ()

    def to_hugging_face(self, name: str) -> str:
        """The checkpoint's name of the tensor that GGUF calls `name`, or `name` if it has none."""
        if name in self.outer:
            return self.outer[name]
        match = _BLOCK.fullmatch(name)
        if match is None or match[2] not in self.block:
            return name
        return f"model.layers.{match[1]}.{self.block[match[2]]}.{match[3]}"

    def is_rotated(self, name: str) -> bool:
        """Whether the rows of the tensor that GGUF calls `name` are interleaved."""
        match = _BLOCK.fullmatch(name)
        return match is not None and match[2] in self.rotated

    def is_offset(self, name: str) -> bool:
        """Whether `norm_offset` was added to the tensor that GGUF calls `name`."""
        return self.norm_offset != 0.0 and name.endswith("_norm.weight")


GGUF_NAMES: Mapping[str, GgufNames] = {
    "llama": GgufNames(
        block={**_LLAMA_BLOCK, **_MIXTRAL_EXPERTS},
        rotated=("attn_q", "attn_k"),
        settings=(ROPE_FACTORS,),
    ),
    "qwen2": GgufNames(block=_LLAMA_BLOCK),
    "qwen3": GgufNames(block={**_LLAMA_BLOCK, **_HEAD_NORMS}),
    "qwen3moe": GgufNames(block={**_LLAMA_BLOCK, **_HEAD_NORMS, **_EXPERTS}),
    "phi3": GgufNames(
        block={
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        settings=(LONG_FACTORS, SHORT_FACTORS),
    ),
    "gemma": GgufNames(block=_LLAMA_BLOCK, norm_offset=1.0),
    "gemma2": GgufNames(block={**_LLAMA_BLOCK, **_GEMMA_NORMS}, norm_offset=1.0),
    "gemma3": GgufNames(block={**_LLAMA_BLOCK, **_GEMMA_NORMS, **_HEAD_NORMS}, norm_offset=1.0),
}
"""By `general.architecture`."""


def gguf_names(file: GgufFile) -> GgufNames:
    """The tensor names of the architecture of `file`.

    Raises:
        ModelError: it is not supported.
    """
    architecture = file.metadata.string("general.architecture")
    if architecture not in GGUF_NAMES:
        raise file.metadata.wrong("general.architecture", f"one of {', '.join(GGUF_NAMES)}")
    return GGUF_NAMES[architecture]


def hugging_face_entries(file: GgufFile) -> dict[str, TensorEntry]:
    """The file's weights by their checkpoint names; stacked experts one by one.

    Raises:
        ModelError: the architecture is not supported.
    """
    names = gguf_names(file)
    found: dict[str, TensorEntry] = {}
    for name, entry in file.entries.items():
        if name in names.settings:
            continue
        for index, part in enumerate(_experts(entry)):
            found[names.to_hugging_face(name).replace("{expert}", str(index))] = part
    return found


def _experts(entry: TensorEntry) -> tuple[TensorEntry, ...]:
    if len(entry.shape) != 3:
        return (entry,)
    count, *shape = entry.shape
    size = entry.num_bytes // count
    starts = range(entry.begin, entry.end, size)
    return tuple(
        TensorEntry(entry.path, entry.name, entry.dtype, tuple(shape), start, start + size)
        for start in starts
    )
