"""What `diffsfsr bench encoders` measures: finding, aligning and embedding faces, each beside the call that its origin offers.

The faces are those of a group photograph that insightface ships. Detectors and encoders whose weights are not on this machine are
left out. All sides compute with the same number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsfsr import weights
from diffsfsr.config import Data, Preset
from pipelines.benches import Pair, device, faces, here, largest

BATCHES = (1, 8, 32)
_CLOSE = 1e-4  # relative for networks, absolute for dlib's, whose values are about 0.1


def encoders(preset: Preset) -> Iterator[Pair]:
    """Detectors, alignment, then each encoder at several batch sizes."""
    from diffsfsr.encoders import ENCODERS
    from diffsfsr.encoders.recogniser import RECIPES

    group, crops, landmarks = faces()
    portrait = _cut(group)
    for name in ("dlib", "yunet", "insightface"):
        if here(name if name != "dlib" else "dlib-landmarks-68"):
            yield from _detection(name, {"250 x 250": portrait, "group": group})
            yield _alignment(name, portrait, preset.crop)
    present = [name for name in ENCODERS if here(name)]
    if "dlib" in present:
        yield from _dlib(crops, landmarks, preset.dln.dim)
    for name in (name for name in present if name in RECIPES):
        yield from _recogniser(name, crops, landmarks)
    if "blendshapes" in present:
        yield from _blendshapes(crops, landmarks)


def _cut(group: np.ndarray) -> np.ndarray:
    """The most upright head of the group as a picture of LFW's kind: 250 pixels, the face in its middle."""
    from diffsfsr.face.alignment import align_all, warp_crop

    left, top, right, bottom = min(align_all(group, 64), key=lambda face: abs(face.pose.roll)).box
    scale = 110 / (right - left)
    return warp_crop(group, np.array([[scale, 0, 125 - scale * (left + right) / 2], [0, scale, 125 - scale * (top + bottom) / 2]]), 250)


# --- faces of a picture -----------------------------------------------------------------------------------------------


def _detection(name: str, pictures: dict[str, np.ndarray]) -> Iterator[Pair]:
    """A detector against the library it comes from, called as its own examples do."""
    from diffsfsr.face.detection import load_detector

    detect, peers = load_detector(name), {"dlib": _dlib_finds, "yunet": _yunet_finds, "insightface": _scrfd_finds}
    for size, picture in pictures.items():
        ours, (peer_name, peer) = partial(detect, picture), peers[name](picture)
        yield Pair(f"detect, {name}, {size}", 1, ours, peer_name, peer, partial(_counts_differ, ours, peer), 0.0)


def _dlib_finds(picture: np.ndarray) -> tuple[str, Callable[[], Any]]:
    import dlib

    return "dlib's detector", partial(dlib.get_frontal_face_detector(), picture, 0)


def _yunet_finds(picture: np.ndarray) -> tuple[str, Callable[[], Any]]:
    from diffsfsr.face.detection import open_yunet
    from diffsfsr.face.images import to_bgr

    net, bgr = open_yunet(weights.resolve("yunet"), (picture.shape[1], picture.shape[0])), to_bgr(picture)
    return "cv2.FaceDetectorYN, whole", lambda: net.detect(bgr)[1]


def _scrfd_finds(picture: np.ndarray) -> tuple[str, Callable[[], Any]]:
    from insightface.model_zoo import SCRFD

    from diffsfsr.face.images import to_bgr

    net, bgr = SCRFD(str(weights.resolve("scrfd-10g"))), to_bgr(picture)
    return "insightface's SCRFD", lambda: net.detect(bgr)[0]


def _counts_differ(ours: Callable[[], Any], peer: Callable[[], Any]) -> float:
    return float(abs(len(ours()) - len(peer())))


def _alignment(name: str, picture: np.ndarray, size: int) -> Pair:
    """From the picture to the crop: detect, choose, landmarks, warp, pose; against what dlib's examples do to get a chip."""
    import dlib

    from diffsfsr.face.alignment import align

    detector, predictor = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(weights.resolve("dlib-landmarks-68")))
    ours = partial(align, picture, size, Data(detector=name, face="largest", max_outside=1.0))  # type: ignore[arg-type]

    def peer() -> Any:
        shape = predictor(picture, detector(picture, 0)[0])
        return shape, dlib.get_face_chip(picture, shape, size=size)

    def difference() -> float:
        theirs = np.array([(p.x, p.y) for p in peer()[0].parts()], np.float64)
        eyes = np.hypot(*(theirs[36:42].mean(0) - theirs[42:48].mean(0)))
        return float(np.hypot(*(ours().landmarks - theirs).T).mean() / eyes)  # in distances between the eyes

    return Pair(f"align, {name}, 250 x 250", 1, ours, "dlib's detector, landmarks, chip", peer, difference, 0.05)


# --- encoders ---------------------------------------------------------------------------------------------------------


