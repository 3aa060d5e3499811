"""Each metric against brute force or by hand; intervals against the normal approximation."""

import math

import numpy as np
import pytest
import torch

from diffsfsr.evaluation import metrics

NAN = float("nan")


def _vectors(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def test_cosine_by_hand():
    pred = np.array([[1.0, 0], [1, 1], [0, 2], [0, 0], [NAN, 1]])
    ref = np.array([[3.0, 0], [1, 0], [0, -1], [1, 0], [1, 0]])
    got = metrics.cosine(pred, ref)
    np.testing.assert_allclose(got[:3], [1, math.sqrt(0.5), -1])
    assert np.isnan(got[3:]).all()  # a zero vector and a missing one have no direction


def test_cosine_takes_tensors_with_gradients():
    a, b = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    np.testing.assert_allclose(metrics.cosine(a, b), torch.cosine_similarity(a, b).detach().numpy(), atol=1e-6)


def _rank_by_loops(pred, gallery, own, people):
    ranks = []
    for q, mine in zip(pred, own, strict=True):

        def to(v, q=q):
            return sum(x * y for x, y in zip(q, v, strict=True)) / math.hypot(*q) / math.hypot(*v)

        rivals = [g for g, name in zip(gallery, people, strict=True) if name != people[mine]]
        ranks.append(1 + sum(to(g) > to(gallery[mine]) for g in rivals))
    return ranks


def test_retrieval_by_brute_force():
    gallery, pred = _vectors(40, 6, 1), _vectors(90, 6, 2)
    own = np.random.default_rng(3).integers(40, size=90)
    for people in ([f"p{i}" for i in range(40)], [f"p{i % 13}" for i in range(40)]):
        assert metrics.retrieval_ranks(pred, gallery, own, people).tolist() == _rank_by_loops(pred, gallery, own, people)
    everyone = [str(i) for i in range(40)]
    assert metrics.retrieval_ranks(pred, gallery, own).tolist() == _rank_by_loops(pred, gallery, own, everyone)


def test_copied_identities_score_100_and_shuffled_ones_chance():
    gallery = _vectors(50, 32, 4)
    copied = metrics.retrieval_ranks(gallery * 3.0, gallery, np.arange(50))
    assert metrics.hit(copied, 1).mean() == 1.0
    rng = np.random.default_rng(5)
    shuffled = [metrics.hit(metrics.retrieval_ranks(gallery[rng.permutation(50)], gallery, np.arange(50)), 1).mean() for _ in range(200)]
    assert np.mean(shuffled) == pytest.approx(1 / 50, abs=0.006)  # 10,000 items: three standard errors are .004


def test_ties_count_against_the_output():
    same = np.ones((4, 3))
    assert metrics.retrieval_ranks(same, same, range(4)).tolist() == [4, 4, 4, 4]
    gallery = np.array([[1.0, 0], [1, 0], [0, 1]])  # one photograph under two names
    assert metrics.retrieval_ranks([[1, 0.1]], gallery, [0]).tolist() == [2]
    assert metrics.retrieval_ranks([[1, 0.1]], gallery, [0], ["ann", "ann", "bob"]).tolist() == [1]


def test_other_photographs_of_the_person_are_no_rivals_and_no_proof():
    gallery = np.array([[1.0, 0], [0.8, 0.6], [0, 1]])
    pred = np.array([[0.0, 1.0]])  # bob, where ann was asked for
    assert metrics.retrieval_ranks(pred, gallery, [0], ["ann", "ann", "bob"]).tolist() == [2]
    between = np.array([[0.7, 0.9]])  # nearest to ann's other photograph, then to bob, then to the one given
    assert metrics.retrieval_ranks(between, gallery, [0], ["ann", "ann", "bob"]).tolist() == [2]


def test_a_failed_output_is_wrong_and_a_failed_gallery_image_no_rival():
    gallery = np.array([[1.0, 0], [NAN, NAN], [0, 1]])
    ranks = metrics.retrieval_ranks([[NAN, NAN], [0.9, 0.1], [1, 0]], gallery, [0, 0, 1])
    np.testing.assert_equal(ranks, [NAN, 1, NAN])
    assert metrics.hit(ranks, 1).tolist() == [0, 1, 0]
    assert metrics.hit([1, 5, 6, NAN], 5).tolist() == [1, 1, 0, 0]


def test_expression_distance_by_hand():
    pred, ref = _vectors(7, 16, 6), _vectors(7, 16, 7)
    np.testing.assert_allclose(metrics.expression_distance(pred, ref), [math.dist(a, b) for a, b in zip(pred, ref, strict=True)])
    assert np.isnan(metrics.expression_distance([[NAN, 0]], [[0, 0]]))[0]


def test_pose_distance_wraps():
    pred = [[3, 4, 0], [0, 0, 179], [-170, 0, 0], [0, 0, 0], [NAN, 0, 0]]
    ref = [[0, 0, 0], [0, 0, -179], [170, 0, 0], [0, 180, 0], [0, 0, 0]]
    np.testing.assert_allclose(metrics.pose_distance(pred, ref), [5, 2, 20, 180, NAN])


def test_mse_on_the_8_bit_scale():
    a, b = np.random.default_rng(8).integers(0, 256, size=(2, 4, 4, 3)).astype(np.uint8)
    pixels = list(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    assert metrics.mse(a, b) == pytest.approx(sum((x - y) ** 2 for x, y in pixels) / len(pixels))


def _scene(side=64):
    return np.random.default_rng(1).integers(60, 190, (side, side, 3)).astype(np.uint8)


def _disc(side=64):
    y, x = np.mgrid[:side, :side] - side // 2
    return (x**2 + y**2 < (side // 4) ** 2).astype(np.uint8)


def test_psnr_by_hand_and_of_equal_pictures():
    a = _scene()
    assert metrics.psnr(a + np.uint8(5), a) == pytest.approx(10 * math.log10(255**2 / 25))
    one = a.copy()
    one[3, 4, 1] += 1
    assert metrics.psnr(a, a) == pytest.approx(metrics.psnr(one, a)) and math.isfinite(metrics.psnr(a, a))


def test_ssim_by_its_definition():
    """Wang et al. 2004, eq. 13, with their Gaussian window of 11 pixels and 1.5, by scipy; the border of 5 is left out."""
    from scipy.ndimage import gaussian_filter

    a, b = _scene().astype(float), np.clip(_scene() * 0.7 + np.random.default_rng(2).normal(0, 12, (64, 64, 3)), 0, 255).astype(np.uint8)

    def blur(x):
        return gaussian_filter(x, 1.5, truncate=3.5)

    values = []
    for x, y in zip(a.transpose(2, 0, 1), b.astype(float).transpose(2, 0, 1), strict=True):
        mx, my, c1, c2 = blur(x), blur(y), (0.01 * 255) ** 2, (0.03 * 255) ** 2
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        full = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        values.append(full[5:-5, 5:-5].mean())
    assert metrics.ssim(b, a.astype(np.uint8)) == pytest.approx(np.mean(values), abs=1e-6)
    assert metrics.ssim(_scene(), _scene()) == 1


def test_background_is_the_worst_byte_outside_the_mask():
    scene, mask = _scene(), _disc()
    inside, outside = scene.copy(), scene.copy()
    inside[32, 32] = 0
    outside[1, 2, 0] -= 7
    assert metrics.background_difference(inside, scene, mask) == 0
    assert metrics.background_difference(outside, scene, mask) == 7
    assert metrics.background_difference(outside, scene, np.ones_like(mask)) == 0


def test_a_seam_is_a_jump_of_colour_at_the_edge():
    from skimage.color import rgb2lab

    scene, mask = np.full((64, 64, 3), 120, np.uint8), _disc()
    assert metrics.seam(scene, scene, mask) == 0
    lit = np.where(mask[..., None] > 0, np.uint8(150), scene)
    lightness = rgb2lab(np.array([[[150] * 3, [120] * 3]], np.uint8))[0]
    assert metrics.seam(lit, scene, mask) == pytest.approx(np.abs(lightness[0] - lightness[1]).mean())
    assert metrics.seam(scene, lit, mask) == pytest.approx(-metrics.seam(lit, scene, mask))  # the scene's own jump is no fault
    assert metrics.seam(np.full_like(scene, 200), scene, mask) == pytest.approx(0, abs=1e-9)  # another light everywhere is no seam
    assert np.isnan(metrics.seam(lit, scene, np.zeros_like(mask))) and np.isnan(metrics.seam(lit, scene, np.ones_like(mask)))


def test_interval_agrees_with_the_normal_one():
    x = np.random.default_rng(9).normal(3, 2, size=900)
    got = metrics.bootstrap_interval(x, n=4000, seed=1)
    half = 1.96 * x.std() / 30
    assert got.mean == pytest.approx(x.mean()) and got.count == 900
    assert got.low == pytest.approx(x.mean() - half, abs=0.012) and got.high == pytest.approx(x.mean() + half, abs=0.012)


def test_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(10)
    inside = [i.low <= 0 <= i.high for i in (metrics.bootstrap_interval(rng.normal(size=100), 500, s) for s in range(300))]
    assert 0.90 <= np.mean(inside) <= 0.985


def test_interval_is_fixed_by_its_seed():
    x = _vectors(50, 1, 11).ravel()
    assert metrics.bootstrap_interval(x, seed=3) == metrics.bootstrap_interval(x, seed=3)
    assert metrics.bootstrap_interval(x, seed=3) != metrics.bootstrap_interval(x, seed=4)


def test_missing_values_take_no_part_and_are_counted():
    got = metrics.bootstrap_interval([1, NAN, 3])
    assert got.mean == 2 and got.count == 2
    assert metrics.failure_rate([1, NAN, 3, NAN]).mean == 0.5
    none = metrics.bootstrap_interval([NAN, NAN])
    assert none.count == 0 and math.isnan(none.mean) and math.isnan(none.low)
    one = metrics.bootstrap_interval([7.0])
    assert (one.mean, one.low, one.high) == (7, 7, 7)


def test_paired_difference_is_tighter_than_two_intervals():
    base = np.random.default_rng(12).normal(0, 10, size=200)  # items differ far more than the models do
    a, b = base + 0.5, base + np.random.default_rng(13).normal(0, 0.1, size=200)
    got = metrics.paired_difference(a, b)
    assert got.low > 0.45 and got.high < 0.55
    assert metrics.bootstrap_interval(a).low < metrics.bootstrap_interval(b).high
    assert metrics.paired_difference([1, NAN, 3], [0, 5, NAN]).count == 1
    with pytest.raises(ValueError, match="same items"):
        metrics.paired_difference([1], [1, 2])


def test_pearson_is_numpys_and_means_nothing_of_a_constant():
    rng = np.random.default_rng(3)
    a = rng.normal(size=50)
    b = 3 * a + rng.normal(size=50)
    assert metrics.pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert np.isnan(metrics.pearson(a, np.ones(50)))
    assert metrics.ratio_of_means(np.array([2.0, 4.0]), np.array([1.0, 0.0])) == 6 and metrics.ratio_of_means(a * 0 + 1, -a * 0) == 100


def test_a_statistics_interval_covers_its_truth_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        a, b = np.random.default_rng(seed).multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 80).T
        found = metrics.bootstrap_statistic(metrics.pearson, a, b, n=300, seed=seed)
        covered += found.low <= 0.7 <= found.high
    assert 50 <= covered <= 60
    short = metrics.bootstrap_statistic(metrics.pearson, np.array([1.0, 2.0, np.nan, 4.0]), np.array([1.0, np.nan, 3.0, 5.0]))
    assert np.isnan(short.mean) and short.count == 0  # two items are no correlation


def test_balanced_shares_weigh_groups_alike():
    many, few = np.array([1.0] * 30 + [0.0] * 10), np.array([0.0, 0.0, 0.0, 1.0])
    share = metrics.balanced_share([many, few])
    assert share.mean == pytest.approx((0.75 + 0.25) / 2) and share.count == 44 and share.low < share.mean < share.high
    assert metrics.balanced_share([many]).low == pytest.approx(metrics.bootstrap_interval(many).low, abs=0.03)
    ratio = metrics.balanced_ratio([many], [np.array([1.0, 1.0, 0.0, 0.0] * 10)])
    assert ratio.mean == pytest.approx(1.5) and ratio.low < 1.5 < ratio.high
    assert np.isnan(metrics.balanced_ratio([many], [np.zeros(5)]).mean) and np.isnan(metrics.balanced_share([many, np.zeros(0)]).mean)
    rare = metrics.balanced_ratio([np.ones(9)], [np.array([1.0] + [0.0] * 8)])  # a third of the resamplings hit nothing
    assert rare.mean == pytest.approx(9) and rare.high == pytest.approx(18)
