"""Poisons without a network: each method's signature, measured another way."""

from itertools import product

import numpy as np
import pytest
import torch

from tests.plain import plain_ar, plain_ops
from tests.test_poisons import EPS, delta_of, make, short, toy
from ul.base import budgets
from ul.base.errors import InputError
from ul.data import pixels
from ul.poisons import autoregressive, handcrafted, onepixel
from ul.training import metrics


def test_noise_is_uniform_and_says_nothing_of_the_class():
    clean = toy(3, 16, [60] * 4, low=8, high=248)
    delta = delta_of(make("noise", clean), clean)
    share = torch.bincount((delta + 8).long().flatten(), minlength=17) / delta.numel()
    expected = torch.full((17,), 1 / 16)
    expected[[0, 16]] = 1 / 32  # rounding halves the two ends
    assert (share - expected).abs().max() < 0.002
    assert metrics.linear_separability(delta.float(), clean.targets["label"], seed=0) < 0.4


def lsp_delta(clean):
    """The L2-scaled pattern before it is added: what `lsp` leaves on mid-gray images at a strength that never clips."""
    cells = handcrafted.lsp_cells(clean.targets["label"], clean.images.shape[1], seed=0)
    delta = handcrafted.grown(cells, clean.images.shape[2:])
    return pixels.scaled_to_l2(delta, budgets.lsp(EPS, delta[0].numel()))


def test_lsp_has_the_published_length_and_constant_patches():
    clean = toy(3, 32, [40] * 10, low=100, high=150)
    delta = lsp_delta(clean)
    lengths = (delta.double() ** 2).sum((1, 2, 3)).sqrt()
    assert (lengths - 1.3041).abs().max() < 1e-4
    patches = delta.unfold(2, 8, 8).unfold(3, 8, 8).flatten(-2)  # [n,c,4,4,64]
    assert (patches == patches[..., :1]).all()
    added = delta_of(make("lsp", clean), clean) / 255
    assert (added - delta).abs().max() <= 0.5 / 255 + 1e-6


def test_lsp_is_linearly_separable_held_out():
    clean = toy(3, 32, [40] * 10)
    assert metrics.linear_separability(lsp_delta(clean), clean.targets["label"], seed=0) > 0.98


def test_lsp_gives_every_image_its_own_pattern():
    labels = toy(1, 28, [25, 4, 1]).targets["label"]
    patterns = handcrafted.grown(handcrafted.lsp_cells(labels, 1, seed=0), (28, 28))
    assert patterns.shape == (30, 1, 28, 28)
    assert len(patterns.flatten(1).unique(dim=0)) == 30


@pytest.mark.parametrize("channels, size, counts", [(3, 8, [6] * 5), (1, 6, [9, 5, 2])])
def test_ops_takes_the_best_free_pixel_by_brute_force(channels, size, counts):
    images, labels = (lambda s: (s.images, s.targets["label"]))(toy(channels, size, counts))
    taken = []
    for c in range(len(counts)):
        x, scores = images[labels == c].numpy() / 255, {}
        for row, column, colour in product(range(size), range(size), product((0, 1), repeat=channels)):
            gap = np.abs(np.array(colour) - x[:, :, row, column])
            scores[row, column, colour] = gap.mean() / gap.std(ddof=1)
        free = {k: v for k, v in scores.items() if k not in taken}
        found = onepixel.ops_choice(images[labels == c], taken)
        assert found in free and free[found] == pytest.approx(max(free.values()))
        taken.append(found)


def test_ops_takes_what_the_plain_loop_takes():
    images = toy(3, 6, [7]).images
    assert onepixel.ops_choice(images, []) == plain_ops(images)


def test_ops_sets_one_corner_colour_at_one_place_a_class():
    """All classes have the same images, so that each would choose the same place if it were still free."""
    clean, places = toy(3, 12, [5] * 9, low=20, high=230), set()  # no pixel is at a corner already
    for c in range(9):
        clean.images[clean.targets["label"] == c] = clean.images[clean.targets["label"] == 0]
    poisoned = make("ops", clean)
    for c in range(9):
        mine = clean.targets["label"] == c
        changed = (poisoned.images[mine] != clean.images[mine]).any(1)
        row, column = changed[0].nonzero()[0].tolist()
        assert changed.sum() == mine.sum() and changed[:, row, column].all()
        colours = poisoned.images[mine][:, :, row, column].unique(dim=0)
        assert len(colours) == 1 and set(colours[0].tolist()) <= {0, 255}
        places.add((row, column, *colours[0].tolist()))
    assert len(places) == 9


