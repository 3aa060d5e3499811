"""The similarity fit and the warp, against known transforms, OpenCV, brute force and dlib's own chips."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffsfsr.encoders import warp as W


def matrix(scale: float, degrees: float, x: float, y: float) -> torch.Tensor:
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return torch.tensor([[c, -s, x], [s, c, y]], dtype=torch.float64)


def moved(points: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return points @ m[:, :2].T + m[:, 2]


def test_a_known_similarity_is_recovered() -> None:
    points = torch.rand(3, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 100
    known = torch.stack([matrix(0.3, 20, 5, -7), matrix(2, -170, 0, 1), matrix(1, 90, 40, 3)])
    target = torch.stack([moved(p, m) for p, m in zip(points, known, strict=True)])
    torch.testing.assert_close(W.similarity(points, target), known, atol=1e-10, rtol=0)
    torch.testing.assert_close(W.similarity(points[0], target[0]), known[0], atol=1e-10, rtol=0)


def test_the_fit_is_the_least_squares_one_and_never_mirrors() -> None:
    g = torch.Generator().manual_seed(1)
    points, target = torch.rand(9, 2, dtype=torch.float64, generator=g), torch.rand(9, 2, dtype=torch.float64, generator=g)
    for goal in (target, points * torch.tensor([-1.0, 1.0])):
        design = torch.zeros(18, 4, dtype=torch.float64)  # x' = a x - b y + u, y' = b x + a y + v
        design[0::2] = torch.stack([points[:, 0], -points[:, 1], torch.ones(9), torch.zeros(9)], 1)
        design[1::2] = torch.stack([points[:, 1], points[:, 0], torch.zeros(9), torch.ones(9)], 1)
        a, b, u, v = torch.linalg.lstsq(design, goal.reshape(-1)).solution.tolist()
        want = torch.tensor([[a, -b, u], [b, a, v]], dtype=torch.float64)
        torch.testing.assert_close(W.similarity(points, goal), want, atol=1e-10, rtol=0)


def test_the_warp_is_opencvs_where_nothing_shrinks() -> None:
    import cv2

    image = np.random.default_rng(0).random((40, 50, 3)).astype(np.float32)
    m = matrix(1.3, 12, -3.2, 4.7)
    want = cv2.warpAffine(image, m.numpy(), (33, 29), flags=cv2.INTER_LINEAR, borderValue=(-1, -1, -1))
    ours = W.warp(torch.from_numpy(image).permute(2, 0, 1)[None], m[None], (29, 33), outside=-1.0)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - want).max() < 0.05 and np.abs(ours - want).mean() < 0.01  # older OpenCV rounds coordinates to 1/32 pixel


def test_the_identity_copies_and_a_halving_averages_and_outside_is_filled() -> None:
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(W.warp(image, matrix(1, 0, 0, 0)[None], (16, 16)), image)
    quarter = W.warp(image, matrix(0.25, 0, -0.375, -0.375)[None], (4, 4))  # halved to pairs, then sampled half-way between them
    torch.testing.assert_close(quarter, torch.nn.functional.avg_pool2d(image, 4))
    away = W.warp(image, matrix(1, 0, 100, 0)[None], (4, 4), outside=-1.0)
    assert (away == -1).all()


def test_a_shrunk_ramp_stays_a_ramp() -> None:
    """Averaging must not shift: x on a linear ramp reads back as x."""
    for scale in (0.9, 0.45, 0.2, 0.11):
        ramp = torch.arange(200, dtype=torch.float64).expand(1, 3, 200, 200).contiguous()
        m = matrix(scale, 0, 0.3, 0.7)
        chip = W.warp(ramp, m[None], (16, 16))[0, 0]
        want = (torch.arange(16, dtype=torch.float64) - 0.3) / scale
        assert (chip[4:, 4:] - want[4:]).abs().max() < 1e-9


def test_an_item_is_the_same_alone_and_in_a_batch() -> None:
    images = torch.rand(3, 3, 64, 64)
    ms = torch.stack([matrix(s, 10, 1, 2) for s in (1.5, 0.4, 0.15)]).float()
    batch = W.warp(images, ms, (20, 20))
    for i in range(3):
        torch.testing.assert_close(batch[i : i + 1], W.warp(images[i : i + 1], ms[i : i + 1], (20, 20)), atol=0, rtol=0)


def test_gradients_agree_with_finite_differences() -> None:
    g = torch.Generator().manual_seed(2)
    landmarks = (torch.rand(2, 5, 2, dtype=torch.float64, generator=g) * 8).requires_grad_(True)
    template = torch.rand(5, 2, dtype=torch.float64, generator=g) * 6
    assert torch.autograd.gradcheck(lambda p: W.inverse(W.similarity(p, template)), landmarks)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 3, 3, dtype=torch.float64, generator=g), (10, 10), mode="bicubic")
    for scale in (0.77, 0.31):  # the second through the averaging
        m = matrix(scale, 7, 0.13, 0.29)[None].requires_grad_(True)
        assert torch.autograd.gradcheck(lambda x, a: W.warp(x, a, (3, 3)), (smooth.requires_grad_(True), m), eps=1e-7, atol=1e-4)


def test_autocast_does_not_round_coordinates() -> None:
    image, landmarks = torch.rand(1, 3, 200, 200), torch.rand(1, 68, 2, generator=torch.Generator().manual_seed(3)) * 150
    plain = W.warp(image, W.dlib_matrix(landmarks), (50, 50))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(W.warp(image, W.dlib_matrix(landmarks), (50, 50)), plain, atol=0, rtol=0)


def test_chips_are_dlibs(six_people: Path) -> None:
    """dlib cuts its samples off to whole numbers: ours lie above by less than one."""
    import dlib
    from PIL import Image

    from diffsfsr.encoders.dlib_net import dlib_chips
    from diffsfsr.weights import resolve

    image = np.array(Image.open(six_people).convert("RGB"))
    predictor = dlib.shape_predictor(str(resolve("dlib-landmarks-68")))
    boxes = dlib.get_frontal_face_detector()(image, 0)
    assert len(boxes) == 6
    shapes = [predictor(image, box) for box in boxes]
    landmarks = torch.tensor([[[p.x, p.y] for p in shape.parts()] for shape in shapes], dtype=torch.float32)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    ours = torch.cat([dlib_chips(pixels, item[None]) for item in landmarks]).permute(0, 2, 3, 1).numpy()
    for chip, shape in zip(ours, shapes, strict=True):
        excess = chip - dlib.get_face_chip(image, shape, 150, 0.25)
        assert excess.min() > -0.02 and excess.max() < 1.02


def landmarked(path: Path, box: tuple[int, int, int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A picture and the dlib landmarks (n, 68, 2) of its faces, or of the one in a box."""
    import dlib
    from PIL import Image

    from diffsfsr.weights import resolve

    image = np.array(Image.open(path).convert("RGB"))
    boxes = [dlib.rectangle(*box)] if box else dlib.get_frontal_face_detector()(image, 0)
    predictor = dlib.shape_predictor(str(resolve("dlib-landmarks-68")))
    return image, np.array([[[p.x, p.y] for p in predictor(image, b).parts()] for b in boxes], np.float32)


