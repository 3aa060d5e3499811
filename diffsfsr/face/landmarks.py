"""The 68 landmarks of a found face: two sources behind one signature, (picture, Found) -> (68, 2) float32 source pixels.

dlib      dlib's shape predictor; its file was trained on 300-W, whose terms exclude commercial use
facemesh  the points of MediaPipe's face mesh (Apache-2.0) that the 68-point scheme has too

Points are in the order of the 68-point scheme: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, lips 48-67, each from left to right in
the picture. Coordinates are (x, y) with the centre of the first pixel at (0, 0).
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diffsfsr import weights
from diffsfsr.errors import InputError, did_you_mean
from diffsfsr.face.detection import Found, found_by
from diffsfsr.face.images import Rejected
from diffsfsr.face.warping import colour_patch, grey_patch, invert_matrix, transform

# Which landmark each one becomes in a mirrored picture.
MIRRORED = (
    *range(16, -1, -1),  # jaw
    *range(26, 16, -1),  # brows
    *(*range(27, 31), *range(35, 30, -1)),  # nose
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
    *(*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65),  # mouth
)
SOURCES = ("dlib", "facemesh")

_WIDTH = 256  # the face box is brought to this width for the predictor, which rounds to whole pixels
_MARGIN = 64  # of the same pixels: the shape may leave the box, and the predictor looks around it
_ASKEW = math.radians(10)  # a head turned further from upright than that is worth a second look

# The mesh's vertices where the 68-point scheme has its points: the choice in common use (that of LatentSync and of others), with
# the jaw's and the brows' ends at the ears and the temples. It was checked against dlib's predictor, and nothing was fitted to it.
# fmt: off
MESH_POINTS = (
    127, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
)
# fmt: on
_MESH_SIZE = 256  # side of the mesh's chip
_MESH_VERTICES = 478
_MESH_EYES = (33, 263)  # the outer corners of the eyes: MediaPipe levels the line between them
_MESH_ROOM = 1.5  # the chip's side over the longer side of the mesh, as MediaPipe's tracker has it
_MESH_BOX = 1.62  # the same over the width of the detector's box: median of 400 faces of LFW
_MESH_LOOKS, _MESH_MOST = 2, 4  # at a face: its usual number, and that at one which still turns
_PRESENCE = 0.5  # MediaPipe's own threshold


class Landmarks(Protocol):
    """What every source offers. Several threads may call one."""

    name: str

    def __call__(self, image: np.ndarray, face: Found) -> np.ndarray:
        """The landmarks (68, 2) of a face of an HWC uint8 RGB picture. Raises Rejected("no face") where the source sees none."""
        ...


@lru_cache(maxsize=len(SOURCES))
def load_landmarks(name: str) -> Landmarks:
    """The source of that name, made once a process. Raises InputError for an unknown name, NotReady where its weights lack."""
    kinds: dict[str, type[Landmarks]] = {"dlib": DlibLandmarks, "facemesh": MeshLandmarks}
    if name not in kinds:
        raise InputError(f"unknown source of landmarks {name!r}{did_you_mean(name, SOURCES)}; known: {', '.join(SOURCES)}")
    return kinds[name]()


class DlibLandmarks:
    """dlib's shape predictor on an upright grey copy of bounded size. It answers for every box, whatever that holds."""

    name = "dlib"

    def __init__(self) -> None:
        """Raises InputError for a file that is none."""
        import dlib

        path = weights.resolve("dlib-landmarks-68")
        try:
            self._predictor = dlib.shape_predictor(str(path))
        except RuntimeError as error:
            raise InputError(f"{path} is not a predictor of landmarks that dlib can read: run `diffsfsr weights check`") from error

    def __call__(self, image: np.ndarray, face: Found) -> np.ndarray:
        """The landmarks (68, 2) of a face.

        The predictor knows upright faces. Where its answer shows a turned head, it is asked again about a copy that is turned back:
        a head 30 degrees askew is then placed as exactly as an upright one.
        """
        landmarks = self._predicted(image, face)
        for _ in range(2):
            seen = found_by(_five_points(landmarks))
            if abs(math.remainder(seen.roll - face.roll, math.tau)) < _ASKEW:
                break
            face, landmarks = seen, self._predicted(image, seen)
        return landmarks

    def _predicted(self, image: np.ndarray, face: Found) -> np.ndarray:
        """The predictor's landmarks (68, 2) on a grey copy that has the face's box in its middle, turned back by its roll."""
        import dlib

        first, last, side = _MARGIN, _MARGIN + _WIDTH - 1, _WIDTH + 2 * _MARGIN
        matrix = _turned_back(_middle(face), face.roll, _WIDTH / face.width, side)
        shape = self._predictor(grey_patch(image, matrix, side), dlib.rectangle(first, first, last, last))
        points = np.array([(p.x, p.y) for p in shape.parts()], np.float64)
        return transform(points, invert_matrix(matrix)).astype(np.float32)


