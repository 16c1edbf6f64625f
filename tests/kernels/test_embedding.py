"""Embeddings: torch's rows, Gemma's scale, parts that add up, tokens outside."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaModel

from quire.kernels.embedding import embedding, vocab_parallel_embedding
from quire.kernels.embedding.kernel import embedding_triton, vocab_parallel_embedding_triton

Embed = Callable[..., torch.Tensor]
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
PATHS = [pytest.param(embedding, id="cpu"), pytest.param(embedding_triton, id="triton")]
PARALLEL = [
    pytest.param(vocab_parallel_embedding, id="cpu"),
    pytest.param(vocab_parallel_embedding_triton, id="triton"),
]


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("embed", PATHS)
def test_rows_are_those_of_torch(
    embed: Embed, dtype: torch.dtype, index: torch.dtype, same_bits: SameBits
) -> None:
    weight = torch.randn(11, 2050).to(dtype)
    tokens = torch.tensor([0, 10, 10, 3], dtype=index)

    assert same_bits(embed(tokens, weight), F.embedding(tokens, weight))


@pytest.mark.parametrize("embed", PATHS)
def test_gemma_scales_by_the_rounded_root(embed: Embed, same_bits: SameBits) -> None:
    config = GemmaConfig(
        vocab_size=7,
        hidden_size=70,
        num_hidden_layers=0,
        num_attention_heads=1,
        num_key_value_heads=1,
        pad_token_id=0,
    )
    torch.use_deterministic_algorithms(False)  # the model's own weights start from torch.empty
    model = GemmaModel(config).to(torch.bfloat16)
    captured: list[torch.Tensor] = []
    model.norm.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    tokens = torch.tensor([1, 6, 0])
    with torch.no_grad():
        model(tokens[None])

    scale = float(torch.tensor(70**0.5, dtype=torch.bfloat16))
    rows = embed(tokens, model.embed_tokens.weight.data, scale=scale)

    assert same_bits(rows, captured[0][0])


@pytest.mark.parametrize("embed", PARALLEL)
def test_parts_of_the_table_add_up_to_the_whole(embed: Embed, same_bits: SameBits) -> None:
    weight = torch.randn(9, 33)
    tokens = torch.tensor([8, 0, 4, 5, -1, 9, 2**31 - 1], dtype=torch.int32)

    parts = [embed(tokens, weight[:5].contiguous(), 0), embed(tokens, weight[5:].contiguous(), 5)]

    expected = torch.zeros(7, 33)
    expected[:4] = weight[tokens[:4].long()]
    assert same_bits(parts[0] + parts[1], expected)


def test_tokens_outside_are_refused_on_a_cpu_and_zeros_on_a_gpu() -> None:
    weight = torch.randn(4, 6)
    for token in (-1, 4):
        with pytest.raises(ValueError, match=rf"tokens_T must be in \[0, 4\), got {token}"):
            embedding(torch.tensor([0, token]), weight)
        assert embedding_triton(torch.tensor([token]), weight).abs().max() == 0.0


@pytest.mark.parametrize("embed", PATHS)
def test_no_tokens_give_no_rows(embed: Embed) -> None:
    assert embed(torch.empty(0, dtype=torch.int32), torch.ones(4, 6)).shape == (0, 6)


def test_wrong_inputs_are_named() -> None:
    weight = torch.ones(4, 6)
    with pytest.raises(ValueError, match="tokens_T must be of int32 or int64, got float32"):
        embedding(torch.ones(2), weight)
    with pytest.raises(ValueError, match=r"tokens_T must be \[T\], got \[1, 2\]"):
        embedding(torch.ones(1, 2, dtype=torch.int32), weight)
    with pytest.raises(ValueError, match=r"weight_VC must be contiguous, got strides \[1, 6\]"):
        embedding(torch.ones(2, dtype=torch.int32), weight.t())
    with pytest.raises(ValueError, match="vocab_start must be at least 0, got -1"):
        vocab_parallel_embedding(torch.ones(2, dtype=torch.int32), weight, -1)
