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

from quire.config.errors import ConfigError, ModelError
from quire.config.settings import ModelSettings
from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.served import served_architectures
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


def load(folder: Path, **settings: Any) -> LoadedModel:
    values = {"page_size": PAGE_SIZE, "device": "cpu", "threads": 1, "kv_cache_pages": 64}
    made = ModelSettings.model_validate(
        {**values, "engine": "huggingface", "max_length": 80, **settings}
    )
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

    with pytest.raises(ConfigError, match=message):
        load(tmp_path, **settings)


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
