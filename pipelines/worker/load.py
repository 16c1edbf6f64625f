"""From settings and a model folder to a runner that has generated its first tokens."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from quire.config.errors import ConfigError, ModelError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.build import build_decoder
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.plan import PlanRow, StepPlan
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.kv_cache.memory_plan import MemoryPlan, plan_memory
from quire.pipelines.kv_cache.params import KVCacheParams
from quire.pipelines.kv_cache.storage import KVCacheStorage
from quire.pipelines.weights.checkpoint import load_weights, match_weights
from quire.pipelines.weights.loader import WeightLoader
from quire.pipelines.worker.host import available_cores, available_memory
from quire.pipelines.worker.runner import TorchModelRunner

SELF_TEST_PROMPT_TOKENS = 5
SELF_TEST_NEW_TOKENS = 3
"""Together they fit into the smallest page."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run."""

    runner: TorchModelRunner
    spec: ModelSpec
    plan: MemoryPlan
    device: str
    dtype: str

    @property
    def max_length(self) -> int:
        """Prompt plus output tokens of one request."""
        return self.plan.max_length

    @property
    def num_pages(self) -> int:
        return self.plan.num_pages


def load_runner(
    settings: ModelSettings, folder: Path, spec: ModelSpec, progress: Progress
) -> LoadedModel:
    """Check the folder, plan the memory, load, and generate a few tokens.

    Sets the process's number of torch threads. `progress` gets a phase (weights, kv_cache,
    self_test) and the fraction of it that is done, 0..1.

    Raises:
        ModelError: a weight is missing or wrong, or the model gives logits that are not finite.
        ConfigError: the settings do not fit the model or the device.
    """
    device = find_device(settings.device)
    dtype = spec.serving_dtype(settings.dtype, device.type)
    weights = load_weights(folder)
    names = match_weights(weights, spec)
    plan = plan_memory(
        spec,
        settings,
        dtype=dtype,
        device_type=device.type,
        device_memory_bytes=free_memory(device),
    )
    _set_threads(settings.threads or available_cores())
    loader = WeightLoader(
        weights,
        names,
        getattr(torch, dtype),
        device,
        lambda fraction: progress("weights", fraction),
    )
    model = build_decoder(spec, loader, max_length=plan.max_length, exact=settings.exact)
    progress("kv_cache", 0.0)
    runner = TorchModelRunner(model, _allocate(spec, settings, plan, dtype, device), device)
    progress("self_test", 0.0)
    _self_test(runner, plan, spec, f"{folder}: self-test in {dtype}")
    progress("self_test", 1.0)
    return LoadedModel(runner=runner, spec=spec, plan=plan, device=str(device), dtype=dtype)


def find_device(name: str) -> torch.device:
    """The device the setting `device` names; `auto` is a GPU where there is one.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(f"device: {name} is not there; {count} CUDA devices are visible")
        device = torch.device("cuda", device.index or 0)
    return device


def free_memory(device: torch.device) -> int:
    """Bytes free on the device."""
    if device.type == "cpu":
        return available_memory()
    return torch.cuda.mem_get_info(device)[0]


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    # Eager inference never runs two operators at once. torch refuses the call once it has
    # started those threads, as it may have in a program that uses `LLM`; then they idle.
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)


def _allocate(
    spec: ModelSpec, settings: ModelSettings, plan: MemoryPlan, dtype: str, device: torch.device
) -> KVCacheStorage:
    params = KVCacheParams.of(
        spec,
        dtype=dtype,
        page_size=settings.page_size,
        enable_prefix_caching=settings.enable_prefix_caching,
    )
    try:
        return KVCacheStorage(params, plan.num_pages, device)
    except RuntimeError as error:
        raise ConfigError(
            f"{plan.num_pages} pages of KV memory could not be allocated on {device}; lower "
            f"device_memory_utilization or kv_cache_pages ({str(error).splitlines()[0]})"
        ) from error


def _self_test(runner: TorchModelRunner, plan: MemoryPlan, spec: ModelSpec, what: str) -> None:
    """Generate greedily as a request would, on a page that is clean again afterwards."""
    length = min(SELF_TEST_PROMPT_TOKENS, plan.max_length - 1)
    prompt = np.arange(length, dtype=np.int32) % spec.vocab_size
    params = SamplingParams(temperature=0.0)
    context = TextContext(0, prompt, params, max_length=plan.max_length)
    for _ in range(min(SELF_TEST_NEW_TOKENS, plan.max_length - length)):
        tokens = context.tokens
        row = PlanRow(context, tokens.processed_length, tokens.active_length, [0], True)
        result = runner.execute(StepPlan([row]))
        if result.errors:
            raise ModelError(f"{what}: expected finite logits, found NaN or infinity")
        context.update(int(result.tokens[0]))
    runner.scrub([0])
