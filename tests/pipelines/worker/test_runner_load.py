"""Loading: devices, dtypes, phases, the self-test, and what a container allows."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from quire.config.errors import ConfigError, ModelError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.worker import host
from quire.pipelines.worker.load import LoadedModel, find_device, load_runner


def reload(folder: Path, phases: list[tuple[str, float]], **settings: Any) -> LoadedModel:
    values = {"device": "cpu", "threads": 1, "kv_cache_pages": 16, **settings}
    return load_runner(
        ModelSettings.model_validate(values),
        folder,
        load_model_spec(folder),
        lambda phase, fraction: phases.append((phase, fraction)),
    )


@pytest.fixture
def folder(random_model: Callable[..., Any], tmp_path: Path) -> Path:
    random_model("Llama").save_pretrained(tmp_path)
    return tmp_path


def test_a_loaded_model_says_what_it_is_and_reports_its_phases(folder: Path) -> None:
    phases: list[tuple[str, float]] = []

    loaded = reload(folder, phases, page_size=16, max_length=50)

    assert (loaded.device, loaded.dtype) == ("cpu", "float32")
    assert (loaded.max_length, loaded.num_pages) == (50, 16)
    assert torch.get_num_threads() == 1
    assert torch.get_num_interop_threads() == 1
    weights = [fraction for phase, fraction in phases if phase == "weights"]
    assert weights == sorted(weights)
    assert weights[-1] == 1.0
    assert phases[-3:] == [("kv_cache", 0.0), ("self_test", 0.0), ("self_test", 1.0)]


def test_the_self_test_leaves_clean_pages(folder: Path) -> None:
    loaded = reload(folder, [])

    storage = loaded.runner._storage
    assert all(not layer.k.any() and not layer.v.any() for layer in storage.layers)


@pytest.mark.parametrize("fields", [{"max_length": 2}, {"max_length": 3}, {"page_size": 128}])
def test_the_self_test_fits_the_smallest_limits(folder: Path, fields: dict[str, int]) -> None:
    assert reload(folder, [], **fields).num_pages == 16


def test_a_model_that_computes_nan_is_refused_before_it_serves(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"].fill_(3e38)
    save_file(tensors, path)

    with pytest.raises(ModelError, match="self-test in float32: expected finite logits, found NaN"):
        reload(folder, [])


def test_nothing_is_loaded_when_the_plan_does_not_fit(folder: Path) -> None:
    phases: list[tuple[str, float]] = []

    with pytest.raises(ConfigError, match="kv_cache_pages 1000000000 is"):
        reload(folder, phases, kv_cache_pages=10**9)

    assert phases == []


def test_the_dtype_of_the_settings_wins_over_the_checkpoints(folder: Path) -> None:
    assert reload(folder, [], dtype="bfloat16").dtype == "bfloat16"


def test_float16_checkpoints_run_in_float32_on_a_cpu(
    random_model: Callable[..., Any], tmp_path: Path
) -> None:
    random_model("Qwen3").half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"

    assert reload(tmp_path, []).dtype == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_named() -> None:
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device: cuda:3 is not there; 0 CUDA devices"):
        find_device("cuda:3")


def test_limits_of_the_container_bound_cores_and_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    cores = len(os.sched_getaffinity(0))
    free = psutil.virtual_memory().available
    assert host.available_cores() == cores
    assert host.available_memory() == pytest.approx(free, rel=0.2)

    for name, text in (
        ("cpu.max", "max 100000\n"),
        ("memory.max", "max\n"),
        ("memory.current", "1000\n"),
    ):
        (tmp_path / name).write_text(text)
    assert host.available_cores() == cores
    assert host.available_memory() == pytest.approx(free, rel=0.2)

    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("9000\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 300\n")
    assert host.available_cores() == 1
    assert host.available_memory() == 9000 - 1000 + 300
