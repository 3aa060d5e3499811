"""Model versions in MLflow: one registered model, two aliases.

A new version enters as `challenger`; `champion` is what portraits are made with, and moves by one write. Each version
carries the hash of its files, so that the same folder registered twice is one version, and where its predecessor is.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from assets.stores.runs import Runs, unless_there
from diffsfsr.errors import InputError, NotReady

CHALLENGER, CHAMPION = "challenger", "champion"
_MAKE = "run `diffsfsr run train` and `diffsfsr run promote`"
_HASH_TAG = "content_sha256"


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. `path` is its folder on this machine, None in a listing where it has yet to be downloaded."""

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

    def register(self, folder: Path, run_id: str, tags: Mapping[str, str] | None = None) -> int:
        """Store a model's folder with the run and give it a version, which becomes `challenger`; returns the version.

        A folder whose content is a version's already stays that version; its tags are brought up to date.
        """
        if not folder.is_dir() or not any(p.is_file() for p in folder.rglob("*")):
            raise InputError(f"registry: {folder} is not a folder with a model's files")
        content = content_hash(folder)
        client, where = self._client, f"model-{content[:16]}"  # a run may register several; none overwrites another
        with self._lock:
            unless_there(lambda: client.create_registered_model(self.name))
            same = client.search_model_versions(f"name = '{self.name}' and tags.`{_HASH_TAG}` = '{content}'")
            if same:
                newest = max(same, key=lambda mv: int(mv.version))
                version, path = int(newest.version), _local(newest.source)
                if path and not path.is_dir():  # its files were lost: these are the same
                    client.log_artifacts(str(newest.run_id), str(folder), where)
                self._note(version, **(tags or {}))
            else:
                client.log_artifacts(run_id, str(folder), where)
                source = f"{client.get_run(run_id).info.artifact_uri}/{where}"
                every = {**(tags or {}), _HASH_TAG: content}
                version = int(client.create_model_version(self.name, source, run_id=run_id, tags=every).version)
            client.set_registered_model_alias(self.name, CHALLENGER, str(version))
        return version

    def resolve(self, alias: str | int) -> ModelVersion:
        """The version that an alias (or a version's number) names, with its files on this machine.

        Ask once per batch and note the version with every output. Raises NotReady when there is none.
        """
        nothing = NotReady(f"registry: there is no model {alias!r} in {_shown(self.tracking_uri)} yet; {_MAKE}")
        if self._empty:
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
        path = _local(found.source) or self._download(found)
        if not path.is_dir():
            raise NotReady(f"registry: the files of model version {found.version} are gone from {path}; {_MAKE}")
        return _version(found, (), path) if str(alias).isdigit() else _version(found, (str(alias),), path)

    def _download(self, found: Any) -> Path:
        """The version's files under `cache`, whole or not at all."""
        from mlflow.artifacts import download_artifacts

        content = found.tags[_HASH_TAG]
        target = self.cache / f"{self.name}-{content[:16]}"
        if target.is_dir():
            return target
        self.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache, prefix=".download-") as beside:
            fetched = Path(download_artifacts(artifact_uri=found.source, dst_path=beside, tracking_uri=self.tracking_uri))
            if content_hash(fetched) != content:
                raise NotReady(f"registry: the files of model version {found.version} are not those that were registered; {_MAKE}")
            try:
                fetched.rename(target)
            except OSError:  # another process was first, with the same content
                if not target.is_dir():
                    shutil.move(fetched, target)
        return target

    def promote(self, version: int, who: str, why: str) -> ModelVersion:
        """Make a version the champion and note on it the previous one, when, who and why. Raises NotReady if it is missing."""
        with self._lock:
            self.resolve(version)
            current = self._champion()
            if current != version:
                previous = "" if current is None else str(current)
                self._note(version, previous_champion=previous, promoted_by=who, promoted_why=why, promoted_at=_utc())
                self._client.set_registered_model_alias(self.name, CHAMPION, str(version))  # the one write that counts
            return self.resolve(CHAMPION)

    def rollback(self, who: str, why: str) -> ModelVersion:
        """Make the champion's predecessor the champion again. Raises NotReady when there is none."""
        with self._lock:
            current = self.resolve(CHAMPION)
            previous = current.tags.get("previous_champion", "")
            if not previous:
                raise NotReady(f"registry: version {current.version} has no champion before it; promote another by its number")
            self.resolve(previous)
            self._note(current.version, rolled_back_to=previous, rolled_back_by=who, rolled_back_why=why, rolled_back_at=_utc())
            self._client.set_registered_model_alias(self.name, CHAMPION, previous)
            return self.resolve(CHAMPION)

    def versions(self) -> list[ModelVersion]:
        """Every version, newest first, with its aliases; nothing is downloaded."""
        names: dict[str, list[str]] = {}
        for model in self._client.search_registered_models(f"name = '{self.name}'"):
            for alias, version in model.aliases.items():
                names.setdefault(str(version), []).append(alias)
        found = self._client.search_model_versions(f"name = '{self.name}'", max_results=10_000)
        listed = [_version(mv, tuple(sorted(names.get(str(mv.version), []))), _local(mv.source)) for mv in found]
        return sorted(listed, key=lambda mv: -mv.version)

    @property
    def _empty(self) -> bool:
        """Whether the store is a file that has yet to be made: there is no need to make it to find nothing in it."""
        return self.tracking_uri.startswith("sqlite:///") and not Path(self.tracking_uri.removeprefix("sqlite:///")).exists()

    def _note(self, version: int, **tags: str) -> None:
        for key, value in tags.items():
            self._client.set_model_version_tag(self.name, str(version), key, value)

    def _champion(self) -> int | None:
        return next((mv.version for mv in self.versions() if CHAMPION in mv.aliases), None)


def content_hash(folder: Path) -> str:
    """sha256 over the relative names and the bytes of a folder's files, in the order of the names."""
    total = hashlib.sha256()
    for path in sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.relative_to(folder).as_posix()):
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


def _shown(uri: str) -> str:
    """The address without a password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
