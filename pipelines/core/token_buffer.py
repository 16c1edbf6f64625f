"""The token buffer: one array of tokens with the three views the engine needs.

    | prompt                 | generated                  |
    | processed (KV written) | active (next step) | pending |
    | streamed                         | ready             |

`processed` counts tokens whose KV is in pages. `active` is the window the next step runs,
`pending` what is left of the history after that window; both are empty only before a sampled
token is appended. `streamed` counts generated tokens already handed out.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

TokenArray = NDArray[np.int32]


class TokenBuffer:
    """A growing int32 array of token ids and its three boundaries."""

    def __init__(self, prompt: TokenArray, generated: TokenArray | None = None) -> None:
        if prompt.size == 0:
            raise ValueError("a context needs at least one prompt token")
        history = prompt if generated is None else np.concatenate([prompt, generated])
        self._array: TokenArray = np.empty(max(64, history.size * 2), dtype=np.int32)
        self._array[: history.size] = history
        self._length = int(history.size)
        self._prompt_length = int(prompt.size)
        self._processed = 0
        self._active_end = self._length
        self._streamed = self.generated_length

    def __len__(self) -> int:
        return self._length

    @property
    def prompt_length(self) -> int:
        return self._prompt_length

    @property
    def generated_length(self) -> int:
        return self._length - self._prompt_length

    @property
    def processed_length(self) -> int:
        return self._processed

    @property
    def active_length(self) -> int:
        return self._active_end - self._processed

    @property
    def pending_length(self) -> int:
        return self._length - self._active_end

    @property
    def all(self) -> TokenArray:
        """Every token so far; a view, valid until the next append."""
        return self._array[: self._length]

    @property
    def prompt(self) -> TokenArray:
        return self._array[: self._prompt_length]

    @property
    def generated(self) -> TokenArray:
        return self._array[self._prompt_length : self._length]

    @property
    def active(self) -> TokenArray:
        return self._array[self._processed : self._active_end]

    def chunk(self, size: int) -> None:
        """Shrink the active window to `size` tokens; the rest becomes pending."""
        if not 0 < size <= self.active_length:
            raise ValueError(f"chunk must be 1..{self.active_length} tokens, not {size}")
        self._active_end = self._processed + size

    def advance_chunk(self) -> None:
        """The active window's KV is written; the pending tokens become active."""
        if self.pending_length == 0:
            raise ValueError("advance_chunk without pending tokens; use advance_with_token")
        self._processed = self._active_end
        self._active_end = self._length

    def advance_with_token(self, token: int) -> None:
        """The active window's KV is written and `token` was sampled after it."""
        if self.pending_length:
            raise ValueError(f"{self.pending_length} tokens are still pending; use advance_chunk")
        self._processed = self._active_end
        self._append(token)
        self._active_end = self._length

    def advance_last(self) -> None:
        """The active window's KV is written and nothing follows it: the history is complete."""
        if self.pending_length:
            raise ValueError(f"{self.pending_length} tokens are still pending; use advance_chunk")
        self._processed = self._active_end

    def skip_processing(self, size: int) -> None:
        """A prefix hit: the KV of `size` tokens is in pages already. Leaves at least one active."""
        if not 0 <= size < self.active_length:
            raise ValueError(f"can skip 0..{self.active_length - 1} tokens, not {size}")
        self._processed += size

    def reset(self) -> None:
        """All KV is gone: the whole history is active again. The prompt keeps its length."""
        self._processed = 0
        self._active_end = self._length

    def consume_ready(self) -> TokenArray:
        """Generated tokens not handed out before; marks them streamed."""
        ready = self._array[self._prompt_length + self._streamed : self._length].copy()
        self._streamed = self.generated_length
        return ready

    def extend(self, tokens: Iterable[int]) -> None:
        """Append generated tokens outside a step (the API process commits a frame)."""
        for token in tokens:
            self._append(token)
        self._active_end = self._length

    def _append(self, token: int) -> None:
        if self._length == self._array.size:
            self._array = np.concatenate([self._array, np.empty_like(self._array)])
        self._array[self._length] = token
        self._length += 1
