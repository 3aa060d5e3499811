"""Alignment against known transforms, pose against a known projection, pasting against brute force."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffsfsr.config import Data
from diffsfsr.errors import InputError
from diffsfsr.face import alignment, images, masks
from diffsfsr.face import pose as pose_room
from diffsfsr.face.alignment import AlignedFace, Pose
from diffsfsr.face.detection import Found, load_detector
from diffsfsr.face.images import Rejected
from diffsfsr.face.landmarks import DlibLandmarks

_SIZE = 128
_MIRROR = np.array(  # the 68 points, seen in a mirror
    [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    + [*range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)]
)


@pytest.fixture(scope="module")
def scene(astronaut: Path) -> np.ndarray:
    return images.read(astronaut)


@pytest.fixture(scope="module")
def face(scene: np.ndarray) -> AlignedFace:
    return alignment.align(scene, _SIZE, Data())


@pytest.fixture(scope="module")
def group(six_people: Path) -> np.ndarray:
    return images.read(six_people)


@pytest.fixture(scope="module")
def heads(group: np.ndarray) -> list[np.ndarray]:
    """The six people, each in a square of 240 pixels with the head in the middle half."""
    squares = []
    for left, top, right, bottom in (face.box for face in load_detector("dlib")(group)):
        centre, side = np.array([(left + right) / 2, (top + bottom) / 2]), 2 * (right - left)
        scale = 240 / side
        matrix = np.column_stack([np.eye(2) * scale, 119.5 - scale * centre])
        squares.append(alignment.warp_crop(group, matrix, 240))
    return squares


def _similarity(degrees: float, scale: float, shift: tuple[float, float], about: tuple[float, float]) -> np.ndarray:
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    linear = np.array([[c, -s], [s, c]])
    return np.column_stack([linear, np.add(shift, about) - linear @ about])


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _pillow_warp(image: np.ndarray, matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """An independent resampler. Pillow maps the centres of output pixels, at half-integers, back to the source."""
    linear = np.linalg.inv(matrix[:, :2])
    offset = -linear @ (matrix[:, 2] + 0.5) + 0.5
    data = (*linear[0], offset[0], *linear[1], offset[1])
    return np.array(Image.fromarray(image).transform((width, height), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC))


# --- detection and choice -------------------------------------------------------------------------------------------


def test_six_people_from_left_to_right(group: np.ndarray) -> None:
    faces = alignment.align_all(group, 64)
    assert [f.index for f in faces] == list(range(6)) and {f.count for f in faces} == {6}
    centres = [f.landmarks[:, 0].mean() for f in faces]
    assert centres == sorted(centres)
    for f in faces:
        inside = (f.landmarks > np.subtract(f.box[:2], 15)).all(axis=1) & (f.landmarks < np.add(f.box[2:], 15)).all(axis=1)
        assert inside.mean() > 0.9


def test_several_faces_and_the_choice_among_them(heads: list[np.ndarray]) -> None:
    pair = np.hstack([heads[0], heads[3]])
    with pytest.raises(Rejected) as caught:
        alignment.align(pair, _SIZE, Data(face="only"))
    assert caught.value.reason == "several faces" and "2 faces" in caught.value.detail
    for index in (0, 1):
        chosen = alignment.align(pair, _SIZE, Data(face=str(index)))
        assert chosen.index == index and chosen.count == 2
        assert chosen.landmarks[:, 0].mean() // 240 == index
    bigger = np.hstack([heads[0], np.full((100, 300, 3), 128, np.uint8).repeat(3, axis=0)[:240]])
    bigger = np.vstack([bigger, np.full((160, 540, 3), 128, np.uint8)])
    bigger[40:360, 230:550] = images.resize(heads[3], (320, 320))[:, :310]
    assert alignment.align(bigger, _SIZE, Data(face="largest")).index == 1


def test_a_small_bystander_does_not_count(heads: list[np.ndarray]) -> None:
    picture = np.full((600, 900, 3), 128, np.uint8)
    picture[:600, :600] = images.resize(heads[0], (600, 600))
    picture[100:320, 650:870] = images.resize(heads[3], (220, 220))
    assert len(load_detector("dlib")(picture)) == 2
    assert alignment.align(picture, _SIZE, Data(face="only")).index == 0


def test_a_weak_find_is_not_a_second_face() -> None:
    boxes, scores = [(0, 0, 90, 90), (100, 0, 240, 140), (250, 0, 330, 80)], [1.5, 0.07, 0.3]
    found, shape = [Found(box, score) for box, score in zip(boxes, scores, strict=True)], (200, 400, 3)
    assert alignment._choose(found, shape, "only") == alignment._choose(found, shape, "largest") == 0
    assert alignment._choose(found, shape, "1") == 1
    with pytest.raises(Rejected, match="several faces: 2 faces"):
        alignment._choose([*found[:2], Found(boxes[2], 0.4)], shape, "only")


@pytest.mark.parametrize(("left", "told"), [(300, "2 faces"), (304, "2 faces"), (318, "")])
def test_somebody_cut_off_by_the_edge_is_a_bystander(left: int, told: str) -> None:
    found = [Found((0, 0, 100, 100), 1.0), Found((left, 50, left + 90, 140), 1.0)]  # the picture ends at 390
    if told:
        with pytest.raises(Rejected, match=told):
            alignment._choose(found, (200, 390, 3), "only")
    else:
        assert alignment._choose(found, (200, 390, 3), "only") == 0
    assert alignment._choose(found[::-1], (200, 390, 3), "1") == 1  # an index counts everybody


def test_a_choice_that_cannot_be_met(scene: np.ndarray) -> None:
    with pytest.raises(Rejected, match="no face: there is no face 3"):
        alignment.align(scene, _SIZE, Data(face="3"))
    for word in ("leftmost", "-1", "1.5", ""):
        with pytest.raises(InputError, match="data.face"):
            alignment.align(scene, _SIZE, Data(face=word))


@pytest.mark.parametrize("shape", [(1, 1), (2, 900), (300, 300)])
def test_no_face(shape: tuple[int, int]) -> None:
    with pytest.raises(Rejected) as caught:
        alignment.align(np.full((*shape, 3), 90, np.uint8), _SIZE, Data())
    assert caught.value.reason == "no face"
    assert alignment.align_all(np.zeros((*shape, 3), np.uint8), _SIZE) == []


def test_each_limit_rejects(scene: np.ndarray, face: AlignedFace) -> None:
    left, top, right, _ = face.box
    limits = {
        "too small": (scene, Data(min_face=right - left + 1)),
        "too turned": (scene, Data(max_yaw=abs(face.pose.yaw) / 2)),
        "cut off": (scene[top + 5 :], Data()),
    }
    for reason, (image, data) in limits.items():
        with pytest.raises(Rejected) as caught:
            alignment.align(np.ascontiguousarray(image), _SIZE, data)
        assert caught.value.reason == reason
    assert alignment.align(scene, _SIZE, Data(min_face=right - left)).box == face.box


def test_small_and_large_pictures_give_the_same_crop(scene: np.ndarray, face: AlignedFace) -> None:
    for factor in (0.45, 3.0):
        side = round(512 * factor)
        found = alignment.align_all(images.resize(scene, (side, side)), _SIZE)
        assert len(found) == 1
        assert np.abs(found[0].crop.astype(float) - face.crop).mean() < 8


def test_alignment_is_deterministic(scene: np.ndarray, face: AlignedFace) -> None:
    again = alignment.align(scene, _SIZE, Data())
    np.testing.assert_array_equal(again.crop, face.crop)
    np.testing.assert_array_equal(again.matrix, face.matrix)
    assert again.pose == face.pose


def test_most_of_lfw_is_accepted(faces_dir: Path) -> None:
    files = sorted((faces_dir / "lfw").glob("*/*.jpg"))
    if not files:
        pytest.skip("there is no lfw folder under DIFFSFSR_DATA")
    reasons = []
    for path in np.random.default_rng(0).choice(np.array(files, object), 60, replace=False):
        try:
            alignment.align(images.read(path), _SIZE, Data())
        except Rejected as rejected:
            reasons.append(rejected.reason)
    assert len(reasons) <= 8 and set(reasons) <= {"several faces", "cut off"}, reasons


@pytest.mark.parametrize("width", [32, 90, 1024])
def test_landmarks_keep_the_centres_of_pixels(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a predictor that points at a bright spot, the spot comes back where it was drawn, to a pixel of its copy."""
    spot, step = np.array([1.4 * width, 1.7 * width]).round(), max(1, width // 32)
    picture = np.zeros((3 * width, 3 * width, 3), np.uint8)
    x, y = (int(c) for c in spot)
    picture[y - step : y + step + 1, x - step : x + step + 1] = 255

    class Shape:
        def __init__(self, copy: np.ndarray) -> None:
            ys, xs = np.nonzero(copy > 127)
            self.point = SimpleNamespace(x=round(xs.mean()), y=round(ys.mean()))

        def parts(self) -> list[SimpleNamespace]:
            return [self.point] * 68

    source = DlibLandmarks()
    monkeypatch.setattr(source, "_predictor", lambda copy, _: Shape(copy))
    found = source(picture, Found((width, width, 2 * width, 2 * width), 1.0))
    assert found.shape == (68, 2)
    assert np.abs(found - spot).max() <= width / 256 + 0.02


# --- the canonical crop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("degrees", "scale", "shift"), [(10, 1.6, (20, 30)), (-20, 0.8, (-30, 50)), (7, 2.3, (250, 300))])
def test_a_known_similarity_is_recovered(
    scene: np.ndarray, face: AlignedFace, degrees: float, scale: float, shift: tuple[float, float]
) -> None:
    known = _similarity(degrees, scale, shift, (224.0, 110.0))
    found = alignment.align_all(_pillow_warp(scene, known, 800, 800), _SIZE)
    expected = _apply(known, face.landmarks.mean(axis=0))
    moved = min(found, key=lambda f: float(np.hypot(*(f.landmarks.mean(axis=0) - expected))))  # dlib sees a second face in the suit
    assert np.abs(moved.crop.astype(float) - face.crop).mean() < 8
    in_crop = np.array([[30.0, 30], [98, 30], [64, 64], [40, 100], [90, 100]])
    back = _apply(alignment.invert_matrix(face.matrix), in_crop)
    assert np.abs(_apply(moved.matrix, _apply(known, back)) - in_crop).max() < 0.02 * _SIZE
    assert moved.pose.roll - face.pose.roll == pytest.approx(degrees, abs=1.5)
    assert moved.pose.yaw == pytest.approx(face.pose.yaw, abs=6)


def test_canonical_matrix_is_ffhqs_quad(face: AlignedFace) -> None:
    """Against the corner formulas of FFHQ's recreate_aligned_images, restated."""
    points = face.landmarks.astype(np.float64)
    eye_left, eye_right = points[36:42].mean(0), points[42:48].mean(0)
    eye_avg, mouth_avg = (eye_left + eye_right) * 0.5, (points[48] + points[54]) * 0.5
    x = (eye_right - eye_left) - np.flipud(mouth_avg - eye_avg) * [-1, 1]
    x *= max(np.hypot(*(eye_right - eye_left)) * 2.0, np.hypot(*(mouth_avg - eye_avg)) * 1.8) / np.hypot(*x)
    y = np.flipud(x) * [-1, 1]
    c = eye_avg + (mouth_avg - eye_avg) * 0.1
    quad = np.stack([c - x - y, c - x + y, c + x + y, c + x - y])
    edges = np.array([(0, 0), (0, _SIZE), (_SIZE, _SIZE), (_SIZE, 0)]) - 0.5
    np.testing.assert_allclose(_apply(alignment.canonical_matrix(points, _SIZE), quad), edges, atol=1e-9)


def test_the_matrix_is_a_similarity_and_equivariant(face: AlignedFace) -> None:
    a, b = face.matrix[0, :2]
    np.testing.assert_allclose(face.matrix[1, :2], (-b, a), atol=1e-12)
    known = _similarity(33, 0.6, (5, -8), (10, 20))
    direct = _apply(alignment.canonical_matrix(_apply(known, face.landmarks.astype(float)), _SIZE), _apply(known, face.landmarks))
    np.testing.assert_allclose(direct, face.crop_landmarks, atol=1e-4)
    with pytest.raises(ValueError, match="coincide"):
        alignment.canonical_matrix(np.zeros((68, 2)), _SIZE)


def test_the_inverse_is_exact(face: AlignedFace) -> None:
    points = np.random.default_rng(0).uniform(-500, 500, (100, 2))
    there_and_back = _apply(alignment.invert_matrix(face.matrix), _apply(face.matrix, points))
    np.testing.assert_allclose(there_and_back, points, atol=1e-10)


def test_warp_is_exact_on_whole_pixels(scene: np.ndarray) -> None:
    shift = np.array([[1.0, 0, -100], [0, 1, -60]])
    np.testing.assert_array_equal(alignment.warp_crop(scene, shift, 64), scene[60:124, 100:164])


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_warp_averages_where_it_shrinks(factor: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32 * factor, 32 * factor, 3), dtype=np.uint8)
    matrix = np.array([[1 / factor, 0, 0.5 / factor - 0.5], [0, 1 / factor, 0.5 / factor - 0.5]])
    expected = noise.reshape(32, factor, 32, factor, 3).mean(axis=(1, 3))
    assert np.abs(alignment.warp_crop(noise, matrix, 32) - expected)[2:-2, 2:-2].mean() < 1
    turned = _similarity(30, 0.27, (0, 0), (0.0, 0.0))
    turned[:, 2] = 16 - turned[:, :2] @ (16 * factor, 16 * factor)
    if factor >= 8:
        assert alignment.warp_crop(noise, turned, 24).astype(float).std() < 40  # of 74 in the noise


