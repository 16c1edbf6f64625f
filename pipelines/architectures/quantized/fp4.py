"""4-bit float weights with scales of groups: NVFP4 and MXFP4. No torch.

Numbers are e2m1, two to a byte. MXFP4: OCP Microscaling Formats v1.0. Activations are not
quantized: the scales that checkpoints have for them are accepted and not used.
"""

from dataclasses import dataclass

from quire.pipelines.architectures.encodings import PackedEncoding, TensorSpec

NVFP4_GROUP = 16
MXFP4_GROUP = 32
_ONE = ((1,), (1, 1))


@dataclass(frozen=True, kw_only=True)
class NVFP4Encoding(PackedEncoding):
    """A scale in e4m3 for each 16 numbers along K, and one for the whole weight.

    The fields name the tensors: NVIDIA ModelOpt's by default. `is_inverse`: the scale of the
    whole divides (compressed-tensors).
    """

    weight_name: str = "weight"
    scale_2_name: str = "weight_scale_2"
    input_scale_name: str = "input_scale"
    is_inverse: bool = False

    @property
    def name(self) -> str:
        return "nvfp4"

    def tensors(self, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        groups = _groups(self.name, in_dim, NVFP4_GROUP)
        return {
            self.weight_name: TensorSpec((out_dim, in_dim // 2), ("U8",)),
            "weight_scale": TensorSpec((out_dim, groups), ("F8_E4M3",)),
            self.scale_2_name: TensorSpec((), ("F32",), other_shapes=_ONE),
            self.input_scale_name: TensorSpec((), ("F32",), is_optional=True, other_shapes=_ONE),
        }


NVFP4 = NVFP4Encoding()
COMPRESSED_NVFP4 = NVFP4Encoding(
    weight_name="weight_packed",
    scale_2_name="weight_global_scale",
    input_scale_name="input_global_scale",
    is_inverse=True,
)


@dataclass(frozen=True, kw_only=True)
class MXFP4Encoding(PackedEncoding):
    """The exponent of a scale, plus 127, for each 32 numbers along K."""

    @property
    def name(self) -> str:
        return "mxfp4"

    def tensors(self, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        groups = _groups(self.name, in_dim, MXFP4_GROUP)
        return {
            "weight_packed": TensorSpec((out_dim, in_dim // 2), ("U8",)),
            "weight_scale": TensorSpec((out_dim, groups), ("U8", "F8_E8M0")),
        }


MXFP4 = MXFP4Encoding()


def _groups(name: str, in_dim: int, size: int) -> int:
    if in_dim % size:
        raise ValueError(f"{name} groups of {size} in {in_dim} columns")
    return in_dim // size
