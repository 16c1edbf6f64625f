"""Short stories and poems for the demo model's corpus.

One hero, one thing and one friend per story, named again and again: a small model learns from that
to keep to what it has said.
"""

import random
from dataclasses import dataclass

import demo_words as words

OPENINGS = (
    "Once upon a time there was a {adj} {kind} named {name}. {name} lived near {home}.",
    "Once upon a time, a {adj} {kind} named {name} lived near {home}.",
    "There was once a {adj} {kind} called {name}. {He} lived close to {home}.",
    "In a small house near {home} lived a {adj} {kind} named {name}.",
    "{name} was a {adj} {kind} who lived near {home}.",
    "Long ago, near {home}, there lived a {adj} {kind} named {name}.",
)
MORNINGS = (
    "One {weather} morning, {name} went to {place}.",
    "One {weather} day, {name} walked to {place}.",
    "One {weather} afternoon, {name} wanted to see {place}.",
    "It was a {weather} day, so {name} went to {place}.",
)
ENDINGS = (
    "From that day on, {name} and {friend} were the best of friends.",
    "In the evening {name} went home, tired but happy.",
    "That night {name} slept very well.",
    "{name} was happy, and so was {friend}.",
    "And {name} never forgot that {weather} day.",
    "The end.",
)
LOST = (
    (
        (
            "There {he} saw that {his} {colour} {thing} was gone. {name} looked for the "
            "{thing} everywhere."
        ),
        "On the way {he} lost {his} {colour} {thing}. Without the {thing}, {name} was very sad.",
    ),
    (
        (
            'Then a {friendkind} named {friend} came along. "Why are you sad?" asked {friend}. '
            '"I have lost my {thing}," said {name}.'
        ),
        (
            '{name} met a {friendkind} named {friend}. "Have you seen my {colour} {thing}?" '
            'asked {name}. "No, but I will help you," said {friend}.'
        ),
    ),
    (
        (
            "They looked behind a big tree and under a stone. At last {friend} found the "
            "{colour} {thing}!"
        ),
        "Together they looked all day. In the end they found the {thing} under a tree.",
    ),
    (
        '"Thank you, {friend}!" said {name}. They shared some {food} and laughed.',
        "{name} was so glad. {He} gave {friend} some {food}, and they sat in the sun.",
    ),
)
FINDING = (
    (
        'There {he} found a {colour} {thing}. "Who has lost this {thing}?" {he} wondered.',
        (
            "Under a tree {he} saw a {colour} {thing}. It was the most beautiful {thing} "
            "{name} had ever seen."
        ),
    ),
    (
        (
            '{name} asked a {friendkind} named {friend}. "That is my {thing}!" said {friend}. '
            '"I lost it yesterday."'
        ),
        (
            'A {friendkind} named {friend} came by and looked very sad. "I have lost my '
            '{colour} {thing}," said {friend}.'
        ),
    ),
    (
        (
            "{name} wanted to keep the {thing}, but {he} gave it back. {friend} smiled and "
            'said, "You are very kind."'
        ),
        '"Here it is," said {name}, and gave the {thing} to {friend}. {friend} jumped for joy.',
    ),
    (
        "To say thank you, {friend} brought {food}, and they ate together.",
        "Then {friend} showed {name} the way to {second}, and they played there until the evening.",
    ),
)
STORM = (
    (
        "Suddenly the sky became dark, and it began to rain. {name} was wet and cold.",
        "But soon a storm came, and {name} did not know the way home.",
    ),
    (
        (
            "Then {he} saw a light. It came from the house of a {friendkind} named {friend}. "
            '"Come in," said {friend}.'
        ),
        '"Come with me!" called a {friendkind} named {friend}. "My house is warm and dry."',
    ),
    (
        "Inside, {friend} had {food} and a {colour} {thing}. {name} ate and told a story.",
        "{friend} gave {name} some {food} and a {colour} {thing} to keep warm.",
    ),
    (
        "When the rain was over, {name} thanked {friend} and went home with the {thing}.",
        "In the morning the sun was shining, and {friend} showed {name} the way home.",
    ),
)
WISH = (
    (
        "{name} had one wish: {he} wanted a {colour} {thing}. But {he} had no money.",
        "There {he} saw a {colour} {thing} and wanted it very much. But {name} had no money.",
    ),
    (
        "So {he} helped a {friendkind} named {friend} to carry {food}. They worked all day.",
        (
            '"You can help me," said a {friendkind} named {friend}. So {name} picked {food} '
            "for {friend} until the evening."
        ),
    ),
    (
        '"You worked well," said {friend}, and gave {name} the {colour} {thing}.',
        (
            'In the evening {friend} came with a {colour} {thing}. "This {thing} is for you," '
            "said {friend}."
        ),
    ),
    (
        "{name} took the {thing} home and was very proud.",
        "{name} was so happy that {he} danced all the way home with the {thing}.",
    ),
)
TITLES = ("The {kind} and the {thing}", "{name} and the {colour} {thing}", "{name} the {kind}")

