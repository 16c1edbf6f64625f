"""Dense attention: equal to torch's own in float64, and blind to what lies past a valid length."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from quire.kernels.cases import Case
from quire.kernels.flash_attention_gpu import flash_attention_gpu
from quire.kernels.flash_attention_gpu.cases import SMALL_CASES, dense_case
from quire.kernels.flash_attention_gpu.kernel import flash_attention_gpu_triton

CPU = torch.device("cpu")
SameBits = Callable[[torch.Tensor, torch.Tensor], bool]
PATHS = [
    pytest.param(flash_attention_gpu, id="cpu"),
    pytest.param(flash_attention_gpu_triton, id="triton"),
]


def sdpa(inputs: dict[str, Any]) -> torch.Tensor:
    """torch's attention in float64 with an explicit mask; rows that see nothing are zero."""
    q, k, v = (inputs[name].double().nan_to_num(0.0).transpose(1, 2) for name in "qkv")
    entries, _, length, _ = q.shape
    position = torch.arange(length)
    distance = position[:, None] - position
    visible = torch.ones(entries, 1, length, length, dtype=torch.bool)
    if inputs["mask"] == "causal":
        visible &= distance >= 0
    if inputs["local_window_size"] > 0:
        visible &= distance.abs() < inputs["local_window_size"]
    if inputs["valid_length"] is not None:
        is_valid = position < inputs["valid_length"].long()[:, None]
        visible &= (is_valid[:, None, :, None]) & is_valid[:, None, None, :]
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, scale=inputs["scale"], enable_gqa=True
    )
    return out.nan_to_num(0.0).transpose(1, 2)


@pytest.mark.parametrize("case", SMALL_CASES, ids=lambda case: case.name)
def test_equals_torch_in_float64(case: Case) -> None:
    inputs = case.build(CPU, torch.Generator().manual_seed(2))

    out = flash_attention_gpu(**inputs)

    assert out.dtype == case.dtype
    torch.testing.assert_close(out.double(), sdpa(inputs), atol=case.tolerance, rtol=0)


def test_a_causal_mask_and_all_of_the_length_are_the_defaults() -> None:
    q, k, v = torch.randn(3, 2, 20, 2, 8, generator=torch.Generator().manual_seed(3)).unbind()
    expected = F.scaled_dot_product_attention(
        *(x.double().transpose(1, 2) for x in (q, k, v)), is_causal=True, scale=0.5
    )

    out = flash_attention_gpu(q, k, v, scale=0.5)

    torch.testing.assert_close(out.double(), expected.transpose(1, 2), atol=4e-6, rtol=0)


@pytest.mark.parametrize("attention", PATHS)
def test_rows_past_the_valid_length_are_zero_and_never_read(
    attention: Callable[..., torch.Tensor], same_bits: SameBits
) -> None:
    """A length of 0 and one past the end included; uint32 lengths are taken too."""
    case = dense_case("", torch.float32, (4, 70, 2, 1, 16), "none", -1, (70, 0, 66, 3))
    inputs = case.build(CPU, torch.Generator().manual_seed(4))

    out = attention(**inputs)

    for entry, valid in enumerate((70, 0, 66, 3)):
        assert torch.equal(out[entry, valid:], torch.zeros(70 - valid, 2, 16))
        assert out[entry, :valid].isfinite().all()
    lengths = torch.tensor([99, 0, 66, 3], dtype=torch.uint32)
    assert same_bits(attention(**{**inputs, "valid_length": lengths}), out)


@pytest.mark.parametrize("attention", PATHS)
@pytest.mark.parametrize("shape", [(0, 5, 2, 1, 8), (2, 0, 2, 1, 8)])
def test_nothing_gives_nothing(
    attention: Callable[..., torch.Tensor], shape: tuple[int, int, int, int, int]
) -> None:
    entries, length, heads, kv_heads, head_dim = shape
    q = torch.empty(entries, length, heads, head_dim)
    k = torch.empty(entries, length, kv_heads, head_dim)

    assert attention(q, k, k.clone(), scale=1.0).shape == q.shape


def test_triton_rows_do_not_depend_on_tokens_that_they_do_not_see(same_bits: SameBits) -> None:
    inputs = dense_case("", torch.float32, (1, 150, 2, 1, 16)).build(
        CPU, torch.Generator().manual_seed(5)
    )
    full = flash_attention_gpu_triton(**inputs)
    for length in (1, 63, 64, 65, 100):
        part = {name: inputs[name][:, :length].contiguous() for name in "qkv"}
        assert same_bits(flash_attention_gpu_triton(**{**inputs, **part}), full[:, :length])


def test_wrong_inputs_are_named() -> None:
    q, k = torch.ones(2, 5, 4, 8), torch.ones(2, 5, 2, 8)

    def attend(**changed: Any) -> None:
        flash_attention_gpu(**{"q": q, "k": k, "v": k, "scale": 1.0, **changed})

    with pytest.raises(ValueError, match=r"q must be \[B, S, H, D\], got \[2, 5, 4\]"):
        attend(q=q[..., 0])
    with pytest.raises(
        ValueError, match="q must be of bfloat16 or float16 or float32, got float64"
    ):
        attend(q=q.double())
    with pytest.raises(ValueError, match=r"q must be contiguous, got strides"):
        attend(q=q.transpose(1, 2).contiguous().transpose(1, 2))
    with pytest.raises(ValueError, match=r"k must be \[2, 5, K, 8\], got \[2, 4, 2, 8\]"):
        attend(k=k[:, :4])
    with pytest.raises(ValueError, match="k must be of float32, got bfloat16"):
        attend(k=k.bfloat16())
    with pytest.raises(ValueError, match=r"v must be \[2, 5, 2, 8\], got \[2, 5, 1, 8\]"):
        attend(v=k[:, :, :1])
    with pytest.raises(ValueError, match="head_dim of q must be a multiple of 8 .*256, got 12"):
        attend(q=torch.ones(2, 5, 4, 12), k=torch.ones(2, 5, 2, 12), v=torch.ones(2, 5, 2, 12))
    with pytest.raises(ValueError, match="query heads must be a multiple of 3 key heads, got 4"):
        attend(k=torch.ones(2, 5, 3, 8), v=torch.ones(2, 5, 3, 8))
    with pytest.raises(ValueError, match="local_window_size must be from 1 to .*, got 0"):
        attend(local_window_size=0)
    with pytest.raises(ValueError, match=r"mask must be one of \('causal', 'none'\), got 'both'"):
        attend(mask="both")
    with pytest.raises(ValueError, match=r"valid_length must be \[2\], got \[3\]"):
        attend(valid_length=torch.ones(3, dtype=torch.int32))
    with pytest.raises(ValueError, match="valid_length must be of int32 or uint32, got int64"):
        attend(valid_length=torch.ones(2, dtype=torch.int64))
