"""What glasses do to an identity embedding, so that who wears them can be shown without.

A recogniser tells a face with glasses from the same face without. A model that learned from such embeddings paints glasses for whoever
wears them on the selfie: a small one paints ghosts of them, into scenes with glasses as into scenes without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffsfsr.encoders.state_file import read_tensors

GLASSES = "glasses.safetensors"  # what a file of them is called, in a model's folder
_FEWEST, _PAIRS = 100, 30  # faces that wear glasses, and people seen with and without, from which this can be told
_SHRUNK = 0.01  # of the mean variance, added to each: embeddings vary in fewer directions than they have
_ROUNDS = 3  # of recognisers that tell each other who wears glasses


@dataclass(frozen=True)
class Glasses:
    """Of one encoder: `normal` (D,) and `offset` () score an embedding, -1 as faces without glasses have in the mean and 1 as those with
    them; `shift` (D,) is what putting them on adds, and raises the score by 2."""

    normal: Tensor
    offset: Tensor
    shift: Tensor

    def score(self, embeddings: Tensor) -> Tensor:
        """(B, D) -> (B,)."""
        return embeddings @ self.normal.to(embeddings) + self.offset.to(embeddings)


def worn(embeddings: Mapping[str, np.ndarray], seem: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(n,) bool: who wears glasses, among faces of people of those names of which they only `seem` (n,) to. Recogniser -> (n, D) raw
    embeddings, rows of NaN where it has none.

    What few pictures say of glasses, several recognisers see in all of them, each otherwise: the mean of their scores is right oftener than
    any of them, and tells them anew (co-training, Blum and Mitchell 1998), each time by other people than those who are scored. A
    recogniser that knows too few of the faces says nothing; where none does, it is those that seem to.
    """
    wears, half = seem.copy(), np.unique(names, return_inverse=True)[1] % 2 == 0
    for left in reversed(range(_ROUNDS)):
        scores = np.full((len(embeddings), len(seem)), np.nan)
        for faces, own in zip(embeddings.values(), scores, strict=True):
            seen = np.isfinite(faces).all(1)
            for there in (half, ~half):
                others = seen & ~there
                if wears[others].sum() >= _FEWEST / 2 and not wears[others].all():
                    normal, offset = _discriminant(faces[others].astype(np.float64), wears[others])
                    own[seen & there] = faces[seen & there] @ normal + offset
        scored = np.isfinite(scores).any(0)
        wears = seem.copy()
        wears[scored] = (np.nanmean(scores[:, scored], axis=0) > 0) | (seem[scored] & bool(left))  # the rule counts until the last
    return wears


def told(embeddings: np.ndarray, wears: np.ndarray, names: Sequence[str]) -> Glasses | None:
    """What `wears` (n,) bool is told by in raw embeddings (n, D) of faces of people of those names; a row that is not finite says nothing.
    None where there are too few to tell.

    The score must not say what putting glasses on does, for who wears them is older and more often a man: that is the mean difference
    between the faces of one person.
    """
    seen = np.isfinite(embeddings).all(1)
    faces, wears, people = embeddings[seen].astype(np.float64), wears[seen], np.array(names, np.str_)[seen]
    apart = [
        faces[own & wears].mean(axis=0) - faces[own & ~wears].mean(axis=0)
        for own in (people == person for person in np.intersect1d(people[wears], people[~wears]))
    ]
    if wears.all() or wears.sum() < _FEWEST or len(apart) < _PAIRS:
        return None
    normal, offset = _discriminant(faces, wears)
    shift = np.mean(apart, axis=0)
    if normal @ shift <= 0:
        return None
    shift *= 2 / (normal @ shift)
    return Glasses(*(torch.tensor(value, dtype=torch.float32) for value in (normal, offset, shift)))


def _discriminant(faces: np.ndarray, wears: np.ndarray) -> tuple[np.ndarray, float]:
    """Fisher's linear discriminant (1936), normal (D,) and offset: faces (n, D) without glasses score -1 in the mean, those with them 1."""
    centre, without = faces[wears].mean(axis=0), faces[~wears].mean(axis=0)
    spread = np.cov(np.concatenate([faces[wears] - centre, faces[~wears] - without]).T)
    spread += _SHRUNK * np.trace(spread) / len(spread) * np.eye(len(spread))
    normal = np.linalg.lstsq(spread, centre - without, rcond=None)[0]  # all embeddings may be one
    normal *= 2 / max(normal @ (centre - without), np.finfo(float).tiny)
    return normal, -normal @ (centre + without) / 2


def wearers(identity: Mapping[str, Tensor], known: Mapping[str, Glasses]) -> np.ndarray:
    """(B,) bool: which of identities, encoder -> (B, D) raw embeddings, wear glasses; nobody where no encoder tells."""
    scores = [own.score(identity[name]) for name, own in known.items() if name in identity]
    batch = len(next(iter(identity.values()), ()))
    return (torch.stack(scores).mean(0) > 0).cpu().numpy() if scores else np.zeros(batch, bool)


def taken_off(identity: Mapping[str, Tensor], known: Mapping[str, Glasses]) -> dict[str, Tensor]:
    """Identities, encoder -> (B, D) raw embeddings, that score no higher than faces without glasses do in the mean; encoders of which it is
    not known as they are."""

    def bare(own: Glasses, embeddings: Tensor) -> Tensor:
        over = (own.score(embeddings) + 1).clamp(min=0) / 2
        return embeddings - over[:, None] * own.shift.to(embeddings)

    return {name: bare(known[name], embeddings) if name in known else embeddings for name, embeddings in identity.items()}


def save(known: Mapping[str, Glasses], model: Path) -> None:
    """Into a saved model's folder, where any is known."""
    from safetensors.torch import save_file

    if known:
        save_file({f"{name}.{part.name}": getattr(own, part.name) for name, own in known.items() for part in fields(own)}, model / GLASSES)


def load(model: Path, dims: Mapping[str, int] | None = None) -> dict[str, Glasses]:
    """Of each encoder that a saved model tells it of; {} where there is none. Raises OSError or ValueError for a file that
    is broken, or does not fit embeddings of the widths `dims`."""
    file = model / GLASSES
    if not file.is_file():
        return {}
    tensors = read_tensors(file)
    known = {}
    for name in sorted({name.rpartition(".")[0] for name in tensors}):
        try:
            own = known[name] = Glasses(*(tensors[f"{name}.{part.name}"] for part in fields(Glasses)))
        except KeyError as missing:
            raise ValueError(f"{file} lacks {missing}") from missing
        width = len(own.normal) if dims is None else dims.get(name)
        if [own.normal.shape, own.offset.shape, own.shift.shape] != [(width,), (), (width,)]:
            raise ValueError(f"{file} does not fit the embeddings of {name}")
    return known
