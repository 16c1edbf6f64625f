"""Which class computes with the weights of which encoding."""

from collections.abc import Mapping

from quire.pipelines.architectures.encodings import Encoding
from quire.pipelines.architectures.quantized.at_load import (
    BlocksAtLoad,
    Float8AtLoad,
    Int8AtLoad,
    W8A8AtLoad,
)
from quire.pipelines.architectures.quantized.float8 import Float8Encoding
from quire.pipelines.architectures.quantized.fp4 import MXFP4Encoding, NVFP4Encoding
from quire.pipelines.architectures.quantized.gguf import GgufEncoding
from quire.pipelines.architectures.quantized.gptq_awq import (
    AWQEncoding,
    GPTQEncoding,
    PackQuantizedEncoding,
)
from quire.pipelines.architectures.quantized.int8 import Int8Encoding, W8A8Encoding
from quire.pipelines.nn.linear_weight import DenseWeight, LinearWeight
from quire.pipelines.nn.quantized.at_load import BlocksWeight, Float8AtLoadWeight
from quire.pipelines.nn.quantized.float8 import Float8Weight
from quire.pipelines.nn.quantized.fp4 import MXFP4Weight, NVFP4Weight
from quire.pipelines.nn.quantized.gguf import GgufWeight
from quire.pipelines.nn.quantized.gptq_awq import AWQWeight, GPTQWeight, PackQuantizedWeight
from quire.pipelines.nn.quantized.int8 import Int8Weight
from quire.pipelines.nn.quantized.w8a8 import W8A8Weight

WEIGHT_KINDS: Mapping[type[Encoding], type[LinearWeight]] = {
    Encoding: DenseWeight,
    GPTQEncoding: GPTQWeight,
    AWQEncoding: AWQWeight,
    PackQuantizedEncoding: PackQuantizedWeight,
    Float8Encoding: Float8Weight,
    NVFP4Encoding: NVFP4Weight,
    MXFP4Encoding: MXFP4Weight,
    Int8Encoding: Int8Weight,
    W8A8Encoding: W8A8Weight,
    Int8AtLoad: Int8Weight,
    W8A8AtLoad: W8A8Weight,
    Float8AtLoad: Float8AtLoadWeight,
    BlocksAtLoad: BlocksWeight,
    GgufEncoding: GgufWeight,
}
