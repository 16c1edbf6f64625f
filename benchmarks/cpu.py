"""Quire and the peers that are installed, on this machine's CPU: `make bench-cpu`.

Servers take turns, `--rounds` times; a figure is the median of its rounds. All get the same
checkpoint (random weights), the same client and the same requests, each a prompt of its own:

    W1  one stream, 128 tokens in, 64 out        W4  one prompt of 1,024 tokens, one token out
    W2  16 requests, 8 at a time                 W5  a prompt of 2,048 arrives while 8 streams
    W3  64 requests, 32 at a time                    decode: its TTFT, and the longest gap in them

Floors are from the machine's read and matmul rates, measured in the same run; they are those of
the bfloat16 checkpoint, in the rows of quantized ones as well.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import httpx2

sys.path.insert(0, str(Path(__file__).parent))

from peers import PEERS, Server, installed, running
from random_checkpoint import SHAPES, write_checkpoint

from quire.config.settings import ModelSettings
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.forecast import Hardware, forecast, measure_cpu
from quire.server.bench import Load, Report, Sample, bodies, run_load, stream_one

Figures = Mapping[str, float]

FIGURES: Mapping[str, str] = {
    "W1 TTFT ms": "least",
    "W1 TPOT ms": "least",
    "W2 tok/s": "most",
    "W3 tok/s": "most",
    "W4 TTFT ms": "least",
    "W5 TTFT ms": "least",
    "W5 longest gap ms": "least",
    "ready s": "least",
}


async def measure(url: str, model: str | None, workloads: Sequence[str]) -> Figures:
    """One round of the workloads against a server."""
    load = Load(url=url, model=model, prompt_tokens=128, output_tokens=64)
    await _loaded(load, requests=2, concurrency=2, seed=1)
    figures: dict[str, float] = {}
    for workload in workloads:
        figures |= await WORKLOADS[workload](load)
    return figures


async def _one_stream(load: Load) -> Figures:
    report = await _loaded(load, requests=4, concurrency=1, seed=2)
    return {"W1 TTFT ms": report.ttft_p50_ms, "W1 TPOT ms": report.tpot_p50_ms}


async def _eight_streams(load: Load) -> Figures:
    report = await _loaded(load, requests=16, concurrency=8, seed=3)
    return {"W2 tok/s": report.output_tokens_per_second}


async def _many_streams(load: Load) -> Figures:
    report = await _loaded(load, requests=64, concurrency=32, seed=4)
    return {"W3 tok/s": report.output_tokens_per_second}


async def _long_prompt(load: Load) -> Figures:
    long = replace(load, prompt_tokens=1024, output_tokens=1)
    report = await _loaded(long, requests=3, concurrency=1, seed=5)
    return {"W4 TTFT ms": report.ttft_p50_ms}


async def _loaded(load: Load, *, requests: int, concurrency: int, seed: int) -> Report:
    report = await run_load(replace(load, requests=requests, concurrency=concurrency, seed=seed))
    if report.failed:
        raise RuntimeError(f"{report.failed} of {requests} requests failed")
    return report


async def _disturbed(load: Load) -> Figures:
    """TTFT of a prompt of 2,048 tokens among decoding streams, and their longest gap until then."""
    load = replace(load, output_tokens=256, requests=8, seed=6)
    (prompt,) = bodies(replace(load, requests=1, prompt_tokens=2048, output_tokens=1, seed=7))
    async with httpx2.AsyncClient(base_url=load.url, timeout=600.0) as client:
        streams = [asyncio.create_task(stream_one(client, body)) for body in bodies(load)]
        await asyncio.sleep(2.0)
        sent = time.perf_counter()
        late = _sample(await stream_one(client, prompt))
        samples = [_sample(await stream) for stream in streams]
    until = sent + late.ttft
    gaps = [
        after - before
        for sample in samples
        for before, after in zip(sample.chunk_times, sample.chunk_times[1:], strict=False)
        if after > sent and before < until
    ]
    return {
        "W5 TTFT ms": late.ttft * 1e3,
        "W5 longest gap ms": max(gaps, default=0.0) * 1e3,
    }


def _sample(result: Sample | str) -> Sample:
    match result:
        case Sample():
            return result
        case _:
            raise RuntimeError(f"a request failed: {result[:500]}")


WORKLOADS: Mapping[str, Callable[[Load], Awaitable[Figures]]] = {
    "W1": _one_stream,
    "W2": _eight_streams,
    "W3": _many_streams,
    "W4": _long_prompt,
    "W5": _disturbed,
}


def floors(spec: ModelSpec, hardware: Hardware) -> dict[str, float]:
    """What nothing can beat, with 160 tokens of context on average."""
    told = forecast(spec, ModelSettings(), hardware)
    weights = spec.streamed_weight_bytes(told.dtype, "cpu")
    kv = sum(layer.numbers_per_token for layer in spec.kv_layers) * 2 * 160
    flops = spec.flops_per_token(80)

    def step(batch: int) -> float:
        reading = (weights + batch * kv) / hardware.bandwidth
        return max(reading, batch * flops / hardware.flops)

    def rate(batch: int) -> float:
        return 64 * batch / (batch * 128 * flops / hardware.flops + 63 * step(batch))

    return {
        "W1 TTFT ms": 128 * flops / hardware.flops * 1e3,
        "W1 TPOT ms": step(1) * 1e3,
        "W2 tok/s": rate(8),
        "W3 tok/s": rate(32),
        "W4 TTFT ms": 1024 * spec.flops_per_token(512) / hardware.flops * 1e3,
    }


def table(
    rows: Mapping[str, Mapping[str, Sequence[float]]], floor: Mapping[str, float]
) -> list[str]:
    """Markdown: medians, and the fraction of the floor that each reaches."""
    measured = [name for name in FIGURES if any(name in figures for figures in rows.values())]
    lines = [
        "| | " + " | ".join(measured) + " |",
        "|---" * (len(measured) + 1) + "|",
        "| bfloat16 floor | " + " | ".join(_shown(floor.get(name)) for name in measured) + " |",
    ]
    for name, figures in rows.items():
        cells = []
        for figure in measured:
            values, better = figures[figure], FIGURES[figure]
            value, limit = statistics.median(values), floor.get(figure)
            share = ""
            if limit:
                share = f" ({100 * (limit / value if better == 'least' else value / limit):.0f} %)"
            cells.append(_shown(value) + share)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def run_shape(
    shape: str, folder: Path, servers: Sequence[Server], rounds: int, workloads: Sequence[str]
) -> list[str]:
    """Every server's rounds, as the lines of a table; a server that fails is told and left out."""
    if not (folder / "model.safetensors").is_file():
        write_checkpoint(shape, folder, has_weights=True)
    hardware = measure_cpu("bfloat16")
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    failed: set[str] = set()
    for turn in range(rounds):
        order = list(servers)
        random.Random(turn).shuffle(order)
        for server in order:
            if server.name in failed:
                continue
            try:
                with running(server, folder) as (url, ready):
                    figures = asyncio.run(measure(url, server.model(folder), workloads))
            except (RuntimeError, httpx2.HTTPError) as error:
                failed.add(server.name)
                print(f"{server.name}: left out: {error}", file=sys.stderr)
                continue
            figures = {**figures, "ready s": ready}
            for name, value in figures.items():
                rows[server.name][name].append(value)
            shown = {name: round(value, 1) for name, value in figures.items()}
            print(json.dumps({"round": turn, "shape": shape, "server": server.name, **shown}))
            sys.stdout.flush()
    again = measure_cpu("bfloat16")
    head = (
        f"{shape}, {rounds} rounds: {hardware.bandwidth / 1e9:.1f} and "
        f"{again.bandwidth / 1e9:.1f} GB/s read, {hardware.flops / 1e12:.2f} and "
        f"{again.flops / 1e12:.2f} TFLOP/s, before and after"
    )
    ordered = {server.name: rows[server.name] for server in servers if server.name in rows}
    return [head, "", *table(ordered, floors(load_model_spec(folder), hardware))]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare CPU servers on random checkpoints.")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="NAME")
    parser.add_argument(
        "--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="W1"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="keeps the checkpoints; else they are made anew"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="servers by their names in the table"
    )
    parser.add_argument(
        "--also",
        nargs="+",
        action="extend",
        type=_pair,
        default=[],
        metavar="PEER=VARIANT",
        help="more rows, such as 'quire=--quantization int8', "
        "vllm=W8A8, openvino_genai=int8, llama.cpp=Q8_0",
    )
    parser.add_argument(
        "--peer",
        nargs="+",
        action="extend",
        type=_pair,
        default=[],
        metavar="PEER=PROGRAM",
        help="where a peer is: "
        "vllm=/path/python, openvino_genai=/path/python, llama.cpp=/path/llama-server",
    )
    return parser.parse_args()


def _pair(text: str) -> tuple[str, str]:
    peer, equals, value = text.partition("=")
    if peer not in PEERS or not equals:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(PEERS)}, =, and a value")
    return peer, value


def chosen_servers(options: argparse.Namespace, threads: int) -> list[Server]:
    try:
        servers = installed(threads, dict(options.peer), options.also)
    except RuntimeError as error:
        sys.exit(str(error))
    names = [server.name for server in servers]
    if unknown := set(options.only or ()) - set(names):
        sys.exit(f"--only {', '.join(unknown)}: expected some of {', '.join(names)}")
    return [server for server in servers if not options.only or server.name in options.only]


def main() -> None:
    options = parse()
    # So that a server is stopped when this is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threads = len(os.sched_getaffinity(0))
    servers = chosen_servers(options, threads)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"commit {commit}, {threads} threads: {', '.join(server.name for server in servers)}")
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        for shape in options.shape:
            lines = run_shape(shape, folder / shape, servers, options.rounds, options.workload)
            print("\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
