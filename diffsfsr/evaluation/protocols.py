"""The paper's tasks (sec. 4) measured: one row per item of what a method made of a pair list."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diffsfsr import tables
from diffsfsr.encoders.blendshapes import NAMES
from diffsfsr.evaluation import metrics
from diffsfsr.evaluation.fid import Moments, frechet
from diffsfsr.evaluation.items import ROLES, Faces, Item, Picture, Task, face_ids, roles
from diffsfsr.evaluation.judges import Judges
from diffsfsr.evaluation.methods import Method, Regional, face_in_place
from diffsfsr.evaluation.outputs import Outputs

Row = dict[str, Any]
FindFaces = Callable[[Picture, int], Sequence[Any]]
_SMILE, _JAW_OPEN = [NAMES.index("mouthSmileLeft"), NAMES.index("mouthSmileRight")], [NAMES.index("jawOpen")]
_PEOPLE = {"all": 3, "identity": 2, "expression": 2, "reconstruct": 1}  # that an item of a task shows
_PIXELS = ("mse", "psnr", "ssim", "background", "seam")
MEASURED = (
    *("id_cosine", "id_scene_cosine", "id_rank", "id_top1", "id_top5", "expression_distance", "blendshape_distance"),
    *("smile", "smile_wanted", "jaw_open", "jaw_open_wanted", "pose_error", *_PIXELS),
)
# One row per item of one method; null where a value is missing.
ITEMS = pa.schema(
    [
        *[(name, pa.string()) for name in ("method", "task", *ROLES, "emotion")],
        *[("item", pa.int64()), ("seed", pa.int64()), ("distinct", pa.bool_()), ("found", pa.bool_())],
        *[(name, pa.float64()) for name in MEASURED],
    ]
)
_HEAD = ("method", "task", "judges", "independent", "gallery", "fid", "fid_note")


@dataclass(frozen=True)
class Result:
    """What a method gave on one task: `rows` of ITEMS (None where a value is missing), and who judged.

    `outputs` holds the pictures (`outputs.picture(i)`, `outputs.pairs`, `outputs.faces`); None when read back without them.
    """

    method: str
    task: Task
    rows: list[Row] = field(repr=False)
    judges: Mapping[str, str]  # identity, expression, coefficients, pose, fid -> one line about each, or why it is missing
    independent: bool  # whether the identity judge neither conditions nor trains the model
    gallery: int  # source images that retrieval chose among: chance is 1 / gallery
    fid: float | None = None
    fid_note: str = ""  # between what it is, or why there is none
    outputs: Outputs | None = field(default=None, repr=False, compare=False)

    def column(self, name: str) -> np.ndarray:
        """(n,) float64; NaN where missing."""
        return np.array([np.nan if row[name] is None else float(row[name]) for row in self.rows])

    def save(self, folder: Path, **facts: Any) -> None:
        """Write items.parquet and, last, method.json, which holds `facts` too."""
        head = {name: getattr(self, name) for name in _HEAD} | facts
        (folder / "method.json").unlink(missing_ok=True)
        tables.write(folder / "items.parquet", tables.from_rows(self.rows, ITEMS), tables.fingerprint(head))
        tables.write_json(folder / "method.json", head)

    @classmethod
    def load(cls, folder: Path, outputs: Outputs | None = None) -> Result:
        """What `save` wrote. Raises OSError, ValueError or KeyError where it is not whole."""
        head = json.loads((folder / "method.json").read_text(encoding="utf-8"))
        rows = tables.read(folder / "items.parquet").to_pylist()
        return cls(rows=rows, outputs=outputs, **{name: head[name] for name in _HEAD})


# --- the photographs themselves -----------------------------------------------------------------------------------------


class References:
    """What the judges see in the photographs, each looked at once however many methods, tasks and roles it serves."""

    def __init__(self, faces: Faces, judges: Judges, batch: int = 16) -> None:
        self.faces, self.judges, self.batch = faces, judges, batch
        self._seen: dict[str, dict[int, np.ndarray]] = {role: {} for role in judges.named}
        self._moments = Moments()

    def crops(self, indices: Sequence[int]) -> np.ndarray:
        """(B, S, S, 3) uint8."""
        return np.stack([self.faces.crops[i] for i in indices])

    def of(self, role: str, indices: Sequence[int]) -> np.ndarray:
        """(n, D) of one judge, in the order of `indices`."""
        seen = self._seen[role]
        for part in self._parts([i for i in dict.fromkeys(indices) if i not in seen]):
            seen.update(zip(part, self.judges.see(role, self.crops(part), self.faces.landmarks[part]), strict=True))
        return np.stack([seen[i] for i in indices])

    def moments(self, features: Callable[[np.ndarray], np.ndarray]) -> Moments:
        """Of the FID features of all photographs."""
        if not self._moments.count:
            for part in self._parts(range(len(self.faces.ids))):
                self._moments.add(features(self.crops(part)))
        return self._moments

    def _parts(self, indices: Sequence[int]) -> list[list[int]]:
        return [list(indices[k : k + self.batch]) for k in range(0, len(indices), self.batch)]


# --- what a method made of them -----------------------------------------------------------------------------------------


def evaluate(
    outputs: Outputs,
    references: References,
    *,
    batch: int = 16,
    find_faces: FindFaces | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Result:
    """Measure every item of what a method made: one row per item, one batch of pictures in memory at a time.

    Each output's face is found again (`find_faces`, default alignment.align_all); where no face stands in the scene's face's place, or
    the method gave no picture, the row has `found` False and no value of what a face is measured by. The reference of identity is the
    identity image, of expression the expression image, of pose the scene, each measured as the output is. MSE, PSNR and SSIM are
    measured where all three inputs are the same photograph; background and seam against the facial region: the method's own where it says
    which that is (`methods.Regional`), else that of the scene.

    In the rows `distinct` says whether an item's images are of as many people as its task wants, `emotion` is the label of the expression
    image, `id_scene_cosine` the likeness to the scene's own person, `smile` and `jaw_open` coefficients (0..1) as shown, and as
    wanted by the expression image.
    """
    from diffsfsr.face.alignment import align_all

    items, seen = outputs.pairs.items, _Seen(references, find_faces or align_all, outputs.method)
    for places, pictures in outputs.batches(batch):
        seen.add([items[i] for i in places], pictures)
        if progress:
            progress(places[-1] + 1, len(outputs))
    columns = {**seen.columns(), **_identity(items, seen), **_expression(items, seen), **_pose(items, seen)}
    rows = [_row(outputs, i, references.faces, columns) for i in range(len(outputs))]
    judges = references.judges
    who = judges.describe(), judges.identity.independent, len(_gallery(items))
    return Result(outputs.method.name, outputs.pairs.task, rows, *who, *seen.fid(), outputs)


class _Seen:
    """What is measured while the outputs pass: values (n,), and (n, D) of each judge with NaN rows where there is no face."""

    def __init__(self, references: References, find_faces: FindFaces, method: Method) -> None:
        self.references, self.find_faces, self.method = references, find_faces, method
        self.found: list[bool] = []
        self.pixels: list[dict[str, float]] = []
        self.vectors: dict[str, list[np.ndarray | None]] = {role: [] for role in references.judges.named}
        self.moments = Moments()

    def add(self, items: Sequence[Item], pictures: Sequence[Picture | None]) -> None:
        scenes = roles(items, "scene")
        crops, landmarks = self.references.crops(scenes), self.references.faces.landmarks[scenes]
        own = self.method.regions(items) if isinstance(self.method, Regional) else None
        masks = self.references.judges.region.masks(crops, landmarks) if own is None else own
        self.pixels += [_pixels(*each) for each in zip(items, pictures, crops, masks, strict=True)]
        marks = [None if p is None else face_in_place(self.find_faces(p, len(p)), own) for p, own in zip(pictures, landmarks, strict=True)]
        self.found += [points is not None for points in marks]
        self._judge(pictures, marks)

    def _judge(self, pictures: Sequence[Picture | None], marks: Sequence[np.ndarray | None]) -> None:
        """Every judge on the pictures that have a face, at once; FID's features of all that are there."""
        judges = self.references.judges
        faces = [(picture, points) for picture, points in zip(pictures, marks, strict=True) if points is not None]
        crops, landmarks = np.array([picture for picture, _ in faces]), np.array([points for _, points in faces])
        for role, vectors in self.vectors.items():
            values = iter(judges.see(role, crops, landmarks) if faces else ())
            vectors += [None if points is None else next(values) for points in marks]
        if judges.inception and (given := [picture for picture in pictures if picture is not None]):
            self.moments.add(judges.inception(np.stack(given)))

    def of(self, role: str, width: int) -> np.ndarray:
        """(n, width) of one judge."""
        return np.array([np.full(width, np.nan) if row is None else row for row in self.vectors[role]], np.float64).reshape(-1, width)

    def against(self, role: str, wanted: Sequence[int], metric: Callable[[Any, Any], np.ndarray]) -> np.ndarray:
        """(n,): a metric of one judge's view of the outputs and of the photographs `wanted`."""
        reference = self.references.of(role, wanted)
        return metric(self.of(role, reference.shape[1]), reference)

    def columns(self) -> dict[str, np.ndarray]:
        return {"found": np.array(self.found)} | {name: np.array([row[name] for row in self.pixels]) for name in _PIXELS}

    def fid(self) -> tuple[float | None, str]:
        """(distance, between what) or (None, why not)."""
        judges = self.references.judges
        if not judges.inception:
            return None, judges.absent.get("fid", "no network for its features was given")
        photographs = self.references.moments(judges.inception)
        if min(self.moments.count, photographs.count) < 2:
            return None, "fewer than two pictures"
        return frechet(self.moments, photographs), f"between {self.moments.count} outputs and {photographs.count} photographs"


