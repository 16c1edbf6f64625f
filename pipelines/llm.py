"""`LLM`: the same engine without HTTP, for scripts and notebooks.

    with LLM(model="quire-demo") as llm:
        print(llm.generate("Once upon a time", max_new_tokens=40))

One thread owns the engine; `generate` may be called from many threads at once, and their prompts
share its batches.
"""

import atexit
import itertools
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from typing import Any, Self

import numpy as np
from tqdm import tqdm

from quire.config.settings import DEMO_MODEL, ModelSettings, load
from quire.pipelines.core.context import TextContext
from quire.pipelines.core.messages import StepOutput
from quire.pipelines.core.sampling_params import SamplingParams
from quire.pipelines.core.status import TextGenerationStatus
from quire.pipelines.hf import resolve_model
from quire.pipelines.text.text_stream import TextStream
from quire.pipelines.tokenizer import TextTokenizer
from quire.pipelines.worker.progress import progress_bar
from quire.pipelines.worker.start import start_engine

logger = logging.getLogger(__name__)


class _Job:
    """A prompt being generated: its context, its text so far, and who waits for it."""

    def __init__(self, context: TextContext, text: TextStream) -> None:
        self.context = context
        self.text = text
        self.pieces: list[str] = []
        self.done: Future[str] = Future()


class LLM:
    """A loaded model that generates text.

    Args:
        model: folder, hub id, or `quire-demo`.
        options: any field of `ModelSettings`, such as `dtype`, `device` or `max_length`;
            QUIRE_* variables apply as they do for `quire serve`.

    Raises:
        ConfigError: an option is wrong.
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str = DEMO_MODEL,
        *,
        settings: ModelSettings | None = None,
        **options: Any,
    ) -> None:
        self._settings = settings or load(ModelSettings, {"model": model, **options})
        folder = resolve_model(
            self._settings.model, self._settings.revision, self._settings.load_format
        )
        self.tokenizer = TextTokenizer.from_folder(folder)
        with progress_bar() as progress:
            started = start_engine(self._settings, folder, 0, progress)
        self._engine = started.engine
        self._eos_token_ids = started.model.spec.end_token_ids(self.tokenizer.eos_token_id)
        self._vocab_size = started.model.spec.vocab_size
        self.max_length = started.config.max_length
        self._ids = itertools.count(1)
        self._jobs: dict[int, _Job] = {}
        self._arrived: list[_Job] = []
        self._abandoned: list[_Job] = []
        self._wake = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="quire-engine", daemon=True)
        self._thread.start()
        # A thread that still computes while the interpreter ends would abort the process.
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def has_chat_template(self) -> bool:
        return self.tokenizer.chat_template is not None

    def close(self) -> None:
        """Stop the engine thread; unfinished calls raise RuntimeError."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        atexit.unregister(self.close)

    def generate(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int | None = 100,
        use_tqdm: bool = True,
        *,
        params: SamplingParams | None = None,
        chat: bool = False,
    ) -> list[str]:
        """Continue each prompt; greedy unless `params` says otherwise. Thread safe.

        `max_new_tokens` counts when `params` is not given; None generates to the model's limits.
        `chat` sends each prompt as one user message through the chat template.

        Raises:
            ValueError: no prompts, an empty one, one longer than the context, or one with a
                token that the model does not have.
            RuntimeError: the engine failed, or is closed.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise ValueError("prompts must hold at least one prompt")
        if params is None:
            params = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens)
        jobs = [self._job(text, params, chat) for text in texts]
        self._submit(jobs)
        waiting = [job.done for job in jobs]
        bar = tqdm(total=len(jobs), desc="generating", unit="prompt", disable=not use_tqdm or None)
        try:
            with bar:
                for _ in as_completed(waiting):
                    bar.update()
        except BaseException:  # Ctrl-C in a notebook: nobody waits for these prompts any more
            with self._wake:
                self._abandoned += jobs
            raise
        return [done.result() for done in waiting]

    def _job(self, text: str, params: SamplingParams, chat: bool) -> _Job:
        if chat:
            ids = self.tokenizer.encode_chat([{"role": "user", "content": text}])
        else:
            ids = self.tokenizer.encode(text, add_special_tokens=True)
        if not ids:
            raise ValueError("a prompt must not be empty")
        if max(ids) >= self._vocab_size:
            raise ValueError(
                f"the prompt has the token {max(ids)}; the model's are 0 to {self._vocab_size - 1}"
            )
        context = TextContext(
            next(self._ids),
            np.asarray(ids, dtype=np.int32),
            params,
            max_length=self.max_length,
            eos_token_ids=self._eos_token_ids,
        )
        return _Job(context, TextStream(self.tokenizer, params, starts_fresh=chat))

    def _submit(self, jobs: list[_Job]) -> None:
        with self._wake:
            if self._failure is not None:
                raise RuntimeError("the engine failed") from self._failure
            if self._closed:
                raise RuntimeError("this LLM is closed")
            self._arrived += jobs
            self._wake.notify()

    def _run(self) -> None:
        try:
            while self._take_arrivals():
                output = self._engine.step()
                if output is not None:
                    self._deliver(output)
        except BaseException as error:
            logger.exception("engine thread failed")
            with self._wake:
                self._failure = error
        self._fail_unfinished()

    def _take_arrivals(self) -> bool:
        """Hand new jobs to the engine, waiting for some when it is idle; False once closed."""
        with self._wake:
            while not (self._arrived or self._closed or self._engine.has_work):
                self._wake.wait()
            if self._closed:
                return False
            arrived, self._arrived = self._arrived, []
            abandoned, self._abandoned = self._abandoned, []
        for job in arrived:
            self._jobs[job.context.request_id] = job
        self._engine.submit([job.context for job in arrived])
        abandoned_ids = [job.context.request_id for job in abandoned]
        self._engine.abort(id for id in abandoned_ids if self._jobs.pop(id, None) is not None)
        return True

    def _deliver(self, output: StepOutput) -> None:
        ids, tokens = output.array("request_ids").tolist(), output.array("tokens").tolist()
        statuses = output.array("statuses").tolist()
        for row, request_id in enumerate(ids):
            job = self._jobs[request_id]
            status = TextGenerationStatus(statuses[row])
            if status is TextGenerationStatus.FAILED:
                del self._jobs[request_id]
                job.done.set_exception(RuntimeError(output.errors[row]))
                continue
            job.pieces.append(job.text.feed([tokens[row]], status).text)
            if job.text.is_finished:
                if not status.is_done:
                    self._engine.abort([request_id])
                del self._jobs[request_id]
                job.done.set_result("".join(job.pieces))

    def _fail_unfinished(self) -> None:
        with self._wake:
            self._closed = True
            unfinished = [*self._jobs.values(), *self._arrived]
        for job in unfinished:
            error = RuntimeError("the engine stopped before this prompt was finished")
            error.__cause__ = self._failure
            job.done.set_exception(error)
