"""The process that compiles grammars: one request at a time over its standard streams.

A frame is a little-endian uint32 and that many bytes. First a `CompilerBoot` as JSON, answered by
an empty frame; then `GrammarSpec`s, answered by `Compiled`, both as msgpack. It ends with its
standard input or its parent, and may be killed at any time.
"""

import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from setproctitle import setproctitle

from quire.config.limits import LIMITS
from quire.pipelines.core.child_process import die_with_parent, prefer_as_oom_victim
from quire.pipelines.core.grammar import GrammarSpec
from quire.pipelines.structured.vocabulary import tokenizer_info
from quire.pipelines.tokenizer import TextTokenizer

HEADER = struct.Struct("<I")
MAX_DATA_BYTES = 2 * 1024**3
"""Memory that a grammar may take to compile; the allocation beyond it fails."""
MAX_WHITESPACE = 20
"""Between two tokens of JSON: without an end, a weak model can write nothing else."""


class CompilerBoot(msgspec.Struct, frozen=True):
    folder: str
    vocab_size: int
    end_token_ids: tuple[int, ...]


class Compiled(msgspec.Struct, frozen=True, omit_defaults=True):
    """`data` as xgrammar serializes a compiled grammar, or the `error` that says why not."""

    data: str = ""
    error: str = ""


class Compiler:
    def __init__(self, boot: CompilerBoot) -> None:
        import xgrammar

        tokenizer = TextTokenizer.from_folder(Path(boot.folder))
        self._xgrammar = xgrammar
        info = tokenizer_info(tokenizer, boot.vocab_size, boot.end_token_ids)
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._bitmask = xgrammar.allocate_token_bitmask(1, boot.vocab_size)

    def compile(self, spec: GrammarSpec) -> Compiled:
        try:
            grammar = self._compiled(spec)
            matcher = self._xgrammar.GrammarMatcher(grammar)
            if matcher.fill_next_token_bitmask(self._bitmask, 0) and not self._bitmask.any():
                return Compiled(error="no text of this model's tokens can match it")
            data = grammar.serialize_json()
        except (RuntimeError, ValueError, MemoryError) as error:
            return Compiled(error=_one_line(str(error)) or type(error).__name__)
        size, limit = len(data), LIMITS.compiled_grammar_bytes
        if size > limit:
            return Compiled(error=f"it takes {size} bytes when compiled, the limit is {limit}")
        return Compiled(data=data)

    def _compiled(self, spec: GrammarSpec) -> Any:
        compiler = self._compiler
        match spec.kind:
            case "json_object":
                schema = '{"type": "object"}'
                return compiler.compile_json_schema(
                    schema, strict_mode=False, max_whitespace_cnt=MAX_WHITESPACE
                )
            case "json_schema":
                return compiler.compile_json_schema(spec.source, max_whitespace_cnt=MAX_WHITESPACE)
            case "regex":
                return compiler.compile_regex(spec.source)
            case "choice":
                # EBNF has JSON's escapes, but no pairs of them for one character.
                quoted = (json.dumps(c, ensure_ascii=False) for c in json.loads(spec.source))
                choices = " | ".join(quoted)
                return compiler.compile_grammar(f"root ::= {choices}")
            case "ebnf":
                return compiler.compile_grammar(spec.source)
            case "structural_tag":
                return compiler.compile_structural_tag(spec.source)


def _one_line(message: str) -> str:
    """xgrammar's message without the time and the place in its source that it begins with."""
    text = " ".join(message.split())
    _, found, rest = text.partition(".cc:")
    return (rest.partition(": ")[2] if found else text)[:300]


def read_frame(stream: BinaryIO) -> bytes | None:
    header = stream.read(HEADER.size)
    return stream.read(HEADER.unpack(header)[0]) if len(header) == HEADER.size else None


def write_frame(stream: BinaryIO, data: bytes) -> None:
    stream.write(HEADER.pack(len(data)) + data)
    stream.flush()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # To the API process a hangup means: read the keys again.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # While it compiles it does not see the end of its input.
    die_with_parent(os.getppid())
    prefer_as_oom_victim()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    # What a library prints must not land among the frames.
    sys.stdout = sys.stderr
    frame = read_frame(requests)
    if frame is None:
        return
    boot = msgspec.json.decode(frame, type=CompilerBoot)
    setproctitle(f"quire: grammars {Path(boot.folder).name}")
    compiler = Compiler(boot)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES, MAX_DATA_BYTES))
    write_frame(replies, b"")
    while (frame := read_frame(requests)) is not None:
        spec = msgspec.msgpack.decode(frame, type=GrammarSpec)
        write_frame(replies, msgspec.msgpack.encode(compiler.compile(spec)))


if __name__ == "__main__":
    main()
