"""Videos as a folder of photographs: ten even frames of each, taken once, the video being the person (the paper's sec. 4 on FF++).

<video>/<00..09>.jpg   its frames, upright, in the video's own size
labels.csv             file, person, emotion, face (the largest) and split of each frame
videos.csv             each video, the size and time by which it is known again, and how many frames it gave or why none

FaceForensics++ as published (Roessler et al., ICCV 2019; original_sequences/<source>/<compression>/videos/*.mp4) is known by its
folders: only its originals are taken, of several compressions the middle one (c23), and all of it is test data, as in the paper.
In its `actors` a name begins with the actor's number, who is then the person.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffsfsr import tables
from diffsfsr.cores import cores
from diffsfsr.errors import InputError, NotReady
from diffsfsr.face.crew import Crew
from diffsfsr.fetch.fetching import LABELS

FRAMES = 10
SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"})
LIMIT = 300.0  # seconds for one video: beyond that it is damaged, or no film that anyone meant
_COMPRESSIONS = ("c23", "raw", "c40")  # the first that is there
_FF = re.compile(r"original_sequences/(?P<source>\w+)/(?P<compression>raw|c23|c40)/videos/(?P<name>[^/]+)\.\w+")
_COLUMNS = ("file", "size", "mtime_ns", "person", "split", "folder", "frames", "why")


@dataclass(frozen=True)
class Video:
    """One video: its path under the folder, who it shows, and the folder its frames go to."""

    file: str
    person: str
    split: str
    folder: str


class Outcome(NamedTuple):
    frames: int
    why: str  # there are none; else empty


@dataclass(frozen=True)
class Taken:
    """What a folder of frames holds now: videos with frames, and reason -> how many gave none."""

    videos: int
    frames: int
    missing: dict[str, int] = field(default_factory=dict)


# --- which videos ---------------------------------------------------------------------------------------------------------


def is_of_videos(root: Path) -> bool:
    """Whether a folder is one of videos: it has some, and no photograph. One that has both is read for its photographs, which is told."""
    from diffsfsr.face.images import is_image_name

    kinds = Counter("photographs" if is_image_name(path) else path.suffix.lower() in SUFFIXES for path in _files(root))
    if kinds[True] and kinds["photographs"]:
        print(f"{root}: its {kinds[True]} videos are left alone beside photographs: give a folder of videos", file=sys.stderr, flush=True)
    return kinds[True] > 0 and not kinds["photographs"]


def listed(root: Path) -> list[Video]:
    """The videos of a folder that are to be taken, sorted; of FaceForensics++ its originals."""
    paths = sorted(path for path in _files(root) if path.suffix.lower() in SUFFIXES)
    published = _ff_originals(paths)
    if not published:
        people = {path: os.fsencode(path.relative_to(root).with_suffix("")).decode("utf-8", "backslashreplace") for path in paths}
    named = published or people
    split = "test" if published else ""
    folders = _folder_names(path.relative_to(root).as_posix() for path in named)
    return [
        Video(path.relative_to(root).as_posix(), who, split, folder) for (path, who), folder in zip(named.items(), folders, strict=True)
    ]


def _files(root: Path) -> Iterator[Path]:
    """Every file under `root` but hidden ones; linked folders are not entered."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _ff_originals(paths: Iterable[Path]) -> dict[Path, str]:
    """Original -> person, of each original once; empty where the paths are not FaceForensics++'s."""
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for path in paths:
        if match := _FF.search(path.resolve().as_posix()):
            found.setdefault((match["source"], match["name"]), {})[match["compression"]] = path
    return {
        next(by[c] for c in _COMPRESSIONS if c in by): f"{source}-{name.partition('__')[0]}" for (source, name), by in sorted(found.items())
    }


def _folder_names(files: Iterable[str]) -> list[str]:
    """A folder for each video: its path in plain letters, with a mark where another has that name already."""
    names: dict[str, str] = {}
    for file in files:
        plain = re.sub(r"[^\w-]+", "-", file.rpartition(".")[0]).strip("-")[-80:] or "video"
        names[plain if plain not in names else f"{plain}-{tables.fingerprint(file)[:8]}"] = file
    return list(names)


# --- their frames ---------------------------------------------------------------------------------------------------------


def take_frames(root: Path, folder: Path, count: int = FRAMES, max_pixels: int = 100_000_000, limit: float = LIMIT) -> Taken:
    """Bring `count` even frames of every video under `root` into `folder`; what was taken before is not decoded again.

    Videos are decoded in processes apart, which end after `limit` seconds with one: a damaged video costs itself only. It is looked at
    again when its file changes, or videos.csv is removed.
    Raises InputError where there is no video or the folder holds another folder's frames, NotReady where no video gives a frame.
    """
    videos = listed(root)
    if not videos:
        raise InputError(f"{root} has no video: it needs files ending in {', '.join(sorted(SUFFIXES))}")
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, root)
    known = _known(folder)
    rows = [_row(video, root) for video in videos]
    fresh = [row for row in rows if not _is_taken(row, known.get(row["file"]), folder, count)]
    tasks = [(str(root / row["file"]), str(folder / row["folder"]), count, max_pixels, limit) for row in fresh]
    with Crew(cores()) as crew:
        for done, (row, outcome) in enumerate(zip(fresh, crew.map(_take, tasks, _crashed, apart=True), strict=True), 1):
            known[row["file"]] = row | {"frames": str(outcome.frames), "why": outcome.why}
            if done % 20 == 0 or done == len(fresh):
                _write(folder / "videos.csv", _COLUMNS, known.values())
                print(f"frames {folder.name}: {done} of {len(fresh)} videos", file=sys.stderr, flush=True)
    return _settled(root, folder, [known[row["file"]] for row in rows])


