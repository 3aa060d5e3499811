"""Which triplets a protocol asks for (the paper's sec. 4): fixed by the faces and a seed, stored, and the same for every method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pyarrow as pa

from diffsfsr import tables
from diffsfsr.errors import InputError, NotReady

Task = Literal["all", "identity", "expression", "reconstruct"]
TASKS: tuple[Task, ...] = ("all", "identity", "expression", "reconstruct")
ROLES = ("scene", "identity", "expression")

Picture = np.ndarray  # HWC uint8 RGB

# One row per item of a pair list: the three photographs by face id, the noise, and who they show.
PAIRS = pa.schema(
    [("item", pa.int64()), ("task", pa.string()), ("seed", pa.int64()), *[(name, pa.string()) for name in ROLES]]
    + [(f"{name}_person", pa.string()) for name in ROLES]
)
_READ = pa.schema([PAIRS.field(name) for name in ("item", "task", "seed", *ROLES)])


@dataclass(frozen=True)
class Item:
    """One triplet, as indices into the table of faces it was made from."""

    scene: int
    identity: int
    expression: int


@dataclass(frozen=True)
class Faces:
    """The photographs an evaluation draws on, aligned. `crops[i]` is (S, S, 3) uint8, `landmarks` (n, 68, 2) in crop pixels.

    `crops` may decode a picture each time it is asked for one: nothing here needs them all in memory. `labels[i]` is what the data
    set says of a face besides its person (emotion, gender, glasses, ...); empty where it says nothing.
    """

    ids: Sequence[str]
    people: Sequence[str]
    crops: Sequence[Picture] = field(repr=False)
    landmarks: np.ndarray = field(repr=False)
    labels: Sequence[Mapping[str, str]] = field(default=(), repr=False)

    def person(self, i: int) -> str:
        """Who a photograph shows; a face without a name is a person of its own."""
        return self.people[i] or f"unnamed {self.ids[i]}"

    def label(self, i: int, name: str) -> str:
        """What the data set says of a face, or the empty string."""
        return self.labels[i].get(name, "") if len(self.labels) else ""


@dataclass(frozen=True)
class PairList:
    """The items of one task with a seed each. Every method of one comparison is measured on the same list, told by its fingerprint."""

    task: Task
    items: Sequence[Item]
    seeds: Sequence[int]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.items)


def make_pairs(faces: Faces, split: Sequence[str], task: str, n: int, seed: int, use: str | None = "test") -> PairList:
    """The n items of a task, with their noise. Raises as `make_items` does."""
    items = make_items(faces.ids, faces.people, split, task, n, seed, use)
    return pair_list(faces, cast(Task, task), items, [item_seed(seed, i) for i in range(len(items))])


def pair_list(faces: Faces, task: Task, items: Sequence[Item], seeds: Sequence[int]) -> PairList:
    return PairList(task, list(items), list(seeds), _fingerprint(task, items, seeds, faces))


def _fingerprint(task: str, items: Sequence[Item], seeds: Sequence[int], faces: Faces) -> str:
    return tables.fingerprint(task, [[*face_ids(item, faces), seed] for item, seed in zip(items, seeds, strict=True)])


def face_ids(item: Item, faces: Faces) -> tuple[str, str, str]:
    """Scene, identity and expression by their face ids."""
    return faces.ids[item.scene], faces.ids[item.identity], faces.ids[item.expression]


# --- stored ---------------------------------------------------------------------------------------------------------------


def write_pairs(path: Path, pairs: PairList, faces: Faces) -> None:
    """Store a pair list as Parquet with the columns of PAIRS."""
    rows = []
    for i, (item, seed) in enumerate(zip(pairs.items, pairs.seeds, strict=True)):
        people = {f"{role}_person": faces.people[getattr(item, role)] for role in ROLES}
        rows.append({"item": i, "task": pairs.task, "seed": seed, **dict(zip(ROLES, face_ids(item, faces), strict=True)), **people})
    tables.write(path, tables.from_rows(rows, PAIRS), pairs.fingerprint)


def read_pairs(path: Path, faces: Faces) -> PairList:
    """What `write_pairs` wrote, over faces in any order. Raises InputError where it is no pair list or another than was written, or names
    a face that is not there."""
    try:
        rows = tables.read(path, ["item", "task", "seed", *ROLES]).cast(_READ).sort_by("item").to_pylist()
    except (OSError, ValueError, KeyError) as error:  # pyarrow's are among them
        raise InputError(f"{path} is not a stored pair list: {str(error).splitlines()[0]}") from error
    tasks = {row["task"] for row in rows}
    if len(tasks) != 1 or not tasks <= set(TASKS):
        raise InputError(f"{path} is not a pair list of one task: it names {', '.join(map(str, tasks)) or 'none'}")
    place = {name: i for i, name in enumerate(faces.ids)}
    lacking = [row[role] for row in rows for role in ROLES if row[role] not in place]
    if lacking:
        raise InputError(f"{path} asks for faces that are not prepared here, the first {lacking[0]!r}; delete it to draw new pairs")
    items = [Item(*(place[row[role]] for role in ROLES)) for row in rows]
    pairs = pair_list(faces, tasks.pop(), items, [row["seed"] for row in rows])
    if pairs.fingerprint != tables.mark_of(path):
        raise InputError(f"{path} has been changed since it was drawn; delete it to draw it again")
    return pairs


# --- drawn ----------------------------------------------------------------------------------------------------------------


def make_items(
    face_ids: Sequence[str],
    people: Sequence[str],
    split: Sequence[str],
    task: str,
    n: int,
    seed: int,
    use: str | None = "test",
) -> list[Item]:
    """n triplets of the faces whose split is `use` (None: all), fixed by the faces and the seed, not by their order.

    `all` draws three people, `identity` has expression = scene, `expression` has identity = scene, `reconstruct` one photograph
    for all three. Where people run out, another photograph of the same person serves, and at last the same one. Scenes and
    sources are spread evenly, so that retrieval chooses among as many people as there are. A face without a name is a person of its own.
    Raises InputError for an unknown task or n < 1, NotReady where no face is in the split.
    """
    if task not in TASKS or n < 1:
        raise InputError(f"evaluation of task {task!r} on {n} items: the task is one of {', '.join(TASKS)} and the number at least 1")
    usable = [i for i in range(len(face_ids)) if use is None or split[i] == use]
    if not usable:
        raise NotReady(f"no face in the split {use!r} to evaluate on: add photographs of more people, or raise data.test_fraction")
    usable.sort(key=lambda i: face_ids[i])
    names = [people[i] or f"unnamed {face_ids[i]}" for i in usable]
    deal = _Dealer(names, np.random.default_rng([seed, TASKS.index(task)]))
    return [Item(*(usable[place] for place in _triplet(task, deal))) for _ in range(n)]


def make_items_beside(faces: Faces, others: Sequence[Sequence[str]], seed: int) -> list[Item]:
    """For each of some groups of faces (their ids, which may be of no face here) a scene and an identity that show two other people.

    They are spread as `make_items` spreads them. The expression is not among the faces: its place is the scene's.
    """
    order = sorted(range(len(faces.ids)), key=lambda i: faces.ids[i])
    place = {faces.ids[i]: k for k, i in enumerate(order)}
    deal = _Dealer([faces.person(i) for i in order], np.random.default_rng([seed, len(TASKS)]))
    items = []
    for group in others:
        taken = [place[face] for face in group if face in place]
        scene = deal.next("scene", taken)
        identity = deal.next("identity", [*taken, scene])
        items.append(Item(order[scene], order[identity], order[scene]))
    return items


def _triplet(task: str, deal: _Dealer) -> tuple[int, int, int]:
    scene = deal.next("scene", [])
    if task == "reconstruct":
        return scene, scene, scene
    if task == "expression":
        return scene, scene, deal.next("expression", [scene])
    identity = deal.next("identity", [scene])
    return (scene, identity, scene) if task == "identity" else (scene, identity, deal.next("expression", [scene, identity]))


class _Dealer:
    """Faces for a role: the least used person first, then their least used photograph, ties by lot."""

    def __init__(self, names: list[str], rng: np.random.Generator) -> None:
        self.person = np.unique(names, return_inverse=True)[1]
        self.rng = rng
        self.used: dict[str, np.ndarray] = {}

    def next(self, role: str, beside: list[int]) -> int:
        """A face of another person than the faces `beside` it, where there is one; else another face; else any."""
        used = self.used.setdefault(role, np.zeros(len(self.person), dtype=np.int64))
        by_person = np.bincount(self.person, weights=used)[self.person]
        same_person, same_face = np.isin(self.person, self.person[beside]), np.isin(np.arange(len(used)), beside)
        left = np.arange(len(used))
        for key in (same_person, same_face, by_person, used):
            left = left[key[left] == key[left].min()]
        chosen = int(self.rng.choice(left))
        used[chosen] += 1
        return chosen


def item_seed(seed: int, index: int) -> int:
    """The noise of one item: the same whatever the batch it is generated in."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint32)[0])


def roles(items: Iterable[Item], role: str) -> list[int]:
    """The faces that play a role, item by item."""
    return [getattr(item, role) for item in items]
