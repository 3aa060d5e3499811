"""Our own model as a method: outputs on aligned faces, finished as a portrait is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffsfsr import tables
from diffsfsr.evaluation.items import Faces, Item, Picture, roles
from diffsfsr.face.alignment import paste_back
from diffsfsr.face.images import to_tensor
from diffsfsr.face.warping import FEATHER
from diffsfsr.portrait.compose import Studio

_IN_PLACE = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
_RECIPE = 7  # goes up with every change of what is made below


class Ours:
    """Each scene's crop with the generated face pasted in, the rest of it untouched."""

    def __init__(self, studio: Studio, faces: Faces, weights: str, name: str = "ours") -> None:
        """`weights`: the hash of the model's files. Which of its encoders are on this machine counts too: the others' slots are null."""
        self.studio, self.faces, self.name = studio, faces, name
        self.version = tables.fingerprint(weights, sorted(studio.absent), str(studio.device.type), FEATHER, _RECIPE)

    @torch.inference_mode()
    def __call__(self, items: Sequence[Item], seeds: Sequence[int]) -> list[Picture | None]:
        """Finished crops, (S, S, 3) uint8. Alone or with others, an item gives the same but for rounding."""
        return self.painted(items, self.expressions(roles(items, "expression")), seeds)

    @torch.inference_mode()
    def expressions(self, indices: Sequence[int]) -> Tensor:
        """(B, 16), unit length: what those faces show."""
        return self.studio.dln(*self._seen(indices))

    @torch.inference_mode()
    def painted(
        self, items: Sequence[Item], expressions: Tensor, seeds: Sequence[int], negative: Tensor | None = None
    ) -> list[Picture | None]:
        """The items with other expressions (B, 16) than those of their expression images, away from the `negative` ones where given."""
        crops, landmarks, who = self._sitters(items)
        masks = self.studio.masks(crops, landmarks, who, expressions)
        scenes = to_tensor(crops).to(self.studio.device)
        made = self.studio.generate(scenes, masks, landmarks, who, expressions, seeds, negative=negative)
        return [paste_back(scene, crop, _IN_PLACE, mask, FEATHER) for scene, crop, mask in zip(crops, made, masks, strict=True)]

    @torch.inference_mode()
    def regions(self, items: Sequence[Item]) -> np.ndarray:
        """(B, S, S), 0 and 1: what of the items' scenes is painted."""
        return self.studio.masks(*self._sitters(items), self.expressions(roles(items, "expression")))

    def _sitters(self, items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray, dict[str, Tensor]]:
        """Crops of the scenes, their landmarks, and who is shown."""
        scenes = roles(items, "scene")
        who = self.studio.identity(*self._seen(roles(items, "identity")))
        return np.stack([self.faces.crops[i] for i in scenes]), self.faces.landmarks[scenes], who

    def _seen(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        images = to_tensor(np.stack([self.faces.crops[i] for i in indices]))
        landmarks = torch.from_numpy(np.float32(self.faces.landmarks[list(indices)]))
        return images.to(self.studio.device), landmarks.to(self.studio.device)
