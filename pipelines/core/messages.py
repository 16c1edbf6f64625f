"""What crosses the socket between API process and worker: closed msgspec structs, never pickle.

Each message carries the worker's epoch; a message of another epoch is dropped by its receiver.
Arrays travel as raw little-endian bytes, one frame per step.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from quire.pipelines.core.context import ContextWire
from quire.pipelines.core.grammar import Grammar
from quire.pipelines.core.logprobs import LogProbabilities, PromptLogProbabilities


class Submit(msgspec.Struct, tag="submit", array_like=True, frozen=True):
    """Run these contexts; those with generated tokens are resumed."""

    epoch: int
    contexts: list[ContextWire]
    grammars: list[Grammar] = []
    """Those that the contexts name, each once."""


class Abort(msgspec.Struct, tag="abort", array_like=True, frozen=True):
    epoch: int
    request_ids: list[int]


class ResetPrefixCache(msgspec.Struct, tag="reset_prefix_cache", array_like=True, frozen=True):
    epoch: int


class PrepareGrammars(msgspec.Struct, tag="prepare_grammars", array_like=True, frozen=True):
    """A grammar is being compiled: load what walking it needs."""

    epoch: int


class Progress(msgspec.Struct, tag="progress", array_like=True, frozen=True):
    """Where a starting worker is: `fraction` of `phase` done, 0..1."""

    epoch: int
    phase: str
    fraction: float


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    """The model is loaded and the pages exist."""

    epoch: int
    pid: int
    device: str
    dtype: str
    max_length: int
    num_pages: int
    """Of all page groups."""
    page_size: int
    max_batch_size: int
    max_batch_input_tokens: int
    memory_plan: list[tuple[str, int]]
    """(what, bytes) rows of the memory plan."""
    memory_table: str
    """The memory plan for a person's eyes, several lines."""
    cpu_kernels: str = ""
    """On a CPU: the instruction set of the native kernels, or torch where they were not built."""
    kv_cache_tokens: int = 0
    """Tokens that the page group with the most pages holds."""
    kv_cache_concurrency: float = 0.0
    """Contexts of `max_length` tokens whose pages exist at once."""


class Fatal(msgspec.Struct, tag="fatal", array_like=True, frozen=True):
    """The worker cannot serve and exits with `exit_code`; `message` is one line for a person."""

    epoch: int
    exit_code: int
    message: str


class EngineStats(msgspec.Struct, array_like=True, frozen=True):
    """Gauges as of now and counters since the worker's start."""

    running: int = 0
    waiting: int = 0
    used_pages: int = 0
    """Pages of all groups held by running contexts; cached pages that could be evicted do not
    count."""
    cached_pages: int = 0
    total_pages: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    kv_usage: float = 0.0
    """Share of the pages that running contexts hold in the fullest page group, 0..1."""


class StepOutput(msgspec.Struct, tag="step", array_like=True, frozen=True):
    """All that one step produced: parallel raw arrays, one entry per row that got a token or ended.

    A row with status FAILED carries no token (token is -1).
    """

    epoch: int
    request_ids: bytes
    """int64"""
    base_index: bytes
    """int32: how many generated tokens the context had before this one."""
    tokens: bytes
    """int32"""
    statuses: bytes
    """uint8, `TextGenerationStatus`"""
    cached_tokens: bytes
    """int32: prompt tokens served from the prefix cache."""
    queue_seconds: bytes
    """float32: time between the worker's receipt of the context and its first schedule."""
    logprobs: dict[int, LogProbabilities]
    """By row index; only rows that asked."""
    errors: dict[int, str]
    """By row index: why a row FAILED."""
    input_tokens: int
    """Tokens the step ran, prefill and decode together; 0 for a frame without a step."""
    stats: EngineStats
    prompt_logprobs: list[PromptLogProbabilities] = []
    """In order of positions; after a preemption or a resume they come again."""
    preempted: list[int] = []
    """Contexts that were put back into the queue since the last frame."""
    embeddings: dict[int, bytes] = {}
    """By row index: fp32 [C] of contexts with `pooling`, whose token is -1."""

    def array(self, name: str) -> NDArray[np.generic]:
        """One of the raw arrays as numpy."""
        raw: bytes = getattr(self, name)
        return np.frombuffer(raw, dtype=_DTYPES[name])


_DTYPES: dict[str, np.dtype[np.generic]] = {
    "request_ids": np.dtype("<i8"),
    "base_index": np.dtype("<i4"),
    "tokens": np.dtype("<i4"),
    "statuses": np.dtype("u1"),
    "cached_tokens": np.dtype("<i4"),
    "queue_seconds": np.dtype("<f4"),
}

ToWorker = Submit | Abort | ResetPrefixCache | PrepareGrammars
FromWorker = Progress | Ready | Fatal | StepOutput
