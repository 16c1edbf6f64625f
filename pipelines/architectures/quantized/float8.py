"""fp8 (e4m3) weights with scales: checkpoints of `fp8` and `fbgemm_fp8`. No torch.

Micikevicius et al. 2022 (https://arxiv.org/abs/2209.05433). Scales of blocks as DeepSeek-V3 has
them (https://arxiv.org/abs/2412.19437, section 3.3).
"""

from dataclasses import dataclass
from enum import Enum

from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encodings import (
    FLOAT_DTYPES,
    ITEM_BYTES,
    PackedEncoding,
    TensorSpec,
)
from quire.pipelines.architectures.quant_config import QuantConfig
from quire.pipelines.architectures.quantized.names import names_in, refuse_keys

BLOCK = 128
"""Rows and columns of weights, and columns of activations, with a scale of their own."""

_ONE = ((1,), (1, 1))


class Float8ScaleGranularity(Enum):
    """What has a scale of its own: the tensor, each row, each column, or each block.

    Of activations the columns are the tokens.
    """

    TENSOR = "tensor"
    ROWWISE = "rowwise"
    COLWISE = "colwise"
    BLOCK = "block"


class Float8ScaleOrigin(Enum):
    """Whether a scale of activations is in the checkpoint or made of each token."""

    STATIC = "static"
    DYNAMIC = "dynamic"


@dataclass(frozen=True)
class Float8WeightScaleSpec:
    """The scales of the weights; computed with in float32."""

    granularity: Float8ScaleGranularity
    block_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Float8InputScaleSpec:
    """The scales of the activations. `activation_scale_ub`: greatest magnitude one is made for."""

    granularity: Float8ScaleGranularity
    origin: Float8ScaleOrigin
    block_size: tuple[int, int] | None = None
    activation_scale_ub: float | None = None


@dataclass(frozen=True)
class Float8Config:
    """How fp8 layers are computed; `input_scale` None: activations stay as they are."""

    weight_scale: Float8WeightScaleSpec
    input_scale: Float8InputScaleSpec | None

    @property
    def is_static(self) -> bool:
        """Whether the checkpoint has the scales of activations."""
        return self.input_scale is not None and self.input_scale.origin is Float8ScaleOrigin.STATIC

    @property
    def is_block(self) -> bool:
        return self.weight_scale.granularity is Float8ScaleGranularity.BLOCK


TENSOR = Float8WeightScaleSpec(Float8ScaleGranularity.TENSOR)
ROWWISE = Float8WeightScaleSpec(Float8ScaleGranularity.ROWWISE)
BLOCKWISE = Float8WeightScaleSpec(Float8ScaleGranularity.BLOCK, (BLOCK, BLOCK))
STATIC_INPUT = Float8InputScaleSpec(Float8ScaleGranularity.TENSOR, Float8ScaleOrigin.STATIC)
PER_TOKEN = Float8InputScaleSpec(Float8ScaleGranularity.COLWISE, Float8ScaleOrigin.DYNAMIC)
PER_BLOCK = Float8InputScaleSpec(
    Float8ScaleGranularity.BLOCK, Float8ScaleOrigin.DYNAMIC, (1, BLOCK)
)


