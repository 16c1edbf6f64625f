"""From what a person calls a model to the folder or file that holds it. Knows the hub, not the model.

Of a hub repository only the weights that will be read are downloaded, with its JSON files and chat
template, all of one commit. Files that run code when loaded are not (`.py`), or only when asked for
by `load_format` (`.bin`). Proxy, token, cache folder and offline mode are those of
`huggingface_hub`, which reads its own HF_* variables.
"""

import contextlib
import errno
import glob
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path, PurePosixPath

from quire.config.errors import ConfigError, ModelError
from quire.config.settings import DEMO_MODEL, LoadFormat
from quire.pipelines.architectures.config_file import ConfigFile
from quire.pipelines.embedding_config import pooling_files
from quire.pipelines.tokenizer import TOOL_TEMPLATE
from quire.pipelines.weights.formats import SINGLE_FILES, WeightsFormat, format_of
from quire.pipelines.weights.gguf_file import gguf_files

logger = logging.getLogger(__name__)

MAX_WORKERS = 8
"""Files downloaded at once."""
_TEXTS = ("*.json", "*.jinja")
"""At the top of a repository; subfolders hold other formats."""

_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_HUB_ID = re.compile(_ID, re.ASCII)
_PART = r"[\w(\[][\w.,+=@~ ()\[\]-]*"
_HUB_FILE = re.compile(rf"({_ID}):((?:{_PART}/)*{_PART}\.gguf)", re.ASCII)
_INDEX = ".index.json"
_MAX_ID = 512


