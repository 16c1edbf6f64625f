"""`quire bench`: a streaming load on any OpenAI-compatible server, closed loop.

TTFT is send to first chunk with text or tokens; TPOT is (last - first chunk) / (output tokens - 1)
per request; ITL are the times between chunks; tokens are the server's own usage counts. Definitions
follow vLLM's bench serve.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import httpx2
import orjson


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send: `concurrency` callers share `requests` requests; lengths in tokens."""

    url: str
    model: str | None = None
    api_key: str | None = None
    requests: int = 64
    concurrency: int = 8
    prompt_tokens: int = 128
    output_tokens: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One finished request, seconds; `chunk_times` on the clock of `time.perf_counter`."""

    ttft: float
    total: float
    output_tokens: int
    chunk_times: tuple[float, ...] = ()

    @property
    def tpot(self) -> float:
        return (self.total - self.ttft) / max(1, self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds from each chunk to the next."""
        return [after - before for before, after in itertools.pairwise(self.chunk_times)]


@dataclass(frozen=True)
class Report:
    """What was measured; times in milliseconds, medians and 99th percentiles over requests."""

    requests: int
    failed: int
    seconds: float
    output_tokens_per_second: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    tpot_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float

    def table(self) -> str:
        rows = [(name, f"{value:,.2f}") for name, value in asdict(self).items()]
        return "\n".join(f"{name:<26}{value:>14}" for name, value in rows)


async def run_load(load: Load) -> Report:
    """Run the load; a request that fails counts as failed and in no other figure.

    Raises:
        RuntimeError: no request succeeded; the message holds the server's first answer.
    """
    headers = {"authorization": f"Bearer {load.api_key}"} if load.api_key else {}
    # Some servers close a connection after a stream without saying so: each request gets its own.
    limits = httpx2.Limits(max_connections=load.concurrency, max_keepalive_connections=0)
    async with httpx2.AsyncClient(
        base_url=load.url, headers=headers, timeout=600.0, limits=limits
    ) as client:
        pending = iter(bodies(load))
        samples: list[Sample] = []
        errors: list[str] = []

        async def caller() -> None:
            for body in pending:
                result = await stream_one(client, body)
                if isinstance(result, Sample):
                    samples.append(result)
                else:
                    errors.append(result)

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(load.concurrency)))
        seconds = time.perf_counter() - started
    if not samples:
        raise RuntimeError(f"no request succeeded; the first answer was: {errors[0]}")
    return _report(samples, len(errors), seconds)


def bodies(load: Load) -> list[dict[str, object]]:
    """The requests of a load."""
    draw = random.Random(load.seed)
    # Ids above the specials and inside any vocabulary; distinct prompts, so no prefix hits.
    return [
        {
            **({"model": load.model} if load.model else {}),
            "prompt": [draw.randrange(100, 1000) for _ in range(load.prompt_tokens)],
            "max_tokens": load.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for _ in range(load.requests)
    ]


async def stream_one(client: httpx2.AsyncClient, body: dict[str, object]) -> Sample | str:
    """Send one request; the server's answer where it is none."""
    started = time.perf_counter()
    times: list[float] = []
    tokens = 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            return (await response.aread()).decode(errors="replace")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = orjson.loads(line.removeprefix("data: "))
            if "error" in chunk:
                return line
            if chunk["choices"]:
                times.append(time.perf_counter())
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    ended = time.perf_counter()
    first = times[0] if times else ended
    return Sample(first - started, ended - started, tokens, tuple(times))


def _report(samples: list[Sample], failed: int, seconds: float) -> Report:
    ttfts = [sample.ttft * 1e3 for sample in samples]
    tpots = [sample.tpot * 1e3 for sample in samples]
    gaps = [gap * 1e3 for sample in samples for gap in sample.gaps] or [0.0]
    return Report(
        requests=len(samples),
        failed=failed,
        seconds=seconds,
        output_tokens_per_second=sum(sample.output_tokens for sample in samples) / seconds,
        ttft_p50_ms=statistics.median(ttfts),
        ttft_p99_ms=percentile_99(ttfts),
        tpot_p50_ms=statistics.median(tpots),
        tpot_p99_ms=percentile_99(tpots),
        itl_p50_ms=statistics.median(gaps),
        itl_p99_ms=percentile_99(gaps),
    )


def percentile_99(values: Sequence[float]) -> float:
    """Of few values the greatest."""
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]
