import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire.pipelines.core.token_buffer import TokenBuffer

TOKENS = st.integers(0, 2**31 - 1)


def array(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


class BufferMachine(RuleBasedStateMachine):
    """The buffer against three plain lists: processed, active and pending tokens."""

    @initialize(
        prompt=st.lists(TOKENS, min_size=1, max_size=90), generated=st.lists(TOKENS, max_size=9)
    )
    def start(self, prompt: list[int], generated: list[int]) -> None:
        self.buffer = TokenBuffer(array(prompt), array(generated))
        self.prompt, self.generated = prompt, list(generated)
        self.processed: list[int] = []
        self.active = prompt + generated
        self.pending: list[int] = []
        self.streamed = len(generated)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def chunk(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(1, len(self.active)))
        self.buffer.chunk(size)
        self.pending = self.active[size:] + self.pending
        self.active = self.active[:size]

    @precondition(lambda self: self.pending)
    @rule()
    def advance_chunk(self) -> None:
        self.buffer.advance_chunk()
        self.processed += self.active
        self.active, self.pending = self.pending, []

    @precondition(lambda self: not self.pending)
    @rule(token=TOKENS)
    def advance_with_token(self, token: int) -> None:
        self.buffer.advance_with_token(token)
        self.processed += self.active
        self.active = [token]
        self.generated.append(token)

    @precondition(lambda self: not self.pending)
    @rule(data=st.data())
    def skip(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(0, len(self.active) - 1))
        self.buffer.skip_processing(size)
        self.processed += self.active[:size]
        self.active = self.active[size:]

    @rule()
    def reset(self) -> None:
        self.buffer.reset()
        self.processed, self.active, self.pending = [], self.prompt + self.generated, []

    @precondition(lambda self: not self.pending)
    @rule(tokens=st.lists(TOKENS, max_size=70))
    def extend(self, tokens: list[int]) -> None:
        self.buffer.extend(tokens)
        self.generated += tokens
        self.active += tokens

    @rule()
    def consume_ready(self) -> None:
        assert self.buffer.consume_ready().tolist() == self.generated[self.streamed :]
        self.streamed = len(self.generated)

    @invariant()
    def views_agree(self) -> None:
        buffer = self.buffer
        assert buffer.prompt.tolist() == self.prompt
        assert buffer.generated.tolist() == self.generated
        assert buffer.all.tolist() == self.processed + self.active + self.pending
        assert buffer.active.tolist() == self.active
        lengths = (buffer.processed_length, buffer.active_length, buffer.pending_length)
        assert lengths == (len(self.processed), len(self.active), len(self.pending))
        assert len(buffer) == buffer.prompt_length + buffer.generated_length


TestTokenBuffer = BufferMachine.TestCase


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt token"):
        TokenBuffer(array([]))


@given(size=st.integers(-3, 8))
def test_chunk_accepts_only_a_part_of_the_active_window(size: int) -> None:
    buffer = TokenBuffer(array([1, 2, 3, 4]))
    if 0 < size <= 4:
        buffer.chunk(size)
        assert buffer.active_length == size
    else:
        with pytest.raises(ValueError, match="chunk must be 1..4"):
            buffer.chunk(size)


@given(size=st.integers(-3, 8))
def test_skip_leaves_a_token_to_run(size: int) -> None:
    buffer = TokenBuffer(array([1, 2, 3, 4]))
    if 0 <= size < 4:
        buffer.skip_processing(size)
        assert buffer.active_length == 4 - size
    else:
        with pytest.raises(ValueError, match=r"can skip 0\.\.3"):
            buffer.skip_processing(size)


def test_a_chunked_buffer_takes_no_token_and_a_whole_one_no_chunk() -> None:
    buffer = TokenBuffer(array([1, 2, 3]))
    with pytest.raises(ValueError, match="without pending tokens"):
        buffer.advance_chunk()
    buffer.chunk(2)
    with pytest.raises(ValueError, match="1 tokens are still pending"):
        buffer.advance_with_token(9)


def test_resumed_tokens_count_as_generated_and_streamed() -> None:
    buffer = TokenBuffer(array([1, 2]), array([3, 4]))
    assert (buffer.prompt_length, buffer.generated_length) == (2, 2)
    assert buffer.consume_ready().size == 0


def test_the_buffer_does_not_alias_its_input() -> None:
    prompt = array([1, 2, 3])
    buffer = TokenBuffer(prompt)
    prompt[0] = 7
    assert buffer.all.tolist() == [1, 2, 3]


def test_a_history_that_nothing_follows_is_written_to_its_end() -> None:
    buffer = TokenBuffer(np.arange(5, dtype=np.int32))
    buffer.chunk(3)
    with pytest.raises(ValueError, match="2 tokens are still pending"):
        buffer.advance_last()
    buffer.advance_chunk()
    buffer.advance_last()

    assert (buffer.processed_length, buffer.active_length, len(buffer)) == (5, 0, 5)
