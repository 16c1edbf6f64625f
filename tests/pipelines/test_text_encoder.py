"""`TextEncoder` against the hidden states of HF transformers."""

import random

import numpy as np
import pytest
import torch
import transformers
from parity.random_models import make_random_model

from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.encoder_registry import ENCODERS
from quire.pipelines.hf import resolve_model
from quire.pipelines.text_encoder import DecoderStates, EncoderStates, TextEncoder
from quire.pipelines.tokenizer import TextTokenizer

TEXTS = ["One cold day, a fox went to the river.", "five", "Count to five. " * 12]


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder(ModelSettings(dtype="float32", max_batch_input_tokens=32, threads=1))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_equal_transformers_last_hidden_state(encoder, pooling):
    folder = resolve_model("quire-demo", None)
    reference = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = TextTokenizer.from_folder(folder)

    vectors = encoder.encode(TEXTS, pooling=pooling)

    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.inference_mode():
            states = reference(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0]
        pooled = states[-1] if pooling == "last" else states.mean(0)
        expected = torch.nn.functional.normalize(pooled, dim=0).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)


@pytest.mark.parametrize("text", ["", "word " * 4000])
def test_an_empty_or_too_long_text_is_refused(encoder, text):
    with pytest.raises(ValueError):
        encoder.encode([text])


def test_a_text_of_many_windows_needs_the_pages_of_one(tmp_path):
    make_random_model("Mistral", sliding_window=40, max_position_embeddings=400).save_pretrained(
        tmp_path
    )
    values = {"device": "cpu", "threads": 1, "page_size": 16, "max_batch_input_tokens": 33}
    text = random.Random(1).choices(range(211), k=350)

    def states(pages):
        settings = ModelSettings(kv_cache_pages=pages, **values)
        loaded = DecoderStates(settings, tmp_path, lambda phase, fraction: None)
        return torch.cat([*loaded.states([text, text[:20]])])

    assert torch.equal(states(6), states(64))


def test_an_encoder_is_not_quantized(tmp_path):
    with pytest.raises(ConfigError, match="quantization int8: expected none, as Bert"):
        EncoderStates(
            ModelSettings(quantization="int8"), tmp_path, ENCODERS[0], lambda phase, fraction: None
        )
