"""Cases of `flash_attention_gpu`: small ones with every feature, and encoder shapes."""

from typing import Any

import torch
import torch.nn.functional as F

from quire.kernels.cases import Case, Operation

TOLERANCE = {torch.float32: 4e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def dense_case(
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int, int],
    mask: str = "causal",
    window: int = -1,
    valid: tuple[int, ...] | None = None,
) -> Case:
    """A case of `shape` (B, S, H, K, D). Keys and values past a valid length are NaN."""
    entries, length, heads, kv_heads, head_dim = shape

    def build(device: torch.device, generator: torch.Generator) -> dict[str, Any]:
        q = torch.randn(entries, length, heads, head_dim, generator=generator).to(dtype)
        k, v = torch.randn(2, entries, length, kv_heads, head_dim, generator=generator).to(dtype)
        for entry, count in enumerate(valid or ()):
            for tensor in (q, k, v):
                tensor[entry, count:] = torch.nan
        lengths = None if valid is None else torch.tensor(valid, dtype=torch.int32, device=device)
        return {
            "q": q.to(device),
            "k": k.to(device),
            "v": v.to(device),
            "mask": mask,
            "scale": head_dim**-0.5,
            "local_window_size": window,
            "valid_length": lengths,
        }

    pairs = entries * length * (length + 1) // 2 if mask == "causal" else entries * length**2
    return Case(
        name=name,
        dtype=dtype,
        build=build,
        tolerance=TOLERANCE[dtype],
        bytes_moved=2 * entries * length * head_dim * (heads + kv_heads) * dtype.itemsize,
        flops=4 * head_dim * heads * pairs,
    )


SMALL_CASES = (
    dense_case("causal-fp32", torch.float32, (3, 70, 2, 1, 32)),
    dense_case("none-bf16", torch.bfloat16, (2, 40, 2, 2, 64), "none"),
    dense_case("group-3-fp16", torch.float16, (2, 50, 6, 2, 72), "causal", -1, (0, 33)),
    dense_case("valid-none", torch.float32, (4, 70, 1, 1, 24), "none", -1, (70, 1, 0, 65)),
    dense_case("window-5", torch.float32, (1, 90, 3, 1, 16), "causal", 5),
    dense_case("window-1-none", torch.bfloat16, (2, 66, 1, 1, 8), "none", 1, (66, 40)),
    dense_case("window-70-none", torch.float32, (2, 140, 1, 1, 40), "none", 70, (140, 9)),
    dense_case("head-dim-256", torch.float32, (1, 17, 2, 1, 256)),
    dense_case("head-dim-192", torch.bfloat16, (1, 35, 2, 1, 192), "none"),
)
SERVED_CASES = (
    dense_case("siglip-384", torch.bfloat16, (4, 729, 16, 16, 72), "none"),
    dense_case("clip-336", torch.bfloat16, (4, 577, 16, 16, 64), "none"),
    dense_case("whisper-encoder", torch.float16, (2, 1500, 20, 20, 64), "none"),
    dense_case("causal-2048", torch.bfloat16, (1, 2048, 32, 8, 128)),
)


def _torch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: str, scale: float, **_: Any
) -> torch.Tensor:
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        is_causal=mask == "causal",
        scale=scale,
        enable_gqa=True,
    )
    return out.transpose(1, 2)


OPERATIONS = (
    Operation(
        name="flash_attention_gpu",
        package="flash_attention_gpu",
        small=SMALL_CASES,
        served=SERVED_CASES,
        compiled=(
            dense_case("bf16-d64-none", torch.bfloat16, (1, 9, 4, 4, 64), "none"),
            dense_case("bf16-d72-none", torch.bfloat16, (1, 9, 4, 4, 72), "none", -1, (9,)),
            dense_case("bf16-d128", torch.bfloat16, (1, 9, 8, 2, 128), "causal", 4),
            dense_case("bf16-d256", torch.bfloat16, (1, 9, 2, 1, 256)),
            dense_case("fp32-d256", torch.float32, (1, 9, 2, 1, 256)),
        ),
        row_inputs=("q", "k", "v", "valid_length"),
        peers={"F.scaled_dot_product_attention": _torch},
    ),
)
