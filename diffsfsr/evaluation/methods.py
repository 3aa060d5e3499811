"""What makes the outputs that a protocol measures: our model, a baseline, another program's folder, or one method after another."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from diffsfsr import tables
from diffsfsr.errors import InputError
from diffsfsr.evaluation.items import Faces, Item, PairList, Picture

MANIFEST = "manifest.csv"  # item,file[,pairs]: beside the pictures of another program
_ROOM = 16 << 20  # bytes of a manifest: far above that of any list
_DIGITS = 18  # of an item's number


class Method(Protocol):
    """Outputs for triplets of the faces it was made over. The same item and seed give the same picture."""

    @property
    def name(self) -> str:
        """As it stands in a table."""

    @property
    def version(self) -> str:
        """What its outputs depend on besides faces and seeds: a hash of weights, files or recipe."""

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Picture | None]:
        """Finished crops, (S, S, 3) uint8 in the frame of the scene's crop; None where it gave none, which counts as a failure."""


@runtime_checkable
class Regional(Protocol):
    """A method whose facial region is not the scene's face alone: it begins above the brows of who is shown, or takes in the scene's
    glasses."""

    def regions(self, items: Sequence[Item]) -> np.ndarray:
        """(B, S, S), 0 and 1: what of the items' scenes it may change."""


Make = Callable[[Faces], Method]  # a method is made over the faces it works on
FindFace = Callable[[Picture, np.ndarray], np.ndarray | None]  # a picture and where its face was -> (68, 2) where it is now


# --- one after the other ------------------------------------------------------------------------------------------------


class Hybrid:
    """Swap, then reenact: `first` puts the identity into the scene as it is, `second` gives what came of that the expression.

    Between the two the face is found again, as somebody who has only the first one's pictures would find it. Where the first gave
    no picture, or none with a face, neither does the whole.
    """

    def __init__(self, faces: Faces, first: Make, second: Make, find_face: FindFace | None = None) -> None:
        self.faces, self.make, self.find_face = faces, second, find_face or found_again
        self.first, alone = first(faces), second(faces)
        self.name = f"{self.first.name}+{alone.name}"
        self.version = tables.fingerprint("hybrid", self.first.version, alone.version)

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Picture | None]:
        swapped = self.first([Item(item.scene, item.identity, item.scene) for item in items], seeds)
        places = self._places(items, swapped)
        there = [i for i, place in enumerate(places) if place is not None]
        pictures: list[Picture | None] = [None] * len(items)
        if there:
            between = self._between([items[i] for i in there], [swapped[i] for i in there], [places[i] for i in there])
            chosen = [Item(k, k, len(there) + k) for k in range(len(there))]
            for i, made in zip(there, self.make(between)(chosen, [seeds[i] for i in there]), strict=True):
                pictures[i] = made
        return pictures

    def _places(self, items: Sequence[Item], pictures: Sequence[Picture | None]) -> list[np.ndarray | None]:
        pairs = zip(items, pictures, strict=True)
        return [None if picture is None else self.find_face(picture, self.faces.landmarks[item.scene]) for item, picture in pairs]

    def _between(self, items: Sequence[Item], swapped: Sequence[Picture | None], places: Sequence[np.ndarray | None]) -> Faces:
        """The faces of the second stage: first what the first one made, then the expression images, item by item."""
        wanted = [item.expression for item in items]
        people = [self.faces.people[i] for i in [item.identity for item in items] + wanted]
        crops = [*(p for p in swapped if p is not None), *(self.faces.crops[i] for i in wanted)]
        landmarks = np.stack([*(p for p in places if p is not None), *self.faces.landmarks[wanted]])
        return Faces([str(i) for i in range(len(crops))], people, crops, landmarks)


def found_again(picture: Picture, landmarks: np.ndarray) -> np.ndarray | None:
    """(68, 2) of the face in a finished crop that stands where `landmarks` were, or None."""
    from diffsfsr.face.alignment import align_all

    return face_in_place(align_all(picture, len(picture)), landmarks)


def face_in_place(found: Sequence[Any], scene_landmarks: np.ndarray) -> np.ndarray | None:
    """The landmarks (68, 2) of the face nearest to where the scene's own was, at most half a face away: not a bystander's."""
    centre, width = scene_landmarks.mean(axis=0), np.ptp(scene_landmarks[:, 0])
    away = [float(np.linalg.norm(face.landmarks.mean(axis=0) - centre)) for face in found]
    return found[int(np.argmin(away))].landmarks if away and min(away) <= width / 2 else None


# --- another program's outputs ------------------------------------------------------------------------------------------


