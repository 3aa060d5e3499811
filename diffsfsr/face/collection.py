"""A folder of photographs as rows: what lies in it, who is who, and the aligned face or the reason there is none.

Four forms of folder are read: any tree of pictures; an LFW-style tree where a picture's folder names the person; a tree whose
folders at the top are emotion words; and CelebA-HQ as published (`celeba`). A `labels.csv` at the top may name, for each `file`, its
`person`, `emotion`, `face` (index from the left; several rows may name several faces of one file) and `split`. What its other columns
say (gender, glasses, ...) is kept as labels of the face, by which an evaluation can be sliced.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffsfsr import weights
from diffsfsr.config import Data
from diffsfsr.errors import InputError, did_you_mean
from diffsfsr.face import celeba
from diffsfsr.face.aliases import one_name
from diffsfsr.face.crew import Crew, survives
from diffsfsr.fetch.listing import word_folders

VERSION = 2  # of alignment: raise it where the code gives other crops than before

Row = dict[str, Any]
Line = dict[str, Any]  # what is said of one face: person, emotion, face, split, all text, and labels where there are more
Progress = Callable[[int, int], None]
SPLITS = ("train", "test")
PUBLISHED, BY_PERSON = "published", "person"  # ways to split: as labels or the published data set say, or whole people only
_CRASHED = "its decoder crashed"  # the detail of such a reject
_COLUMNS = ("file", "person", "emotion", "face", "split")


def scan(root: Path, known: Iterable[Row] = (), test_fraction: float = 0.1, way: str = PUBLISHED) -> list[Row]:
    """Every photograph under `root`, one row per picture or per named face of one, sorted by path (schema SOURCES, and `labels`).

    `known` rows of an earlier scan spare the hashing of files whose size and time have not changed. A file that cannot be
    read keeps an empty sha256; alignment then says why. `way`: PUBLISHED, or BY_PERSON, which minds no split that is listed.
    Raises InputError where the folder or its labels.csv is unusable.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give a folder of photographs")
    published = celeba.find(root)
    labels = {name: [line] for name, line in celeba.lines(published, root).items()} if published else {}
    labels, words = labels | _labels(root), word_folders(root)
    hashed = {row["path"]: (row["size"], row["mtime_ns"], row["sha256"]) for row in known}
    rows: list[Row] = []
    for path in sorted(_pictures(published or root)):
        name = _spelled(path.relative_to(root).as_posix())
        size, mtime, sha256 = _identify(path, hashed.get(name))
        for label in labels.get(name, [{}]):
            emotion = _emotion(name, words)
            person = label.get("person") or (name if emotion else _person(name))
            split = (way == PUBLISHED and label.get("split")) or split_of(person, test_fraction)
            rows.append(
                {"path": name, "sha256": sha256, "size": size, "mtime_ns": mtime, "person": person, "split": split}
                | {"emotion": label.get("emotion") or emotion, "face": label.get("face", ""), "labels": label.get("labels", {})}
            )
    if not rows:
        raise InputError(f"no photograph in {root}: it needs files ending in .jpg, .png, .heic or the like")
    return rows


def source_row(path: Path) -> Row:
    """The row of one photograph that was named by itself, whatever its suffix."""
    size, mtime, sha256 = _identify(path, None)
    row = {"path": _spelled(path.name), "sha256": sha256, "size": size, "mtime_ns": mtime}
    return row | {"person": "", "emotion": "", "face": "", "split": "", "labels": {}}


def unknown_files(root: Path, rows: Iterable[Row]) -> list[str]:
    """Files that labels.csv names and that are not among `rows`: labels of photographs that are elsewhere, or misspelt."""
    return sorted(_labels(root).keys() - {row["path"] for row in rows})


def split_of(person: str, test_fraction: float) -> str:
    """'test' or 'train', by a hash of the person's name (`one_name`): stable when the data set grows, and whole people only."""
    share = int.from_bytes(hashlib.sha256(one_name(person).encode()).digest()[:8], "big") / 2**64
    return "test" if share < test_fraction else "train"