def _dlib(crops: Tensor, landmarks: Tensor, dim: int) -> Iterator[Pair]:
    """Identity and expression embeddings on dlib's network, against dlib's own Python API, which takes one chip after the other."""
    import dlib

    from diffsfsr.encoders.dlib_net import DlibResNet, dlib_chips
    from diffsfsr.encoders.dln import Dln

    chips = dlib_chips(crops, landmarks).round().clamp(0, 255)
    oracle = dlib.face_recognition_model_v1(str(weights.resolve("dlib-face")))
    net = DlibResNet.from_dat(weights.resolve("dlib-face")).eval()
    dln = Dln.from_identity(net, dim).eval().to(device())
    net.to(device())

    def describe(some: Tensor) -> np.ndarray:
        return np.array(oracle.compute_face_descriptor(list(some.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy())))

    def check(network: Any, some: Tensor, few: Tensor) -> float:
        return largest(_run(network, some)[: len(few)], describe(few))

    for batch in BATCHES:
        some = _many(chips, batch)
        few = some[:2]  # two tell the speed of one after the other
        calls = (partial(_run, net, some), "dlib's compute_face_descriptor", partial(describe, few), partial(check, net, some, few))
        yield Pair("dlib", batch, *calls, _CLOSE, batch, len(few))
    for batch in BATCHES:
        some = _many(chips, batch)
        few = some[:1]
        twice = partial(describe, torch.cat([few, few]))
        # The trained twin has no counterpart in dlib; the frozen one is compared.
        calls = (partial(_run, dln.embed, some), "two passes of dlib's API", twice, partial(check, dln.frozen, some, few))
        yield Pair("DLN on dlib", batch, *calls, _CLOSE, batch, len(few))


def _recogniser(name: str, crops: Tensor, landmarks: Tensor) -> Iterator[Pair]:
    """A recogniser's network on its own chips, against onnxruntime and, where it is of that form, insightface's get_feat."""
    from diffsfsr.encoders.recogniser import RECIPES, OnnxRecogniser

    path, recipe, net = weights.resolve(name), RECIPES[name], OnnxRecogniser(name).net.to(device())
    pixels = (recipe.chips(crops, landmarks) * recipe.scale + recipe.shift).round().clamp(0, 255)  # whole values: what a picture holds
    for batch in BATCHES:
        some = ((_many(pixels, batch) - recipe.shift) / recipe.scale).contiguous(memory_format=torch.channels_last)
        ours = partial(_run, net, some)
        theirs = partial(_onnxruntime(path), some.contiguous().numpy())
        yield Pair(name, batch, ours, "onnxruntime", theirs, partial(_relative, ours, theirs), _CLOSE, batch, batch)
        if not recipe.bgr:  # insightface's own networks take RGB
            feat = partial(_insightface(path, recipe.shift, recipe.scale), _pictures(_many(pixels, batch)))
            yield Pair(name, batch, ours, "insightface's get_feat", feat, partial(_relative, ours, feat), _CLOSE, batch, batch)


def _blendshapes(crops: Tensor, landmarks: Tensor) -> Iterator[Pair]:
    """Face mesh and coefficients on a chip of 256, against onnxruntime on the same two files."""
    from diffsfsr.encoders.blendshapes import POINTS, BlendshapeEncoder

    encoder = BlendshapeEncoder().to(device())
    mesh, coefficients = (_onnxruntime(weights.resolve(name)) for name in ("facemesh", "blendshapes"))

    def ours(chips: Tensor) -> Tensor:
        return encoder.coefficients(encoder.mesh(chips)[0].reshape(len(chips), -1, 3)[:, encoder.points, :2])

    def theirs(chips: np.ndarray) -> np.ndarray:
        return coefficients(np.ascontiguousarray(mesh(chips).reshape(len(chips), -1, 3)[:, POINTS, :2]))

    for batch in BATCHES:
        some = _many((crops + 1) / 2, batch)
        calls = partial(_run, ours, some), "onnxruntime, both files", partial(theirs, some.numpy())
        yield Pair("blendshapes", batch, *calls, partial(_relative, calls[0], calls[2]), 2e-3, batch, batch)


@torch.inference_mode()
def _run(network: Callable[[Tensor], Tensor], chips: Tensor) -> np.ndarray:
    """Chips (n, 3, h, w) as the network takes them -> (n, D)."""
    return network(chips.to(device())).cpu().numpy()


def _onnxruntime(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The first output of a file's network, by onnxruntime on as many threads as torch has."""
    session = _session(path)
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})[0]


def _insightface(path: Path, shift: float, scale: float) -> Callable[[list[np.ndarray]], np.ndarray]:
    from insightface.model_zoo import ArcFaceONNX

    model = ArcFaceONNX(str(path), session=_session(path))
    model.input_mean, model.input_std = shift, scale  # it knows those of its own files only
    return model.get_feat


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _pictures(pixels: Tensor) -> list[np.ndarray]:
    """RGB chips (n, 3, h, w) in 0..255 -> HWC uint8 BGR pictures."""
    return list(np.ascontiguousarray(pixels.to(torch.uint8).flip(1).permute(0, 2, 3, 1).numpy()))


def _many(chips: Tensor, batch: int) -> Tensor:
    return chips[torch.arange(batch) % len(chips)].clone()


def _relative(ours: Callable[[], np.ndarray], peer: Callable[[], np.ndarray]) -> float:
    theirs = peer()
    return largest(ours(), theirs) / float(np.abs(theirs).max())