def _pixels(item: Item, picture: Picture | None, scene: Picture, mask: np.ndarray) -> dict[str, float]:
    """_PIXELS of one output, NaN where they have no meaning."""
    values = dict.fromkeys(_PIXELS, float("nan"))
    if picture is None:
        return values
    if item.scene == item.identity == item.expression:
        values |= {name: metric(picture, scene) for name, metric in (("mse", metrics.mse), ("psnr", metrics.psnr), ("ssim", metrics.ssim))}
    return values | {"background": metrics.background_difference(picture, scene, mask), "seam": metrics.seam(picture, scene, mask)}


# --- columns ------------------------------------------------------------------------------------------------------------


def _identity(items: Sequence[Item], seen: _Seen) -> dict[str, np.ndarray]:
    """Likeness to the identity image, its rank among all identity images of the list, and likeness to the scene's own person."""
    references = seen.references
    sources, wanted = _gallery(items), roles(items, "identity")
    vectors = references.of("identity", sources)
    # Two points are opposite about their mean.
    mean = vectors.mean(axis=0) if references.judges.identity.centred and len(sources) > 2 else 0.0
    made, own = seen.of("identity", vectors.shape[1]) - mean, [sources.index(i) for i in wanted]
    ranks = metrics.retrieval_ranks(made, vectors - mean, own, [references.faces.person(i) for i in sources])
    return {
        "id_cosine": metrics.cosine(made, vectors[own] - mean),
        "id_scene_cosine": metrics.cosine(made, references.of("identity", roles(items, "scene")) - mean),
        **{"id_rank": ranks, "id_top1": metrics.hit(ranks, 1), "id_top5": metrics.hit(ranks, 5)},
    }


