"""A checkpoint of `random_checkpoint.py` in the forms that peers want; each is made on first use.

Each function returns the path, and raises RuntimeError where a peer's own program fails.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shared"))

W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def gguf_file(folder: Path, kind: str, quantizer: str) -> Path:
    """The model as `kind`, BF16 or what `llama-quantize`, the program at `quantizer`, knows."""

    def make(path: Path) -> None:
        if kind == "BF16":
            _write_bfloat16(folder, path)
        else:
            source = gguf_file(folder, "BF16", quantizer)
            # Without --pure, as people use it: some tensors get more bits.
            _run([quantizer, str(source), str(path), kind])

    return _kept(folder / "gguf" / f"{kind}.gguf", make)


def openvino_model(folder: Path, exporter: str, weight_format: str) -> Path:
    """By `optimum-cli`, the program at `exporter`; without a format the weights are as they were."""

    def make(path: Path) -> None:
        chosen = ("--weight-format", weight_format) if weight_format else ()
        task = ("--task", "text-generation-with-past")
        _run([exporter, "export", "openvino", "-m", str(folder), *chosen, *task, str(path)])

    return _kept(folder / "-".join(filter(None, ("openvino", weight_format))), make)


def w8a8_checkpoint(folder: Path) -> Path:
    """Layers in int8, a scale for each feature, for activations that are quantized token by token."""

    def make(path: Path) -> None:
        from safetensors.torch import load_file, save_file

        path.mkdir(exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(folder / name, path)
        config = json.loads((folder / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "quantization_config": W8A8}))
        tensors = {}
        for name, weight in load_file(folder / "model.safetensors").items():
            tensors[name] = weight
            if name.endswith("_proj.weight"):
                scale = weight.float().abs().amax(1, keepdim=True) / 127
                tensors[name] = (weight.float() / scale).round().char()
                tensors[f"{name}_scale"] = scale
        save_file(tensors, path / "model.safetensors", {"format": "pt"})

    return _kept(folder / "w8a8", make)


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


def _kept(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, made under another name, so that what stands there is whole."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        made = path.with_name(f"{path.name}.part")
        make(made)
        made.rename(path)
    return path


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr[-2000:]}")