def test_warp_mirrors_beyond_the_edge(scene: np.ndarray) -> None:
    shifted = alignment.warp_crop(scene, np.array([[1.0, 0, 10], [0, 1, 0]]), 64)
    np.testing.assert_array_equal(shifted[:, :10], shifted[:, 19:9:-1])


def test_outside_is_the_share_beyond_the_picture() -> None:
    bright = np.full((200, 200, 3), 180, np.uint8)
    for shift, share in ((0, 0.0), (32, 0.25), (64, 0.5), (500, 1.0)):
        assert alignment._outside(bright, np.array([[1.0, 0, shift], [0, 1, 0]]), 128) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("corner", [180, 0])
def test_outside_is_the_share_of_pixels_that_lie_outside(corner: int) -> None:
    """Brute force over a crop's pixels. A picture without black corners takes a shorter way to the same answer."""
    rng, bright = np.random.default_rng(corner), np.full((90, 130, 3), 180, np.uint8)
    bright[0, 0] = corner
    ys, xs = np.mgrid[:64, :64]
    for _ in range(60):
        matrix = _similarity(float(rng.uniform(-180, 180)), float(rng.uniform(0.5, 2)), tuple(rng.uniform(-80, 60, 2)), (0.0, 0.0))
        x, y = _apply(alignment.invert_matrix(matrix), np.stack([xs.ravel(), ys.ravel()], axis=1).astype(float)).T
        inside = (x > -0.5) & (x < 129.5) & (y > -0.5) & (y < 89.5)
        assert alignment._outside(bright, matrix, 64) == pytest.approx(1 - inside.mean(), abs=0.01)


