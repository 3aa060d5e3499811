"""Model versions in MLflow: one registered model, two aliases.

A new version enters as `challenger`; `champion` is what portraits are made with, and moves by one write, told beforehand in the
history. Each version carries the hash of its model's files, so that the same folder registered twice is one version. Its folder is one
that MLflow's own client loads (diffsfsr.portrait.pyfunc): the model in a folder of its own, and beside it what describes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from assets.stores import history
from assets.stores.runs import Runs, unless_there
from diffsfsr import tables
from diffsfsr.errors import InputError, NotReady
from diffsfsr.portrait import shipped
from diffsfsr.portrait.pyfunc import MODEL
from diffsfsr.portrait.words import WORD_TABLE

CHALLENGER, CHAMPION = "challenger", "champion"
_MAKE = "run `diffsfsr run train` and `diffsfsr run promote`"
HASH_TAG = "content_sha256"
_ANY = -1  # no version's number
_DIGITS = 18  # of a version: more are no 64-bit number


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. `path` is its model's folder on this machine, None in a listing where it has yet to be downloaded."""

    version: int
    path: Path | None
    tags: dict[str, str]
    aliases: tuple[str, ...]
    created: float  # seconds since 1970, UTC
    run_id: str | None
    source: str

    @property
    def folder(self) -> Path:
        """`path`, of a version that was resolved."""
        if self.path is None:
            raise NotReady(f"registry: the files of model version {self.version} are not on this machine; resolve it first")
        return self.path


