"""Time layers of experts on this machine: `python benchmarks/mixture.py [--threads 2]`.

Layers of random weights, more than fit the caches, take turns; each meets other tokens in each round,
so that its experts come from memory.
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from quire.kernels.linear import prepare_linear
from quire.kernels.linear.tile_plan import TilePlans
from quire.pipelines.architectures.moe_parts import MoESpec, RouterSpec, SeparateExperts
from quire.pipelines.architectures.quant_config import UNQUANTIZED
from quire.pipelines.nn.expert_loader import ExpertLoader
from quire.pipelines.nn.moe import MoE
from quire.pipelines.weights.loader import WeightLoader
from quire.pipelines.weights.tensor_entry import TensorEntry

CPU = torch.device("cpu")
ROUNDS = {1: 60, 8: 20, 32: 12, 512: 4}
"""By the number of tokens."""


class RandomWeights:
    """Normal numbers; expert by expert another part of the same ones."""

    source = "random"

    def __init__(self, spec: SeparateExperts) -> None:
        self._shapes = {name: entry.shape for name, entry in spec.tensors(UNQUANTIZED).items()}
        most = max(rows * columns for rows, columns in self._shapes.values())
        self._numbers = torch.randn(2 * most).bfloat16() / 32
        self.entries: Mapping[str, TensorEntry] = {
            name: TensorEntry(Path("random"), name, "BF16", tuple(shape), 0, 2)
            for name, shape in self._shapes.items()
        }

    def read(self, name: str) -> torch.Tensor:
        rows, columns = self._shapes[name]
        first = len(name) * 7919 % (rows * columns)
        return self._numbers[first : first + rows * columns].view(rows, columns)


def layer_of(spec: SeparateExperts) -> MoE:
    weights = RandomWeights(spec)
    loader = WeightLoader(weights, weights.entries, torch.bfloat16, CPU, lambda fraction: None)
    router = RouterSpec(names=("router",), in_dim=spec.hidden_size, out_dims=(spec.num_experts,))
    return MoE(
        MoESpec(experts=spec, router=router, renormalize=True),
        prepare_linear((torch.randn(spec.num_experts, spec.hidden_size) / 8).bfloat16()),
        ExpertLoader(loader, UNQUANTIZED, TilePlans()).load(spec),
    )


def milliseconds(layers: list[MoE], tokens: int, rounds: int) -> list[float]:
    """Of each layer in each round."""
    hidden_size = layers[0].spec.experts.hidden_size
    inputs = torch.randn(8, tokens, hidden_size).bfloat16()
    times = []
    for number in range(rounds + 1):
        for layer in layers:
            start = time.perf_counter()
            layer(inputs[number % len(inputs)])
            times.append(1e3 * (time.perf_counter() - start))
    return times[len(layers) :]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time layers of experts.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--inner-size", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    spec = SeparateExperts(
        prefix="e.",
        num_experts=options.experts,
        top_k=options.top_k,
        hidden_size=options.hidden_size,
        inner_size=options.inner_size,
    )
    with torch.inference_mode():
        layers = [layer_of(spec) for _ in range(options.layers)]
        for tokens, rounds in ROUNDS.items():
            times = milliseconds(layers, tokens, rounds)
            print(
                f"{tokens} tokens: {statistics.median(times):.2f} ms a layer, "
                f"best {min(times):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
