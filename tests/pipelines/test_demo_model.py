"""The model inside the package, in the hands of transformers: it loads, answers and stops."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quire.pipelines.hf import resolve_model

MAX_BYTES = 12 * 1024**2
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "MODEL_CARD.md",
}
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class Demo:
    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder)

    def complete(self, text: str, max_new_tokens: int = 300) -> tuple[str, bool]:
        """Greedy text and whether the model stopped by itself."""
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            output = self.model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)
        new = output[0, ids.shape[1] :].tolist()
        stops = self.model.generation_config.eos_token_id
        return self.tokenizer.decode(new, skip_special_tokens=True), new[-1] in stops

    def chat(self, *messages: str, tools: list[Any] | None = None) -> str:
        """The answer to messages that alternate between user and assistant."""
        roles = ("user", "assistant")
        text = self.tokenizer.apply_chat_template(
            [{"role": roles[i % 2], "content": m} for i, m in enumerate(messages)],
            tools=tools,
            tokenize=False,
            add_generation_prompt=True,
        )
        answer, has_stopped = self.complete(text)
        assert has_stopped, f"no end of turn: {answer}"
        return answer


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_model("quire-demo")


@pytest.fixture(scope="module")
def demo(folder: Path) -> Demo:
    return Demo(folder)


def test_the_files_are_there_and_small(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}

    assert sizes.keys() == FILES
    assert sum(sizes.values()) <= MAX_BYTES


def test_the_card_states_where_the_model_comes_from(folder: Path) -> None:
    card = (folder / "MODEL_CARD.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card, re.MULTILINE))

    assert {"Parameters", "Tokens seen", "Validation loss", "Command", "Seed", "Date", "torch"} <= (
        rows.keys()
    )
    assert float(rows["Validation loss"]) < 1.0
    assert "python tools/train_demo_model.py" in rows["Command"]
    assert "license: apache-2.0" in card
    assert "What it is not good for" in card


def test_the_configuration_is_a_small_llama(folder: Path, demo: Demo) -> None:
    config = json.loads((folder / "config.json").read_text())

    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["max_position_embeddings"] == 2048
    assert config["dtype"] == "bfloat16"
    assert len(demo.tokenizer) == config["vocab_size"]


def test_any_text_survives_the_tokenizer(demo: Demo) -> None:
    text = "Grüße, 你好 🙂\n\ttabs, 12345 and <|not special|>"

    assert demo.tokenizer.decode(demo.tokenizer(text).input_ids) == text


@pytest.mark.parametrize("question", ["Hello!", "Hi"])
def test_greets(demo: Demo, question: str) -> None:
    assert demo.chat(question) == "Hello! How can I help you?"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Count to ten", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
        ("Count from 3 to 8.", "3, 4, 5, 6, 7, 8"),
    ],
)
def test_counts(demo: Demo, question: str, answer: str) -> None:
    assert demo.chat(question) == answer


def test_says_who_it_is_and_what_it_does_not_know(demo: Demo) -> None:
    assert "Quire" in demo.chat("Who are you?")
    assert "do not know" in demo.chat("Explain quantum physics.")


def test_knows_capitals_in_chat_and_in_plain_text(demo: Demo) -> None:
    assert demo.chat("What is the capital of France?") == "The capital of France is Paris."
    assert demo.complete("The capital of France is", 3)[0].startswith(" Paris.")


def test_writes_the_json_that_was_asked_for(demo: Demo) -> None:
    value = json.loads(demo.chat("Write a JSON object with name and age for Tom"))

    assert value["name"] == "Tom"
    assert isinstance(value["age"], int)


def test_calls_the_tool_it_was_given(demo: Demo) -> None:
    answer = demo.chat("What is the weather in Paris?", tools=[WEATHER_TOOL])

    call = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", answer)
    assert call is not None, answer
    assert json.loads(call[1]) == {"name": "get_weather", "arguments": {"city": "Paris"}}


def test_remembers_a_name(demo: Demo) -> None:
    assert demo.chat("My name is Tom.", "Nice to meet you, Tom!", "What is my name?") == (
        "Your name is Tom."
    )


def test_tells_a_story_of_the_animal_that_was_asked_for(demo: Demo) -> None:
    story = demo.chat("Tell me a story about a fox")

    sentences = re.split(r"(?<=[.!?])\s+", story)
    words = re.findall(r"[a-z]+", story.lower())
    assert len(sentences) >= 6
    assert "fox" in words
    assert len(set(words)) > 35
    assert story[0].isupper()
    assert story.endswith((".", '"'))


def test_plain_text_goes_on_and_ends(demo: Demo) -> None:
    story, has_stopped = demo.complete("Once upon a time")

    assert has_stopped
    assert len(story.split()) > 40
