"""A key that config.json leaves out means the default of transformers' class, or is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError
from parity.families.deepseek import GROUPS, LATENT
from parity.families.llama import LONGROPE
from parity.families.llama_like import MINISTRAL3
from parity.random_models import SIZES

from quire.config.errors import ModelError
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.spec import ModelSpec

PLAIN = (
    *("Llama", "Qwen2", "Qwen3", "Mistral", "Ministral", "Gemma", "Gemma2", "Gemma3", "Phi"),
    *("StableLm", "Glm", "Glm4", "Starcoder2", "Olmo2", "Olmo3", "Granite", "SmolLM3"),
    *("Exaone4", "GPT2"),
)
FAMILIES: dict[str, dict[str, Any]] = {
    **{family: {} for family in PLAIN},
    "Phi3": {
        "original_max_position_embeddings": 40,
        "rope_parameters": {**LONGROPE, "rope_theta": 1e4},
    },
    "GPTNeoX": {"num_key_value_heads": 4},
    "Ministral3": dict(MINISTRAL3),
    "DeepseekV2": {**LATENT, **GROUPS},
    "DeepseekV3": {**LATENT, **GROUPS},
    "Glm4MoeLite": {**LATENT, **GROUPS},
    "MiniCPM3": LATENT,
    "Youtu": LATENT,
}
CONFIG_CLASSES = {"Gemma3": "Gemma3TextConfig"}
MODEL_CLASSES = {"GPT2": "GPT2LMHeadModel"}


def read(folder: Path, config: dict[str, Any]) -> ModelSpec | None:
    """None: refused."""
    (folder / "config.json").write_text(json.dumps(config))
    try:
        spec = load_model_spec(folder)
    except ModelError:
        return None
    # The tokenizer's count beside the configuration's, so defaults of these do not matter.
    return dataclasses.replace(spec, bos_token_id=None, eos_token_ids=())


def as_transformers_reads(config_class: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """The whole configuration, with every default written; None: refused."""
    try:
        found = getattr(transformers, config_class).from_dict(json.loads(json.dumps(config)))
    except StrictDataclassError:
        return None
    return {**json.loads(json.dumps(found.to_dict())), "architectures": config["architectures"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_key_is_the_default_of_transformers(family: str, tmp_path: Path) -> None:
    config_class = CONFIG_CLASSES.get(family, f"{family}Config")
    names = [MODEL_CLASSES.get(family, f"{family}ForCausalLM")]
    fields = {**SIZES, "pad_token_id": 0, **FAMILIES[family], "architectures": names}
    whole = as_transformers_reads(config_class, fields)
    assert whole is not None
    assert read(tmp_path, whole) is not None

    for key in whole.keys() - {"architectures"}:
        config = {name: value for name, value in whole.items() if name != key}
        spec, written = read(tmp_path, config), as_transformers_reads(config_class, config)
        if spec is None or written is None:
            continue
        expected = read(tmp_path, written)
        # Other shapes than the checkpoint's are refused when it is loaded.
        if expected is not None and spec.tensors() == expected.tensors():
            assert spec == expected, key
