"""`TextEncoder` against the hidden states of HF transformers."""

import numpy as np
import pytest
import torch
import transformers

from quire.config.settings import ModelSettings
from quire.pipelines.hf import resolve_model
from quire.pipelines.text_encoder import TextEncoder
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
