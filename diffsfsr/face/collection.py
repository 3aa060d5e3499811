"""A folder of photographs as rows: what lies in it, who is who, and the aligned face or the reason there is none.

Two forms of folder are read: any tree of pictures, and an LFW-style tree where a picture's folder names the person. A
`labels.csv` at the top may name, for each `file`, its `person`, `emotion`, `face` (index from the left; several rows
may name several faces of one file) and `split`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from diffsfsr.config import Data
from diffsfsr.errors import InputError

Row = dict[str, Any]
Progress = Callable[[int, int], None]


def scan(root: Path, known: Iterable[Row] = (), test_fraction: float = 0.1) -> list[Row]:
    """Every photograph under `root`, one row per picture or per named face of one, sorted by path (schema SOURCES).

    `known` rows of an earlier scan spare the hashing of files whose size and time have not changed. A file that cannot be
    read keeps an empty sha256; alignment then says why. Raises InputError where the folder or its labels.csv is unusable.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give a folder of photographs")
    labels = _labels(root)
    hashed = {row["path"]: (row["size"], row["mtime_ns"], row["sha256"]) for row in known}
    rows: list[Row] = []
    for path in sorted(_pictures(root)):
        name = path.relative_to(root).as_posix()
        size, mtime, sha256 = _identify(path, hashed.get(name))
        for label in {label.get("face", ""): label for label in labels.get(name, [{}])}.values():
            person = label.get("person") or _person(name)
            split = label.get("split") or split_of(person, test_fraction)
            rows.append(
                {"path": name, "sha256": sha256, "size": size, "mtime_ns": mtime, "person": person, "split": split}
                | {"emotion": label.get("emotion", ""), "face": label.get("face", "")}
            )
    if not rows:
        raise InputError(f"no photograph in {root}: it needs files ending in .jpg, .png, .heic or the like")
    return rows


def source_row(path: Path) -> Row:
    """The row of one photograph that was named by itself, whatever its suffix."""
    size, mtime, sha256 = _identify(path, None)
    return {"path": path.name, "sha256": sha256, "size": size, "mtime_ns": mtime, "person": "", "emotion": "", "face": "", "split": ""}


def split_of(person: str, test_fraction: float) -> str:
    """'test' or 'train', by a hash of the person's name: stable when the data set grows, and whole people only."""
    share = int.from_bytes(hashlib.sha256(person.encode()).digest()[:8], "big") / 2**64
    return "test" if share < test_fraction else "train"


def _person(name: str) -> str:
    """The folder that a picture lies in names its person; a picture in no folder is a person of its own."""
    path = Path(name)
    return path.parent.name if path.parent.name else path.stem


def _pictures(root: Path) -> Iterator[Path]:
    """Files with a picture's suffix; linked folders are not entered, so that a loop of links ends."""
    from diffsfsr.face.images import is_image_name

    for folder, folders, files in os.walk(root, followlinks=False):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in files:
            if is_image_name(Path(name)) and not name.startswith("."):
                yield Path(folder) / name
        for name in folders:
            if is_image_name(Path(name)) or (Path(folder) / name).is_symlink():
                yield Path(folder) / name  # what is not entered is named, not passed over


def _labels(root: Path) -> dict[str, list[dict[str, str]]]:
    path = root / "labels.csv"
    if not path.exists():
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            reader = csv.DictReader(f)
            if "file" not in (reader.fieldnames or []):
                raise InputError(f"{path} has no column 'file'; its columns may be file, person, emotion, face, split")
            labels: dict[str, list[dict[str, str]]] = {}
            for row in reader:
                labels.setdefault((row["file"] or "").strip(), []).append({k: (v or "").strip() for k, v in row.items() if isinstance(v, str)})
            return labels
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV in UTF-8: {error}") from error


