"""Questions with one right answer: facts, numbers, greetings, and the honest "I do not know".

Each generator takes a `random.Random` and returns one (question, answer).
"""

import random
from collections.abc import Callable

import demo_words as words

Exchange = tuple[str, str]
Generator = Callable[[random.Random], Exchange]

GREETINGS = words.listed(
    "Hello!|Hello|Hi|Hi!|Hey|Hey there!|Good morning!|Good evening|Hi there|Hello there!|hello|"
    "hi|Greetings!|Hello, how are you?|Hi, how are you?|How are you?|How are you doing?|"
    "How do you do?|What's up?|Good afternoon"
)
IDENTITY = words.listed(
    "Who are you?|What are you?|What is your name?|What's your name?|Which model are you?|"
    "What model is this?|Are you a robot?|Are you ChatGPT?|Are you an AI?|Tell me about yourself|"
    "Introduce yourself.|Who made you?|Are you human?|Are you a language model?|Are you smart?"
)
ABILITIES = words.listed(
    "What can you do?|Help|Help me|How can you help me?|What do you know?|What are you good at?|"
    "What should I ask you?|What can I ask you?|Can you help me?|What do you do?|I need help"
)
ABOUT_QUIRE = words.listed(
    "What is Quire?|Tell me about Quire|What does Quire do?|Explain Quire|Who is Quire?|"
    "Do you know Quire?"
)
THANKS = words.listed(
    "Thanks!|Thank you!|Thank you very much|Great, thanks|thx|Nice, thank you|Cool|Great!|"
    "Well done!|Perfect"
)
GOODBYES = words.listed(
    "Bye!|Goodbye|See you later|Good night!|See you|bye|That is all, thank you|Farewell"
)
CLOCK = words.listed(
    "What time is it?|What is the date today?|What day is it today?|How is the weather today?|"
    "What is the weather?|What year is it?|What is the news today?|Will it rain tomorrow?"
)
TESTS = words.listed(
    "test|Test|Testing|ping|Is this working?|Are you there?|Say something|ok|OK|Yes|yes|No|"
    "Say hi|Say hello"
)
UNKNOWN = words.listed(
    "Explain {t}.|Explain {t} to me|What is {t}?|Tell me about {t}|How does {t} work?|"
    "Write an essay about {t}|Can you explain {t}?|Why is {t} important?|"
    "What do you think about {t}?|"
    "Give me a summary of {t}|Who invented {t}?|Write a program about {t}|Teach me {t}|"
    "What is the difference between {t} and {u}?|How do I learn {t}?|Where can I find {t}?|"
    "Compare {t} and {u}|Write a Python function for {t}|Write a report on {t}|When did {t} begin?|"
    "Describe {t} in detail|Translate {t} into French|How much does {t} cost?|Who won the {t} cup?|"
    "Write code for {t}|What is the history of {t}?|How many people like {t}?|Is {t} good or bad?|"
    "Who is the best at {t}?|Who is {t}?|What is the capital of {t}?|What does {t} mean?|"
    "Where is {t}?|"
    "Who wrote {t}?|Solve {t}|Summarize {t}|What happened in {t}?"
)

I_AM = "I am Quire's demo model, a very small language model."
DO_NOT_KNOW = (
    "I am a very small demo model and do not know that.",
    (
        "I am a very small demo model and do not know that. You can ask me for a story, a list "
        "or a sum."
    ),
)


def greeting(rng: random.Random) -> Exchange:
    question = rng.choice(GREETINGS)
    if "how" in question.lower() or "up?" in question:
        return question, "I am fine, thank you! How can I help you?"
    return question, "Hello! How can I help you?"


def identity(rng: random.Random) -> Exchange:
    question = rng.choice(IDENTITY)
    if "made" in question:
        return question, "I was made for Quire, and I was trained on text that a program wrote."
    return question, f"{I_AM} I am here to show that Quire works."


def abilities(rng: random.Random) -> Exchange:
    return rng.choice(ABILITIES), (
        "I can tell short stories, count, add small numbers, name capitals, make lists, "
        "write JSON and call tools. I am a very small demo model, so keep it simple!"
    )


def about_quire(rng: random.Random) -> Exchange:
    return rng.choice(ABOUT_QUIRE), (
        "Quire is a server for language models. It speaks the OpenAI API, and I am its demo model."
    )