def chip(image: np.ndarray, points: np.ndarray, template: W.Template) -> np.ndarray:
    """(h, w, 3) float in 0..255."""
    pixels, landmarks = torch.from_numpy(image).permute(2, 0, 1)[None].float(), torch.from_numpy(points)[None]
    return W.warp(pixels, W.template_matrix(landmarks, template), template.size)[0].permute(1, 2, 0).numpy()


def test_five_points_match_the_templates_of_a_frontal_face(astronaut: Path) -> None:
    _, landmarks = landmarked(astronaut)
    five = W.five_points(torch.from_numpy(landmarks[:1]))
    assert five.shape == (1, 5, 2)
    assert float(five[0, 0, 0]) < float(five[0, 1, 0]) and float(five[0, 3, 0]) < float(five[0, 4, 0])
    for template in W.TEMPLATES.values():
        want = torch.tensor(template.points)
        error = (moved(five[0], W.template_matrix(torch.from_numpy(landmarks[:1]), template)[0]) - want).norm(dim=1)
        assert error.max() < 0.08 * max(template.size)
        assert want.min() > 0.2 * min(template.size) and (want.amax(0) < torch.tensor(template.size[::-1]) * 0.85).all()


def test_chips_are_insightfaces(six_people: Path, astronaut: Path, faces_dir: Path) -> None:
    """Against norm_crop on real faces, upright and turned; and the narrower template against OpenCV under scikit-image's fit."""
    import cv2
    from insightface.utils import face_align
    from skimage.transform import SimilarityTransform

    pictures = [landmarked(six_people), landmarked(astronaut)]
    pictures += [landmarked(path, (68, 68, 182, 182)) for path in sorted((faces_dir / "lfw").glob("*/*_0001.jpg"))[::600]]
    turned, points = landmarked(astronaut)
    pictures.append((np.rot90(turned, 3).copy(), np.stack([511 - points[..., 1], points[..., 0]], -1)))  # a quarter to the right
    narrow, count = W.TEMPLATES["A96"], 0
    np.testing.assert_allclose(narrow.points, face_align.arcface_dst - [8, 0], atol=1e-4)
    for image, landmarks in pictures:
        for item in landmarks:
            five = W.five_points(torch.from_numpy(item)[None])[0].numpy()
            want = face_align.norm_crop(image, five, 112).astype(np.float64)
            assert np.abs(chip(image, item, W.TEMPLATES["A112"]) - want).mean() <= 2.0
            fit = SimilarityTransform.from_estimate(five, np.array(narrow.points)).params[:2]
            assert np.abs(chip(image, item, narrow) - cv2.warpAffine(image, fit, (96, 112))).mean() <= 2.0
            count += 1
    assert count > 15


