"""`QuantConfig`: which names it leaves as they are."""

import pytest

from quire.pipelines.architectures.encodings import DENSE, Encoding
from quire.pipelines.architectures.quant_config import QuantConfig
from quire.pipelines.architectures.quantized.at_load import BlocksAtLoad, Int8AtLoad
from quire.pipelines.architectures.quantized.gptq_awq import AWQEncoding

AWQ = AWQEncoding(group_size=32)
NAME = "model.layers.1.mlp.gate.proj"


@pytest.mark.parametrize(
    ("entry", "skips"),
    [
        (NAME, True),
        ("model.layers.1", True),
        ("model.layers.1.", True),
        ("mlp.gate", True),
        ("gate", True),
        ("model.layers.10", False),
        ("layers.1.mlp.gat", False),
        ("proj.gate", False),
        ("ate", False),
        ("re:.*gate.*", True),
        (r"re:model\.layers\.\d+\.mlp", True),
        ("re:gate", False),
        ("model.layers.*.mlp", True),
        ("*gate*", True),
        ("model.layers.*.attn", False),
    ],
)
def test_an_entry_covers_parts_of_a_name(entry: str, skips: bool) -> None:
    quant = QuantConfig(AWQ, (entry,))

    assert quant.encoding_of(NAME) is (DENSE if skips else AWQ)


def test_what_an_architecture_fixes_is_kept() -> None:
    transposed = Encoding(is_transposed=True)

    assert QuantConfig(AWQ).encoding_over(NAME, transposed) is transposed


def test_at_load_a_transposed_layer_is_quantized_too() -> None:
    transposed = Encoding(is_transposed=True)

    for encoding in (Int8AtLoad(), BlocksAtLoad(kind="Q4_0")):
        quant = QuantConfig(encoding, ("gate",))
        found = quant.encoding_over("a", transposed)
        assert type(found) is type(encoding)
        assert found.is_transposed
        assert quant.encoding_over("a", DENSE) is DENSE
        assert quant.encoding_over("gate", transposed) is transposed
