"""A grammar that refuses the token which its mask let through ends its own context alone."""

from typing import Any

import numpy as np

from quire.pipelines.core.context import TextContext
from quire.pipelines.core.plan import GRAMMAR_REFUSES, StepResult
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.core.status import TextGenerationStatus
from quire.pipelines.kv_cache.page_group import PageGroup
from quire.pipelines.scheduler.config import SchedulerConfig
from quire.pipelines.scheduler.scheduler import Scheduler

TOKEN = 5


class Refusing:
    """A matcher whose grammar has no TOKEN."""

    vocab_size = 8
    is_too_slow = False

    def fill(self, bitmask_RW: Any, row: int) -> bool:
        return False

    def accept(self, token: int) -> None:
        raise ValueError(f"token {token} does not follow in the grammar")


def test_only_the_context_of_the_grammar_fails() -> None:
    config = SchedulerConfig(
        page_groups=(PageGroup(16),),
        page_size=4,
        max_batch_size=8,
        max_batch_input_tokens=64,
        max_length=64,
    )
    subject = Scheduler(config)
    contexts = [
        TextContext(number, np.arange(3, dtype=np.int32), SamplingParams(), max_length=64)
        for number in (1, 2)
    ]
    contexts[0].matcher = Refusing()
    for context in contexts:
        subject.submit(context, 0.0)
    plan = subject.plan(0.0)
    assert plan is not None

    rows = subject.apply(plan, StepResult(np.full(2, TOKEN, dtype=np.int32)))

    subject.check_integrity()
    assert rows.errors == {0: GRAMMAR_REFUSES}
    assert (rows.tokens, rows.base_index) == ([-1, TOKEN], [0, 0])
    assert contexts[0].status is TextGenerationStatus.FAILED
    assert contexts[0].tokens.generated_length == 0
    assert contexts[1].tokens.generated.tolist() == [TOKEN]
