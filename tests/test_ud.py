"""UD on matrices counted by hand, and exact k-means against scikit-learn's."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from ul.base import ud

CLEAN = np.array([[0.1, 0.2, 1.0, 1.2], [0.0, 0.2, 0.8, 1.0]])  # midpoints .625 and .5, beta .5625, #LP 2 and 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weighted", [False, True])
def test_clean_against_itself_is_one(seed, weighted):
    rng = np.random.default_rng(seed)
    clean = rng.lognormal(sigma=2, size=(5, 21))
    weights = rng.integers(1, 1000, 21) if weighted else None
    assert ud.distance(clean, clean, weights=weights) == 1


@pytest.mark.parametrize(
    "low, high", [([0.0, 0.1, 0.2], [5.0, 5.2]), ([1.0], [9.0]), ([0.3] * 7, [0.4]), ([1e-6, 2e-6], [1e3, 1e3, 1e3])]
)
def test_threshold_of_two_planted_groups_is_between_their_means(low, high):
    mixed = np.random.default_rng(0).permutation([*low, *high])
    expected = (sum(low) / len(low) + sum(high) / len(high)) / 2
    assert ud.threshold([mixed]) == pytest.approx(expected, rel=1e-12)


def test_threshold_is_the_mean_over_epochs():
    assert ud.threshold(CLEAN) == pytest.approx((0.625 + 0.5) / 2)


@pytest.mark.parametrize("seed", range(12))
def test_two_means_is_as_good_as_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=rng.integers(3, 40))
    centres = np.array(ud.means(values))
    inertia = (np.abs(values[:, None] - centres).min(1) ** 2).sum()
    other = KMeans(2, n_init=20, random_state=0).fit(values[:, None])
    assert inertia == pytest.approx(other.inertia_, rel=1e-9)
    assert centres == pytest.approx(np.sort(other.cluster_centers_[:, 0]), rel=1e-9)


@pytest.mark.parametrize(
    "run, layers, weights",
    [
        ([[0, 0, 0, 0], [0, 0, 0, 0]], 0, 0),
        ([[0, 0, 0, 9], [0, 0, 0, 9]], 1 / 2, 1000 / 1100),
        ([[0, 0, 9, 0], [0, 0, 0, 0]], 1 / 4, 100 / 2200),
        ([[9, 9, 9, 9], [9, 9, 9, 9]], 2, 1111 / 1100),
        ([[9, 0, 0, 0], [0, 0.5625, 0.56, 0.57]], 2 / 4, 1001 / 2200),  # beta itself does not count
    ],
)
def test_layers_and_weights_counted_by_hand(run, layers, weights):
    assert ud.distance(run, CLEAN) == pytest.approx(layers)
    assert ud.distance(run, CLEAN, weights=[1, 10, 100, 1000]) == pytest.approx(weights)


def test_learnable_counts_each_epoch():
    assert ud.learnable(CLEAN, 0.9).tolist() == [2, 1]
    assert ud.learnable(CLEAN, 0.9, weights=[1, 10, 100, 1000]).tolist() == [1100, 1000]
    assert ud.distance(CLEAN, CLEAN * [1, 1, 1, 0], beta=0.9) == 3  # 3 learnable entries over 1


def test_scale_of_sal_does_not_matter():
    run = np.random.default_rng(3).exponential(size=(4, 9))
    clean = np.random.default_rng(4).exponential(size=(4, 9))
    assert ud.distance(run, clean) == ud.distance(1024 * run, 1024 * clean)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["run", "clean run"])
def test_values_that_are_not_finite_are_refused(bad, which):
    spoilt = CLEAN.copy()
    spoilt[1, 2] = bad
    pair = {"run": CLEAN, "clean run": CLEAN} | {which: spoilt}
    with pytest.raises(ValueError, match=f"^{which}: SAL holds NaN or infinity.*lower learning rate"):
        ud.distance(pair["run"], pair["clean run"])


@pytest.mark.parametrize(
    "run, clean, options, message",
    [
        (CLEAN[:1], CLEAN, {}, r"\(1, 4\), clean \(2, 4\); probe the same epochs"),
        (CLEAN[:, :3], CLEAN, {}, r"\(2, 3\), clean \(2, 4\)"),
        (CLEAN[0], CLEAN, {}, r"run: SAL must be \[epochs, layers\].*\(4,\)"),
        (np.empty((0, 4)), CLEAN, {}, "not empty"),
        (CLEAN, CLEAN, {"beta": 2.0}, "no layer of the clean run lies above beta = 2"),
        (CLEAN[:, :1], CLEAN[:, :1], {}, "needs 2 layers or more, got 1"),
        (CLEAN, CLEAN, {"weights": [1, 2]}, "2 weight counts for 4 layers"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(run, clean, options, message):
    with pytest.raises(ValueError, match=message):
        ud.distance(run, clean, **options)


def test_equal_layers_have_no_learnable_one():
    assert ud.means([0.5, 0.5, 0.5, 0.5]) == [0.5, 0.5]
    with pytest.raises(ValueError, match="no layer of the clean run"):
        ud.distance(CLEAN, np.full((2, 4), 0.5))


# ---- Other threshold rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["kmeans", "otsu", "gmm"])
@pytest.mark.parametrize("sizes", [(10, 10), (4, 17)])
def test_two_far_groups_are_parted_by_every_rule(rule, sizes):
    rng = np.random.default_rng(0)
    low, high = rng.normal(1, 0.1, sizes[0]), rng.normal(9, 0.1, sizes[1])
    beta = ud.threshold([rng.permutation([*low, *high])], rule)
    assert low.max() < beta < high.min()


def test_three_means_part_the_highest_group():
    values = [0.0, 0.2, 5.0, 5.2, 5.4, 9.0, 11.0]
    assert ud.means(values, 3) == pytest.approx([0.1, 5.2, 10])
    assert ud.threshold([values], "kmeans3") == pytest.approx(7.6)


@pytest.mark.parametrize("seed", range(6))
def test_three_means_are_as_good_as_scikit_learn(seed):
    values = np.random.default_rng(seed).exponential(size=15)
    centres = np.array(ud.means(values, 3))
    inertia = (np.abs(values[:, None] - centres).min(1) ** 2).sum()
    assert inertia == pytest.approx(KMeans(3, n_init=50, random_state=0).fit(values[:, None]).inertia_, rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_otsu_has_the_largest_variance_between_its_sides(seed):
    values = np.random.default_rng(seed).lognormal(size=13)

    def between(beta):
        low, high = values[values <= beta], values[values > beta]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    beta, v = ud.threshold([values], "otsu"), np.sort(values)
    best = max((v[:-1] + v[1:]) / 2, key=between)
    assert beta == pytest.approx(best)


def test_equal_gaussians_cross_in_the_middle():
    rng = np.random.default_rng(1)
    draws = rng.normal(0, 1, 4000)
    assert ud.threshold([np.concatenate([draws + 2, -draws + 8])], "gmm") == pytest.approx(5, abs=0.1)


def test_percentiles_are_those_of_the_layers():
    assert ud.threshold([[1, 2, 3, 4, 5]], "p50") == 3 and ud.threshold([[1, 2, 3, 4, 5]], "p75") == 4


@pytest.mark.parametrize("rule", ud.RULES)
def test_clean_against_itself_is_one_by_every_rule(rule):
    clean = np.random.default_rng(5).lognormal(sigma=2, size=(5, 21))
    assert ud.distance(clean, clean, rule=rule) == 1


def test_only_epochs_in_the_window_count():
    run = np.array([[9.0, 9, 9, 9], [0, 0, 0, 0.7]])
    assert ud.distance(run, CLEAN, window=slice(1, None)) == 1 / 2  # the second epoch's own beta is .5
    assert ud.distance(run, CLEAN, window=slice(0, 1)) == 4 / 2
    with pytest.raises(ValueError, match="no probed epoch lies in the window"):
        ud.distance(run, CLEAN, window=slice(2, None))


def test_unknown_rules_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown threshold rule 'median'; choose from kmeans, kmeans3, otsu"):
        ud.threshold(CLEAN, "median")


def test_counts_follow_the_window_and_the_rule():
    clean, run = [[1, 1, 1, 9], [1, 1, 9, 9], [1, 9, 9, 9]], [[1, 1, 1, 1], [9, 9, 9, 9], [1, 1, 9, 9]]
    assert ud.counts(run, clean) == (0 + 4 + 2, 1 + 2 + 3, 12)
    assert ud.counts(run, clean, window=slice(1, None)) == (4 + 2, 2 + 3, 8)
    assert ud.counts(run, clean, rule="p75", window=slice(0, 1)) == (0, 1, 4)
    with pytest.raises(ValueError, match="not empty"):
        ud.counts(run, clean, window=slice(3, None))
