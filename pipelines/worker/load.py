"""From settings and a model folder to a runner that has generated its first tokens."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from quire.config.errors import ConfigError, ModelError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.build import build_decoder
from quire.pipelines.architectures.quantized.at_load import quantize_at_load
from quire.pipelines.architectures.registry import ARCHITECTURES, SupportedArchitecture
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.plan import PlanRow, StepPlan
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.huggingface.spec import HuggingFaceSpec
from quire.pipelines.huggingface.text_generation import HFTextGenerationPipeline
from quire.pipelines.kv_cache.memory_plan import MemoryPlan, plan_memory
from quire.pipelines.kv_cache.params import KVCacheParams
from quire.pipelines.kv_cache.storage import KVCacheStorage
from quire.pipelines.weights.base_names import with_whole_names
from quire.pipelines.weights.checkpoint import load_weights, match_weights
from quire.pipelines.weights.loader import WeightLoader
from quire.pipelines.weights.renamed import with_prefixes
from quire.pipelines.weights.tied_head import with_tied_head
from quire.pipelines.weights.weights import Weights
from quire.pipelines.worker.host import available_cores, available_memory
from quire.pipelines.worker.runner import Decoder, TorchModelRunner

logger = logging.getLogger(__name__)

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
        """Of all page groups."""
        return self.plan.num_pages


def load_runner(
    settings: ModelSettings,
    folder: Path,
    spec: ModelSpec,
    progress: Progress,
    *,
    architectures: Sequence[SupportedArchitecture] = ARCHITECTURES,
) -> LoadedModel:
    """Check the folder, plan the memory, load, and generate a few tokens.

    Sets the process's number of torch threads. `progress` gets a phase (convert,
    weights, kv_cache, self_test) and the fraction of it that is done, 0..1.

    Raises:
        ModelError: a weight is missing or wrong, or the model gives logits that are not finite.
        ConfigError: the settings do not fit the model or the device.
    """
    device = find_device(settings.device)
    dtype = spec.serving_dtype(settings.dtype, device.type)
    free = free_memory(device)
    set_threads(settings.threads or available_cores())
    model: Decoder
    if isinstance(spec, HuggingFaceSpec):
        model, spec = _load_huggingface(settings, folder, spec, getattr(torch, dtype), device)
        plan = _plan(spec, settings, dtype, device, free)
    else:
        spec = quantize_at_load(spec, settings.quantization, device.type)
        weights = _open_weights(settings, folder, spec, progress)
        names = match_weights(weights, spec)
        plan = _plan(spec, settings, dtype, device, free)
        loader = WeightLoader(
            weights,
            names,
            getattr(torch, dtype),
            device,
            lambda fraction: progress("weights", fraction),
        )
        own = (row.build for row in architectures if row.name == spec.architecture)
        build = next(own, None) or build_decoder
        model = build(spec, loader, max_length=plan.max_length, exact=settings.exact)
    progress("kv_cache", 0.0)
    runner = TorchModelRunner(model, _allocate(spec, settings, plan, dtype, device), device)
    progress("self_test", 0.0)
    _self_test(runner, plan, spec, f"{folder}: self-test in {dtype}")
    if isinstance(model, HFTextGenerationPipeline):
        _compare(runner, model, plan, folder)
    progress("self_test", 1.0)
    return LoadedModel(runner=runner, spec=spec, plan=plan, device=str(device), dtype=dtype)


def _open_weights(
    settings: ModelSettings, folder: Path, spec: ModelSpec, progress: Progress
) -> Weights:
    weights = load_weights(folder, spec, settings.load_format, progress)
    if spec.renamed_weights:
        weights = with_prefixes(weights, spec.renamed_weights)
    return with_tied_head(with_whole_names(weights, spec), spec)


def _load_huggingface(
    settings: ModelSettings,
    folder: Path,
    spec: HuggingFaceSpec,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[HFTextGenerationPipeline, HuggingFaceSpec]:
    """The model, and the spec with what was seen of it."""
    if settings.load_format not in ("auto", "safetensors"):
        raise ConfigError(
            f"load_format: --engine huggingface reads safetensors, not {settings.load_format}"
        )
    if settings.quantization != "none":
        raise ConfigError("quantization: --engine huggingface serves plain numbers")
    logger.warning("%s runs on transformers' code: slower, bits not promised", spec.architecture)
    model = HFTextGenerationPipeline(folder, dtype, device, exact=settings.exact)
    measured = replace(spec, measured_layers=model.kv_layers, measured_bytes=model.num_bytes)
    return model, measured


def _plan(
    spec: ModelSpec, settings: ModelSettings, dtype: str, device: torch.device, free: int
) -> MemoryPlan:
    return plan_memory(
        spec, settings, dtype=dtype, device_type=device.type, device_memory_bytes=free
    )


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


def set_threads(threads: int) -> None:
    """Let torch use so many threads in this process."""
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
        return KVCacheStorage(params, [group.num_pages for group in plan.groups], device)
    except RuntimeError as error:
        raise ConfigError(
            f"{plan.num_pages} pages of KV memory could not be allocated on {device}; lower "
            f"device_memory_utilization or kv_cache_pages ({str(error).splitlines()[0]})"
        ) from error


def _compare(
    runner: TorchModelRunner, model: HFTextGenerationPipeline, plan: MemoryPlan, folder: Path
) -> None:
    """Hold our pages to the logits that transformers gives without them."""
    length = min(len(model.probe), plan.max_length - 1, plan.page_size)
    prompt = model.probe[:length].cpu().numpy().astype(np.int32)
    context = TextContext(0, prompt, SamplingParams(temperature=0.0), max_length=plan.max_length)
    tables = [[0] for _ in plan.groups]
    parts = [(0, length // 2), (length // 2, length - length // 2)]
    states = [
        runner.hidden_states(StepPlan([PlanRow(context, start, count, tables, False)]))
        for start, count in parts
        if count
    ]
    model.check(torch.cat(states), f"{folder}: self-test")
    runner.scrub(tables)


def _self_test(runner: TorchModelRunner, plan: MemoryPlan, spec: ModelSpec, what: str) -> None:
    """Generate greedily as a request would, on a page that is clean again afterwards."""
    length = min(SELF_TEST_PROMPT_TOKENS, plan.max_length - 1)
    prompt = np.arange(length, dtype=np.int32) % spec.vocab_size
    params = SamplingParams(temperature=0.0)
    context = TextContext(0, prompt, params, max_length=plan.max_length)
    tables = [[0] for _ in plan.groups]
    for _ in range(min(SELF_TEST_NEW_TOKENS, plan.max_length - length)):
        tokens = context.tokens
        row = PlanRow(context, tokens.processed_length, tokens.active_length, tables, True)
        result = runner.execute(StepPlan([row]))
        if result.errors:
            raise ModelError(f"{what}: expected finite logits, found NaN or infinity")
        context.update(int(result.tokens[0]))
    runner.scrub(tables)
