"""`--engine huggingface`: transformers' own models over our pages, schedules and steps."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.driver import PAGE_SIZE, Driver, make_context
from parity.random_models import make_random_model
from safetensors.torch import load_file, save_file

from quire.config.errors import ConfigError, ModelError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.served import HUGGING_FACE, served_architectures
from quire.pipelines.worker.load import LoadedModel, load_runner

MODELS: dict[str, dict[str, Any]] = {
    "Helium": {},
    "Nemotron": {},
    "OPT": {},
    "Gemma2": {"sliding_window": 20},
    "GptOss": {
        "num_local_experts": 4,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
LENGTH = 70


def settings_of(**settings: Any) -> ModelSettings:
    values = {"page_size": PAGE_SIZE, "device": "cpu", "threads": 1, "kv_cache_pages": 64}
    return ModelSettings.model_validate(
        {**values, "engine": "huggingface", "max_length": 80, **settings}
    )


def load(folder: Path, **settings: Any) -> LoadedModel:
    made = settings_of(**settings)
    rows = served_architectures(made)
    spec = load_model_spec(folder, rows)
    return load_runner(made, folder, spec, lambda phase, fraction: None, architectures=rows)


@pytest.mark.parametrize("family", MODELS)
def test_logits_equal_transformers_however_the_steps_are_cut(family: str, tmp_path: Path) -> None:
    model = make_random_model(family, **MODELS[family])
    model.save_pretrained(tmp_path)
    history = random.Random(family).choices(range(211), k=LENGTH)
    with torch.no_grad():
        expected = model(torch.tensor([history])).logits[0].float()
    loaded = load(tmp_path)

    for steps in ([[(0, LENGTH)]], [[(0, 30)], [(0, 1)], [(0, 1)], [(0, LENGTH - 32)]]):
        (logits,) = Driver(loaded).logits([history], steps)
        assert (logits - expected).abs().max() <= 1e-4
        assert expected.abs().max() > 1


def test_a_batch_gives_each_context_what_it_has_alone(tmp_path: Path) -> None:
    make_random_model("Helium").save_pretrained(tmp_path)
    histories = [random.Random(seed).choices(range(211), k=40) for seed in range(3)]
    loaded = load(tmp_path)
    steps = [[(0, 20), (1, 40), (2, 13)], [(0, 1), (2, 27)], [(0, 19)]]

    together = Driver(loaded).logits(histories, steps)

    for history, logits in zip(histories, together, strict=True):
        (alone,) = Driver(loaded).logits([history], [[(0, 40)]])
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)


def test_generated_tokens_equal_transformers(tmp_path: Path) -> None:
    model = make_random_model("Nemotron")
    model.save_pretrained(tmp_path)
    prompt = random.Random(0).choices(range(3, 211), k=24)
    with torch.no_grad():
        output = model.generate(
            torch.tensor([prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False
        )
    context = make_context(prompt, ignore_eos=False, eos_token_ids=(2,), min_new_tokens=20)

    Driver(load(tmp_path)).run([context], [[(0, 24)], *([(0, 1)] for _ in range(19))])

    assert context.tokens.all.tolist() == output[0].tolist()


@pytest.mark.parametrize("family", ["Mamba", "Bloom"])
def test_models_that_attend_otherwise_are_refused(family: str, tmp_path: Path) -> None:
    make_random_model(family, num_hidden_layers=1).save_pretrained(tmp_path)

    with pytest.raises(ModelError, match="does not attend through transformers' attention"):
        load(tmp_path)


def test_a_model_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    make_random_model("Helium").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))

    with pytest.raises(ModelError, match="transformers cannot load it: .*unheard_of"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_format": "random"}, "load_format: --engine huggingface reads safetensors"),
        ({"quantization": "int8"}, "quantization: --engine huggingface serves plain numbers"),
    ],
)
def test_options_of_our_own_engine_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_random_model("Helium").save_pretrained(tmp_path)
    spec = load_model_spec(tmp_path, (HUGGING_FACE,))
    made = settings_of().model_copy(update=settings)

    with pytest.raises(ConfigError, match=message):
        load_runner(made, tmp_path, spec, lambda phase, fraction: None)


def test_code_in_the_folder_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    make_random_model("Helium").save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (tmp_path / "config.json").write_text(json.dumps(config))

    load(tmp_path)

    assert not marker.exists()


def test_a_mask_of_the_models_own_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the model added a bias to its scores: what our pages give is not what it means."""
    from quire.pipelines.huggingface.paged_attention import PagedAttention

    make_random_model("Helium").save_pretrained(tmp_path)
    original: Callable[..., Any] = PagedAttention.__call__

    def biased(self: PagedAttention, module: Any, query: Any, *rest: Any, **options: Any) -> Any:
        return original(self, module, query * 1.5, *rest, **options)

    monkeypatch.setattr(PagedAttention, "__call__", biased)

    with pytest.raises(ModelError, match="expected transformers' own logits within"):
        load(tmp_path)


