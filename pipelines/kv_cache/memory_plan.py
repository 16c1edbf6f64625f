"""What the device's memory is for, computed before anything is allocated. No torch.

Owns the sums and how they are shown; the worker's log and `quire plan` print the same table.
"""

from dataclasses import dataclass

from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.encodings import ITEM_BYTES
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.kv_cache.params import KVCacheParams

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """One use of device memory."""

    name: str
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Where the memory goes, and what that lets the model serve."""

    rows: tuple[MemoryRow, ...]
    """weights, activations, kv_cache."""
    device_memory_bytes: int
    """Free before loading."""
    usable_bytes: int
    """The share of it that `device_memory_utilization` allows."""
    page_size: int
    num_pages: int
    max_length: int
    notes: tuple[str, ...] = ()
    """Sentences on what the plan decided for the user."""

    @property
    def concurrency(self) -> float:
        """Contexts of `max_length` tokens whose pages exist at once."""
        return self.num_pages / -(-self.max_length // self.page_size)

    def table(self) -> str:
        """The plan for a person's eyes: aligned rows, then the notes."""
        planned = sum(row.num_bytes for row in self.rows)
        lines = [(row.name.replace("_", " "), format_bytes(row.num_bytes)) for row in self.rows]
        lines += [
            ("planned", format_bytes(planned)),
            ("usable", format_bytes(self.usable_bytes)),
            ("free on device", format_bytes(self.device_memory_bytes)),
            ("pages", f"{self.num_pages} of {self.page_size} tokens"),
            ("max length", f"{self.max_length} tokens"),
            ("concurrency", f"{self.concurrency:.1f} requests of max length"),
        ]
        width = max(len(name) for name, _ in lines)
        return "\n".join([*(f"{name:<{width}}  {value}" for name, value in lines), *self.notes])


def format_bytes(num_bytes: int) -> str:
    """`num_bytes` in the largest unit that leaves at least 1."""
    value, unit = float(num_bytes), _UNITS[0]
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"


def plan_memory(
    spec: ModelSpec,
    settings: ModelSettings,
    *,
    dtype: str,
    device_type: str,
    device_memory_bytes: int,
) -> MemoryPlan:
    """Divide `device_memory_bytes`, what is free on the device now.

    Without `kv_cache_pages` or `kv_cache_memory` the pages are what fits, but at most twice what
    `max_batch_size` contexts of `max_length` need: more would never be used.

    Raises:
        ConfigError: the settings contradict each other or the model, or do not fit the memory.
    """
    length = _wanted_length(spec, settings)
    if settings.max_batch_input_tokens < settings.page_size:
        raise ConfigError(
            f"max_batch_input_tokens {settings.max_batch_input_tokens} is less than "
            f"page_size {settings.page_size}"
        )
    params = KVCacheParams.of(
        spec,
        dtype=dtype,
        page_size=settings.page_size,
        enable_prefix_caching=settings.enable_prefix_caching,
    )
    weights = weight_memory(spec, dtype, device_type) + 4 * length * spec.rotary_width
    activations = activation_memory(spec, settings, dtype)
    usable = int(device_memory_bytes * settings.device_memory_utilization)
    available = usable - weights - activations
    if available < params.bytes_per_page:
        raise ConfigError(
            f"the model does not fit: weights {format_bytes(weights)}, activations "
            f"{format_bytes(activations)} and one page of {format_bytes(params.bytes_per_page)} "
            f"exceed the {format_bytes(usable)} that device_memory_utilization "
            f"{settings.device_memory_utilization:g} allows of "
            f"{format_bytes(device_memory_bytes)} free"
        )
    num_pages = _num_pages(settings, params, length, available)
    notes: tuple[str, ...] = ()
    if num_pages < params.pages_for(length):
        length, notes = _shorten(settings, params, length, num_pages)
    return MemoryPlan(
        rows=(
            MemoryRow("weights", weights),
            MemoryRow("activations", activations),
            MemoryRow("kv_cache", num_pages * params.bytes_per_page),
        ),
        device_memory_bytes=device_memory_bytes,
        usable_bytes=usable,
        page_size=settings.page_size,
        num_pages=num_pages,
        max_length=length,
        notes=notes,
    )


def weight_memory(spec: ModelSpec, dtype: str, device_type: str) -> int:
    """Bytes of the weights as the device holds them.

    On a CPU matrices are repacked for its matrix units, so an embedding that the logits share is
    there twice.
    """
    num_bytes = spec.weight_bytes(dtype, device_type)
    if spec.tie_word_embeddings and device_type == "cpu":
        num_bytes += spec.vocab_size * spec.hidden_size * ITEM_BYTES[dtype]
    return num_bytes


def activation_memory(spec: ModelSpec, settings: ModelSettings, dtype: str) -> int:
    """Bytes at the peak of one step, estimated: the widest layer, then logits and sampling."""
    # Logits in the model's dtype and in fp32, and three fp32 or int64 arrays that sampling sorts.
    per_row = spec.vocab_size * (ITEM_BYTES[dtype] + 4 + 3 * 8)
    layers = settings.max_batch_input_tokens * spec.layer_width * ITEM_BYTES[dtype]
    return layers + settings.max_batch_size * per_row


def _wanted_length(spec: ModelSpec, settings: ModelSettings) -> int:
    if settings.max_length is None:
        return spec.max_position_embeddings
    if settings.max_length > spec.longest_context:
        scaled = f", scaled to {spec.longest_context}"
        raise ConfigError(
            f"max_length {settings.max_length} exceeds the model's max_position_embeddings "
            f"{spec.max_position_embeddings}"
            + (scaled if spec.longest_context > spec.max_position_embeddings else "")
        )
    return settings.max_length


def _num_pages(settings: ModelSettings, params: KVCacheParams, length: int, available: int) -> int:
    fitting = available // params.bytes_per_page
    if settings.kv_cache_pages is not None and settings.kv_cache_memory is not None:
        raise ConfigError("kv_cache_pages and kv_cache_memory are both given; give one")
    if settings.kv_cache_pages is not None:
        given, num_pages = f"kv_cache_pages {settings.kv_cache_pages}", settings.kv_cache_pages
    elif settings.kv_cache_memory is not None:
        num_pages = settings.kv_cache_memory // params.bytes_per_page
        given = f"kv_cache_memory {format_bytes(settings.kv_cache_memory)}"
        if num_pages < 1:
            raise ConfigError(
                f"{given} is less than one page of {format_bytes(params.bytes_per_page)}"
            )
    else:
        useful = 2 * -(-settings.max_batch_size * length // params.page_size)
        return min(fitting, useful)
    if num_pages > fitting:
        raise ConfigError(
            f"{given} is {num_pages} pages; after weights and activations {fitting} pages fit "
            f"into device_memory_utilization {settings.device_memory_utilization:g} of the free "
            "memory"
        )
    return num_pages


def _shorten(
    settings: ModelSettings, params: KVCacheParams, length: int, num_pages: int
) -> tuple[int, tuple[str, ...]]:
    """The length that fits `num_pages`, and the note that says so."""
    fitting = num_pages * params.page_size
    if settings.max_length is not None:
        raise ConfigError(
            f"one request of max_length {length} needs {params.pages_for(length)} pages of KV "
            f"memory, {num_pages} are available: lower max_length to {fitting}, or raise "
            "kv_cache_pages, kv_cache_memory or device_memory_utilization"
        )
    note = (
        f"max_length is lowered from the model's {length} to {fitting}: "
        f"{num_pages} pages of KV memory are available, {params.pages_for(length)} are needed"
    )
    return fitting, (note,)