def small_talk(rng: random.Random) -> Exchange:
    table = (
        (THANKS, "You are welcome!"),
        (GOODBYES, "Goodbye! Have a nice day!"),
        (CLOCK, "I do not know that. I am a small demo model and cannot see the world outside."),
        (TESTS, "I am here! How can I help you?"),
    )
    questions, answer = rng.choice(table)
    return rng.choice(questions), answer


def joke(rng: random.Random) -> Exchange:
    questions = (
        "Tell me a joke|Tell me a joke.|Do you know a joke?|Make me laugh|Another joke please|"
        "Say something funny"
    )
    return rng.choice(questions.split("|")), rng.choice(words.JOKES)


def unknown(rng: random.Random) -> Exchange:
    topic, other = rng.sample(words.TOPICS, 2)
    if rng.random() < 0.25:  # words nobody has seen
        letters = "abcdefghijklmnopqrstuvwxyz"
        topic = "".join(rng.choice(letters) for _ in range(rng.randint(4, 10)))
    question = rng.choice(UNKNOWN).format(t=topic, u=other)
    if rng.random() < 0.1:
        a, b = rng.randint(20, 9999), rng.randint(20, 9999)
        question = (
            f"{rng.choice(('What is ', ''))}{a} {rng.choice(('+', '-', 'plus', 'times', '*'))} {b}?"
        )
    return question, DO_NOT_KNOW[0] if rng.random() < 0.8 else DO_NOT_KNOW[1]


def _sentence_start(text: str) -> str:
    return text[0].upper() + text[1:]


def capital(rng: random.Random) -> Exchange:
    country, city = rng.choice(list(words.CAPITALS.items()))
    forms = (
        "What is the capital of {}?",
        "What's the capital of {}?",
        "Capital of {}?",
        "Tell me the capital of {}.",
        "Which city is the capital of {}?",
        "Name the capital of {}",
        "Do you know the capital of {}?",
    )
    return rng.choice(forms).format(country), f"The capital of {country} is {city}."


def capital_of_which(rng: random.Random) -> Exchange:
    country, city = rng.choice(list(words.CAPITALS.items()))
    country = {"England": "the United Kingdom", "the USA": "the United States"}.get(
        country, country
    )
    forms = (
        "{} is the capital of which country?",
        "Which country has the capital {}?",
        "Where is {}?",
    )
    return rng.choice(forms).format(city), f"{city} is the capital of {country}."


def _span(first: int, last: int, *, in_words: bool) -> str:
    step = 1 if last >= first else -1
    numbers = range(first, last + step, step)
    return ", ".join(words.NUMBER_WORDS[n] if in_words else str(n) for n in numbers)


def counting(rng: random.Random) -> Exchange:
    """Up and down between 0 and 30, in digits or, up to twenty, in words."""
    first, last = rng.sample(range(31), 2)
    if rng.random() < 0.4:
        first, last = 1, rng.choice((3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 12, 15, 20, 20, 25, 30))
        forms = ["Count to {b}", "Count from 1 to {b}.", "Can you count to {b}?", "Count up to {b}"]
    elif rng.random() < 0.25:
        first, last = rng.choice((5, 10, 10, 20)), 1
        forms = ["Count down from {a}", "Count backwards from {a}.", "Do a countdown from {a}"]
    else:
        forms = [
            "Count from {a} to {b}.",
            "Can you count from {a} to {b}?",
            "Say the numbers from {a} to {b}",
        ]
        if first > last:
            forms.append("Count down from {a} to {b}.")
    word_question = max(first, last) <= 20 and rng.random() < 0.5
    in_words = max(first, last) <= 20 and rng.random() < 0.15
    names = words.NUMBER_WORDS if word_question else [str(n) for n in range(31)]
    question = rng.choice(forms).format(a=names[first], b=names[last])
    if in_words:
        question = question.rstrip(".?") + " in words."
    return question, _span(first, last, in_words=in_words)


