"""Detectors: SCRFD through insightface's own class on a hand-made network, YuNet against dlib's HOG on real faces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffsfsr import weights
from diffsfsr.config import Data
from diffsfsr.errors import InputError, NotReady
from diffsfsr.face import alignment, detection, images
from diffsfsr.face.detection import DETECTORS, DlibDetector, Found, ScrfdDetector, YunetDetector, load_detector
from diffsfsr.face.landmarks import DlibLandmarks, MeshLandmarks, load_landmarks

FIVE = np.array([(-20.0, -15), (22, -16), (1, 4), (-15, 24), (16, 25)])  # of a face of 40 pixels between the eyes, about its middle


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    load_detector.cache_clear()
    yield
    load_detector.cache_clear()


@pytest.fixture(scope="module")
def astronaut_picture(astronaut: Path) -> np.ndarray:
    return images.read(astronaut)


@pytest.fixture(scope="module")
def lfw(faces_dir: Path) -> list[np.ndarray]:
    files = sorted((faces_dir / "lfw").glob("*/*.jpg"))
    if not files:
        pytest.skip("there is no lfw folder under DIFFSFSR_DATA")
    return [images.read(path) for path in np.random.default_rng(1).choice(np.array(files, object), 80, replace=False)]


# --- SCRFD, by insightface's class ------------------------------------------------------------------------------------

STRIDES = {8: (0, 255, 0), 16: (255, 0, 0), 32: (0, 0, 255)}  # each stride of the hand-made network sees one colour
KINDS = {"score": 1, "box": 4, "points": 10}
OFFSETS = FIVE / 16  # the five points about a cell's corner, in strides
SIDES = np.array([3.0, 2.0, 4.0, 5.0])  # left, top, right, bottom of the box about it, in strides


def scrfd_file(path: Path, kinds: tuple[str, ...] = tuple(KINDS)) -> Path:
    """A network of SCRFD's form (three strides, two anchors, scores + boxes + points) that finds cells of pure colour."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, outputs = [], [], []

    def constant(name: str, values: object) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    for kind in kinds:
        for stride, colour in STRIDES.items():
            name, width = f"{kind}{stride}", KINDS[kind]
            weight = np.zeros((2 * width, 3, 1, 1), np.float32)
            bias = np.concatenate([OFFSETS.ravel() if kind == "points" else SIDES] * 2).astype(np.float32)
            if kind == "score":  # sure of its colour, never of another; the second anchor is always silent
                weight[0, :, 0, 0] = np.where(np.array(colour) > 0, 10, -5)
                bias = np.array([-15, -100], np.float32)
            nodes.append(helper.make_node("AveragePool", ["image"], [f"{name}-cells"], kernel_shape=[stride] * 2, strides=[stride] * 2))
            inputs = [f"{name}-cells", constant(f"{name}-weight", weight), constant(f"{name}-bias", bias)]
            nodes.append(helper.make_node("Conv", inputs, [f"{name}-maps"]))
            nodes.append(helper.make_node("Transpose", [f"{name}-maps"], [f"{name}-last"], perm=[0, 2, 3, 1]))
            shape = constant(f"{name}-shape", np.array([-1, width]))
            nodes.append(helper.make_node("Reshape", [f"{name}-last", shape], [f"{name}-rows" if kind == "score" else name]))
            if kind == "score":
                nodes.append(helper.make_node("Sigmoid", [f"{name}-rows"], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = helper.make_graph(nodes, "scrfd", [image], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def painted(height: int, width: int, scale: int, cells: list[tuple[int, int, int]]) -> np.ndarray:
    """Black, with cells (stride, row, column) of a copy `scale` times as small in their strides' colours."""
    picture = np.zeros((height, width, 3), np.uint8)
    for stride, row, column in cells:
        side = stride * scale
        picture[row * side : (row + 1) * side, column * side : (column + 1) * side] = STRIDES[stride]
    return picture


@pytest.mark.parametrize("scale", [1, 2])
def test_scrfd_finds_what_its_network_sees(tmp_path: Path, scale: int) -> None:
    detector = ScrfdDetector(scrfd_file(tmp_path / "det.onnx"))
    cells = [(32, 3, 14), (8, 40, 20), (16, 10, 12)]
    found = detector(painted(480 * scale, 640 * scale, scale, cells))
    expected = sorted(
        (scale * stride * np.array([column, row]) + scale * stride * OFFSETS for stride, row, column in cells), key=lambda p: p[2, 0]
    )
    assert len(found) == 3
    for face, points in zip(found, expected, strict=True):
        np.testing.assert_allclose(face.points, points, atol=1e-3)
        assert 0.98 < face.score < 1  # sigmoid(4.9)
        middle = (points[:2].mean(0) + points[3:].mean(0)) / 2
        np.testing.assert_allclose((np.array(face.box[:2]) + face.box[2:]) / 2 - 0.5, middle, atol=1)
    assert detector.provider == "CPUExecutionProvider"
    assert detector(painted(480, 640, 1, [])) == []


def test_scrfd_reads_rgb(tmp_path: Path) -> None:
    """Red and blue have strides of their own: a swap of the channels would move the find."""
    (face,) = ScrfdDetector(scrfd_file(tmp_path / "det.onnx"))(painted(640, 640, 1, [(16, 5, 5)]))
    assert face.width == round(detection._BOX_WIDTH * np.hypot(42, 1))  # 32 strides apart it would be twice as wide


def test_the_zoos_scrfd_is_the_detector_insightface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection.weights, "resolve", lambda name: {"scrfd-10g": scrfd_file(tmp_path / "det_10g.onnx")}[name])
    detector = load_detector("insightface")
    assert isinstance(detector, ScrfdDetector) and load_detector("insightface") is detector
    with pytest.raises(images.Rejected, match="no face"):
        alignment.align(np.zeros((64, 64, 3), np.uint8), 64, Data(detector="insightface"))


def test_a_silent_fall_back_to_the_cpu_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """onnxruntime takes the CPU where it has no CUDA, whatever it was asked for."""
    import onnxruntime
    from insightface.model_zoo import onnxruntime_utils

    path = scrfd_file(tmp_path / "det_10g.onnx")
    ScrfdDetector(path)
    assert capsys.readouterr().err == ""  # neither asked for nor there
    for module in (onnxruntime, onnxruntime_utils.onnxruntime):
        monkeypatch.setattr(module, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):  # onnxruntime's own, which nobody sees in a log
        detector = ScrfdDetector(path)
    told = capsys.readouterr().err
    assert detector.provider == "CPUExecutionProvider"
    assert told.count("\n") == 1 and "det_10g.onnx runs on the CPU: onnxruntime has CUDA but could not start it" in told


@pytest.mark.parametrize(("kinds", "told"), [(("score", "box"), "with five points"), ((), "cannot be read by onnxruntime")])
def test_a_file_that_is_no_scrfd_is_refused(tmp_path: Path, kinds: tuple[str, ...], told: str) -> None:
    path = tmp_path / "det.onnx"
    if kinds:
        scrfd_file(path, kinds)
    else:
        path.write_bytes(b"no network")
    with pytest.raises(InputError, match=told) as raised:
        ScrfdDetector(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


# --- what all of them keep --------------------------------------------------------------------------------------------


def test_unknown_and_missing_detectors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean yunet"):
        load_detector("yunett")
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    for name, file in (("yunet", "face_detection_yunet"), ("insightface", "det_10g.onnx")):
        with pytest.raises(NotReady, match=file):
            load_detector(name)
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match=r"bad\.onnx is not a YuNet"):
        YunetDetector(tmp_path / "bad.onnx")


@pytest.mark.parametrize("name", DETECTORS)
def test_pictures_of_any_shape(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if name == "yunet":
        request.getfixturevalue("weights_dir")
    detector = ScrfdDetector(scrfd_file(tmp_path / "det.onnx")) if name == "insightface" else load_detector(name)
    for height, width in ((1, 1), (2, 900), (3000, 1), (1, 700), (33, 161)):
        assert detector(np.full((height, width, 3), 90, np.uint8)) == []
    for wrong in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(ValueError, match="HWC uint8 RGB"):
            detector(wrong)


@pytest.mark.parametrize("name", ["yunet", "facemesh"])
def test_damaged_bytes_are_refused_before_opencv_reads_them(
    name: str, weights_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one bit of a weight: OpenCV reads that, and would find other faces."""
    load: Callable[[Path | None], object] = {"yunet": YunetDetector, "facemesh": MeshLandmarks}[name]
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    source, path = weights_dir / weights.entry(name).file, tmp_path / weights.entry(name).file
    path.write_bytes(source.read_bytes())
    load(None)
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    load(path)  # whoever names a file answers for it
    with pytest.raises(InputError, match=f"{path} is damaged.*`diffsfsr weights check`"):
        load(None)


def test_a_damaged_predictor_of_landmarks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "damaged.dat"
    path.write_bytes(bytes(1000))
    monkeypatch.setattr(weights, "resolve", lambda _: path)
    with pytest.raises(InputError, match=f"{path} is not a predictor"):
        DlibLandmarks()


@pytest.mark.parametrize("name", ["dlib", "yunet"])
def test_six_people_from_left_to_right(name: str, six_people: Path, request: pytest.FixtureRequest) -> None:
    if name == "yunet":
        request.getfixturevalue("weights_dir")
    detector, picture = load_detector(name), images.read(six_people)
    found = detector(picture)
    assert len(found) == 6
    assert [face.box[0] for face in found] == sorted(face.box[0] for face in found)
    with ThreadPoolExecutor(4) as pool:  # one object, several threads, pictures of two sizes
        small = images.resize(picture, (300, 430))
        alone = detector(small)
        many = list(pool.map(detector, [picture, small] * 4))
    for result, expected in zip(many, [found, alone] * 4, strict=True):
        assert [face.box for face in result] == [face.box for face in expected]


def test_a_box_by_five_points() -> None:
    face = detection.found_by(FIVE + (100, 80), 0.9)
    width = round(detection._BOX_WIDTH * math.hypot(42, 1))  # the eyes are farther apart than they are from the mouth
    middle = (FIVE[:2].mean(0) + FIVE[3:].mean(0)) / 2 + (100, 80)
    assert face.width == width == face.box[3] - face.box[1] and face.score == 0.9
    np.testing.assert_allclose((np.array(face.box[:2]) + face.box[2:] - 1) / 2, middle, atol=0.5)
    for degrees in (-170, -60, 0, 35, 90):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turned = Found(face.box, 1.0, FIVE @ np.array([[c, s], [-s, c]]))
        assert math.degrees(turned.roll - Found(face.box, 1.0, FIVE).roll) == pytest.approx(degrees, abs=1e-6)
    assert Found(face.box, 1.0).roll == 0


@pytest.mark.parametrize(("box", "share"), [((0, 0, 10, 10), 1.0), ((-5, 0, 5, 10), 0.5), ((15, 25, 25, 35), 0.25), ((40, 0, 50, 10), 0.0)])
def test_the_visible_share_of_a_box(box: detection.Box, share: float) -> None:
    assert Found(box, 1.0).visible((30, 20, 3)) == share


# --- YuNet on real faces ----------------------------------------------------------------------------------------------


def landmark_error(found: np.ndarray, reference: np.ndarray) -> float:
    """Mean distance of two sets of 68 landmarks, in distances between the eyes."""
    eyes = np.hypot(*(reference[36:42].mean(0) - reference[42:48].mean(0)))
    return float(np.hypot(*(found - reference).T).mean() / eyes)


def test_yunet_boxes_serve_dlibs_landmarks(lfw: list[np.ndarray], weights_dir: Path) -> None:
    """Landmarks by either detector agree as well as they do when dlib's own box is moved by a step of its grid."""
    yunet, hog, rng = YunetDetector(), DlibDetector(), np.random.default_rng(0)
    errors, jittered, widths = [], [], []
    for picture in lfw:
        for box in hog(picture)[:1]:
            left, top, right, bottom = box.box
            centre = np.array([left + right, top + bottom]) / 2
            near = [face for face in yunet(picture) if np.hypot(*((np.array(face.box[:2]) + face.box[2:]) / 2 - centre)) < 0.3 * box.width]
            assert len(near) == 1
            reference = load_landmarks("dlib")(picture, box)
            errors.append(landmark_error(load_landmarks("dlib")(picture, near[0]), reference))
            x, y, grow = (int(v) for v in np.rint(rng.normal(0, 0.04 * box.width, 3)))
            moved = Found((left + x - grow, top + y - grow, right + x + grow, bottom + y + grow), 1.0)
            jittered.append(landmark_error(load_landmarks("dlib")(picture, moved), reference))
            widths.append(near[0].width / box.width)
    assert len(errors) > 70
    assert np.median(errors) < 0.02 and np.mean(np.array(errors) > 0.06) < 0.05
    assert np.median(errors) < 1.3 * np.median(jittered)
    assert abs(np.median(widths) - 1) < 0.04 and np.std(widths) < 0.13


@pytest.mark.parametrize(("name", "degrees"), [("dlib", -30), ("dlib", 30), ("dlib", 40), ("yunet", -30), ("yunet", 20), ("yunet", 30)])
def test_a_head_askew_is_aligned_as_an_upright_one(astronaut_picture: np.ndarray, weights_dir: Path, name: str, degrees: int) -> None:
    upright = alignment.align(astronaut_picture, 128, Data(detector=name))
    turned = np.array(Image.fromarray(astronaut_picture).rotate(-degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=(90, 90, 90)))
    face = alignment.align(turned, 128, Data(detector=name, max_outside=1.0, face="largest"))
    assert face.pose.roll - upright.pose.roll == pytest.approx(degrees, abs=1.5)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    back = (face.landmarks - (np.array(turned.shape[1::-1]) - 1) / 2) @ np.array([[c, -s], [s, c]]) + 255.5
    assert landmark_error(back, upright.landmarks) < 0.02  # one look alone: up to 0.34
    assert np.abs(face.crop.astype(float) - upright.crop).mean() < 8


@pytest.mark.parametrize(("side", "face"), [(512, 100), (3000, 90), (3000, 1200)])
def test_faces_small_and_large(astronaut_picture: np.ndarray, weights_dir: Path, side: int, face: int) -> None:
    """The head fills 200 of the 512 pixels of its picture; a face is told once, whatever its size."""
    copy = images.resize(astronaut_picture[:256, 96:352], (2 * face, 2 * face))
    picture = np.full((side, side, 3), 128, np.uint8)
    picture[50 : 50 + 2 * face, 80 : 80 + 2 * face] = copy[: side - 50, : side - 80]
    (found,) = YunetDetector()(picture)
    left, top, right, bottom = (np.array(found.box) - (80, 50, 80, 50)) * 128 / face + (96, 0, 96, 0)
    assert np.hypot((left + right) / 2 - 224, (top + bottom) / 2 - 117) < 15 and 80 < right - left < 120


def test_yunet_sees_profiles_and_hats(faces_dir: Path, weights_dir: Path) -> None:
    files = [path for path in sorted((faces_dir / "portraits").rglob("*.*")) if images.is_image_name(path)]
    if not files:
        pytest.skip("there is no portraits folder under DIFFSFSR_DATA")
    yunet = YunetDetector()
    found = [len(yunet(images.read(path))) for path in files]
    assert np.mean(np.array(found) > 0) > 0.97  # dlib's HOG detector: 0.89
