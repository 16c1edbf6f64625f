"""Encoders: transformers in which every token of a text sees every other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quire.pipelines.architectures.encoder_spec import EncoderSpec
from quire.pipelines.nn.linear import StackedLinear
from quire.pipelines.nn.mlp import MLP
from quire.pipelines.nn.norm import Norm

_MAX_DISTANCE = 128
"""Of MPNet's buckets: farther tokens share the last one."""


@dataclass(frozen=True)
class EncoderBlock:
    """The layers of one `EncoderLayerSpec`."""

    qkv: StackedLinear
    output: StackedLinear
    attention_norm: Norm
    mlp: MLP
    mlp_norm: Norm


class Encoder:
    """Token ids to hidden states; a text's bits depend on that text alone.

    `words` [V, C] has the token type's row added. `positions` [max_length, C], `attention_bias`
    [buckets, H].
    """

    def __init__(
        self,
        spec: EncoderSpec,
        words: torch.Tensor,
        positions: torch.Tensor,
        embedding_norm: Norm,
        blocks: Sequence[EncoderBlock],
        attention_bias: torch.Tensor | None = None,
    ) -> None:
        self._spec = spec
        self._words = words
        self._positions = positions
        self._embedding_norm = embedding_norm
        self._blocks = tuple(blocks)
        self._attention_bias = attention_bias

    @torch.inference_mode()
    def __call__(self, tokens_T: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Hidden states [T, C] of texts laid end to end.

        Args:
            tokens_T: int64 [T].
            lengths: tokens of each text, each at most `spec.max_length`; their sum is T.
        """
        device = tokens_T.device
        places = torch.cat([torch.arange(length, device=device) for length in lengths])
        x_TC = torch.nn.functional.embedding(tokens_T, self._words) + self._positions[places]
        x_TC = self._embedding_norm(x_TC)[0]
        biases = [self._bias(length, device) for length in lengths]
        for block in self._blocks:
            attended = self._attend(block.qkv(x_TC), lengths, biases)
            x_TC = block.attention_norm(block.output(attended), x_TC)[0]
            x_TC = block.mlp_norm(block.mlp(x_TC), x_TC)[0]
        return x_TC

    def _attend(
        self,
        qkv_TX: torch.Tensor,
        lengths: Sequence[int],
        biases: Sequence[torch.Tensor | None],
    ) -> torch.Tensor:
        heads, dim = self._spec.num_heads, self._spec.head_dim
        found = []
        for text, bias in zip(torch.split(qkv_TX, list(lengths)), biases, strict=True):
            q, k, v = text.view(len(text), 3, heads, dim).permute(1, 2, 0, 3).unsqueeze(1).unbind()
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            found.append(out[0].transpose(0, 1).flatten(1))
        return torch.cat(found)

    def _bias(self, length: int, device: torch.device) -> torch.Tensor | None:
        """What MPNet adds to the scores of a text, [1, H, length, length]."""
        if self._attention_bias is None:
            return None
        places = torch.arange(length, device=device)
        buckets = distance_buckets(places[None, :] - places[:, None], len(self._attention_bias))
        return self._attention_bias[buckets].permute(2, 0, 1)[None].contiguous()


def distance_buckets(distance: torch.Tensor, num_buckets: int) -> torch.Tensor:
    """The bucket of each distance: half for tokens before, half for those after; near distances
    have one each, far ones share (T5, https://arxiv.org/abs/1910.10683, section 2.1)."""
    half, exact = num_buckets // 2, num_buckets // 4
    size = distance.abs()
    logarithm = torch.log(size.clamp(min=1).float() / exact) / math.log(_MAX_DISTANCE / exact)
    far = (exact + (logarithm * (half - exact)).long()).clamp(max=half - 1)
    return (distance > 0) * half + torch.where(size < exact, size, far)
