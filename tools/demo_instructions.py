"""Things to do rather than to know: stories, lists, JSON, repeating, remembering a name."""

import json
import random
from collections.abc import Callable

import demo_stories
import demo_words as words

Exchange = tuple[str, str]
Message = dict[str, object]

LISTS = {
    "animals": words.ANIMALS,
    "fruits": words.FRUITS,
    "vegetables": words.VEGETABLES,
    "colours": words.COLOURS,
    "colors": words.COLOURS,
    "cities": words.CITIES,
    "names": words.NAMES,
    "planets": words.PLANETS,
    "jobs": words.JOBS,
    "hobbies": words.HOBBIES,
    "things": words.THINGS,
}
REPEATABLE = words.listed(
    "the {kind} is {adj}|I like {food}|my {thing} is {colour}|{name} has a {colour} {thing}|"
    "hello world|{food} and {food2}|good morning {name}|{colour} {thing}|{name} and {name2}|"
    "the {adj} {kind}|I am {adj}|we go to {city}|{city}|{thing}|{kind}|yes we can|"
    "the {thing} is in {city}|{number}|{topic}|I like {topic}|{letters}|{topic} {letters}|"
    "{mixed}|{mixed}|{mixed}|{mixed}|{mixed}|{mixed}|{mixed}|{mixed}|{mixed}|{mixed}"
)
"""`mixed` is any words in any order, which can only be copied."""
ANY_WORDS = (
    *words.HEROES,
    *words.NAMES,
    *words.THINGS,
    *words.CITIES,
    *words.FRUITS,
    *words.COLOURS,
    *words.JOBS,
    *words.listed("the a my is has in on to and we you it not see go blue good very now then"),
)


def _slots(rng: random.Random) -> dict[str, object]:
    name, name2 = rng.sample(words.NAMES, 2)
    food, food2 = rng.sample(words.FOODS, 2)
    return {
        "name": name,
        "name2": name2,
        "food": food,
        "food2": food2,
        "kind": rng.choice(words.HEROES),
        "adj": rng.choice(words.HERO_ADJECTIVES),
        "thing": rng.choice(words.THINGS),
        "colour": rng.choice(words.COLOURS),
        "city": rng.choice(words.CITIES),
        "number": rng.randint(1, 99),
        "mixed": " ".join(rng.choices(ANY_WORDS, k=rng.randint(2, 8))),
        "topic": rng.choice(words.TOPICS),
        "letters": "".join(
            rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 6))
        ),
    }


def story_request(rng: random.Random) -> Exchange:
    hero = demo_stories.random_hero(rng)
    forms = words.listed(
        "Tell me a story about a {k}.|Tell me a story about a {k}|Write a short story about a {k}.|"
        "Tell a story about a {k} named {n}.|Write a story about a {a} {k}.|"
        "Write me a story about a {k} called {n}|"
        "Can you tell me a story about a {k}?|I want a story about a {a} {k}|"
        "A story about {n} the {k}, please|"
        "Tell me a short story.|Tell me a story|Write a story.|Once upon a time|"
        "Tell me a bedtime story about a {k}|"
        "Write a two paragraph story about a {k}|Make up a story about a {k} and a friend"
    )
    question = rng.choice(forms).format(k=hero.kind, n=hero.name, a=hero.adjective)
    return words.articles(question), demo_stories.story(rng, hero)


def poem_request(rng: random.Random) -> Exchange:
    kind, haiku = rng.choice(words.HEROES), rng.random() < 0.5
    noun = "haiku" if haiku else "poem"
    forms = (
        "Write a {}",
        "Write a {} about a {k}.",
        "Write me a {} about a {k}",
        "Can you write a {}?",
        "Give me a short {}",
        "A {} about a {k}, please",
        "Compose a {} about a {k}.",
    )
    question = rng.choice(forms).format(noun, k=kind)
    return words.articles(question), demo_stories.poem(rng, kind, haiku=haiku)


