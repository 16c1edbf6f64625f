"""`quire plan`: what a model will need and at best reach on a device, without loading it.

Floors are physical: a step reads every weight once and each context's KV once, and computes at the
peak rate; nothing can be faster, real engines reach 60 to 85 % of it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.encoder_spec import EncoderSpec
from quire.pipelines.architectures.encodings import ITEM_BYTES
from quire.pipelines.architectures.quantized.at_load import quantize_at_load
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.encoder_plan import flops_per_text, num_weights, plan_encoder
from quire.pipelines.kv_cache.memory_plan import MemoryPlan, plan_memory
from quire.pipelines.worker.host import available_cores, available_memory

GB = 10**9
TB = 10**12


@dataclass(frozen=True)
class Hardware:
    """A device: memory in bytes, bytes per second read, floating operations per second."""

    name: str
    memory_bytes: int
    bandwidth: float
    flops: float
    source: str

    @property
    def device_type(self) -> str:
        return "cpu" if self.name == "cpu" else "cuda"


DATASHEETS = {
    name: Hardware(name, memory * GB, bandwidth * TB, flops * TB, "datasheet, dense bfloat16")
    for name, memory, bandwidth, flops in (
        ("a100", 80, 2.0, 312),
        ("h100", 80, 3.35, 989),
        ("h200", 141, 4.8, 989),
        ("b200", 180, 8.0, 2250),
        ("l40s", 48, 0.864, 362),
        ("mi300x", 192, 5.3, 1307),
    )
}


@dataclass(frozen=True)
class Forecast:
    """A memory plan and the floors that go with it; seconds."""

    hardware: Hardware
    dtype: str
    memory: MemoryPlan
    decode_steps: tuple[tuple[int, int, float], ...]
    """(batch, context tokens, seconds of one decode step)."""
    prefills: tuple[tuple[int, float], ...]
    """(prompt tokens, seconds to the first token)."""

    def table(self) -> str:
        lines = _head(self.hardware, self.dtype, self.memory.table())
        for batch, context, seconds in self.decode_steps:
            lines.append(
                f"  decode  batch {batch:>4}  context {context:>6}  {seconds * 1e3:>10.3f} ms/step"
                f"  {batch / seconds:>12,.0f} tokens/s"
            )
        for tokens, seconds in self.prefills:
            lines.append(
                f"  prefill {tokens:>6} tokens             {seconds * 1e3:>10.3f} ms"
                f"       {tokens / seconds:>12,.0f} tokens/s"
            )
        return "\n".join(lines)


def _head(hardware: Hardware, dtype: str, memory: str) -> list[str]:
    return [
        f"device          {hardware.name}: {hardware.source}",
        f"peak            {hardware.bandwidth / GB:,.0f} GB/s, {hardware.flops / TB:,.2f} TFLOP/s",
        f"dtype           {dtype}",
        memory,
        "",
        "floors (nothing can be faster)",
    ]


def encoder_table(
    spec: EncoderSpec, settings: ModelSettings, hardware: Hardware, dtype: str
) -> str:
    """As `Forecast.table`, of an encoder: steps of one text, and of as many as fit one.

    Raises:
        ConfigError: as `plan_encoder`.
    """
    plan = plan_encoder(spec, settings, dtype, hardware.memory_bytes)
    lines = _head(hardware, dtype, plan.table())
    reading = ITEM_BYTES[dtype] * num_weights(spec) / hardware.bandwidth
    lengths = sorted({min(length, plan.max_length) for length in (32, 128, 512)})
    for length in lengths:
        many = max(1, min(settings.max_batch_size, plan.step_tokens // length))
        for texts in sorted({1, many}):
            seconds = max(reading, texts * flops_per_text(spec, length) / hardware.flops)
            lines.append(
                f"  encode  texts {texts:>4}  tokens {length:>7}  {seconds * 1e3:>10.3f} ms/step"
                f"  {texts / seconds:>12,.0f} texts/s"
            )
    return "\n".join(lines)


def find_hardware(name: str, dtype: str) -> Hardware:
    """A device by datasheet name, or `cpu`: this machine, measured in a second in `dtype`.

    Raises:
        ConfigError: no such name.
    """
    if name == "cpu":
        return measure_cpu(dtype)
    if name not in DATASHEETS:
        raise ConfigError(f"hardware: {name} is not one of cpu, {', '.join(sorted(DATASHEETS))}")
    return DATASHEETS[name]


def measure_cpu(dtype: str) -> Hardware:
    """This machine: free memory, and over all cores DRAM read rate and matmul rate in `dtype`."""
    cores = available_cores()
    torch.set_num_threads(cores)
    block = torch.ones(256 * 1024**2)
    read = min(_seconds(block.sum) for _ in range(3))
    rows, inner, columns = 1024, 4096, 4096
    x_MK = torch.ones(rows, inner, dtype=getattr(torch, dtype))
    weight_NK = torch.ones(columns, inner, dtype=getattr(torch, dtype))
    multiply = min(_seconds(lambda: torch.nn.functional.linear(x_MK, weight_NK)) for _ in range(4))
    return Hardware(
        "cpu",
        available_memory(),
        block.nbytes / read,
        2 * rows * inner * columns / multiply,
        f"measured now on {cores} cores in {dtype}",
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def forecast(spec: ModelSpec, settings: ModelSettings, hardware: Hardware) -> Forecast:
    """Plan the memory and compute the floors.

    Raises:
        ConfigError: the model does not fit, or the settings contradict each other.
    """
    dtype = spec.serving_dtype(settings.dtype, hardware.device_type)
    spec = quantize_at_load(spec, settings.quantization, hardware.device_type)
    memory = plan_memory(
        spec,
        settings,
        dtype=dtype,
        device_type=hardware.device_type,
        device_memory_bytes=hardware.memory_bytes,
    )
    contexts = sorted({min(length, memory.max_length - 1) for length in (512, 2048, 8192)})
    batches = sorted({1, min(8, settings.max_batch_size), settings.max_batch_size})
    return Forecast(
        hardware,
        dtype,
        memory,
        tuple(
            (batch, context, _decode_seconds(spec, dtype, hardware, batch, context))
            for batch in batches
            for context in contexts
            if batch <= memory.concurrency_at(context)
        ),
        tuple((tokens, _prefill_seconds(spec, dtype, hardware, tokens)) for tokens in contexts),
    )


def _decode_seconds(
    spec: ModelSpec, dtype: str, hardware: Hardware, batch: int, context: int
) -> float:
    numbers = sum(
        layer.numbers_per_token * min(context, layer.window or context) for layer in spec.kv_layers
    )
    kv_bytes = batch * numbers * ITEM_BYTES[dtype]
    weights = spec.streamed_weight_bytes(dtype, hardware.device_type) / hardware.bandwidth
    compute = batch * spec.flops_per_token(0) / hardware.flops
    return max(weights, compute) + kv_bytes / hardware.bandwidth


def _prefill_seconds(spec: ModelSpec, dtype: str, hardware: Hardware, tokens: int) -> float:
    # Causal: the average token attends to half of the prompt.
    flops = tokens * spec.flops_per_token(tokens // 2)
    return max(
        flops / hardware.flops,
        spec.streamed_weight_bytes(dtype, hardware.device_type) / hardware.bandwidth,
    )
