"""What the pose of a head adds to an expression embedding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffsfsr.face.gestures import GESTURES, gestures
from diffsfsr.face.pose import head_pose

POSE_TERMS = 4
_TURN, _FURTHEST = 20.0, 3.0  # degrees that count as one in `pose_terms`, and the most that counts: beyond it landmarks are wrong
_FEWEST = 300  # faces from which a drift can be told
_TAKEN = 0.4  # of what the regression finds: who looks up also smiles less in truth, and with all of it gone so is some of the smile


def pose_terms(landmarks: Tensor) -> Tensor:
    """(B, 68, 2) in any pixels -> (B, 4) float32: yaw and pitch in units of 20 degrees, and their squares. Without gradient."""
    # Whoever changes what this gives names it in the recipe of `Dln.version`: embeddings are cached by that.
    poses = [head_pose(points) for points in landmarks.detach().float().cpu().numpy()]
    turned = torch.tensor([(pose.yaw, pose.pitch) for pose in poses], device=landmarks.device).reshape(-1, 2) / _TURN
    turned = turned.clamp(-_FURTHEST, _FURTHEST)
    return torch.cat([turned, turned.square()], 1)


def pose_drift(embeddings: Tensor, landmarks: Tensor, labels: Sequence[str]) -> Tensor:
    """(4, dim): how unit embeddings (n, dim) of faces with landmarks (n, 68, 2) move with `pose_terms`, at equal expression.

    A picture of a face tells its expression and its pose together: who looks up seems to smile, and a network that learned expressions
    from pictures says so. A model that is asked for such an embedding turns the head. By least squares, beside what a turn changes little,
    so that expressions that go with a pose are left alone: the label, and all that the face does but the corners of its mouth; and most of
    that, not all. All zero where the faces are too few to tell.
    """
    if len(embeddings) < _FEWEST:
        return embeddings.new_zeros(POSE_TERMS, embeddings.shape[1])
    terms = pose_terms(landmarks).double().cpu()
    shown = torch.from_numpy(np.delete(gestures(landmarks.cpu().numpy()), GESTURES.index("corners"), axis=1)).double()
    words = torch.tensor([[label == word for word in sorted(set(labels))] for label in labels]).double()
    solution = torch.linalg.lstsq(torch.cat([terms, shown, words], 1), embeddings.double().cpu(), driver="gelsd").solution
    return _TAKEN * solution[:POSE_TERMS].to(embeddings)