class Registry(Runs):
    """The runs of a store and the versions of its model, whose files are found on this machine or downloaded to `cache`."""

    def __init__(
        self, tracking_uri: str, artifact_root: str | Path | None = None, cache: Path | None = None, name: str = "diffsfsr"
    ) -> None:
        super().__init__(tracking_uri, artifact_root, name)
        self.cache = cache or Path(os.environ.get("DIFFSFSR_HOME", ".diffsfsr")) / "models"

    def register(self, folder: Path, run_id: str, tags: Mapping[str, str] | None = None, beside: Path | None = None) -> int:
        """Store a model's folder with the run, the files of `beside` next to it, and give it a version, which becomes `challenger`.

        A folder whose content is a version's already stays that version; its tags are brought up to date. Returns the version.
        """
        if not folder.is_dir() or not any(p.is_file() for p in folder.rglob("*")):
            raise InputError(f"registry: {folder} is not a folder with a model's files")
        content = content_hash(folder)
        client, where = self._client, f"model-{content[:16]}"  # a run may register several; none overwrites another
        with self._lock:
            unless_there(lambda: client.create_registered_model(self.name))
            same = client.search_model_versions(f"name = '{self.name}' and tags.`{HASH_TAG}` = '{content}'")
            if same:
                newest = max(same, key=lambda mv: int(mv.version))
                version, root = int(newest.version), _local(newest.source)
                if root and not _model(root).is_dir():  # its files were lost: these are the same
                    self._store(str(newest.run_id), folder, where, beside)
                self.note(version, **(tags or {}))
            else:
                self._store(run_id, folder, where, beside)
                source = f"{client.get_run(run_id).info.artifact_uri}/{where}"
                every = {**(tags or {}), HASH_TAG: content}
                version = int(client.create_model_version(self.name, source, run_id=run_id, tags=every).version)
            client.set_registered_model_alias(self.name, CHALLENGER, str(version))
        return version

    def _store(self, run_id: str, folder: Path, where: str, beside: Path | None) -> None:
        """The files of a version, as MLflow's own client loads them. The weights are copied once, straight to their place."""
        from assets.stores.mlmodel import describe

        with tempfile.TemporaryDirectory() as made:
            describe(Path(made) / "described")
            for part in (Path(made) / "described", beside):
                if part is not None:
                    self._client.log_artifacts(run_id, str(part), where)
        self._client.log_artifacts(run_id, str(folder), f"{where}/{MODEL}")

    def resolve(self, alias: str | int) -> ModelVersion:
        """The version that an alias (or a version's number) names, with its files on this machine.

        Ask once per batch and note the version with every output. Raises NotReady when there is none.
        """
        nothing = NotReady(f"registry: there is no model {alias!r} in {_shown(self.tracking_uri)} yet; {_MAKE}")
        if self._empty or (str(alias).isdigit() and len(str(alias)) > _DIGITS):
            raise nothing
        from mlflow.exceptions import MlflowException

        try:
            if str(alias).isdigit():
                found = self._client.get_model_version(self.name, str(alias))
            else:
                found = self._client.get_model_version_by_alias(self.name, str(alias))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise nothing from error
        path = _model(_local(found.source) or self._download(found))
        if not path.is_dir():
            raise NotReady(f"registry: the files of model version {found.version} are gone from {path}; {_MAKE}")
        return _version(found, (), path) if str(alias).isdigit() else _version(found, (str(alias),), path)

    def _download(self, found: Any) -> Path:
        """The version's files under `cache`, whole or not at all."""
        from mlflow.artifacts import download_artifacts

        content = found.tags[HASH_TAG]
        target = self.cache / f"{self.name}-{content[:16]}"
        if target.is_dir():
            return target
        self.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache, prefix=".download-") as beside:
            fetched = Path(download_artifacts(artifact_uri=found.source, dst_path=beside, tracking_uri=self.tracking_uri))
            if content_hash(_model(fetched)) != content:
                raise NotReady(f"registry: the files of model version {found.version} are not those that were registered; {_MAKE}")
            try:
                fetched.rename(target)
            except OSError:  # another process was first, with the same content
                if not target.is_dir():
                    shutil.move(fetched, target)
        return target

    def challenge(self, version: int) -> ModelVersion:
        """Make a version the challenger. Raises NotReady if it is missing."""
        with self._lock:
            found = self.resolve(version)
            self._client.set_registered_model_alias(self.name, CHALLENGER, str(version))
        return found

    def promote(self, version: int, who: str, why: str, instead_of: int | None = _ANY) -> ModelVersion:
        """Make a version the champion, told in the history with when, who and why. Raises NotReady if it is missing.

        `instead_of` is the champion that it was compared with, None where there was none: NotReady where that is no longer so.
        """
        with self._lock:
            self.resolve(version)
            current = self.champion
            if instead_of not in (_ANY, current):
                now = "none" if current is None else f"version {current}"
                raise NotReady(f"registry: the champion has changed meanwhile and is {now}; run `diffsfsr run promote` again")
            if current != version:
                self._move(history.new("promote", current, version, who, why))
            return self.resolve(CHAMPION)

    def rollback(self, who: str, why: str) -> ModelVersion:
        """Make the champion's predecessor the champion again. Raises NotReady when there is none."""
        with self._lock:
            current = self.resolve(CHAMPION).version
            previous = history.predecessor(self.history(), current)
            if previous is None:
                raise NotReady(f"registry: version {current} has no champion before it; promote another by its number")
            self.resolve(previous)
            self._move(history.new("rollback", current, previous, who, why))
            return self.resolve(CHAMPION)

    def _move(self, event: history.Event) -> None:
        key, value = history.as_tag(event, len(self.history()) + 1)
        self._client.set_registered_model_tag(self.name, key, value)
        self._client.set_registered_model_alias(self.name, CHAMPION, str(event.after))  # the one write that counts

    def history(self) -> list[history.Event]:
        """Every change of the champion, oldest first."""
        found = self._registered()
        return history.read(found.tags, _alias(found)) if found else []

    @property
    def champion(self) -> int | None:
        """The champion's version, None where there is none."""
        found = self._registered()
        return _alias(found) if found else None

    def _registered(self) -> Any:
        """MLflow's registered model, None where there is none."""
        found = [] if self._empty else self._client.search_registered_models(f"name = '{self.name}'")
        return found[0] if found else None

    def forget(self, face_ids: Iterable[str]) -> int:
        """Erase faces from the labelled expressions that lie beside the versions' models; returns how many rows went."""
        gone, erased = pa.array(sorted(face_ids), pa.string()), 0
        for found in self.versions():
            erased += self._forget_in(found, gone)
        for copy in self.cache.glob(f"*/{WORD_TABLE}"):  # of versions that were downloaded
            _drop(copy, gone)
        return erased

    def _forget_in(self, found: ModelVersion, gone: pa.Array) -> int:
        run, where = found.run_id or "", found.source.rpartition("/")[2]
        if not run or all(file.path != f"{where}/{WORD_TABLE}" for file in self._client.list_artifacts(run, where)):
            return 0
        with tempfile.TemporaryDirectory() as there:
            file = Path(self._client.download_artifacts(run, f"{where}/{WORD_TABLE}", there))
            if erased := _drop(file, gone):
                self._client.log_artifact(run, str(file), where)
        return erased

    def note(self, version: int, **tags: str) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(self.name, str(version), key, value)

    def versions(self) -> list[ModelVersion]:
        """Every version, newest first, with its aliases; nothing is downloaded."""
        if self._empty:
            return []
        names: dict[str, list[str]] = {}
        for model in self._client.search_registered_models(f"name = '{self.name}'"):
            for alias, version in model.aliases.items():
                names.setdefault(str(version), []).append(alias)
        found = self._client.search_model_versions(f"name = '{self.name}'", max_results=10_000)
        listed = [_version(mv, tuple(sorted(names.get(str(mv.version), []))), _here(mv.source)) for mv in found]
        return sorted(listed, key=lambda mv: -mv.version)

    def note_content(self, content: str, **tags: str) -> None:
        """Set tags of every version whose model has that content hash."""
        for found in self.versions():
            if found.tags.get(HASH_TAG) == content:
                self.note(found.version, **tags)

    @property
    def _empty(self) -> bool:
        """Whether the store is a file that has yet to be made: there is no need to make it to find nothing in it."""
        return self.tracking_uri.startswith("sqlite:///") and not Path(self.tracking_uri.removeprefix("sqlite:///")).exists()


