"""`HFTextGenerationPipeline`: a causal language model of transformers behind our scheduler."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from quire.config.errors import ModelError
from quire.kernels.linear import PreparedLinear, prepare_linear
from quire.kernels.linear.tile_plan import TilePlans
from quire.kernels.ragged_batch import RaggedBatch
from quire.pipelines.architectures.common import MAX_HEAD_DIM
from quire.pipelines.architectures.parts import KVLayerSpec
from quire.pipelines.huggingface.paged_attention import PagedAttention, Step, register
from quire.pipelines.huggingface.pretrained import in_one_line, library_errors, load_pretrained
from quire.pipelines.kv_cache.storage import LayerCache

PROBE_TOKENS = 24

_MAX_ERROR: Mapping[torch.dtype, float] = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}
"""Of the greatest logit: several times what rounding does, far less than a wrong mask does."""


class HFTextGenerationPipeline:
    """Token ids to logits by transformers' own code, attending over our pages.

    The model must use transformers' attention interface, as nearly all do. Its `nn.Linear` layers
    become ours, so that their rows do not depend on the other rows; what else it computes may.

    Raises:
        ModelError: transformers does not know the model or cannot load it, or it does not attend
            through the interface.
    """

    def __init__(
        self, folder: Path, dtype: torch.dtype, device: torch.device, *, exact: bool
    ) -> None:
        self._attention = PagedAttention()
        name = register(self._attention)
        self._model = load_model(folder, dtype).to(device).eval()
        self._device = device
        self._vocab_size: int = self._model.config.get_text_config().vocab_size
        self._takes_rows = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self.probe = torch.arange(PROBE_TOKENS, device=device) * 7 % self._vocab_size
        self._expected = self._try(folder, "its own attention")
        self.num_bytes = sum(p.numel() * p.element_size() for p in self._model.parameters())
        self._model.set_attn_implementation(name)
        self._try(folder, "our attention")
        self.kv_layers = self._seen_layers(folder)
        if exact:
            replace_linears(self._model, TilePlans())
            self._try(folder, "our linear layers, which --no-exact leaves out")

    @torch.inference_mode()
    def _try(self, folder: Path, what: str) -> torch.Tensor:
        """The logits [tokens, V] of the probe."""
        try:
            logits: torch.Tensor = self._model(input_ids=self.probe[None], use_cache=False).logits
        except library_errors() as error:
            name = type(self._model).__name__
            reason = in_one_line(error)
            raise ModelError(f"{folder}: {name} does not run with {what}: {reason}") from error
        return logits[0].float()

    def _seen_layers(self, folder: Path) -> tuple[KVLayerSpec, ...]:
        seen, what = self._attention.seen, f"{folder}: {type(self._model).__name__}"
        config = self._model.config.get_text_config()
        if sorted(seen) != list(range(config.num_hidden_layers)):
            raise ModelError(
                f"{what} does not attend through transformers' attention interface in every "
                "layer; it cannot be served"
            )
        if self._attention.masked:
            raise ModelError(
                f"{what} says by a mask alone who attends to whom, such as a sliding window; "
                "masks are not served"
            )
        widths = {layer.key_dim for layer in seen.values()}
        if any(width % 8 or width > MAX_HEAD_DIM for width in widths):
            raise ModelError(
                f"{what}: expected heads of a multiple of 8 up to {MAX_HEAD_DIM}, "
                f"found {sorted(widths)}"
            )
        return tuple(seen[layer] for layer in sorted(seen))

    def check(self, logits_TV: torch.Tensor, what: str) -> None:
        """Compare what our pages gave for `probe` with transformers' own logits.

        Raises:
            ModelError: they differ by more than rounding: the model's attention is not what its
                calls of the interface say (a bias or mask of its own).
        """
        error = float((logits_TV.cpu() - self._expected[: len(logits_TV)].cpu()).abs().max())
        limit = _MAX_ERROR[self._model.dtype] * float(self._expected.abs().max())
        if not error <= limit:
            raise ModelError(
                f"{what}: expected transformers' own logits within {limit:.2g}, found a difference "
                f"of {error:.2g}; the model's attention has a mask or bias that is not served"
            )

    def __call__(
        self,
        tokens_T: torch.Tensor,
        batches: Sequence[RaggedBatch],
        caches: Sequence[LayerCache],
        logit_rows_S: torch.Tensor,
    ) -> torch.Tensor:
        """As `Transformer.__call__`."""
        if logit_rows_S.numel() == 0:
            logit_rows_S = logit_rows_S.new_zeros(1)
            return self.hidden_states(tokens_T, batches, caches, logit_rows_S)[:0]
        return self.hidden_states(tokens_T, batches, caches, logit_rows_S)

    def head(self, logits_SV: torch.Tensor) -> torch.Tensor:
        """What `hidden_states` gives are logits already: a model may do more than its head."""
        return logits_SV

    @torch.inference_mode()
    def hidden_states(
        self,
        tokens_T: torch.Tensor,
        batches: Sequence[RaggedBatch],
        caches: Sequence[LayerCache],
        rows_S: torch.Tensor,
    ) -> torch.Tensor:
        """The logits of the tokens at `rows_S` (int64), fp32 [S, V]."""
        (batch,) = batches
        self._attention.step = Step(batch, caches)
        options: dict[str, Any] = {"logits_to_keep": rows_S} if self._takes_rows else {}
        logits: torch.Tensor = self._model(
            input_ids=tokens_T[None].long(),
            position_ids=batch.positions[None].long(),
            use_cache=False,
            **options,
        ).logits[0]
        return (logits if self._takes_rows else logits[rows_S]).float()


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """The model with transformers' default attention.

    Raises:
        ModelError: it cannot be loaded, or lacks a weight.
    """
    from transformers import AutoModelForCausalLM

    return load_pretrained(AutoModelForCausalLM, folder, dtype, attn_implementation="eager")


class _Linear(torch.nn.Module):
    """A prepared layer in the place of an `nn.Linear`."""

    def __init__(self, prepared: PreparedLinear) -> None:
        super().__init__()
        self.in_features = prepared.in_features
        self.out_features = prepared.out_features
        self._prepared = prepared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        return self._prepared(rows).view(*x.shape[:-1], self.out_features)


def replace_linears(model: torch.nn.Module, plans: TilePlans | None) -> None:
    """Put our linear layers in the place of torch's; code that reads their `weight` keeps them."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not torch.nn.Linear:
                continue
            bias = None if child.bias is None else child.bias.detach()
            weight = child.weight.detach()
            prepared = prepare_linear(weight, bias, exact=plans is not None, plans=plans)
            setattr(parent, name, _Linear(prepared))
