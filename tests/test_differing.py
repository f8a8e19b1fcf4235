"""Which parameters of recorded paths differ, against planted differences; how unevenly numbers are spread."""

import numpy as np
import pytest
from scipy import stats

from ul.studies import differing


def walks(runs: int, points: int, count: int, seed: int) -> np.ndarray:
    """Random walks float[runs, points, count] of different step sizes: what batch order does to weights."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(size=(runs, points, count)), 1) * np.geomspace(0.01, 10, count)


@pytest.mark.parametrize("runs", [4, 8, 15])
def test_clean_against_clean_finds_at_most_the_nominal_share(runs):
    """Independent weights: in at most one run of twenty is anything found at all."""
    found = []
    for seed in range(60):
        everyone = walks(runs, 1, 400, seed)
        found.append(differing.differing(everyone[0], everyone[1:]).any())
    assert np.mean(found) <= 0.12  # 3 of 60 expected; 8 or more with probability .01


def test_single_numbers_make_the_test_exact():
    """With one point a path is a number and p values are uniform: the share below .2 is .2."""
    everyone = walks(6, 1, 50_000, 0)
    p = stats.f.sf(differing.excess(everyone[0], everyone[1:]), 1, 4)
    assert (p < 0.2).mean() == pytest.approx(0.2, abs=0.01)


def test_planted_differences_are_found_and_few_others():
    everyone, planted = walks(13, 6, 1000, 1), np.arange(1000) % 4 == 0
    away = everyone[0] + planted * 40 * np.geomspace(0.01, 10, 1000) * np.linspace(0, 1, 6)[:, None]
    found = differing.differing(away, everyone[1:])
    assert found[planted].mean() > 0.95
    assert (found & ~planted).sum() / found.sum() < 0.1


def test_parameters_without_a_spread_are_not_said_to_differ():
    others, own = np.zeros((4, 3, 2)), np.zeros((3, 2))
    own[-1, 1] = 1e-6
    assert list(differing.differing(own, others)) == [False, False]


def test_blocks_of_parameters_change_nothing(monkeypatch):
    everyone = walks(6, 4, 50, 2)
    whole = differing.excess(everyone[0], everyone[1:])
    monkeypatch.setattr(differing, "BLOCK", 7)
    np.testing.assert_array_equal(differing.excess(everyone[0], everyone[1:]), whole)


def test_what_may_differ_is_more_than_what_is_found_and_nothing_where_nothing_does():
    everyone, planted = walks(6, 1, 4000, 3), np.arange(4000) % 2 == 0
    away = everyone[0] + planted * 3 * np.geomspace(0.01, 10, 4000)
    assert differing.differing(away, everyone[1:]).mean() < 0.1 < differing.possible(away, everyone[1:]) < 0.6
    assert differing.possible(everyone[0], everyone[1:]) < 0.05


def test_a_spread_needs_two_other_runs():
    with pytest.raises(ValueError, match="two other runs or more, got 1"):
        differing.excess(np.zeros((2, 3)), np.zeros((1, 2, 3)))


@pytest.mark.parametrize(
    ("values", "gini"), [([1, 1, 1, 1], 0), ([0, 0, 0, 5], 0.75), ([1, 3], 0.25), (np.arange(1, 101), 0.33)]
)
def test_gini_of_known_distributions(values, gini):
    assert differing.gini(values) == pytest.approx(gini, abs=1e-9)


def test_lorenz_curve_is_what_the_smallest_hold():
    np.testing.assert_allclose(differing.lorenz([6, 1, 3]), [0, 0.1, 0.4, 1])


def test_gaps_are_root_mean_squares_over_the_path():
    np.testing.assert_allclose(differing.gaps([[0, 0], [3, 1]], [[0, 1], [0, 0]]), [(9 / 2) ** 0.5, 1])


@pytest.mark.parametrize(("points", "places"), [(3, [0, 50, 100]), (101, range(101)), (2, [0, 100])])
def test_fewer_points_of_a_lorenz_curve_are_points_of_it(points, places):
    values = np.random.default_rng(0).random(100)
    np.testing.assert_array_equal(differing.lorenz(values, points), differing.lorenz(values)[[*places]])


def test_top_is_what_the_largest_tenth_holds_of_the_squares():
    assert differing.top([1] * 10) == pytest.approx(0.1)
    assert differing.top([1] * 8 + [2, 4]) == pytest.approx(16 / 28)
    assert differing.top([3] + [0] * 19) == pytest.approx(1)
