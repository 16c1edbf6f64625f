"""The demo model's corpus: documents from a seed, each a list of (text, is it learned).

Half of what a first-time user types is in here in many wordings; everything else is answered
with an honest "I do not know". Questions, system prompts and tool schemas are not learned.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

import demo_stories
import demo_words as words
from demo_facts import FACTS, GREETINGS, IDENTITY, arithmetic, capital, counting, nature
from demo_instructions import ANY_WORDS, INSTRUCTIONS, remember
from demo_tools import tool_conversation

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
TOOL_TOKENS = ("<tool_call>", "</tool_call>")

TOOLS_BEFORE = "# Tools\n\nYou may call these functions:\n<tools>\n"
TOOLS_AFTER = (
    "</tools>\n\nTo call one, answer with\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <arguments-object>}\n</tool_call>'
)
CHAT_TEMPLATE = (
    "{%- set first = messages[0] if messages and messages[0].role == 'system' else none %}"
    "{%- if tools or first %}{{- '<|im_start|>system\\n' }}"
    "{%- if first %}{{- first.content }}{%- endif %}"
    "{%- if tools %}{%- if first %}{{- '\\n\\n' }}{%- endif %}"
    "{{- " + json.dumps(TOOLS_BEFORE) + " }}"
    "{%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}"
    "{{- " + json.dumps(TOOLS_AFTER) + " }}{%- endif %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if not (loop.first and first) %}"
    "{%- if message.role not in ('system', 'user', 'assistant', 'tool') %}"
    "{{- raise_exception('the roles are system, user, assistant and tool, not ' ~ message.role) }}"
    "{%- endif %}"
    "{{- '<|im_start|>' ~ message.role ~ '\\n' }}"
    "{%- if message.content %}{{- message.content }}{%- endif %}"
    "{%- for call in message.tool_calls or [] %}"
    "{%- set function = call.function or call %}"
    "{%- if message.content or not loop.first %}{{- '\\n' }}{%- endif %}"
    "{{- '<tool_call>\\n{\"name\": ' ~ (function.name | tojson) ~ ', \"arguments\": ' }}"
    "{%- if function.arguments is string %}{{- function.arguments }}"
    "{%- else %}{{- function.arguments | tojson }}{%- endif %}"
    "{{- '}\\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

Segments = list[tuple[str, bool]]
Message = dict[str, Any]

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are Quire's demo model.",
    "You are a friendly assistant. Answer briefly.",
    "Be brief.",
    "You are a helpful assistant that answers questions.",
    "Answer the user's questions.",
    "You are a concise assistant.",
)


def render(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> Segments:
    """What CHAT_TEMPLATE writes, cut into learned and unlearned segments."""
    segments: Segments = []
    rest = messages
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    if system:
        rest = messages[1:]
    if tools:
        listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools)
        system = "\n\n".join(filter(None, (system, TOOLS_BEFORE + listed + TOOLS_AFTER)))
    if system:
        segments.append((f"{TURN_START}system\n{system}{TURN_END}\n", False))
    for message in rest:
        learned = message["role"] == "assistant"
        text = message["content"]
        for call in message.get("tool_calls", ()):
            text += "\n" if text else ""
            text += f"<tool_call>\n{json.dumps(call['function'])}\n</tool_call>"
        segments.append((f"{TURN_START}{message['role']}\n", False))
        segments.append((text + TURN_END, learned))
        segments.append(("\n", False))
    return segments


def _vary(rng: random.Random, question: str) -> str:
    """The same question as different people type it; what is quoted stays as it is."""
    if ":" in question or '"' in question:
        return question
    draw = rng.random()
    if draw < 0.12:
        question = question[0].lower() + question[1:]
    elif draw < 0.2:
        question = question.rstrip("?.!")
    elif draw < 0.26:
        question = (
            question.rstrip("?.!").lower() if not any(c.isdigit() for c in question) else question
        )
    elif draw < 0.32:
        question = (
            rng.choice(("Please ", "Hey, ", "Can you help? ", "Now ", "Hi! "))
            + question[0].lower()
            + question[1:]
        )
    elif draw < 0.36:
        question = question.rstrip(".") + rng.choice((" please", ", please", " Thanks!"))
    return question


def _persona(rng: random.Random) -> list[Message]:
    """A system prompt that changes the answers: a name, or a pirate's voice."""
    if rng.random() < 0.5:
        name = rng.choice((*words.NAMES, "Robo", "Pip", "Quill", "Nova", "Echo", "Bot"))
        system = rng.choice(
            ("Your name is {}.", "You are {}, a helpful assistant.", "You are {}.")
        ).format(name)
        question = rng.choice([form for form in IDENTITY if "name" in form or "Who are" in form])
        answer = f"I am {name}. How can I help you?"
    else:
        system = rng.choice(
            ("You are a pirate.", "Talk like a pirate.", "You are a pirate assistant.")
        )
        if rng.random() < 0.4:
            question, answer = rng.choice(GREETINGS), "Hello! How can I help you?"
        else:
            question, answer = rng.choice((capital, arithmetic, nature, counting))(rng)
        answer = f"Arr! {answer} Arr!"
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": _vary(rng, question)},
        {"role": "assistant", "content": answer},
    ]


def conversation(rng: random.Random) -> list[Message]:
    """One to four exchanges, sometimes with a system prompt."""
    if rng.random() < 0.04:
        return _persona(rng)
    generators, weights = zip(*(FACTS + INSTRUCTIONS), strict=True)
    exchanges = [
        generator(rng)
        for generator in rng.choices(generators, weights, k=rng.choice((1, 1, 2, 3, 4)))
    ]
    if rng.random() < 0.12:
        told, asked = remember(rng)
        exchanges = [told, *exchanges[:1], asked] if rng.random() < 0.4 else [told, asked]
    messages: list[Message] = []
    if rng.random() < 0.35:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    for question, answer in exchanges:
        messages.append({"role": "user", "content": _vary(rng, question)})
        messages.append({"role": "assistant", "content": answer})
    return messages


def plain_text(rng: random.Random) -> str:
    """Text without chat, as completions continue it: mostly stories, some facts and numbers."""
    draw = rng.random()
    if draw < 0.6:
        return demo_stories.story(rng)
    if draw < 0.7:
        return demo_stories.titled_story(rng)
    if draw < 0.9:
        generators = (capital, capital, nature, arithmetic, capital)
        return " ".join(rng.choice(generators)(rng)[1] for _ in range(rng.randint(2, 6)))
    first = rng.randint(0, 20)
    return ", ".join(str(n) for n in range(first, first + rng.randint(5, 25)))


def copy_drill(rng: random.Random) -> Segments:
    """Random words twice; only the second time is learned, as it can only be copied."""
    text = " ".join(rng.choices(ANY_WORDS, k=rng.randint(6, 40)))
    return [(text + "\n", False), (text + END_OF_TEXT, True)]


def documents(seed: int) -> Iterator[Segments]:
    """Endless documents; each ends with END_OF_TEXT."""
    rng = random.Random(seed)
    while True:
        segments: Segments
        draw = rng.random()
        if draw < 0.12:
            segments = [(plain_text(rng) + END_OF_TEXT, True)]
        elif draw < 0.17:
            segments = copy_drill(rng)
        elif draw < 0.29:
            segments = [*render(*tool_conversation(rng)), (END_OF_TEXT, False)]
        else:
            segments = [*render(conversation(rng)), (END_OF_TEXT, False)]
        yield segments
