"""Builds the encoder that an `EncoderSpec` describes."""

from quire.kernels.linear.tile_plan import TilePlans
from quire.pipelines.architectures.build import Builder
from quire.pipelines.architectures.encoder_spec import EncoderLayerSpec, EncoderSpec
from quire.pipelines.architectures.quant_config import UNQUANTIZED
from quire.pipelines.nn.encoder import Encoder, EncoderBlock
from quire.pipelines.weights.loader import WeightLoader


def build_encoder(spec: EncoderSpec, loader: WeightLoader, *, exact: bool) -> Encoder:
    """Take every weight from `loader` and build the model, on the loader's device.

    Raises:
        ModelError: a weight cannot be read or is not finite.
    """
    plans = TilePlans() if exact else None
    builder = Builder(loader, UNQUANTIZED, loader.dtype, loader.device, plans)
    words = loader.take(spec.words.name)
    positions = loader.take(spec.positions.name)[spec.first_position :]
    if spec.token_type is not None:
        # transformers adds the type to the word first; in bfloat16 that order shows.
        words = words + loader.take(spec.token_type.name)[0]
    norm = builder.norm(spec.embedding_norm)
    blocks = [_block(builder, layer) for layer in spec.layers]
    bias = None if spec.attention_bias is None else loader.take(spec.attention_bias.name)
    loader.finish()
    return Encoder(spec, words, positions, norm, blocks, bias)


def _block(builder: Builder, layer: EncoderLayerSpec) -> EncoderBlock:
    return EncoderBlock(
        builder.linear(layer.qkv),
        builder.linear(layer.output),
        builder.norm(layer.attention_norm),
        builder.mlp(layer.mlp),
        builder.norm(layer.mlp_norm),
    )
