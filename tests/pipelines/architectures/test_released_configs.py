"""The config.json of released models, as their authors wrote it: read, and counted.

`released_configs.json` has the keys of each that say something of the computation, and the
parameters that its model card states, in billions.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from quire.pipelines.architectures.load import load_model_spec
from quire.pipelines.architectures.spec import ModelSpec

RELEASED: dict[str, Any] = json.loads(
    Path(__file__).with_name("released_configs.json").read_text(encoding="utf-8")
)


def read(folder: Path, config: dict[str, Any]) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(config))
    return load_model_spec(folder)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_config_means_what_transformers_makes_of_it(name: str, tmp_path: Path) -> None:
    config = RELEASED[name]["config"]

    spec = read(tmp_path, config)

    assert spec.num_parameters / 1e9 == pytest.approx(RELEASED[name]["billions"], rel=2e-3)
    # transformers 5 refuses "su" of its own making.
    is_su = (config.get("rope_scaling") or {}).get("type") == "su"
    if not is_su:
        written = CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
        kept = {
            key: config[key] for key in ("architectures", "quantization_config") if key in config
        }
        assert read(tmp_path, {**written.to_dict(), **kept}) == spec
