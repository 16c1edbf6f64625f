"""Tool calls for the demo model's corpus: random tools, so that names must be copied."""

import random
from dataclasses import dataclass
from typing import Any

import demo_words as words

Message = dict[str, Any]


@dataclass(frozen=True)
class Argument:
    """A parameter's possible names, its JSON type, and the values it takes."""

    names: tuple[str, ...]
    type: str
    values: tuple[Any, ...]


CITY = Argument(("city", "location", "place"), "string", tuple(words.CITIES))
PERSON = Argument(("name", "person", "to", "user"), "string", tuple(words.NAMES))
NUMBER_A = Argument(("a", "x", "first"), "integer", tuple(range(1, 100)))
NUMBER_B = Argument(("b", "y", "second"), "integer", tuple(range(1, 100)))
MINUTES = Argument(("minutes", "duration", "time"), "integer", tuple(range(1, 60)))
THING = Argument(("query", "text", "item", "q"), "string", (*words.THINGS, *words.FRUITS))


@dataclass(frozen=True)
class Tool:
    """One task: names a developer may give its function, how a user asks for it, the reply."""

    names: tuple[str, ...]
    description: str
    arguments: tuple[Argument, ...]
    requests: tuple[str, ...]
    results: tuple[str, ...]
    reply: str


TOOLS = (
    Tool(
        ("get_weather", "get_current_weather", "weather", "fetch_weather"),
        "Get the weather of a city",
        (CITY,),
        (
            "What is the weather in {0}?",
            "What is the weather like in {0} today?",
            "How is the weather in {0}?",
            "Weather in {0}?",
            "Is it warm in {0}?",
            "What's the weather in {0} right now?",
        ),
        tuple(words.WEATHERS),
        "It is {r} in {0}.",
    ),
    Tool(
        ("get_time", "current_time", "get_current_time"),
        "Get the time in a city",
        (CITY,),
        ("What time is it in {0}?", "Tell me the time in {0}.", "What is the time in {0}?"),
        tuple(f"{hour}:{minute}" for hour in range(1, 13) for minute in (15, 30, 45)),
        "It is {r} in {0}.",
    ),
    Tool(
        ("add", "add_numbers", "sum", "calculate_sum"),
        "Add two numbers",
        (NUMBER_A, NUMBER_B),
        (
            "What is {0} plus {1}?",
            "Add {0} and {1}.",
            "What is {0} + {1}?",
            "Use the tool to add {0} and {1}",
        ),
        tuple(str(n) for n in range(2, 200)),
        "The result is {r}.",
    ),
    Tool(
        ("send_email", "send_message", "write_to", "call_person"),
        "Send a message to a person",
        (PERSON,),
        ("Send a message to {0}.", "Write to {0}", "Please write an email to {0}.", "Message {0}"),
        ("sent", "ok", "done"),
        "I have sent the message to {0}.",
    ),
    Tool(
        ("search", "web_search", "find", "lookup"),
        "Search for something",
        (THING,),
        ("Search for {0}.", "Find {0}", "Look up {0}.", "Can you search for {0}?"),
        tuple(f"{n} results" for n in range(2, 40)),
        "I found {r} for {0}.",
    ),
    Tool(
        ("set_timer", "start_timer", "set_alarm", "timer"),
        "Set a timer in minutes",
        (MINUTES,),
        ("Set a timer for {0} minutes.", "Wake me in {0} minutes", "Start a timer of {0} minutes"),
        ("ok", "started", "done"),
        "The timer is set for {0} minutes.",
    ),
)


def _schema(rng: random.Random, tool: Tool, name: str, keys: list[str]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for key, argument in zip(keys, tool.arguments, strict=True):
        properties[key] = {"type": argument.type}
        if rng.random() < 0.3:
            properties[key]["description"] = f"The {key}"
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.7:
        parameters["required"] = keys
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.8:
        function["description"] = tool.description + rng.choice(("", ".", ""))
    return {"type": "function", "function": {**function, "parameters": parameters}}


def tool_conversation(rng: random.Random) -> tuple[list[Message], list[dict[str, Any]]]:
    """Messages and tools: one call, often followed by its result and the answer."""
    offered = rng.sample(TOOLS, rng.choice((1, 1, 1, 2, 2, 3)))
    tool, schemas, call = offered[0], [], {}
    values = [rng.choice(argument.values) for argument in tool.arguments]
    for other in offered:
        name = rng.choice(other.names)
        keys = [rng.choice(argument.names) for argument in other.arguments]
        schemas.append(_schema(rng, other, name, keys))
        if other is tool:
            call = {"name": name, "arguments": dict(zip(keys, values, strict=True))}
    rng.shuffle(schemas)
    messages: list[Message] = [
        {"role": "user", "content": rng.choice(tool.requests).format(*values)},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": call}],
        },
    ]
    if rng.random() < 0.6:
        result = rng.choice(tool.results)
        if tool.arguments == (NUMBER_A, NUMBER_B):
            result = str(sum(values))
        content = result if rng.random() < 0.5 else '{"result": "' + result + '"}'
        messages.append({"role": "tool", "content": content})
        messages.append({"role": "assistant", "content": tool.reply.format(*values, r=result)})
    return messages, schemas
