"""Write a model folder without weights: `python benchmarks/random_checkpoint.py SHAPE FOLDER`.

It is served with `--load-format random`. The tokenizer is the demo model's with made-up words for
the other ids, so that every token has text.
"""

import json
import shutil
import sys
from pathlib import Path

from quire.pipelines.hf import resolve_model

COMMON = {
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
SHAPES = {
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
}


def main() -> None:
    shape, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**COMMON, **SHAPES[shape]}, indent=1))
    demo = resolve_model("quire-demo")
    shutil.copy(demo / "tokenizer_config.json", folder)
    tokenizer = json.loads((demo / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {
        f"word{token}": token for token in range(len(vocabulary), SHAPES[shape]["vocab_size"])
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    print(folder)


if __name__ == "__main__":
    main()
