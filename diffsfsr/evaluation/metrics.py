"""The paper's four metrics (sec. 4) and what stands beside them, one value per item, and the intervals around their means.

A value that could not be computed, because no face was found in an output or an embedding is not finite, is NaN: never zero,
and never dropped without being counted. Means of distances and cosines are over the items found; retrieval counts an item
that failed as wrong; `failure_rate` says how many there were. Arrays may be numpy arrays or torch tensors; results are
float64 numpy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TIE = 1e-9  # cosines nearer than this are equal: above rounding in float64, far below any real difference


# --- per item -----------------------------------------------------------------------------------------------------------


def cosine(pred: Any, ref: Any) -> np.ndarray:
    """(B, D), (B, D) -> (B,) in [-1, 1]; NaN where either vector is not finite or is zero."""
    return (_unit(pred) * _unit(ref)).sum(axis=1)


def retrieval_ranks(pred: Any, gallery: Any, own: Sequence[int], people: Sequence[str] | None = None) -> np.ndarray:
    """ID (sec. 4): the place of each output's own source among the source images of the set, by cosine. 1 is nearest.

    Args:
        pred: (B, D) embeddings of the outputs.
        gallery: (M, D) embeddings of the set's source images, each image once.
        own: B indices into the gallery.
        people: M names. Other photographs of the own person are left out of that item's ranking: being near to one is no
            error, and no proof either. None: every image is a person of its own.

    A tie counts against the output, so that a judge that finds all faces alike scores nothing. NaN where the output or its
    source has no embedding; a gallery image without one is no rival.
    Returns (B,) float64.
    """
    similar = _unit(pred) @ _unit(gallery).T
    own_index = np.asarray(own, dtype=np.int64)
    names = np.arange(similar.shape[1]) if people is None else np.asarray(people)
    own_similar = similar[np.arange(len(own_index)), own_index]
    rival = names[None, :] != names[own_index][:, None]
    nearer = (similar >= own_similar[:, None] - TIE) & rival
    return np.where(np.isnan(own_similar), np.nan, 1.0 + nearer.sum(axis=1))


def hit(ranks: Any, k: int) -> np.ndarray:
    """(B,) ranks -> (B,) 1.0 where the own source is among the k nearest, else 0.0; a failed item (NaN) is wrong."""
    return (_array(ranks) <= k).astype(np.float64)


def expression_distance(pred: Any, ref: Any) -> np.ndarray:
    """Exp (sec. 4): Euclidean distance of (B, 16) expression embeddings -> (B,); between unit vectors in [0, 2]."""
    return np.sqrt(((_array(pred) - _array(ref)) ** 2).sum(axis=1))


def pose_distance(pred: Any, ref: Any) -> np.ndarray:
    """Pose (sec. 4): Euclidean distance of (B, 3) (yaw, pitch, roll) in degrees -> (B,) degrees; 179 and -179 are 2 apart."""
    turn = (_array(pred) - _array(ref) + 180.0) % 360.0 - 180.0
    return np.sqrt((turn**2).sum(axis=1))


def mse(pred: np.ndarray, ref: np.ndarray) -> float:
    """MSE (sec. 4): the mean square difference of two (S, S, 3) uint8 pictures."""
    return float(((pred.astype(np.float64) - ref) ** 2).mean())


def psnr(pred: np.ndarray, ref: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two (S, S, 3) uint8 pictures in dB, by scikit-image.

    Of equal pictures it is infinite: they get the largest finite value, that of a difference of 1 in a single byte.
    """
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(pred, ref):
        return float(10 * np.log10(255.0**2 * ref.size))
    return float(peak_signal_noise_ratio(ref, pred, data_range=255))


