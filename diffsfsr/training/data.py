"""Shards to batches. What a step sees is a pure function of the seed and the step, however it is spread over ranks, so that a resumed
run draws exactly what the uninterrupted one would have drawn, and no loader state needs saving."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diffsfsr import tables
from diffsfsr.errors import InputError, NotReady

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Position:
    """Where in a run a micro batch stands."""

    step: int
    micro: int
    rank: int
    world: int
    accumulation: int
    seed: int

    @property
    def part(self) -> int:
        """Its number among the micro batches of all ranks in this step: as long as their size stays, so does what each one is."""
        return self.micro * self.world + self.rank

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """The noise of this micro batch, and of no other."""
        state = np.random.SeedSequence([self.seed, 1, self.step, self.part]).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(state[0] >> 1))

    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, 2, self.step, self.part])

    def items(self, batch: int, count: int) -> np.ndarray:
        """(batch,) indices below `count`: this micro batch's part of a seeded shuffle of every epoch."""
        first = (self.step * self.accumulation * self.world + self.part) * batch
        places = np.arange(first, first + batch)
        return np.array([_shuffle(self.seed, int(p // count), count)[p % count] for p in places])


@lru_cache(maxsize=2)
def _shuffle(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, 3, epoch]).permutation(count)


def column(table: pa.Table, name: str, shape: tuple[int, ...], dtype: np.dtype | type = np.float32) -> np.ndarray:
    """A fixed-size list column as an array (n, *shape); null rows are zero."""
    values = table[name].combine_chunks()
    flat = values.fill_null([0.0] * values.type.list_size) if values.null_count else values
    return flat.flatten().to_numpy(zero_copy_only=False).astype(dtype).reshape(len(table), *shape)


def read_shards(shards: list[str], split: str | None, columns: list[str] | None = None) -> pa.Table:
    """All rows of a split. Raises NotReady where a shard is missing and InputError where no row is left."""
    missing = [s for s in shards if not Path(s).exists()]
    if missing or not shards:
        raise NotReady(f"training shards are missing{': ' + missing[0] if missing else ''}; run `diffsfsr run prepare --data DIR` first")
    wanted = None if columns is None else [*columns, *({"split"} - set(columns))]
    parts: Iterable[pa.Table] = (tables.read(Path(s), wanted) for s in shards)
    if split is not None:  # before they are put together: a few test faces should not cost the whole data set's memory
        parts = (part.filter(pa.compute.equal(part["split"], split)) for part in parts)
    table = pa.concat_tables(parts)
    if not len(table):
        where = f"{len(shards)} shard(s), first {shards[0]}"
        raise InputError(f"no face of split {split!r} in {where}: add photographs or change data.test_fraction")
    return table


def faces_with_glasses(crops: list[str]) -> dict[str, bool]:
    """face_id -> whether that face of the training split seems to wear glasses. `crops` are files of schema FACES, read one at a time; one
    that has gone since the training began is left out, for this is asked when all the rest is done."""
    from diffsfsr.face.glasses import wears_glasses
    from diffsfsr.face.images import decode

    found = {}
    for file in filter(Path.is_file, map(Path, crops)):
        faces = tables.read(file, ["face_id", "split", "crop", "landmarks"])
        faces = faces.filter(pa.compute.equal(faces["split"], "train"))
        for face_id, crop, points in zip(faces["face_id"], faces["crop"], column(faces, "landmarks", (68, 2)), strict=True):
            found[face_id.as_py()] = wears_glasses(decode(crop.as_py()), points)
    return found


class Crops:
    """Aligned faces in memory as uint8, for the networks that learn from pixels (autoencoder, DLN)."""

    def __init__(self, shards: list[str], crop: int, split: str | None = "train", most: int | None = None) -> None:
        """`shards` are files of schema FACES with crops of side `crop`. Of more than `most` faces, so many evenly spaced are kept."""
        from diffsfsr.face.images import decode

        table = read_shards(shards, split, ["face_id", "crop", "landmarks", "emotion", "person"])
        if most is not None and len(table) > most:
            table = table.take(np.linspace(0, len(table) - 1, most).astype(np.int64))
        self.images = np.empty((len(table), crop, crop, 3), np.uint8)
        for i, png in enumerate(table["crop"].to_pylist()):
            self.images[i] = decode(png)
        self.landmarks = column(table, "landmarks", (68, 2))
        self.face_ids: list[str] = table["face_id"].to_pylist()
        self.emotions: list[str] = table["emotion"].to_pylist()
        self.people: list[str] = table["person"].to_pylist()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, items: np.ndarray) -> Batch:
        """images (B, 3, S, S) in [-1, 1] and landmarks (B, 68, 2) in crop pixels."""
        from diffsfsr.face.images import to_tensor

        return {"images": to_tensor(self.images[items]), "landmarks": torch.from_numpy(self.landmarks[items])}


class Triplets:
    """Training items (scene, identity, expression) from precomputed shards, self or cross."""

    def __init__(self, shards: list[str], channels: int, latent: int, identity: tuple[str, ...], split: str | None = "train") -> None:
        table = read_shards(shards, split)
        shape = (channels, latent, latent)
        self.latent = torch.from_numpy(column(table, "latent", shape, np.float16))
        self.masked = torch.from_numpy(column(table, "masked_latent", shape, np.float16))
        masks = np.frombuffer(b"".join(table["mask"].to_pylist()), np.uint8).reshape(-1, 1, latent, latent)
        self.mask = torch.from_numpy(masks.copy())
        self.landmarks = torch.from_numpy(column(table, "landmarks", (68, 2)))
        self.expression = torch.from_numpy(column(table, "expression", (table.schema.field("expression").type.list_size,)))
        self.identity, self.present = {}, []
        for name in identity:
            width = table.schema.field(f"id_{name}").type.list_size
            self.identity[name] = torch.from_numpy(column(table, f"id_{name}", (width,)))
            self.present.append(torch.from_numpy(table[f"id_{name}"].is_valid().to_numpy()))
        labels = np.array(table["emotion"].to_pylist())
        self._shows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        people = np.unique(table["person"].to_pylist(), return_inverse=True)[1]
        self._by_person = np.argsort(people, kind="stable")
        # each item's own person is one range of that order
        self._first, self._last = (np.searchsorted(people[self._by_person], people, side) for side in ("left", "right"))

    def __len__(self) -> int:
        return len(self.latent)

    def means(self) -> dict[str, Tensor]:
        """Each identity encoder's mean over the faces that have it, (D,)."""
        return {n: e[p].mean(0) for (n, e), p in zip(self.identity.items(), self.present, strict=True)}

    def draw(self, at: Position, batch: int, p_self: float, other_photo: float = 0.0, by_label: float = 0.0) -> Batch:
        """A batch of triplets. `cross` (B,) is 1 where identity and expression are pictures of other people than the scene's.

        A data set of one person has no others: its triplets are all self triplets. Of these, `other_photo` is the chance that the
        identity is any photograph of the scene's person, which where there is but one is the scene again. `by_label` is the chance
        that a cross triplet's expression is any face of a label drawn first, where that is another person's; no label is one as well.
        """
        scene = at.items(batch, len(self))
        rng = at.rng()
        identity, expression = scene.copy(), scene.copy()
        cross = (rng.random(batch) >= p_self) & (self._last[scene] - self._first[scene] < len(self))
        if other_photo:
            other = rng.random(batch) < other_photo
            identity[other] = self._by_person[rng.integers(self._first[scene[other]], self._last[scene[other]])]
        identity[cross] = self._strangers(scene[cross], rng)
        expression[cross] = self._strangers(scene[cross], rng)
        if by_label:
            for item in np.flatnonzero(cross & (rng.random(batch) < by_label)):
                shown = int(rng.choice(self._shows[rng.integers(len(self._shows))]))
                if self._first[shown] != self._first[scene[item]]:
                    expression[item] = shown
        return self.take(scene, identity, expression, cross)

    def take(self, scene: np.ndarray, identity: np.ndarray, expression: np.ndarray, cross: np.ndarray) -> Batch:
        """The batch of these faces, (B,) indices each; `cross` (B,) bool."""
        return {
            "latent": self.latent[scene].float(),
            "masked": self.masked[scene].float(),
            "mask": self.mask[scene].float(),
            "landmarks": self.landmarks[scene],
            "expression": self.expression[expression],
            "present": torch.stack([p[identity] for p in self.present], 1),
            "cross": torch.from_numpy(cross.astype(np.float32)),
            **{f"id_{name}": values[identity] for name, values in self.identity.items()},
        }

    def three_people(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`count` cross triplets of three different people each: scene, identity and expression, (count,) indices.

        Raises InputError where there are fewer than three people.
        """
        rng = np.random.default_rng([seed, 4])
        starts = np.unique(self._first)
        if len(starts) < 3:
            raise InputError(f"triplets of three people need three, not {len(starts)}: add photographs or change data.test_fraction")
        ends = np.append(starts[1:], len(self))
        who = np.array([rng.choice(len(starts), 3, replace=False) for _ in range(count)])
        scene, identity, expression = self._by_person[rng.integers(starts[who], ends[who])].T
        return scene, identity, expression

    def _strangers(self, items: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each item a picture of another person, all of them equally likely."""
        own = self._last[items] - self._first[items]
        place = rng.integers(0, len(self) - own)
        return self._by_person[np.where(place < self._first[items], place, place + own)]
