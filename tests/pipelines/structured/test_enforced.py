"""What a grammar lets through, jsonschema accepts: random walks over random schemas."""

import dataclasses
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.config.limits import LIMITS
from quire.kernels.logits_processing import apply_token_bitmask
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.grammar import Grammar, GrammarSpec
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.hf import resolve_model
from quire.pipelines.structured.compile_process import Compiler, CompilerBoot
from quire.pipelines.structured.json_schema import NotEnforceable, enforceable, repeated
from quire.pipelines.structured.matcher import GrammarMatchers
from quire.pipelines.tokenizer import TextTokenizer

NUM_SCHEMAS = 200
MAX_TOKENS = 400
ODD = "\U0001f600\n\x00\x7f\u2028"

Walk = Callable[[GrammarSpec, int], str | None]


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_model("quire-demo", None)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def compiler(folder: Path, tokenizer: TextTokenizer) -> Compiler:
    spec = load_model_spec(folder)
    ends = spec.end_token_ids(tokenizer.eos_token_id)
    return Compiler(CompilerBoot(str(folder), spec.vocab_size, ends))


@pytest.fixture(scope="module")
def walk(folder: Path, tokenizer: TextTokenizer, compiler: Compiler) -> Walk:
    """A text that the grammar of a spec allows, chosen by random logits; None: it grew too long.

    After some tokens those that close strings, lists and objects become likely.
    """
    spec = load_model_spec(folder)
    matchers = GrammarMatchers(folder, spec)
    ends = spec.end_token_ids(tokenizer.eos_token_id)
    pieces = [tokenizer.token_bytes(id) for id in range(spec.vocab_size)]
    closing = torch.tensor([8.0 if p[:1] in (b'"', b"}", b"]") else 0.0 for p in pieces])
    space = torch.tensor([-6.0 if p.strip() == b"" else 0.0 for p in pieces])

    def run(grammar: GrammarSpec, seed: int) -> str | None:
        compiled = compiler.compile(grammar)
        assert not compiled.error, (grammar, compiled.error)
        known = Grammar(str(hash(grammar)), compiled.data)
        context = TextContext(
            1,
            torch.tensor([5], dtype=torch.int32).numpy(),
            SamplingParams(),
            max_length=4096,
            eos_token_ids=ends,
            grammar=known,
        )
        matchers.attach(context, matchers.load(known))
        assert context.matcher is not None
        bitmask = torch.empty((1, -(-spec.vocab_size // 32)), dtype=torch.int32)
        generator = torch.Generator().manual_seed(seed)
        for step in range(MAX_TOKENS):
            logits = torch.randn(spec.vocab_size, generator=generator) * 3 + space
            logits[list(ends)] = 20.0
            logits += closing * (step > 25)
            if context.matcher.fill(bitmask, 0):
                apply_token_bitmask(logits[None], bitmask)
            context.update(int(logits.argmax()))
            if context.is_done:
                return tokenizer.decode(context.tokens.generated.tolist())
        return None

    return run


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of the keywords that are said to be enforced."""
    leaves = (
        "integer",
        "number",
        "string",
        "pattern",
        "enum",
        "const",
        "boolean",
        "null",
        "format",
    )
    kinds = leaves if depth > 2 else (*leaves, "object", "object", "array", "anyOf", "tuple", "map")
    low = rng.randint(-50, 50)
    match rng.choice(kinds):
        case "integer":
            return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 200)}
        case "number":
            return {"type": "number", "minimum": low / 4, "exclusiveMaximum": low / 4 + 2.5}
        case "string":
            least = rng.randint(0, 4)
            return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 9)}
        case "pattern":
            return {"type": "string", "pattern": rng.choice(["^[a-f]{2,5}$", "^(ab|c)+[0-9]?$"])}
        case "enum":
            return {"enum": rng.sample(["a", 'q"', 1, 2.5, None, True, {"k": [1]}], 3)}
        case "const":
            return {"const": rng.choice(["é\n", -7, None, [1, "x"]])}
        case "boolean":
            return {"type": ["boolean", "null"]}
        case "format":
            return {"type": "string", "format": rng.choice(["date", "time", "uuid", "ipv4"])}
        case "object":
            names = rng.sample(["a", "b c", 'd"', "é", "x_1"], rng.randint(1, 4))
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth + 1) for name in names},
                "required": rng.sample(names, rng.randint(0, len(names))),
                "additionalProperties": False,
            }
        case "array":
            least = rng.randint(0, 2)
            items = random_schema(rng, depth + 1)
            return {"type": "array", "items": items, "minItems": least, "maxItems": least + 2}
        case "tuple":
            items = [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
        case "map":
            values = random_schema(rng, depth + 1)
            return {"type": "object", "additionalProperties": values, "maxProperties": 2}
    return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}


def check(walk: Walk, schema: dict[str, Any], seed: int) -> bool:
    """Whether the walk came to its end; what it says must be valid."""
    text = walk(GrammarSpec("json_schema", json.dumps(enforceable(schema))), seed)
    if text is not None:
        jsonschema.validate(json.loads(text), schema)
    return text is not None


def test_random_schemas_are_kept(walk: Walk) -> None:
    ended = sum(
        check(walk, random_schema(random.Random(seed)), seed) for seed in range(NUM_SCHEMAS)
    )
    assert ended > 0.9 * NUM_SCHEMAS


DISCRIMINATED = {
    "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
    "discriminator": {"propertyName": "kind"},
    "$defs": {
        "cat": {
            "type": "object",
            "properties": {"kind": {"const": "cat", "type": "string"}, "lives": {"const": 9}},
            "required": ["kind", "lives"],
        },
        "dog": {
            "type": "object",
            "properties": {"kind": {"const": "dog"}, "next": {"$ref": "#"}},
            "required": ["kind"],
        },
    },
}


@pytest.mark.parametrize(
    "schema",
    [
        DISCRIMINATED,
        {"oneOf": [{"type": "integer"}, {"type": "null"}]},
        {"type": "integer", "enum": [1, 2, "x", True, 3.0]},
        {"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 40},
        {"allOf": [{"type": "boolean"}]},
        {"type": "string", "maxLength": 3, "title": "T", "x-order": 1},
        {"type": ["string", "null"], "minLength": 2},
        {"type": "string", "minLength": 130, "maxLength": 140},
        {
            "anyOf": [
                {"type": "string", "maxLength": n, "minLength": n - 9} for n in (200, 300, 500)
            ]
        },
        {"type": "object", "properties": {"a": True}, "required": ["a"], "maxProperties": 1},
    ],
    ids=lambda schema: next(iter(schema)),
)
def test_these_are_kept(walk: Walk, schema: dict[str, Any]) -> None:
    assert sum(check(walk, schema, seed) for seed in range(12)) > 6


@settings(max_examples=200, deadline=None)
@given(low=st.integers(0, 300), more=st.integers(0, 600), data=st.data())
def test_long_repetitions_are_of_the_lengths_asked_for(low: int, more: int, data: Any) -> None:
    high = low + more
    borders = [low - 1, low, low + 1, low + 63, low + 64, low + 65, high - 1, high, high + 1]
    count = data.draw(st.sampled_from(borders) | st.integers(0, high + 70))

    is_match = re.fullmatch(repeated("a", low, high), "a" * count) is not None

    assert is_match is (low <= count <= high) or count < 0


def tagged(properties: Any) -> dict[str, Any]:
    return {"required": ["a"], "properties": properties}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([], "a schema must be a JSON object"),
        ({"not": {}}, "'not' at $ cannot"),
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "'uniqueItems' at $"),
        ({"properties": {"a": {"if": {}}}}, "'if' at $.properties.a"),
        ({"type": "number", "multipleOf": 0.5}, "on anything but an integer"),
        ({"type": "integer", "minimum": 1.5}, "must be whole"),
        ({"type": "number", "minimum": 1e-9}, "1e-09 is too small or too large"),
        ({"minimum": 3}, "without type integer or number"),
        ({"maxLength": 3}, "without type string"),
        (
            {"type": "string", "pattern": "a", "maxLength": 3},
            "'maxLength' at $ cannot be enforced beside 'pattern'",
        ),
        ({"type": "string", "pattern": "a(?=b)"}, "look-around"),
        ({"type": "string", "pattern": "\\n"}, "escapes by code"),
        ({"type": "object", "required": ["z"]}, "'properties' lacks 'z'"),
        ({"anyOf": [{}], "type": "object"}, "'anyOf' at $ cannot be enforced beside 'type'"),
        ({"allOf": [{}, {}]}, "with more than one schema"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "use anyOf"),
        ({"$ref": "#/$defs/none"}, "is not in the schema"),
        ({"$ref": "https://example.com/schema"}, "is not in the schema"),
        ({"type": "any"}, "'any' is no type of JSON"),
        ({"type": "integer", "enum": ["x"]}, "no value is left"),
        ({"items": {}, "type": "array", "prefixItems": 3}, "must be a list"),
        ({"properties": 3}, "$.properties must be an object"),
        ({"type": "array", "items": 3}, "$.items must be a schema object"),
        ({"type": "string", "format": "iri"}, "'format' at $ cannot be enforced: 'iri'"),
        ({"type": "string", "format": {}}, "'format' at $ cannot be enforced: {}"),
        ({"type": [{}]}, "is no type of JSON"),
        ({"type": [[]], "enum": [1]}, "is no type of JSON"),
        ({"oneOf": [{"required": 5}, {"required": 6}]}, "use anyOf"),
        ({"oneOf": [{"required": [{}]}, {"required": [[]]}]}, "use anyOf"),
        ({"oneOf": [tagged([1]), tagged([2])]}, "use anyOf"),
        ({"oneOf": [tagged({"a": {"enum": 5}}), tagged({"a": {"enum": 6}})]}, "use anyOf"),
    ],
)
def test_what_would_be_dropped_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(NotEnforceable) as caught:
        enforceable(schema)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "pattern"),
    [
        (GrammarSpec("regex", "[a-c]{3}-[0-9]{2}"), r"[a-c]{3}-[0-9]{2}"),
        (GrammarSpec("choice", json.dumps(["yes", 'no "q"', "é"])), r'yes|no "q"|é'),
        (GrammarSpec("choice", json.dumps([ODD])), ODD),
        (GrammarSpec("ebnf", 'root ::= "x" [0-9] y\ny ::= "a" | "b"'), r"x[0-9][ab]"),
    ],
    ids=["regex", "choice", "characters", "ebnf"],
)
def test_texts_match_their_grammar(walk: Walk, spec: GrammarSpec, pattern: str) -> None:
    for seed in range(10):
        text = walk(spec, seed)
        assert text is not None
        assert re.fullmatch(pattern, text)


def test_json_objects_are_objects(walk: Walk) -> None:
    texts = [walk(GrammarSpec("json_object"), seed) for seed in range(8)]

    assert all(isinstance(json.loads(text), dict) for text in texts if text is not None)
    assert any(texts)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (GrammarSpec("ebnf", "root ::= foo"), 'Rule "foo" is not defined'),
        (GrammarSpec("regex", "(a"), "parenthesis is not closed"),
        (GrammarSpec("structural_tag", "{}"), ""),
    ],
)
def test_a_wrong_grammar_is_one_line(compiler: Compiler, spec: GrammarSpec, message: str) -> None:
    error = compiler.compile(spec).error

    assert error
    assert message in error
    assert "\n" not in error


def test_one_that_is_large_when_compiled_is_refused(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = dataclasses.replace(LIMITS, compiled_grammar_bytes=1000)
    monkeypatch.setattr("quire.pipelines.structured.compile_process.LIMITS", limits)

    error = compiler.compile(GrammarSpec("json_object")).error

    assert error.endswith("bytes when compiled, the limit is 1000")
