"""Folders of tiny random embedding models, an encoder's and a decoder's, and what transformers says."""

import json
import shutil
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray
from parity.families.encoders import make_encoder
from parity.random_models import make_random_model

from quire.pipelines.hf import resolve_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "fox", "went", "to", "the", "river", "##s"]
TEXTS = ["one fox", "the rivers", "one fox went to the river " * 9, "fox"]


def write_bert(path: Path) -> Path:
    """A BERT that pools the mean and normalizes, with a WordPiece tokenizer of 11 words."""
    make_encoder("BertModel").save_pretrained(path)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            {word: index for index, word in enumerate(WORDS)},
            unk_token="[UNK]",
            max_input_chars_per_word=100,
        )
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = tokenizers.decoders.WordPiece("##")
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.save(str(path / "tokenizer.json"))
    write_modules(path, "mean_tokens")
    return path


def write_qwen3(path: Path, *, modules: bool = True) -> Path:
    """A Qwen3 that pools the last token and normalizes, with the demo model's tokenizer."""
    demo = resolve_model("quire-demo", None)
    vocab_size = transformers.AutoConfig.from_pretrained(demo).vocab_size
    model = make_random_model("Qwen3", vocab_size=vocab_size, max_position_embeddings=512)
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, path)
    if modules:
        write_modules(path, "lasttoken")
    return path


def write_modules(path: Path, pooling: str) -> None:
    """The files of sentence-transformers."""
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    rows = [
        {"idx": index, "name": str(index), "path": folder, "type": f"sentence_transformers.{kind}"}
        for index, (folder, kind) in enumerate(steps)
    ]
    rows[0]["type"] = "sentence_transformers.models.Transformer"
    (path / "modules.json").write_text(json.dumps(rows))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))


def expected(folder: Path, ids: list[int], pooling: str) -> NDArray[np.float32]:
    """transformers' vector of a text, of length 1."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        states = model(torch.tensor([ids])).last_hidden_state[0]
    pooled = {"cls": states[0], "mean": states.mean(0), "last": states[-1]}[pooling]
    vector: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=0).numpy()
    return vector