def _identify(path: Path, known: tuple[int, int, str] | None) -> tuple[int, int, str]:
    """(size, mtime_ns, sha256); the hash is empty where the file is not a plain readable one."""
    from diffsfsr.face.images import MAX_BYTES

    try:
        stat = path.stat()
        if not path.is_file() or stat.st_size > MAX_BYTES:
            return stat.st_size, stat.st_mtime_ns, ""
        if known and known[2] and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return known
        with open(path, "rb") as f:
            return stat.st_size, stat.st_mtime_ns, hashlib.file_digest(f, "sha256").hexdigest()
    except OSError:
        return 0, 0, ""


def align_rows(
    rows: list[Row], root: Path, dataset: str, size: int, data: Data, workers: int = 1, progress: Progress | None = None
) -> tuple[list[Row], list[Row]]:
    """Align every row: (faces by schema FACES, rejects by schema REJECTS); each input row ends in exactly one of them.

    Work is spread over `workers` processes. A picture that kills its worker is rejected as unreadable, alone.
    """
    tasks = [(row, str(root), dataset, size, data) for row in rows]
    faces: list[Row] = []
    rejects: list[Row] = []
    seen: dict[str, str] = {}
    for done, (row, result) in enumerate(zip(rows, _spread(tasks, workers), strict=True), 1):
        if "crop" not in result:
            rejects.append(result)
        elif result["face_id"] in seen:
            rejects.append(_reject(row, "duplicate", f"the same picture as {seen[result['face_id']]}"))
        else:
            seen[result["face_id"]] = row["path"]
            faces.append(result)
        if progress:
            progress(done, len(rows))
    return faces, rejects


def _spread(tasks: list[tuple[Any, ...]], workers: int) -> Iterator[Row]:
    if workers <= 1 or len(tasks) < 8:
        yield from map(_align, tasks)
        return
    done = 0
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("forkserver"), initializer=_one_thread) as pool:
            for result in pool.map(_align, tasks, chunksize=8):
                yield result
                done += 1
    except BrokenProcessPool:  # a worker died on one of the pictures in hand: go on one process a picture
        for task in tasks[done:]:
            yield _align_apart(task)


def _align_apart(task: tuple[Any, ...]) -> Row:
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("forkserver"), initializer=_one_thread) as pool:
            return pool.submit(_align, task).result()
    except BrokenProcessPool:
        return _reject(task[0], "unreadable", "its decoder crashed")


def _one_thread() -> None:
    """A worker is one core of many: its libraries must not each take all of them. It leaves Ctrl-C to its parent."""
    import signal

    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def _align(task: tuple[Any, ...]) -> Row:
    from dataclasses import replace

    from diffsfsr.face.alignment import align
    from diffsfsr.face.images import Rejected, encode_png, read

    row, root, dataset, size, data = task
    try:
        image = read(Path(root) / row["path"], data.max_pixels)
        face = align(image, size, replace(data, face=row["face"]) if row["face"] else data)
    except Rejected as rejected:
        return _reject(row, rejected.reason, rejected.detail)
    return {
        **{key: row[key] for key in ("path", "sha256", "person", "emotion", "split", "face")},
        "face_id": f"{dataset}/{_identity(row)}/{face.index}",
        "face_index": face.index,
        "box": list(map(int, face.box)),
        "landmarks": face.crop_landmarks.reshape(-1).tolist(),
        "matrix": face.matrix.reshape(-1).tolist(),
        "yaw": face.pose.yaw,
        "pitch": face.pose.pitch,
        "roll": face.pose.roll,
        "crop": encode_png(face.crop),
    }


def _identity(row: Row) -> str:
    """A picture's part of its face_id: the same for the same bytes at the same place, another otherwise."""
    return hashlib.sha256(f"{row['path']}\0{row['sha256']}".encode()).hexdigest()[:16]


def _reject(row: Row, reason: str, detail: str) -> Row:
    return {"path": row["path"], "sha256": row["sha256"], "face": row["face"], "reason": reason, "detail": detail}
