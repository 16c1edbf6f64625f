"""Pickled weights: converted in a process of their own, which runs nothing of what they say."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fuzz.hostile_pickles import HOSTILE
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from quire.config.errors import ModelError
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.hf import resolve_model
from quire.pipelines.llm import LLM
from quire.pipelines.weights import pytorch_weights
from quire.pipelines.weights.checkpoint import load_weights, match_weights
from quire.pipelines.weights.pytorch_weights import PytorchWeights
from quire.pipelines.weights.weights import Weights

SINGLE = "pytorch_model.bin"
INDEX = f"{SINGLE}.index.json"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "quire" / "converted"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    return path


def convert(folder: Path) -> Weights:
    return load_weights(folder, None, "pytorch")


def assert_equal(weights: Weights, tensors: dict[str, torch.Tensor]) -> None:
    assert weights.entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        read = weights.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor), name


def tied_tensors() -> dict[str, torch.Tensor]:
    """Shared, transposed, partly seen, empty and scalar tensors of several types."""
    base = torch.randn(6, 8)
    return {
        "embed": base,
        "head": base,
        "turned": base.t(),
        "part": base[2:4, 1::2],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "bfloat16": torch.randn(5).bfloat16(),
        "step": torch.tensor(7),
        "none": torch.empty(0, 4, dtype=torch.float16),
    }


@pytest.mark.parametrize("is_archive", [True, False])
def test_a_file_is_converted_once_and_equals(folder: Path, cache: Path, is_archive: bool) -> None:
    tensors = tied_tensors()
    torch.save(tensors, folder / SINGLE, _use_new_zipfile_serialization=is_archive)
    seen: list[tuple[str, float]] = []

    def progress(phase: str, fraction: float) -> None:
        seen.append((phase, fraction))

    weights = PytorchWeights(folder, progress)

    assert_equal(weights, tensors)
    assert seen[-1] == ("convert", 1.0)
    (kept,) = cache.iterdir()
    assert weights.source.startswith(str(kept))
    assert cache.stat().st_mode & 0o077 == 0
    seen.clear()
    assert_equal(PytorchWeights(folder, progress), tensors)
    assert seen == []

    torch.save({"other": torch.ones(2)}, folder / SINGLE)
    assert PytorchWeights(folder, progress).entries.keys() == {"other"}
    assert len(list(cache.iterdir())) == 2


def save_shards(folder: Path, **listed: str) -> dict[str, torch.Tensor]:
    shared = torch.randn(4, 4)
    shards = {"a.bin": {"x": shared, "y": shared[1]}, "b.bin": {"z": torch.randn(3)}}
    for name, tensors in shards.items():
        torch.save(tensors, folder / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    (folder / INDEX).write_text(json.dumps({"weight_map": {**weight_map, **listed}}))
    return {**shards["a.bin"], **shards["b.bin"]}


def test_shards_are_converted_to_shards(folder: Path) -> None:
    tensors = save_shards(folder)

    assert_equal(convert(folder), tensors)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"w": "b.bin"}, "w: expected the tensor that the index lists"),
        ({"z": "a.bin", "w": "b.bin"}, "b.bin: z: expected the index to list it here"),
        ({"z": "../b.bin"}, "expected a .bin file name, found '../b.bin'"),
        ({"z": "c.bin"}, "c.bin: file not found"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    folder: Path, listed: dict[str, str], message: str
) -> None:
    save_shards(folder, **listed)

    with pytest.raises(ModelError, match=message):
        convert(folder)


def test_a_model_is_what_it_is_as_safetensors(tmp_path: Path, folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / SINGLE)
    spec = load_model_spec(folder)

    weights = convert(folder)

    state = model.state_dict()
    for name in match_weights(weights, spec):
        assert torch.equal(weights.read(name), state[name])


def test_a_pickled_model_says_what_it_says_as_safetensors(folder: Path) -> None:
    demo = resolve_model("quire-demo")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder)
    torch.save(load_file(demo / "model.safetensors"), folder / SINGLE)
    texts = []
    for model, load_format in ((demo, "auto"), (folder, "pytorch")):
        options = {"device": "cpu", "threads": 1, "load_format": load_format}
        with LLM(model=str(model), **options) as llm:
            texts += llm.generate("Once upon", max_new_tokens=10, use_tqdm=False)

    assert texts[0] == texts[1] != ""


def test_pickles_are_off_by_default(folder: Path) -> None:
    torch.save({"a": torch.ones(2)}, folder / SINGLE)

    with pytest.raises(ModelError, match=f"{SINGLE} is a pickle, which can run code: .*pytorch"):
        load_weights(folder)


def test_of_several_files_without_an_index_none_is_guessed(folder: Path) -> None:
    for name in ("a.bin", "b.pt", "optimizer.pt", "training_args.bin"):
        torch.save({"a": torch.ones(2)}, folder / name)

    with pytest.raises(ModelError, match=r"or one file, found a.bin, b.pt$"):
        convert(folder)
    (folder / "b.pt").unlink()
    assert convert(folder).entries.keys() == {"a"}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


RUN_ALL = """
import sys
from pathlib import Path
from quire.pipelines.weights import pytorch_converter as converter
sources = tuple(sys.argv[2:])
job = converter.Conversion(sources, sys.argv[1], ("x",) * len(sources), 10**6)
{confinement}
converter._prepare(job)
for source in sources:
    try:
        converter._checked(converter._load(source))
    except Exception as error:
        text = str(error) if isinstance(error, converter.Unfit) else converter._reason(error)
        print(Path(source).name, "|", text)
    else:
        print(Path(source).name, "| SERVED")
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("confinement", ["", "converter.confine = lambda *a: None"])
def test_hostile_files_leave_no_marker(folder: Path, marker: Path, confinement: str) -> None:
    """The unpickler alone refuses them too."""
    for name, write in HOSTILE.items():
        write(folder / name, marker)
    (folder / "hubconf.py").write_text(f"open({str(marker)!r}, 'w')")

    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN_ALL.replace("{confinement}", confinement), str(folder),
         *(str(folder / name) for name in HOSTILE)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" | ", 1) for line in done.stdout.splitlines())
    assert lines.keys() == HOSTILE.keys()
    assert [name for name, text in lines.items() if text == "SERVED"] == []
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os.system", "unsupported GLOBAL posix.system"),
        ("numbers", "'step': expected a tensor, found int"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(
    folder: Path, cache: Path, marker: Path, name: str, message: str
) -> None:
    HOSTILE[name](folder / SINGLE, marker)

    with pytest.raises(ModelError, match=message) as caught:
        convert(folder)

    assert str(caught.value).startswith(f"{folder}: {SINGLE} cannot be converted: ")
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    assert list(cache.iterdir()) == []


def test_a_tensor_larger_than_its_file_is_refused(folder: Path) -> None:
    torch.save({"a": torch.ones(1).expand(10_000, 10_000)}, folder / SINGLE)

    with pytest.raises(ModelError, match="more than twice the bytes of the file"):
        convert(folder)


CONFINED = """
import os, sys, socket, subprocess, ctypes, pickle, resource, shutil, tempfile
from pathlib import Path
from quire.pipelines.weights.confinement import Refused, confine, leave_network, limit_resources
leave_network()
limit_resources(more_memory=2**30, file_bytes=1000, cpu_seconds=60)
source, target, marker = map(Path, sys.argv[1:])
attempts = {
    "system": lambda: os.system(f"touch {marker}"),
    "popen": lambda: subprocess.Popen(["touch", str(marker)]),
    "spawn": lambda: os.posix_spawn("/bin/touch", ["touch", str(marker)], {}),
    "exec": lambda: os.execv("/bin/touch", ["touch", str(marker)]),
    "fork": os.fork,
    "socket": socket.socket,
    "open": lambda: open(marker, "w"),
    "open low": lambda: os.open(marker, os.O_CREAT | os.O_WRONLY),
    "read": lambda: open("/etc/passwd"),
    "write source": lambda: open(source, "r+"),
    "beside": lambda: open(target / ".." / "marker", "w"),
    "below": lambda: open(target / "deep" / "marker", "w"),
    "by bytes": lambda: open(os.fsencode(target / "x"), "w"),
    "remove": lambda: os.remove(source),
    "rename": lambda: os.rename(source, marker),
    "link": lambda: os.symlink(source, marker),
    "mkdir": lambda: os.mkdir(marker),
    "import": lambda: __import__("sqlite3"),
    "dlopen": lambda: ctypes.CDLL("libm.so.6"),
    "unpickle": lambda: pickle.loads(b"cposix\\nsystem\\n(S'true'\\ntR."),
    "eval": lambda: eval("1"),
    "kill": lambda: os.kill(os.getpid(), 0),
}
confine([source], target)
for name, attempt in attempts.items():
    try:
        attempt()
    except Refused:
        continue
    except BaseException as error:
        os.write(1, f"{name} {error!r}\\n".encode())
    else:
        os.write(1, f"{name} was let through\\n".encode())
assert open(source).read() == "data"
with open(target / "out", "wb") as file:
    file.write(b"x" * 1000)
try:
    with open(target / "more", "wb", buffering=0) as file:
        file.write(b"x" * 1000)
        file.write(b"x")
except OSError:
    os.write(1, b"end\\n")
try:
    bytearray(3 * 2**30)
except MemoryError:
    os.write(1, b"end\\n")
os._exit(0)
"""


def test_a_confined_process_can_read_its_file_and_write_its_result(tmp_path: Path) -> None:
    """The second line of defence, were the unpickler to fail."""
    source, target, marker = (tmp_path / name for name in ("source", "target", "marker"))
    source.write_text("data")
    target.mkdir()

    done = subprocess.run(
        [sys.executable, "-P", "-c", CONFINED, *map(str, (source, target, marker))],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "end\nend\n"), done.stderr
    assert not marker.exists()


def test_the_converter_sees_no_secrets_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    from quire.config.converter_env import converter_environment

    for name in ("HTTPS_PROXY", "HF_TOKEN", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "PYTHONPATH"):
        monkeypatch.setenv(name, "x")

    kept = converter_environment()

    assert "x" not in kept.values()


KILLED = """
import os, signal, sys
from pathlib import Path
from quire.pipelines.weights.pytorch_weights import _work_folder
with _work_folder(Path(sys.argv[1])) as work:
    (work / "model.safetensors").touch()
    print(work, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_killed_processes_left_is_removed_and_no_more(cache: Path) -> None:
    """Whatever number they had: in a container the next process has the same."""
    cache.mkdir(parents=True, mode=0o700)
    earlier = cache / f".{os.getpid()}-abc"
    earlier.mkdir()
    command = [sys.executable, "-P", "-c", KILLED, str(cache)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with pytorch_weights._work_folder(cache) as work:
            assert work.is_dir() and (left / "model.safetensors").is_file()
        other.communicate()

    assert left.is_dir() and not work.exists() and not earlier.exists()
    with pytorch_weights._work_folder(cache):
        assert not left.exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_cache_that_others_can_write_to_is_refused(folder: Path, cache: Path, mode: int) -> None:
    """Anyone could put weights under a digest that is easy to compute."""
    torch.save({"a": torch.ones(2)}, folder / SINGLE)
    cache.mkdir(parents=True)
    cache.chmod(mode)

    with pytest.raises(ModelError, match=f"no other can write to, found .* with mode {mode:04o}"):
        convert(folder)


def test_output_that_the_converter_never_writes_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(2)}, folder / SINGLE)
    monkeypatch.setattr(pytorch_weights.sys, "executable", "/bin/echo")

    with pytest.raises(ModelError, match="the converter said what it never says"):
        convert(folder)
