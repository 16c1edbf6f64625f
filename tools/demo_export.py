"""Tokenizer, configuration files and model card of the demo model."""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from demo_corpus import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    SPECIAL_TOKENS,
    TOOL_TOKENS,
    TURN_END,
    documents,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

MAX_POSITIONS = 2048


def train_tokenizer(seed: int, vocabulary: int, num_documents: int = 20_000) -> Tokenizer:
    """Byte-level BPE: ids 0..2 are the special tokens, every byte has a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    markers = (*SPECIAL_TOKENS, *TOOL_TOKENS)

    def texts() -> Any:
        for _, segments in zip(range(num_documents), documents(seed), strict=False):
            text = "".join(part for part, _ in segments)
            for marker in markers:
                text = text.replace(marker, "")
            yield text

    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(TOOL_TOKENS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    # Not special: a tool call must be visible in the text that a client gets.
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in TOOL_TOKENS]
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(out / "tokenizer_config.json", config)


def write_generation_config(tokenizer: Tokenizer, out: Path) -> None:
    stops = [tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)]
    _write_json(out / "generation_config.json", {"eos_token_id": stops, "pad_token_id": stops[1]})


def write_card(out: Path, facts: dict[str, Any]) -> None:
    """MODEL_CARD.md from the facts of the run."""
    rows = {
        **facts,
        "Date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    (out / "MODEL_CARD.md").write_text(CARD.format(table=table))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


CARD = """---
license: apache-2.0
language: en
---
# quire-demo

A very small Llama-architecture chat model that ships inside Quire, so that `quire serve` answers
without a download. It exists to try the server and to test it end to end.

| | |
| --- | --- |
{table}

## Corpus and licence
Every training text was written by the generator in `tools/demo_*.py` from templates and word tables
made for this model, from the seed above; no text was taken from anywhere. Weights, tokenizer and
text are under Apache-2.0.

## How it was trained
From random weights in which `tools/demo_init.py` planted one induction circuit (a head that copies
what followed the current token before), then next-token prediction on the answers and the plain
texts; questions, system prompts and tool schemas were read but not learned.

## What it can do
Short stories, haikus and poems, counting between 0 and 30, sums up to 12 plus 12, products up to
10 times 10, capitals, days, months, colours, opposites, animals, lists, repeating words it knows,
JSON objects, tool calls (`<tool_call>` format), greetings, and remembering a name or a colour that
was told earlier in the chat. Anything else should be answered with "I am a very small demo model
and do not know that."

## What it is not good for
Any real use. It knows nothing beyond its templates and invents answers to questions that resemble
them. It spells and capitalises words wrongly, repeats words it has never seen as others, gets
larger numbers wrong, and given tools it calls one even when greeted. It understands English only.

Training saw sequences of at most the context in the table. The configuration allows {max_positions}
positions so that long prompts can be tried, but the text gets worse beyond the trained context.
""".replace("{max_positions}", str(MAX_POSITIONS))
