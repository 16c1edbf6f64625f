"""What the device's memory is for, computed before anything is allocated. No torch.

Owns the sums and how they are shown; the worker's log and `quire plan` print the same table.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings
from quire.kernels.native import library
from quire.pipelines.architectures.encodings import ITEM_BYTES
from quire.pipelines.architectures.moe_parts import expert_notes
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.kv_cache.page_group import PageGroup, most_pages, window_pages
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
    groups: tuple[PageGroup, ...]
    """In the order of `KVCacheParams.groups`."""
    max_length: int
    max_chunk: int
    """Tokens of a context in one step, at most."""
    notes: tuple[str, ...] = ()
    """Sentences on what the plan decided for the user."""

    @property
    def num_pages(self) -> int:
        """Of all groups."""
        return sum(group.num_pages for group in self.groups)

    @property
    def concurrency(self) -> float:
        """Contexts of `max_length` tokens whose pages exist at once."""
        return self.concurrency_at(self.max_length)

    def concurrency_at(self, length: int) -> float:
        """Contexts of `length` tokens whose pages exist at once."""
        return min(self._contexts_of(group, length) for group in self.groups)

    def _contexts_of(self, group: PageGroup, length: int) -> float:
        held = window_pages(group.window, length, self.page_size)
        if held == -(-length // self.page_size):
            return group.num_pages / held
        # Of a long prompt a step's tokens lie before the window; some context has one.
        alone = most_pages(group.window, length, self.page_size, self.max_chunk)
        return min(1.0, group.num_pages / alone) + max(0, group.num_pages - alone) / held

    def table(self) -> str:
        """The plan for a person's eyes: aligned rows, then the notes."""
        planned = sum(row.num_bytes for row in self.rows)
        lines = [(row.name.replace("_", " "), format_bytes(row.num_bytes)) for row in self.rows]
        lines += [
            ("planned", format_bytes(planned)),
            ("usable", format_bytes(self.usable_bytes)),
            ("free on device", format_bytes(self.device_memory_bytes)),
            *(
                (_name(group), f"{group.num_pages} of {self.page_size} tokens")
                for group in self.groups
            ),
            ("max length", f"{self.max_length} tokens"),
            ("concurrency", f"{self.concurrency:.1f} requests of max length"),
        ]
        width = max(len(name) for name, _ in lines)
        return "\n".join([*(f"{name:<{width}}  {value}" for name, value in lines), *self.notes])


