import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from fake_hub import COMMIT, FILES, WANTED, Hub, running_hub

from quire.config.errors import ConfigError, ModelError
from quire.pipelines.embedding_config import read_embedding_config
from quire.pipelines.hf import HuggingFaceRepo, resolve_model
from quire.pipelines.tokenizer import TOOL_TEMPLATE


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with running_hub() as hub:
        yield hub


def test_the_demo_model_is_in_the_package() -> None:
    folder = resolve_model("quire-demo")

    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_downloads_weights_and_texts_but_nothing_that_runs_code(hub: Hub, tmp_path: Path) -> None:
    folder = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert {path.name for path in folder.iterdir()} == WANTED
    assert all((folder / name).read_bytes() == FILES[name] for name in WANTED)


def test_the_pooling_of_an_embedding_model_comes_along(hub: Hub, tmp_path: Path) -> None:
    step = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
    hub.files["modules.json"] = json.dumps([step]).encode()
    hub.files["1_Pooling/config.json"] = b'{"pooling_mode_mean_tokens": true}'

    folder = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert read_embedding_config(folder, "cls").pooling == "mean"
    assert not (folder / "onnx").exists()
    (folder / "1_Pooling" / "config.json").unlink()
    again = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)
    assert (again / "1_Pooling" / "config.json").is_file()


def test_the_template_for_tools_comes_along(hub: Hub, tmp_path: Path) -> None:
    hub.files[TOOL_TEMPLATE] = b"{{ tools }}"
    hub.files["additional_chat_templates/rag.jinja"] = b"{{ documents }}"

    folder = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert (folder / TOOL_TEMPLATE).read_bytes() == b"{{ tools }}"
    assert len(list((folder / TOOL_TEMPLATE).parent.iterdir())) == 1


def test_a_cached_snapshot_is_used_without_asking_the_hub(hub: Hub, tmp_path: Path) -> None:
    first = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)
    hub.requests.clear()

    again = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert again == first
    assert hub.requests == []


def test_a_snapshot_that_lacks_a_file_is_completed(hub: Hub, tmp_path: Path) -> None:
    folder = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)
    (folder / "model.safetensors").unlink()

    again = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert (again / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    # The library keeps whole chunks of 10 MiB.
    hub.files["model.safetensors"] = bytes(range(256)) * 4 * 1024 * 12
    hub.cut_after = 11 * 1024**2

    folder = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert f"RANGE {10 * 1024**2} model.safetensors" in hub.requests
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_named_revision_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    folder = resolve_model("org/model", "v1", endpoint=hub.endpoint, cache_dir=tmp_path)

    assert folder.name == COMMIT
    assert "GET /api/models/org/model/revision/v1" in hub.requests


@pytest.mark.parametrize(
    ("model", "revision", "sentence"),
    [
        ("org/gated", None, "org/gated is gated"),
        ("org/missing", None, "org/missing is not on the hub, or is private"),
        ("org/model", "v9", "org/model has no revision 'v9'"),
        ("org/broken", None, "org/broken cannot be downloaded: .*500"),
    ],
)
def test_each_refusal_of_the_hub_has_its_sentence(
    hub: Hub, tmp_path: Path, model: str, revision: str | None, sentence: str
) -> None:
    with pytest.raises(ModelError, match=f"^model: {sentence}") as caught:
        resolve_model(model, revision, endpoint=hub.endpoint, cache_dir=tmp_path)

    assert "\n" not in str(caught.value)


def test_a_repository_without_safetensors_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"], hub.files["consolidated.safetensors"]

    with pytest.raises(ModelError, match=r"org/model has no \.safetensors or \.gguf weights"):
        resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)


def test_a_hub_that_cannot_be_reached_is_named_as_such(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"org/model cannot be downloaded: .*[Cc]onnect"):
        resolve_model("org/model", endpoint="http://127.0.0.1:9", cache_dir=tmp_path)


def test_offline_and_not_cached_says_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(
        ModelError, match="org/model is not in the cache, and HF_HUB_OFFLINE is set"
    ):
        resolve_model("org/model", cache_dir=tmp_path)


def test_offline_uses_the_cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_model("org/model", endpoint=hub.endpoint, cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    assert HuggingFaceRepo("org/model", cache_dir=tmp_path).cached() == folder


@pytest.mark.parametrize(
    "model",
    [
        *("no-such-folder", "./models/llama", "/models/llama", "a/b/c", "org/../x", "", "~/nope"),
        *("org/name:", "org/name:x.bin", "org/name:../x.gguf", "org/name:/x.gguf", "a" * 5000),
        *("org/name:.x.gguf", "org/name:a//x.gguf", "org/name:a/./x.gguf", "org/na\0me"),
        *("org/name:a\\x.gguf", "org/name:-x.gguf", "org/name:x.gguf\n", "name:x.gguf"),
    ],
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(model: str) -> None:
    with pytest.raises(
        ModelError, match="is neither an existing folder or .gguf file, nor quire-demo, nor a hub"
    ):
        resolve_model(model)


def test_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()

    with pytest.raises(ModelError, match="is a file; give the folder .*, or a .gguf file"):
        resolve_model(str(path))


def test_a_gguf_file_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()

    assert resolve_model(str(path)) == path
    with pytest.raises(ConfigError, match="load_format: safetensors was given, but"):
        resolve_model(str(path), load_format="safetensors")


def test_a_revision_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="revision: v1 was given, but .* is not on the hub"):
        resolve_model(str(tmp_path), "v1")
