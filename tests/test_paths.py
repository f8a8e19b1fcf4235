"""Recorded paths and which of their parameters differ, against hand-made trainings and planted differences."""

import numpy as np
import pytest
import torch
from torch import nn

from ul import critical, paths
from ul.config import InputError


def trained(model: nn.Module, steps: int, *, lr: float = 0.5) -> None:
    """Every step adds `lr` to every parameter: the gradient is -1."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = -torch.ones_like(p)
        optimizer.step()


def test_a_path_holds_the_start_every_kth_step_and_the_last():
    model = nn.Linear(2, 1)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    with paths.recorded(model, 3) as path:
        trained(model, 7)
    trained(model, 2)  # no longer recorded
    assert path.steps == [0, 3, 6, 7]
    torch.testing.assert_close(path.weights, start + 0.5 * torch.tensor(path.steps)[:, None])


def test_a_path_ends_once_where_the_last_step_is_recorded_anyway():
    model = nn.Linear(2, 1)
    with paths.recorded(model, 2) as path:
        trained(model, 4)
    assert path.steps == [0, 2, 4] and len(path.weights) == 3


def test_held_parameters_stay_and_the_others_move():
    model = nn.Linear(3, 2)
    start, keep = paths.vector(model), torch.tensor([True, False] * 4)
    with paths.held(model, keep):
        trained(model, 3)
    moved = paths.vector(model) - start
    torch.testing.assert_close(moved, torch.where(keep, 0.0, 1.5))
    trained(model, 1)
    torch.testing.assert_close((paths.vector(model) - start)[keep], torch.full((4,), 0.5))  # free again


def test_owners_name_the_layer_of_every_parameter():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 3))
    assert list(paths.owners(model)) == ["0"] * 20 + ["1"] * 15


def test_paths_survive_a_file_and_damaged_files_are_refused(tmp_path):
    model = nn.Linear(4, 4)
    with paths.recorded(model, 1) as path:
        trained(model, 3, lr=1e-3)
    paths.save({"clean-0": path}, tmp_path / "p.safetensors")
    found = paths.load(tmp_path / "p.safetensors")["clean-0"]
    assert found.steps == path.steps
    assert torch.equal(found.weights[0], path.weights[0])
    torch.testing.assert_close(found.weights, path.weights, rtol=0, atol=2e-6)  # moves of 3e-3 at half precision
    (tmp_path / "p.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(InputError, match="no readable paths"):
        paths.load(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match=r"missing\.safetensors: no readable paths"):
        paths.load(tmp_path / "missing.safetensors")


# ---- Which parameters differ ---------------------------------------------------------------------------------------


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
        found.append(critical.differing(everyone[0], everyone[1:]).any())
    assert np.mean(found) <= 0.12  # 3 of 60 expected; 8 or more with probability .01


def test_single_numbers_make_the_test_exact():
    """With one point a path is a number and p values are uniform: the share below .2 is .2."""
    from scipy import stats

    everyone = walks(6, 1, 50_000, 0)
    p = stats.f.sf(critical.excess(everyone[0], everyone[1:]), 1, 4)
    assert (p < 0.2).mean() == pytest.approx(0.2, abs=0.01)


def test_planted_differences_are_found_and_few_others():
    everyone, planted = walks(13, 6, 1000, 1), np.arange(1000) % 4 == 0
    away = everyone[0] + planted * 40 * np.geomspace(0.01, 10, 1000) * np.linspace(0, 1, 6)[:, None]
    found = critical.differing(away, everyone[1:])
    assert found[planted].mean() > 0.95
    assert (found & ~planted).sum() / found.sum() < 0.1


def test_parameters_without_a_spread_are_not_said_to_differ():
    others, own = np.zeros((4, 3, 2)), np.zeros((3, 2))
    own[-1, 1] = 1e-6
    assert list(critical.differing(own, others)) == [False, False]


def test_blocks_of_parameters_change_nothing(monkeypatch):
    everyone = walks(6, 4, 50, 2)
    whole = critical.excess(everyone[0], everyone[1:])
    monkeypatch.setattr(critical, "BLOCK", 7)
    np.testing.assert_array_equal(critical.excess(everyone[0], everyone[1:]), whole)


def test_what_may_differ_is_more_than_what_is_found_and_nothing_where_nothing_does():
    everyone, planted = walks(6, 1, 4000, 3), np.arange(4000) % 2 == 0
    away = everyone[0] + planted * 3 * np.geomspace(0.01, 10, 4000)
    assert critical.differing(away, everyone[1:]).mean() < 0.1 < critical.possible(away, everyone[1:]) < 0.6
    assert critical.possible(everyone[0], everyone[1:]) < 0.05


def test_a_spread_needs_two_other_runs():
    with pytest.raises(ValueError, match="two other runs or more, got 1"):
        critical.excess(np.zeros((2, 3)), np.zeros((1, 2, 3)))


@pytest.mark.parametrize(
    ("values", "gini"), [([1, 1, 1, 1], 0), ([0, 0, 0, 5], 0.75), ([1, 3], 0.25), (np.arange(1, 101), 0.33)]
)
def test_gini_of_known_distributions(values, gini):
    assert critical.gini(values) == pytest.approx(gini, abs=1e-9)


def test_lorenz_curve_is_what_the_smallest_hold():
    np.testing.assert_allclose(critical.lorenz([6, 1, 3]), [0, 0.1, 0.4, 1])


def test_gaps_are_root_mean_squares_over_the_path():
    np.testing.assert_allclose(critical.gaps([[0, 0], [3, 1]], [[0, 1], [0, 0]]), [(9 / 2) ** 0.5, 1])
