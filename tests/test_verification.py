"""Pairs in folds that share nobody, and how well scores of a known distribution are told apart on them."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import norm

from diffsfsr.errors import InputError, NotReady
from diffsfsr.evaluation import metrics
from diffsfsr.evaluation import verification as v
from diffsfsr.face.aliases import LFW_ALIASES

# 200 people: every second one has one face, the others two, three or four.
PEOPLE = [f"p{i:03d}" for i in range(200) for _ in range((1, 2, 1, 3, 1, 4)[i % 6])]
IDS = [f"set/{i:04d}/0" for i in range(len(PEOPLE))]
SINGLE = [f"p{i:03d}" for i in range(0, 200, 2)]


def made(**options) -> v.Pairs:
    return v.make_pairs(IDS, PEOPLE, **({"count": 200, "folds": 10} | options))


# --- pairs --------------------------------------------------------------------------------------------------------------


def test_pairs_are_what_they_say_and_drawn_once() -> None:
    pairs = made()
    assert len(pairs) == 400 and pairs.same.sum() == 200
    for fold in pairs.folds:
        assert Counter(pairs.same[pairs.fold == fold].tolist()) == {True: 20, False: 20}
    for a, b, same in zip(pairs.first, pairs.second, pairs.same, strict=True):
        assert a != b and (PEOPLE[a] == PEOPLE[b]) == same
    assert len({frozenset(p) for p in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)}) == 400


def test_folds_share_nobody_and_have_like_numbers() -> None:
    pairs = made()
    sets = [{PEOPLE[i] for i in (*pairs.first[pairs.fold == f], *pairs.second[pairs.fold == f])} for f in pairs.folds]
    assert len(sets) == 10 and all(not a & b for a, b in itertools.combinations(sets, 2))
    repeated = [{PEOPLE[i] for i in pairs.first[(pairs.fold == f) & pairs.same]} for f in pairs.folds]
    assert {len(s) for s in repeated} <= set(range(7, 11))  # of ten in each fold, evenly drawn


def test_pairs_are_fixed_by_the_seed_and_not_by_the_order_of_the_table() -> None:
    order = np.random.default_rng(1).permutation(len(IDS)).tolist()
    shuffled = v.make_pairs([IDS[i] for i in order], [PEOPLE[i] for i in order], 200, 10)

    def named(pairs: v.Pairs, ids: list[str]) -> list[tuple]:
        return [(ids[a], ids[b], bool(s), int(f)) for a, b, s, f in zip(pairs.first, pairs.second, pairs.same, pairs.fold, strict=True)]

    plain = named(made(), IDS)
    assert plain == named(made(), IDS) == named(shuffled, [IDS[i] for i in order]) != named(made(seed=1), IDS)


def test_names_that_may_be_one_person_are_never_paired() -> None:
    chained = [("p001", "p003"), ("p003", "p005"), ("nobody", "p001")]
    three = [p for p in PEOPLE if p in ("p001", "p003", "p005")]
    ids = [f"{i}" for i in range(len(three) + 6)]
    people = [*three, "x", "x", "y", "y", "z", "z"]
    for seed in range(5):
        pairs = v.make_pairs(ids, people, 2, 2, seed, chained)
        linked = [{people[a], people[b]} <= {"p001", "p003", "p005"} for a, b in zip(pairs.first, pairs.second, strict=True)]
        assert not any(link and not same for link, same in zip(linked, pairs.same, strict=True))
        places = {people[i]: f for i, f in zip(pairs.first, pairs.fold, strict=True)}
        assert len({f for name, f in places.items() if name.startswith("p")}) <= 1  # all in one fold
    left = {IDS[i] for i in range(0, len(IDS), 7)}
    pairs = made(count=100, leave_out=left)
    assert not left & {IDS[i] for i in (*pairs.first, *pairs.second)}


def test_every_person_is_as_likely() -> None:
    """Among the same pairs of many seeds, people of two, three and four faces come equally often, as in LFW."""
    counts: Counter[int] = Counter()
    for seed in range(40):
        pairs = made(count=50, seed=seed)
        counts.update(PEOPLE.count(PEOPLE[i]) for i in pairs.first[pairs.same])
    shares = [counts[n] / sum(counts.values()) for n in (2, 3, 4)]
    assert all(abs(share - 1 / 3) < 0.05 for share in shares)


def test_impossible_protocols_are_refused() -> None:
    with pytest.raises(InputError, match="205 pairs of each kind in 10 folds"):
        made(count=205)
    with pytest.raises(InputError, match="in 1 folds"):
        made(folds=1)
    with pytest.raises(NotReady, match="pairs of one person where 500"):
        made(count=5000)
    with pytest.raises(NotReady, match="pairs of two people where 3"):
        v.make_pairs(["a", "b", "c", "d", "e", "f"], ["x", "x", "x", "y", "y", "y"], 6, 2)
    assert "" not in {PEOPLE[i] for i in made().first}
    with pytest.raises(NotReady):
        v.make_pairs(IDS, [""] * len(IDS), 10, 2)


def test_the_list_of_lfw_is_of_two_names_each() -> None:
    assert len(LFW_ALIASES) == 33 and all(len(names) == 2 and names[0] != names[1] for names in LFW_ALIASES)
    assert len(v.LFW_ODD) == 9


# --- measures -----------------------------------------------------------------------------------------------------------


def test_auc_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, same = rng.integers(0, 12, 60).astype(float), rng.random(60) < 0.4
    brute = np.mean([(a > b) + 0.5 * (a == b) for a in scores[same] for b in scores[~same]])
    assert metrics.auc(scores, same) == pytest.approx(brute)
    scores[np.flatnonzero(same)[0]] = np.nan  # a pair without a score is told wrong
    worse = np.where(np.isnan(scores), -1e9, scores)
    assert metrics.auc(scores, same) == metrics.auc(worse, same) < brute


def test_the_threshold_is_the_best_of_all() -> None:
    for seed, levels in itertools.product(range(20), (5, 1000)):  # with ties, and without
        rng = np.random.default_rng(seed)
        scores, same = rng.integers(0, levels, 80).astype(float), rng.random(80) < 0.5
        brute = max(((scores >= t) == same).mean() for t in (*scores, scores.max() + 1))
        assert ((scores >= v.best_threshold(scores, same)) == same).mean() == pytest.approx(brute)


def test_known_distributions_give_the_known_figures() -> None:
    """Scores of unit variance whose means are d apart: AUC is Phi(d / sqrt 2), accuracy Phi(d / 2); two such members, d sqrt 2."""
    pairs = v.make_pairs([str(i) for i in range(9000)], [f"p{i // 3}" for i in range(9000)], 3000, 10)
    d, rng = 2.0, np.random.default_rng(2)
    a, b = (rng.normal(size=len(pairs)) + d * pairs.same for _ in range(2))
    one, both = v.measure("a", a, pairs), v.measure("both", a + b, pairs)
    for found, distance in ((one, d), (both, d * 2**0.5)):
        assert found.auc.mean == pytest.approx(norm.cdf(distance / 2**0.5), abs=0.01)
        assert found.accuracy.mean == pytest.approx(norm.cdf(distance / 2), abs=0.015)
        assert found.auc.low < found.auc.mean < found.auc.high and found.auc.count == 10


def test_a_fold_is_judged_by_the_others() -> None:
    """A fold whose scores are all shifted is told wrong: its own best threshold would have told it right."""
    pairs = made()
    scores = pairs.same + np.random.default_rng(0).normal(0, 0.1, len(pairs))
    assert v.measure("x", scores, pairs).fold_accuracy.min() > 0.9
    shifted = np.where(pairs.fold == 3, scores + 10, scores)
    found = v.measure("x", shifted, pairs)
    assert found.fold_accuracy[3] == 0.5 and found.fold_auc[3] > 0.99 and np.delete(found.fold_accuracy, 3).min() > 0.9


def test_cosines_are_centred_by_the_other_folds() -> None:
    pairs, vectors = made(), np.random.default_rng(0).normal(size=(len(IDS), 8)) + 5
    plain, centred = v.cosines(vectors, pairs), v.cosines(vectors, pairs, centre=True)
    assert plain.min() > 0.6 and abs(centred[~pairs.same].mean()) < 0.1
    own = pairs.fold == 4
    others = sorted({*pairs.first[~own], *pairs.second[~own]})
    mean, k = vectors[others].mean(0), int(np.flatnonzero(own)[7])
    a, b = vectors[pairs.first[k]] - mean, vectors[pairs.second[k]] - mean
    assert centred[k] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_compound_of_members_of_any_scale_is_above_each() -> None:
    """Two encoders that each see the person through noise; the second one's cosines are spread over a tenth of the range."""
    rng = np.random.default_rng(3)
    who = {name: rng.normal(size=32) for name in sorted(set(PEOPLE))}

    def seen(noise: float) -> np.ndarray:
        return np.stack([who[p] for p in PEOPLE]) + noise * rng.normal(size=(len(PEOPLE), 32))

    first, second = seen(1.6), seen(1.6)
    second = np.concatenate([second, np.full((len(PEOPLE), 1), 30.0)], axis=1)  # a common part, as dlib has
    first[5] = np.nan  # a face that the first has no embedding of
    pairs = made()
    results = {r.name: r for r in v.verify({"first": first, "second": second}, (), pairs)}
    assert list(results) == ["first", "second", "compound"]
    assert results["compound"].auc.mean > max(results["first"].auc.mean, results["second"].auc.mean) + 0.02
    strangers = ~pairs.same
    assert np.nanmean(results["second"].scores[strangers]) == pytest.approx(0, abs=0.1)
    lost = (pairs.first == 5) | (pairs.second == 5)
    assert lost.any() and np.isnan(results["first"].scores[lost]).all() and np.isfinite(results["compound"].scores).all()
    assert [r.name for r in v.verify({"only": first}, ("only",), pairs)] == ["only"]
