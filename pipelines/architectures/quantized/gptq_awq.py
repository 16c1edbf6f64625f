"""4-bit weights in groups with a scale: GPTQ, AWQ, and what compressed-tensors packs. No torch.

GPTQ (https://arxiv.org/abs/2210.17323) as AutoGPTQ and GPTQModel store it, AWQ
(https://arxiv.org/abs/2306.00978) as AutoAWQ's GEMM version does, `pack-quantized` of
https://github.com/vllm-project/compressed-tensors.
"""

from dataclasses import dataclass

from quire.kernels.native.number_groups import NumberGroups
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encodings import PackedEncoding, TensorSpec
from quire.pipelines.architectures.quant_config import REGEX_PREFIX, QuantConfig
from quire.pipelines.architectures.quantized.names import checked, names_in, refuse_keys

GROUP_SIZES = (32, 64, 128, -1)
"""Those of the kernels; -1 is one group."""

_PER_WORD = 8
_EXCEPT = "-:"
_OTHER_MATHS = ("rotation", "adapter", "activation")
"""Keys of GPTQModel."""

_SCALE_DTYPES = ("F16", "BF16", "F32")
_WORDS = ("I32",)


@dataclass(frozen=True, kw_only=True)
class _GroupedEncoding(PackedEncoding):
    """4-bit numbers, eight to a word; `group_size` along K share a scale, -1: all of them."""

    group_size: int

    @property
    def number_groups(self) -> NumberGroups:
        """With the offsets of zero points, though where these are all 8 there are none."""
        return NumberGroups(4, self.group_size, has_offsets=True)

    def groups(self, out_dim: int, in_dim: int) -> int:
        """How many groups K has; ValueError where words or groups do not come out even."""
        if out_dim % _PER_WORD or in_dim % _PER_WORD:
            raise ValueError(f"{self.name} words of {_PER_WORD} numbers in [{out_dim}, {in_dim}]")
        if in_dim % self.group_size:
            raise ValueError(f"{self.name} groups of {self.group_size} in {in_dim} columns")
        return 1 if self.group_size == -1 else in_dim // self.group_size