def _gallery(items: Sequence[Item]) -> list[int]:
    """The source images that retrieval chooses among: every identity image of the list once."""
    return sorted(set(roles(items, "identity")))


def _expression(items: Sequence[Item], seen: _Seen) -> dict[str, np.ndarray]:
    wanted = roles(items, "expression")
    columns = {"expression_distance": seen.against("expression", wanted, metrics.expression_distance)}
    if seen.references.judges.coefficients is None:
        return columns
    asked = seen.references.of("coefficients", wanted)
    shown = seen.of("coefficients", asked.shape[1])
    columns["blendshape_distance"] = metrics.expression_distance(shown, asked)
    for name, places in {"smile": _SMILE, "jaw_open": _JAW_OPEN}.items():
        columns |= {name: shown[:, places].mean(axis=1), f"{name}_wanted": asked[:, places].mean(axis=1)}
    return columns


def _pose(items: Sequence[Item], seen: _Seen) -> dict[str, np.ndarray]:
    return {"pose_error": seen.against("pose", roles(items, "scene"), metrics.pose_distance)}


def _row(outputs: Outputs, i: int, faces: Faces, columns: Mapping[str, np.ndarray]) -> Row:
    pairs, item = outputs.pairs, outputs.pairs.items[i]
    people = {faces.person(k) for k in (item.scene, item.identity, item.expression)}
    return {
        **{"method": outputs.method.name, "task": pairs.task, "item": i, "seed": pairs.seeds[i]},
        **dict(zip(ROLES, face_ids(item, faces), strict=True)),
        **{"emotion": faces.label(item.expression, "emotion"), "distinct": len(people) == _PEOPLE[pairs.task]},
        **{"found": bool(columns["found"][i]), **{name: _value(columns, name, i) for name in MEASURED}},
    }


def _value(columns: Mapping[str, np.ndarray], name: str, i: int) -> float | None:
    return None if name not in columns or np.isnan(columns[name][i]) else float(columns[name][i])
