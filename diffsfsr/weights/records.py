"""What this machine remembers of its weights: hashes of unpinned files at their first pull, and licences that were accepted.

Both are JSON in DIFFSFSR_HOME/weights: `lock.json` {name: {sha256, size, url}} and `licences.json` {name: {licence, accepted}}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffsfsr.errors import InputError
from diffsfsr.untrusted import read_json
from diffsfsr.weights.zoo import ZOO, Entry, entry


def home() -> Path:
    """Where pulled weights lie."""
    return Path(os.environ.get("DIFFSFSR_HOME") or ".diffsfsr") / "weights"


def pinned(wanted: Entry) -> str | None:
    """The sha256 that a file must have: the zoo's, else that of its first pull here, else None."""
    return wanted.sha256 or pins().get(wanted.name, {}).get("sha256")


def pins() -> dict[str, dict[str, Any]]:
    """Name -> {sha256, size, url} of every unpinned file that was pulled here."""
    return _read("lock.json")


def unpinning(wanted: Entry) -> str:
    """What to do where only the first pull here said which file is right, and said it of a wrong one; else the empty string."""
    if wanted.sha256 or wanted.name not in pins():
        return ""
    lock = home() / "lock.json"
    return f"; its hash is that of the first pull here: if that was wrong, take {wanted.name!r} out of {lock} and pull again"


def pin(name: str, sha256: str, size: int, url: str) -> None:
    """Record what the first pull of an unpinned file brought; a record that is there stays."""
    _add("lock.json", {name: {"sha256": sha256, "size": size, "url": url}})


def accepted() -> dict[str, dict[str, str]]:
    """Name -> {licence, accepted (ISO 8601)} of every licence that was accepted here and still reads as it did then."""
    return {name: record for name, record in _read("licences.json").items() if name in ZOO and record.get("licence") == ZOO[name].licence}


def accept(names: list[str]) -> None:
    """Record that the licences of these weights were accepted now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _add("licences.json", {name: {"licence": entry(name).licence, "accepted": now} for name in names}, replace=True)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process at a time works under that name, in this state folder; a process that dies lets go."""
    from filelock import FileLock, Timeout

    folder = home() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"another process is at work on {name}: waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read(file: str) -> dict[str, dict[str, Any]]:
    path = home() / file
    try:
        content = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise InputError(f"{path} {e}: delete it and pull again") from e
    if not isinstance(content, dict) or not all(isinstance(record, dict) for record in content.values()):
        raise InputError(f"{path} is not a table of records: delete it and pull again")
    return content


def _add(file: str, records: dict[str, dict[str, Any]], replace: bool = False) -> None:
    with locked(file):
        old = _read(file)
        _write(home() / file, old | records if replace else records | old)


def _write(path: Path, data: dict[str, Any]) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(beside, "w", encoding="utf-8") as f:
        json.dump(data, f, indent=1, sort_keys=True)
        f.flush()
        os.fsync(f.fileno())
    os.replace(beside, path)
