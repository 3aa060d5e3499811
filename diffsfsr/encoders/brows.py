"""Where somebody's brows are when the face does something, as its embeddings tell it, so that the facial region need not be the scene's.

A facial region drawn from landmarks begins at a height above the brows that is the same for all faces. A network that learned to fill such
regions sets the brows by it, whoever it is told and whatever the face is to do: a scene's frown stays under somebody else's surprise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffsfsr.encoders.pose_drift import pose_terms
from diffsfsr.encoders.state_file import read_tensors
from diffsfsr.face.gestures import upright

BROWS = "brows.safetensors"  # what a file of it is called, in a model's folder
_EXPRESSION, _AT = "expression", slice(17, 27)  # the brows among the 68 landmarks
_FEWEST = 2000  # faces from which this can be told: an identity has more numbers than most data sets have faces
_SHRUNK = 0.01  # of the mean variance, added to each: embeddings vary in fewer directions than they have
_STRAY = 6.0  # standard deviations from the mean beyond which a landmark was found wrongly
_FURTHEST = 0.3  # of the distance from the eyes to the upper lip: no brow moves further, whatever an embedding says


@dataclass(frozen=True)
class Brows:
    """`moves`: of the expression, and of each identity encoder, the (D, 10) by which a change of its embedding lowers the brows' landmarks,
    in the face's own frame (`face.gestures.upright`)."""

    moves: Mapping[str, Tensor]

    def moved(self, landmarks: np.ndarray, expression: Tensor, identity: Mapping[str, Tensor]) -> np.ndarray:
        """(B, 68, 2) landmarks in any unit -> (B, 10, 2), where their brows would be with embeddings that differ by `expression` (B, D) and
        by those of `identity`, encoder -> (B, D); an encoder of which nothing is known moves nothing."""
        _, axes, unit = upright(landmarks)
        told = {_EXPRESSION: expression} | {name: change for name, change in identity.items() if name in self.moves}
        steps = torch.stack([change.double().cpu() @ self.moves[name].double() for name, change in told.items()])
        lower = steps.sum(0).clamp(-_FURTHEST, _FURTHEST).numpy() * unit[:, None]
        return landmarks[:, _AT] + lower[..., None] * axes[:, None, 1]


def told(landmarks: np.ndarray, expression: np.ndarray, identity: Mapping[str, np.ndarray]) -> Brows | None:
    """Ridge regression of the brows of faces with landmarks (n, 68, 2) on their expression embeddings (n, E) and raw identity embeddings,
    encoder -> (n, D), beside the pose of their heads. None where the faces are too few to tell."""
    embeddings = {_EXPRESSION: expression, **identity}
    whole = np.isfinite(landmarks).all((1, 2)) & (np.ptp(landmarks, 1) > 0).all(1)
    whole &= np.all([np.isfinite(each).all(1) for each in embeddings.values()], axis=0)
    if whole.sum() < _FEWEST:
        return None
    landmarks, embeddings = landmarks[whole], {name: each[whole] for name, each in embeddings.items()}
    origin, axes, unit = upright(landmarks)
    heights = np.einsum("nkd,nd->nk", landmarks[:, _AT] - origin[:, None], axes[:, 1]) / unit[:, None]
    right = (np.abs(heights - heights.mean(0)) < _STRAY * heights.std(0)).all(1)
    posed = np.column_stack([pose_terms(torch.from_numpy(landmarks)).numpy(), np.ones(len(landmarks))])
    inputs = np.concatenate([*embeddings.values(), posed], axis=1)[right]
    shrunk = [np.full(each.shape[1], _SHRUNK * each.var(0).mean()) for each in embeddings.values()]
    ridge = len(inputs) * np.diag(np.concatenate([*shrunk, np.zeros(posed.shape[1])]))
    solution = np.linalg.lstsq(inputs.T @ inputs + ridge, inputs.T @ heights[right], rcond=None)[0]  # heads may all be held alike
    parts = np.split(solution, np.cumsum([each.shape[1] for each in embeddings.values()]))
    return Brows({name: torch.tensor(part, dtype=torch.float32) for name, part in zip(embeddings, parts[:-1], strict=True)})


def save(brows: Brows | None, model: Path) -> None:
    """Into a saved model's folder, where they are known."""
    from safetensors.torch import save_file

    if brows:
        save_file({name: part.contiguous() for name, part in brows.moves.items()}, model / BROWS)


def load(model: Path, dims: Mapping[str, int] | None = None) -> Brows | None:
    """What a saved model knows; None where that is nothing. Raises OSError or ValueError for a file that is broken, or
    does not fit embeddings of the widths `dims`, by encoder and of "expression"."""
    file, points = model / BROWS, _AT.stop - _AT.start
    if not file.is_file():
        return None
    moves = read_tensors(file)
    if _EXPRESSION not in moves:
        raise ValueError(f"{file} lacks '{_EXPRESSION}'")
    for name, part in moves.items():
        if part.ndim != 2 or part.shape[1] != points or (dims is not None and dims.get(name) != part.shape[0]):
            raise ValueError(f"{file} does not fit the embeddings of {name}")
    return Brows(moves)
