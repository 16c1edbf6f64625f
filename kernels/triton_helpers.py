"""What the Triton kernels of several ops share."""

import triton


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which has no bf16 arithmetic."""
    return bool(triton.knobs.runtime.interpret)