def test_outside_counts_a_black_border_but_not_the_dark() -> None:
    bright = np.full((200, 200, 3), 180, np.uint8)
    turned = np.array(Image.fromarray(bright).rotate(45))  # a diamond: each black corner is an eighth of the picture
    whole = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert alignment._outside(turned, whole, 200) == pytest.approx(2 * (math.sqrt(2) - 1) ** 2 / 2 * 2 / 2, abs=0.02)
    studio = np.full((200, 200, 3), 4, np.uint8)
    studio[60:, 60:140] = 150
    assert alignment._outside(studio, whole, 200) == 0
    assert alignment._outside(np.zeros((50, 50, 3), np.uint8), whole, 50) == 1


# --- head pose ------------------------------------------------------------------------------------------------------


def _rotation(pose: Pose) -> np.ndarray:
    yaw, pitch, roll = np.radians([pose.yaw, -pose.pitch, pose.roll])
    rx = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    ry = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    rz = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return rz @ ry @ rx


def _projected(pose: Pose) -> np.ndarray:
    """68 landmarks of the generic head in that pose, by a pinhole camera at a close portrait's distance."""
    head = np.zeros((68, 3))
    head[pose_room._POSE_LANDMARKS] = pose_room._HEAD
    head[36:42], head[42:48] = (head[36] + head[39]) / 2, (head[42] + head[45]) / 2
    head[[36, 39, 42, 45]] = pose_room._HEAD[4:8]
    seen = (head - (0, -4.7, -4)) @ _rotation(pose).T + (0, 0, 28)  # it looks between the eyes
    return seen[:, :2] / seen[:, 2:] * 900 + (320, 240)