def edited(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of the checkpoint."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


QUERY = "model.layers.0.self_attn.q_proj.weight"


def test_a_missing_weight_is_refused_not_made_up(tmp_path: Path) -> None:
    make_random_model("Helium").save_pretrained(tmp_path)
    edited(tmp_path, lambda tensors: tensors.pop(QUERY))

    with pytest.raises(ModelError, match=f"{QUERY}: expected a tensor of HeliumForCausalLM"):
        load(tmp_path)


def test_a_tensor_that_nothing_reads_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_random_model("Helium").save_pretrained(tmp_path)
    edited(tmp_path, lambda tensors: tensors.update({"surplus.weight": torch.ones(2)}))

    load(tmp_path)

    assert "does not read 1 of the tensors, surplus.weight the first" in caplog.text


@pytest.mark.parametrize("size", [100, -100])
def test_a_damaged_file_is_one_line(size: int, tmp_path: Path) -> None:
    make_random_model("Helium").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(ModelError, match="transformers cannot load it: Error while deserial"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("pad_token_id", 9999), ("hidden_act", "unheard_of"), ("num_hidden_layers", "3")],
)
def test_a_config_that_transformers_trips_over_is_one_line(
    key: str, value: object, tmp_path: Path
) -> None:
    """As assertions, missing keys and errors of its own classes."""
    make_random_model("Helium").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    spec = load_model_spec(tmp_path, (HUGGING_FACE,))
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))

    with pytest.raises(ModelError, match="transformers cannot load it: ") as caught:
        load_runner(settings_of(), tmp_path, spec, lambda phase, fraction: None)

    assert "\n" not in str(caught.value)


def test_pickles_alone_are_refused_in_one_line(tmp_path: Path) -> None:
    model = make_random_model("Helium")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")

    with pytest.raises(ModelError, match="no file named model.safetensors found"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("Phimoe", {"sliding_window": 30, "num_local_experts": 4}),
        ("Doge", {"keep_window_size": 30}),
    ],
)
def test_windows_that_masks_alone_have_are_refused(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """Longer than the probe of the self-test, which sees nothing of them."""
    make_random_model(family, **fields).save_pretrained(tmp_path)

    with pytest.raises(ModelError, match="by a mask alone|does not run with our attention"):
        load(tmp_path)


def test_layers_that_do_not_attend_are_refused(tmp_path: Path) -> None:
    kinds = ["full_attention", "full_attention", "conv"]
    make_random_model("Lfm2", layer_types=kinds).save_pretrained(tmp_path)

    with pytest.raises(ModelError, match="interface in every layer; it cannot be served"):
        load(tmp_path)


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_longrope_is_served_as_far_as_its_factors_do_not_change(key: str, tmp_path: Path) -> None:
    """transformers takes the factors of the longest context for all that share a step."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    original = {"original_max_position_embeddings": 40}
    parameters = {**rope, **original, "rope_theta": 10000.0, "factor": 4.0}
    model = make_random_model("Phi3", pad_token_id=0, rope_parameters=parameters, **original)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[key] = config.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert load_model_spec(tmp_path, (HUGGING_FACE,)).max_position_embeddings == 40
    with pytest.raises(ConfigError, match="max_length"):
        load(tmp_path)


def test_two_models_in_a_process_keep_their_own_pages(tmp_path: Path) -> None:
    models = [make_random_model("Helium", seed=seed) for seed in range(2)]
    loaded = []
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / str(number))
        loaded.append(load(tmp_path / str(number)))
    history = random.Random(0).choices(range(211), k=30)

    for model, ours in zip(models, loaded, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([history])).logits[0]
        (logits,) = Driver(ours).logits([history], [[(0, 20)], [(0, 10)]])
        assert (logits - expected).abs().max() <= 1e-4
