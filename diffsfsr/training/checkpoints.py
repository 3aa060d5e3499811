"""Checkpoints that are whole or absent: written into a folder beside, synced, renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

from diffsfsr import tables

_CONTENTS = "contents.json"
_NAME = re.compile(r"step-(\d{8})")


def save(folder: Path, step: int, write: Callable[[Path], None], rank: int, barrier: Callable[[], None], keep: int) -> Path:
    """Let every rank write its part, then give the checkpoint its name. Returns its folder. Older ones beyond `keep` go, and
    damaged and later ones, which a run that is at this step has passed over.

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
        _sync(part)
        tables.write_json(part / _CONTENTS, {name: [size, _crc32(part / name)] for name, size in _sizes(part).items()})
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        kept = [p for p in complete(folder) if p <= final][-keep:]
        for other in set(_named(folder)) - set(kept):
            shutil.rmtree(other, ignore_errors=True)
    barrier()
    return final


def complete(folder: Path) -> list[Path]:
    """Finished checkpoints whose files still have the sizes they were written with, oldest first."""
    return [p for p in _named(folder) if _is_whole(p)]


def newest(folder: Path) -> tuple[int, Path] | None:
    """(step, folder) of the newest finished checkpoint whose files are what was written, or None. Reads all of it."""
    found = next((p for p in reversed(complete(folder)) if _is_whole(p, to_the_byte=True)), None)
    return (int(found.name[5:]), found) if found else None


def _named(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)) if folder.is_dir() else []


def _sizes(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file() and p.name != _CONTENTS}


def _is_whole(folder: Path, to_the_byte: bool = False) -> bool:
    """Whether the files have the sizes, or the very bytes, that they were written with. Older checkpoints know their sizes alone."""
    try:
        written = json.loads((folder / _CONTENTS).read_text(encoding="utf-8")).items()
        written = {name: entry if isinstance(entry, list) else [entry] for name, entry in written}
        if {name: size for name, (size, *_) in written.items()} != _sizes(folder):
            return False
        return not to_the_byte or all([_crc32(folder / name)] == crc for name, (_, *crc) in written.items() if crc)
    except (OSError, ValueError, AttributeError):
        return False


def _crc32(path: Path) -> int:
    crc = 0
    with open(path, "rb") as f:
        while piece := f.read(1 << 24):
            crc = zlib.crc32(piece, crc)
    return crc


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
