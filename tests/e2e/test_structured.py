"""Structured output through a live server and the official client."""

import contextlib
import json
import re
import socket
import threading
import time
from typing import Literal
from urllib.parse import urlsplit

import httpx2
import jsonschema
import psutil
import pytest
from pydantic import BaseModel, Field

MESSAGES = [{"role": "user", "content": "Describe Paris as JSON."}]


class Place(BaseModel):
    name: str = Field(max_length=24)
    kind: Literal["city", "river"]
    rank: int = Field(ge=1, le=9)
    tags: list[Literal["a", "b"]] = Field(max_length=2)


SCHEMA = Place.model_json_schema()
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}


@pytest.fixture
def server(demo):
    return demo


def chat(server, **fields):
    body = {"messages": MESSAGES, "temperature": 1.0, "max_tokens": 200, **fields}
    reply = server.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


async def test_the_clients_parse_gives_the_model(server, connect):
    reply = await connect(server).chat.completions.parse(
        model="quire-demo", messages=MESSAGES, response_format=Place, seed=4, max_tokens=300
    )

    assert isinstance(reply.choices[0].message.parsed, Place)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_every_reply_is_valid_however_hot(server, temperature):
    for seed in range(4):
        choice = chat(server, response_format=FORMAT, seed=seed, temperature=temperature)
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


def test_a_stream_says_what_the_whole_reply_says(server):
    fields = {"response_format": FORMAT, "seed": 7, "n": 2}
    body = {"messages": MESSAGES, "max_tokens": 200, **fields}
    whole = server.http.post("/v1/chat/completions", json=body).json()
    texts = ["", ""]
    with server.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]


@pytest.mark.parametrize(
    ("outputs", "pattern"),
    [
        ({"regex": "[a-c]{3}-[0-9]{2}"}, r"[a-c]{3}-[0-9]{2}"),
        ({"choice": ["yes", 'no "no"']}, r'yes|no "no"'),
        ({"grammar": 'root ::= "x" [0-9] [0-9] | "y"'}, r"x\d\d|y"),
        ({"json": json.dumps({"enum": [1, "é"]})}, r'1|"é"'),
        ({"json_object": True}, r"(?s)\{.*"),
        (
            {
                "structural_tag": {
                    "type": "structural_tag",
                    "format": {
                        "type": "tag",
                        "begin": "<call>",
                        "content": {"type": "json_schema", "json_schema": {"type": "boolean"}},
                        "end": "</call>",
                    },
                }
            },
            r"(?s)<call>\s*(true|false)\s*</call>",
        ),
    ],
    ids=["regex", "choice", "grammar", "json", "json_object", "structural_tag"],
)
def test_vllms_forms(server, outputs, pattern):
    for seed in range(3):
        text = chat(server, structured_outputs=outputs, seed=seed)["message"]["content"]
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex", "not closed"),
        (
            {"structured_outputs": {"grammar": "root ::= x"}},
            "structured_outputs.grammar",
            "not defined",
        ),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "not valid JSON"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs.json", "'not' at $"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs.json",
            "not 2",
        ),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
            "combined",
        ),
        ({"structured_outputs": {"regex": "a"}, "min_tokens": 2}, "min_tokens", "combined"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos", "combined"),
        (
            {"structured_outputs": {"regex": "a" * 300_000}},
            "structured_outputs.regex",
            "300000 bytes; the limit is 262144",
        ),
    ],
)
def test_what_cannot_be_enforced_is_refused(server, fields, param, message):
    reply = server.http.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})

    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


def test_other_rows_of_the_batch_say_what_they_say_alone(server):
    plain = {"seed": 3, "max_tokens": 40}
    alone = chat(server, **plain)["message"]["content"]
    found = []
    beside = threading.Thread(
        target=lambda: found.append(chat(server, response_format=FORMAT, seed=5))
    )
    beside.start()
    assert chat(server, **plain)["message"]["content"] == alone
    beside.join()
    assert found[0] == chat(server, response_format=FORMAT, seed=5)


def test_a_stream_outlives_its_worker_inside_the_grammar(server):
    """The new worker's matcher replays what was generated, then goes on as the old one would."""
    fields = {"response_format": {"type": "json_object"}, "seed": 11, "max_tokens": 120}
    expected = chat(server, **fields)["message"]["content"]
    text, killed = "", False
    body = {"messages": MESSAGES, "temperature": 1.0, **fields, "stream": True}
    with server.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                text += choice["delta"].get("content", "")
            if text and not killed:
                killed = True
                server.worker().kill()
    assert killed
    assert text == expected


def test_a_killed_compiler_is_started_again(server):
    for child in psutil.Process(server.process.pid).children():
        name = " ".join(child.cmdline())
        if "compile_process" in name or "quire: grammars" in name:
            child.kill()

    assert chat(server, structured_outputs={"regex": "[xyz]{3}"})["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"structured_outputs": {"regex": "[0-9]{3}"}, "allowed_token_ids": [2]}, "no token"),
        (
            {
                "structured_outputs": {"grammar": 'root ::= (([a-z ]* [a-z ]*)* [a-z ]*)* "!"'},
                "bad_words": ["!"],
            },
            "too long to follow",
        ),
    ],
    ids=["no token left", "slow"],
)
def test_constraints_that_cannot_be_met_are_the_clients_fault(server, fields, message):
    body = {"messages": MESSAGES, "max_tokens": 400, "temperature": 2.0, **fields}
    reply = server.http.post("/v1/chat/completions", json=body)

    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["code"] == "constraints_conflict"
    assert message in reply.json()["error"]["message"]


def compilers(server):
    found = psutil.Process(server.process.pid).children()
    return [p for p in found if "quire: grammars" in " ".join(p.cmdline())]


def slow_request():
    """One whose grammar takes a second or more to compile."""
    regex = "(" + "|".join(f"{n * n}x{n}" for n in range(9000)) + ")"
    return {"messages": MESSAGES, "structured_outputs": {"regex": regex}}


@contextlib.contextmanager
def at_work(compiler):
    """Ends when the process computes something that was asked for inside."""

    def spent():
        return sum(compiler.cpu_times()[:2])

    before, deadline = spent(), time.monotonic() + 20
    yield
    while spent() < before + 0.05:
        assert time.monotonic() < deadline, "it does nothing"
        time.sleep(0.01)


def test_a_client_that_leaves_ends_its_compilation(server):
    chat(server, structured_outputs={"regex": "[pq]{2}"})
    (before,) = compilers(server)

    url, body = urlsplit(server.url), json.dumps(slow_request()).encode()
    with socket.create_connection((url.hostname, url.port)) as connection, at_work(before):
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )

    before.wait(timeout=20)


def is_alive(process):
    """Nobody may be there to reap what the daemon leaves."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def test_no_compiler_outlives_the_daemon(launch):
    """Not even in the middle of a long compilation, when it does not look at its input."""
    server = launch()
    server.wait_ready()
    chat(server, structured_outputs={"regex": "[pq]{2}"})
    (compiler,) = compilers(server)

    def ask():
        with contextlib.suppress(httpx2.TransportError):
            server.http.post("/v1/chat/completions", json=slow_request())

    beside = threading.Thread(target=ask)
    with at_work(compiler):
        beside.start()

    server.process.kill()

    beside.join()
    deadline = time.monotonic() + 1
    while is_alive(compiler):
        assert time.monotonic() < deadline
        time.sleep(0.02)