def _person(name: str) -> str:
    """The folder that a picture lies in names its person; a picture in no folder is a person of its own."""
    path = Path(name)
    return path.parent.name if path.parent.name else path.stem


def _emotion(name: str, words: frozenset[str]) -> str:
    """The emotion that a picture's folder at the top names; such a picture is a person of its own."""
    top, inside, _ = name.partition("/")
    return top.lower() if inside and top in words else ""


def _pictures(root: Path) -> Iterator[Path]:
    """Files with a picture's suffix; linked folders are not entered, so that a loop of links ends."""
    from diffsfsr.face.images import is_image_name

    closed: list[OSError] = []
    for folder, folders, files in os.walk(root, onerror=closed.append, followlinks=False):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in files:
            if is_image_name(Path(name)) and not name.startswith("."):
                yield Path(folder) / name
        for name in folders:
            if is_image_name(Path(name)) or (Path(folder) / name).is_symlink():
                yield Path(folder) / name  # what is not entered is named, not passed over
    yield from (Path(error.filename) for error in closed)


def _labels(root: Path) -> dict[str, list[Line]]:
    """File -> its lines in labels.csv, one a face."""
    path = root / "labels.csv"
    if not os.path.lexists(path):
        return {}
    if not path.is_file():
        raise InputError(f"{path} is no file that can be read: put the list there, or take it away")
    labels: dict[str, list[Line]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            reader = csv.DictReader(f, strict=True)
            reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or []]
            if twice := [name for name in columns if name and columns.count(name) > 1]:
                raise InputError(f"{path} has the column {twice[0]!r} twice: keep one of them")
            if "file" not in columns:
                raise InputError(f"{path} has no column 'file'; its columns may be {', '.join(_COLUMNS)}")
            for row in reader:
                line: Line = {name: (row.get(name) or "").strip() for name in _COLUMNS}
                others = {name: value.strip() for name, value in row.items() if name and name not in _COLUMNS and isinstance(value, str)}
                line["labels"] = {name: value for name, value in others.items() if value}
                where = f"{path}, line {reader.line_num}"
                _add(labels.setdefault(line.pop("file").removeprefix("./"), []), _checked(line, where), where)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    return labels


def _checked(line: Line, where: str) -> Line:
    if line["split"] not in ("", *SPLITS):
        raise InputError(f"{where}: split {line['split']!r}{did_you_mean(line['split'], SPLITS)} is neither train nor test, nor left empty")
    if line["face"].isdecimal():
        return line | {"face": str(int(line["face"]))}
    if line["face"] not in ("", "only", "largest"):
        raise InputError(f"{where}: face {line['face']!r} is not an index from the left (0, 1, ...), only or largest, nor left empty")
    return line


def _add(lines: list[Line], line: Line, where: str) -> None:
    """One line more of a file, unless it stands there already but for its labels. Two lines must not be about one face."""
    if any(line | {"labels": other["labels"]} == other for other in lines):
        return
    if lines and not (line["face"].isdecimal() and all(other["face"].isdecimal() for other in lines)):
        raise InputError(f"{where}: the file has another line already: give each of its lines a face, the index from the left (0, 1, ...)")
    if any(other["face"] == line["face"] for other in lines):
        raise InputError(f"{where}: another line says otherwise of face {line['face']} of the same file: keep one of them")
    lines.append(line)


