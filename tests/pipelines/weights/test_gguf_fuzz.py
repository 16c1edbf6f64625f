"""Damaged GGUF files are refused in one line or harmless, and end no process."""

import subprocess
import sys
from pathlib import Path

import gguf_mutants
from gguf_mutants import open_model, run_mutants
from gguf_tokenizers import add_byte_level
from parity.gguf_writer import all_of, write_gguf
from parity.random_models import make_random_model

NUM_MUTANTS = 6000


def small_model(path: Path) -> Path:
    model = make_random_model("Llama", num_hidden_layers=1, vocab_size=420)
    return write_gguf(
        model, path, all_of("Q8_0"), tokenizer=lambda writer: add_byte_level(writer, "smollm")
    )


def test_no_mutant_of_a_header_does_more_than_be_refused(tmp_path: Path) -> None:
    source = small_model(tmp_path / "whole.gguf")
    open_model(source)

    refused = run_mutants(source, tmp_path / "mutant.gguf", NUM_MUTANTS, seed=1)

    assert refused > NUM_MUTANTS / 4


def test_no_mutant_ends_the_process(tmp_path: Path) -> None:
    """In a process of its own, whose memory is limited."""
    source = small_model(tmp_path / "whole.gguf")
    program = (
        "import resource, sys; from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (4 * 1024**3, 4 * 1024**3))\n"
        f"sys.path[:0] = {[str(Path(gguf_mutants.__file__).parent)]}\n"
        "from gguf_mutants import run_mutants\n"
        f"print(run_mutants(Path({str(source)!r}), Path({str(tmp_path / 'm.gguf')!r}), 300, 2))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 75
