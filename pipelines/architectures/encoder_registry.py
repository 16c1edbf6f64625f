"""The supported embedding models that are encoders, one row each. No torch."""

from collections.abc import Callable
from dataclasses import dataclass

from quire.pipelines.architectures.bert import read_bert, read_mpnet, read_xlm_roberta
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.architectures.encoder_spec import EncoderSpec


@dataclass(frozen=True, kw_only=True)
class SupportedEncoder:
    """A Hugging Face family of encoders; `read` takes config.json and the prefix of weight names."""

    names: tuple[str, ...]
    """Its classes in config.json's `architectures`."""
    prefix: str
    """What weight names begin with where a checkpoint has a head as well."""
    example_repo_ids: tuple[str, ...]
    read: Callable[[ConfigFile, str], EncoderSpec]


ENCODERS = (
    SupportedEncoder(
        names=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
        prefix="bert.",
        example_repo_ids=("BAAI/bge-small-en-v1.5", "sentence-transformers/all-MiniLM-L6-v2"),
        read=read_bert,
    ),
    SupportedEncoder(
        names=("XLMRobertaModel", "XLMRobertaForMaskedLM", "RobertaModel", "RobertaForMaskedLM"),
        prefix="roberta.",
        example_repo_ids=("BAAI/bge-m3", "intfloat/multilingual-e5-small"),
        read=read_xlm_roberta,
    ),
    SupportedEncoder(
        names=("MPNetModel", "MPNetForMaskedLM"),
        prefix="mpnet.",
        example_repo_ids=("sentence-transformers/all-mpnet-base-v2",),
        read=read_mpnet,
    ),
)


def find_encoder(names: tuple[str, ...]) -> SupportedEncoder | None:
    """The row of the one class in `names`; None where that is no encoder we know."""
    found = (row for row in ENCODERS if len(names) == 1 and names[0] in row.names)
    return next(found, None)
