"""`QuantConfig`: which names it leaves as they are."""

import time

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


@pytest.mark.parametrize(
    "entry", ["a.layers.1.mlp", "b.a.layers.1.mlp", r"re:a\.layers\.1\.mlp", "a.layers.*.mlp"]
)
def test_an_entry_may_have_the_prefix_of_other_checkpoints(entry: str) -> None:
    renamed = (("a.", "model."), ("b.a.", "model."), ("c.", "other."))

    assert QuantConfig(AWQ, (entry,), renamed).skips(NAME)
    assert not QuantConfig(AWQ, (entry,), renamed).skips(NAME.replace("mlp", "attn.mlps"))
    assert not QuantConfig(AWQ, (entry,)).skips(NAME)


def test_long_lists_cost_no_more_than_short_ones() -> None:
    """DeepSeek-V3 has 45 thousand modules of experts, and quantizers list hundreds of names."""
    names = [f"model.layers.{index}.mlp.experts.7.up_proj" for index in range(10_000)]
    many = tuple(
        f"model.layers.{index}.{part}" for index in range(1000) for part in ("norm", "mlp.gate")
    )
    quant = QuantConfig(AWQ, many)

    start = time.perf_counter()
    assert not any(map(quant.skips, names))
    # Each name against each entry takes more than ten seconds.
    assert time.perf_counter() - start < 2


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
