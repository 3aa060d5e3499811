"""dlib's face recogniser, read from its own .dat file, in torch: batched, differentiable, about 15 times as fast.

The network is dlib's `anet_type` (dnn_face_recognition_ex.cpp): a 29-convolution ResNet over a 150 x 150 RGB chip.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsfsr import weights
from diffsfsr.encoders.frozen import freeze, weights_version
from diffsfsr.encoders.warp import DLIB_CHIP, dlib_matrix, warp
from diffsfsr.errors import InputError

_MEAN = (122.782, 117.001, 104.298)  # RGB, dlib's input_rgb_image_sized
_STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))  # channels, blocks, first one halves
_LARGEST_FILE = 100_000_000  # bytes; the real one has 22.5 million


class Residual(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; a halving block pools its shortcut and may grow its channels."""

    def __init__(self, inputs: int, channels: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=2 if down else 1, padding=0 if down else 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        return F.relu(_add(y, F.avg_pool2d(x, 2) if self.down else x))


class DlibResNet(nn.Module):
    """The raw network: chips (B, 3, 150, 150) RGB, 0..255 -> descriptors (B, 128), about 0.1 in size, not normalised,
    in the dtype of the chips.

    dlib's `affine_` layers are folded into the convolutions before them.
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, _STAGES[0][0], 7, stride=2)
        blocks, inputs = [], _STAGES[0][0]
        for channels, count, halves in _STAGES:
            for i in range(count):
                blocks.append(Residual(inputs, channels, halves and i == 0))
                inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, 128, bias=False)
        # In thousandths, as integers, so that a move to bfloat16 leaves it exact.
        self.register_buffer("mean", torch.tensor([round(1000 * m) for m in _MEAN]).view(1, 3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, chips: Tensor) -> Tensor:
        return self.look(chips)[0]

    def look(self, chips: Tensor) -> tuple[Tensor, ...]:
        """What `forward` gives, then what its layers see on the way there: the activations after the stem, (B, 32, 35, 35), and after
        each stage but the last, down to (B, 256, 4, 4)."""
        x = ((chips - self.mean / 1000) / 256).to(self.stem.weight.dtype, memory_format=torch.channels_last)
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        seen, ends = [x], set(accumulate(count for _, count, _ in _STAGES[:-1]))
        for done, block in enumerate(self.blocks, 1):
            x = block(x)
            if done in ends:
                seen.append(x)
        return self.head(x.mean((2, 3))).to(chips.dtype), *(activation.to(chips.dtype) for activation in seen)

    @classmethod
    def from_dat(cls, path: Path) -> DlibResNet:
        """The network with the weights of a .dat file, loaded strictly. Raises InputError as `read_dat` does."""
        net = cls()
        net.load_state_dict(read_dat(path))
        return net


class DlibEncoder(nn.Module):
    """The identity encoder "dlib": warp to dlib's chip, then the network. Frozen; differentiable in the images."""

    name = "dlib"
    dim = 128
    centred = True

    def __init__(self, net: DlibResNet | None = None) -> None:
        """`net`: default is the zoo's `dlib-face`, which raises NotReady when it is not on this machine."""
        super().__init__()
        self.net = net or DlibResNet.from_dat(weights.resolve("dlib-face"))
        self.version = weights_version(self.net, "dlib chip 150, padding 0.25")
        freeze(self)

    def forward(self, images: Tensor, landmarks: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1], landmarks (B, 68, 2) in their pixels -> (B, 128).

        All descriptors lie near one direction (strangers have a cosine of about 0.84): subtract a mean before any cosine.
        """
        return self.net(dlib_chips(images, landmarks))

    def look(self, images: Tensor, landmarks: Tensor) -> tuple[Tensor, ...]:
        """What `forward` gives, then the activations that `DlibResNet.look` does."""
        return self.net.look(dlib_chips(images, landmarks))


def dlib_chips(images: Tensor, landmarks: Tensor) -> Tensor:
    """dlib.get_face_chip at its recogniser's size: images (B, 3, H, W) in [-1, 1] -> chips (B, 3, 150, 150) in 0..255."""
    return warp((images.float() + 1) * 127.5, dlib_matrix(landmarks.float()), (DLIB_CHIP, DLIB_CHIP))


def _add(a: Tensor, b: Tensor) -> Tensor:
    """dlib's add_prev: where sizes or channels differ, both are zero-padded at their ends to the larger."""
    if a.shape == b.shape:
        return a + b
    shape = [max(m, n) for m, n in zip(a.shape[1:], b.shape[1:], strict=True)]
    return _grow(a, shape) + _grow(b, shape)


def _grow(x: Tensor, shape: list[int]) -> Tensor:
    c, h, w = (target - now for target, now in zip(shape, x.shape[1:], strict=True))
    return F.pad(x, (0, w, 0, h, 0, c))


# --- the file ---------------------------------------------------------------------------------------------------------


def read_dat(path: Path) -> dict[str, Tensor]:
    """The state dict of `DlibResNet` from dlib_face_recognition_resnet_model_v1.dat.

    The file is a flat stream; after the tags con_4, affine_ and fc_2 (there behind its two sizes) stand the packed integers
    version, n, k, nr, nc and n*k*nr*nc little-endian float32. A convolution's block is its filters, then its biases; an
    affine block is the factors, then the shifts. The blocks stand in forward order.

    Raises InputError, naming the file and what was found there, when it is another network, cut off or not finite.
    """
    blocks = _blocks(path, _read(path))
    net, state = DlibResNet(), {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            filters, count = module.weight, module.out_channels
            conv = _next(path, blocks, b"con_4", filters.numel() + count)
            factor, shift = _next(path, blocks, b"affine_", 2 * count).view(2, count)
            state[f"{name}.weight"] = conv[: filters.numel()].view_as(filters) * factor.view(-1, 1, 1, 1)
            state[f"{name}.bias"] = conv[filters.numel() :] * factor + shift
    head = _next(path, blocks, b"fc_2", net.head.weight.numel())
    state["head.weight"] = head.view(net.head.in_features, net.head.out_features).T.contiguous()
    if extra := next(blocks, None):
        raise InputError(f"{path} is not dlib's face recogniser: another {extra[0].decode()} block follows its last layer")
    return state


def _read(path: Path) -> bytes:
    if not Path(path).is_file():
        raise InputError(f"{path} is not a file: give dlib_face_recognition_resnet_model_v1.dat")
    with open(path, "rb") as f:
        data = f.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise InputError(f"{path} is larger than {_LARGEST_FILE} bytes: it is not dlib's face recogniser")
    return data


def _blocks(path: Path, data: bytes) -> Iterator[tuple[bytes, Tensor]]:
    """(tag, values) of each parameter block; a tag's own length stands before it, which tells it from chance bytes."""
    at, tags = 0, re.compile(rb"\x01\x05(con_4)|\x01\x07(affine_)|\x01\x04(fc_2)")
    while found := tags.search(data, at):
        tag, at = found[0][2:], found.end()
        sizes = []
        for _ in range(7 if tag == b"fc_2" else 5):
            size, at = _packed(path, data, at)
            sizes.append(size)
        _, n, k, nr, nc = sizes[-5:]
        count = n * k * nr * nc
        if min(n, k, nr, nc) < 0 or count * 4 > len(data) - at:
            left = f"claims {count} values, {len(data) - at} bytes remain"
            raise InputError(f"{path} is cut off or damaged: {tag.decode()} at byte {found.start()} {left}")
        values = torch.from_numpy(np.frombuffer(data, "<f4", count, at).copy())
        if not values.isfinite().all():
            raise InputError(f"{path} is damaged: {tag.decode()} at byte {found.start()} holds values that are not finite")
        at += 4 * count
        yield tag, values


def _packed(path: Path, data: bytes, at: int) -> tuple[int, int]:
    """One packed integer and the place after it: a byte (low 4 bits: how many follow; bit 7: sign), then little-endian bytes."""
    if at >= len(data) or at + 1 + (data[at] & 15) > len(data):
        raise InputError(f"{path} is cut off: it ends at byte {len(data)} inside a number")
    end = at + 1 + (data[at] & 15)
    value = int.from_bytes(data[at + 1 : end], "little")
    return (-value if data[at] & 0x80 else value), end


def _next(path: Path, blocks: Iterator[tuple[bytes, Tensor]], tag: bytes, count: int) -> Tensor:
    found, values = next(blocks, (b"", torch.empty(0)))
    if found != tag or values.numel() != count:
        what = f"{found.decode()} with {values.numel()} values" if found else "the end of the file"
        raise InputError(f"{path} is not dlib's face recogniser: {what} found where {tag.decode()} with {count} belongs")
    return values
