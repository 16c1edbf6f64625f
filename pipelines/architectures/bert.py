"""BERT (https://arxiv.org/abs/1810.04805), XLM-RoBERTa and MPNet encoders. No torch."""

from dataclasses import dataclass

from quire.pipelines.architectures.common import check_head_dim, read_activation, read_dtype
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encoder_spec import EncoderLayerSpec, EncoderSpec
from quire.pipelines.architectures.parts import LinearSpec, MLPSpec, NormSpec, TensorPart

MPNET_BUCKETS = 32
"""relative_position_bucket of transformers' MPNet is written for this many."""

_UNREAD = ("pooler.", "embeddings.position_ids", "cls.", "lm_head.")
"""What encoders' checkpoints have beside the encoder: heads that embeddings do not pass."""


@dataclass(frozen=True)
class _Names:
    """Where a family differs: names inside a layer."""

    query: str
    key: str
    value: str
    output: str
    attention_norm: str


_BERT = _Names(
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
)
_MPNET = _Names(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    output="attention.attn.o",
    attention_norm="attention.LayerNorm",
)


def read_bert(config: ConfigFile, prefix: str = "") -> EncoderSpec:
    """Raises ModelError for a key that is missing or wrong."""
    return _encoder(config, "BertModel", _BERT, prefix, first_position=0)


def read_xlm_roberta(config: ConfigFile, prefix: str = "") -> EncoderSpec:
    """Positions begin after the padding token's. Raises ModelError as `read_bert`."""
    first = config.integer("pad_token_id", 1, minimum=0) + 1
    return _encoder(config, "XLMRobertaModel", _BERT, prefix, first_position=first)


def read_mpnet(config: ConfigFile, prefix: str = "") -> EncoderSpec:
    """MPNet (https://arxiv.org/abs/2004.09297). Raises ModelError as `read_bert`."""
    if config.integer("relative_attention_num_buckets", MPNET_BUCKETS) != MPNET_BUCKETS:
        raise config.wrong("relative_attention_num_buckets", str(MPNET_BUCKETS))
    return _encoder(config, "MPNetModel", _MPNET, prefix, first_position=2, is_mpnet=True)


def _checked_sizes(config: ConfigFile) -> tuple[int, int]:
    """Hidden size and heads, after refusing what is not served."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if hidden % heads:
        raise config.wrong("num_attention_heads", f"a divisor of hidden_size {hidden}")
    check_head_dim(config, hidden // heads)
    if config.string("position_embedding_type", "absolute") != "absolute":
        raise config.wrong("position_embedding_type", "absolute")
    if config.boolean("is_decoder", False):
        raise config.wrong("is_decoder", "false")
    return hidden, heads


def _encoder(
    config: ConfigFile,
    architecture: str,
    names: _Names,
    prefix: str,
    *,
    first_position: int,
    is_mpnet: bool = False,
) -> EncoderSpec:
    hidden, heads = _checked_sizes(config)
    positions = config.integer("max_position_embeddings")
    vocab, types = config.integer("vocab_size"), config.integer("type_vocab_size", 2)
    epsilon = config.number("layer_norm_eps", 1e-12)
    inner = config.integer("intermediate_size")
    activation = read_activation(config, default="gelu")

    def norm(name: str) -> NormSpec:
        return NormSpec(name=name, dim=hidden, epsilon=epsilon, kind="layer", has_bias=True)

    def linear(out_dims: tuple[int, ...], in_dim: int, *modules: str) -> LinearSpec:
        return LinearSpec(names=modules, in_dim=in_dim, out_dims=out_dims, has_bias=True)

    def layer(index: int) -> EncoderLayerSpec:
        at = f"{prefix}encoder.layer.{index}."
        projections = (f"{at}{name}" for name in (names.query, names.key, names.value))
        return EncoderLayerSpec(
            qkv=linear((hidden,) * 3, hidden, *projections),
            output=linear((hidden,), hidden, f"{at}{names.output}"),
            attention_norm=norm(f"{at}{names.attention_norm}"),
            mlp=MLPSpec(
                up=linear((inner,), hidden, f"{at}intermediate.dense"),
                down=linear((hidden,), inner, f"{at}output.dense"),
                activation=activation,
            ),
            mlp_norm=norm(f"{at}output.LayerNorm"),
        )

    embeddings = f"{prefix}embeddings."
    types_part = TensorPart(f"{embeddings}token_type_embeddings.weight", (types, hidden))
    bias = TensorPart(f"{prefix}encoder.relative_attention_bias.weight", (MPNET_BUCKETS, heads))
    return EncoderSpec(
        architecture=architecture,
        vocab_size=vocab,
        hidden_size=hidden,
        num_heads=heads,
        words=TensorPart(f"{embeddings}word_embeddings.weight", (vocab, hidden)),
        positions=TensorPart(f"{embeddings}position_embeddings.weight", (positions, hidden)),
        first_position=first_position,
        token_type=None if is_mpnet else types_part,
        embedding_norm=norm(f"{embeddings}LayerNorm"),
        layers=tuple(layer(index) for index in range(config.integer("num_hidden_layers"))),
        attention_bias=bias if is_mpnet else None,
        max_length=positions - first_position,
        checkpoint_dtype=read_dtype(config),
        ignored_weights=tuple(f"{start}{name}" for start in {prefix, ""} for name in _UNREAD),
    )
