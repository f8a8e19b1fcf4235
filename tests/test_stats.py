"""Intervals and rank correlation against scipy, hand calculation and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ul.base import stats

A = [0.61, 0.55, 0.72, 0.58, 0.66]
B = [0.50, 0.57, 0.60, 0.51, 0.59]


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_paired_interval_is_scipys(n, level):
    found = stats.paired(A[:n], B[:n], level=level)
    expected = scipy_stats.ttest_rel(A[:n], B[:n]).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.estimate == pytest.approx(sum(A[:n]) / n - sum(B[:n]) / n) and found.n == n


def test_paired_is_narrower_than_unpaired_for_seeds_that_move_together():
    shared = np.random.default_rng(0).normal(size=6) * 10
    a, b = shared + np.array([1, 1.1, 0.9, 1, 1, 1]), shared
    found = stats.paired(a, b)
    assert 0.9 < found.low < 1 < found.high < 1.1


def test_ratio_by_hand():
    """log ratios 0 and log 4: mean log 2, standard error log 2, t(1) = 12.7062."""
    found = stats.paired([1, 8], [1, 2], log=True)
    assert found.estimate == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx((2 ** (1 - 12.7062), 2 ** (1 + 12.7062)), rel=1e-4)


@pytest.mark.parametrize("a, b", [([0, 1], [1, 1]), ([1, 1], [1, 0]), ([1, -1], [1, 1])])
def test_ratio_of_zero_is_refused(a, b):
    with pytest.raises(ValueError, match="above 0; a zero has none"):
        stats.paired(a, b, log=True)


@pytest.mark.parametrize("n", [2, 5])
def test_intervals_cover_the_truth_as_often_as_they_say(n):
    rng = np.random.default_rng(0)
    draws = [stats.paired(rng.normal(3, 2, n), rng.normal(1, 2, n)) for _ in range(500)]
    assert np.mean([d.low <= 2 <= d.high for d in draws]) == pytest.approx(0.95, abs=0.03)


def test_one_seed_has_no_interval():
    for found in (stats.paired([0.5], [0.25]), stats.paired([0.5], [1], log=True)):
        assert (found.estimate, found.n) == pytest.approx((0.25 if found.estimate < 0.4 else 0.5, 1))
        assert math.isnan(found.low) and math.isnan(found.high)
    assert str(stats.Interval(0.5, 0.25, 0.75, 3)) == "0.500 [0.250, 0.750], n = 3"


@pytest.mark.parametrize(
    "a, b, message",
    [
        ([1, 2], [1, 2, 3], r"same seeds: \(2,\) and \(3,\)"),
        ([], [], "finite numbers"),
        ([1, float("nan")], [1, 2], "finite numbers"),
        ([1, float("inf")], [1, 2], "finite numbers"),
    ],
)
def test_values_without_an_interval_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        stats.paired(a, b)


# ---- Scales --------------------------------------------------------------------------------------------------------


def test_a_share_is_the_logit_interval_of_the_delta_method():
    """Mean .8, standard error .05, t(2) = 4.30265: logit .8 +- 4.30265 * .05 / .16."""
    values = [0.8 - 0.05 * math.sqrt(3), 0.8, 0.8 + 0.05 * math.sqrt(3)]
    found, step = stats.share(values), 4.30265 * 0.05 / 0.16
    ends = [1 / (1 + math.exp(-(math.log(4) + sign * step))) for sign in (-1, 1)]
    assert (found.estimate, found.low, found.high, found.n) == pytest.approx((0.8, *ends, 3), abs=1e-5)


@pytest.mark.parametrize("values", [[0.99, 1.0, 0.9], [0.0, 0.02, 0.3], [0.0, 1.0], [0.5, 0.5001]])
def test_a_share_stays_within_its_bounds_and_around_its_mean(values):
    found = stats.share(values)
    assert 0 <= found.low <= found.estimate <= found.high <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_shares_at_a_bound_have_no_interval(value):
    found = stats.share([value] * 3)
    assert found.estimate == value and math.isnan(found.low) and math.isnan(found.high)


def test_a_share_outside_its_bounds_is_refused():
    with pytest.raises(ValueError, match="shares lie from 0 to 1"):
        stats.share([0.5, 1.01])


def test_ratios_are_the_paired_ratio_to_one():
    assert stats.ratios([0.5, 2.0, 3.0]) == stats.paired([0.5, 2.0, 3.0], [1, 1, 1], log=True)


@pytest.mark.parametrize("values", [[0, 0, 0], [0.0, 0.4], [0, 0, 0.1]])
def test_zeros_have_no_interval(values):
    found = stats.ratios(values)
    assert found.estimate == pytest.approx(np.mean(values)) and math.isnan(found.low) and math.isnan(found.high)


def test_correlations_are_means_on_fishers_scale():
    found = stats.correlations([0.2, 0.6, 0.9], 7)
    z = np.arctanh([0.2, 0.6, 0.9])
    low, high = scipy_stats.t.interval(0.95, 2, z.mean(), scipy_stats.sem(z))
    assert (found.estimate, found.low, found.high) == pytest.approx((1.7 / 3, *np.tanh([low, high])))


@pytest.mark.parametrize(("kind", "swapped"), [("spearman", 1 - 12 / 210), ("kendall", 1 - 4 / 30)])
def test_a_perfect_order_is_half_a_swap_from_one(kind, swapped):
    """Six methods: one swap of neighbours lowers rho by 12 / 210 and tau by 4 / 30."""
    found = stats.correlations([1.0, 1.0], 6, kind=kind)
    assert (found.estimate, found.low, found.high) == pytest.approx((1, (1 + swapped) / 2, 1))
    orders = [1, 2, 3, 4, 5, 6], [2, 1, 3, 4, 5, 6]
    scipys = {"spearman": scipy_stats.spearmanr, "kendall": scipy_stats.kendalltau}[kind]
    assert scipys(*orders).statistic == pytest.approx(swapped)


@pytest.mark.parametrize("pairs", [1, 2])
def test_one_or_two_methods_have_hardly_an_order(pairs):
    """The smoke profile ranks one method: its correlation is 0, whatever UD is, and nothing is known of it."""
    found = stats.correlations([0.0, 0.0], pairs, kind="kendall")
    assert (found.estimate, found.low, found.high) == (0, -1, 1)


@pytest.mark.parametrize(("kind", "swap"), [("spearman", 12 / 210), ("kendall", 4 / 30)])
def test_equal_orders_are_known_to_half_a_swap(kind, swap):
    """Three seeds that agree are no proof that the next one does."""
    found = stats.correlations([0.6, 0.6, 0.6], 6, kind=kind)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.6, 0.6 - swap / 2, 0.6 + swap / 2))


@pytest.mark.parametrize("bound", [0.0, 0.5, 2.0])
def test_p_against_a_bound_is_scipys(bound):
    values = [0.3, 0.9, 0.7, 1.1]
    assert stats.p_against(stats.student(values), bound) == pytest.approx(scipy_stats.ttest_1samp(values, bound).pvalue)
    if bound:
        expected = scipy_stats.ttest_1samp(np.log(values), math.log(bound)).pvalue
        assert stats.p_against(stats.ratios(values), bound, log=True) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5], [0.0, 0.5]])
def test_without_an_interval_there_is_no_p(values):
    assert math.isnan(stats.p_against(stats.ratios(values), 1, log=True))


# ---- Ranks ---------------------------------------------------------------------------------------------------------

PAIRS = [
    ([1, 2, 3, 4, 5], [2.0, 1.0, 4.0, 3.0, 5.0]),
    ([0.3, 0.1, 0.5, 0.2, 0.9], [9, 8, 7, 6, 5]),
    ([1, 1, 2, 3, 3], [1, 2, 2, 5, 4]),
    ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]),
]


@pytest.mark.parametrize("x, y", PAIRS)
def test_rank_correlation_is_scipys_with_the_exact_p(x, y):
    rho, p = stats.rank_correlation(x, y)
    assert rho == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
    exact = scipy_stats.permutation_test(
        (x,), lambda v: scipy_stats.spearmanr(v, y).statistic, permutation_type="pairings", n_resamples=np.inf
    )
    assert p == pytest.approx(exact.pvalue)


def test_perfect_order_of_five_has_two_extreme_permutations():
    assert stats.rank_correlation([1, 2, 3, 4, 5], [1, 4, 9, 16, 25]) == (pytest.approx(1), pytest.approx(2 / 120))


def test_many_pairs_are_shuffled_with_a_seed():
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    y = x + 1.5 * rng.normal(size=12)
    rho, p = stats.rank_correlation(x, y)
    assert (rho, p) == stats.rank_correlation(x, y)
    expected = scipy_stats.spearmanr(x, y)
    assert rho == pytest.approx(expected.statistic) and p == pytest.approx(expected.pvalue, abs=0.02)
    assert stats.rank_correlation(x, x, reps=99)[1] == pytest.approx(1 / 100)  # p is never 0


@pytest.mark.parametrize("x, y", [([1, 1, 1, 1], [1, 2, 3, 4]), ([4, 3, 2, 1], [7, 7, 7, 7])])
def test_a_constant_has_no_order(x, y):
    rho, p = stats.rank_correlation(x, y)
    assert math.isnan(rho) and p == 1


@pytest.mark.parametrize("x, y", [([1, 2], [2, 1]), ([1, 2, 3], [1, 2])])
def test_too_few_or_unequal_pairs_are_refused(x, y):
    with pytest.raises(ValueError, match="three pairs or more"):
        stats.rank_correlation(x, y)


# ---- Holm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "p, adjusted",
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6], [1, 1]),
        ([0.02], [0.02]),
        ([0.01, 0.011, 0.9], [0.03, 0.03, 0.9]),
        ([0.5, float("nan"), 0.02], [0.5, float("nan"), 0.04]),
        ([], []),
    ],
)
def test_holm_by_hand(p, adjusted):
    assert stats.holm(p).tolist() == pytest.approx(adjusted, nan_ok=True)


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.beta(0.3, 3, size=6)
        rejected, alive = np.zeros(6, bool), sorted(range(6), key=lambda i: p[i])
        while alive and p[alive[0]] <= 0.05 / len(alive):
            rejected[alive.pop(0)] = True
        assert (stats.holm(p) <= 0.05).tolist() == rejected.tolist()
