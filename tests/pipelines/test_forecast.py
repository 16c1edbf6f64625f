"""`quire plan`'s sums against ones done by hand."""

import pytest
from parity.families.encoders import make_encoder
from parity.random_models import make_random_model

from quire.config.errors import ConfigError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.encoder_plan import flops_per_text, num_weights, plan_encoder
from quire.pipelines.forecast import DATASHEETS, encoder_table, find_hardware, forecast
from quire.pipelines.hf import resolve_model
from quire.pipelines.model_task import encoder_of, encoder_spec


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


def test_an_encoders_numbers_are_those_of_its_checkpoint(tmp_path):
    model = make_encoder("BertModel")
    model.save_pretrained(tmp_path)
    spec = encoder_spec(tmp_path, encoder_of(tmp_path))
    used = [
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.startswith("pooler")
    ]
    assert num_weights(spec) == sum(used)
    settings = ModelSettings(max_batch_input_tokens=100)
    plan = plan_encoder(spec, settings, "float32", 10**9)
    weights, activations = plan.rows
    assert (weights.num_bytes, plan.max_length, plan.step_tokens) == (4 * sum(used), 220, 220)
    # Two of 64, and queries, keys, values and their answer of 64; scores of 4 heads.
    assert activations.num_bytes == 4 * (220 * 6 * 64 + 4 * 220 * 220)
    # Of each of 3 layers: 4 matrices of 64 x 64, 2 of 64 x 96; scores and their sum.
    matrices = 3 * (4 * 64 * 64 + 2 * 64 * 96)
    assert flops_per_text(spec, 10) == 10 * 2 * matrices + 3 * 2 * (2 * 10 * 10 * 64)
    assert "texts/s" in encoder_table(spec, settings, DATASHEETS["h200"], "float32")
