"""BERT, XLM-RoBERTa and MPNet: hidden states of every token of several texts at once."""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from parity.cases import Errors, difference, root_mean_square

from quire.config.settings import ModelSettings
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encoder_registry import find_encoder
from quire.pipelines.text_encoder import EncoderStates

VOCAB_SIZE = 97
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 220,
    "initializer_range": 0.15,
}
LENGTHS = (70, 1, 200, 33)
"""200 tokens reach MPNet's last bucket, of distances from 128 on."""


@dataclass(frozen=True, kw_only=True)
class EncoderCase:
    """As `ParityCase`, of last hidden states; an encoder has no chunks and decodes nothing."""

    architecture: str
    variant: str
    make: Callable[[], transformers.PreTrainedModel]
    encoding: str = "float32"
    tolerance: float = 1e-4

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.variant}-{self.encoding}".replace(" ", "_")

    def measure(self, folder: Path) -> Errors:
        """Write the checkpoint into `folder`, load it, and compare every token's state."""
        model, rng = self.make(), random.Random(self.name)
        texts = [rng.choices(range(3, VOCAB_SIZE), k=length) for length in LENGTHS]
        bound, measure = self.tolerance, difference
        if self.encoding == "bfloat16":
            model.to(torch.bfloat16).save_pretrained(folder)
            rounded = reference_states(model, texts)
            expected = reference_states(model.float(), texts)
            measure = root_mean_square
            bound = 1.25 * measure(rounded, expected)
        else:
            model.save_pretrained(folder)
            expected = reference_states(model, texts)
        row = find_encoder(ConfigFile.read(folder / "config.json").strings("architectures"))
        assert row is not None
        settings = ModelSettings.model_validate({"device": "cpu", "threads": 1})
        loaded = EncoderStates(settings, folder, row, lambda phase, fraction: None)
        error = measure(torch.cat(list(loaded.states(texts))), expected)
        scale = float(expected.abs().max())
        return Errors(prefill=error, chunked=None, decode=None, bound=bound, scale=scale)


def reference_states(model: Any, texts: list[list[int]]) -> torch.Tensor:
    base = model.base_model
    with torch.no_grad():
        return torch.cat([base(torch.tensor([t])).last_hidden_state[0].float() for t in texts])


def make_encoder(name: str, **fields: Any) -> transformers.PreTrainedModel:
    """A random model of the class `name`, its norms and biases random too."""
    family = name.removesuffix("Model").removesuffix("ForMaskedLM")
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **fields})
    torch.manual_seed(0)
    model: transformers.PreTrainedModel = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "LayerNorm.weight" in parameter_name:
                parameter.uniform_(0.5, 1.5)
            elif parameter_name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model


def _case(name: str, variant: str, encoding: str = "float32", **fields: Any) -> EncoderCase:
    row = find_encoder((name,))
    assert row is not None
    return EncoderCase(
        architecture=row.names[0],
        variant=variant,
        make=functools.partial(make_encoder, name, **fields),
        encoding=encoding,
    )


CASES = [
    _case("BertModel", "bert"),
    _case("BertModel", "bert gelu_new", hidden_act="gelu_new", layer_norm_eps=1e-5),
    _case("BertModel", "bert", "bfloat16"),
    _case("BertForMaskedLM", "bert with a head"),
    _case("XLMRobertaModel", "xlm-roberta", pad_token_id=1),
    _case("XLMRobertaModel", "xlm-roberta", "bfloat16", pad_token_id=1),
    _case("RobertaForMaskedLM", "roberta with a head", pad_token_id=1),
    _case("MPNetModel", "mpnet"),
    _case("MPNetModel", "mpnet", "bfloat16"),
    _case("MPNetForMaskedLM", "mpnet with a head"),
]