def _row(video: Video, root: Path) -> dict[str, str]:
    stat = (root / video.file).lstat()  # a link to nothing has a row too
    return vars(video) | {"size": str(stat.st_size), "mtime_ns": str(stat.st_mtime_ns)}


def _is_taken(row: dict[str, str], before: dict[str, str] | None, folder: Path, count: int) -> bool:
    """Whether an earlier run looked at this very video, and its frames are still there."""
    if before is None or any(before[name] != row[name] for name in ("size", "mtime_ns", "folder")):
        return False
    return all((folder / row["folder"] / f"{i:02}.jpg").is_file() for i in range(min(int(before["frames"]), count)))


def _take(task: tuple[str, str, int, int, float]) -> Outcome:
    """Write a video's frames. The alarm ends the process, however deep in a decoder it is."""
    from diffsfsr.face.images import write_image

    file, folder, count, max_pixels, limit = task
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        frames = even_frames(Path(file), count, max_pixels)
        for i, frame in enumerate(frames):
            write_image(Path(folder, f"{i:02}.jpg"), frame)
        return Outcome(len(frames), "")
    except ValueError as error:
        return Outcome(0, str(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _crashed(task: tuple[Any, ...]) -> Outcome:
    shutil.rmtree(task[1], ignore_errors=True)
    return Outcome(0, f"its decoder crashed or took more than {task[4]:g} s")


def even_frames(file: Path, count: int = FRAMES, max_pixels: int = 100_000_000) -> list[np.ndarray]:
    """The frames in the middle of `count` equal parts of a video, HWC uint8 RGB; all of them where it has fewer.

    Where the length in its header is missing or wrong, the frames are counted. Raises ValueError, saying why, where there is none.
    """
    length = _claimed(file, max_pixels)
    frames = _at(file, _even(length, count)) if length > 0 else []
    if len(frames) < min(count, max(length, 1)):
        length = _counted(file)
        frames = _at(file, _even(length, count), seek=False)
    if not frames:
        raise ValueError("no frame can be decoded")
    return frames


def _even(length: int, count: int) -> list[int]:
    return sorted({int((i + 0.5) * length / count) for i in range(count)}) if length > count else list(range(length))


def _opened(file: Path) -> Any:
    """A decoder of a local file, which must not name others. Raises ValueError where it is none."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong is told once, not by the decoder
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "protocol_whitelist;file"
    import cv2

    if not file.is_file():
        raise ValueError("not a regular file")
    if not str(file.resolve()).isprintable():  # OpenCV dies of bytes that are no text
        raise ValueError("its name is not plain text: rename it")
    capture = cv2.VideoCapture(str(file.resolve()), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise ValueError("not a video that can be decoded" if file.stat().st_size else "the file is empty")
    return capture


def _claimed(file: Path, max_pixels: int) -> int:
    """How many frames its header says it has. Raises ValueError for frames above `max_pixels`."""
    import cv2

    capture = _opened(file)
    width, height = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > max_pixels:
        raise ValueError(f"frames of {width} x {height} pixels, more than {max_pixels:,}")
    claimed = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(claimed) if 0 < claimed < 2**40 else 0


def _counted(file: Path) -> int:
    capture, count = _opened(file), 0
    while capture.grab():
        count += 1
    return count


def _at(file: Path, wanted: list[int], seek: bool = True) -> list[np.ndarray]:
    """The frames at some places, ascending, as far as they can be had; by seeking, or by passing over those between."""
    import cv2

    capture, frames, at = _opened(file), [], 0
    for place in wanted:
        if seek:
            capture.set(cv2.CAP_PROP_POS_FRAMES, place)
        else:
            while at < place and capture.grab():
                at += 1
        whole, frame = capture.read()
        at += 1
        if whole and frame is not None:
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return frames


# --- the folder -----------------------------------------------------------------------------------------------------------


def _claim(folder: Path, root: Path) -> None:
    """A folder holds the frames of one folder of videos."""
    record = folder / "list.json"
    if record.exists() and (before := Path(json.loads(record.read_text(encoding="utf-8"))["list"])) != root.resolve() and before.exists():
        raise InputError(f"{folder} holds the frames of {before}: choose another name for those of {root} (--name)")
    tables.write_json(record, {"list": str(root.resolve())})


def _known(folder: Path) -> dict[str, dict[str, str]]:
    """File -> its row of videos.csv; what cannot be read is looked at again."""
    path = folder / "videos.csv"
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as f:
        rows = [row for row in csv.DictReader(f) if None not in row.values() and set(row) == set(_COLUMNS)]
    return {row["file"]: row for row in rows if row["frames"].isdecimal()}


def _settled(root: Path, folder: Path, rows: list[dict[str, str]]) -> Taken:
    """Write what is here now, and drop the frames of videos that are gone."""
    _write(folder / "videos.csv", _COLUMNS, rows)
    kept = {row["folder"] for row in rows if row["frames"] != "0"}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
    labels = [
        {"file": f"{row['folder']}/{i:02}.jpg", "person": row["person"], "emotion": "", "face": "largest", "split": row["split"]}
        for row in rows
        for i in range(int(row["frames"]))
    ]
    _write(folder / "labels.csv", LABELS, labels)
    missing = dict(Counter(row["why"] for row in rows if row["why"]))
    if not labels:
        raise NotReady(f"none of the {len(rows)} videos of {root} gives a frame ({', '.join(missing)}): see {folder / 'videos.csv'}")
    return Taken(len(kept), len(labels), missing)


def _write(path: Path, columns: tuple[str, ...], rows: Iterable[dict[str, str]]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as f:
            writer = csv.DictWriter(f, columns)
            writer.writeheader()
            writer.writerows(rows)

    tables.write_whole(path, write)
