"""The supported architectures, one row each. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quire.config.errors import ModelError
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.deepseek import (
    read_deepseek_v2,
    read_deepseek_v3,
    read_glm4_moe_lite,
)
from quire.pipelines.architectures.encoder_registry import find_encoder
from quire.pipelines.architectures.exaone4 import read_exaone4
from quire.pipelines.architectures.gemma import read_gemma
from quire.pipelines.architectures.gemma2 import read_gemma2
from quire.pipelines.architectures.gemma3 import read_gemma3, read_gemma3_multimodal
from quire.pipelines.architectures.glm import read_glm, read_glm4
from quire.pipelines.architectures.gpt2 import read_gpt2
from quire.pipelines.architectures.gpt_neox import read_gpt_neox
from quire.pipelines.architectures.gpt_oss import read_gpt_oss
from quire.pipelines.architectures.granite import read_granite
from quire.pipelines.architectures.llama import read_llama
from quire.pipelines.architectures.llama4 import read_llama4, read_llama4_multimodal
from quire.pipelines.architectures.minicpm3 import read_minicpm3
from quire.pipelines.architectures.ministral3 import read_ministral3
from quire.pipelines.architectures.mistral import read_ministral, read_mistral
from quire.pipelines.architectures.mistral3 import read_mistral3
from quire.pipelines.architectures.mixtral import read_mixtral
from quire.pipelines.architectures.olmo2 import read_olmo2
from quire.pipelines.architectures.olmo3 import read_olmo3
from quire.pipelines.architectures.phi import read_phi
from quire.pipelines.architectures.phi3 import read_phi3
from quire.pipelines.architectures.qwen2 import read_qwen2
from quire.pipelines.architectures.qwen2_moe import read_qwen2_moe
from quire.pipelines.architectures.qwen3 import read_qwen3
from quire.pipelines.architectures.qwen3_moe import read_qwen3_moe
from quire.pipelines.architectures.smollm3 import read_smollm3
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.architectures.stablelm import read_stablelm
from quire.pipelines.architectures.starcoder2 import read_starcoder2
from quire.pipelines.architectures.youtu import read_youtu

ANY_NAME = "*"
"""The name of a row that takes any class."""

Task = Literal["text_generation", "embeddings_generation"]


@dataclass(frozen=True, kw_only=True)
class SupportedArchitecture:
    """A Hugging Face class that Quire serves, and the function that reads its config.json.

    `build` makes a model that is wholly its own instead of the layers that the spec describes. It
    is called as `architectures.build.build_decoder` is, in the worker process only, takes every
    weight of the spec from the loader, and returns a `worker.runner.Decoder`.
    """

    name: str
    """The class in config.json's `architectures`."""
    example_repo_ids: tuple[str, ...]
    read: Callable[[ConfigFile], ModelSpec]
    task: Task = "text_generation"
    build: Callable[..., Any] | None = None


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
    SupportedArchitecture(
        name="MixtralForCausalLM",
        example_repo_ids=("mistralai/Mixtral-8x7B-Instruct-v0.1",),
        read=read_mixtral,
    ),
    SupportedArchitecture(
        name="Qwen2MoeForCausalLM",
        example_repo_ids=("Qwen/Qwen1.5-MoE-A2.7B-Chat",),
        read=read_qwen2_moe,
    ),
    SupportedArchitecture(
        name="Qwen3MoeForCausalLM",
        example_repo_ids=("Qwen/Qwen3-30B-A3B",),
        read=read_qwen3_moe,
    ),
    SupportedArchitecture(
        name="GptOssForCausalLM",
        example_repo_ids=("openai/gpt-oss-20b",),
        read=read_gpt_oss,
    ),
    SupportedArchitecture(
        name="Llama4ForCausalLM",
        example_repo_ids=("meta-llama/Llama-4-Scout-17B-16E-Instruct",),
        read=read_llama4,
    ),
    SupportedArchitecture(
        name="Llama4ForConditionalGeneration",
        example_repo_ids=(
            "meta-llama/Llama-4-Scout-17B-16E-Instruct",
            "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
        ),
        read=read_llama4_multimodal,
    ),
    SupportedArchitecture(
        name="Phi3ForCausalLM",
        example_repo_ids=("microsoft/Phi-4-mini-instruct", "microsoft/phi-4"),
        read=read_phi3,
    ),
    SupportedArchitecture(
        name="PhiForCausalLM",
        example_repo_ids=("microsoft/phi-2",),
        read=read_phi,
    ),
    SupportedArchitecture(
        name="StableLmForCausalLM",
        example_repo_ids=("stabilityai/stablelm-2-1_6b-chat", "stabilityai/stablelm-2-12b-chat"),
        read=read_stablelm,
    ),
    SupportedArchitecture(
        name="GPT2LMHeadModel",
        example_repo_ids=("openai-community/gpt2", "distilbert/distilgpt2"),
        read=read_gpt2,
    ),
    SupportedArchitecture(
        name="GPTNeoXForCausalLM",
        example_repo_ids=("EleutherAI/pythia-160m",),
        read=read_gpt_neox,
    ),
    SupportedArchitecture(
        name="GlmForCausalLM",
        example_repo_ids=("zai-org/glm-4-9b-chat-hf",),
        read=read_glm,
    ),
    SupportedArchitecture(
        name="Glm4ForCausalLM",
        example_repo_ids=("zai-org/GLM-4-9B-0414",),
        read=read_glm4,
    ),
    SupportedArchitecture(
        name="Starcoder2ForCausalLM",
        example_repo_ids=("bigcode/starcoder2-3b",),
        read=read_starcoder2,
    ),
    SupportedArchitecture(
        name="DeepseekV2ForCausalLM",
        example_repo_ids=("deepseek-ai/DeepSeek-V2-Lite-Chat", "deepseek-ai/DeepSeek-V2"),
        read=read_deepseek_v2,
    ),
    SupportedArchitecture(
        name="DeepseekV3ForCausalLM",
        example_repo_ids=("deepseek-ai/DeepSeek-V3", "deepseek-ai/DeepSeek-R1"),
        read=read_deepseek_v3,
    ),
    SupportedArchitecture(
        name="Glm4MoeLiteForCausalLM",
        example_repo_ids=("zai-org/GLM-4.7-Flash",),
        read=read_glm4_moe_lite,
    ),
    SupportedArchitecture(
        name="MiniCPM3ForCausalLM",
        example_repo_ids=("openbmb/MiniCPM3-4B",),
        read=read_minicpm3,
    ),
    SupportedArchitecture(
        name="YoutuForCausalLM",
        example_repo_ids=("tencent/Youtu-LLM-2B",),
        read=read_youtu,
    ),
    SupportedArchitecture(
        name="GemmaForCausalLM",
        example_repo_ids=("google/gemma-2b-it",),
        read=read_gemma,
    ),
    SupportedArchitecture(
        name="Gemma2ForCausalLM",
        example_repo_ids=("google/gemma-2-2b-it",),
        read=read_gemma2,
    ),
    SupportedArchitecture(
        name="Gemma3ForCausalLM",
        example_repo_ids=("google/gemma-3-1b-it",),
        read=read_gemma3,
    ),
    SupportedArchitecture(
        name="Gemma3ForConditionalGeneration",
        example_repo_ids=("google/gemma-3-4b-it",),
        read=read_gemma3_multimodal,
    ),
    SupportedArchitecture(
        name="Olmo2ForCausalLM",
        example_repo_ids=("allenai/OLMo-2-1124-7B-Instruct",),
        read=read_olmo2,
    ),
    SupportedArchitecture(
        name="Olmo3ForCausalLM",
        example_repo_ids=("allenai/Olmo-3-7B-Instruct",),
        read=read_olmo3,
    ),
    SupportedArchitecture(
        name="GraniteForCausalLM",
        example_repo_ids=("ibm-granite/granite-3.3-2b-instruct",),
        read=read_granite,
    ),
    SupportedArchitecture(
        name="SmolLM3ForCausalLM",
        example_repo_ids=("HuggingFaceTB/SmolLM3-3B",),
        read=read_smollm3,
    ),
    SupportedArchitecture(
        name="Exaone4ForCausalLM",
        example_repo_ids=("LGAI-EXAONE/EXAONE-4.0-1.2B", "LGAI-EXAONE/EXAONE-4.0-32B"),
        read=read_exaone4,
    ),
    SupportedArchitecture(
        name="MinistralForCausalLM",
        example_repo_ids=("mistralai/Ministral-8B-Instruct-2410",),
        read=read_ministral,
    ),
    SupportedArchitecture(
        name="Ministral3ForCausalLM",
        example_repo_ids=("mistralai/Ministral-3-8B-Base-2512",),
        read=read_ministral3,
    ),
    SupportedArchitecture(
        name="Mistral3ForConditionalGeneration",
        example_repo_ids=("mistralai/Mistral-Small-3.1-24B-Instruct-2503",),
        read=read_mistral3,
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
        if names == (row.name,) or (row.name == ANY_NAME and len(names) == 1):
            return row
    if find_encoder(names) is not None:
        raise ModelError(
            f"{source}: architectures: {names[0]} makes embeddings and generates no text: quire encode, "
            "or quire serve and POST /v1/embeddings"
        )
    supported = ", ".join(row.name for row in rows)
    found = ", ".join(names) or "nothing"
    raise ModelError(
        f"{source}: architectures: expected one of {supported}, found {found}; --engine huggingface "
        "serves what else transformers knows, slower"
    )
