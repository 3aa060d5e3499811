"""Face parsers: what of a crop is face. The landmark hull is always there; the networks see hair, and SegFormer glasses too.

(crops (n, S, S, 3) uint8 RGB, landmarks (n, 68, 2) crop pixels) -> (n, S, S) uint8 of 0 and 1, by `parser(name).masks`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from diffsfsr import weights
from diffsfsr.errors import InputError, did_you_mean
from diffsfsr.face.masks import hull_mask, tidy

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 8
PARSERS = {"hull": "", "face_unet": "face_unet", "segformer": "segformer-face-parsing"}  # name: its weights in the zoo


class Parser(Protocol):
    """What every face parser offers."""

    name: str
    looks: bool  # at the pixels: else it wants the landmarks only, and crops of any content

    def masks(self, crops: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """crops (n, S, S, 3) uint8 RGB, landmarks (n, 68, 2) crop pixels -> (n, S, S) uint8, 1 inside the facial region."""
        ...


@lru_cache(maxsize=2)
def parser(name: str) -> Parser:
    """The parser of that name, loaded once a process. InputError for an unknown name, NotReady where its weights are not here."""
    _require_known(name)
    if name == "hull":
        return HullParser()
    return FaceUnetParser() if name == "face_unet" else SegformerParser()


def parser_version(name: str) -> str:
    """What tells one parser's masks from another's: its name and the sha256 of its weights. Raises as `parser` does; no torch."""
    _require_known(name)
    if not PARSERS[name]:
        return name
    file = weights.resolve(PARSERS[name])
    status = file.stat()
    return f"{name}-{_hashed(file, status.st_size, status.st_mtime_ns)}"


@lru_cache
def _hashed(file: Path, size: int, mtime_ns: int) -> str:
    return weights.file_sha256(file)


def _require_known(name: str) -> None:
    if name not in PARSERS:
        raise InputError(f"unknown face parser {name!r}{did_you_mean(name, PARSERS)}; known: {', '.join(PARSERS)}")


class HullParser:
    """The hull of the landmarks: needs no weights, and knows nothing of hair, glasses or the forehead's true height."""

    name, looks = "hull", False

    def masks(self, crops: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        masks = [hull_mask(points, crops.shape[1]) for points in landmarks]
        return np.stack(masks) if masks else np.zeros(crops.shape[:3], np.uint8)


class _NetworkParser:
    """Batches, and what is the same after any network: `masks.tidy`."""

    looks = True

    def verdicts(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n, S, S, 3) uint8 -> what is face, what is glasses, and all that lies over a face: each (n, S, S) bool."""
        raise NotImplementedError

    def masks(self, crops: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        masks = np.zeros(crops.shape[:3], np.uint8)
        for start in range(0, len(crops), _BATCH):
            chosen = slice(start, start + _BATCH)
            verdicts = zip(*self.verdicts(np.ascontiguousarray(crops[chosen])), landmarks[chosen], strict=True)
            masks[chosen] = np.stack([tidy(*verdict) for verdict in verdicts])
        return masks


class FaceUnetParser(_NetworkParser):
    """A small U-Net of one class, face: hair stays outside its mask, but glasses are face to it."""

    name = "face_unet"
    _SIDE = 256  # of its input

    def __init__(self, device: str | None = None) -> None:
        """Raises NotReady when the zoo's `face_unet` is not on this machine, InputError for a file of another network."""
        import torch

        from diffsfsr.encoders.onnx_net import OnnxNet

        self.device = _device(device)
        noise = torch.rand(2, 3, self._SIDE, self._SIDE, generator=torch.Generator().manual_seed(0))
        path = weights.resolve("face_unet")
        self.net = OnnxNet.tried("face_unet", path, noise, gives=[(2, 1, self._SIDE, self._SIDE)]).to(self.device)

    def verdicts(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        import torch
        import torch.nn.functional as F

        with torch.inference_mode():
            images = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2).float() / 255
            images = F.interpolate(images, (self._SIDE, self._SIDE), mode="bilinear", antialias=True)
            face = _resized(self.net(images), crops.shape[1])[:, 0].cpu().numpy() > 0
        nothing = np.zeros_like(face)
        return face, nothing, nothing


# Classes of CelebAMask-HQ, by the names in the network's config.json.
FACE = frozenset({"skin", "nose", "l_eye", "r_eye", "l_brow", "r_brow", "mouth", "u_lip", "l_lip"})
GLASSES = frozenset({"eye_g"})
OVER = GLASSES | {"hair", "hat"}
_ELSEWHERE = frozenset({"background", "l_ear", "r_ear", "ear_r", "neck_l", "neck", "cloth"})


class SegformerParser(_NetworkParser):
    """SegFormer trained on CelebAMask-HQ (jonathandinu/face-parsing): hair, hats and glasses stay outside its mask."""

    name = "segformer"

    def __init__(self, folder: Path | None = None, device: str | None = None) -> None:
        """`folder` as transformers saves one; default: the zoo's `segformer-face-parsing`, NotReady when it is not on this machine.

        Raises InputError when the folder holds another network or classes of other names.
        """
        folder = folder or weights.resolve(PARSERS["segformer"]).parent
        from transformers import SegformerImageProcessorPil

        self.device = _device(device)
        self.net = _segformer(folder).to(self.device)
        self.processor = SegformerImageProcessorPil.from_pretrained(folder, local_files_only=True)
        names = [self.net.config.id2label[number] for number in range(self.net.config.num_labels)]
        _require_classes(set(names), folder)
        self._tables = [np.array([name in wanted for name in names]) for wanted in (FACE, GLASSES, OVER)]

    def verdicts(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        classes = self.classes(crops)
        face, glasses, over = (table[classes] for table in self._tables)
        return face, glasses, over

    def classes(self, crops: np.ndarray) -> np.ndarray:
        """The number of each pixel's class: (n, S, S, 3) uint8 -> (n, S, S) int64."""
        import torch

        with torch.inference_mode():
            images = self.processor(images=list(crops), return_tensors="pt")["pixel_values"].to(self.device)
            return _resized(self.net(images).logits, crops.shape[1]).argmax(1).cpu().numpy()


def _segformer(folder: Path) -> Any:
    """The network of a folder, every weight of it found there. InputError where it is not a SegFormer's."""
    from safetensors import SafetensorError
    from transformers import SegformerForSemanticSegmentation
    from transformers.utils import logging

    from diffsfsr.encoders.frozen import freeze

    logging.disable_progress_bar()
    try:
        net, report = SegformerForSemanticSegmentation.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as e:
        raise InputError(f"{folder} holds no SegFormer ({str(e).splitlines()[0]}): run `diffsfsr weights check`") from e
    wrong = [str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[kind]]
    if wrong:
        raise InputError(f"{folder} is not a whole SegFormer: {len(wrong)} weights do not fit, {wrong[0]} first")
    return freeze(net)


def _require_classes(found: set[str], folder: Path) -> None:
    known = FACE | OVER | _ELSEWHERE
    if unknown := sorted(found - known):
        raise InputError(f"{folder}/config.json has the class {unknown[0]!r}{did_you_mean(unknown[0], known)}: is it face or not?")
    if missing := sorted((FACE | OVER) - found):
        raise InputError(f"{folder}/config.json has no class {missing[0]!r} in id2label: it is no parser of CelebAMask-HQ's classes")


def _resized(logits: Tensor, size: int) -> Tensor:
    """(n, C, h, w) -> (n, C, size, size), so that a boundary falls between pixels of the coarse grid."""
    import torch.nn.functional as F

    return F.interpolate(logits.float(), (size, size), mode="bilinear", align_corners=False)


def _device(name: str | None) -> Any:
    import torch

    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