@dataclass(frozen=True)
class _Square:
    """What the mesh is shown of a picture."""

    centre: np.ndarray  # (2,) source pixels
    side: float  # source pixels
    roll: float  # radians, clockwise as seen


class MeshLandmarks:
    """MediaPipe's face mesh on an upright square, first by the detector's box, then by its own answer, as MediaPipe tracks a face.

    OpenCV runs the network: twice as fast on one core as onnxruntime, with the same answer to 0.0002 pixels of the chip.
    """

    name = "facemesh"

    def __init__(self, path: Path | None = None) -> None:
        """`path`: default is the zoo's `facemesh`, its hash compared. Raises InputError for a file that is none."""
        self._net = _open_mesh(path or weights.verified("facemesh"))
        self._lock = threading.Lock()  # its input is a setting

    def __call__(self, image: np.ndarray, face: Found) -> np.ndarray:
        """The landmarks (68, 2) of a face. Raises Rejected("no face") where no look shows one.

        One look that does is enough: the network doubts faces of strong expression that it places well.
        """
        square, surest = _Square(_middle(face), _MESH_BOX * face.width, face.roll), 0.0
        for look in range(1, _MESH_MOST + 1):
            mesh, presence = self._look(image, square)
            before, square, surest = square, _round(mesh), max(surest, presence)
            if look >= _MESH_LOOKS and abs(math.remainder(square.roll - before.roll, math.tau)) < _ASKEW:
                break
        if surest < _PRESENCE:
            raise Rejected("no face", f"what was found at {face.box} is no face to the face mesh ({surest:.2f})")
        return mesh[list(MESH_POINTS)].astype(np.float32)

    def _look(self, image: np.ndarray, square: _Square) -> tuple[np.ndarray, float]:
        """The mesh (478, 2) in source pixels, and how sure the network is of a face, from 0 to 1."""
        import cv2

        matrix = _turned_back(square.centre, square.roll, _MESH_SIZE / square.side, _MESH_SIZE)
        chip = cv2.dnn.blobFromImage(colour_patch(image, matrix, _MESH_SIZE), 1 / 255)
        with self._lock:
            self._net.setInput(chip)
            points, presence = self._net.forward(("landmarks", "presence"))
        # The network counts from the chip's outer edge: what it says of a chip and of its mirror image adds up to 256, not to 255.
        mesh = points.reshape(_MESH_VERTICES, 3)[:, :2].astype(np.float64) - 0.5
        return transform(mesh, invert_matrix(matrix)), float(presence.item())


def _open_mesh(path: Path) -> Any:
    """OpenCV's network over the face mesh's file."""
    import cv2

    try:
        net = cv2.dnn.readNetFromONNX(str(path))
    except cv2.error as error:
        raise InputError(f"{path} is not a network that OpenCV {cv2.__version__} can read") from error
    if set(net.getUnconnectedOutLayersNames()) != {"landmarks", "presence"}:
        raise InputError(f"{path} is not the face mesh: it has no outputs landmarks and presence")
    return net


def _round(mesh: np.ndarray) -> _Square:
    """The square that the mesh (478, 2) is looked at in next: 1.5 times as large as it, its eyes level."""
    across = mesh[_MESH_EYES[1]] - mesh[_MESH_EYES[0]]
    roll = math.atan2(across[1], across[0])
    axes = np.array([[math.cos(roll), math.sin(roll)], [-math.sin(roll), math.cos(roll)]])
    upright = mesh @ axes.T
    low, high = upright.min(axis=0), upright.max(axis=0)
    return _Square((low + high) / 2 @ axes, max(_MESH_ROOM * float((high - low).max()), 1.0), roll)


def _middle(face: Found) -> np.ndarray:
    left, top, right, bottom = face.box
    return np.array([(left + right - 1) / 2, (top + bottom - 1) / 2])


def _turned_back(centre: np.ndarray, roll: float, scale: float, side: int) -> np.ndarray:
    """(2, 3), source pixels -> those of a patch of that side with `centre` in its middle and a head of that roll upright."""
    c, s = scale * math.cos(roll), scale * math.sin(roll)
    linear = np.array([[c, s], [-s, c]])
    return np.column_stack([linear, (side - 1) / 2 - linear @ centre])


def _five_points(landmarks: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip and mouth corners, left of the picture first: (68, 2) -> (5, 2)."""
    return np.stack([landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0), *landmarks[[30, 48, 54]]])
