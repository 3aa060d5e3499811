"""Frechet inception distance (Heusel et al. 2017): how far a set of outputs is from a set of photographs, as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffsfsr import weights
from diffsfsr.errors import InputError


class Moments:
    """Mean and covariance of features that come in batches, in float64: as much memory for a thousand pictures as for two."""

    def __init__(self) -> None:
        self.count = 0
        self.total: np.ndarray = np.zeros(0)
        self.products: np.ndarray = np.zeros((0, 0))

    def add(self, features: np.ndarray) -> None:
        """features (B, D)."""
        x = np.asarray(features, np.float64)
        if not self.count:
            self.total, self.products = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
        self.count += len(x)
        self.total += x.sum(axis=0)
        self.products += x.T @ x

    @property
    def mean(self) -> np.ndarray:
        return self.total / self.count

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), unbiased."""
        return (self.products - self.count * np.outer(self.mean, self.mean)) / (self.count - 1)


def frechet(a: Moments, b: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); NaN where a set has fewer than two.

    tr (C1 C2)^(1/2) is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), a symmetric matrix, which has none that are
    negative but by rounding: covariances of fewer pictures than features are no trouble.
    """
    if min(a.count, b.count) < 2:
        return float("nan")
    root = _root(a.covariance)
    shared = np.linalg.eigvalsh(root @ b.covariance @ root)
    gap = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(shared.clip(0)).sum()
    return max(0.0, float(gap))


def _root(symmetric: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


class Inception:
    """The standard features: (B, S, S, 3) uint8 -> (B, 2048), by the network of 2015-12-05 as StyleGAN's authors translated it."""

    name = "inception-2015-12-05"

    def __init__(self, file: Path | None = None) -> None:
        """`file`: default is the zoo's `inception`; NotReady where it is not here, InputError where it is no such network."""
        import torch

        file = file or weights.verified("inception")
        try:
            self.net = torch.jit.load(str(file), map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{file} is not a TorchScript network: {str(error).splitlines()[0]}") from error
        self.version = weights.file_sha256(file)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
            return self.net(batch, return_features=True).double().numpy()
