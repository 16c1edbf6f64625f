"""Encoder configurations that are refused, by key."""

from typing import Any

import pytest

from quire.config.errors import ModelError
from quire.pipelines.architectures.bert import read_bert, read_mpnet, read_xlm_roberta
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.registry import find_architecture

VALID = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 100,
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: expected absolute"),
        ({"is_decoder": True}, "is_decoder: expected false, found true"),
        ({"num_attention_heads": 5}, "num_attention_heads: expected a divisor of hidden_size 64"),
        ({"num_attention_heads": 16}, "head_dim: expected a multiple of 8 up to 256, found 4"),
        ({"hidden_act": "mish"}, "hidden_act: expected one of"),
        ({"vocab_size": None}, "vocab_size: expected an integer of at least 1, found nothing"),
    ],
)
def test_what_is_not_served_is_refused_by_key(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_bert(ConfigFile("config.json", {**VALID, **fields}))


def test_other_bucket_counts_of_mpnet_are_refused() -> None:
    config = ConfigFile("config.json", {**VALID, "relative_attention_num_buckets": 64})

    with pytest.raises(ModelError, match="relative_attention_num_buckets: expected 32, found 64"):
        read_mpnet(config)


def test_positions_before_the_first_shorten_the_text() -> None:
    config = ConfigFile("config.json", {**VALID, "pad_token_id": 1})

    assert read_xlm_roberta(config).max_length == 98
    assert read_bert(config).max_length == 100


def test_serving_an_encoder_names_the_command_that_runs_it() -> None:
    with pytest.raises(ModelError, match="BertModel makes embeddings .*: quire encode"):
        find_architecture(("BertModel",), "config.json")
