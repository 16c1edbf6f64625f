"""Seeded bugs: each must make the simulation fail, or the simulation proves little."""

import inspect
import textwrap
from collections import Counter
from collections.abc import Callable

import pytest

from quire.pipelines.core.context import TextContext
from quire.pipelines.kv_cache.manager import GroupPages
from quire.pipelines.kv_cache.manager import PagedKVCacheManager as Manager
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
    (PrefixCache, "commit", "pages[index] = known", "pass"),
    (PrefixCache, "_content", "chain[place] + ", ""),
    (PrefixCache, "new_chain", "sha256(salt)", "sha256(b'')"),
    (StepRows, "append", "generated_length - 1", "generated_length"),
    (Scheduler, "abort", "self._kv.release(self._running.pop(request_id).held)", "pass"),
    (
        Scheduler,
        "abort",
        "self._kv.release(self._running.pop(request_id).held)",
        "del self._running[request_id]",
    ),
    (Scheduler, "abort", "self._waiting.remove(request_id)", "pass"),
    (Scheduler, "_preempt", "entry.context.reset()", "pass"),
    (Scheduler, "_preempt", "self._waiting.push(", "entry.order = (1e9, 0); self._waiting.push("),
    (Scheduler, "_secure_pages", "self._preempt(max(", "self._preempt(min("),
    (
        Scheduler,
        "_secure_pages",
        "[entry for entry in prefills if entry.held.capacity]",
        "prefills",
    ),
    (Scheduler, "_chunk", "* self.config.page_size", "* self.config.page_size + budget % 2"),
    (Scheduler, "_prefill_tokens_for", "batch_input_tokens - num_decodes", "batch_input_tokens"),
    (Scheduler, "_admit_first", "self._waiting.first()", "self._waiting._heap[-1][1]"),
    (Scheduler, "_start", "context.tokens.skip_processing(hit_tokens)", "pass"),
    (Scheduler, "_start", "context.cached_prefix_length is None", "True"),
    (Scheduler, "_start", "min(hit_tokens, context.tokens.prompt_length)", "hit_tokens"),
    (Scheduler, "_append_token", "self._kv.release(entry.held)", "pass"),
    (Manager, "match", "agreed + 1 if len(pages) == limit else 1", "agreed + 1"),
    (Manager, "start", "group.pool.retain(live[index])", "pass"),
    (Manager, "start", "first_page(group.window, position, self._page_size)", "num_hits"),
    (Manager, "start", "if not group.has_room(pages, count + num_spare):", "if False:"),
    (Manager, "extend", "if count > group.pool.num_free:", "if False:"),
    (Manager, "advance", "group.release(table[passed])", "pass"),
    (Manager, "advance", "written.size, self._page_size)", "written.size + 1, self._page_size)"),
    (Manager, "advance", "table[passed] = [0]", "table[passed] = [1]"),
    (Manager, "release", "[held.dropped[index] :]", "[:]"),
    (Manager, "_set_capacity", "min(", "max("),
    (GroupPages, "has_room", "- sum(self.pool.is_free(page) for page in hits)", ""),
    (GroupPages, "distrust", "self.pool.forget(pages + recorded)", "pass"),
    (GroupPages, "distrust", "self._suspects.update(pages, recorded)", "pass"),
    (PrefixCache, "_match_window", "end, pages = index, []", "end = index"),
    (PrefixCache, "_match_window", "if index < first:", "if index <= first:"),
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