@dataclass(frozen=True, kw_only=True)
class GPTQEncoding(_GroupedEncoding):
    """The tensors of `kernels.gptq_awq.matmul_gptq`.

    `zero_offset` as there. `has_act_order`: `g_idx` must be there, which says each row's group.
    A bias is taken also where the architecture has none: AutoGPTQ once always wrote one.
    """

    zero_offset: int = 1
    has_act_order: bool = False

    @property
    def name(self) -> str:
        return "gptq"

    def tensors(self, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        groups = self.groups(out_dim, in_dim)
        return {
            "qweight": TensorSpec((in_dim // _PER_WORD, out_dim), _WORDS),
            "qzeros": TensorSpec((groups, out_dim // _PER_WORD), _WORDS),
            "scales": TensorSpec((groups, out_dim), _SCALE_DTYPES),
            "g_idx": TensorSpec((in_dim,), _WORDS, is_optional=not self.has_act_order),
            "bias": TensorSpec((out_dim,), is_optional=True),
        }


@dataclass(frozen=True, kw_only=True)
class AWQEncoding(_GroupedEncoding):
    """The tensors of `kernels.gptq_awq.matmul_awq`."""

    @property
    def name(self) -> str:
        return "awq"

    def tensors(self, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        groups = self.groups(out_dim, in_dim)
        return {
            "qweight": TensorSpec((in_dim, out_dim // _PER_WORD), _WORDS),
            "qzeros": TensorSpec((groups, out_dim // _PER_WORD), _WORDS),
            "scales": TensorSpec((groups, out_dim), _SCALE_DTYPES),
        }


@dataclass(frozen=True, kw_only=True)
class PackQuantizedEncoding(_GroupedEncoding):
    """compressed-tensors' `pack-quantized`: numbers -8 to 7, stored plus 8 in words along K.

    Zero points, where there are any, are stored likewise in words along N.
    """

    is_symmetric: bool = True
    has_act_order: bool = False

    @property
    def name(self) -> str:
        return "pack-quantized"

    @property
    def number_groups(self) -> NumberGroups:
        return NumberGroups(4, self.group_size, has_offsets=not self.is_symmetric)

    def tensors(self, out_dim: int, in_dim: int) -> dict[str, TensorSpec]:
        groups = self.groups(out_dim, in_dim)
        found = {
            "weight_packed": TensorSpec((out_dim, in_dim // _PER_WORD), _WORDS),
            "weight_scale": TensorSpec((out_dim, groups), _SCALE_DTYPES),
            "weight_shape": TensorSpec((2,), ("I64", "I32")),
        }
        if not self.is_symmetric:
            found["weight_zero_point"] = TensorSpec((out_dim // _PER_WORD, groups), _WORDS)
        if self.has_act_order:
            found["weight_g_idx"] = TensorSpec((in_dim,), _WORDS)
        return found


def read_gptq(section: ConfigFile) -> QuantConfig:
    """Of `quant_method` gptq.

    Raises:
        ModelError: other than 4 bits, another group size or format, layers that differ.
    """
    _check_bits(section, "bits")
    refuse_keys(section, _OTHER_MATHS)
    for key in ("is_marlin_format", "is_bitblas_format"):
        if section.boolean(key, False):
            raise section.wrong(key, "false")
    if section.string("pack_dtype", "int32") != "int32":
        raise section.wrong("pack_dtype", "int32")
    file_format = _format(section, ("checkpoint_format", "format"), ("gptq", "gptq_v2"))
    encoding = GPTQEncoding(
        group_size=_group_size(section, "group_size"),
        zero_offset=1 if file_format == "gptq" else 0,
        has_act_order=section.boolean("desc_act", False),
    )
    head = () if section.boolean("lm_head", False) else ("lm_head",)
    key = "modules_in_block_to_quantize"
    only = section.nested_strings(key) if section.has(key) else ()
    return QuantConfig(encoding, (*head, *_excluded(section)), only=only)


def _excluded(section: ConfigFile) -> tuple[str, ...]:
    """GPTQModel's `dynamic`, of which only the exceptions, `-:` and a pattern, are supported."""
    patterns = tuple(section.section("dynamic"))
    if not all(pattern.startswith(_EXCEPT) for pattern in patterns):
        raise section.wrong("dynamic", f"only keys that begin with {_EXCEPT}")
    names = (f"{REGEX_PREFIX}{pattern.removeprefix(_EXCEPT)}" for pattern in patterns)
    return checked(section, "dynamic", names)


def read_awq(section: ConfigFile) -> QuantConfig:
    """Of `quant_method` awq.

    Raises:
        ModelError: other than 4 bits and the GEMM version with zero points, layers that differ.
    """
    _check_bits(section, "w_bit" if section.has("w_bit") else "bits")
    refuse_keys(section, _OTHER_MATHS)
    _format(section, ("version", "checkpoint_format", "format"), ("gemm",))
    if not section.boolean("zero_point", True):
        raise section.wrong("zero_point", "true")
    key = "q_group_size" if section.has("q_group_size") else "group_size"
    encoding = AWQEncoding(group_size=_group_size(section, key))
    names = (*names_in(section, "modules_to_not_convert"), *_excluded(section))
    return QuantConfig(encoding, ("lm_head", *names))


def _format(section: ConfigFile, keys: tuple[str, ...], allowed: tuple[str, ...]) -> str:
    """What those of `keys` say that are there; the first of `allowed` where none is.

    Raises:
        ModelError: another format, or keys that contradict each other.
    """
    found = {key: section.string(key).lower() for key in keys if section.has(key)}
    first = next(iter(found.values()), allowed[0])
    for key, value in found.items():
        if value not in allowed:
            raise section.wrong(key, " or ".join(allowed))
        if value != first:
            raise section.wrong(key, f"{first}, as another key says")
    return first


def _check_bits(section: ConfigFile, key: str) -> None:
    if section.integer(key) != 4:
        raise section.wrong(key, "4")


def _group_size(section: ConfigFile, key: str) -> int:
    size = section.integer(key, minimum=-1)
    if size not in GROUP_SIZES:
        raise section.wrong(key, f"one of {', '.join(map(str, GROUP_SIZES))}")
    return size
