"""`quire plan`'s sums against ones done by hand."""

import pytest
from parity.random_models import make_random_model

from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.forecast import DATASHEETS, find_hardware, forecast
from quire.pipelines.hf import resolve_model


@pytest.fixture(scope="module")
def spec():
    return load_model_spec(resolve_model("quire-demo", None))


def test_floors_are_bytes_over_bandwidth(spec):
    h200 = DATASHEETS["h200"]

    made = forecast(spec, ModelSettings(dtype="bfloat16"), h200)

    batch, context, seconds = made.decode_steps[0]
    assert batch == 1
    kv_bytes = context * spec.kv_bytes_per_token("bfloat16")
    expected = (spec.weight_bytes("bfloat16") + kv_bytes) / h200.bandwidth
    assert spec.tie_word_embeddings
    assert seconds == pytest.approx(expected, rel=1e-6)
    assert all(
        later[1] >= earlier[1]
        for earlier, later in zip(made.prefills, made.prefills[1:], strict=False)
    )


def test_this_machine_is_measured(spec):
    cpu = find_hardware("cpu", "bfloat16")

    assert 1e9 < cpu.bandwidth < 1e12
    assert cpu.memory_bytes > 0
    assert "ms/step" in forecast(spec, ModelSettings(), cpu).table()


def test_unknown_hardware_is_refused():
    with pytest.raises(ConfigError, match="tpu"):
        find_hardware("tpu", "bfloat16")


def test_layers_with_a_window_read_no_more_than_it(tmp_path):
    window = 100
    fields = {"sliding_window": window, "max_position_embeddings": 4000}
    make_random_model("Mistral", **fields).save_pretrained(tmp_path)
    spec, h200 = load_model_spec(tmp_path), DATASHEETS["h200"]

    made = forecast(spec, ModelSettings(dtype="bfloat16"), h200)

    seconds = {(batch, context): time for batch, context, time in made.decode_steps}
    weights = spec.streamed_weight_bytes("bfloat16", "cuda") / h200.bandwidth
    assert (1, 2048) in seconds
    for (batch, _), time in seconds.items():
        kv_bytes = batch * window * spec.kv_bytes_per_token("bfloat16")
        assert time == pytest.approx(weights + kv_bytes / h200.bandwidth, rel=1e-6)
