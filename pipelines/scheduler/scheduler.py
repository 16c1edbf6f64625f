"""Continuous batching with chunked prefill, prefix reuse and preemption by recompute.

A step is one ragged batch: every decode row, then chunks of the running prefills, then contexts
admitted from the queue. Given the same calls with the same times it makes the same plans.
"""

from collections.abc import Iterable

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.messages import EngineStats
from quire.pipelines.core.plan import GRAMMAR_REFUSES, INVALID_STATES, PlanRow, StepPlan, StepResult
from quire.pipelines.kv_cache.manager import PagedKVCacheManager
from quire.pipelines.scheduler.config import SchedulerConfig
from quire.pipelines.scheduler.prefill_budget import PrefillBudget
from quire.pipelines.scheduler.queue import ScheduledContext, WaitingQueue
from quire.pipelines.scheduler.step_rows import StepRows


class Scheduler:
    """Owns the queue, the running contexts and the pages of one replica.

    The caller alternates `plan` and `apply`; `submit` and `abort` may come at any time. Progress:
    the running context that is first in line advances in every step. It gets pages by preempting
    the others, and alone it always fits, since `submit` refuses what never could.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.ignored_submits = 0
        """Contexts submitted again while live."""
        self.ignored_aborts = 0
        """Aborts of contexts that were not live."""
        self._kv = PagedKVCacheManager(
            config.page_groups,
            page_size=config.page_size,
            max_chunk=config.max_batch_input_tokens,
            enable_prefix_caching=config.enable_prefix_caching,
        )
        self._prefill_budget = (
            None
            if config.itl_target is None
            else PrefillBudget(config.itl_target, config.itl_stretch, config.page_size)
        )
        self._waiting = WaitingQueue()
        self._running: dict[int, ScheduledContext] = {}
        self._arrivals = 0
        self._prefix_query_tokens = 0
        self._prefix_hit_tokens = 0
        self._preemptions = 0
        self._preempted: list[int] = []
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._steps = 0

    @property
    def has_work(self) -> bool:
        return bool(self._running) or len(self._waiting) > 0

    def submit(self, context: TextContext, now: float) -> None:
        """Queue a context; one with generated tokens is resumed. One that is live is not doubled.

        Raises:
            ValueError: the context has ended already, or could never fit.
        """
        if context.request_id in self._running or context.request_id in self._waiting:
            self.ignored_submits += 1
            return
        self._check_fits(context)
        context.reset()
        held = self._kv.new_context(context.cache_salt)
        self._waiting.push(ScheduledContext(context, now, self._arrivals, held))
        self._arrivals += 1

    def abort(self, request_ids: Iterable[int]) -> None:
        """Drop contexts wherever they are and free their pages; unknown ids are counted."""
        for request_id in request_ids:
            if request_id in self._running:
                self._kv.release(self._running.pop(request_id).held)
            elif request_id in self._waiting:
                self._waiting.remove(request_id)
            else:
                self.ignored_aborts += 1

    def plan(self, now: float) -> StepPlan | None:
        """What to run next; None when there is nothing to run."""
        decodes, prefills = self._secure_pages()
        rows = [
            PlanRow(
                entry.context,
                entry.context.tokens.processed_length,
                1,
                entry.held.tables,
                entry.context.pooling is None,
            )
            for entry in decodes
        ]
        budget = available = self._prefill_tokens_for(len(rows))
        # At most one: what a cut prompt leaves of a step is less than a page, so whatever starts
        # beside it runs whole.
        for entry in prefills:
            budget -= self._add_prefill(entry, budget, rows)
        while (started := self._admit_first(now, budget)) is not None:
            budget -= self._add_prefill(started, budget, rows)
        if not rows:
            return None
        self._steps += 1
        self._decode_tokens += len(decodes)
        self._prefill_tokens += available - budget
        return StepPlan(rows)

    def _prefill_tokens_for(self, num_decodes: int) -> int:
        """Prompt tokens that a step beside so many decodes may take."""
        room = self.config.max_batch_input_tokens - num_decodes
        if self._prefill_budget is None or not num_decodes:
            return room
        return min(room, self._prefill_budget.tokens)

    def observe(self, plan: StepPlan, seconds: float) -> None:
        """How long a step took: what the cuts of later prompts are learned from."""
        if self._prefill_budget is not None:
            prefills = [row.count for row in plan.rows if row.count > 1]
            num_decodes = len(plan.rows) - len(prefills)
            self._prefill_budget.observe(num_decodes, sum(prefills), seconds)

    def apply(self, plan: StepPlan, result: StepResult) -> StepRows:
        """Account for a step that ran. Rows aborted since it was planned are passed over.

        Raises:
            ValueError: the result does not have one token per sampling row.
        """
        tokens = result.tokens.tolist()
        num_sampled = sum(row.samples for row in plan.rows)
        if num_sampled != len(tokens):
            raise ValueError(f"{num_sampled} rows sample, the result has {len(tokens)} tokens")
        output = StepRows(
            prompt_logprobs=[p for p in result.prompt_logprobs if p.request_id in self._running]
        )
        index = 0
        for row in plan.rows:
            context = row.context
            entry = self._running.get(context.request_id)
            if entry is not None and entry.context is context:
                if (vector := result.embeddings.get(context.request_id)) is not None:
                    self._end_pooled(entry, vector, output)
                elif not row.samples:
                    context.tokens.advance_chunk()
                    self._commit(entry)
                elif index in result.errors or tokens[index] < 0:
                    reason = result.errors.get(index, "the model gave no token")
                    self._fail(entry, reason, output)
                else:
                    self._append_token(entry, tokens[index], output)
                    if result.logprobs and (logprobs := result.logprobs[index]) is not None:
                        output.logprobs[len(output.tokens) - 1] = logprobs
            index += row.samples
        return output

    def take_pages_to_scrub(self) -> list[list[int]]:
        """Per page group, free pages that a failed row may have left NaN in; each is handed out once.

        The caller zeroes them before the next plan runs. Empty if there are none.
        """
        return self._kv.take_pages_to_scrub()

    def take_preempted(self) -> list[int]:
        """Ids of the contexts preempted since the last call."""
        taken, self._preempted = self._preempted, []
        return taken

    def stats(self) -> EngineStats:
        """All but the times, which the scheduler does not know."""
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            used_pages=self._kv.num_used,
            cached_pages=self._kv.num_cached,
            total_pages=self._kv.num_pages,
            kv_usage=self._kv.usage,
            prefix_query_tokens=self._prefix_query_tokens,
            prefix_hit_tokens=self._prefix_hit_tokens,
            preemptions=self._preemptions,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            steps=self._steps,
        )

    def reset_prefix_cache(self) -> None:
        """Forget every cached page; running contexts keep theirs."""
        self._kv.forget_all()

    def check_integrity(self) -> None:
        """Between steps: compare pages, counts and lengths of everything that is live.

        Raises:
            RuntimeError: they do not agree.
        """
        self._kv.check_integrity(
            (entry.held, entry.context.tokens.processed_length) for entry in self._running.values()
        )
        if len(self._running) > self.config.max_running:
            raise RuntimeError(f"{len(self._running)} contexts run, {self.config.max_running} may")
        for request_id, entry in self._running.items():
            tokens = entry.context.tokens
            if request_id in self._waiting or entry.context.is_done:
                raise RuntimeError(f"context {request_id} runs, and waits or has ended")
            if tokens.pending_length or not 0 < tokens.active_length <= len(tokens):
                raise RuntimeError(f"context {request_id} has a wrong active window")

    def _check_fits(self, context: TextContext) -> None:
        tokens = context.tokens
        if tokens.generated_length and context.judge(int(tokens.all[-1])).is_done:
            raise ValueError("the request has all its tokens already")
        if context.max_length > self.config.max_length:
            raise ValueError(
                f"the request may take {context.max_length} tokens; "
                f"max_length is {self.config.max_length}"
            )
        # The last token is sampled but never run, so it needs no KV.
        self._kv.check_fits(tokens.prompt_length + context.max_new_tokens - 1)

    def _secure_pages(self) -> tuple[list[ScheduledContext], list[ScheduledContext]]:
        """Running contexts that decode and those that prefill, each with pages for its step."""
        decodes, prefills, needy = [], [], []
        for entry in self._running.values():
            tokens = entry.context.tokens
            if tokens.active_length > 1:
                prefills.append(entry)
                if len(tokens) > entry.held.capacity:
                    needy.append(entry)
                continue
            decodes.append(entry)
            if tokens.processed_length == entry.held.capacity:
                needy.append(entry)
        preemptions = self._preemptions
        for entry in sorted(needy, key=lambda entry: entry.order):
            tokens = entry.context.tokens
            # Without pages it was preempted for an older one.
            while entry.held.capacity and not self._kv.extend(
                entry.held, tokens.processed_length, len(tokens)
            ):
                self._preempt(max(self._running.values(), key=lambda running: running.order))
        if self._preemptions > preemptions:
            decodes = [entry for entry in decodes if entry.held.capacity]
            prefills = [entry for entry in prefills if entry.held.capacity]
        return decodes, prefills

    def _preempt(self, entry: ScheduledContext) -> None:
        """Back to the queue, to its old place; full pages stay cached while memory lasts."""
        del self._running[entry.context.request_id]
        self._kv.release(entry.held)
        entry.context.reset()
        self._waiting.push(entry)
        self._preemptions += 1
        self._preempted.append(entry.context.request_id)

    def _chunk(self, num_tokens: int, budget: int) -> int:
        """How many of `num_tokens` to run: all, or what fits the budget in full pages."""
        if num_tokens <= budget:
            return num_tokens
        return budget // self.config.page_size * self.config.page_size

    def _add_prefill(self, entry: ScheduledContext, budget: int, rows: list[PlanRow]) -> int:
        """Add the next chunk that fits, if any; returns its tokens."""
        tokens = entry.context.tokens
        remaining = tokens.active_length
        count = self._chunk(remaining, budget)
        if count:
            tokens.chunk(count)
            samples = count == remaining and entry.context.pooling is None
            row = PlanRow(entry.context, tokens.processed_length, count, entry.held.tables, samples)
            rows.append(row)
        return count

    def _admit_first(self, now: float, budget: int) -> ScheduledContext | None:
        """Start the first waiting context if the batch, the step and the pages have room for it.

        One page per running context stays free in every group, so that what starts is not
        preempted at once.
        """
        if budget == 0 or not self._waiting or len(self._running) >= self.config.max_running:
            return None
        entry = self._waiting.first()
        tokens = entry.context.tokens
        # Cached pages say nothing of the logits or states that go with them.
        runs_whole = entry.context.params.prompt_logprobs is not None or (
            entry.context.pooling in ("cls", "mean")
        )
        hits = self._kv.no_match() if runs_whole else self._kv.match(entry.held, tokens.all)
        hit_tokens = len(hits[0]) * self.config.page_size
        if not self._chunk(len(tokens) - hit_tokens, budget):
            return None
        if not self._kv.start(entry.held, hits, len(tokens), num_spare=len(self._running)):
            return None
        self._start(self._waiting.pop_first(), hit_tokens, now)
        return entry

    def _start(self, entry: ScheduledContext, hit_tokens: int, now: float) -> None:
        context = entry.context
        context.tokens.skip_processing(hit_tokens)
        if context.cached_prefix_length is None:
            context.cached_prefix_length = min(hit_tokens, context.tokens.prompt_length)
            self._prefix_query_tokens += context.tokens.prompt_length
            self._prefix_hit_tokens += context.cached_prefix_length
            entry.queue_seconds = now - entry.received
        self._running[context.request_id] = entry

    def _append_token(self, entry: ScheduledContext, token: int, output: StepRows) -> None:
        context = entry.context
        try:
            context.update(token)
        except ValueError:
            # The library's masks were seen to let through what it then refuses.
            self._fail(entry, GRAMMAR_REFUSES, output)
            return
        self._commit(entry)
        output.append(context, token, entry.queue_seconds)
        if context.is_done:
            del self._running[context.request_id]
            self._kv.release(entry.held)

    def _end_pooled(self, entry: ScheduledContext, vector: bytes, output: StepRows) -> None:
        if not vector:
            self._fail(entry, INVALID_STATES, output)
            return
        entry.context.tokens.advance_last()
        self._commit(entry)
        output.append_pooled(entry.context, vector, entry.queue_seconds)
        del self._running[entry.context.request_id]
        self._kv.release(entry.held)

    def _commit(self, entry: ScheduledContext) -> None:
        """Tell the cache of pages that became full."""
        tokens = entry.context.tokens
        written = tokens.processed_length
        if written >= (entry.held.committed + 1) * self.config.page_size:
            self._kv.advance(entry.held, tokens.all[:written])

    def _fail(self, entry: ScheduledContext, reason: str, output: StepRows) -> None:
        """End a context whose KV is not to be trusted: nothing it read or wrote is found again."""
        output.append_failed(entry.context, reason, entry.queue_seconds)
        del self._running[entry.context.request_id]
        self._kv.fail(entry.held)
