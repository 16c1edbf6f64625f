"""The supported architectures, one row each. No torch."""

from dataclasses import dataclass
from typing import Literal

from quire.config.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class SupportedArchitecture:
    """How one Hugging Face class differs from the others of the Llama family.

    A bias is True or False where the class fixes it, None where config.json's `attention_bias`
    or `mlp_bias` decides. `windows` says which layers attend within `sliding_window`:
    none, all, or those that `layer_types` or `max_window_layers` name.
    """

    name: str
    """The class in config.json's `architectures`."""
    example_repo_ids: tuple[str, ...]
    supported_encodings: tuple[str, ...] = ("bfloat16", "float32", "float16")
    """Formats of the weights in a checkpoint."""
    attention_bias: bool | None = False
    output_bias: bool | None = False
    mlp_bias: bool | None = False
    qk_norm: bool = False
    """RMS norm of each query and key head before the rotary embedding."""
    windows: Literal["none", "all", "by_layer"] = "none"
    default_head_dim: int | None = None
    """Where config.json has no `head_dim`; None: hidden_size / num_attention_heads."""


ARCHITECTURES = (
    SupportedArchitecture(
        name="LlamaForCausalLM",
        example_repo_ids=("meta-llama/Llama-3.1-8B-Instruct", "HuggingFaceTB/SmolLM2-135M"),
        attention_bias=None,
        output_bias=None,
        mlp_bias=None,
    ),
    SupportedArchitecture(
        name="Qwen2ForCausalLM",
        example_repo_ids=("Qwen/Qwen2.5-0.5B-Instruct",),
        attention_bias=True,
        windows="by_layer",
    ),
    SupportedArchitecture(
        name="Qwen3ForCausalLM",
        example_repo_ids=("Qwen/Qwen3-0.6B",),
        attention_bias=None,
        output_bias=None,
        qk_norm=True,
        windows="by_layer",
        default_head_dim=128,
    ),
    SupportedArchitecture(
        name="MistralForCausalLM",
        example_repo_ids=("mistralai/Mistral-7B-Instruct-v0.3",),
        windows="all",
    ),
)


def find_architecture(names: tuple[str, ...], source: str) -> SupportedArchitecture:
    """The row of the one class in `names`, the `architectures` of the file `source`.

    Raises:
        ModelError: not exactly one class, or one without a row.
    """
    for row in ARCHITECTURES:
        if names == (row.name,):
            return row
    supported = ", ".join(row.name for row in ARCHITECTURES)
    found = ", ".join(names) or "nothing"
    raise ModelError(f"{source}: architectures: expected one of {supported}, found {found}")
