"""A model folder is data: code that it holds or names is never run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quire.pipelines.hf import resolve_model

ROOT = Path(__file__).parents[2]
LAYERS = ("config", "kernels", "pipelines", "server")

SERVE = """
import sys
from quire.pipelines.llm import LLM
with LLM(model=".", device="cpu", threads=1) as llm:
    print(len(llm.generate("Hello", max_new_tokens=3, use_tqdm=False)[0]) > 0)
    print(llm.tokenizer.encode("Hello") != [])
"""


def name_code(path: Path, **fields: object) -> None:
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**values, "trust_remote_code": True, **fields}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo model with every file and key by which folders have brought code."""
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("quire-demo"), folder)
    name_code(
        folder / "config.json",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        custom_pipelines={"text-generation": {"impl": "evil.Pipeline"}},
    )
    name_code(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.TokenizerFast"]},
        tokenizer_class="evil.Tokenizer",
        tokenizer_file="evil.py",
    )
    name_code(folder / "generation_config.json", custom_generate="custom_generate/generate.py")
    name_code(folder / "processor_config.json", auto_map={"AutoProcessor": "evil.Processor"})
    code = f"open({str(tmp_path / 'marker')!r}, 'w')\n"
    (folder / "custom_generate").mkdir()
    for name in ("evil.py", "sitecustomize.py", "transformers.py", "conftest.py", "__init__.py",
                 "modeling_llama.py", "hubconf.py", "custom_generate/generate.py"):  # fmt: skip
        (folder / name).write_text(code)
    return folder


@pytest.mark.parametrize("options", [["-P"], ["-P", "-O"]])
def test_nothing_in_a_folder_is_run(folder: Path, options: list[str]) -> None:
    """Also where the folder is the current one, and where Python leaves assertions out."""
    done = subprocess.run(
        [sys.executable, *options, "-c", SERVE],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "True\nTrue\n"), done.stderr
    assert not (folder.parent / "marker").exists()


def test_no_code_of_quire_asks_for_remote_code() -> None:
    asked = re.compile(r"trust_remote_code(?!=False)|torch\.hub|weights_only=False")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*.py")
        for line in path.read_text().splitlines()
        if asked.search(line)
    ]

    assert found == []
