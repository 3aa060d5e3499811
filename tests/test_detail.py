"""A face that was painted smaller than it is pasted: sharpness and grain against scenes of known ones, measured by Gaussian filters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from diffsfsr.face import alignment, detail
from diffsfsr.face.warping import paste_back

_SIDE = 384
_EVERYWHERE = np.ones((_SIDE, _SIDE), np.float32)


def _noise(deviation: float, softness: float = 0.0, seed: int = 5) -> np.ndarray:
    """(side, side) normal noise of that deviation, softened by a Gaussian of so many pixels."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((_SIDE, _SIDE)), softness)
    return deviation * noise / noise.std()


def _grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(image, np.float32)[..., None], 3, axis=2)


def _skin() -> np.ndarray:
    """A smooth face: 80 to 180, no detail."""
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    return 130 + 40 * np.sin(2 * x) * np.cos(3 * y)


def _discs() -> np.ndarray:
    """A face of hard edges: dark discs on a light ground."""
    y, x = np.mgrid[:_SIDE, :_SIDE]
    centres = np.random.default_rng(2).uniform(20, _SIDE - 20, (40, 2))
    dark = np.any([np.hypot(x - cx, y - cy) < 9 for cx, cy in centres], axis=0)
    return np.where(dark, 70.0, 170.0)


def _band(image: np.ndarray, fine: float, coarse: float) -> float:
    """Deviation of what lies between two Gaussians, away from the border."""
    between = ndimage.gaussian_filter(image, fine) - ndimage.gaussian_filter(image, coarse)
    return float(between[20:-20, 20:-20].std())


def test_grain_and_edges_are_told_apart() -> None:
    values = np.random.default_rng(0).standard_normal(40_000) * 3
    edges, grain = detail.edges_and_grain(values)
    assert grain == pytest.approx(3, rel=0.03) and edges < 0.6
    values[::20] = 60  # one in twenty lies on an edge
    edges, grain = detail.edges_and_grain(values)
    assert grain == pytest.approx(3, rel=0.08) and edges == pytest.approx(60 / 20**0.5, rel=0.02)


@pytest.mark.parametrize("deviation", [2.0, 6.0, 15.0])
@pytest.mark.parametrize("softness", [0.0, 0.7, 1.2])
def test_grain_has_the_scenes_level_and_correlation(deviation: float, softness: float) -> None:
    own = _noise(deviation, softness)
    made = detail.matched(_grey(_skin()), _grey(_skin() + own), _EVERYWHERE, 8.0, 0)[..., 0] - _skin()
    for fine, coarse in ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0)):
        assert _band(made, fine, coarse) == pytest.approx(_band(own, fine, coarse), rel=0.15)
    beside = [np.corrcoef(each[:, 1:].ravel(), each[:, :-1].ravel())[0, 1] for each in (made, own)]
    assert beside[0] == pytest.approx(beside[1], abs=0.08)
    assert abs(np.corrcoef(made.ravel(), own.ravel())[0, 1]) < 0.02  # its like, not its copy


def test_a_smooth_scene_adds_nothing() -> None:
    painted = _grey(_skin())
    np.testing.assert_allclose(detail.matched(painted, painted, _EVERYWHERE, 4.0, 0), painted, atol=0.05)
    np.testing.assert_array_equal(detail.matched(painted, _grey(_skin() + _noise(9)), 0 * _EVERYWHERE, 4.0, 0), painted)  # nothing compared


def test_grain_that_is_there_is_not_doubled() -> None:
    painted = _skin() + _noise(6, 1.2, seed=8)
    made = detail.matched(_grey(painted), _grey(_skin() + _noise(6, 1.2)), _EVERYWHERE, 2.0, 0)[..., 0]
    for fine, coarse in ((0.0, 1.0), (1.0, 2.0)):
        assert _band(made, fine, coarse) == pytest.approx(_band(painted, fine, coarse), rel=0.15)


def test_grain_is_not_lifted_where_the_scene_has_a_few_more_edges() -> None:
    painted = _skin() + _noise(6, 1.2, seed=8)
    scene = _skin() + _noise(6, 1.2) + 0.3 * (_discs() - 170)
    made = detail.matched(_grey(painted), _grey(scene), _EVERYWHERE, 2.0, 0)[..., 0]
    assert _band(made, 0.0, 2.0) == pytest.approx(_band(painted, 0.0, 2.0), rel=0.2)


@pytest.mark.parametrize("scale", [2.0, 3.5, 8.0])
def test_edges_come_nearer_to_the_scenes_and_not_beyond(scale: float) -> None:
    scene = _discs()
    blurred = ndimage.gaussian_filter(scene, 0.45 * scale)
    made = detail.matched(_grey(blurred), _grey(scene), _EVERYWHERE, scale, 0)[..., 0]
    before, after, goal = (_band(each, 0.0, scale / 2) for each in (blurred, made, scene))
    assert before < 0.8 * after and after < 1.1 * goal
    assert np.square(made - scene).mean() < np.square(blurred - scene).mean()
    assert made.min() > 70 - 10 and made.max() < 170 + 10  # rims: a tenth of the edge