def ssim(pred: np.ndarray, ref: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of two (S, S, 3) uint8 pictures by scikit-image, mean over channels: 1 for equal ones."""
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(ref, pred, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    )


def background_difference(pred: np.ndarray, scene: np.ndarray, mask: np.ndarray) -> float:
    """The largest difference of any byte of (S, S, 3) uint8 pictures where mask (S, S) is 0: after an exact paste-back 0."""
    gap = np.abs(pred.astype(np.int16) - scene)[mask == 0]
    return float(gap.max(initial=0))


_RING = 0.08  # of the crop's side: how wide the rings on both sides of a seam are; wider than a paste's blend


def seam(pred: np.ndarray, scene: np.ndarray, mask: np.ndarray) -> float:
    """How much more the colour jumps at the mask's edge than it does in the scene: 0 where nothing is to be seen; below 0 it jumps less.

    A jump is the mean absolute difference between the mean Lab colours (CIE 1976) of a ring inside mask (S, S) and one outside.
    NaN where the mask has no inside or no outside.
    """
    rings = _rings(mask)
    if not all(ring.any() for ring in rings):
        return float("nan")
    return _jump(pred, *rings) - _jump(scene, *rings)


def _rings(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S, S) bool each: the pixels inside and outside that are near to the other side."""
    import cv2

    inside, width = mask > 0, max(1.0, _RING * len(mask))
    near = [cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= width for side in (inside, ~inside)]
    return inside & near[0], ~inside & near[1]


def _jump(picture: np.ndarray, inner: np.ndarray, outer: np.ndarray) -> float:
    from skimage.color import rgb2lab

    return float(np.abs(rgb2lab(picture[inner]).mean(axis=0) - rgb2lab(picture[outer]).mean(axis=0)).mean())


def _unit(vectors: Any) -> np.ndarray:
    v = _array(vectors)
    length = np.linalg.norm(v, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isfinite(length) & (length > 0), v / length, np.nan)


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    return np.asarray(values, dtype=np.float64)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of (n,) values; NaN where either does not vary."""
    x, y = a - a.mean(), b - b.mean()
    power = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / power if power > TIE else float("nan")


def ratio_of_means(a: np.ndarray, b: np.ndarray, floor: float = 0.01) -> float:
    """The mean of (n,) values over that of others, which is taken for `floor` where it is lower: a ratio to nothing says nothing."""
    return float(a.mean() / max(b.mean(), floor))


def auc(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the ROC curve: how often a positive item scores above another, a tie counting half (Mann and Whitney).

    Args:
        scores: (n,); one that is not finite is on the wrong side of every other.
        positive: (n,) bool.
        weight: (n,) whole numbers: each item counts so many times. Default once.
    NaN where all that count are of one kind.
    """
    from scipy.stats import rankdata

    worst = np.where(positive, -np.inf, np.inf)
    times = np.ones(len(scores), np.int64) if weight is None else weight
    ranks, y = rankdata(np.repeat(np.where(np.isfinite(scores), scores, worst), times)), np.repeat(positive, times)
    ones, others = int(y.sum()), int((~y).sum())
    return float((ranks[y].sum() - ones * (ones + 1) / 2) / (ones * others)) if ones and others else float("nan")


# --- over items ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % bootstrap percentile interval; `count` values took part. All NaN where none did."""

    mean: float
    low: float
    high: float
    count: int

    def scaled(self, factor: float) -> Interval:
        return Interval(self.mean * factor, self.low * factor, self.high * factor, self.count)


def failure_rate(values: Any, n: int = 1000, seed: int = 0) -> Interval:
    """The share of (B,) values that are missing (NaN)."""
    return bootstrap_interval(np.isnan(_array(values)), n, seed)


def bootstrap_interval(values: Any, n: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean of the values that are not NaN, with its percentile interval over n resamplings of the items."""
    x = _array(values)
    x = x[~np.isnan(x)]
    if len(x) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(seed)
    block = max(1, 4_000_000 // len(x))  # bounds the memory of one draw to some tens of megabytes
    means = np.concatenate([x[rng.integers(len(x), size=(min(block, n - i), len(x)))].mean(axis=1) for i in range(0, n, block)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high), len(x))


def bootstrap_statistic(statistic: Callable[..., float], *columns: Any, n: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """A number of several (B,) columns that is no mean of items, with its percentile interval over n resamplings of the items.

    Only items that have every value take part; `mean` is the statistic of them all. All NaN for fewer than three.
    """
    values = np.stack([_array(column) for column in columns])
    values = values[:, np.isfinite(values).all(axis=0)]
    count = values.shape[1]
    if count < 3 or not np.isfinite(whole := statistic(*values)):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(*values[:, rng.integers(count, size=count)]) for _ in range(n)])
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(whole, float(low), float(high), count)


def balanced_share(parts: Sequence[np.ndarray], n: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean over groups of the mean of each (B,), its items resampled within their group. NaN where a group is empty."""
    draws = _balanced(parts, n, np.random.default_rng(seed))
    return _percentiles(float(np.mean([part.mean() for part in parts])) if len(draws) else float("nan"), draws, sum(map(len, parts)), level)


def balanced_ratio(above: Sequence[np.ndarray], below: Sequence[np.ndarray], n: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """`balanced_share` of some groups over that of others, both resampled apart. NaN where the latter is 0 or a group is empty.

    A resampling of the others that hits nothing counts as half a hit, so that the interval is wide and not endless.
    """
    rng = np.random.default_rng(seed)
    ups, downs = _balanced(above, n, rng), _balanced(below, n, rng)
    base = float(np.mean([part.mean() for part in below])) if len(downs) else 0.0
    if not len(ups) or base == 0:
        return _percentiles(float("nan"), np.zeros(0), 0, level)
    ratios = ups / np.maximum(downs, 0.5 / sum(map(len, below)))
    return _percentiles(float(np.mean([part.mean() for part in above])) / base, ratios, sum(map(len, above)), level)


def _balanced(parts: Sequence[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) resampled means over groups of means; empty where a group is."""
    if not parts or not all(map(len, parts)):
        return np.zeros(0)
    return np.mean([part[rng.integers(len(part), size=(n, len(part)))].mean(axis=1) for part in parts], axis=0)


def _percentiles(value: float, draws: np.ndarray, count: int, level: float) -> Interval:
    if not len(draws):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), count)


def paired_difference(a: Any, b: Any, n: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """The mean of a - b over the items that both have, with its interval; a and b are (B,) of the same items in the same order.

    Raises ValueError where their lengths differ.
    """
    a, b = _array(a), _array(b)
    if a.shape != b.shape:
        raise ValueError(f"paired values are of the same items: {a.shape} and {b.shape} differ")
    return bootstrap_interval(a - b, n, seed, level)
