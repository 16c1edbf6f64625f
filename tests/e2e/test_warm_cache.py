"""`quire warm-cache` against a hub on localhost."""

import os
import subprocess
import sys
from pathlib import Path

from fake_hub import COMMIT, FILES, running_hub


def test_a_model_or_one_file_is_fetched_and_found_again_offline(tmp_path: Path) -> None:
    def warm(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "quire.server", "warm-cache", "--model", *arguments],
            env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    with running_hub() as hub:
        hub.files |= {"a.gguf": b"a", "b/c.gguf": b"c"}
        folder = warm("org/model", HF_ENDPOINT=hub.endpoint)
        file = warm("org/model:b/c.gguf", HF_ENDPOINT=hub.endpoint)
        missing = warm("org/model:d.gguf", HF_ENDPOINT=hub.endpoint)

    path = Path(folder.stdout.strip())
    assert path.name == COMMIT
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not (path / "a.gguf").exists()
    assert Path(file.stdout.strip()).read_bytes() == b"c"
    assert missing.returncode == 3
    assert missing.stderr.strip() == (
        "quire: error: model: org/model has no file d.gguf at revision 'main'"
    )
    assert warm("org/model", HF_HUB_OFFLINE="1").stdout == folder.stdout
    gguf = warm("org/model", "--load-format", "gguf", HF_HUB_OFFLINE="1")
    assert gguf.returncode == 3
    assert "org/model is not in the cache, and HF_HUB_OFFLINE is set" in gguf.stderr
