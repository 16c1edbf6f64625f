"""The supported architectures, one row each. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from quire.config.errors import ModelError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.llama import read_llama
from quire.pipelines.architectures.mistral import read_mistral
from quire.pipelines.architectures.qwen2 import read_qwen2
from quire.pipelines.architectures.qwen3 import read_qwen3
from quire.pipelines.architectures.spec import ModelSpec

Task = Literal["text_generation", "embeddings_generation"]


@dataclass(frozen=True, kw_only=True)
class SupportedArchitecture:
    """A Hugging Face class that Quire serves, and the function that reads its config.json."""

    name: str
    """The class in config.json's `architectures`."""
    example_repo_ids: tuple[str, ...]
    read: Callable[[ConfigFile], ModelSpec]
    task: Task = "text_generation"


ARCHITECTURES = (
    SupportedArchitecture(
        name="LlamaForCausalLM",
        example_repo_ids=("meta-llama/Llama-3.1-8B-Instruct", "HuggingFaceTB/SmolLM2-135M"),
        read=read_llama,
    ),
    SupportedArchitecture(
        name="Qwen2ForCausalLM",
        example_repo_ids=("Qwen/Qwen2.5-0.5B-Instruct",),
        read=read_qwen2,
    ),
    SupportedArchitecture(
        name="Qwen3ForCausalLM",
        example_repo_ids=("Qwen/Qwen3-0.6B",),
        read=read_qwen3,
    ),
    SupportedArchitecture(
        name="MistralForCausalLM",
        example_repo_ids=("mistralai/Mistral-7B-Instruct-v0.3",),
        read=read_mistral,
    ),
)


def find_architecture(
    names: tuple[str, ...], source: str, rows: Sequence[SupportedArchitecture] = ARCHITECTURES
) -> SupportedArchitecture:
    """The row of the one class in `names`, the `architectures` of the file `source`.

    Raises:
        ModelError: not exactly one class, or one without a row.
    """
    for row in rows:
        if names == (row.name,):
            return row
    supported = ", ".join(row.name for row in rows)
    found = ", ".join(names) or "nothing"
    raise ModelError(f"{source}: architectures: expected one of {supported}, found {found}")
