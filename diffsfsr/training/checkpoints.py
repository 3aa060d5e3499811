"""Checkpoints that are whole or absent: written into a folder beside, synced, renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

_CONTENTS = "contents.json"
_NAME = re.compile(r"step-(\d{8})")


def save(folder: Path, step: int, write: Callable[[Path], None], rank: int, barrier: Callable[[], None], keep: int) -> Path:
    """Let every rank write its part, then give the checkpoint its name. Returns its folder; older ones beyond `keep` go.

    write(part) puts this rank's files into a folder that all ranks share; barrier() returns when every rank has called it.
    """
    final = folder / f"step-{step:08d}"
    part = folder / f".{final.name}.part"
    if rank == 0:
        for left in folder.glob(".step-*.part"):  # by a run that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
    barrier()
    write(part)
    barrier()
    if rank == 0:
        (part / _CONTENTS).write_text(json.dumps(_sizes(part)), encoding="utf-8")
        _sync(part)
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        for old in complete(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    barrier()
    return final


def complete(folder: Path) -> list[Path]:
    """Finished checkpoints whose files still have the sizes they were written with, oldest first."""
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name) and _is_whole(p)) if folder.is_dir() else []


def _sizes(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file() and p.name != _CONTENTS}


def _is_whole(folder: Path) -> bool:
    try:
        return json.loads((folder / _CONTENTS).read_text(encoding="utf-8")) == _sizes(folder)
    except (OSError, ValueError):
        return False


def newest(folder: Path) -> tuple[int, Path] | None:
    """(step, folder) of the newest finished checkpoint, or None."""
    found = complete(folder)
    return (int(found[-1].name[5:]), found[-1]) if found else None


def replace_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside `final` and move it into place: `final` is the old whole, the new whole, or for an instant absent.

    For one writer at a time. What a killed one left is cleared away by the next.
    """
    part, old = final.with_name(f".{final.name}.part"), final.with_name(f".{final.name}.old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        write(part)
        _sync(part)
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        part.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Bring every file to the disk, readable as any new file is: safetensors writes for its owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
            with open(path, "rb") as f:
                os.fsync(f.fileno())