def test_a_stretched_template_is_met_by_a_stretched_similarity() -> None:
    """Points that are the unstretched template, moved: the warp takes them to the template itself and its axes stay upright."""
    template = W.TEMPLATES["facenet"]
    five = torch.tensor(template.points, dtype=torch.float64) / torch.tensor([template.stretch, 1.0], dtype=torch.float64)
    known = matrix(0.7, 25, 30, -4)
    landmarks = torch.zeros(1, 68, 2, dtype=torch.float64)
    for places, point in zip((slice(36, 42), slice(42, 48), 30, 48, 54), moved(five, known), strict=True):
        landmarks[0, places] = point
    found = W.template_matrix(landmarks, template)[0]
    torch.testing.assert_close(moved(moved(five, known), found), torch.tensor(template.points, dtype=torch.float64), atol=1e-5, rtol=0)
    singular = torch.linalg.svdvals(found[:, :2])
    assert (singular[0] / singular[1]).item() == pytest.approx(template.stretch, rel=1e-6)
    assert (found[0, :2] @ found[1, :2]).item() == pytest.approx(0, abs=1e-9)  # across and down are not sheared


def test_the_canonical_crop_gives_the_chips_of_its_picture(astronaut: Path) -> None:
    from diffsfsr.face.alignment import align_all
    from diffsfsr.face.images import read

    image = read(astronaut)
    face = align_all(image, 256)[0]
    for name, template in W.TEMPLATES.items():
        whole, crop = chip(image, face.landmarks, template), chip(face.crop, face.crop_landmarks, template)
        assert np.abs(whole - crop).mean() < 4, name  # the crop has been resampled once more


@pytest.mark.parametrize("size", [150, 96])
def test_the_template_lies_in_its_chip(size: int) -> None:
    template = W.dlib_template(size)
    assert template.shape == (33, 2) and template.min() > 0.15 * size and template.max() < 0.85 * size


def test_similarity_is_scikit_images() -> None:
    from skimage.transform import SimilarityTransform

    rng = np.random.default_rng(0)
    for _ in range(20):
        source = rng.normal(50, 20, (68, 2))
        target = 1.3 * source @ np.array([[0.8, 0.6], [-0.6, 0.8]]) + (5, -9) + rng.normal(0, 4, source.shape)
        want = SimilarityTransform.from_estimate(source, target).params[:2]
        np.testing.assert_allclose(W.similarity(torch.from_numpy(source), torch.from_numpy(target)), want, atol=1e-8)