def listing(rng: random.Random) -> Exchange:
    what, members = rng.choice(list(LISTS.items()))
    count = rng.choice((2, 3, 3, 3, 4, 5, 5))
    number = words.NUMBER_WORDS[count] if rng.random() < 0.6 else str(count)
    picked = rng.sample(members, count)
    if rng.random() < 0.3:
        forms = (
            "List {} {}, one per line.",
            "Give me a numbered list of {} {}.",
            "Make a list of {} {}",
        )
        return rng.choice(forms).format(number, what), "\n".join(
            f"{index}. {item}" for index, item in enumerate(picked, 1)
        )
    forms = (
        "List {} {}.",
        "Name {} {}.",
        "Give me {} {}",
        "Tell me {} {}.",
        "Can you name {} {}?",
        "What are {} {}?",
    )
    return rng.choice(forms).format(number, what), ", ".join(picked)


def sentence(rng: random.Random) -> Exchange:
    word = rng.choice((*words.THINGS, *words.ANIMALS))
    forms = (
        "Write a sentence with the word {}.",
        "Use the word {} in a sentence.",
        "Make a sentence with {}",
        "Write a sentence about a {}.",
        "Describe a {}.",
    )
    colour, name = rng.choice(words.COLOURS), rng.choice(words.NAMES)
    answers = (
        f"{name} has a {colour} {word}.",
        f"{name} saw a {word} near the river.",
        f"The {word} belongs to {name}.",
    )
    return words.articles(rng.choice(forms).format(word)), words.articles(rng.choice(answers))


def repeat(rng: random.Random) -> Exchange:
    text = words.articles(rng.choice(REPEATABLE).format(**_slots(rng)))
    forms = (
        "Repeat after me: {}",
        "Repeat: {}",
        "Say: {}",
        'Say "{}"',
        "Repeat this: {}",
        'Repeat "{}"',
        "Echo: {}",
        "Please say {}",
        "Just say {}",
    )
    return rng.choice(forms).format(text), text


def list_back(rng: random.Random) -> Exchange:
    """A list given, and given back as lines, joined, or its first or last entry."""
    entries = rng.sample(ANY_WORDS, rng.randint(2, 5))
    forms = (
        ("Write these as a list: {}", "\n".join(f"- {entry}" for entry in entries)),
        ("Join these with and: {}", " and ".join(entries)),
        ("What is the first word: {}", entries[0]),
        ("What is the last word: {}", entries[-1]),
        ("Make a JSON list: {}", json.dumps(entries)),
    )
    question, answer = rng.choice(forms)
    return question.format(", ".join(entries)), answer


def capitals(rng: random.Random) -> Exchange:
    pool = (*words.ANIMALS, *words.THINGS, *words.FRUITS)
    word = rng.choice(pool)
    if rng.random() < 0.5:
        return rng.choice(("Spell {}.", "Spell the word {}", "How do you spell {}?")).format(
            word
        ), "-".join(word)
    forms = (
        "Write {} in capital letters.",
        "Write {} in uppercase",
        "Uppercase: {}",
        "Convert {} to uppercase.",
    )
    return rng.choice(forms).format(word), word.upper()


def sentiment(rng: random.Random) -> Exchange:
    good = rng.random() < 0.5
    adjective = rng.choice(words.POSITIVE if good else words.NEGATIVE)
    thing = rng.choice(
        ("soup", "film", "book", "hotel", "food", "service", "cake", "phone", "song", "room")
    )
    text = rng.choice(
        (
            f"The {thing} was {adjective}.",
            f"What a {adjective} {thing}!",
            f"This {thing} is {adjective}",
        )
    )
    forms = (
        "Is this positive or negative: {}",
        "Positive or negative? {}",
        "Classify the sentiment: {}",
        "What is the sentiment of this text: {}",
    )
    return rng.choice(forms).format(text), "positive" if good else "negative"