def test_ops_gives_alike_classes_different_pixels_until_none_is_left():
    images = torch.full((9, 1, 2, 2), 10, dtype=torch.uint8)
    found = []
    for _ in range(8):
        found.append(onepixel.ops_choice(images, found))
    assert len(set(found)) == 8 and {f[2] for f in found[:4]} == {(1,)}  # white is farther from 10 than black
    with pytest.raises(InputError, match="no pixel and colour is left"):
        onepixel.ops_choice(images, found)


@pytest.mark.parametrize("name", ["noise_classwise", "em_classwise"])
def test_classwise_poisons_have_one_perturbation_a_class(name):
    clean = toy(3, 16, [9, 7, 5], low=40, high=215)  # nothing is clipped
    delta, labels = delta_of(short(name, clean), clean), clean.targets["label"]
    own = [delta[labels == c].unique(dim=0) for c in range(3)]
    assert [len(o) for o in own] == [1, 1, 1]
    assert len(torch.cat(own).unique(dim=0)) == 3 and all(o.abs().max() > 0 for o in own)


def test_cuda_is_one_small_kernel_a_class_up_to_scale():
    """Least squares on pairs of images finds the kernel again; every image reaches 255."""
    clean = toy(3, 16, [4] * 3)
    poisoned, kernels = make("cuda", clean), handcrafted.cuda_kernels(3, seed=0)
    windows = torch.nn.functional.unfold(clean.images.double(), 3, padding=1).unflatten(1, (3, 9))  # [n,c,9,hw]
    assert (poisoned.images.flatten(1).amax(1) == 255).all()
    for i, c in enumerate(clean.targets["label"].tolist()):
        a = windows[i].permute(0, 2, 1).reshape(-1, 9)
        b = poisoned.images[i].double().reshape(-1, 1)
        found = torch.linalg.lstsq(a, b).solution
        assert (a @ found - b).abs().max() < 1
        assert (found[:, 0] / found.max() - kernels[c].flatten()).abs().max() < 0.02
    assert (kernels.amax((1, 2)) == 1).all() and ((kernels < 0.3).flatten(1).sum(1) == 8).all()


def test_ar_generates_what_the_plain_loop_does():
    rng = torch.Generator().manual_seed(3)
    filters = autoregressive.find_filters(2, (2, 16, 16), rng=rng)
    start = torch.randn((2, 2, 20, 20), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = autoregressive.generate(filters, (16, 16), rng=torch.Generator().manual_seed(4))
    for pattern, own, filter_ in zip(found, start, filters, strict=True):
        assert (pattern - plain_ar(own, filter_)).abs().max() < 1e-9


def test_ar_is_predicted_by_its_own_filter_only():
    clean = toy(3, 32, [6] * 4, low=100, high=155)
    labels = clean.targets["label"]
    filters = autoregressive.find_filters(4, (3, 32, 32), rng=torch.Generator().manual_seed(0))
    delta = delta_of(make("ar", clean, seed=0), clean) / 255
    left = autoregressive.residual(delta, filters).abs().mean((2, 3, 4))
    own, mask = left[torch.arange(len(labels)), labels], torch.nn.functional.one_hot(labels, 4).bool()
    others = left.masked_fill(mask, torch.inf).amin(1)
    assert (own < others).all(), "rounding to 8 bits leaves less than another class's filter does"
    assert ((delta.flatten(1).norm(dim=1) - 1).abs() < 0.02).all()
    assert (filters.sum((2, 3)) - 1).abs().max() < 1e-9 and (filters[..., 2, 2] == 0).all()


def test_em_ops_is_em_with_one_corner_pixel():
    clean = toy(3, 16, [8, 8], low=40, high=215)
    em, both = short("em", clean), short("em_ops", clean)
    changed = (em.images != both.images).any(1).flatten(1)
    assert (changed.sum(1) == 1).all()
    for c in range(2):
        assert len(changed[clean.targets["label"] == c].unique(dim=0)) == 1
