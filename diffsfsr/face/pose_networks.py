"""Head pose by published networks: FSA-Net and Hopenet, both trained on 300W-LP; differentiable in the images.

Each sees the face with its eyes level, and what was turned back is added to the roll: a picture turned in its plane changes the roll
alone, by that angle. (In a box along the picture's edges FSA-Net sees a head that is tilted by 30 degrees too little turned, by 13.)
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsfsr import weights
from diffsfsr.encoders.face_box import FaceBox, landmark_box, yunet_box
from diffsfsr.encoders.frozen import freeze, weights_version
from diffsfsr.encoders.onnx_net import OnnxNet
from diffsfsr.encoders.state_file import read_state
from diffsfsr.encoders.warp import warp

# --- FSA-Net ----------------------------------------------------------------------------------------------------------


class FsaNet(nn.Module):
    """FSA-Net (Yang et al., CVPR 2019): the average of its 1 x 1 and its variance variant, as its authors' demo takes it."""

    name = "fsanet"
    _SIZE = 64
    _MARGIN = 0.4  # on every side of the detector's box

    def __init__(self) -> None:
        """Raises NotReady when a file of the zoo's `fsanet-1x1` and `fsanet-var` is not on this machine, InputError for another network."""
        super().__init__()
        noise = 2 * torch.rand(1, 3, self._SIZE, self._SIZE, generator=torch.Generator().manual_seed(0)) - 1
        names = ("fsanet-1x1", "fsanet-var")
        self.nets = nn.ModuleList(OnnxNet.tried(name, weights.resolve(name), noise, gives=[(1, 3)]) for name in names)
        self.version = weights_version(self.nets, "YuNet box of the landmarks + 0.4, 64, BGR (x - 127.5) / 128")
        freeze(self)

    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """images (B, 3, H, W) RGB in [-1, 1], landmarks (B, 68, 2) in their pixels -> (B, 3) yaw, pitch, roll in degrees."""
        box = yunet_box(landmarks).grow(self._MARGIN, self._MARGIN, self._MARGIN)
        chips = warp(images.float(), box.matrix(self._SIZE), (self._SIZE, self._SIZE), outside=-1.0)
        chips = chips.flip(1) * (127.5 / 128)
        # The files' first dimension is fixed at 1.
        rows = [torch.stack([net(chip[None])[0] for net in self.nets]).mean(0) for chip in chips]
        return _turned_back(torch.stack(rows), box)


def _turned_back(angles: Tensor, box: FaceBox) -> Tensor:
    """(B, 3) degrees seen in the upright box -> in the picture, roll within [-180, 180)."""
    yaw, pitch, roll = angles.unbind(-1)
    return torch.stack([yaw, pitch, (roll + box.angle.rad2deg() + 180) % 360 - 180], -1)


# --- Hopenet ----------------------------------------------------------------------------------------------------------

_BINS, _BIN_DEGREES, _FIRST_BIN = 66, 3, -99
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB
_BLOCKS = ((64, 3), (128, 4), (256, 6), (512, 3))  # of ResNet-50: channels inside, blocks
_EXPANSION = 4


class Bottleneck(nn.Module):
    """ResNet's bottleneck with the stride in its 3 x 3 convolution; torchvision's names."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        outputs = channels * _EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class HopenetResNet(nn.Module):
    """The raw network (Ruiz et al., CVPR workshops 2018): chips (B, 3, 224, 224), ImageNet-normalised -> logits (B, 3, 66).

    Its state dict has the names of the published one (natanielruiz/deep-head-pose, code/hopenet.py). `fc_finetune` belongs to
    that form; the published method does not use it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for number, (channels, count) in enumerate(_BLOCKS, 1):
            stages = []
            for i in range(count):
                stages.append(Bottleneck(inputs, channels, 2 if number > 1 and i == 0 else 1))
                inputs = channels * _EXPANSION
            self.add_module(f"layer{number}", nn.Sequential(*stages))
        self.fc_yaw, self.fc_pitch, self.fc_roll = (nn.Linear(inputs, _BINS) for _ in range(3))
        self.fc_finetune = nn.Linear(inputs + 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for number in range(1, len(_BLOCKS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        x = x.mean((2, 3))
        return torch.stack([self.fc_yaw(x), self.fc_pitch(x), self.fc_roll(x)], 1)

    @classmethod
    def from_file(cls, path: Path) -> HopenetResNet:
        """The network with the weights of a .pkl file, loaded strictly. Raises InputError as `read_state` does."""
        net = cls()
        net.load_state_dict(read_state(path, net.state_dict(), "Hopenet"))
        return net


def expected_degrees(logits: Tensor) -> Tensor:
    """Expectation over bins of 3 degrees from -99 (Ruiz et al., eq. 1): logits (..., 66) -> (...) degrees."""
    bins = torch.arange(_BINS, device=logits.device, dtype=torch.float32)
    return (logits.float().softmax(-1) * bins).sum(-1) * _BIN_DEGREES + _FIRST_BIN


class Hopenet(nn.Module):
    """Hopenet on a loose square crop about the landmarks, with the middle of its training's margins."""

    name = "hopenet"
    mean: Tensor
    std: Tensor
    _SIZE = 224

    def __init__(self, net: HopenetResNet | None = None) -> None:
        """`net`: default is the zoo's `hopenet`, which raises NotReady when it is not on this machine."""
        super().__init__()
        self.net = net or HopenetResNet.from_file(weights.resolve("hopenet"))
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.version = weights_version(self.net, "landmark box + 0.18 aside, 0.6 above, 0.18 below, middle square, 224")
        freeze(self)

    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """images (B, 3, H, W) RGB in [-1, 1], landmarks (B, 68, 2) in their pixels -> (B, 3) yaw, pitch, roll in degrees."""
        loose = landmark_box(landmarks).grow(sides=0.18, top=0.6, bottom=0.18)
        box = loose.square(torch.minimum(loose.width, loose.height))
        chips = warp(images.float(), box.matrix(self._SIZE), (self._SIZE, self._SIZE), outside=-1.0)
        return _turned_back(expected_degrees(self.net(((chips + 1) / 2 - self.mean) / self.std)), box)
