"""Whether two samples of embeddings come from one distribution: the energy distance with a permutation test.

Szekely and Rizzo, "Energy statistics: a class of statistics based on distances", 2013. Unlike a comparison of means and covariances
it sees any difference of two distributions, needs fewer samples than dimensions, and has no setting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST = 30  # of a sample: below that a shift has to be gross to be seen
ALPHA = 0.01  # p-value up to which two samples are taken to differ
SHARE = 0.02  # of the distance between the samples that their difference must make up: one that matters, not only one that is there


@dataclass(frozen=True)
class Drift:
    """The energy distance of two samples as a share of the distance between them, less what chance gives: about 0 for one distribution."""

    share: float
    p: float  # of as large a distance where both are of one distribution
    counts: tuple[int, int]

    @property
    def warns(self) -> bool:
        return self.p <= ALPHA and self.share >= SHARE


def compare(a: np.ndarray, b: np.ndarray, permutations: int = 999, seed: int = 0) -> Drift:
    """Of samples (n, D) and (m, D): D^2 = 2 E|A - B| - E|A - A'| - E|B - B'|, as a share of 2 E|A - B|.

    The mean share over random divisions of both samples together into n and m is subtracted: what is left does not shrink as samples
    grow. Rows that are not finite are left out: one would silence all others. Raises ValueError where widths differ, or one is empty.
    """
    a, b = (x[np.isfinite(x).all(axis=1)] if x.ndim == 2 else x for x in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(f"two samples of embeddings have one width, not {a.shape} and {b.shape}")
    distances, n = _distances(np.concatenate([a, b]).astype(np.float64)), len(a)
    rng = np.random.default_rng(seed)
    member = np.zeros((len(distances), 1 + permutations))
    member[:n, 0] = 1
    for column in range(1, 1 + permutations):
        member[rng.permutation(len(distances))[:n], column] = 1
    shares = _shares(distances, member)
    return Drift(
        float(shares[0] - shares[1:].mean()), float((1 + (shares[1:] >= shares[0] - 1e-12).sum()) / (1 + permutations)), (n, len(b))
    )


def _shares(distances: np.ndarray, member: np.ndarray) -> np.ndarray:
    """(P,) shares for P divisions of N points, member (N, P) of 0 and 1."""
    n, total = member.sum(axis=0), len(member)
    m = total - n
    to_members = distances @ member
    within = (member * to_members).sum(axis=0)
    across = to_members.sum(axis=0) - within
    others = distances.sum() - within - 2 * across
    between = 2 * across / (n * m)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num((between - within / n**2 - others / m**2) / between)


def _distances(points: np.ndarray) -> np.ndarray:
    """(N, N) Euclidean."""
    squares = (points**2).sum(axis=1)
    gaps = squares[:, None] + squares[None, :] - 2 * points @ points.T
    np.fill_diagonal(gaps, 0)
    return np.sqrt(np.maximum(gaps, 0))
