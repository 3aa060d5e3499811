"""The expression encoder: which two of three faces look alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsfsr.config import Preset
from diffsfsr.training.data import Batch, Crops, Position
from diffsfsr.training.run import Inputs

_SEEN, _AT_ONCE = 5000, 32  # faces by which the drift with the head's pose is told, and in one call of the network


class ExpressionObjective:
    """The DLN: faces of one expression near each other, whoever shows it (Zhang et al., CVPR 2021).

    An item is a triplet. A micro batch's triplets are among fewer faces than they have places, which are encoded once each.
    """

    def __init__(self, preset: Preset, inputs: Inputs) -> None:
        from diffsfsr.encoders.dln import BACKBONES, AnnotatedDln, Dln
        from diffsfsr.training.triplets import Miner
        from diffsfsr.weights import resolve

        self.preset = preset
        self.crops = Crops(list(inputs.shards), preset.crop)
        self.miner = Miner([_triplet_source(name, self.crops, inputs) for name in preset.dln.triplets])
        backbone = BACKBONES[preset.dln.backbone]
        dln = Dln.from_identity(resolve(backbone.published), preset.dln.dim, backbone=backbone.name)
        self.network = AnnotatedDln(dln, len(self.miner.annotators))

    def draw(self, at: Position) -> Batch:
        """images (F, 3, S, S) and landmarks (F, 68, 2) of the faces; triplets (B, 3) among them, annotator (B,), margin (B,)."""
        group = self.miner.draw(self.preset.training.batch, at.rng())
        margins = np.where(group.one_class, self.preset.dln.margin_one_class, self.preset.dln.margin)
        terms = {"triplets": group.triplets, "annotator": group.annotator, "margin": margins.astype(np.float32)}
        return self.crops.batch(group.faces) | {name: torch.from_numpy(value) for name, value in terms.items()}

    def losses(self, network: Callable[..., Any], batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """'loss' (B,), and 'accuracy' (B,): 1 where the triplet is right as its annotator sees it."""
        from diffsfsr.encoders.dln import triplet_correct, triplet_loss

        anchor, positive, negative = network(batch["images"], batch["landmarks"], batch["triplets"], batch["annotator"]).float()
        loss = triplet_loss(anchor, positive, negative, batch["margin"])
        return {"loss": loss, "accuracy": triplet_correct(anchor, positive, negative).float()}

    def save(self, folder: Path) -> None:
        """The DLN alone: an embedding is used without the crowd layer, and less its drift with the head's pose."""
        from diffsfsr.encoders.pose_drift import pose_drift

        dln, seen = self.network.dln.alone(), np.linspace(0, len(self.crops) - 1, min(len(self.crops), _SEEN)).astype(np.int64)
        with torch.no_grad():
            batches = map(self.crops.batch, np.array_split(seen, -(-len(seen) // _AT_ONCE)))
            parts = [dln(**{name: value.to(dln.drift.device) for name, value in batch.items()}).cpu() for batch in batches]
        landmarks = torch.from_numpy(self.crops.landmarks[seen])
        dln.drift.copy_(pose_drift(torch.cat(parts), landmarks, [self.crops.emotions[i] for i in seen]))
        dln.save(folder)


def _triplet_source(name: str, crops: Crops, inputs: Inputs) -> Any:
    """Who says which of three faces look alike, by the name in `dln.triplets`."""
    from diffsfsr.face.gestures import gestures
    from diffsfsr.training import triplets

    if name == "labels":
        return triplets.Labels(crops.emotions, crops.people)
    if name == "landmarks":
        return triplets.Coefficients(gestures(crops.landmarks), crops.people, crops.emotions, name)
    if name == "blendshapes":
        coefficients = triplets.read_teacher([Path(file) for file in inputs.teacher], crops.face_ids)
        return triplets.Coefficients(coefficients, crops.people, crops.emotions)
    return triplets.Annotations([Path(file) for file in inputs.triplets], crops.face_ids)
