"""How good an expression encoder is on people it was not trained on: does it see the expression, and does it not see who shows it.

Every figure is a statistic of faces that carry whole weights, so that one bootstrap serves them all: people are drawn with
replacement, with all their pictures, since pictures of one person are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from diffsfsr.encoders.dln import Dln, triplet_correct
from diffsfsr.errors import InputError
from diffsfsr.evaluation.metrics import Interval, auc
from diffsfsr.training.data import Crops
from diffsfsr.training.triplets import Coefficients, Labels, Miner, Source, blendshape_distance

HAPPY, NEUTRAL = "happiness", "neutral"
_SMILE = (44, 45)  # mouthSmileLeft and mouthSmileRight among the 52 coefficients
Statistic = Callable[[np.ndarray], float]  # whole weights (n,) of the faces -> a number, NaN where it is not defined


@dataclass(frozen=True, eq=False)
class Faces:
    """Faces as an expression encoder and its identity twin see them, one row a face."""

    expression: np.ndarray  # (n, D) unit length
    identity: np.ndarray  # (n, K) of the frozen twin
    people: list[str]
    labels: list[str]  # emotion words; empty where there is none
    blendshapes: np.ndarray | None = None  # (n, 52), NaN where unknown


@torch.no_grad()
def encode(dln: Dln, crops: Crops, blendshapes: np.ndarray | None = None, batch: int = 64) -> Faces:
    """All crops through a DLN and through its frozen twin alone, on the DLN's device."""
    device = next(dln.parameters()).device
    expression, identity = [], []
    for part in np.array_split(np.arange(len(crops)), -(-len(crops) // batch)):
        drawn = crops.batch(part)
        images, landmarks = drawn["images"].to(device), drawn["landmarks"].to(device)
        chips = dln.backbone.chips(images, landmarks)
        expression.append(dln.less_drift(dln.embed(chips), landmarks).float().cpu().numpy())
        identity.append(dln.frozen(chips).float().cpu().numpy())
    return Faces(np.concatenate(expression), np.concatenate(identity), crops.people, crops.emotions, blendshapes)


def measure(held_out: Faces, trained: Faces, annotations: Source | None = None, draws: int = 300, seed: int = 0) -> dict[str, Interval]:
    """Everything below, of people held out; `trained`, faces of others, gives the centroids of expressions and of identity.

    happiness_auc               happiness against neutral by the DLN, as labelled
    happiness_auc_smile         the same by the teacher's smile coefficients alone
    happiness_auc_twin          the same by the frozen identity twin
    triplets_<source>           share of triplets that are right; chance is a third
    blendshape_correlation      Spearman's, of embedding distance with blendshape distance, over pairs of different people
    identity_top1               retrieval of a person's other picture by the DLN among one picture of everyone
    identity_top1_twin          the same by the frozen twin
    identity_leakage            the former as a share of the latter
    What the faces do not allow (no label, no second picture, no teacher) is absent. Who has no name is a person of their own.
    """
    found: dict[str, Interval] = {}
    held_out = replace(held_out, people=[name or f"nobody {i}" for i, name in enumerate(held_out.people)])
    statistics = {**_happiness(held_out, trained), **_triplets(held_out, annotations, seed), **_alignment(held_out, seed)}
    statistics |= _leakage(held_out, trained, seed)
    for name, statistic in statistics.items():
        if not np.isnan(statistic(np.ones(len(held_out.people), np.int64))):
            found[name] = bootstrap(statistic, held_out.people, draws, seed)
    return found


def bootstrap(statistic: Statistic, people: Sequence[str], n: int = 300, seed: int = 0, level: float = 0.95) -> Interval:
    """A statistic with its percentile interval over n resamplings of the people; draws where it is not defined are left out.

    `count` is the number of people.
    """
    who = np.unique(np.array(people, np.str_), return_inverse=True)[1]
    count = int(who.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.multinomial(count, np.full(count, 1 / count))[who]) for _ in range(n)])
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(statistic(np.ones(len(who), np.int64)), float(low), float(high), count)


# --- statistics ---------------------------------------------------------------------------------------------------------


