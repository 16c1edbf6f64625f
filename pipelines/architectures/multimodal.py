"""Checkpoints of models that also see, of which the text part is served. No torch.

Their config.json has the text model's under `text_config`, and their weights have a prefix.
"""

from collections.abc import Mapping
from dataclasses import replace

from quire.pipelines.architectures.common import read_dtype
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.spec import ModelSpec

PREFIX = "language_model.model."
HEAD_NAME = "language_model.lm_head"
"""As published checkpoints and `save_pretrained` have them."""

_OTHER_PREFIXES: tuple[tuple[str, str], ...] = (
    ("model.language_model.", PREFIX),
    ("lm_head.", f"{HEAD_NAME}."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
"""The names of transformers 5 in memory, which other tools save, and what they stand for."""


def text_section(
    config: ConfigFile,
    defaults: Mapping[str, object],
    *,
    model_types: tuple[str, ...],
    tie_by_default: bool,
) -> ConfigFile:
    """`text_config`, with `defaults` for what is not there.

    Both objects may say that the head is tied; it is where the text model's says so, or, if that
    says nothing, where the outer one does.

    Raises:
        ModelError: there is none, it is of another model type, or the two contradict each other.
    """
    if not config.has("text_config"):
        raise config.wrong("text_config", "a JSON object")
    key = "tie_word_embeddings"
    tied = config.boolean(key, tie_by_default)
    text = config.section("text_config").with_defaults({**defaults, key: tied})
    if text.string("model_type", model_types[0]) not in model_types:
        raise text.wrong("model_type", " or ".join(model_types))
    if config.has(key) and text.boolean(key, tied) and not tied:
        raise config.wrong(key, "true, as in text_config")
    return text


def text_only(config: ConfigFile, spec: ModelSpec) -> ModelSpec:
    """The model of `text_config` with what the whole config.json adds, blind."""
    has_dtype = config.has("dtype") or config.has("torch_dtype")
    blind = ("vision_tower.", "multi_modal_projector.")
    return replace(
        spec,
        checkpoint_dtype=read_dtype(config) if has_dtype else spec.checkpoint_dtype,
        bos_token_id=next(iter(config.token_ids("bos_token_id")), spec.bos_token_id),
        eos_token_ids=config.token_ids("eos_token_id") or spec.eos_token_ids,
        ignored_weights=blind,
        renamed_weights=_OTHER_PREFIXES,
    )
