import itertools
import json
import random
from collections.abc import Callable
from types import ModuleType

import pytest
from transformers import AutoTokenizer

from quire.pipelines.hf import resolve_model

Tool = Callable[[str], ModuleType]


def learned_answers(tool: Tool, count: int) -> list[str]:
    documents = itertools.islice(tool("demo_corpus").documents(3), count)
    return [text for segments in documents for text, learned in segments if learned]


def test_the_same_seed_gives_the_same_documents(tool: Tool) -> None:
    corpus = tool("demo_corpus")

    first = list(itertools.islice(corpus.documents(1), 200))

    assert first == list(itertools.islice(corpus.documents(1), 200))
    assert first != list(itertools.islice(corpus.documents(2), 200))


def test_documents_are_written_as_the_chat_template_writes_them(tool: Tool) -> None:
    """The template in the oracle's hands: transformers renders what was trained on."""
    corpus, tools = tool("demo_corpus"), tool("demo_tools")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("quire-demo"))
    rng = random.Random(5)
    conversations = [(corpus.conversation(rng), None) for _ in range(60)]
    conversations += [tools.tool_conversation(rng) for _ in range(60)]

    for messages, schemas in conversations:
        text = "".join(part for part, _ in corpus.render(messages, schemas))

        assert tokenizer.apply_chat_template(messages, tools=schemas, tokenize=False) == text


def test_a_system_prompt_and_tools_share_one_turn(tool: Tool) -> None:
    corpus = tool("demo_corpus")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]

    text = "".join(part for part, _ in corpus.render(messages, [{"type": "function"}]))

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("quire-demo"))
    rendered = tokenizer.apply_chat_template(messages, tools=[{"type": "function"}], tokenize=False)
    assert text == rendered
    assert text.count("<|im_start|>system") == 1


def test_only_answers_and_plain_text_are_learned(tool: Tool) -> None:
    texts = learned_answers(tool, 500)

    assert all(text.endswith(("<|im_end|>", "<|endoftext|>")) for text in texts)
    assert not any("<|im_start|>" in text or "<tools>" in text for text in texts)


def test_every_json_answer_parses(tool: Tool) -> None:
    answers = [text.removesuffix("<|im_end|>") for text in learned_answers(tool, 2000)]
    objects = [json.loads(text) for text in answers if text.startswith("{")]
    calls = [
        json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        for text in answers
        if text.startswith("<tool_call>")
    ]

    assert len(objects) > 100
    assert len(calls) > 100
    assert all(call.keys() == {"name", "arguments"} for call in calls)


@pytest.mark.parametrize("name", ["prince", "witch", "king", "girl"])
def test_a_hero_has_a_fitting_name(tool: Tool, name: str) -> None:
    stories, words = tool("demo_stories"), tool("demo_words")
    heroes = [stories.random_hero(random.Random(seed), name) for seed in range(30)]

    names = {hero.name for hero in heroes}
    assert names <= set(words.HE if words.IS_HE[name] else words.SHE)


def test_no_line_of_a_story_has_a_wrong_article(tool: Tool) -> None:
    stories = tool("demo_stories")
    texts = [stories.titled_story(random.Random(seed)) for seed in range(300)]

    assert not [text for text in texts for vowel in "aeio" if f" a {vowel}" in text]