@pytest.mark.parametrize("pose", [Pose(0, 0, 0), Pose(25, 0, 0), Pose(-40, 10, 5), Pose(10, -20, 30), Pose(0, 15, -75), Pose(50, 0, 170)])
def test_pose_of_a_known_projection(pose: Pose) -> None:
    found = alignment.head_pose(_projected(pose))
    error = [(a - b + 180) % 360 - 180 for a, b in zip(vars(found).values(), vars(pose).values(), strict=True)]
    assert np.abs(error).max() < 4, found


def test_signs_of_the_pose() -> None:
    nose = np.array([0.0, 0.0, -1.0])
    assert (_rotation(Pose(30, 0, 0)) @ nose)[0] < 0  # to the left
    assert (_rotation(Pose(0, 30, 0)) @ nose)[1] < 0  # up
    assert (_rotation(Pose(0, 0, 30)) @ (0, -1, 0))[0] > 0  # clockwise


def test_mirrored_landmarks_mirror_the_pose(group: np.ndarray) -> None:
    for f in alignment.align_all(group, 64):
        mirrored = alignment.head_pose((f.landmarks * (-1, 1) + (group.shape[1] - 1, 0))[_MIRROR])
        assert mirrored.yaw == pytest.approx(-f.pose.yaw, abs=0.02)
        assert mirrored.pitch == pytest.approx(f.pose.pitch, abs=0.02)
        assert mirrored.roll == pytest.approx(-f.pose.roll, abs=0.02)


