"""Quantized checkpoints that are not what config.json says: refused before a weight is read."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parity.driver import load_folder
from parity.families.quantized import METHODS
from parity.random_models import make_random_model
from safetensors.torch import load_file, save_file

from quire.config.errors import ConfigError, ModelError
from quire.pipelines.architectures.load import load_model_spec

UP = "model.layers.0.mlp.up_proj"
Change = Callable[[dict[str, torch.Tensor]], object]


def checkpoint(folder: Path, method: str) -> Path:
    model = make_random_model("Llama", num_hidden_layers=1, vocab_size=216)
    return METHODS[method].write(model, folder)


def drop(suffix: str) -> Change:
    return lambda state: state.pop(f"{UP}.{suffix}")


def put(suffix: str, tensor: torch.Tensor) -> Change:
    return lambda state: state.update({f"{UP}.{suffix}": tensor})


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("gptq", drop("qzeros"), r"qzeros: expected a tensor \[2, 12\], found nothing"),
        ("gptq", drop("scales"), "scales: expected a tensor"),
        ("gptq act order", drop("g_idx"), r"g_idx: expected a tensor \[64\], found nothing"),
        ("gptq", put("weight", torch.ones(96, 64)), "weight: expected no such tensor"),
        ("gptq", put("qweight", torch.ones(8, 96)), "qweight: expected dtype I32, found F32"),
        (
            "awq",
            put("qweight", torch.ones(8, 96, dtype=torch.int32)),
            r"qweight: expected shape \[64, 12\], found \[8, 96\]",
        ),
        ("fp8 compressed static", drop("weight_scale"), "weight_scale: expected a tensor"),
        ("fp8 compressed static", drop("input_scale"), "input_scale: expected a tensor"),
        ("fp8 static", drop("input_scale"), f"{UP}: expected input_scale or activation_scale"),
        (
            "fp8 blocks",
            put("weight", torch.ones(96, 64).bfloat16()),
            "weight: expected dtype F8_E4M3, found BF16",
        ),
        ("fp8 blocks", drop("weight_scale_inv"), "weight_scale_inv: expected a tensor"),
        ("nvfp4", drop("weight_scale_2"), "weight_scale_2: expected a tensor"),
        ("mxfp4 compressed", drop("weight_scale"), "weight_scale: expected a tensor"),
    ],
)
def test_a_tensor_that_is_missing_or_other_is_named(
    method: str, change: Change, message: str, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path, method) / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)

    with pytest.raises(ModelError, match=message):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("method", "suffix", "number"),
    [
        ("gptq", "scales", math.nan),
        ("awq", "scales", math.inf),
        ("int4 compressed", "weight_scale", math.nan),
        ("fp8 blocks", "weight_scale_inv", math.inf),
        ("nvfp4", "weight_scale_2", math.nan),
        ("fp8 static", "input_scale", math.nan),
        (None, "weight", math.nan),
        (None, "weight", -math.inf),
    ],
)
def test_a_number_that_is_not_finite_is_refused_with_file_and_tensor(
    method: str | None, suffix: str, number: float, tmp_path: Path
) -> None:
    if method is None:
        make_random_model("Llama", num_hidden_layers=1).save_pretrained(tmp_path)
    else:
        checkpoint(tmp_path, method)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state[f"{UP}.{suffix}"].view(-1)[-1] = number
    save_file(state, path)

    with pytest.raises(ModelError, match=f"{path}: {UP}.{suffix}: expected finite values, found"):
        load_folder(tmp_path)


def test_sizes_that_have_no_whole_groups_are_refused_with_the_file(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "gptq") / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["group_size"] = 128
    path.write_text(json.dumps(config))

    with pytest.raises(
        ModelError,
        match=r"config.json: quantization_config: .*layers.0.self_attn.q_proj: .*groups of 128 in 64",
    ):
        load_model_spec(tmp_path)


def test_quantizing_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantization fp8: expected a checkpoint of plain num"):
        load_folder(checkpoint(tmp_path, "awq"), quantization="fp8")
