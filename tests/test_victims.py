"""Runs: what a victim trains on when only a part is poisoned or relabelled, and the ways to probe one training."""

import json
from dataclasses import replace

import pytest
import torch

from ul import data
from ul.base import arithmetic
from ul.base.errors import InputError
from ul.data import pixels
from ul.studies import conditions, images, victims
from ul.studies.description import Sets
from ul.studies.victims import Sal
from ul.training import defenses, victim

MACHINE = {"device": "cpu", "threads": 1, "precision": "float32"}
MACHINE |= {"instructions": torch.backends.cpu.get_cpu_capability().lower(), "arithmetic": arithmetic.chosen()}
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
    found = images.mixed(clean, poison, share).images
    poisoned = (found == poison.images).flatten(1).all(1)
    assert poisoned.sum() == 200 * share
    assert torch.equal(found[~poisoned], clean.images[~poisoned])


def test_larger_shares_hold_smaller_ones():
    clean, poison = toy(), toy(seed=1)
    few, many = ((images.mixed(clean, poison, share).images == poison.images).flatten(1).all(1) for share in (0.2, 0.6))
    assert (many | ~few).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_noisy_labels_are_wrong_and_spread_over_the_others(share):
    split = toy(4000)
    found = images.relabelled(split, "label", share)
    changed = found.targets["label"] != split.targets["label"]
    assert changed.sum() == 4000 * share and torch.equal(found.images, split.images)
    assert torch.equal(split.targets["label"], torch.arange(4000) % 4), "the clean labels are left alone"
    if share == 1:
        pairs = torch.stack([split.targets["label"], found.targets["label"]], 1)
        counts = pairs.unique(dim=0, return_counts=True)[1]
        assert len(counts) == 12 and counts.min() > 260


def test_labels_of_one_class_have_no_wrong_ones():
    split = toy(10, classes=1)
    assert images.relabelled(split, "label", 0.0) is split
    with pytest.raises(InputError, match=r"label_noise is 0\.5, but all labels are of one class; take more images"):
        images.relabelled(split, "label", 0.5)


@pytest.mark.parametrize("name, value", [("share", 1.5), ("share", -0.1), ("label_noise", 2.0)])
def test_shares_outside_0_to_1_are_refused(name, value):
    run = conditions.one(SETTINGS | {name: value})[0]
    with pytest.raises(InputError, match=f"{name} is {value}; it is a share from 0 to 1"):
        images.poisoned(run.images)


def test_images_do_not_depend_on_what_trains_on_them():
    """One poison a seed for all networks and defenses; another share of it makes it once as well."""
    first = conditions.one(SETTINGS)[0].images
    others = conditions.one(SETTINGS | {"architecture": "lenet5", "defense": "jpeg"})
    assert [run.images for run in others] == [replace(first, poison_seed=run.seed) for run in others]
    half, noisy = (replace(first, **change) for change in ({"share": 0.5}, {"label_noise": 0.5}))
    before = images._whole.cache_info().misses
    splits = [images.poisoned(of) for of in (first, half, noisy)]
    assert images._whole.cache_info().misses <= before + 1
    assert torch.equal(splits[0].images, splits[2].images) and not torch.equal(splits[0].images, splits[1].images)


def test_further_ways_probe_the_same_training():
    runs = conditions.one(SETTINGS)[:1]
    ways = {
        "same": Sal(images=16), "wide": Sal(images=16, epsilon=0.1), "box": Sal(images=16, norm="linf"),
        "test": Sal(images=8, part="test"), "cheap": Sal(images=16, estimator="gradient"),
        "public": Sal(images=16, departures=("train_loss",)),
    }  # fmt: skip
    run = conditions.run_all(runs, also=ways, jobs=1)[0]
    plain = conditions.run_all(runs, jobs=1)[0]
    assert run["history"] == plain["history"] and run["sal"] == plain["sal"] and "also" not in plain
    assert run["also"]["same"]["sal"] == run["sal"] and run["also"]["wide"]["way"]["epsilon"] == 0.1
    first = {name: way["sal"][0]["sal"] for name, way in run["also"].items()}
    assert all(w > s for w, s in zip(first["wide"], first["same"], strict=True))
    assert len({tuple(values) for values in first.values()}) == len(ways)
    assert all([p["epoch"] for p in way["sal"]] == [1, 2] for way in run["also"].values())
    assert "error" in run["sal"][0] and "error" not in run["also"]["cheap"]["sal"][0]