def correlation(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """Spearman's rank correlation of (n,) and (n,), each pair counted `weight` times."""
    from scipy.stats import rankdata

    a, b = (rankdata(np.repeat(values, weight)) for values in (x, y))
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and a.std() and b.std() else float("nan")


def nearer_to(vectors: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n, D) -> (n,): how much nearer each is to the centroid of `one` (m, D) than to that of `other`."""
    away = [np.linalg.norm(vectors - centroid.mean(0), axis=1) for centroid in (other, one)]
    return away[0] - away[1]


def retrieved(vectors: np.ndarray, people: Sequence[str], gallery: np.ndarray, probes: np.ndarray) -> np.ndarray:
    """(len(probes),) bool: the gallery face nearest by cosine is of the probe's own person. A tie counts as a miss."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = unit[probes] @ unit[gallery].T
    names = np.array(people, np.str_)
    own = names[gallery] == names[probes][:, None]
    return np.where(own, similar, -np.inf).max(1) > np.where(own, -np.inf, similar).max(1)


def draw_triplets(source: Source, count: int, seed: int = 0) -> np.ndarray:
    """(count, 3) rows of triplets from a source, drawn as training draws them."""
    group = Miner([source]).draw(count, np.random.default_rng(seed))
    return group.faces[group.triplets]


def _happiness(faces: Faces, trained: Faces) -> dict[str, Statistic]:
    labels, known = np.array(faces.labels, np.str_), np.array(trained.labels, np.str_)
    if not (known == HAPPY).any() or not (known == NEUTRAL).any():
        return {}
    asked = np.isin(labels, (HAPPY, NEUTRAL))

    def of(score: np.ndarray) -> Statistic:
        return lambda w: auc(score, labels == HAPPY, np.where(asked & np.isfinite(score), w, 0))

    scores = {
        "happiness_auc": nearer_to(faces.expression, trained.expression[known == HAPPY], trained.expression[known == NEUTRAL]),
        "happiness_auc_twin": nearer_to(faces.identity, trained.identity[known == HAPPY], trained.identity[known == NEUTRAL]),
    }
    if faces.blendshapes is not None:
        scores["happiness_auc_smile"] = faces.blendshapes[:, _SMILE].sum(1)
    return {name: of(score) for name, score in scores.items()}


def _triplets(faces: Faces, annotations: Source | None, seed: int, count: int = 1920) -> dict[str, Statistic]:
    makers: dict[str, Callable[[], Source]] = {"labels": lambda: Labels(faces.labels, faces.people)}
    if faces.blendshapes is not None:
        coefficients = faces.blendshapes
        makers["blendshapes"] = lambda: Coefficients(coefficients, faces.people, faces.labels)
    if annotations is not None:
        makers["annotations"] = lambda: annotations
    found: dict[str, Statistic] = {}
    for name, make in makers.items():
        try:
            rows = draw_triplets(make(), count, seed)
        except InputError:
            continue
        found[f"triplets_{name}"] = _share_right(faces, rows)
    return found


def _share_right(faces: Faces, rows: np.ndarray) -> Statistic:
    """A triplet counts once for each drawing of its anchor's, its positive's and, where it is a third person, its negative's person."""
    right = triplet_correct(*(torch.from_numpy(faces.expression[column]) for column in rows.T)).numpy()
    people = np.array(faces.people, np.str_)[rows]
    third = (people[:, 2] != people[:, 0]) & (people[:, 2] != people[:, 1])
    two = people[:, 0] != people[:, 1]

    def statistic(weight: np.ndarray) -> float:
        a, p, n = weight[rows].T
        w = a * np.where(two, p, 1) * np.where(third, n, 1)
        return float((w * right).sum() / w.sum()) if w.sum() else float("nan")

    return statistic


def _alignment(faces: Faces, seed: int, count: int = 5000) -> dict[str, Statistic]:
    if faces.blendshapes is None:
        return {}
    i, j = np.random.default_rng(seed).integers(0, len(faces.people), (2, count))
    people = np.array(faces.people, np.str_)
    distance = blendshape_distance(faces.blendshapes[i], faces.blendshapes[j])
    kept = (people[i] != people[j]) & np.isfinite(distance)
    i, j, distance = i[kept], j[kept], distance[kept]
    away = np.linalg.norm(faces.expression[i] - faces.expression[j], axis=1)
    return {"blendshape_correlation": lambda w: correlation(away, distance, w[i] * w[j])}


def _leakage(faces: Faces, trained: Faces, seed: int) -> dict[str, Statistic]:
    """One picture of each person, drawn at random, is the gallery; their others are the probes. Identity is centred (dlib)."""
    people = np.array(faces.people, np.str_)
    order = np.random.default_rng(seed).permutation(len(people))
    gallery = order[np.unique(people[order], return_index=True)[1]]
    probes = np.setdiff1d(order, gallery)
    if not len(probes) or len(gallery) < 2:
        return {}
    dln = retrieved(faces.expression, faces.people, gallery, probes)
    twin = retrieved(faces.identity - trained.identity.mean(0), faces.people, gallery, probes)

    def share(hits: np.ndarray, of: np.ndarray) -> Statistic:
        return lambda w: float((w[probes] * hits).sum() / total) if (total := (w[probes] * of).sum()) else float("nan")

    every = np.ones(len(probes), bool)
    return {"identity_top1": share(dln, every), "identity_top1_twin": share(twin, every), "identity_leakage": share(dln, twin)}


# --- pictures -----------------------------------------------------------------------------------------------------------


def plane(vectors: np.ndarray) -> np.ndarray:
    """(n, D) -> (n, 2): the first two principal components, each with its largest loading positive."""
    centred = vectors - vectors.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    return centred @ axes.T


def embedding_map(vectors: np.ndarray, names: Sequence[str], title: str, most: int = 10) -> np.ndarray:
    """A picture (H, W, 3) uint8 of embeddings (n, D) in their plane, coloured by name (a label, a person).

    The `most` frequent names have colours; other faces, and those without a name, are grey.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points, known = plane(vectors), np.array(names, np.str_)
    values, counts = np.unique(known[known != ""], return_counts=True)
    shown = values[np.argsort(-counts, kind="stable")[:most]]
    figure = Figure(figsize=(6, 5), dpi=100, layout="tight")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    rest = ~np.isin(known, shown)
    axes.scatter(points[rest, 0], points[rest, -1], s=5, color="0.8", label="others" if rest.any() else None)
    for i, name in enumerate(shown):
        axes.scatter(points[known == name, 0], points[known == name, -1], s=9, color=f"C{i % 10}", label=name)
    axes.set(title=title, xticks=[], yticks=[])
    axes.legend(fontsize=7, markerscale=1.5)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def maps(faces: Faces) -> dict[str, np.ndarray]:
    """The embedding map twice: where labels should part, and where people should not."""
    return {
        "by label": embedding_map(faces.expression, faces.labels, "expression embedding, by label"),
        "by person": embedding_map(faces.expression, faces.people, "expression embedding, by person"),
    }
