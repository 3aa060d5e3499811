"""The expression encoder "blendshapes": MediaPipe's face mesh, then its 52 blendshape coefficients; differentiable.

A measure of facial geometry that knows nothing of who it is: a judge of expression, and a teacher of the DLN. Both networks are
Google's (Apache-2.0), and so are the two lists below.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffsfsr import weights
from diffsfsr.encoders.face_box import FaceBox, yunet_box
from diffsfsr.encoders.frozen import freeze, weights_version
from diffsfsr.encoders.onnx_net import OnnxNet
from diffsfsr.encoders.warp import inverse, warp

# fmt: off
# Which of the 478 landmarks the coefficients are read from, in the network's order (MediaPipe, face_blendshapes_graph.cc).
POINTS = (
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78, 80, 81, 82, 84,
    87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152, 153, 154, 155, 157, 158, 159,
    160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249, 251, 263, 267, 269, 270, 276, 282, 283,
    284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314, 317, 318, 321, 323, 324, 332, 334, 336, 338, 356, 361,
    362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382, 384, 385, 386, 387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415,
    454, 466, 468, 469, 470, 471, 472, 473, 474, 475, 476, 477,
)
# Left and right are the person's own.
NAMES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft",
    "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose",
    "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel", "mouthLeft",
    "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker", "mouthRight",
    "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft", "mouthSmileRight",
    "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight",
)
# fmt: on
_SIZE = 256  # of the face mesh's chip
_WIDER = 1.5  # than the detector's box
_LANDMARKS = 478


class BlendshapeEncoder(nn.Module):
    """Chip, 478 landmarks, 146 of them, 52 coefficients. Frozen."""

    name = "blendshapes"
    dim = len(NAMES)
    centred = False
    names = NAMES
    points: Tensor

    def __init__(self) -> None:
        """Raises NotReady when a file of the zoo's `facemesh` and `blendshapes` is not on this machine, InputError for another network."""
        super().__init__()
        mesh, coefficients = (weights.resolve(name) for name in ("facemesh", "blendshapes"))
        noise = torch.rand(2, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(0))
        self.mesh = OnnxNet.tried("facemesh", mesh, noise, gives=[(2, 3 * _LANDMARKS), (2, 1)])
        points = noise.flatten()[: 4 * len(POINTS)].view(2, -1, 2) * _SIZE
        self.coefficients = OnnxNet.tried("blendshapes", coefficients, points, gives=[(2, self.dim)])
        self.register_buffer("points", torch.tensor(POINTS), persistent=False)
        self.version = weights_version(self, "YuNet box of the landmarks x 1.5, 256; points of the upright chip")
        freeze(self)

    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1], landmarks (B, 68, 2) in their pixels -> (B, 52) coefficients in 0..1, `names` in order.

        They are read from the points of the chip, whose eyes are level, so that a tilted head is no expression.
        """
        mesh, _ = self._mesh(images, landmarks)
        return self.coefficients(mesh[:, self.points, :2])

    def landmarks(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """The face mesh: (B, 478, 3), x and y in pixels of the pictures, z on the same scale, smaller toward the camera."""
        mesh, box = self._mesh(images, landmarks)
        back = inverse(box.matrix(_SIZE))
        (x, y), z = (mesh[..., :2] - 0.5).unbind(-1), mesh[..., 2]  # the mesh counts from the edge of the first pixel
        (a, b, u), (c, d, v) = (row[:, None].unbind(-1) for row in back.unbind(1))
        return torch.stack([a * x + b * y + u, c * x + d * y + v, z * (box.width / _SIZE)[:, None]], -1)

    def _mesh(self, images: Tensor, landmarks: Tensor) -> tuple[Tensor, FaceBox]:
        """The 478 landmarks in pixels of the chip, and the chip's box."""
        face = yunet_box(landmarks)
        box = face.square(_WIDER * torch.maximum(face.width, face.height))
        chips = warp(images.float(), box.matrix(_SIZE), (_SIZE, _SIZE), outside=-1.0)
        return self.mesh((chips + 1) / 2)[0].reshape(-1, _LANDMARKS, 3), box
