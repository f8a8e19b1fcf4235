"""Recorded paths against hand-made trainings, and their file."""

import pytest
import torch
from torch import nn

from ul.base.errors import InputError
from ul.studies import paths


def trained(model: nn.Module, steps: int, *, lr: float = 0.5) -> None:
    """Every step adds `lr` to every parameter: the gradient is -1."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = -torch.ones_like(p)
        optimizer.step()


@pytest.mark.parametrize("shape", [(40, 15), (15, 40)])
def test_components_are_those_of_the_svd(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 3, shape[1])
    axes, spread = paths.components(x, 4)
    _, values, vectors = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(spread, values[:4])
    torch.testing.assert_close((axes * vectors[:4]).sum(1).abs(), torch.ones(4))


def test_more_components_than_there_are_is_one_line():
    with pytest.raises(InputError, match="features is 5, but 5 images of 9 values have fewer"):
        paths.components(torch.randn(5, 9), 5)


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
