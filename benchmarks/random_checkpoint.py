"""Write a model folder: `python benchmarks/random_checkpoint.py SHAPE FOLDER [--weights]`.

Without weights it is served with `--load-format random`; other servers need weights: normal, of
standard deviation 0.02, bfloat16. The tokenizer is the demo model's with made-up words for the other
ids, so that every token has text.
"""

import argparse
import json
import shutil
from pathlib import Path

from quire.pipelines.hf import resolve_model

COMMON = {
    "dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
SHAPES = {
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
}


def write_checkpoint(shape: str, folder: Path, *, has_weights: bool = False) -> None:
    """The configuration and tokenizer of a shape, and random weights if asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**COMMON, **SHAPES[shape]}, indent=1))
    demo = resolve_model("quire-demo")
    shutil.copy(demo / "tokenizer_config.json", folder)
    tokenizer = json.loads((demo / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    # Two added tokens have the ids that follow the vocabulary.
    vocabulary |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary |= {
        f"word{token}": token for token in range(len(vocabulary), SHAPES[shape]["vocab_size"])
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if has_weights:
        _write_weights(folder)


def _write_weights(folder: Path) -> None:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
    model.tie_weights()
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model folder of a known shape.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", action="store_true", help="also random weights")
    options = parser.parse_args()
    write_checkpoint(options.shape, options.folder, has_weights=options.weights)
    print(options.folder)


if __name__ == "__main__":
    main()
