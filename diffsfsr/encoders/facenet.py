"""FaceNet (Schroff et al., CVPR 2015) as published in torch: Inception-ResNet-v1 (Szegedy et al., AAAI 2017) on 160 x 160 chips.

Modules carry the names of facenet-pytorch's state dicts, so that its 20180402-114759-vggface2.pt and
20180408-102900-casia-webface.pt load strictly. Sizes below are those of that port (of D. Sandberg's TensorFlow network), which
differ from the paper's Figure 3 in places.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsfsr import weights
from diffsfsr.encoders.frozen import freeze, weights_version
from diffsfsr.encoders.state_file import read_state
from diffsfsr.encoders.warp import TEMPLATES, template_matrix, warp

_CLASSIFIER = ("logits.weight", "logits.bias")  # of the people it was trained on; no embedding needs it


class Unit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int] = 1, stride: int = 1, pad: bool = True) -> None:
        """`pad`: keep the size, at stride 1."""
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pad and stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Branches side by side, their outputs concatenated: modules branch0, branch1, ..."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.count = len(branches)
        for i, branch in enumerate(branches):
            self.add_module(f"branch{i}", branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.get_submodule(f"branch{i}")(x) for i in range(self.count)], dim=1)


class InceptionResidual(Inception):
    """Branches, brought back to the input's channels by a 1 x 1 convolution, scaled and added to it."""

    def __init__(self, channels: int, *branches: nn.Module, width: int, scale: float, relu: bool = True) -> None:
        """`width`: channels of all branches together."""
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(width, channels, 1)
        self.scale, self.relu = scale, relu

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.conv2d(super().forward(x))
        return F.relu(x) if self.relu else x


def _block35() -> InceptionResidual:
    return InceptionResidual(
        256,
        Unit(256, 32),
        nn.Sequential(Unit(256, 32), Unit(32, 32, 3)),
        nn.Sequential(Unit(256, 32), Unit(32, 32, 3), Unit(32, 32, 3)),
        width=96,
        scale=0.17,
    )


def _block17() -> InceptionResidual:
    factored = nn.Sequential(Unit(896, 128), Unit(128, 128, (1, 7)), Unit(128, 128, (7, 1)))
    return InceptionResidual(896, Unit(896, 128), factored, width=256, scale=0.10)


def _block8(scale: float = 0.20, relu: bool = True) -> InceptionResidual:
    factored = nn.Sequential(Unit(1792, 192), Unit(192, 192, (1, 3)), Unit(192, 192, (3, 1)))
    return InceptionResidual(1792, Unit(1792, 192), factored, width=384, scale=scale, relu=relu)


class InceptionResnetV1(nn.Module):
    """The raw network: chips (B, 3, 160, 160) RGB, 0..255 -> embeddings (B, 512) of unit length, in the dtype of the chips.

    23.5 million parameters, and 27.9 with the published classifier, which is not kept. The port's dropout before
    `last_linear` has no state and does nothing in eval mode: it is left out.
    """

    dim = 512

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = Unit(3, 32, 3, stride=2)
        self.conv2d_2a = Unit(32, 32, 3, pad=False)
        self.conv2d_2b = Unit(32, 64, 3)
        self.conv2d_3b = Unit(64, 80)
        self.conv2d_4a = Unit(80, 192, 3, pad=False)
        self.conv2d_4b = Unit(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(_block35() for _ in range(5)))
        self.mixed_6a = Inception(
            Unit(256, 384, 3, stride=2),
            nn.Sequential(Unit(256, 192), Unit(192, 192, 3), Unit(192, 256, 3, stride=2)),
            nn.MaxPool2d(3, 2),
        )
        self.repeat_2 = nn.Sequential(*(_block17() for _ in range(10)))
        self.mixed_7a = Inception(
            nn.Sequential(Unit(896, 256), Unit(256, 384, 3, stride=2)),
            nn.Sequential(Unit(896, 256), Unit(256, 256, 3, stride=2)),
            nn.Sequential(Unit(896, 256), Unit(256, 256, 3), Unit(256, 256, 3, stride=2)),
            nn.MaxPool2d(3, 2),
        )
        self.repeat_3 = nn.Sequential(*(_block8() for _ in range(5)))
        self.block8 = _block8(scale=1.0, relu=False)
        self.last_linear = nn.Linear(1792, self.dim, bias=False)
        self.last_bn = nn.BatchNorm1d(self.dim, eps=1e-3)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, chips: Tensor) -> Tensor:
        x = ((chips - 127.5) / 128).to(self.last_linear.weight.dtype, memory_format=torch.channels_last)
        x = F.max_pool2d(self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x))), 3, 2)
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(x)))
        x = self.mixed_6a(self.repeat_1(x))
        x = self.mixed_7a(self.repeat_2(x))
        x = self.block8(self.repeat_3(x)).mean((2, 3))
        return F.normalize(self.last_bn(self.last_linear(x)).to(chips.dtype), dim=1)

    @classmethod
    def from_file(cls, path: Path) -> InceptionResnetV1:
        """The network with the weights of a .pt file, loaded strictly. Raises InputError as `read_state` does."""
        net = cls()
        net.load_state_dict(read_state(path, net.state_dict(), "FaceNet", ignored=_CLASSIFIER))
        return net


class FaceNetEncoder(nn.Module):
    """The identity encoder "facenet": warp to FaceNet's chip, then the network. Frozen; differentiable in the images."""

    name = "facenet"
    dim = InceptionResnetV1.dim
    centred = True  # its authors' own LFW figure is with the mean subtracted

    def __init__(self, net: InceptionResnetV1 | None = None) -> None:
        """`net`: default is the zoo's `facenet`, which raises NotReady when it is not on this machine."""
        super().__init__()
        self.net = net or InceptionResnetV1.from_file(weights.resolve("facenet"))
        self.version = weights_version(self.net, f"facenet {TEMPLATES['facenet']}")
        freeze(self)

    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1], landmarks (B, 68, 2) in their pixels -> (B, 512), unit length."""
        return self.net(facenet_chips(images, landmarks))


def facenet_chips(images: Tensor, landmarks: Tensor) -> Tensor:
    """What FaceNet was shown of a face: images (B, 3, H, W) in [-1, 1] -> chips (B, 3, 160, 160) in 0..255."""
    template = TEMPLATES["facenet"]
    return warp((images.float() + 1) * 127.5, template_matrix(landmarks.float(), template), template.size)
