"""Where the faces of a picture are: three detectors behind one signature, picture -> list of Found, from left to right.

dlib       dlib's HOG detector: ships with dlib; sees faces toward the camera
yunet      YuNet through cv2.FaceDetectorYN: twice as fast, and sees profiles, hats and turned heads too
insightface  SCRFD, run by insightface's own class on onnxruntime

Coordinates are (x, y) source pixels with the centre of the first pixel at (0, 0). dlib's landmark predictor was trained on boxes that
dlib's detector drew, so that every detector answers with such a box, whatever its own looks like.
"""

from __future__ import annotations

import math
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diffsfsr import weights
from diffsfsr.cores import threads
from diffsfsr.errors import InputError, NotReady, did_you_mean
from diffsfsr.face.warping import require_picture, scaled

Box = tuple[int, int, int, int]

DETECTORS = ("dlib", "yunet", "insightface")

_DLIB_SIDE = 1280  # longest side of the picture that is searched first; dlib finds faces from about 80 of its pixels
# YuNet is searched coarse to fine, because it draws large faces twice at full size. A face of that many pixels settles it: any face
# that counts beside it is then at least half as wide, and YuNet finds faces from about 12 of its pixels.
_YUNET_SIDES, _YUNET_CLEAR = (160, 640, 1280), 32
_YUNET_SCORE, _YUNET_OVERLAP = 0.7, 0.3
_SCRFD_SCORE = 0.5  # insightface's own default
_SCRFD_LENGTH = 128  # times its width: a picture so long would be scaled to no pixels at all
# The width of dlib's box over the larger of eye-to-eye and eyes-to-mouth distances: median of 823 faces of LFW that both detectors
# found. It varies by 9 % from face to face, most of it the steps of dlib's own scale pyramid.
_BOX_WIDTH = 2.31


