"""Analyses of variance against published worked examples, sums done by hand, and scipy's own tests of two."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from diffsfsr.evaluation.study.significance import holm, one_way, repeated, sphericity

# Six people before, three and six months into a training (Laerd Statistics' guide to repeated-measures ANOVA).
FITNESS = np.array([[45, 50, 55], [42, 42, 45], [36, 41, 43], [39, 35, 40], [51, 55, 59], [44, 49, 56]], float)

# Shell sizes of mussels at five places (McDonald, Seeb and Koehn 1991), the example of scipy's f_oneway.
MUSSELS = [
    [0.0571, 0.0813, 0.0831, 0.0976, 0.0817, 0.0859, 0.0735, 0.0659, 0.0923, 0.0836],
    [0.0873, 0.0662, 0.0672, 0.0819, 0.0749, 0.0649, 0.0835, 0.0725],
    [0.0974, 0.1352, 0.0817, 0.1016, 0.0968, 0.1064, 0.105],
    [0.1033, 0.0915, 0.0781, 0.0685, 0.0677, 0.0697, 0.0764, 0.0689],
    [0.0703, 0.1026, 0.0956, 0.0973, 0.1039, 0.1045],
]


def test_one_way_gives_the_published_figures() -> None:
    found = one_way([np.array(place) for place in MUSSELS])
    assert (found.between, found.within) == (4, 34)
    assert found.f == pytest.approx(7.121019471642447) and found.p == pytest.approx(0.0002812242314534544)


def test_one_way_by_hand() -> None:
    """Groups 1 2 3 and 2 4 6: means 2 and 4, grand 3; between 2 * 3 * 1 / 1 = 6, within (2 + 8) / 4 = 2.5."""
    assert one_way([np.array([1.0, 2, 3]), np.array([2.0, 4, 6])]).f == pytest.approx(6 / 2.5)


def test_repeated_measures_give_the_published_figures() -> None:
    """Published: sums of squares 143.44 (time), 658.28 (people), 57.22 (error); F(2, 10) = 12.53, p = .002; epsilon .638."""
    found = repeated(FITNESS)
    assert (found.between, found.within) == (2, 10)
    assert found.f == pytest.approx((143.444 / 2) / (57.222 / 10), rel=1e-4) and round(found.f, 2) == 12.53
    assert round(found.p, 3) == 0.002 and round(found.epsilon, 3) == 0.638
    assert found.corrected == pytest.approx(stats.f.sf(found.f, 2 * found.epsilon, 10 * found.epsilon)) and found.corrected > found.p


def test_repeated_measures_by_hand() -> None:
    """Rows 1 2 6, 2 4 6, 3 6 9: methods' means 2 4 7, people's 3 4 6, grand 13/3. Of 54 in all, methods 38, people 14: 2 are left."""
    table = np.array([[1, 2, 6], [2, 4, 6], [3, 6, 9]], float)
    assert repeated(table).f == pytest.approx((38 / 2) / (2 / 4))


def test_two_methods_are_students_t() -> None:
    a, b = FITNESS[:, 0], FITNESS[:, 2]
    paired, apart = stats.ttest_rel(a, b), stats.ttest_ind(a, b)
    assert repeated(FITNESS[:, [0, 2]]).f == pytest.approx(paired.statistic**2)
    assert repeated(FITNESS[:, [0, 2]]).p == pytest.approx(paired.pvalue)
    assert repeated(FITNESS[:, [0, 2]]).epsilon == pytest.approx(1.0)
    assert one_way([a, b]).p == pytest.approx(apart.pvalue)


def test_how_generous_people_are_changes_nothing_when_measures_are_repeated() -> None:
    moved = FITNESS + np.array([[0], [30], [-20], [5], [90], [1]])
    assert repeated(moved).f == pytest.approx(repeated(FITNESS).f)
    assert one_way(list(moved.T)).p > one_way(list(FITNESS.T)).p


def test_epsilon_is_one_for_independent_measures_and_least_for_one_that_varies_alone() -> None:
    rng = np.random.default_rng(0)
    assert sphericity(rng.normal(size=(20_000, 4))) == pytest.approx(1.0, abs=0.01)
    alone = np.concatenate([rng.normal(size=(500, 1)), np.zeros((500, 3))], axis=1)
    assert sphericity(alone) == pytest.approx(1 / 3)


def test_where_nothing_can_be_said_nothing_is() -> None:
    same = np.tile([1.0, 2.0, 3.0], (4, 1))
    assert np.isnan(repeated(same).p) and np.isnan(repeated(same[:1]).p) and np.isnan(repeated(same[:, :1]).p)
    assert (
        np.isnan(one_way([np.ones(3), np.zeros(3)]).p)
        and np.isnan(one_way([np.ones(3)]).p)
        and np.isnan(one_way([np.ones(3), np.ones(0)]).p)
    )


def test_holm_by_hand() -> None:
    """Holm's example in order .005 .01 .03 .04: times 4 3 2 1, never below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([]) == []
    found = holm([float("nan"), 0.02, 0.03])
    assert np.isnan(found[0]) and found[1:] == pytest.approx([0.04, 0.04])


def test_one_in_twenty_under_the_null_and_most_where_there_is_a_difference() -> None:
    rng, n = np.random.default_rng(1), 1000
    level = rng.normal(0, 1, (n, 20, 1))
    null = level + rng.normal(0, 1, (n, 20, 3))
    planted = null + np.array([0.0, 0.0, 1.0])
    share = np.mean([repeated(table).p < 0.05 for table in null])
    assert abs(share - 0.05) < 3 * np.sqrt(0.05 * 0.95 / n)
    assert np.mean([repeated(table).p < 0.05 for table in planted[:300]]) > 0.8
