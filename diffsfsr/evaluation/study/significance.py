"""Analysis of variance and what follows it: do methods differ in what people say of them, and which differs from ours?

Two forms, since the paper's Table 2 names none. One-way: every answer stands for itself. Repeated measures: each participant has
judged every method, so that what one gives generously and another sparingly is no noise; the unit is then the participant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Test:
    """An F test: its statistic, both degrees of freedom and p. NaN where nothing can be said.

    `epsilon` and `corrected` (p) are Greenhouse and Geisser's, for repeated measures that are not equally correlated; 1 and p where
    that does not apply.
    """

    f: float
    between: float
    within: float
    p: float
    epsilon: float = 1.0
    corrected: float = float("nan")


def one_way(groups: Sequence[np.ndarray]) -> Test:
    """One-way analysis of variance of k groups of numbers, by scipy. Needs two groups, and more numbers than groups."""
    from scipy.stats import f_oneway

    between, within = len(groups) - 1, sum(map(len, groups)) - len(groups)
    if between < 1 or within < 1 or any(len(group) == 0 for group in groups) or _constant(groups):
        return Test(float("nan"), between, within, float("nan"))
    f, p = f_oneway(*groups)
    return Test(float(f), between, within, float(p), corrected=float(p))


def _constant(groups: Sequence[np.ndarray]) -> bool:
    """Whether no group varies: F would divide by zero."""
    return all(np.ptp(group) == 0 for group in groups)


def repeated(table: np.ndarray) -> Test:
    """Repeated-measures analysis of variance of (n participants, k methods), one mean each. Needs two of both.

    What remains of the total sum of squares after participants and methods is the error that methods are measured by.
    """
    from scipy.stats import f as distribution

    n, k = table.shape
    if n < 2 or k < 2:
        return Test(float("nan"), k - 1, (n - 1) * (k - 1), float("nan"))
    grand, people, methods = table.mean(), table.mean(axis=1, keepdims=True), table.mean(axis=0)
    effect = n * ((methods - grand) ** 2).sum() / (k - 1)
    error = ((table - people - methods + grand) ** 2).sum() / ((n - 1) * (k - 1))
    if error <= 1e-12 * max(1.0, float((table**2).mean())):  # rounding: nobody differs from anybody in how methods compare
        return Test(float("nan"), k - 1, (n - 1) * (k - 1), float("nan"))
    f, within, epsilon = effect / error, (n - 1) * (k - 1), sphericity(table)
    p, corrected = (float(distribution.sf(f, (k - 1) * e, within * e)) for e in (1.0, epsilon))
    return Test(float(f), k - 1, within, p, epsilon, corrected)


def sphericity(table: np.ndarray) -> float:
    """Greenhouse and Geisser's epsilon (1959) of (n, k): 1 where differences of methods vary alike, at least 1 / (k - 1)."""
    covariance = np.cov(table, rowvar=False)
    centred = covariance - covariance.mean(axis=0) - covariance.mean(axis=1, keepdims=True) + covariance.mean()
    return float(np.trace(centred) ** 2 / ((table.shape[1] - 1) * (centred**2).sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are (Holm 1979): one of all is below 0.05 by chance as seldom as one alone. NaN stays NaN."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]  # NaN sorts last
    corrected = np.full(len(p), np.nan)
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return corrected.tolist()
