"""Where weights lie: in the package that ships them, then in the folder DIFFSFSR_WEIGHTS, then in DIFFSFSR_HOME/weights."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from diffsfsr.errors import InputError, NotReady
from diffsfsr.weights.contents import why_not
from diffsfsr.weights.records import home, pinned, unpinning
from diffsfsr.weights.zoo import ZOO, Entry, entry


@dataclass(frozen=True)
class Status:
    """One entry as found here: `state` is ok, unpinned (present, nothing to compare with), wrong, unreadable or missing."""

    name: str
    state: str
    path: Path | None
    detail: str


def find(name: str) -> Path | None:
    """The file of that name on this machine, with what must lie beside it, or None. InputError for an unknown name."""
    found, parts = entry(name), [entry(name), *(entry(other) for other in entry(name).beside)]
    return next((folder / found.file for folder in folders(found) if all((folder / p.file).is_file() for p in parts)), None)


def resolve(name: str) -> Path:
    """The file of that name. Raises NotReady when it is not here, InputError when its size shows that it is another file.

    The hash is compared by `pull` and `check` only: this is called at every start.
    """
    wanted, path = entry(name), find(name)
    if path is None:
        raise NotReady(f"{wanted.file} ({wanted.role}) is not on this machine: {remedy(wanted)}")
    if wanted.size is not None and path.stat().st_size != wanted.size:
        raise InputError(f"{path} has {path.stat().st_size} bytes where {name} has {wanted.size}: replace it (`diffsfsr weights check`)")
    return path


def verified(name: str) -> Path:
    """`resolve`, and the file's hash is compared: for a reader that damaged bytes crash, or that takes them for a network.

    Raises InputError where they differ.
    """
    path, wanted = resolve(name), pinned(entry(name))
    if wanted and file_sha256(path) != wanted:
        raise InputError(f"{path} is damaged, or not {name} as it was published: replace it (`diffsfsr weights check`)")
    return path


def find_folder(name: str) -> Path | None:
    """A whole pipeline saved in diffusers' layout, by the name of its folder, where weights are looked for; or None."""
    return next((place / name for place in _named_folders() if (place / name / "model_index.json").is_file()), None)


def check() -> list[Status]:
    """Every entry of the zoo as it stands on this machine, its bytes read and compared."""
    return [_status(row) for row in ZOO.values()]


def file_sha256(path: Path) -> str:
    """The sha256 of a file in hex, read in pieces."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def folders(wanted: Entry) -> list[Path]:
    """Where a file may lie, in the order in which it is looked for."""
    return [*_package_folder(wanted), *_named_folders()]


def remedy(wanted: Entry) -> str:
    """What to do where a file is missing."""
    if wanted.packaged:
        return f"pip install {wanted.source.removeprefix('package:')}, or put it in the folder named by DIFFSFSR_WEIGHTS"
    where = "" if wanted.address else " --mirror ADDRESS"
    accept = "" if wanted.commercial else " --accept-licence"
    return f"run `diffsfsr weights pull {wanted.name}{where}{accept}` or put {wanted.file} in the folder named by DIFFSFSR_WEIGHTS"


def _named_folders() -> list[Path]:
    named = os.environ.get("DIFFSFSR_WEIGHTS")
    return [*([Path(named)] if named else []), home()]


def _package_folder(wanted: Entry) -> list[Path]:
    """The package's folder without importing it: face_recognition_models needs pkg_resources, which new setuptools lack."""
    if not wanted.packaged:
        return []
    spec = importlib.util.find_spec(wanted.source.removeprefix("package:"))
    return [Path(spec.origin).parent / "models"] if spec and spec.origin else []


def _status(row: Entry) -> Status:
    path = None
    try:
        for path in (folder / row.file for folder in folders(row)):
            if path.is_file():
                return _compared(row, path)
    except OSError as e:
        return Status(row.name, "unreadable", path, f"cannot be read ({e.strerror}): see to its permissions and its disk, or remove it")
    return Status(row.name, "missing", None, remedy(row))


def _compared(row: Entry, path: Path) -> Status:
    wanted, found = pinned(row), file_sha256(path)
    if row.sha256 is None and (why := why_not(path, row.file)):
        return Status(row.name, "wrong", path, f"{why}{unpinning(row)}")
    if wanted is None:
        return Status(row.name, "unpinned", path, f"sha256 {found}, with nothing to compare it to")
    if found != wanted:
        return Status(row.name, "wrong", path, f"sha256 {found}, not {wanted}{unpinning(row)}")
    return Status(row.name, "ok", path, "")
