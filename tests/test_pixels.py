"""Perturbations against closed forms."""

import numpy as np
import pytest
import torch

from ul.data import pixels


def test_blocks_cover_everything_once():
    for count, size in [(0, 3), (1, 3), (3, 3), (10, 3)]:
        found = [i for rows in pixels.blocks(count, size) for i in range(count)[rows]]
        assert found == list(range(count))


@pytest.mark.parametrize(("shape", "size"), [((3, 32, 32), 250), ((1, 28, 28), 250), ((3, 64, 64), 62)])
def test_larger_images_come_in_smaller_blocks(shape, size):
    images = torch.zeros(1, *shape)
    assert pixels.block_size(images) == size
    assert next(pixels.blocks_of(images.expand(1200, *shape))) == slice(0, size)


def test_rounding_is_to_the_nearest_level():
    values = torch.tensor([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.2])
    assert pixels.to_uint8(values).tolist() == [0, 0, 0, 1, 255, 255]


def test_sign_descent_of_a_quadratic_ends_at_the_nearest_point_of_the_ball():
    """sum (z - goal)^2: each value moves to its goal, or to the ball's face before it."""
    x = torch.full((2, 1, 2, 2), 0.5)
    goal = x + torch.tensor([0.02, -0.02, 0.3, -0.3]).view(1, 1, 2, 2)
    moved = pixels.sign_descent(
        lambda z: (z - goal).square().sum(), x, torch.zeros_like(x), eps=0.1, steps=100, step=0.002
    )
    expected = torch.tensor([0.02, -0.02, 0.1, -0.1]).view(1, 1, 2, 2).expand_as(x)
    assert (moved - expected).abs().max() <= 0.002 + 1e-6


def test_several_losses_are_their_sum():
    """Pulls of 3 to the left and 2 + 2 to the right: the sum decides, not the first or the last."""
    x = torch.full((1, 1, 1, 2), 0.5)
    pulls = [lambda z: 3 * z.sum(), lambda z: -2 * z.sum(), lambda z: -2 * z.sum()]
    moved = pixels.sign_descent(pulls, x, torch.zeros_like(x), eps=0.1, steps=3, step=0.01)
    assert torch.allclose(moved, torch.full_like(x, 0.03))


@pytest.mark.parametrize("step", [0.03, -0.03])
def test_images_stay_in_range(step):
    x = torch.tensor([0.0, 0.01, 0.99, 1.0]).view(1, 1, 2, 2)
    moved = pixels.sign_descent(lambda z: z.sum(), x, torch.zeros_like(x), eps=0.1, steps=5, step=step)
    expected = torch.tensor([0.0, 0.0, 0.89, 0.9] if step > 0 else [0.1, 0.11, 1.0, 1.0]).view(1, 1, 2, 2)
    assert torch.allclose(x + moved, expected, atol=1e-6)


def test_sizes_of_a_planted_perturbation():
    clean = torch.full((3, 3, 4, 4), 100, dtype=torch.uint8)
    other = clean.clone()
    other[0, :, 1, 2] = torch.tensor([103, 96, 100], dtype=torch.uint8)
    other[1, 0, 0, 0], other[1, 0, 3, 3] = 110, 92
    found = pixels.measure(clean, other)
    assert found["linf"] == pytest.approx(10 / 255) and found["linf_but_one"] == pytest.approx(8 / 255)
    assert found["l2"] == pytest.approx(np.hypot(10, 8) / 255) and found["l0"] == 2
    assert found["l2_mean"] == pytest.approx((5 + np.hypot(10, 8)) / 3 / 255)


def test_sizes_do_not_depend_on_blocks(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 256, (2, 7, 1, 5, 5), generator=rng).to(torch.uint8)
    whole = pixels.measure(a, b)
    monkeypatch.setattr(pixels, "block_size", lambda images: 2)
    assert pixels.measure(a, b) == pytest.approx(whole)
