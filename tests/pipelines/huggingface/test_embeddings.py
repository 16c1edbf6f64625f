"""`HFEmbeddingsPipeline`: what a checkpoint must have."""

from pathlib import Path

import pytest
import torch
from parity.random_models import make_random_model
from safetensors.torch import load_file, save_file

from quire.config.errors import ModelError
from quire.pipelines.huggingface.embeddings import HFEmbeddingsPipeline


@pytest.mark.parametrize("lost", ["pooler.dense.weight", "encoder.layer.0.output.dense.weight"])
def test_only_a_pooler_may_be_missing(lost: str, tmp_path: Path) -> None:
    model = make_random_model("Bert", class_suffix="Model", num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors[lost]
    save_file(tensors, path, metadata={"format": "pt"})

    if "pooler" not in lost:
        with pytest.raises(ModelError, match=f"{lost}: expected a tensor of BertModel, found"):
            HFEmbeddingsPipeline(tmp_path, torch.float32, torch.device("cpu"))
        return
    pipeline = HFEmbeddingsPipeline(tmp_path, torch.float32, torch.device("cpu"))
    (states,) = pipeline.states([[1, 2, 3]])
    with torch.no_grad():
        expected = model(torch.tensor([[1, 2, 3]])).last_hidden_state[0]
    torch.testing.assert_close(states, expected)