@dataclass(frozen=True, kw_only=True)
class Float8Encoding(PackedEncoding):
    """`weight` in e4m3 and its scales; a weight is stored * scale.

    `scale_names` and `input_scale_names` are what producers call them: a layer has one of each.
    On a CPU, and where activations are not quantized, the weights are dequantized at load.
    """

    config: Float8Config
    scale_names: tuple[str, ...] = ("weight_scale",)
    input_scale_names: tuple[str, ...] = ("input_scale",)

    @property
    def name(self) -> str:
        return "fp8"

    def tensors(self, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        found = {"weight": TensorSpec((out_dim, in_dim), ("F8_E4M3",))}
        found |= dict.fromkeys(self.scale_names, self._scale(out_dim, in_dim))
        if self.config.is_static:
            one = TensorSpec((), is_optional=len(self.input_scale_names) > 1, other_shapes=_ONE)
            found |= dict.fromkeys(self.input_scale_names, one)
        return found

    def _scale(self, out_dim: int, in_dim: int) -> TensorSpec:
        is_optional = len(self.scale_names) > 1
        match self.config.weight_scale.granularity:
            case Float8ScaleGranularity.TENSOR:
                return TensorSpec((), is_optional=is_optional, other_shapes=_ONE)
            case Float8ScaleGranularity.ROWWISE:
                return TensorSpec((out_dim, 1), is_optional=is_optional, other_shapes=((out_dim,),))
            case Float8ScaleGranularity.BLOCK:
                blocks = (-(-out_dim // BLOCK), -(-in_dim // BLOCK))
                return TensorSpec(blocks, (*FLOAT_DTYPES, "F8_E8M0"), is_optional=is_optional)
        raise ValueError("fp8 weights with a scale per column")

    def device_bytes(self, out_dim: int, in_dim: int, dtype: str, device_type: str) -> int:
        if device_type != "cuda" or self.config.input_scale is None:
            return super().device_bytes(out_dim, in_dim, dtype, "cpu")
        # Stacked with others a layer has a scale per row, also where it has one by itself.
        scales = self._scale(out_dim, in_dim).num_elements if self.config.is_block else out_dim
        return out_dim * in_dim + scales * ITEM_BYTES["float32"]


def read_fp8(section: ConfigFile) -> QuantConfig:
    """Of `quant_method` fp8: AutoFP8, DeepSeek-V3, transformers' FineGrainedFP8Config.

    With `activation_scheme` dynamic each token, or 128 columns of it, gets its own scale, also
    where the producer had one for the whole batch: a token's numbers shall not depend on others.
    `scale_fmt` only rounds those scales; they are not rounded here.

    Raises:
        ModelError: a scheme that is not supported.
    """
    if section.string("fmt", "e4m3") != "e4m3":
        raise section.wrong("fmt", "e4m3")
    if section.string("scale_fmt", "float") not in ("float", "ue8m0"):
        raise section.wrong("scale_fmt", "float or ue8m0")
    refuse_keys(section, ("kv_cache_quant_targets", "kv_cache_scheme", "modules_to_convert"))
    if section.string("expert_dtype", "fp8") != "fp8":
        raise section.wrong("expert_dtype", "fp8")
    scheme = section.string("activation_scheme", "dynamic")
    if scheme not in ("static", "dynamic"):
        raise section.wrong("activation_scheme", "static or dynamic")
    names = tuple(
        name
        for key in ("ignored_layers", "modules_to_not_convert")
        for name in names_in(section, key)
    )
    if section.has("weight_block_size"):
        if section.integers("weight_block_size") != (BLOCK, BLOCK):
            raise section.wrong("weight_block_size", f"[{BLOCK}, {BLOCK}]")
        if scheme == "static":
            raise section.wrong("activation_scheme", "dynamic, as weights have scales of blocks")
        encoding = Float8Encoding(
            config=Float8Config(BLOCKWISE, PER_BLOCK), scale_names=("weight_scale_inv",)
        )
    else:
        encoding = Float8Encoding(
            config=Float8Config(TENSOR, STATIC_INPUT if scheme == "static" else PER_TOKEN),
            scale_names=("weight_scale", "weight_scale_inv"),
            input_scale_names=("input_scale", "activation_scale"),
        )
    return QuantConfig(encoding, ("lm_head", *names))


def read_fbgemm_fp8(section: ConfigFile) -> QuantConfig:
    """Of `quant_method` fbgemm_fp8: a scale per row and per token.

    Raises:
        ModelError: a key is wrong.
    """
    inputs = Float8InputScaleSpec(
        Float8ScaleGranularity.COLWISE,
        Float8ScaleOrigin.DYNAMIC,
        activation_scale_ub=section.optional_number("activation_scale_ub"),
    )
    encoding = Float8Encoding(config=Float8Config(ROWWISE, inputs))
    return QuantConfig(encoding, ("lm_head", *names_in(section, "modules_to_not_convert")))