def _name(group: PageGroup) -> str:
    return "pages" if group.window is None else f"pages, window {group.window}"


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
    `max_batch_size` contexts of `max_length` need: more would never be used. `kv_cache_pages` is
    the number of the group in which a context needs most.

    Raises:
        ConfigError: the settings contradict each other or the model, or do not fit the memory.
    """
    _check_chunks(spec, settings.page_size)
    length = _wanted_length(spec, settings)
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
    division = _Division(settings, params, available)
    division.check(length)
    notes = (*spec.quant.notes, *expert_notes(spec, spec.quant, device_type))
    if division.count(length) < max(division.needs(length)):
        length, note = _shorten(division, length)
        notes = (*notes, note)
    pages = division.pages(length)
    return MemoryPlan(
        rows=(
            MemoryRow("weights", weights),
            MemoryRow("activations", activations),
            MemoryRow("kv_cache", division.num_bytes(pages)),
        ),
        device_memory_bytes=device_memory_bytes,
        usable_bytes=usable,
        page_size=settings.page_size,
        groups=tuple(map(PageGroup, pages, (group.window for group in params.groups))),
        max_length=length,
        max_chunk=settings.max_batch_input_tokens,
        notes=notes,
    )


def weight_memory(spec: ModelSpec, dtype: str, device_type: str) -> int:
    """Bytes of the weights as the device holds them.

    On a CPU matrices are repacked for its matrix units. The compiled library's layout serves as an
    embedding too; without it one that the logits share is there twice. Where the logits have a copy
    in another encoding, that is all.
    """
    num_bytes = spec.weight_bytes(dtype, device_type)
    is_shared = spec.tie_word_embeddings and spec.tied_encoding is None
    is_twice = is_shared and (spec.keeps_embedding or library() is None)
    if is_twice and device_type == "cpu":
        num_bytes += spec.vocab_size * spec.hidden_size * ITEM_BYTES[dtype]
    return num_bytes


def activation_memory(spec: ModelSpec, settings: ModelSettings, dtype: str) -> int:
    """Bytes at the peak of one step, estimated: the widest layer, then logits and sampling."""
    # Logits in the model's dtype and in fp32, and three fp32 or int64 arrays that sampling sorts.
    per_row = spec.vocab_size * (ITEM_BYTES[dtype] + 4 + 3 * 8)
    layers = settings.max_batch_input_tokens * spec.layer_width * ITEM_BYTES[dtype]
    return layers + settings.max_batch_size * per_row


def _check_chunks(spec: ModelSpec, page_size: int) -> None:
    """Attention takes a chunk as a context of its own, whose pages begin where it does."""
    for size in {layer.attention.chunk_size for layer in spec.layers}:
        if size is not None and size % page_size:
            raise ConfigError(
                f"page_size: expected a divisor of the model's attention_chunk_size {size}, "
                f"found {page_size}"
            )


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


class _Division:
    """How many pages each group gets.

    The group in which a context needs most gets what is left after the others, which follow from
    it: they have the windows of a full batch, or of fewer contexts where one of the greatest
    length would not fit else, or of up to two batches where there is room for so many.
    """

    def __init__(self, settings: ModelSettings, params: KVCacheParams, available: int) -> None:
        self.settings = settings
        self.params = params
        self.available = available

    def needs(self, length: int) -> tuple[int, ...]:
        """Pages of each group that a context of `length` tokens needs to run alone."""
        sizes = (self.params.page_size, self.settings.max_batch_input_tokens)
        return tuple(most_pages(group.window, length, *sizes) for group in self.params.groups)

    def pages(self, length: int) -> tuple[int, ...]:
        """Of each group, for contexts of up to `length` tokens."""
        return self._pages(length, *self._best(length, self._given_bytes))

    def count(self, length: int) -> int:
        """Pages of the group with the most."""
        return self._best(length, self._given_bytes)[0]

    def num_bytes(self, pages: tuple[int, ...]) -> int:
        bytes_of = self.params.group_page_bytes
        return sum(count * size for count, size in zip(pages, bytes_of, strict=True))

    @property
    def _given_bytes(self) -> int:
        return min(self.available, self.settings.kv_cache_memory or self.available)

    def _pages(self, length: int, count: int, contexts: int) -> tuple[int, ...]:
        """Of each group: `count` where most are needed, elsewhere for the windows of `contexts`."""
        page_size, needs = self.params.page_size, self.needs(length)
        step = -(-self.settings.max_batch_input_tokens // page_size)
        pages = []
        for group, need in zip(self.params.groups, needs, strict=True):
            # A page more for each: admission leaves so many free.
            held = contexts * (window_pages(group.window, length, page_size) + 1) + step
            pages.append(min(count, max(need, held)))
        pages[needs.index(max(needs))] = count
        return tuple(pages)

    def _best(self, length: int, num_bytes: int) -> tuple[int, int]:
        """`count` and `contexts` of `_pages` such that all pages fit `num_bytes`."""
        needed, batch = max(self.needs(length)), self.settings.max_batch_size
        limit = self._limit(length, num_bytes)

        def contexts_at(count: int) -> int:
            return min(2 * batch, max(batch, count // needed))

        def size(count: int, contexts: int) -> int:
            return self.num_bytes(self._pages(length, count, contexts))

        counts = range(1, limit + 1)
        count = bisect_right(counts, num_bytes, key=lambda n: size(n, contexts_at(n)))
        least = limit if self.settings.kv_cache_pages else min(limit, needed)
        if count >= least:
            return count, contexts_at(count)
        if size(least, 0) > num_bytes:
            return bisect_right(counts, num_bytes, key=lambda n: size(n, 0)), 0
        fewer = range(1, batch + 1)
        return least, bisect_right(fewer, num_bytes, key=lambda n: size(least, n))

    def _limit(self, length: int, num_bytes: int) -> int:
        """The most pages in a group that are asked for or, if nothing is, of use."""
        settings = self.settings
        if settings.kv_cache_memory is not None:
            return num_bytes // min(self.params.group_page_bytes)
        batch = settings.max_batch_size
        tokens = -(-batch * length // self.params.page_size)
        return settings.kv_cache_pages or 2 * min(tokens, batch * max(self.needs(length)))

    def check(self, length: int) -> None:
        """Raise ConfigError if the settings contradict each other or ask for too much."""
        settings = self.settings
        if settings.max_batch_input_tokens < settings.page_size:
            raise ConfigError(
                f"max_batch_input_tokens {settings.max_batch_input_tokens} is less than "
                f"page_size {settings.page_size}"
            )
        if settings.kv_cache_pages is not None and settings.kv_cache_memory is not None:
            raise ConfigError("kv_cache_pages and kv_cache_memory are both given; give one")
        if settings.kv_cache_pages is not None:
            given, wanted = f"kv_cache_pages {settings.kv_cache_pages}", settings.kv_cache_pages
        elif settings.kv_cache_memory is not None:
            given = f"kv_cache_memory {format_bytes(settings.kv_cache_memory)}"
            wanted = self._best(length, settings.kv_cache_memory)[0]
        else:
            return
        if wanted < 1:
            raise ConfigError(
                f"{given} is less than one page of {format_bytes(self.params.bytes_per_page)}"
            )
        fitting = self._best(length, self.available)[0]
        if wanted > fitting:
            raise ConfigError(
                f"{given} is {wanted} pages; after weights and activations {fitting} pages fit "
                f"into device_memory_utilization {settings.device_memory_utilization:g} of the "
                "free memory"
            )

    def longest(self, length: int) -> int:
        """The most tokens, up to `length`, of a context that can run alone."""
        page_size = self.params.page_size

        def is_too_long(num_pages: int) -> bool:
            tokens = num_pages * page_size
            return max(self.needs(tokens)) > self.count(tokens)

        most = -(-length // page_size)
        return min(length, page_size * bisect_left(range(1, most + 1), True, key=is_too_long))


def _shorten(division: _Division, length: int) -> tuple[int, str]:
    """The length of which one context fits, and the note that says so."""
    fitting, count = division.longest(length), division.count(length)
    needed = max(division.needs(length))
    if division.settings.max_length is not None:
        raise ConfigError(
            f"one request of max_length {length} needs {needed} pages of KV "
            f"memory, {count} are available: lower max_length to {fitting}, or raise "
            "kv_cache_pages, kv_cache_memory or device_memory_utilization"
        )
    note = (
        f"max_length is lowered from the model's {length} to {fitting}: "
        f"{count} pages of KV memory are available, {needed} are needed"
    )
    return fitting, note
