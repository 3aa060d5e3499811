"""Whether a file is of the kind that its name says, told from little of it: what stands in where no hash is known.

A mirror that answers with a log-in page, or with nothing, would otherwise have its answer pinned.
"""

from __future__ import annotations

import json
import mmap
import zipfile
from collections.abc import Callable
from pathlib import Path

from diffsfsr.encoders.onnx_wire import check_structure
from diffsfsr.untrusted import read_json

_LARGEST_HEADER = 100 << 20  # bytes, safetensors' own limit
_PICKLE = b"\x80"  # protocol 2 and later begin with it


def why_not(path: Path, name: str) -> str:
    """What a file that shall be called `name` is instead, to be put behind its name; the empty string where nothing speaks against it."""
    try:
        with open(path, "rb") as f:
            start = f.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if not start:
            return "is empty"
        if start.startswith((b"<!doctype html", b"<html", b"<head")):
            return "is a web page"
        if opened := _KINDS.get(Path(name).suffix):
            opened(path)
    except Exception as e:  # zipfile raises all kinds for an archive that is none
        return f"does not open as {Path(name).suffix} ({e})"
    return ""


def _safetensors(path: Path) -> None:
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > _LARGEST_HEADER:
            raise ValueError("its header has no end")
        try:
            header = json.loads(f.read(length))
        except RecursionError:
            raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__" and _has_offsets(tensor)]
    if 8 + length + max(ends, default=0) != path.stat().st_size:
        raise ValueError("it is cut off, or longer than its header says")


def _has_offsets(tensor: object) -> bool:
    offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    return isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(n, int) for n in offsets)


def _onnx(path: Path) -> None:
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        check_structure(data)


def _torch(path: Path) -> None:
    """A zip archive, or what torch wrote before that and numpy still does: a pickle. Nothing of it is unpickled."""
    with open(path, "rb") as f:
        start = f.read(4)
    if start[:2] == b"PK":
        with zipfile.ZipFile(path) as z:
            if not any(name.endswith("data.pkl") for name in z.namelist()):
                raise ValueError("an archive of something else")
    elif start[:1] != _PICKLE:
        raise ValueError("neither an archive nor a pickle")


_KINDS: dict[str, Callable[[Path], object]] = {
    ".json": read_json,
    ".safetensors": _safetensors,
    ".onnx": _onnx,
    ".pkl": _torch,
    ".pt": _torch,
}