def content_hash(folder: Path) -> str:
    """sha256 over the relative names and the bytes of a model's files, in the order of the names, but for what is only said of it."""
    total = hashlib.sha256()
    said = {folder / name for name in shipped.SAID}
    for path in sorted((p for p in folder.rglob("*") if p.is_file() and p not in said), key=lambda p: p.relative_to(folder).as_posix()):
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").digest()
        total.update(path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape") + b"\0" + inner)
    return total.hexdigest()


def _version(found: Any, aliases: tuple[str, ...], path: Path | None) -> ModelVersion:
    when = found.creation_timestamp / 1000
    return ModelVersion(int(found.version), path, dict(found.tags), aliases, when, found.run_id or None, found.source)


def _local(source: str | None) -> Path | None:
    """The folder that an artifact's address names on this machine; None for a remote one."""
    address = urlsplit(source or "mlflow-artifacts:")
    if address.scheme in ("", "file"):
        return Path(unquote(address.path) if address.scheme else str(source))
    return None


def _drop(words: Path, gone: pa.Array) -> int:
    rows = tables.read(words)
    kept = rows.filter(pc.invert(pc.is_in(rows["face_id"], gone)))
    if kept.num_rows < rows.num_rows:
        tables.write(words, kept, tables.mark_of(words) or "")
    return rows.num_rows - kept.num_rows


def _alias(registered: Any) -> int | None:
    return int(registered.aliases[CHAMPION]) if CHAMPION in registered.aliases else None


def _here(source: str | None) -> Path | None:
    """The model's folder, of a version whose files are on this machine."""
    root = _local(source)
    return None if root is None else _model(root)


def _model(root: Path) -> Path:
    """The model in a version's folder. Versions of before there was anything beside it are the model themselves."""
    return root / MODEL if (root / "MLmodel").exists() else root


def _shown(uri: str) -> str:
    """The address without a password."""
    return re.sub(r"//[^/@]*@", "//", uri)