@dataclass(frozen=True)
class HuggingFaceRepo:
    """A model repository on a hub, at one revision (branch, tag or commit).

    `endpoint` and `cache_dir` default to those of `huggingface_hub`.

    Raises (all methods):
        ModelError: the repository or revision does not exist or is not open to this token, it has
            not the weights that are wanted, or the hub or the disk fails.
    """

    repo_id: str
    revision: str = "main"
    endpoint: str | None = None
    cache_dir: Path | None = None

    def commit(self) -> str:
        """The commit that the revision is at, as the hub says now."""
        from huggingface_hub import HfApi

        with self._sentences():
            info = HfApi(endpoint=self.endpoint).model_info(self.repo_id, revision=self.revision)
        return info.sha or self.revision

    def pinned(self, commit: str) -> "HuggingFaceRepo":
        """The repository at `commit`."""
        return replace(self, revision=commit)

    def cached(self, load_format: LoadFormat = "auto") -> Path | None:
        """The snapshot folder when all that will be read is in the cache; asks no network."""
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        kinds = _KINDS[load_format]
        # The library knows what else the repository has: a file missing here is an error there.
        deciding = [SINGLE_FILES[kind] for kind in kinds if kind in SINGLE_FILES]
        deciding += ["*.gguf"] if kinds == (WeightsFormat.gguf,) else []
        try:
            folder = self._snapshot([*_TEXTS, *deciding], local_files_only=True)
        except (LocalEntryNotFoundError, HFValidationError):
            return None
        sizes = {path.name: 0 for path in folder.iterdir() if path.exists()}
        try:
            names = self._weights(load_format, folder, sizes)
        except ModelError:
            return None
        is_complete = all(name in sizes for name in names)
        is_complete &= all((folder / name).is_file() for name in pooling_files(folder))
        return folder if is_complete else None

    def download(self, load_format: LoadFormat = "auto") -> Path:
        """The snapshot folder, after fetching what the cache lacks; resumes what was cut off."""
        self.commit()
        with self._sentences():
            # Under the revision's name, so that the cache keeps which commit that was.
            folder = self._snapshot(_TEXTS)
        pinned = self.pinned(folder.name)
        sizes = pinned.sizes()
        names = self._weights(load_format, folder, sizes)
        for name in names:
            if name not in sizes:
                raise self._error(f"has no file {name}, which its index lists")
        others = (*pooling_files(folder), TOOL_TEMPLATE)
        names = [*names, *(name for name in others if name in sizes)]
        missing = {name: sizes[name] for name in names if not (folder / name).exists()}
        if missing:
            pinned.download_files(missing)
        return folder

    def download_gguf(self, name: str) -> Path:
        """A .gguf file, by its path in the repository; from the cache when it is there."""
        from huggingface_hub import try_to_load_from_cache

        # A model that was split has the name of its first file.
        names = [path.as_posix() for path in gguf_files(Path(name))]
        with self._sentences():
            found = [
                try_to_load_from_cache(self.repo_id, part, self.cache_dir, self.revision)
                for part in names
            ]
        if isinstance(found[0], str) and all(isinstance(path, str) for path in found):
            return Path(found[0])
        sizes = self.pinned(self.commit()).sizes()
        for part in names:
            if part not in sizes:
                raise self._error(f"has no file {part} at revision '{self.revision}'")
        return self.download_files({part: sizes[part] for part in names}) / name

    def download_files(
        self, sizes: Mapping[str, int], *, force: bool = False, max_workers: int = MAX_WORKERS
    ) -> Path:
        """Fetch the files that `sizes` names, in parallel; what is left of them must fit the disk.

        `force` fetches again what the cache has.
        """
        self._check_room(sum(sizes.values()))
        size = _size(sizes.values())
        logger.info("downloading %d files of %s, %s", len(sizes), self.repo_id, size)
        with self._sentences():
            patterns = [glob.escape(name) for name in sizes]
            return self._snapshot(patterns, force=force, max_workers=max_workers)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file of the repository, by its path there."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        with self._sentences():
            api = HfApi(endpoint=self.endpoint)
            tree = api.list_repo_tree(self.repo_id, recursive=True, revision=self.revision)
            return {item.path: item.size for item in tree if isinstance(item, RepoFile)}

    def _weights(
        self, load_format: LoadFormat, folder: Path, sizes: Mapping[str, int]
    ) -> Sequence[str]:
        """The files of weights to read, of those in `sizes`; `folder` has the indexes."""
        kinds = _KINDS[load_format]
        for kind in kinds:
            if names := _files_of(kind, folder, sizes):
                if kind is WeightsFormat.gguf:
                    _refuse_several(self.repo_id, f"{self.repo_id}:{names[0]}", names)
                return names
        if not kinds:
            return ()
        wanted = " or ".join(f".{kind.value}" for kind in kinds)
        hint = "; other formats can run code when read" if load_format == "auto" else ""
        raise self._error(f"has no {wanted} weights{hint}")

    def _snapshot(
        self,
        patterns: Sequence[str],
        *,
        local_files_only: bool = False,
        force: bool = False,
        max_workers: int = MAX_WORKERS,
    ) -> Path:
        from huggingface_hub import snapshot_download  # slow to import, not needed for a folder

        folder = snapshot_download(
            self.repo_id,
            revision=self.revision,
            endpoint=self.endpoint,
            cache_dir=self.cache_dir,
            force_download=force,
            allow_patterns=list(patterns),
            ignore_patterns=None if any("/" in pattern for pattern in patterns) else ["*/*"],
            local_files_only=local_files_only,
            max_workers=max_workers,
        )
        return Path(str(folder))

    def _check_room(self, needed: int) -> None:
        from huggingface_hub import constants

        cache = Path(self.cache_dir or constants.HF_HUB_CACHE)
        blobs = cache / f"models--{self.repo_id.replace('/', '--')}" / "blobs"
        begun = sum(path.stat().st_size for path in blobs.glob("*.incomplete"))
        place = next(path for path in (cache, *cache.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        if needed - begun > free:
            raise self._error(
                f"needs {_size([needed - begun])}, and {_size([free])} are free in {cache}"
            )

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        """What the library raises, as the one sentence that says what a person can do."""
        from huggingface_hub import errors

        try:
            yield
        except errors.GatedRepoError:
            raise self._error(
                "is gated: ask for access on its hub page, then set HF_TOKEN or run `hf auth login`"
            ) from None
        except errors.RepositoryNotFoundError:
            raise self._error("is not on the hub, or is private and HF_TOKEN is missing") from None
        except errors.HFValidationError:
            raise self._error("is no name that a hub has") from None
        except UnicodeEncodeError:
            raise self._error("cannot be downloaded: HF_TOKEN is not ASCII") from None
        except errors.RevisionNotFoundError:
            raise self._error(f"has no revision '{self.revision}'") from None
        # OSError: the disk is full, say. HTTPError is that of httpx or httpx2, which the hub's
        # library has by its version.
        except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]
            reason = error.__cause__ or error
            if errors.OfflineModeIsEnabled in (type(error), type(reason)):
                raise self._error("is not in the cache, and HF_HUB_OFFLINE is set") from None
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._error("cannot be downloaded: the disk is full") from None
            raise self._error(f"cannot be downloaded: {_one_line(reason)}") from None

    def _error(self, what: str) -> ModelError:
        return ModelError(f"model: {self.repo_id} {what}")


_KINDS: Mapping[LoadFormat, tuple[WeightsFormat, ...]] = {
    "auto": (WeightsFormat.safetensors, WeightsFormat.gguf),
    "safetensors": (WeightsFormat.safetensors,),
    "gguf": (WeightsFormat.gguf,),
    "pytorch": (WeightsFormat.pytorch,),
    "random": (),
}
"""What each `load_format` reads, the first that is there."""


def _files_of(kind: WeightsFormat, folder: Path, sizes: Mapping[str, int]) -> Sequence[str]:
    if kind is WeightsFormat.gguf:
        return [name for name in sorted(sizes) if "/" not in name and format_of(name) is kind]
    single = SINGLE_FILES[kind]
    if single in sizes:
        return (single,)
    index = folder / f"{single}{_INDEX}"
    if index.name not in sizes or not index.is_file():
        return ()
    weight_map = ConfigFile.read(index).section("weight_map")
    names = sorted({weight_map.string(name) for name in weight_map})
    for name in names:
        if PurePosixPath(name).name != name or format_of(name) is not kind:
            raise ModelError(
                f"{index}: weight_map: expected names of {kind.value} files, found {name!r}"
            )
    return names


def _refuse_several(model: str, example: str, names: Sequence[str]) -> None:
    """Refuse .gguf files that are not the parts of one model."""
    if len(names) > 1 and [path.name for path in gguf_files(Path(names[0]))] != list(names):
        raise ModelError(
            f"model: {model} has several .gguf files; give one, as {example}, of {', '.join(names)}"
        )


def _gguf_of(folder: Path, load_format: LoadFormat) -> Path:
    """The .gguf file in `folder` if that is what will be read, else `folder`."""
    for kind in _KINDS[load_format]:
        sizes = {path.name: 0 for path in folder.iterdir()}
        if names := _files_of(kind, folder, sizes):
            if kind is not WeightsFormat.gguf:
                break
            _refuse_several(str(folder), str(folder / names[0]), names)
            return folder / names[0]
    return folder


def download_weight_files(
    huggingface_model_id: str,
    filenames: Sequence[str],
    revision: str | None = None,
    force_download: bool = False,
    max_workers: int = MAX_WORKERS,
    *,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> list[Path]:
    """Files of a hub repository, by their paths there, all of one commit, fetched in parallel; those in the
    cache only if `force_download`.

    Raises:
        ModelError: as of `HuggingFaceRepo`, or the repository has no such file.
    """
    repo = HuggingFaceRepo(huggingface_model_id, revision or "main", endpoint, cache_dir)
    repo = repo.pinned(repo.commit())
    sizes = repo.sizes()
    for name in filenames:
        if name not in sizes:
            raise ModelError(f"model: {huggingface_model_id} has no file {name}")
    wanted = {name: sizes[name] for name in filenames}
    folder = repo.download_files(wanted, force=force_download, max_workers=max_workers)
    return [folder / name for name in filenames]


def validate_hf_repo_access(
    repo_id: str, revision: str | None = None, *, endpoint: str | None = None
) -> None:
    """Raise the ModelError that says why the repository cannot be downloaded, if it cannot."""
    HuggingFaceRepo(repo_id, revision or "main", endpoint).commit()


def resolve_model(
    model: str,
    revision: str | None = None,
    load_format: LoadFormat = "auto",
    *,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """The folder or .gguf file of `model`: the package's demo model, what is at a local path, a hub
    repository (`org/name`), or one file of it (`org/name:file.gguf`).

    A complete snapshot in the cache is used without asking the hub, so that a restart needs no
    network and serves the same weights.

    Raises:
        ModelError: one sentence that says which of these failed and why.
        ConfigError: `load_format` is none that a .gguf file has.
    """
    # Path("") would be the working directory.
    path = Path(os.path.expanduser(model)) if model else None
    is_local = model == DEMO_MODEL or (path is not None and os.path.exists(path))
    if is_local and revision is not None:
        raise ModelError(f"revision: {revision} was given, but {model} is not on the hub")
    if model == DEMO_MODEL:
        return _demo_folder()
    if model.endswith(".gguf") and load_format not in ("auto", "gguf"):
        raise ConfigError(f"load_format: {load_format} was given, but {model} is a .gguf file")
    if is_local and path is not None:
        if path.is_file() and path.suffix != ".gguf":
            raise ModelError(
                f"model: {model} is a file; give the folder that holds config.json, or a .gguf file"
            )
        return _gguf_of(path, load_format) if path.is_dir() else path
    repo_id = model.partition(":")[0]
    if len(model) <= _MAX_ID and ".." not in repo_id and "--" not in repo_id:
        if _HUB_ID.fullmatch(model):
            repo = HuggingFaceRepo(model, revision or "main", endpoint, cache_dir)
            folder = repo.cached(load_format) or repo.download(load_format)
            return _gguf_of(folder, load_format)
        if found := _HUB_FILE.fullmatch(model):
            repo = HuggingFaceRepo(found[1], revision or "main", endpoint, cache_dir)
            return repo.download_gguf(found[2])
    raise ModelError(
        f"model: {model!r} is neither an existing folder or .gguf file, nor {DEMO_MODEL}, "
        "nor a hub id of the form org/name or org/name:file.gguf"
    )


def _demo_folder() -> Path:
    folder = Path(str(resources.files("quire.pipelines") / "demo_model"))
    if not (folder / "config.json").is_file():
        raise ModelError(f"model: {DEMO_MODEL} is missing from this installation: {folder}")
    return folder


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _size(sizes: Iterable[int]) -> str:
    return f"{sum(sizes) / 1e9:.1f} GB"
