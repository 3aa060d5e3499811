"""What a method made of a pair list: made once, kept by content, and read again a few pictures at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffsfsr import tables
from diffsfsr.errors import NotReady
from diffsfsr.evaluation.items import Faces, Item, PairList, Picture, face_ids

if TYPE_CHECKING:
    from diffsfsr.evaluation.methods import Method

_PNG_END = b"IEND\xaeB`\x82"


class Outputs:
    """One PNG an item below `folder`, named by a hash of all that it depends on: the method's version, three faces, a size and a seed.

    What lies there is not made again, whichever pair list, process or day it was made for; a run that was killed goes on. An item of
    which the method gave none is an empty file. `folder` None keeps nothing, for methods that cost nothing. At no time are more
    than one batch of pictures in memory.
    """

    def __init__(self, folder: Path | None, method: Method, pairs: PairList, faces: Faces) -> None:
        self.folder, self.method, self.pairs, self.faces = folder, method, pairs, faces
        self.side = len(faces.crops[pairs.items[0].scene])
        known = (method.name, method.version, self.side)
        self.keys = [_hash(*known, *face_ids(item, faces), seed) for item, seed in zip(pairs.items, pairs.seeds, strict=True)]

    def __len__(self) -> int:
        return len(self.keys)

    def batches(self, size: int) -> Iterator[tuple[list[int], list[Picture | None]]]:
        """(places in the pair list, their pictures), in order; what is not there is made, and kept before it is given."""
        for start in range(0, len(self), size):
            places = list(range(start, min(start + size, len(self))))
            yield places, self.pictures(places)

    def picture(self, i: int) -> Picture | None:
        """(S, S, 3) uint8 of item i, or None where the method gave none; made now where it is not there."""
        return self.pictures([i])[0]

    def pictures(self, places: Sequence[int]) -> list[Picture | None]:
        """Those of several items, what lacks made together."""
        there = {i: kept for i in places if (kept := self._kept(i)) is not None}
        lacking = [i for i in places if i not in there]
        made = dict(zip(lacking, self._make(lacking), strict=True))
        return [made[i] if i in made else there[i][0] for i in places]

    def _make(self, places: Sequence[int]) -> list[Picture | None]:
        if not places:
            return []
        made = self.method([self.pairs.items[i] for i in places], [self.pairs.seeds[i] for i in places])
        if len(made) != len(places) or any(p is not None and _kind(p) != ((self.side, self.side, 3), "uint8") for p in made):
            shapes = ", ".join("none" if p is None else f"{p.dtype} {p.shape}" for p in made)
            raise ValueError(f"{self.method.name} returned {shapes} for {len(places)} items with crops of side {self.side}")
        for i, picture in zip(places, made, strict=True):
            self._keep(i, picture)
        return made

    def _keep(self, i: int, picture: Picture | None) -> None:
        from diffsfsr.face.images import encode_png

        if file := self._file(i):
            content = b"" if picture is None else encode_png(picture)
            tables.write_whole(file, lambda p: p.write_bytes(content))

    def _kept(self, i: int) -> tuple[Picture | None] | None:
        """(what is kept of an item,); None where nothing is, or it was damaged: then it is made again."""
        from diffsfsr.face.images import Rejected, decode

        file = self._file(i)
        try:
            content = file.read_bytes() if file else None
        except FileNotFoundError:
            return None
        if not content:
            return None if content is None else (None,)
        if not content.endswith(_PNG_END):  # a decoder may not mind
            return None
        try:
            picture = decode(content)
        except Rejected:
            return None
        return (picture,) if _kind(picture) == ((self.side, self.side, 3), "uint8") else None

    def _file(self, i: int) -> Path | None:
        return self.folder and self.folder / self.keys[i][:2] / f"{self.keys[i]}.png"


class Kept:
    """A method that is known by its outputs alone: whatever of them is not kept cannot be made."""

    def __init__(self, name: str, version: str) -> None:
        self.name, self.version = name, version

    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Picture | None]:
        raise NotReady(f"outputs of {self.name} are no longer kept; run `diffsfsr run evaluate --method {self.name}` again")


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _kind(picture: np.ndarray) -> tuple[tuple[int, ...], str]:
    return picture.shape, str(picture.dtype)
