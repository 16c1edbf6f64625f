"""The command as a person types it: help at once, one-line errors, exit codes that mean something."""

import json
import resource
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from quire.pipelines.hf import resolve_model


def quire(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "quire.server", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def spent():
    """Seconds of processor time that the commands so far have used: a busy machine adds none."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_comes_within_half_a_second():
    quire("--help")
    before = spent()

    shown = quire("--help")

    assert spent() - before < 0.5
    commands = {line.split()[0] for line in shown.stdout.splitlines() if line.startswith("  ")}
    assert {"serve", "generate", "encode", "list", "warm-cache", "plan", "bench"} <= commands


def test_version_and_list():
    assert quire("version").stdout.startswith("quire 0.")
    rows = json.loads(quire("list", "--json").stdout)["architectures"]
    names = {row["name"] for row in rows}
    assert {
        "LlamaForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "MistralForCausalLM",
    } <= names


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_serve_bears_closed_standard_streams(closed):
    """As some init systems start a daemon; what is opened then must not get their numbers."""
    command = [sys.executable, "-P", "-m", "quire.server", "serve", "--port", "0"]

    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command, "--model", "/nowhere"],
        check=False,
        capture_output=True,
        timeout=60,
    )

    assert done.returncode == 3, done.stderr


def test_plan_predicts_without_loading():
    shown = quire("plan", "--hardware", "h200", "--max-batch-size", "32").stdout

    for words in ("weights", "kv cache", "pages", "concurrency", "ms/step", "h200"):
        assert words in shown, shown


def test_generate_prints_text():
    shown = quire("generate", "--prompt", "Count to five.", "--max-new-tokens", "40")

    assert "1, 2, 3, 4, 5" in shown.stdout.lower(), shown.stderr


def test_encode_prints_unit_vectors_that_tell_texts_apart():
    shown = quire("encode", "--prompt", "a fox", "--prompt", "a fox", "--prompt", "one, two, three")

    vectors = np.array([json.loads(line)["embedding"] for line in shown.stdout.splitlines()])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert (vectors[0] == vectors[1]).all()
    assert vectors[0] @ vectors[2] < 0.999


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["serve", "--port", "abc"], 2, ["port", "abc"]),
        (["serve", "--dtype", "int3"], 2, ["dtype", "int3"]),
        (["serve", "--max-length", "1"], 2, ["max_length", "1"]),
        (["serve", "--config", "/nowhere.yaml"], 2, ["--config", "/nowhere.yaml"]),
        (["serve", "--host", "0.0.0.0"], 2, ["--api-key-file", "--insecure"]),
        (["serve", "--port", "0", "--max-length", "999999"], 2, ["max_length", "999999"]),
        (["serve", "--port", "0", "--kv-cache-pages", "2", "--max-length", "512"], 2, ["pages"]),
        (["serve", "--port", "0", "--model", "/nowhere"], 3, ["/nowhere"]),
        (["serve", "--port", "0", "--device", "cuda"], 2, ["device", "cuda"]),
        (["generate", "--prompt", "x", "--temperature", "3"], 2, ["temperature", "3"]),
    ],
)
def test_a_mistake_is_one_line_and_a_code_within_five_seconds(arguments, code, words):
    before = spent()

    shown = quire(*arguments)

    assert shown.returncode == code, shown.stderr
    assert spent() - before < 5.0
    last = shown.stderr.strip().splitlines()[-1]
    assert all(word in last for word in words), shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_taken_port_is_told_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        shown = quire("serve", "--port", str(port))

    assert shown.returncode == 4
    assert f"{port}" in shown.stderr and "in use" in shown.stderr


def broken(tmp_path, change) -> str:
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("quire-demo", None), folder)
    change(folder)
    return str(folder)


def drop_key(folder, key):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config[key]
    path.write_text(json.dumps(config))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json"]),
        (lambda folder: (folder / "config.json").unlink(), ["config.json"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json"]),
        (lambda folder: drop_key(folder, "num_hidden_layers"), ["num_hidden_layers"]),
        (truncate, ["model.safetensors"]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["safetensors"]),
    ],
)
def test_a_broken_model_folder_is_one_line_and_exit_code_3(tmp_path, change, words):
    before = spent()

    shown = quire("serve", "--port", "0", "--model", broken(tmp_path, change))

    assert shown.returncode == 3, shown.stderr
    assert spent() - before < 5.0
    last = shown.stderr.strip().splitlines()[-1]
    assert last.startswith("quire: error: ") and all(word in last for word in words), shown.stderr
