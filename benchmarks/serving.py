"""Start a fresh server and load it: `python benchmarks/serving.py [MODEL [OPTION ...]]`.

Prints JSON lines. The options are those of `quire serve`, such as `--load-format random`.
"""

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import httpx2
import orjson

from quire.server.bench import Load, run_load

WORKLOADS = {
    "W1 one stream": {"requests": 4, "concurrency": 1},
    "W2 eight streams": {"requests": 16, "concurrency": 8},
    "W3 32 streams": {"requests": 64, "concurrency": 32},
}


def commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "quire-demo"
    log = Path(tempfile.mkdtemp()) / "log"
    started = time.perf_counter()
    with log.open("wb") as sink:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "quire.server", "serve", "--port", "0", "--model", model]
            + sys.argv[2:],
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        while not (found := re.search(r"listening on (http://[0-9.:]+)", log.read_text())):
            time.sleep(0.05)
        url = found[1]
        while httpx2.get(f"{url}/readyz").status_code != 200:
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        ready = time.perf_counter() - started
        load = Load(url=url, prompt_tokens=128, output_tokens=64)
        asyncio.run(run_load(replace(load, requests=2, concurrency=2, seed=1)))
        for name, sizes in WORKLOADS.items():
            report = asyncio.run(run_load(replace(load, **sizes)))
            row = {"workload": name, "model": model, "commit": commit(), "ready_s": ready}
            print(orjson.dumps({**row, **asdict(report)}).decode(), flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