def test_a_mirrored_picture_mirrors_the_pose(scene: np.ndarray, face: AlignedFace) -> None:
    mirrored = alignment.align_all(np.ascontiguousarray(scene[:, ::-1]), _SIZE)[0].pose
    assert mirrored.yaw == pytest.approx(-face.pose.yaw, abs=4)
    assert mirrored.roll == pytest.approx(-face.pose.roll, abs=2)
    assert mirrored.pitch == pytest.approx(face.pose.pitch, abs=5)


def test_pose_knows_neither_place_nor_size(face: AlignedFace) -> None:
    points = face.landmarks.astype(np.float64)
    for scale, shift, degrees in ((1, 5000, 0), (0.1, -300, 0), (12, 0, 0), (3, 77, 50), (1, 0, -120)):
        moved = alignment.head_pose(_apply(_similarity(degrees, scale, (shift, -shift), (3.0, 4.0)), points))
        assert moved.yaw == pytest.approx(face.pose.yaw, abs=0.02) and moved.pitch == pytest.approx(face.pose.pitch, abs=0.02)
        assert (moved.roll - face.pose.roll - degrees + 180) % 360 - 180 == pytest.approx(0, abs=0.02)


def test_pose_of_frontal_people(tom_hanks: Path) -> None:
    pose = alignment.align_all(images.read(tom_hanks), 64)[0].pose
    assert max(abs(pose.yaw), abs(pose.roll)) < 25 and abs(pose.pitch) < 25


# --- back into the scene --------------------------------------------------------------------------------------------


