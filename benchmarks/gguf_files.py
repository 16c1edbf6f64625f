"""GGUF files of a folder that `random_checkpoint.py` wrote, as llama.cpp's converter gives them."""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shared"))


def gguf_file(folder: Path, kind: str, quantizer: str) -> Path:
    """The model as `kind`, BF16 or what `llama-quantize`, the program at `quantizer`, knows."""
    path = folder / "gguf" / f"{kind}.gguf"
    if path.is_file():
        return path
    path.parent.mkdir(exist_ok=True)
    made = path.with_suffix(".part")
    if kind == "BF16":
        _write_bfloat16(folder, made)
    else:
        source = gguf_file(folder, "BF16", quantizer)
        # Without --pure, as people use it: some tensors get more bits.
        command = [quantizer, str(source), str(made), kind]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return made.rename(path)


def _write_bfloat16(folder: Path, path: Path) -> None:
    import torch
    import transformers
    from gguf_tokenizers import add_bpe
    from parity.gguf_writer import all_of, write_gguf
    from tokenizers import Tokenizer

    # The writer's quantizers take float32; bfloat16 numbers come out of it as they were.
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    write_gguf(
        model, path, all_of("BF16"), tokenizer=lambda writer: add_bpe(writer, tokenizer, "gpt-2")
    )
