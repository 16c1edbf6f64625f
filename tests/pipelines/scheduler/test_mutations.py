"""Seeded bugs: each must make the simulation fail, or the simulation proves little."""

import inspect
import textwrap
from collections import Counter
from collections.abc import Callable

import pytest

from quire.pipelines.core.context import TextContext
from quire.pipelines.kv_cache.page_pool import PagePool
from quire.pipelines.kv_cache.prefix_cache import PrefixCache
from quire.pipelines.scheduler.scheduler import Scheduler
from quire.pipelines.scheduler.step_rows import StepRows
from quire.pipelines.worker.engine import Engine

SEEDS = 60

MUTATIONS = [
    (PagePool, "release", "for page in reversed(pages):", "for page in reversed(pages[1:]):"),
    (PagePool, "retain", "self._holders[page] += 1", "self._holders[page] += page > 0"),
    (PagePool, "allocate", "if self._drop_content(page):", "if False:"),
    (PagePool, "forget", "if self._drop_content(page)", "if False"),
    (PrefixCache, "match", "history.size - 1", "history.size"),
    (PrefixCache, "commit", "full = history.size //", "full = (history.size + 1) //"),
    (PrefixCache, "commit", "range(done, full)", "range(done + 1, full)"),
    (PrefixCache, "_content", "sha256(chain[index] + tokens)", "sha256(tokens)"),
    (PrefixCache, "new_chain", "sha256(salt)", "sha256(b'')"),
    (StepRows, "append", "generated_length - 1", "generated_length"),
    (Scheduler, "abort", "self._release(self._running.pop(request_id))", "pass"),
    (
        Scheduler,
        "abort",
        "self._release(self._running.pop(request_id))",
        "del self._running[request_id]",
    ),
    (Scheduler, "abort", "self._waiting.remove(request_id)", "pass"),
    (Scheduler, "_preempt", "entry.context.reset()", "pass"),
    (Scheduler, "_preempt", "self._release(entry)", "self._release(entry); entry.order = (1e9, 0)"),
    (Scheduler, "_secure_decode_pages", "self._preempt(max(", "self._preempt(min("),
    (Scheduler, "_secure_decode_pages", "[e for e in prefills if e.pages]", "prefills"),
    (Scheduler, "_chunk", "* self.config.page_size", "* self.config.page_size + budget % 2"),
    (Scheduler, "plan", "max_batch_input_tokens - len(rows)", "max_batch_input_tokens"),
    (Scheduler, "_admit_first", "- sum(self._pool.is_free(page) for page in hits)", ""),
    (Scheduler, "_admit_first", "self._waiting.first()", "self._waiting._heap[-1][1]"),
    (Scheduler, "_start", "self._pool.retain(hits)", "pass"),
    (Scheduler, "_start", "context.tokens.skip_processing(hit_tokens)", "pass"),
    (Scheduler, "_start", "context.cached_prefix_length is None", "True"),
    (Scheduler, "_start", "min(hit_tokens, context.tokens.prompt_length)", "hit_tokens"),
    (Scheduler, "_fail", "self._pool.forget(entry.pages)", "pass"),
    (Scheduler, "_fail", "self._suspect_pages.update(entry.pages)", "pass"),
    (Scheduler, "_append_token", "self._release(entry)", "pass"),
    (Scheduler, "apply", "index += row.samples", "index += 1"),
    (Engine, "step", "self._runner.scrub(pages)", "pass"),
    (
        TextContext,
        "reset",
        "self.tokens.reset()",
        "self.tokens.reset(); self.tokens._prompt_length = len(self.tokens)",
    ),
    (
        TextContext,
        "from_wire",
        "generated=np.frombuffer(wire.generated, dtype=np.int32)",
        "generated=None",
    ),
]


def mutate(patch: pytest.MonkeyPatch, owner: type, method: str, old: str, new: str) -> None:
    """Replace one piece of a method's source and run the result in its place."""
    original = inspect.getattr_static(owner, method)
    function = getattr(original, "__func__", original)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} is not once in {method}: update the mutation"
    scope = dict(function.__globals__)
    exec(compile(source.replace(old, new), str(owner), "exec"), scope)  # noqa: S102
    patch.setattr(owner, method, scope[method])


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda item: f"{item[0].__name__}.{item[1]}")
def test_the_simulation_finds_a_seeded_bug(
    simulate: Callable[[int], Counter[str]],
    monkeypatch: pytest.MonkeyPatch,
    mutation: tuple[type, str, str, str],
) -> None:
    mutate(monkeypatch, *mutation)
    with pytest.raises((AssertionError, ValueError, RuntimeError, LookupError)):
        for seed in range(SEEDS):
            simulate(seed)
