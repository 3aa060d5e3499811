"""What another program needs to take part: the photographs of a pair list as files, and a manifest to be filled."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from diffsfsr import tables
from diffsfsr.errors import InputError
from diffsfsr.evaluation.items import ROLES, Faces, PairList, Picture, read_pairs, write_pairs
from diffsfsr.evaluation.methods import MANIFEST, FindFace, found_again

Masks = Callable[[np.ndarray, np.ndarray], np.ndarray]  # crops (n, S, S, 3), landmarks (n, 68, 2) -> (n, S, S) of 0 and 1
Picked = Callable[[int], Picture | None]  # item -> what a first stage made of it, or None
_BATCH = 32

_README = """\
{count} items of the task `{task}`, pair list {fingerprint}. Crops are {side} x {side} pixels, RGB, aligned as FFHQ's are.

pairs.csv      a row an item: item, seed, the files of its scene, identity and expression image, and the scene's mask
faces/         the photographs{scenes}
masks/         of each scene: 255 where the face may be painted, 0 where nothing may change
landmarks.csv  of each photograph: file, then 68 points x0,y0 ... x67,y67 in pixels of the crop, the centre of the first at 0,0
pairs.parquet  the same list by face id, for programs that read Parquet
{manifest}   what comes back, ready to be used: item, file, pairs

Wanted of each item: the scene with the identity image's person and the expression image's expression, {side} x {side} pixels, framed
as the scene's crop is. Put the pictures into a folder as {first}, ... (PNG, or another picture format with `file` changed), with
{manifest} beside them, and leave `file` empty where the method gave no picture: that counts as a failure. Then

    diffsfsr run evaluate --preset {preset} --method NAME --outputs FOLDER

where FOLDER holds that folder, called {name} as here, or is that folder itself.
"""


def export_pairs(
    directory: Path,
    faces: Faces,
    pairs: PairList,
    masks: Masks,
    first: Picked | None = None,
    find_face: FindFace | None = None,
    preset: str = "starter",
) -> dict[str, int]:
    """Write a pair list for another program; returns how many items, how many faces they are of, and how many have no scene.

    With `first`, the scenes are what another method made of the same list: the second stage of a hybrid. An item of which it made no
    picture with a face is left out of pairs.csv; its row of the manifest names no file. Raises InputError where the directory holds
    another pair list.
    """
    _require_own(directory, faces, pairs)
    write_pairs(directory / "pairs.parquet", pairs, faces)  # first: it says whose the other files are, should this be stopped
    scenes = _Photographs(directory, faces, masks)
    rows = [scenes.row(i, pairs, first, find_face or found_again) for i in range(len(pairs))]
    scenes.flush()
    there = [row for row in rows if row is not None]
    _write_csv(directory / "landmarks.csv", ["file", *(f"{axis}{i}" for i in range(68) for axis in "xy")], scenes.landmarks)
    _write_csv(directory / "pairs.csv", ["item", "seed", *ROLES, "mask"], there)
    blank = [(i, "" if row is None else f"{i:05d}.png", pairs.fingerprint) for i, row in enumerate(rows)]
    _write_csv(directory / MANIFEST, ["item", "file", "pairs"], blank)
    text = _readme(directory, faces, pairs, first is not None, preset)
    tables.write_whole(directory / "README.txt", lambda path: path.write_text(text, encoding="utf-8"))
    of_faces = len({face for item in pairs.items for face in (item.scene, item.identity, item.expression)})
    return {"items": len(rows), "of_faces": of_faces, "without_scene": len(rows) - len(there)}


class _Photographs:
    """Photographs written once each, a batch of masks at a time. A file bears the number of its face, or of the item it was made for."""

    def __init__(self, directory: Path, faces: Faces, masks: Masks) -> None:
        self.directory, self.faces, self.masks = directory, faces, masks
        self.landmarks: list[tuple[str | float, ...]] = []
        self.written, self.waiting = set[str](), list[tuple[str, Picture, np.ndarray]]()

    def row(self, i: int, pairs: PairList, first: Picked | None, find_face: FindFace) -> tuple[int | str, ...] | None:
        """The row of an item in pairs.csv, its photographs written; None where a first stage gave it no scene."""
        item = pairs.items[i]
        scene = f"faces/{item.scene:05d}.png"
        if first is None:
            self._masked(scene, self.faces.crops[item.scene], self.faces.landmarks[item.scene])
        else:
            picture = first(i)
            points = None if picture is None else find_face(picture, self.faces.landmarks[item.scene])
            if picture is None or points is None:
                return None
            self._masked(scene := f"scenes/{i:05d}.png", picture, points)
        others = [f"faces/{k:05d}.png" for k in (item.identity, item.expression)]
        for name, k in zip(others, (item.identity, item.expression), strict=True):
            self._photograph(name, self.faces.crops[k], self.faces.landmarks[k])
        return i, pairs.seeds[i], scene, *others, _mask_of(scene)

    def flush(self) -> None:
        """Write the masks that wait."""
        from diffsfsr.face.images import encode_png

        if not self.waiting:
            return
        names, crops, points = zip(*self.waiting, strict=True)
        for name, mask in zip(names, self.masks(np.stack(crops), np.stack(points)), strict=True):
            _write(self.directory / _mask_of(name), encode_png(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)))
        self.waiting.clear()

    def _masked(self, name: str, picture: Picture, points: np.ndarray) -> None:
        self._photograph(name, picture, points)
        if (mask := _mask_of(name)) not in self.written:
            self.written.add(mask)
            self.waiting.append((name, picture, points))
        if len(self.waiting) == _BATCH:
            self.flush()

    def _photograph(self, name: str, picture: Picture, points: np.ndarray) -> None:
        from diffsfsr.face.images import encode_png

        if name not in self.written:
            self.written.add(name)
            _write(self.directory / name, encode_png(picture))
            self.landmarks.append((name, *(round(float(v), 3) for v in points.ravel())))


def _mask_of(scene: str) -> str:
    return f"masks/{scene.replace('/', '-')}"


def _require_own(directory: Path, faces: Faces, pairs: PairList) -> None:
    """Refuse to mix the files of two pair lists."""
    stored = directory / "pairs.parquet"
    if directory.is_dir() and any(directory.iterdir()):
        if not stored.is_file() or read_pairs(stored, faces).fingerprint != pairs.fingerprint:
            raise InputError(f"{directory} holds other files than those of this pair list: name an empty folder with --export-pairs")


def _readme(directory: Path, faces: Faces, pairs: PairList, second: bool, preset: str) -> str:
    return _README.format(
        count=len(pairs),
        task=pairs.task,
        fingerprint=pairs.fingerprint,
        side=len(faces.crops[pairs.items[0].scene]),
        scenes="; scenes/ what the first stage made of them" if second else "",
        manifest=MANIFEST,
        first="00000.png, 00001.png",
        name=directory.name,
        preset=preset,
    )


def _write(path: Path, data: bytes) -> None:
    tables.write_whole(path, lambda temporary: temporary.write_bytes(data))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    _write(path, text.getvalue().encode())
