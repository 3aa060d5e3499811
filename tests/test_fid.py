"""The Frechet distance against closed forms and against its definition by a matrix root; the features through TorchScript."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from diffsfsr import weights
from diffsfsr.errors import InputError, NotReady
from diffsfsr.evaluation.fid import Inception, Moments, frechet


def _moments(x, batch=7):
    moments = Moments()
    for start in range(0, len(x), batch):
        moments.add(x[start : start + batch])
    return moments


def _normal(n, mean, scale, seed):
    return np.random.default_rng(seed).normal(size=(n, len(mean))) * scale + mean


def test_moments_in_batches_are_those_of_all_at_once():
    x = _normal(101, [1, -2, 3.0], [1, 2, 0.1], 0)
    moments = _moments(x)
    np.testing.assert_allclose(moments.mean, x.mean(axis=0))
    np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False))
    assert moments.count == 101


def test_frechet_by_its_definition():
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6) for _ in range(2))
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet(_moments(a), _moments(b)) == pytest.approx(wanted, rel=1e-6)
    assert frechet(_moments(b), _moments(a)) == pytest.approx(wanted, rel=1e-6)


def test_frechet_of_normals_in_closed_form():
    """Of two with diagonal covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    a, b = _normal(100_000, [0, 0, 0.0], [1, 2, 3], 2), _normal(100_000, [1, 0, 2.0], [1, 1, 5], 3)
    assert frechet(_moments(a, 10_000), _moments(b, 10_000)) == pytest.approx(5 + 1 + 4, rel=0.02)


def test_a_set_is_at_no_distance_from_itself_and_a_shift_counts_its_square():
    x = _normal(20, np.zeros(40), np.ones(40), 4)  # fewer pictures than features
    assert frechet(_moments(x), _moments(x)) == pytest.approx(0, abs=1e-6)
    assert frechet(_moments(x), _moments(x + 0.5)) == pytest.approx(40 * 0.25, rel=1e-6)
    assert np.isnan(frechet(_moments(x[:1]), _moments(x)))


class _Colours(torch.nn.Module):
    """The interface of the published file: uint8 NCHW, features on request."""

    def forward(self, pictures: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        means = pictures.float().mean(dim=[2, 3])
        return means if return_features else means.softmax(1)


def test_features_through_torchscript(tmp_path):
    file = tmp_path / "colours.pt"
    torch.jit.script(_Colours()).save(str(file))
    pictures = np.random.default_rng(5).integers(0, 256, (3, 9, 7, 3)).astype(np.uint8)
    inception = Inception(file)
    np.testing.assert_allclose(inception(pictures), pictures.mean(axis=(1, 2)), rtol=1e-5)
    assert inception.version == weights.file_sha256(file)
    file.write_bytes(b"PK not a network")
    with pytest.raises(InputError, match="colours.pt is not a TorchScript network"):
        Inception(file)


def test_missing_features_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFSFSR_WEIGHTS", str(tmp_path))
    with pytest.raises(NotReady, match=r"inception-2015-12-05.pt \(features of FID\).*weights pull inception"):
        Inception()
