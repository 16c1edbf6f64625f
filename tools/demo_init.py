"""Initial weights of the demo model: random, with one induction circuit planted by hand.

Copying a name from the prompt needs two heads in a row (Olsson et al. 2022, "In-context learning
and induction heads"): one that tells each position what came before it, and one that finds where
the current token came before and copies what followed. Finding that by training takes many more
tokens than half an hour on a CPU gives; planted, it is only to be refined.

The hidden dimensions at the start: CONSTANT is the same for every token, so that a head can look at
positions alone; TOKEN tells tokens apart; PREVIOUS is empty and filled by the first head.
"""

import math

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

CONSTANT = slice(0, 16)
TOKEN = slice(16, 192)
PREVIOUS = slice(192, 256)
HEAD_DIM = 64
SCALE = 1.0 / 16.0
"""Of random weights: one over the root of the hidden size."""
SHARP_PAIRS = 8
"""The quickest rotary pairs, which tell neighbours apart."""
FLAT_PAIRS = 12
"""The slowest rotary pairs, which hardly turn within the trained context."""


@torch.no_grad()
def initialize(model: LlamaForCausalLM) -> None:
    """Fill every matrix of a float32 model of hidden size 256 and head_dim 64 in place."""
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()  # each layer begins as the identity
        elif weight.dim() == 2:
            weight.normal_(std=SCALE)
    embedding = model.get_input_embeddings().weight
    embedding[:, CONSTANT] = 2.0 * SCALE
    embedding[:, PREVIOUS] = 0.0
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    theta = model.config.rope_parameters["rope_theta"]
    _plant_previous_token_head(first, theta)
    _plant_induction_head(second, query_head=0, key_head=0, part=0)
    _plant_induction_head(second, query_head=2, key_head=1, part=1)


def _head(index: int) -> slice:
    return slice(index * HEAD_DIM, (index + 1) * HEAD_DIM)


def _plant_previous_token_head(attention: LlamaAttention, theta: float) -> None:
    """Query head 0: every key is the same vector, and the query is that vector turned back by one
    position, so that the score is highest one position before. Writes that token to PREVIOUS."""
    query, key = attention.q_proj.weight[_head(0)], attention.k_proj.weight[_head(0)]
    query.zero_()
    key.zero_()
    strength = 6.0 / (2.0 * 16)
    for pair in range(SHARP_PAIRS):
        angle = theta ** (-2.0 * pair / HEAD_DIM)
        key[pair, CONSTANT] = strength
        query[pair, CONSTANT] = strength * math.cos(angle)
        query[pair + HEAD_DIM // 2, CONSTANT] = -strength * math.sin(angle)
    _copy_through_head(attention, key_head=0, query_head=0, source=16, target=192, gain=0.15)


def _plant_induction_head(
    attention: LlamaAttention, *, query_head: int, key_head: int, part: int
) -> None:
    """Looks for the current token among the PREVIOUS of earlier positions and copies what is there."""
    query = attention.q_proj.weight[_head(query_head)]
    key = attention.k_proj.weight[_head(key_head)]
    query.zero_()
    key.zero_()
    half = HEAD_DIM // 2
    rows = [*range(half - FLAT_PAIRS, half), *range(HEAD_DIM - FLAT_PAIRS, HEAD_DIM)]
    for offset, row in enumerate(rows, part * 2 * FLAT_PAIRS):
        query[row, TOKEN.start + offset] = 2.5
        key[row, PREVIOUS.start + offset] = 2.5
    place = TOKEN.start + part * HEAD_DIM
    _copy_through_head(
        attention, key_head=key_head, query_head=query_head, source=place, target=place, gain=0.25
    )


def _copy_through_head(
    attention: LlamaAttention,
    *,
    key_head: int,
    query_head: int,
    source: int,
    target: int,
    gain: float,
) -> None:
    """HEAD_DIM hidden dimensions from `source` of the attended token to `target` of this one."""
    value = attention.v_proj.weight[_head(key_head)]
    value.zero_()
    value[:, source : source + HEAD_DIM] = torch.eye(HEAD_DIM)
    attention.o_proj.weight[target : target + HEAD_DIM, _head(query_head)] = gain * torch.eye(
        HEAD_DIM
    )
