"""The servers that `benchmarks/cpu.py` compares: how each is started, and when it is ready."""

import contextlib
import os
import shlex
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
from peer_models import gguf_file, openvino_model, w8a8_checkpoint

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


def quire(python: str, threads: int, variant: str = "") -> Server:
    """Quire takes the threads it may use; `variant` holds more options of `quire serve`."""
    return Server(
        name=f"Quire {variant}".strip(),
        command=lambda folder: (
            *(python, "-P", "-m", "quire.server", "serve", "--model", str(folder)),
            *("--port", str(PORT), *shlex.split(variant)),
        ),
        ready_path="/readyz",
    )


def vllm(python: str, threads: int, variant: str = "") -> Server:
    """vLLM for CPUs. By default it computes on all cores but one. `variant`: W8A8, or none."""
    if variant not in ("", "W8A8"):
        raise RuntimeError(f"vllm={variant}: expected W8A8")

    def model(folder: Path) -> str:
        return str(w8a8_checkpoint(folder) if variant == "W8A8" else folder)

    return Server(
        name=f"vLLM {variant}".strip(),
        command=lambda folder: (
            *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", model(folder)),
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
        model=model,
    )


def openvino(python: str, threads: int, variant: str = "") -> Server:
    """OpenVINO GenAI behind `openvino_server.py`: it brings no server of its own.

    `variant` is a `--weight-format` of its exporter, such as int8.
    """
    script = str(Path(__file__).with_name("openvino_server.py"))
    exporter = str(Path(python).with_name("optimum-cli"))
    return Server(
        name=f"OpenVINO GenAI {variant}".strip(),
        command=lambda folder: (
            *(python, script, str(openvino_model(folder, exporter, variant))),
            *(str(PORT), str(threads)),
        ),
    )


def llama_cpp(binary: str, threads: int, variant: str = "") -> Server:
    """llama.cpp's server; `variant` is a kind of GGUF file, such as Q8_0; else BF16."""
    count = str(threads)
    quantizer = str(Path(binary).with_name("llama-quantize"))
    return Server(
        name=f"llama.cpp {variant}".strip(),
        command=lambda folder: (
            *(binary, "-m", str(gguf_file(folder, variant or "BF16", quantizer))),
            *("--port", str(PORT)),
            *("-c", "16384", "-np", "32", "-kvu", "-t", count, "-tb", count),
        ),
    )


PEERS: Mapping[str, Callable[[str, int, str], Server]] = {
    "quire": quire,
    "vllm": vllm,
    "openvino_genai": openvino,
    "llama.cpp": llama_cpp,
}


def installed(
    threads: int, programs: Mapping[str, str], variants: Sequence[tuple[str, str]]
) -> list[Server]:
    """Quire and the peers found here, each plain and in its `variants`, (peer, variant).

    `programs` name llama.cpp's server, and interpreters that have a peer's package.

    Raises:
        RuntimeError: a variant's peer is not here, or does not have it.
    """
    found = {"quire": programs.get("quire", sys.executable)}
    for module in ("vllm", "openvino_genai"):
        python = programs.get(module, sys.executable)
        probe = [python, "-c", f"import {module}"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            found[module] = python
    if binary := programs.get("llama.cpp") or shutil.which("llama-server"):
        found["llama.cpp"] = binary
    if missing := {peer for peer, _ in variants} - set(found):
        raise RuntimeError(f"not here: {', '.join(missing)}")
    return [
        PEERS[name](program, threads, variant)
        for name, program in found.items()
        for variant in ("", *(variant for peer, variant in variants if peer == name))
    ]


@contextlib.contextmanager
def running(server: Server, folder: Path) -> Iterator[tuple[str, float]]:
    """Its URL and the seconds until it was ready.

    Raises:
        RuntimeError: the port is taken, or it ended or was not ready in time; the message holds the
            end of its log. Or its form of the model could not be made.
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