@dataclass(frozen=True)
class Found:
    """One face of a picture."""

    box: Box  # left, top, right, bottom as dlib draws it, brows to chin; right and bottom exclusive; may leave the picture
    score: float  # the detector's own scale: the higher, the surer
    points: np.ndarray | None = None  # (5, 2) float32: eyes, nose tip, mouth corners, left of the picture first; None without

    @property
    def width(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def roll(self) -> float:
        """In-plane rotation in radians, clockwise as seen; 0 where there are no points. (YuNet's tell about half of it.)"""
        if self.points is None:
            return 0.0
        _, eyes, upright = _axes(self.points)
        return math.atan2(eyes[1] - upright[0], eyes[0] + upright[1])  # the eye line and the upright, averaged

    def visible(self, shape: tuple[int, ...]) -> float:
        """The share of the box that lies in a picture of `shape` (H, W, ...)."""
        left, top, right, bottom = self.box
        inside = max(0, min(right, shape[1]) - max(left, 0)) * max(0, min(bottom, shape[0]) - max(top, 0))
        return inside / ((right - left) * (bottom - top))


class Detector(Protocol):
    """What every detector offers. Several threads may call one."""

    name: str

    def __call__(self, image: np.ndarray) -> list[Found]:
        """The faces of an HWC uint8 RGB picture, from left to right. Raises ValueError for anything else."""
        ...


@lru_cache(maxsize=len(DETECTORS))
def load_detector(name: str) -> Detector:
    """The detector of that name, made once a process. Raises InputError for an unknown name, NotReady where its weights lack."""
    kinds: dict[str, type[Detector]] = {"dlib": DlibDetector, "yunet": YunetDetector, "insightface": ScrfdDetector}
    if name not in kinds:
        raise InputError(f"unknown detector {name!r}{did_you_mean(name, DETECTORS)}; known: {', '.join(DETECTORS)}")
    return kinds[name]()


class DlibDetector:
    """dlib's HOG detector on a copy of bounded size; when nothing is found, once more at twice that size. Scores are above 0."""

    name = "dlib"

    def __init__(self) -> None:
        import dlib

        self._scan = dlib.get_frontal_face_detector()
        self._lock = threading.Lock()  # it keeps state between its own calls

    def __call__(self, image: np.ndarray) -> list[Found]:
        require_picture(image)
        longest = max(image.shape[:2])
        for scale in (min(1.0, _DLIB_SIDE / longest), min(2.0, 2 * _DLIB_SIDE / longest)):
            copy = np.ascontiguousarray(scaled(image, scale))
            with self._lock:
                boxes, scores, _ = self._scan.run(copy, 0, 0.0)
            if boxes:
                y, x = image.shape[0] / copy.shape[0], image.shape[1] / copy.shape[1]
                edges = [(round(b.left() * x), round(b.top() * y), round((b.right() + 1) * x), round((b.bottom() + 1) * y)) for b in boxes]
                return _in_order([Found(box, float(score)) for box, score in zip(edges, scores, strict=True)])
        return []


class YunetDetector:
    """YuNet (Wu et al. 2023) on copies of growing size, until a face is large enough in one. Scores from 0.7 to 1."""

    name = "yunet"

    def __init__(self, path: Path | None = None) -> None:
        """`path`: default is the zoo's `yunet`, its hash compared. Raises InputError where OpenCV cannot read it."""
        self._net = open_yunet(path or weights.verified("yunet"))
        self._lock = threading.Lock()  # the size of its input is a setting

    def __call__(self, image: np.ndarray) -> list[Found]:
        require_picture(image)
        longest, found = max(image.shape[:2]), list[Found]()
        for side in _YUNET_SIDES:
            scale = min(1.0, side / longest)
            found = self._search(image, scale)
            if scale == 1 or max((face.width for face in found), default=0) * scale >= _YUNET_CLEAR:
                break
        return _in_order(found)

    def _search(self, image: np.ndarray, scale: float) -> list[Found]:
        import cv2

        copy = cv2.cvtColor(scaled(image, scale), cv2.COLOR_RGB2BGR)
        with self._lock:
            self._net.setInputSize(copy.shape[1::-1])
            _, rows = self._net.detect(copy)
        ratio = np.array([image.shape[1] / copy.shape[1], image.shape[0] / copy.shape[0]])
        return [found_by((row[4:14].reshape(5, 2) + 0.5) * ratio - 0.5, row[14]) for row in (rows if rows is not None else ())]


def open_yunet(path: Path, size: tuple[int, int] = (32, 32)) -> Any:
    """OpenCV's object over YuNet's file, for pictures of that width and height. Raises InputError where it cannot read it.

    Damaged bytes may end the process: OpenCV divides by a size that they give.
    """
    import cv2

    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # it warns of a default of its own
    try:
        return cv2.FaceDetectorYN.create(str(path), "", size, _YUNET_SCORE, _YUNET_OVERLAP)
    except cv2.error as error:
        raise InputError(f"{path} is not a YuNet detector that OpenCV {cv2.__version__} can read") from error
    finally:
        cv2.utils.logging.setLogLevel(level)


class ScrfdDetector:
    """SCRFD (Guo et al. 2021) by insightface's own class, at its own sizes. `provider` is what onnxruntime really runs it on."""

    name = "insightface"

    def __init__(self, path: Path | None = None) -> None:
        """`path`: default is the zoo's `scrfd-10g`. Warns on standard error where a GPU is here and the CPU does the work.

        Raises InputError for a file that is no SCRFD with five points, NotReady without the package insightface.
        """
        path = path or weights.resolve("scrfd-10g")
        self._net = _scrfd(path)
        self.provider: str = self._net.session.get_providers()[0]
        if self.provider == "CPUExecutionProvider" and (reason := _why_not_cuda()):
            print(f"{path.name} runs on the CPU: {reason}", file=sys.stderr, flush=True)
        self._lock = threading.Lock()  # it keeps grids of past sizes

    def __call__(self, image: np.ndarray) -> list[Found]:
        import cv2

        require_picture(image)
        if max(image.shape[:2]) >= _SCRFD_LENGTH * min(image.shape[:2]):
            return []
        with self._lock:
            boxes, points = self._net.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return _in_order([found_by(five, box[4]) for box, five in zip(boxes, points, strict=True)])


def _scrfd(path: Path) -> Any:
    """insightface's SCRFD object over a file of nine outputs: three strides of scores, boxes and five points."""
    try:
        import onnxruntime
        from insightface import model_zoo
    except ImportError as error:
        raise NotReady(f"the detector insightface needs the package {error.name}: pip install insightface onnxruntime") from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    try:
        net = model_zoo.get_model(str(path), providers=model_zoo.get_default_providers(), sess_options=options)
    except Exception as error:  # onnxruntime's errors have no common class of their own
        raise InputError(f"{path} cannot be read by onnxruntime: {str(error).splitlines()[0][:200]}") from error
    if not getattr(net, "use_kps", False):
        raise InputError(f"{path} is not an SCRFD detector with five points: it needs three strides of scores, boxes and points")
    net.prepare(0, det_thresh=_SCRFD_SCORE)
    return net


def _why_not_cuda() -> str:
    """Why onnxruntime computes on the CPU although it might not; empty where nothing else could be expected."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return "onnxruntime has CUDA but could not start it; install the CUDA and cuDNN that its version asks for"
    if Path("/proc/driver/nvidia/version").exists():
        return "a GPU is here, but this onnxruntime has no CUDA; pip install onnxruntime-gpu in place of onnxruntime"
    return ""


def found_by(points: np.ndarray, score: float = 1.0) -> Found:
    """A face by its five points (5, 2): its box is centred between eyes and mouth."""
    centre, eyes, upright = _axes(points)
    width = max(1, round(_BOX_WIDTH * max(math.hypot(*eyes), math.hypot(*upright))))
    left, top = (round(float(c) + 0.5 - width / 2) for c in centre)
    return Found((left, top, left + width, top + width), float(score), np.asarray(points, np.float32))


def _axes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of five points (5, 2): the point between eyes and mouth, the vector from eye to eye, and that from the eyes to the mouth."""
    five = np.asarray(points, np.float64)
    eyes, mouth = (five[0] + five[1]) / 2, (five[3] + five[4]) / 2
    return (eyes + mouth) / 2, five[1] - five[0], mouth - eyes


def _in_order(found: list[Found]) -> list[Found]:
    return sorted(found, key=lambda face: (face.box[0] + face.box[2], face.box, face.score))