FIELDS: dict[str, Callable[[random.Random], object]] = {
    "name": lambda rng: rng.choice(words.NAMES),
    "age": lambda rng: rng.randint(3, 90),
    "city": lambda rng: rng.choice(words.CITIES),
    "job": lambda rng: rng.choice(words.JOBS),
    "hobby": lambda rng: rng.choice(words.HOBBIES),
    "color": lambda rng: rng.choice(words.COLOURS),
    "colour": lambda rng: rng.choice(words.COLOURS),
    "animal": lambda rng: rng.choice(words.ANIMALS),
    "fruit": lambda rng: rng.choice(words.FRUITS),
    "price": lambda rng: rng.randint(1, 99),
    "country": lambda rng: rng.choice(
        ("France", "Germany", "Italy", "Japan", "Canada", "Brazil", "India")
    ),
    "happy": lambda rng: rng.random() < 0.5,
    "id": lambda rng: rng.randint(1, 99),
    "title": lambda rng: "The " + rng.choice(words.COLOURS) + " " + rng.choice(words.THINGS),
}


def json_object(rng: random.Random) -> Exchange:
    keys = rng.sample(sorted(FIELDS), rng.choice((1, 2, 2, 2, 3, 3, 4)))
    if rng.random() < 0.6:
        keys = ["name", *(key for key in keys if key != "name")]
    value = {key: FIELDS[key](rng) for key in keys}
    listed = " and ".join((", ".join(keys[:-1]), keys[-1])) if len(keys) > 1 else keys[0]
    forms = [
        "Write a JSON object with {}",
        "Give me JSON with {}",
        "Return a JSON object with the keys {}",
        "Make a JSON with {}",
        "Output JSON with {}",
    ]
    question = rng.choice(forms).format(listed)
    if "name" in value and rng.random() < 0.7:
        question += rng.choice((" for {}", " of {}", " about {}")).format(value["name"])
    elif rng.random() < 0.25:
        question = rng.choice(
            ("Write a JSON object.", "Give me a JSON object", "Answer in JSON", "Write some JSON")
        )
        value = {"name": FIELDS["name"](rng), "age": FIELDS["age"](rng)}
    return question + rng.choice(("", ".")), json.dumps(value)


def extraction(rng: random.Random) -> Exchange:
    """Facts of one sentence as JSON."""
    slots = _slots(rng)
    age = rng.randint(3, 90)
    options: tuple[tuple[str, dict[str, object]], ...] = (
        (f"{slots['name']} is {age} years old", {"name": slots["name"], "age": age}),
        (
            f"{slots['name']} lives in {slots['city']}",
            {"name": slots["name"], "city": slots["city"]},
        ),
        (
            f"{slots['name']} is {age} years old and lives in {slots['city']}",
            {"name": slots["name"], "age": age, "city": slots["city"]},
        ),
    )
    text, value = rng.choice(options)
    listed = " and ".join((", ".join(list(value)[:-1]), list(value)[-1]))
    form = rng.choice(("Extract the {} as JSON: {}.", "Give the {} as JSON: {}", "Extract {}: {}."))
    return form.format(listed, text), json.dumps(value)


def remember(rng: random.Random) -> list[Exchange]:
    """Two turns: a fact given, then asked for."""
    slots = _slots(rng)
    kind = rng.randrange(3)
    if kind == 0:
        name = slots["name"]
        told = rng.choice(
            ("My name is {}.", "I am {}.", "Hi, I'm {}", "Hello, my name is {}!", "I am called {}")
        )
        return [
            (told.format(name), f"Nice to meet you, {name}!"),
            (
                rng.choice(("What is my name?", "Who am I?", "Do you know my name?")),
                f"Your name is {name}.",
            ),
        ]
    if kind == 1:
        colour = slots["colour"]
        return [
            (f"My favourite colour is {colour}.", f"{str(colour).title()} is a nice colour!"),
            ("What is my favourite colour?", f"Your favourite colour is {colour}."),
        ]
    thing, colour = slots["thing"], slots["colour"]
    return [
        (
            words.articles(f"I have a {colour} {thing}."),
            words.articles(f"A {colour} {thing}, how nice!"),
        ),
        (f"What colour is my {thing}?", f"Your {thing} is {colour}."),
    ]


INSTRUCTIONS: tuple[tuple[Callable[[random.Random], Exchange], int], ...] = (
    (story_request, 14),
    (poem_request, 5),
    (listing, 9),
    (sentence, 4),
    (repeat, 14),
    (list_back, 5),
    (capitals, 3),
    (sentiment, 3),
    (json_object, 9),
    (extraction, 5),
)
"""Generators with their weights."""