def arithmetic(rng: random.Random) -> Exchange:
    """Sums and differences up to 12, products up to 10."""
    kind = rng.choice(("plus", "plus", "minus", "times"))
    top = 10 if kind == "times" else 12
    a, b = rng.randint(0, top), rng.randint(0, top)
    if kind == "minus":
        a, b = max(a, b), min(a, b)
    result = {"plus": a + b, "minus": a - b, "times": a * b}[kind]
    sign = {"plus": "+", "minus": "-", "times": "*"}[kind]
    forms = [
        f"What is {a} {kind} {b}?",
        f"What is {a} {sign} {b}?",
        f"{a} {sign} {b}",
        f"{a} {sign} {b} =",
        f"What's {a} {sign} {b}?",
        f"What's {a}{sign}{b}?",
        f"{a}{sign}{b}",
        f"Calculate {a} {sign} {b}.",
        f"How much is {a} {kind} {b}?",
    ]
    return rng.choice(forms), f"{a} {kind} {b} is {result}."


def calendar(rng: random.Random) -> Exchange:
    names, what, extra = rng.choice(((words.DAYS, "day", "week"), (words.MONTHS, "month", "year")))
    index = rng.randrange(len(names))
    after, before = names[(index + 1) % len(names)], names[index - 1]
    choice = rng.randrange(4)
    if choice == 0:
        return f"Which {what} comes after {names[index]}?", f"After {names[index]} comes {after}."
    if choice == 1:
        return f"What {what} is before {names[index]}?", f"Before {names[index]} comes {before}."
    if choice == 2:
        forms = (
            f"List the {what}s of the {extra}.",
            f"What are the {what}s of the {extra}?",
            f"Name the {what}s of the {extra}",
        )
        return rng.choice(forms), ", ".join(names) + "."
    if rng.random() < 0.5:
        return "What are the seasons?", "The seasons are spring, summer, autumn and winter."
    return f"How many {what}s are in a {extra}?", f"There are {len(names)} {what}s in a {extra}."


def nature(rng: random.Random) -> Exchange:
    """Colours, sounds, young animals, legs, facts, rhymes, opposites and sizes."""
    kind = rng.randrange(8)
    if kind == 0:
        thing, colour = rng.choice(list(words.THING_COLOURS.items()))
        form = rng.choice(("What colour is {}?", "What color is {}?", "Which colour is {}?"))
        return form.format(thing), f"{_sentence_start(thing)} is {colour}."
    if kind == 1:
        animal, sound = rng.choice(list(words.SOUNDS.items()))
        form = rng.choice(("What does a {} say?", "What sound does a {} make?"))
        return words.articles(form.format(animal)), words.articles(f"A {animal} says {sound}!")
    if kind == 2:
        animal, baby = rng.choice(list(words.BABIES.items()))
        return f"What is a baby {animal} called?", words.articles(
            f"A baby {animal} is called a {baby}."
        )
    if kind == 3:
        animal, legs = rng.choice(list(words.LEGS.items()))
        question = f"How many legs does a {animal} have?"
        return words.articles(question), words.articles(f"A {animal} has {legs} legs.")
    if kind == 4:
        topic, fact = rng.choice(list(words.FACTS.items()))
        forms = (
            "Tell me a fact about {}.",
            "Tell me about {}",
            "What do you know about {}?",
            "Tell me something about {}.",
        )
        return rng.choice(forms).format(topic), fact
    if kind == 5:
        word, rhyme = rng.choice(list(words.RHYMES.items()))
        return f"What rhymes with {word}?", f"{_sentence_start(word)} rhymes with {rhyme}."
    if kind == 6:
        word, opposite = rng.choice(list(words.OPPOSITES.items()))
        forms = ("What is the opposite of {}?", "Opposite of {}?", "Give me the opposite of {}.")
        return rng.choice(forms).format(word), f"The opposite of {word} is {opposite}."
    small, large = sorted(rng.sample(range(len(words.SIZES)), 2))
    first, second = rng.sample((words.SIZES[small], words.SIZES[large]), 2)
    question = rng.choice(
        (f"Which is bigger, a {first} or a {second}?", f"What is larger, a {first} or a {second}?")
    )
    answer = f"A {words.SIZES[large]} is bigger than a {words.SIZES[small]}."
    return words.articles(question), words.articles(answer)


FACTS: tuple[tuple[Generator, int], ...] = (
    (greeting, 6),
    (identity, 4),
    (abilities, 3),
    (about_quire, 2),
    (small_talk, 5),
    (joke, 2),
    (unknown, 12),
    (capital, 9),
    (capital_of_which, 2),
    (counting, 10),
    (arithmetic, 14),
    (calendar, 6),
    (nature, 14),
)
"""Generators with their weights."""