POEMS = (
    "The {thing} is {colour},\nthe {kind} is {adj},\nthe sun goes down slowly,\nand I am glad.",
    (
        "A {adj} {kind} sat by the sea\nand sang a little song for me.\n"
        "The song was short, the song was sweet,\nand soon the {kind} fell asleep."
    ),
    (
        "Little {kind}, where do you go?\nOver the hill and through the snow.\n"
        "Little {kind}, what do you see?\nA {colour} {thing} under a tree."
    ),
)
HAIKUS = (
    "A {kind} in the sun,\nquiet wind over the hill.\nThe long day is done.",
    "Rain falls on the leaves.\nA {kind} waits under the tree\nand dreams of the sun.",
    "Snow on the old bridge.\nA {kind} looks up at the moon,\nthe night is so still.",
)


@dataclass(frozen=True)
class Hero:
    kind: str
    name: str
    adjective: str


def random_hero(rng: random.Random, kind: str | None = None) -> Hero:
    """A hero whose name fits: a princess is no Tom."""
    kind = kind or rng.choice(words.HEROES)
    names = {True: words.HE, False: words.SHE}.get(words.IS_HE.get(kind), words.NAMES)
    return Hero(kind, rng.choice(names), rng.choice(words.HERO_ADJECTIVES))


def _slots(rng: random.Random, hero: Hero) -> dict[str, str]:
    is_he = hero.name in words.HE
    home, place, second = rng.sample(words.PLACES, 3)
    return {
        "name": hero.name,
        "kind": hero.kind,
        "adj": hero.adjective,
        "he": "he" if is_he else "she",
        "He": "He" if is_he else "She",
        "his": "his" if is_he else "her",
        "home": home,
        "place": place,
        "second": second,
        "weather": rng.choice(words.WEATHERS),
        "colour": rng.choice(words.COLOURS),
        "thing": rng.choice(words.THINGS),
        "food": rng.choice(words.FOODS),
        "friend": rng.choice([name for name in words.NAMES if name != hero.name]),
        "friendkind": rng.choice([kind for kind in words.ANIMALS if kind != hero.kind]),
    }


def _fill(template: str, slots: dict[str, str]) -> str:
    return words.articles(template.format(**slots))


def story(rng: random.Random, hero: Hero | None = None) -> str:
    """A story of 7 to 12 sentences."""
    slots = _slots(rng, hero or random_hero(rng))
    plot = rng.choice((LOST, FINDING, STORM, WISH))
    parts = [rng.choice(OPENINGS), rng.choice(MORNINGS), *(rng.choice(step) for step in plot)]
    parts.append(rng.choice(ENDINGS))
    return _fill(" ".join(parts), slots)


def titled_story(rng: random.Random) -> str:
    hero = random_hero(rng)
    slots = _slots(rng, hero)
    return _fill(rng.choice(TITLES), slots) + "\n\n" + story(rng, hero)


def poem(rng: random.Random, kind: str, *, haiku: bool) -> str:
    hero = random_hero(rng, kind)
    return _fill(rng.choice(HAIKUS if haiku else POEMS), _slots(rng, hero))
