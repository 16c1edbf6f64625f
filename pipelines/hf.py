"""From what a person calls a model to the folder that holds it. Knows the hub, not the model.

Files that run code when loaded (`.bin`, `.pt`, `.py`) are never downloaded. Proxy, token, cache
folder and offline mode are those of `huggingface_hub`, which reads its own HF_* variables.
"""

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from quire.config.errors import ModelError
from quire.config.settings import DEMO_MODEL

ALLOW_PATTERNS = ("*.safetensors", "*.json", "*.jinja")
IGNORE_PATTERNS = ("*/*", "consolidated*.safetensors")
"""Subfolders hold other formats; consolidated files repeat the weights in another layout."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class HuggingFaceRepo:
    """A model repository on a hub, at one revision (branch, tag or commit).

    `endpoint` and `cache_dir` default to those of `huggingface_hub`.
    """

    repo_id: str
    revision: str = "main"
    endpoint: str | None = None
    cache_dir: Path | None = None

    def cached(self) -> Path | None:
        """The snapshot folder when every file of it is in the cache; asks no network."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return self._snapshot(local_files_only=True)
        except LocalEntryNotFoundError:
            return None

    def download(self) -> Path:
        """The snapshot folder, after fetching what the cache lacks; resumes what was cut off.

        Raises:
            ModelError: the repository or revision does not exist or is not open to this token, it
                has no safetensors weights, or the hub or the disk fails.
        """
        from huggingface_hub import errors

        try:
            folder = self._snapshot(local_files_only=False)
        except errors.GatedRepoError:
            raise self._error(
                "is gated: ask for access on its hub page, then set HF_TOKEN or run `hf auth login`"
            ) from None
        except errors.RepositoryNotFoundError:
            raise self._error("is not on the hub, or is private and HF_TOKEN is missing") from None
        except errors.RevisionNotFoundError:
            raise self._error(f"has no revision '{self.revision}'") from None
        except errors.LocalEntryNotFoundError as error:
            if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
                raise self._error("is not in the cache, and HF_HUB_OFFLINE is set") from None
            reason = error.__cause__ or error
            raise self._error(f"cannot be downloaded: {_one_line(reason)}") from None
        # OSError: the disk is full, say. HTTPError is that of httpx or httpx2, which the hub's
        # library has by its version.
        except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]
            raise self._error(f"cannot be downloaded: {_one_line(error)}") from None
        if not any(folder.glob("*.safetensors")):
            raise self._error("has no .safetensors weights; other formats can run code when read")
        return folder

    def _snapshot(self, *, local_files_only: bool) -> Path:
        from huggingface_hub import snapshot_download  # slow to import, not needed for a folder

        folder = snapshot_download(
            self.repo_id,
            revision=self.revision,
            endpoint=self.endpoint,
            cache_dir=self.cache_dir,
            allow_patterns=list(ALLOW_PATTERNS),
            ignore_patterns=list(IGNORE_PATTERNS),
            local_files_only=local_files_only,
        )
        return Path(str(folder))

    def _error(self, what: str) -> ModelError:
        return ModelError(f"model: {self.repo_id} {what}")


def resolve_model(
    model: str,
    revision: str | None = None,
    *,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """The folder of `model`: the package's demo model, a local folder, or a hub repository.

    A complete snapshot in the cache is used without asking the hub, so that a restart needs no
    network and serves the same weights.

    Raises:
        ModelError: one sentence that says which of these failed and why.
    """
    # Path("") would be the working directory.
    is_local = model == DEMO_MODEL or (model != "" and Path(model).expanduser().is_dir())
    if is_local and revision is not None:
        raise ModelError(f"revision: {revision} was given, but {model} is not on the hub")
    if model == DEMO_MODEL:
        return _demo_folder()
    if is_local:
        return Path(model).expanduser()
    if model and Path(model).expanduser().exists():
        raise ModelError(f"model: {model} is a file; give the folder that holds config.json")
    if not _HUB_ID.fullmatch(model) or ".." in model or "--" in model:
        raise ModelError(
            f"model: {model!r} is neither an existing folder, nor {DEMO_MODEL}, "
            "nor a hub id of the form org/name"
        )
    repo = HuggingFaceRepo(model, revision or "main", endpoint, cache_dir)
    return repo.cached() or repo.download()


def _demo_folder() -> Path:
    folder = Path(str(resources.files("quire.pipelines") / "demo_model"))
    if not (folder / "config.json").is_file():
        raise ModelError(f"model: {DEMO_MODEL} is missing from this installation: {folder}")
    return folder


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