def _spelled(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 are written out as \\udcXX, which `located` undoes."""
    return os.fsencode(name).decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace").decode()


def located(root: Path, name: str) -> Path:
    """The file that a row's `path` names."""
    path = root / os.fsdecode(name.encode())
    if "\\udc" in name and not path.exists():
        raw = re.sub(rb"\\udc([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), name.encode())
        return root / os.fsdecode(raw)
    return path


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
    rows: list[Row], root: Path, dataset: str, size: int, data: Data, workers: int | Crew = 1, progress: Progress | None = None
) -> tuple[list[Row], list[Row]]:
    """Align every row: (faces by schema FACES, rejects by schema REJECTS); each input row ends in exactly one of them."""
    faces: list[Row] = []
    rejects: list[Row] = []
    for done, result in enumerate(align_each(rows, root, dataset, size, data, workers), 1):
        (faces if is_face(result) else rejects).append(result)
        if progress:
            progress(done, len(rows))
    return faces, rejects


def is_face(result: Row) -> bool:
    """Whether an aligned row is a face; else it is a reject."""
    return "crop" in result


def has_crashed(result: Row) -> bool:
    """Whether the process that worked on it died. Perhaps the machine did that, not the picture: it is worth another try."""
    return result.get("detail") == _CRASHED


def align_each(
    rows: list[Row], root: Path, dataset: str, size: int, data: Data, workers: int | Crew = 1, apart: bool = False
) -> Iterator[Row]:
    """For each row in turn a face or a reject.

    Work is spread over a crew, or over so many processes that end with the call; `apart`: never done in this process, because one of
    the rows has crashed before. A picture that kills its worker is rejected as unreadable, alone. Raises InputError where detector
    and landmarks kill it without any picture.
    """
    seen: dict[str, str] = {}
    tasks = [(row, str(root), dataset, size, data) for row in rows]
    with nullcontext(workers) if isinstance(workers, Crew) else Crew(workers) as crew:
        for row, result in zip(rows, crew.map(_align, tasks, _crashed, apart), strict=True):
            if is_face(result) and result["face_id"] in seen:
                yield _reject(row, "duplicate", f"the same picture as {seen[result['face_id']]}")
                continue
            if is_face(result):
                seen[result["face_id"]] = row["path"]
            yield result


def _align(task: tuple[Any, ...]) -> Row:
    from dataclasses import replace

    from diffsfsr.face.alignment import align
    from diffsfsr.face.images import Rejected, encode_png, read

    row, root, dataset, size, data = task
    try:
        image = read(located(Path(root), row["path"]), data.max_pixels)
        face = align(image, size, replace(data, face=row["face"]) if row["face"] else data)
    except Rejected as rejected:
        return _reject(row, rejected.reason, rejected.detail)
    return {
        **{key: row[key] for key in ("path", "sha256", "person", "emotion", "split", "face")},
        "face_id": f"{dataset}/{_identity(row, data)}/{face.index}",
        "face_index": face.index,
        "box": list(map(int, face.box)),
        "landmarks": face.crop_landmarks.reshape(-1).tolist(),
        "matrix": face.matrix.reshape(-1).tolist(),
        "yaw": face.pose.yaw,
        "pitch": face.pose.pitch,
        "roll": face.pose.roll,
        "crop": encode_png(face.crop),
    }


def _crashed(task: tuple[Any, ...]) -> Row:
    row, *_, data = task
    if not _works(data):
        files = " or ".join(str(weights.resolve(name)) for name in weights.used_to_align(data))
        raise InputError(
            f"detector {data.detector} and landmarks {data.landmarks} crash on any picture: run `diffsfsr weights check` of {files}"
        )
    return _reject(row, "unreadable", _CRASHED)


@lru_cache
def _works(data: Data) -> bool:
    """Whether detector and landmarks live through a picture of nothing. (Asked when a process has died: who was it?)"""
    return survives(_look, data)


def _look(data: Data) -> None:
    import numpy as np

    from diffsfsr.face.detection import Found, load_detector
    from diffsfsr.face.images import Rejected
    from diffsfsr.face.landmarks import load_landmarks

    nothing = np.zeros((64, 64, 3), np.uint8)
    load_detector(data.detector)(nothing)
    with suppress(Rejected):
        load_landmarks(data.landmarks)(nothing, Found((16, 16, 48, 48), 1.0))


def _identity(row: Row, data: Data) -> str:
    """A picture's part of its face_id: the same for the same bytes at the same place, aligned in the same way; another otherwise.

    What is computed from a crop is kept by its face_id: another crop of the same face must have another.
    """
    way = data.detector if data.landmarks == "dlib" else f"{data.detector} {data.landmarks}"
    return hashlib.sha256(f"{row['path']}\0{row['sha256']}\0{way} {VERSION}".encode()).hexdigest()[:16]


def _reject(row: Row, reason: str, detail: str) -> Row:
    return {"path": row["path"], "sha256": row["sha256"], "face": row["face"], "reason": reason, "detail": detail}
