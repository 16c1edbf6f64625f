"""Token embeddings: rows of a table, whole or the part of it that one device holds."""

import torch

from quire.kernels.checks import FLOATS, check_tensor
from quire.kernels.torch_op import torch_op

TOKEN_DTYPES = (torch.int32, torch.int64)


def _fake(tokens_T: torch.Tensor, weight_VC: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    return weight_VC.new_empty(tokens_T.shape[0], weight_VC.shape[1])


@torch_op(fake=_fake)
def embedding(
    tokens_T: torch.Tensor, weight_VC: torch.Tensor, *, scale: float = 1.0
) -> torch.Tensor:
    """weight[token] * scale for each token.

    Args:
        tokens_T: int32 or int64 [T], contiguous, in [0, V). A CPU refuses others; a GPU, which
            would have to wait for the check, gives zeros for them.
        weight_VC: [V, C], bfloat16, float16 or float32, contiguous.
        scale: multiplied in fp32, rounded once; Gemma's sqrt(C) is rounded to the dtype first.

    Returns:
        [T, C] in the dtype of the weight.

    Raises:
        ValueError: a shape, dtype, device or (on a CPU) token outside the above.
    """
    _check(tokens_T, weight_VC)
    if tokens_T.is_cuda:
        from quire.kernels.embedding.kernel import embedding_triton as run
    else:
        from quire.kernels.embedding.cpu import embedding_cpu as run
    return run(tokens_T, weight_VC, scale=scale)


def _fake_parallel(
    tokens_T: torch.Tensor, weight_VC: torch.Tensor, vocab_start: int, *, scale: float = 1.0
) -> torch.Tensor:
    return weight_VC.new_empty(tokens_T.shape[0], weight_VC.shape[1])


@torch_op(fake=_fake_parallel)
def vocab_parallel_embedding(
    tokens_T: torch.Tensor, weight_VC: torch.Tensor, vocab_start: int, *, scale: float = 1.0
) -> torch.Tensor:
    """The rows that this part of the table has, zeros for other tokens: parts add up to all.

    Args:
        tokens_T: int32 or int64 [T], contiguous.
        weight_VC: [V, C], rows `vocab_start` to `vocab_start` + V of the table.
        vocab_start: at least 0.
        scale: as of `embedding`.

    Returns:
        [T, C] in the dtype of the weight.

    Raises:
        ValueError: a shape, dtype, device or start outside the above.
    """
    _check(tokens_T, weight_VC)
    if vocab_start < 0:
        raise ValueError(f"vocab_start must be at least 0, got {vocab_start}")
    if tokens_T.is_cuda:
        from quire.kernels.embedding.kernel import vocab_parallel_embedding_triton as run
    else:
        from quire.kernels.embedding.reference import vocab_parallel_embedding_reference as run
    return run(tokens_T, weight_VC, vocab_start, scale=scale)


def _check(tokens_T: torch.Tensor, weight_VC: torch.Tensor) -> None:
    check_tensor("tokens_T", tokens_T, ("T",), TOKEN_DTYPES)
    check_tensor("weight_VC", weight_VC, ("V", "C"), FLOATS, device=tokens_T.device)
