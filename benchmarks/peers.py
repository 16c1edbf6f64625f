"""The servers that `benchmarks/cpu.py` compares: how each is started, and when it is ready."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from gguf_files import gguf_file

READY_SECONDS = 600.0
PORT = 8371


@dataclass(frozen=True, kw_only=True)
class Server:
    """`command(model folder)` serves OpenAI's completions on PORT; `model` is its name for them."""

    name: str
    command: Callable[[Path], Sequence[str]]
    ready_path: str = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
    model: Callable[[Path], str | None] = lambda folder: None


def quire(name: str = "Quire", *options: str) -> Server:
    return Server(
        name=name,
        command=lambda folder: (
            *(sys.executable, "-P", "-m", "quire.server", "serve", "--model", str(folder)),
            *("--port", str(PORT), *options),
        ),
        ready_path="/readyz",
    )


def vllm(python: str, threads: int) -> Server:
    """vLLM for CPUs. By default it computes on all cores but one."""
    return Server(
        name="vLLM",
        command=lambda folder: (
            *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
            *("--port", str(PORT), "--dtype", "bfloat16", "--max-model-len", "4096"),
            "--no-enable-prefix-caching",
        ),
        environment={
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "OMP_NUM_THREADS": str(threads),
        },
        model=str,
    )


def openvino(python: str, threads: int) -> Server:
    """OpenVINO GenAI behind `openvino_server.py`: it brings no server of its own."""
    script = Path(__file__).with_name("openvino_server.py")
    return Server(
        name="OpenVINO GenAI",
        command=lambda folder: (python, str(script), str(folder), str(PORT), str(threads)),
    )


def llama_cpp(binary: str, threads: int, kind: str = "BF16") -> Server:
    """llama.cpp's server, of the model as a GGUF file of `kind`."""
    count = str(threads)
    quantizer = str(Path(binary).with_name("llama-quantize"))
    return Server(
        name="llama.cpp" if kind == "BF16" else f"llama.cpp {kind}",
        command=lambda folder: (
            *(binary, "-m", str(gguf_file(folder, kind, quantizer)), "--port", str(PORT)),
            *("-c", "16384", "-np", "32", "-kvu", "-t", count, "-tb", count),
        ),
    )


def installed(
    threads: int, pythons: Mapping[str, str], gguf_kinds: Sequence[str] = ()
) -> list[Server]:
    """The peers found here, llama.cpp once more for each of `gguf_kinds`.

    `pythons` name interpreters that have a peer's package.
    """
    found = []
    for module, peer in (("vllm", vllm), ("openvino_genai", openvino)):
        python = pythons.get(module, sys.executable)
        probe = [python, "-c", f"import {module}"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            found.append(peer(python, threads))
    binary = pythons.get("llama.cpp") or shutil.which("llama-server")
    kinds = ("BF16", *gguf_kinds) if binary else ()
    return [*found, *(llama_cpp(binary, threads, kind) for kind in kinds)]


@contextlib.contextmanager
def running(server: Server, folder: Path) -> Iterator[tuple[str, float]]:
    """Its URL and the seconds until it was ready.

    Raises:
        RuntimeError: the port is taken, or it ended or was not ready in time; the message holds the
            end of its log.
    """
    url = f"http://127.0.0.1:{PORT}"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            raise RuntimeError(f"{server.name}: another server listens on port {PORT}")
    command = server.command(folder)
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            list(command),
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **server.environment},
            start_new_session=True,
        )
        try:
            while not _is_ready(f"{url}{server.ready_path}"):
                if process.poll() is not None or time.perf_counter() - started > READY_SECONDS:
                    end = Path(log.name).read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{server.name} did not get ready:\n{end}")
                time.sleep(0.02)
            yield url, time.perf_counter() - started
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # Workers that outlived it would take the next server's time.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(url, timeout=2.0).status_code == 200
    return False