def _nearest_mask(shape: tuple[int, ...], matrix: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Brute force: each scene pixel looks up the crop pixel whose square it falls in."""
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    columns, rows = np.rint(_apply(matrix, np.stack([xs.ravel(), ys.ravel()], axis=1).astype(float))).astype(int).T
    inside = (columns >= 0) & (rows >= 0) & (columns < mask.shape[1]) & (rows < mask.shape[0])
    found = np.zeros(len(rows), bool)
    found[inside] = mask[rows[inside], columns[inside]] > 0
    return found.reshape(shape[:2])


@pytest.mark.parametrize("feather", [0.0, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("scale", [0.25, 0.6, 2.5])
def test_feather_stays_inside_the_mask(feather: float, scale: float) -> None:
    rng = np.random.default_rng(int(scale * 100))
    mask = np.zeros((64, 64), np.uint8)
    for x, y, w, h in rng.integers(0, 50, (6, 4)):
        mask[y : y + h + 4, x : x + w + 4] = 1
    matrix = _similarity(float(rng.uniform(-40, 40)), scale, (-20, -10), (70.0, 70.0))
    soft = alignment.feathered_mask((150, 140, 3), matrix, mask, feather)
    assert soft.shape == (150, 140) and soft.dtype == np.float32 and soft.min() >= 0 and soft.max() <= 1
    assert (soft[~_nearest_mask((150, 140), matrix, mask)] == 0).all()
    assert soft.max() > 0


def test_feather_rises_to_one_and_has_a_unit() -> None:
    full = np.ones((100, 100), np.uint8)
    still = np.array([[1.0, 0, 0], [0, 1, 0]])
    soft = alignment.feathered_mask((100, 100), still, full, 0.1)
    row = soft[50, :50]
    assert row[0] == 0 and (np.diff(row) >= 0).all() and (row[12:] == 1).all() and 0 < row[5] < 1
    for wrong in (-0.1, 4.0):
        with pytest.raises(ValueError, match="feather"):
            alignment.feathered_mask((10, 10), still, full, wrong)


def test_the_feather_is_wider_across_the_forehead() -> None:
    """From the top of a mask, wherever that is, it takes longer to 1 than from a side; below its brows it is as wide as said."""
    mask, still = np.zeros((100, 100), np.uint8), np.array([[1.0, 0, 0], [0, 1, 0]])
    mask[20:100] = 1
    soft = alignment.feathered_mask((100, 100), still, mask, 0.05)
    down, side = soft[20:60, 50], soft[60, :40]
    assert (np.diff(down) >= 0).all() and down[0] == 0 and down[-1] == 1
    assert (down < 0.5).sum() > 1.5 * (side < 0.5).sum()
    below = alignment.feathered_mask((100, 100), still, np.ones((100, 100), np.uint8), 0.05)[60, :40]
    np.testing.assert_array_equal(side, below)
    assert not alignment.feathered_mask((100, 100), still, np.zeros_like(mask), 0.05).any()  # an empty mask has no top


def test_paste_changes_nothing_outside(scene: np.ndarray, face: AlignedFace) -> None:
    mask = masks.hull_mask(face.crop_landmarks, _SIZE)
    paint, kept = np.zeros_like(face.crop), scene.copy()
    pasted = alignment.paste_back(scene, paint, face.matrix, mask, 0.05)
    soft = alignment.feathered_mask(scene.shape, face.matrix, mask, 0.05)
    np.testing.assert_array_equal(pasted[soft == 0], scene[soft == 0])
    outside = ~_nearest_mask(scene.shape, face.matrix, mask)
    np.testing.assert_array_equal(pasted[outside], scene[outside])
    np.testing.assert_array_equal(pasted[soft == 1], 0)
    np.testing.assert_allclose(pasted, scene * (1 - soft[..., None]), atol=0.51)
    np.testing.assert_array_equal(scene, kept)


@pytest.mark.parametrize(("size", "tolerance"), [(512, 1.0), (256, 1.2), (128, 3.0)])
def test_pasting_its_own_crop_changes_little(scene: np.ndarray, size: int, tolerance: float) -> None:
    own = alignment.align_all(scene, size)[0]
    mask = masks.hull_mask(own.crop_landmarks, size)
    pasted = alignment.paste_back(scene, own.crop, own.matrix, mask, 0.05)
    soft = alignment.feathered_mask(scene.shape, own.matrix, mask, 0.05)
    change = np.abs(pasted.astype(float) - scene)
    assert change[soft > 0].mean() < tolerance and change[soft == 0].max() == 0
    assert change[soft > 0].mean() > 0  # something was pasted


def test_pasting_beyond_the_edge(scene: np.ndarray) -> None:
    mask, crop = np.ones((64, 64), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    half_out = np.array([[1.0, 0, 32], [0, 1, 32]])
    pasted = alignment.paste_back(scene, crop, half_out, mask, 0.02)
    assert (pasted[:25, :25] == 255).all() and (pasted[33:] == scene[33:]).all() and (pasted[:, 33:] == scene[:, 33:]).all()
    far_out = np.array([[1.0, 0, 9000], [0, 1, 0]])
    np.testing.assert_array_equal(alignment.paste_back(scene, crop, far_out, mask, 0.02), scene)
    with pytest.raises(ValueError, match="does not fit"):
        alignment.paste_back(scene, crop, half_out, mask[:32], 0.02)
