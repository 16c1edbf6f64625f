"""Runs step plans with torch on one device."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch

from quire.kernels.ragged_batch import RaggedBatch
from quire.pipelines.core.logprobs import PromptLogProbabilities
from quire.pipelines.core.plan import StepPlan, StepResult
from quire.pipelines.kv_cache.storage import KVCacheStorage, LayerCache
from quire.pipelines.worker.batch import StepInputs, build_inputs
from quire.pipelines.worker.grammar_masks import begin_masks
from quire.pipelines.worker.pooling import PoolSegment, pool_segments, pooled_rows, pooled_vectors
from quire.pipelines.worker.prompt_logprobs import (
    PromptSegment,
    prompt_log_probabilities,
    prompt_segments,
    segment_rows,
)
from quire.pipelines.worker.sampler import sample_rows


class Decoder(Protocol):
    """What runs a step: `nn.transformer.Transformer`, or anything like it."""

    def __call__(
        self,
        tokens_T: torch.Tensor,
        batches: Sequence[RaggedBatch],
        caches: Sequence[LayerCache],
        logit_rows_S: torch.Tensor,
    ) -> torch.Tensor:
        """Logits, fp32 [S, V]; `batches` has one of each page group."""
        ...

    def hidden_states(
        self,
        tokens_T: torch.Tensor,
        batches: Sequence[RaggedBatch],
        caches: Sequence[LayerCache],
        rows_S: torch.Tensor,
    ) -> torch.Tensor:
        """What `head` makes logits of, [S, C]."""
        ...

    def head(self, hidden_SC: torch.Tensor) -> torch.Tensor:
        """Logits of hidden states, fp32 [S, V]."""
        ...


class TorchModelRunner:
    """A model, its KV pages, and the sampler behind them; a `ModelRunner`."""

    def __init__(self, model: Decoder, storage: KVCacheStorage, device: torch.device) -> None:
        self._model = model
        self._storage = storage
        self._device = device
        self._mask_thread = ThreadPoolExecutor(1, thread_name_prefix="fill-masks")

    def _on_device(self) -> AbstractContextManager[object]:
        """Triton launches on the thread's current GPU, whichever holds the tensors."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run the step, sample one token for each row that samples, pool what is to be pooled.

        A row whose logits hold NaN or infinity fails alone: token -1 and an entry in `errors`.
        """
        inputs = build_inputs(plan, self._storage.params.page_size, self._device)
        segments, pools = prompt_segments(plan), pool_segments(plan)
        rows = [row for row in plan.rows if row.samples]
        masks = begin_masks(rows, self._mask_thread)
        prompt_logprobs: list[PromptLogProbabilities] = []
        embeddings: dict[int, bytes] = {}
        if segments or pools:
            logits, prompt_logprobs, embeddings = self._with_states(inputs, segments, pools)
        else:
            logits = self.logits(inputs)
        with self._on_device():
            result = (
                sample_rows(logits, rows, masks)
                if rows
                else StepResult(np.empty(0, dtype=np.int32))
            )
        if not (segments or pools):
            return result
        return dataclasses.replace(result, prompt_logprobs=prompt_logprobs, embeddings=embeddings)

    def _with_states(
        self, inputs: StepInputs, segments: list[PromptSegment], pools: list[PoolSegment]
    ) -> tuple[torch.Tensor, list[PromptLogProbabilities], dict[int, bytes]]:
        """As `logits`, the log-probabilities of the prompts in `segments`, and the vectors of the
        texts that end in `pools`."""
        model, wanted = self._model, (segment_rows(segments), pooled_rows(pools))
        rows = torch.cat([inputs.logit_rows, *(part.to(self._device) for part in wanted)])
        with self._on_device():
            hidden = model.hidden_states(inputs.tokens, inputs.batches, self._storage.layers, rows)
            sizes = [len(inputs.logit_rows), *map(len, wanted)]
            sampled, told, pooled = torch.split(hidden, sizes)
            found = prompt_log_probabilities(segments, told, model.head)
            return model.head(sampled), found, pooled_vectors(pools, pooled.float().cpu().numpy())

    @torch.inference_mode()
    def logits(self, inputs: StepInputs) -> torch.Tensor:
        """Run the model: write the step's KV, return fp32 logits [S, V] of `logit_rows`."""
        with self._on_device():
            return self._model(
                inputs.tokens, inputs.batches, self._storage.layers, inputs.logit_rows
            )

    def hidden_states(self, plan: StepPlan) -> torch.Tensor:
        """Run the step without sampling; fp32 [T, C], every token's state after the last norm."""
        inputs = build_inputs(plan, self._storage.params.page_size, self._device)
        rows = torch.arange(len(inputs.tokens), device=self._device)
        with self._on_device():
            return self._model.hidden_states(
                inputs.tokens, inputs.batches, self._storage.layers, rows
            ).float()

    def scrub(self, pages: Sequence[Sequence[int]]) -> None:
        """Zero the `pages` of each group."""
        self._storage.scrub(pages)
