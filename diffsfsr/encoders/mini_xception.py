"""The expression classifier "mini_xception": one of seven emotions by the looks of a face, not by its geometry. It only judges.

Arriaga et al. (2017), trained on FER-2013. It is no encoder: nothing conditions on it, trains through it or keeps what it gives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffsfsr import weights
from diffsfsr.encoders.face_box import yunet_box
from diffsfsr.encoders.frozen import freeze, weights_version
from diffsfsr.encoders.onnx_net import OnnxNet
from diffsfsr.encoders.warp import warp

LABELS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")  # in the network's order
_SIZE = 64
_WIDER = 1.1  # than the larger side of the detector's box
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601), as OpenCV and PIL make it


class MiniXception(nn.Module):
    """A level grey chip, seven probabilities. Frozen."""

    name = "mini_xception"
    labels = LABELS
    luma: Tensor

    def __init__(self) -> None:
        """Raises NotReady when the zoo's `mini_xception` is not on this machine, InputError for another network."""
        super().__init__()
        noise = 2 * torch.rand(2, 1, _SIZE, _SIZE, generator=torch.Generator().manual_seed(0)) - 1
        self.net = OnnxNet.tried(self.name, weights.resolve(self.name), noise, gives=[(2, len(LABELS))])
        self.register_buffer("luma", torch.tensor(_LUMA).view(3, 1, 1), persistent=False)
        self.version = weights_version(self.net, "YuNet box of the landmarks, larger side x 1.1, 64, grey x / 127.5 - 1")
        freeze(self)

    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """images (B, 3, H, W) RGB in [-1, 1], landmarks (B, 68, 2) in their pixels -> (B, 7) probabilities of `labels`."""
        return self.net(self.chips(images, landmarks))

    def chips(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """What the network is shown: (B, 1, 64, 64) in [-1, 1], the eyes level, black outside the picture."""
        face = yunet_box(landmarks)
        box = face.square(_WIDER * torch.maximum(face.width, face.height))
        chips = warp(images.float(), box.matrix(_SIZE), (_SIZE, _SIZE), outside=-1.0)
        return (chips * self.luma).sum(1, keepdim=True)
