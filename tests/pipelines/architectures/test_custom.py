"""Architectures from a person's own module: the page's example works, mistakes are one line."""

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from parity.cases import reference_logits
from parity.driver import Driver
from parity.random_models import make_random_model
from safetensors.torch import save_file

from quire.config.errors import ConfigError, ModelError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.custom import module_files, registered_architectures
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.registry import ARCHITECTURES
from quire.pipelines.architectures.spec import ModelSpec
from quire.pipelines.hf import resolve_model
from quire.pipelines.worker.load import LoadedModel, load_runner

PAGE = Path(__file__).parents[3] / "docs" / "custom-architecture.md"
HISTORY = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]


def example() -> str:
    found = re.search(r"```python\n(\"\"\"Tern.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(autouse=True)
def fresh_modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("tern", "other", "bad", "package"):
            del sys.modules[name]


def write(folder: Path, source: str, name: str = "tern") -> str:
    """A module in `folder`, and how to name it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    return f"{folder}:{name}"


def tern_checkpoint(folder: Path, vocab_size: int = 211) -> torch.nn.Module:
    """A random Llama under Tern's names."""
    folder.mkdir(exist_ok=True)
    model = make_random_model("Llama", num_hidden_layers=2, vocab_size=vocab_size)
    state = model.state_dict()

    def fused(at: str, *names: str) -> torch.Tensor:
        return torch.cat([state[f"{at}.{name}_proj.weight"] for name in names])

    tensors = {
        "tokens.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "head.weight": state["lm_head.weight"].clone(),
    }
    for index in range(2):
        old, new = f"model.layers.{index}", f"stack.{index}"
        tensors |= {
            f"{new}.qkv.weight": fused(f"{old}.self_attn", "q", "k", "v"),
            f"{new}.out.weight": fused(f"{old}.self_attn", "o"),
            f"{new}.gate_up.weight": fused(f"{old}.mlp", "gate", "up"),
            f"{new}.down.weight": fused(f"{old}.mlp", "down"),
            f"{new}.norm1.weight": state[f"{old}.input_layernorm.weight"],
            f"{new}.norm2.weight": state[f"{old}.post_attention_layernorm.weight"],
        }
    save_file(tensors, folder / "model.safetensors")
    config = {**model.config.to_dict(), "architectures": ["TernForCausalLM"], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return model


def load(folder: Path, entry: str) -> LoadedModel:
    settings = ModelSettings(
        custom_architectures=(entry,), device="cpu", threads=1, page_size=16, kv_cache_pages=64
    )
    architectures = registered_architectures(settings.custom_architectures)
    spec = load_model_spec(folder, architectures)
    return load_runner(settings, folder, spec, lambda *a: None, architectures=architectures)


def logits_of(loaded: LoadedModel) -> torch.Tensor:
    (logits,) = Driver(loaded).logits([HISTORY], [[(0, 7)], [(0, len(HISTORY) - 7)]])
    return logits


def test_the_example_is_short_and_equals_transformers(tmp_path: Path) -> None:
    assert example().count("\n") <= 60
    entry = write(tmp_path / "models", example())
    model = tern_checkpoint(tmp_path / "checkpoint")

    logits = logits_of(load(tmp_path / "checkpoint", entry))

    assert (logits - reference_logits(model, HISTORY)).abs().max() < 1e-4


LOUDER = """
class Louder:
    def __init__(self, model):
        self.model, self.hidden_states = model, model.hidden_states

    def __call__(self, *arguments):
        return 2 * self.model(*arguments)

    def head(self, hidden):
        return 2 * self.model.head(hidden)

"""


def test_a_row_may_build_its_own_model(tmp_path: Path) -> None:
    (build,) = re.findall(r"```python\n(def build\(.*?)```", PAGE.read_text(), re.DOTALL)
    source = example() + LOUDER + build
    loud = write(
        tmp_path / "models",
        source.replace("read=read_tern", "read=read_tern, build=build").replace(
            "ARCHITECTURES = [", "def rows(): return ["
        )
        + "\nARCHITECTURES = rows()\n",
        "other",
    )
    quiet = write(tmp_path / "models", example())
    tern_checkpoint(tmp_path / "checkpoint")

    loud_logits = logits_of(load(tmp_path / "checkpoint", loud))

    assert torch.equal(loud_logits, 2 * logits_of(load(tmp_path / "checkpoint", quiet)))  # fmt: skip


def test_a_live_worker_serves_the_example(tmp_path: Path) -> None:
    """Through the API process and a worker process, each of which imports the module."""
    demo = resolve_model("quire-demo")
    vocab_size = json.loads((demo / "config.json").read_text())["vocab_size"]
    entry = write(tmp_path / "models", example() + PRINT_PROCESS)
    folder = tmp_path / "checkpoint"
    tern_checkpoint(folder, vocab_size)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder)

    done = subprocess.run(
        [sys.executable, "-P", "-c", LIVE, "--custom-architectures", entry, "--model", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout.splitlines()[-1])
    assert reply["usage"]["completion_tokens"] == 5
    assert len(re.findall(r"tern in process \d+ torch False", done.stdout)) == 1
    assert len(set(re.findall(r"tern in process (\d+)", done.stdout))) == 2


PRINT_PROCESS = """
import os, sys
print("tern in process", os.getpid(), "torch", "torch" in sys.modules, flush=True)
"""

LIVE = """
import re, subprocess, sys, time, httpx2
server = subprocess.Popen(
    [sys.executable, "-P", "-m", "quire.server", "serve", "--port", "0", "--device", "cpu",
     "--threads", "1", *sys.argv[1:]],
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
)
seen = []
try:
    for line in server.stdout:
        seen.append(line)
        if found := re.search(r"listening on (http://[0-9.:]+)", line):
            break
    client = httpx2.Client(base_url=found[1], timeout=60.0)
    while client.get("/readyz").status_code != 200:
        assert server.poll() is None
        time.sleep(0.05)
    asked = {"prompt": "a", "max_tokens": 5, "ignore_eos": True}
    reply = client.post("/v1/completions", json=asked)
finally:
    server.terminate()
    seen += server.stdout
    server.wait()
print(*seen, sep="")
print(reply.text)
"""


def test_a_row_replaces_one_of_quire(tmp_path: Path) -> None:
    entry = write(tmp_path, example().replace("TernForCausalLM", "LlamaForCausalLM"))

    rows = registered_architectures([entry])

    assert [row.name for row in rows].count("LlamaForCausalLM") == 1
    assert len(rows) == len(ARCHITECTURES)
    assert "tokens.weight" in read_config(tmp_path, rows[0].read).tensors()
    # Nothing of it stays when it is not asked for.
    assert registered_architectures([]) == ARCHITECTURES


def read_config(folder: Path, read: object) -> ModelSpec:
    from quire.pipelines.architectures.config_file import ConfigFile

    config = make_random_model("Llama", num_hidden_layers=1).config
    assert callable(read)
    spec = read(ConfigFile("config.json", config.to_dict()))
    assert isinstance(spec, ModelSpec)
    return spec


def test_packages_and_installed_modules_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "package", "from package.inner import ARCHITECTURES", "__init__")
    write(tmp_path / "package", example(), "inner")

    for entry in (f"{tmp_path}:package", "package.inner"):
        assert registered_architectures([entry])[0].name == "TernForCausalLM"
    assert sorted(module_files([f"{tmp_path}:package"])) == [
        tmp_path / "package" / "__init__.py",
        tmp_path / "package" / "inner.py",
    ]
    del sys.modules["package"], sys.modules["package.inner"]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registered_architectures(["package"])[0].name == "TernForCausalLM"


MISTAKES = {
    "no list": ("X = 1", "the module has no ARCHITECTURES"),
    "wrong list": ("ARCHITECTURES = 'Tern'", "a list of SupportedArchitecture, found str"),
    "wrong row": ("ARCHITECTURES = ['Tern']", "SupportedArchitecture, found str in it"),
    "empty list": ("ARCHITECTURES = []", "found an empty one"),
    "raises": ("1 / 0", "importing it failed: ZeroDivisionError: division by zero"),
    "several lines": ("raise ValueError('a\\nb')", "importing it failed: ValueError: a b"),
    "leaves": ("import sys; sys.exit(0)", "importing it failed: SystemExit: 0"),
    "no Python": ("def", "importing it failed: SyntaxError: invalid syntax"),
    "its own import": ("import no_such_module", "failed: ModuleNotFoundError: No module named"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_module_is_one_line(tmp_path: Path, name: str) -> None:
    source, message = MISTAKES[name]
    entry = write(tmp_path, source, "bad")

    with pytest.raises(ConfigError) as caught:
        registered_architectures([entry])

    text = str(caught.value)
    assert text.startswith(f"custom_architectures: {entry}: ")
    assert message in text
    assert "\n" not in text
    assert "bad" not in sys.modules or name in ("no list", "wrong list", "wrong row", "empty list")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("no_such_module", "no module of that name; give folder:no_such_module for a file"),
        ("json.no_such", "no module of that name"),
        ("/no/such/folder:tern", "neither /no/such/folder/tern.py nor /no/such/folder/tern/__init"),
        ("models/tern.py", "expected folder:module or the name of a module"),
        ("models:tern.py", "expected folder:module, and 'tern.py' is no module's name"),
        ("", "expected folder:module or the name of a module"),
        ("models:", "is no module's name"),
    ],
)
def test_a_module_that_is_not_there_is_one_line(entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        registered_architectures([entry])


def test_a_name_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="a module json is loaded already; rename the file"):
        registered_architectures([write(tmp_path, example(), "json")])
    for name in ("colorsys", "sentence_splitter"):
        (tmp_path / "installed").mkdir(exist_ok=True)
        (tmp_path / "installed" / "sentence_splitter.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path / "installed"))
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(ConfigError, match=f"a module {name} is installed already; rename"):
            registered_architectures([write(tmp_path, example(), name)])
    entries = [write(tmp_path, example()), write(tmp_path, example(), "other")]
    with pytest.raises(ConfigError, match=":other: another row has the name TernForCausalLM"):
        registered_architectures(entries)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {}['width']", "TernForCausalLM cannot read it: KeyError: 'width'"),
        ("return None", "expected the custom architecture TernForCausalLM to read a ModelSpec"),
        ("raise config.wrong('hidden_act', 'silu')", 'hidden_act: expected silu, found "gelu"'),
    ],
)
def test_a_reader_that_fails_is_an_error_of_the_model(
    tmp_path: Path, body: str, message: str
) -> None:
    header, found, _ = example().partition("def read_tern(config: ConfigFile) -> ModelSpec:\n")
    row = "SupportedArchitecture(name='TernForCausalLM', example_repo_ids=(), read=read_tern)"
    entry = write(tmp_path, f"{header}{found}    {body}\nARCHITECTURES = [{row}]")
    config = {"architectures": ["TernForCausalLM"], "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(ModelError, match=message) as caught:
        load_model_spec(tmp_path, registered_architectures([entry]))

    assert str(tmp_path / "config.json") in str(caught.value)


def test_an_unknown_architecture_is_told_with_the_custom_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["X"]}')
    rows = registered_architectures([write(tmp_path, example())])

    with pytest.raises(ModelError, match="expected one of TernForCausalLM, LlamaForCausalLM"):
        load_model_spec(tmp_path, rows)


def test_torch_in_the_api_process_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = write(tmp_path, "import torch\n" + example())
    with caplog.at_level(logging.WARNING):
        registered_architectures([entry])
        assert caplog.text == ""
        monkeypatch.delitem(sys.modules, "tern")
        monkeypatch.setitem(sys.modules, "torch_of_the_test", sys.modules["torch"])
        (tmp_path / "tern.py").write_text(
            "import sys\nsys.modules['torch'] = sys.modules['torch_of_the_test']\n" + example()
        )
        monkeypatch.delitem(sys.modules, "torch")
        registered_architectures([entry])

    assert "imports torch: the API process starts later" in caplog.text