def test_a_face_sharper_than_the_scene_stays_so() -> None:
    sharp, soft = _grey(_discs()), _grey(ndimage.gaussian_filter(_discs(), 2.0))
    np.testing.assert_allclose(detail.matched(sharp, soft, _EVERYWHERE, 3.5, 0), sharp, atol=0.05)


def test_a_noisy_scene_lends_no_edges() -> None:
    blurred = ndimage.gaussian_filter(_discs(), 1.5)
    made = detail.matched(_grey(blurred), _grey(_skin() + _noise(12)), _EVERYWHERE, 2.0, 0)[..., 0]
    profile = np.abs(np.gradient(ndimage.gaussian_filter(made, 2.0))).max()
    assert profile == pytest.approx(np.abs(np.gradient(ndimage.gaussian_filter(blurred, 2.0))).max(), rel=0.12)


# --- in the scene ---------------------------------------------------------------------------------------------------


def _pasted(scale: float, seed: int | None, colour: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A 64-pixel crop pasted at `scale` into a noisy scene: the result, the scene, the mask's feather."""
    rng = np.random.default_rng(7)
    scene = np.clip(_grey(_skin()) + rng.normal(0, 8, (_SIDE, _SIDE, 1)), 0, 255)
    crop = np.clip(_grey(ndimage.gaussian_filter(rng.uniform(0, 255, (64, 64)), 2) * 3 - 255), 0, 255)
    if colour:
        scene, crop = scene * [1, 0.8, 0.7], crop * [0.9, 1, 0.6]
    turn = np.exp(0.2j) / scale
    matrix = np.array([[turn.real, turn.imag, -20 / scale], [-turn.imag, turn.real, -10 / scale]])
    mask = np.zeros((64, 64), np.uint8)
    mask[10:54, 14:50] = 1
    picture = scene.astype(np.uint8)
    soft = alignment.feathered_mask(picture.shape, matrix, mask, 0.05)
    return paste_back(picture, crop.astype(np.uint8), matrix, mask, 0.05, seed), picture, soft


@pytest.mark.parametrize("scale", [0.4, 1.3, 4.7, 9.0])
def test_outside_the_feather_the_scene_is_kept(scale: float) -> None:
    pasted, scene, soft = _pasted(scale, 3)
    np.testing.assert_array_equal(pasted[soft == 0], scene[soft == 0])
    assert (pasted[soft > 0.5] != scene[soft > 0.5]).any(axis=1).mean() > 0.9


def test_a_seed_draws_the_grain() -> None:
    first, _, soft = _pasted(4.7, 3)
    np.testing.assert_array_equal(first, _pasted(4.7, 3)[0])
    other, plain = _pasted(4.7, 4)[0].astype(float), _pasted(4.7, None)[0].astype(float)
    inside = soft == 1
    assert 4 < (other - first)[inside].std() < 16 and 4 < (plain - first)[inside].std() < 16


@pytest.mark.parametrize("scale", [0.3, 0.999, 1.0])
def test_a_face_that_is_not_enlarged_is_left_as_it_was(scale: float) -> None:
    np.testing.assert_array_equal(_pasted(scale, 3)[0], _pasted(scale, None)[0])


def test_grey_stays_grey() -> None:
    pasted = _pasted(4.7, 3, colour=False)[0]
    assert (pasted == pasted[..., :1]).all()


def test_colour_is_left_to_the_painter() -> None:
    painted = np.full((_SIDE, _SIDE, 3), (150.0, 110.0, 90.0), np.float32)
    made = detail.matched(painted, _grey(_skin() + _noise(9)), _EVERYWHERE, 4.0, 0)
    np.testing.assert_allclose(np.diff(made - painted, axis=2), 0, atol=1e-4)  # grey grain on it


def test_a_portrait_is_finished_with_its_own_seed() -> None:
    from diffsfsr.face.pose import Pose
    from diffsfsr.face.warping import FEATHER
    from diffsfsr.portrait.compose import Sitting

    scene = np.clip(_grey(_skin() + _noise(8)), 0, 255).astype(np.uint8)
    crop, mask, matrix = np.full((64, 64, 3), 120, np.uint8), np.ones((64, 64), np.uint8), np.array([[0.25, 0, -8], [0, 0.25, -8]])
    face = alignment.AlignedFace((0, 0, 9, 9), np.zeros((68, 2), np.float32), matrix, 64, crop, Pose(0, 0, 0), 0, 1, 0.0)
    sitting = Sitting(scene, face, mask, {}, None, None, None, 6, 1, "ddim", {}, {})  # type: ignore[arg-type]
    image = sitting.finished(crop, {}).image
    np.testing.assert_array_equal(image, paste_back(scene, crop, matrix, mask, FEATHER, 6))
    assert (image != dataclasses.replace(sitting, seed=7).finished(crop, {}).image).any()
