"""Cases of the embeddings: odd widths in small, and served shapes."""

from typing import Any

import torch
import torch.nn.functional as F

from quire.kernels.cases import Case, Operation


def embedding_case(
    tokens: int,
    vocabulary: int,
    columns: int,
    dtype: torch.dtype,
    *,
    scale: float = 1.0,
    vocab_start: int | None = None,
) -> Case:
    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        whole = vocabulary if vocab_start is None else 2 * (vocab_start + vocabulary)
        index = torch.randint(whole, (tokens,), generator=generator)
        inputs: dict[str, Any] = {
            "tokens_T": index.to(device, torch.int32 if tokens % 2 else torch.int64),
            "weight_VC": torch.randn(vocabulary, columns, generator=generator).to(device, dtype),
        }
        if vocab_start is not None:
            inputs["vocab_start"] = vocab_start
        return inputs if scale == 1.0 else inputs | {"scale": scale}

    return Case(
        name=f"{tokens}-of-{vocabulary}x{columns}-{str(dtype)[6:]}"
        f"{'' if scale == 1.0 else '-scaled'}",
        dtype=dtype,
        build=build,
        tolerance=0.0,
        bytes_moved=2 * tokens * columns * dtype.itemsize,
        flops=0,
    )


def _torch(tokens_T: torch.Tensor, weight_VC: torch.Tensor) -> torch.Tensor:
    return F.embedding(tokens_T, weight_VC)


DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OPERATIONS = (
    Operation(
        name="embedding",
        package="embedding",
        small=tuple(embedding_case(5, 13, 257, dtype) for dtype in DTYPES)
        + (
            embedding_case(4, 9, 2100, torch.bfloat16, scale=45.75),
            embedding_case(1, 1, 1, torch.float32, scale=0.5),
        ),
        served=tuple(
            embedding_case(tokens, 151936, 4096, torch.bfloat16) for tokens in (1, 32, 512)
        ),
        compiled=(embedding_case(7, 1000, 4096, torch.bfloat16),),
        row_inputs=("tokens_T",),
        peers={"F.embedding": _torch},
    ),
    Operation(
        name="vocab_parallel_embedding",
        package="embedding",
        small=(
            embedding_case(9, 13, 65, torch.float32, vocab_start=0),
            embedding_case(8, 13, 65, torch.bfloat16, vocab_start=13, scale=3.0),
        ),
        served=(embedding_case(512, 18992, 4096, torch.bfloat16, vocab_start=18992),),
        compiled=(embedding_case(8, 1000, 4096, torch.bfloat16, vocab_start=1000),),
        row_inputs=("tokens_T",),
    ),
)
