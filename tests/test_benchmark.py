"""Cells: what a victim trains on when only a part is poisoned or relabelled, and further ways to probe one training."""

import pytest
import torch

from ul import benchmark, data, grid, perturb
from ul.benchmark import Sal
from ul.config import InputError

SETTINGS = {
    "dataset": "rooms", "root": "data", "limit": 48, "method": "noise", "poison": None, "eps": None, "recipe": "cpu",
    "architecture": "resnet8", "defense": "none", "epochs": 2, "seeds": 2, "probe_epochs": 2, "sal_images": 16,
    "share": 1.0, "label_noise": 0.0,
}  # fmt: skip


def toy(count=200, seed=0, classes=4):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=rng).to(torch.uint8)
    return data.Split(images, {"label": torch.arange(count) % classes}, "toy/train")


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_share_of_the_images_is_poisoned(share):
    clean, poison = toy(), toy(seed=1)
    found = benchmark.mixed(clean, poison, share).images
    poisoned = (found == poison.images).flatten(1).all(1)
    assert poisoned.sum() == 200 * share
    assert torch.equal(found[~poisoned], clean.images[~poisoned])


def test_larger_shares_hold_smaller_ones():
    clean, poison = toy(), toy(seed=1)
    few, many = (
        (benchmark.mixed(clean, poison, share).images == poison.images).flatten(1).all(1) for share in (0.2, 0.6)
    )
    assert (many | ~few).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_noisy_labels_are_wrong_and_spread_over_the_others(share):
    split = toy(4000)
    found = benchmark.relabelled(split, "label", share)
    changed = found.targets["label"] != split.targets["label"]
    assert changed.sum() == 4000 * share and torch.equal(found.images, split.images)
    assert torch.equal(split.targets["label"], torch.arange(4000) % 4), "the clean labels are left alone"
    if share == 1:
        pairs = torch.stack([split.targets["label"], found.targets["label"]], 1)
        counts = pairs.unique(dim=0, return_counts=True)[1]
        assert len(counts) == 12 and counts.min() > 260


def test_labels_of_one_class_have_no_wrong_ones():
    split = toy(10, classes=1)
    assert benchmark.relabelled(split, "label", 0.0) is split
    with pytest.raises(InputError, match=r"label_noise is 0\.5, but all labels are of one class; take more images"):
        benchmark.relabelled(split, "label", 0.5)


@pytest.mark.parametrize("name, value", [("share", 1.5), ("share", -0.1), ("label_noise", 2.0)])
def test_shares_outside_0_to_1_are_refused(name, value):
    cell = benchmark.cells(SETTINGS | {name: value})[0]
    with pytest.raises(InputError, match=f"{name} is {value}; it is a share from 0 to 1"):
        benchmark.poisoned(cell)


def test_further_ways_probe_the_same_training():
    cells = benchmark.cells(SETTINGS)[:1]
    ways = {
        "same": Sal(images=16), "wide": Sal(images=16, epsilon=0.1), "box": Sal(images=16, norm="linf"),
        "test": Sal(images=8, part="test"), "cheap": Sal(images=16, estimator="gradient"),
        "public": Sal(images=16, departures=("train_loss",)),
    }  # fmt: skip
    run = grid.run_all(cells, also=ways, jobs=1)[0]
    plain = grid.run_all(cells, jobs=1)[0]
    assert run["history"] == plain["history"] and run["sal"] == plain["sal"] and "also" not in plain
    assert run["also"]["same"]["sal"] == run["sal"] and run["also"]["wide"]["way"]["epsilon"] == 0.1
    first = {name: way["sal"][0]["sal"] for name, way in run["also"].items()}
    assert all(w > s for w, s in zip(first["wide"], first["same"], strict=True))
    assert len({tuple(values) for values in first.values()}) == len(ways)
    assert all([p["epoch"] for p in way["sal"]] == [1, 2] for way in run["also"].values())
    assert "error" in run["sal"][0] and "error" not in run["also"]["cheap"]["sal"][0]


def test_cells_of_different_conditions_make_their_own_images():
    cells = [
        benchmark.replace(cell, share=share) for cell in benchmark.cells(SETTINGS)[:1] for share in (0.0, 1.0)
    ]  # fmt: skip
    clean, noisy = grid.run_all(cells, jobs=1)
    plain, _ = benchmark.splits(cells[0])
    assert clean["data"]["train"] == plain.digest() != noisy["data"]["train"]
    size = perturb.measure(plain.images, benchmark.poisoned(cells[1]).images)["linf"]
    assert size == pytest.approx(8 / 255)
