"""Quantization at load: GGUF blocks of the very bytes that the gguf package makes."""

import gguf
import pytest
import torch

from quire.pipelines.architectures.quantized.at_load import Int8AtLoad
from quire.pipelines.nn.quantized.at_load import quantize_q4_0, quantize_q8_0
from quire.pipelines.nn.quantized.int8 import Int8Weight

QUANTIZE = {"Q4_0": quantize_q4_0, "Q8_0": quantize_q8_0}


@pytest.mark.parametrize("kind", QUANTIZE)
def test_blocks_are_those_of_gguf(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=generator)
    weight *= torch.logspace(-6, 3, 64)[:, None]
    weight[0] = 0
    # Halves, and a greatest magnitude that both signs have.
    weight[1] = torch.arange(256) % 32 - 15.5
    weight[2] = torch.arange(256) % 32 * 0.5
    expected = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])

    assert torch.equal(QUANTIZE[kind](weight), torch.from_numpy(expected))


def test_a_row_of_zeros_stays_zero_in_int8() -> None:
    weight = torch.zeros(2, 4)
    weight[1] = torch.tensor([-127.0, 63.4, 0.5, 127.0])

    made = Int8Weight.from_tensors(Int8AtLoad(), {"weight": weight}, torch.float32)

    assert made.dense().tolist() == [[0, 0, 0, 0], [-127, 63, 0, 127]]


def test_a_row_of_the_smallest_numbers_keeps_their_signs_in_int8() -> None:
    smallest = torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps
    weight = torch.tensor([[190.0, -190.0, 1.0, 0.0]]) * smallest

    made = Int8Weight.from_tensors(Int8AtLoad(), {"weight": weight}, torch.float32)

    assert (made.weight.abs() <= 127).all()
    assert (made.weight * weight >= 0).all()