@pytest.mark.parametrize("every", [False, True])
def test_what_is_not_searched_for_is_no_number_in_a_record(monkeypatch, every):
    """Of one layer: none; of every layer: no column."""
    real = victims.sal.per_layer

    def partly(*given, **options):
        frame = real(*given, **options)
        frame.loc[frame.index if every else frame.index[:1], "s_min"] = float("nan")
        return frame

    monkeypatch.setattr(victims.sal, "per_layer", partly)
    run = conditions.run_all(conditions.one(SETTINGS)[:1], jobs=1)[0]
    probe = json.loads(json.dumps(run, allow_nan=False))["sal"][0]
    assert "s_min" not in probe if every else probe["s_min"][0] is None and min(probe["s_min"][1:]) >= 0


def test_runs_of_different_conditions_make_their_own_images():
    runs = [conditions.of(run, share=share) for run in conditions.one(SETTINGS)[:1] for share in (0.0, 1.0)]
    clean, noisy = conditions.run_all(runs, jobs=1)
    plain, _ = images.splits(runs[0].images)
    assert clean["data"]["train"] == plain.digest() != noisy["data"]["train"]
    size = pixels.measure(plain.images, images.poisoned(runs[1].images).images)["linf"]
    assert size == pytest.approx(8 / 255)


# ---- One training --------------------------------------------------------------------------------------------------


QUICK = SETTINGS | {"architecture": "lenet5", "epochs": 1, "probe_epochs": 1, "limit": 32, "sal_images": 4}


@pytest.fixture
def inverted(monkeypatch) -> list[str]:
    """The digests of all splits that the defense `bdr` prepares: it inverts their images instead."""
    seen = []

    def prepare(split: data.Split) -> data.Split:
        seen.append(split.digest())
        return replace(split, images=255 - split.images)

    monkeypatch.setitem(defenses.DEFENSES, "bdr", defenses.Defense("bdr", prepare=prepare))
    return seen


def test_a_run_prepares_its_images_once_and_no_others(inverted):
    run = conditions.one(QUICK | {"defense": "bdr"})[0]
    given = images.sets(run.images)
    ways = {part: Sal(images=4, part=part) for part in ("own", "clean", "test")}
    victims.run(run, given, also=ways)
    assert inverted == [given.own.digest()]
    victims.run(replace(run, sal=ways["clean"]), given, also={"test": ways["test"]})
    assert inverted == [given.own.digest()] * 2


def test_own_images_are_probed_as_the_network_sees_them_others_as_they_are(inverted):
    """A network trained on inverted images is probed on those; probes on clean and test images see no defense."""
    run = conditions.one(QUICK | {"defense": "bdr"})[0]
    given, parts = images.sets(run.images), ("own", "clean", "test")
    ways = {part: Sal(images=4, part=part) for part in parts}
    found = victims.run(run, given, also=ways)["also"]
    own = replace(given.own, images=255 - given.own.images)
    plain = victims.run(replace(run, defense="none"), Sets(own, given.clean, given.test), also=ways)["also"]
    assert [found[part]["sal"] for part in parts] == [plain[part]["sal"] for part in parts]
    assert found["own"]["sal"] != victims.run(run, Sets(own, given.clean, given.test), also=ways)["also"]["own"]["sal"]


def test_fit_gives_the_network_that_a_run_trains():
    run, kept = conditions.one(QUICK | {"architecture": "resnet8"})[0], {}
    given = images.sets(run.images)

    def keep(chosen, model, sets):
        kept.update(model.state_dict())
        assert chosen is run and sets is given
        return {"one": 1.0}

    assert victims.run(run, given, at_end=keep)["scores"] == {"one": 1.0}
    model = victims.fit(run, given, *defenses.make(run.defense).applied(given.own))
    assert kept.keys() == model.state_dict().keys()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_mixed_labels_are_shares_of_both_classes():
    mixed = defenses.Mixed(torch.tensor([0, 2]), torch.tensor([1, 2]), torch.tensor([0.25, 0.5]))
    assert mixed.shares(4).tolist() == [[0.25, 0.75, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_labels_suit_networks_of_any_last_layer(name):
    """How many classes there are is told by the outputs, not by some linear layer of the network."""
    classify = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(3, 4, 1), torch.nn.Flatten())
    model = torch.nn.Sequential(classify, torch.nn.Identity())
    model[1].unused = torch.nn.Linear(2, 9)
    recipe = victim.Recipe(epochs=1, batch_size=20, pad=0, flip=False)
    found = victim.fit(model, toy(40), None, recipe=recipe, defense=defenses.make(name), seed=0, device="cpu")
    assert found.train_loss[0] < 5