class Folder:
    """Pictures that another program made of a pair list, named by the manifest beside them.

    manifest.csv has a row an output: `item`, its number in the list; `file`, relative to the folder, or nothing where the program
    gave no picture; and, where it has a column `pairs`, the list's fingerprint. An item without a row is a failure too.
    """

    def __init__(self, faces: Faces, pairs: PairList, directory: Path, name: str = "") -> None:
        """Reads every picture once, so that what is wrong is told before anything is measured.

        Raises InputError, naming the file, for a manifest that is missing, broken, of another pair list or says a thing twice; a
        path that leads out of the folder; a picture that is missing, unreadable or not of the crop's size.
        """
        self.name, self.directory, self.pairs = name or directory.resolve().name, directory, pairs
        self.side = len(faces.crops[pairs.items[0].scene])
        self.files = self._files(read_manifest(directory / MANIFEST))
        hashes = {i: self._checked(file) for i, file in self.files.items()}
        self.version = tables.fingerprint("folder", pairs.fingerprint, sorted(hashes.items()))
        self.place = {pair: i for i, pair in enumerate(zip(pairs.items, pairs.seeds, strict=True))}

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Picture | None]:
        """Raises ValueError for an item that is not of the list."""
        places = [self.place.get(pair) for pair in zip(items, seeds, strict=True)]
        if None in places:
            raise ValueError(f"{self.directory} answers the pair list {self.pairs.fingerprint} only")
        files = [self.files.get(place) if place is not None else None for place in places]
        return [None if file is None else self._picture(file) for file in files]

    def _files(self, rows: Sequence[Mapping[str, str]]) -> dict[int, Path]:
        """Item number -> its picture, for the items that have one."""
        manifest, files, seen = self.directory / MANIFEST, dict[int, Path](), set[int]()
        for line, row in enumerate(rows, 2):
            where = f"{manifest}, line {line}"
            if (given := row.get("pairs") or self.pairs.fingerprint) != self.pairs.fingerprint:
                raise InputError(f"{where}: it is of the pair list {given}, not of {self.pairs.fingerprint}; export the pairs again")
            item = self._number(row["item"], where)
            if item in seen:
                raise InputError(f"{where}: item {item} stands twice; keep one row for it")
            seen.add(item)
            if row["file"]:
                files[item] = self._inside(row["file"], where)
        if twice := [file.name for file, times in Counter(files.values()).items() if times > 1]:
            raise InputError(f"{manifest} gives {twice[0]} to several items; each item needs a picture of its own")
        return files

    def _number(self, text: str, where: str) -> int:
        if not text.isdecimal() or len(text) > _DIGITS or int(text) >= len(self.pairs):
            raise InputError(f"{where}: item {text[:20]!r} is not one of 0 to {len(self.pairs) - 1}; it numbers the rows of pairs.csv")
        return int(text)

    def _inside(self, name: str, where: str) -> Path:
        try:
            file = (self.directory / name).resolve()
            is_there = file.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, links in a circle
            raise InputError(f"{where}: {name[:80]!r} cannot be a file's name ({type(error).__name__}); name the picture") from error
        if not file.is_relative_to(self.directory.resolve()):
            raise InputError(f"{where}: {name} lies outside the folder; name files relative to {self.directory}")
        if not is_there:
            raise InputError(f"{where}: {name} is not there; leave `file` empty where the method gave no picture")
        return file

    def _checked(self, file: Path) -> str:
        """The sha256 of a picture that is as it should be."""
        from diffsfsr.weights import file_sha256

        self._picture(file)
        return file_sha256(file)

    def _picture(self, file: Path) -> Picture:
        from diffsfsr.face.images import Rejected, read

        try:
            picture = read(file)
        except Rejected as rejected:
            raise InputError(f"{file}: {rejected.reason} ({rejected.detail}); write it again as PNG") from rejected
        if picture.shape[:2] != (self.side, self.side):
            height, width = picture.shape[:2]
            raise InputError(f"{file} has {width} x {height} pixels where the scene's crop has {self.side} x {self.side}; resize it")
        return picture


def read_manifest(path: Path) -> list[dict[str, str]]:
    """The rows of a manifest. Raises InputError where there is none, or it has no columns `item` and `file`."""
    if not path.is_file():
        raise InputError(f"{path} is not there: it names the outputs, one row an item, with the columns item,file")
    if path.stat().st_size > _ROOM:
        raise InputError(f"{path} is too large for a manifest: a row an item is all it holds")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [{key: (value or "").strip() for key, value in row.items() if isinstance(key, str)} for row in reader]
            columns = reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV in UTF-8 ({error}); write the columns item,file") from error
    if not {"item", "file"} <= set(columns):
        raise InputError(f"{path} has the columns {', '.join(columns) or 'none'}; it needs item,file")
    return rows
