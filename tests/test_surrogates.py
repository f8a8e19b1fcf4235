"""Poisons made with networks: each method's signature, measured another way than it was optimised."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.test_poisons import EPS, SHORT, delta_of, make, short, toy
from ul import poisons
from ul.base import names
from ul.base.errors import InputError
from ul.data import pixels
from ul.nets import classifiers
from ul.poisons import minimise, surrogate, targeted
from ul.poisons.target import Target
from ul.training import metrics, victim

QUICK = victim.Recipe(epochs=20, batch_size=16)


def easy(counts=(16,) * 4, size=16, seed=0):
    """Noise tinted by class, which crops and mirrors keep: a surrogate learns them in a few epochs."""
    split = toy(3, size, counts, low=60, high=160, seed=seed)
    for i, c in enumerate(split.targets["label"].tolist()):
        split.images[i, c : c + 1] += 30  # class 3 has no tint
    return split


def aim(split, seed=0):
    return Target(split.images, split.targets["label"], seed, torch.device("cpu"), True)


def losses(model, images, labels):
    with torch.no_grad():
        return F.cross_entropy(model(pixels.to_float(images)), labels, reduction="none")


# ---- What they share -----------------------------------------------------------------------------------------------


def test_passes_are_counted_only_inside_and_with_a_gradient():
    model = surrogate.network("lenet5", aim(toy(3, 16, [4, 4])))
    x = torch.rand(5, 3, 16, 16)
    model(x)
    with poisons.counting() as passes:
        model(x)
        with torch.no_grad():
            model(x)
        surrogate.frozen(model)(x)
        model(x.clone().requires_grad_())
    model(x.clone().requires_grad_())
    assert passes.images == 10


@pytest.mark.parametrize(
    "name, expected",
    [  # by hand from the recipe, images an image
        ("em", 2 * (16 / 32 * 2 + 2)),  # two rounds: two batches of 16 of 32 images, two steps
        ("rem", 1.5 * (1 * 2 * (1 + 1) + 1 + 1) + 1 * 2 * (1 + 1)),
        ("tap", 2 + 2 * 2),
        ("hypo", 2 * (1 + 1) + 2),
        ("sep", 2 + 2 * 2),
    ],
)
def test_passes_are_those_of_the_recipe(name, expected):
    with poisons.counting() as passes:
        short(name, toy(3, 16, [16, 16]), **{"stop": 2.0} if name == "em" else {})
    assert passes.images / 32 == pytest.approx(expected)


def test_reduced_recipes_keep_within_the_stated_passes():
    """tap at most 50 passes an image, rem 300, by arithmetic over the recipe."""
    tap, rem = targeted.TAP_RECIPES["cpu"], minimise.REM_RECIPES["cpu"]
    assert tap.training.epochs + tap.steps * tap.restarts <= 50
    visit = rem.steps * rem.transforms * (rem.inner_steps + 1)
    assert rem.visits * (visit + rem.inner_steps + 1) + visit <= 300
    assert rem.inner_steps >= 3 and rem.transforms >= 2


def test_jittered_moves_every_image_alike_and_has_a_gradient():
    x = torch.rand(6, 1, 8, 8, requires_grad=True)
    y = surrogate.jittered(x, flip=False, rng=torch.Generator().manual_seed(1), shift=2)
    found = [
        (a, b) for a in range(5) for b in range(5) if torch.equal(y, F.pad(x, (2,) * 4)[:, :, a : a + 8, b : b + 8])
    ]
    assert found
    y.sum().backward()
    assert set(x.grad.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", ["tap", "hypo", "sep"])
def test_a_diverging_surrogate_ends_in_a_clear_error(name):
    with pytest.raises(InputError, match=r"surrogate: loss is (nan|inf) in epoch \d+; lower lr"):
        short(name, toy(3, 16, [16, 16]), training=replace(QUICK, lr=1e18, warmup=0.01))


# ---- EM and REM ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def em_case():
    clean = toy(3, 16, [80] * 4, low=96, high=160)
    return clean, make("em", clean, eps=16 / 255)


def test_em_uses_its_budget_in_both_signs(em_case):
    """The public loader clamps at zero and loses the negative half."""
    delta = delta_of(em_case[1], em_case[0])
    assert delta.abs().max() == 16
    assert 0.4 < (delta > 0).double().mean() < 0.6 and 0.4 < (delta < 0).double().mean() < 0.6


def test_em_carries_the_label_and_only_in_its_order(em_case):
    clean, poisoned = em_case
    delta, labels, base = delta_of(poisoned, clean).float(), clean.targets["label"], clean.images.float()
    fit, held = torch.arange(len(labels)).chunk(2)
    moved = base[held] + delta[held][torch.randperm(len(held), generator=torch.Generator().manual_seed(0))]

    def score(images):
        return metrics.linear_accuracy(base[fit] + delta[fit], labels[fit], images, labels[held])

    assert metrics.linear_separability(delta, labels, seed=0) > 0.98
    assert score(base[held] + delta[held]) > 0.95
    assert score(moved) < 0.45 and score(base[held]) < 0.45


def test_em_makes_the_loss_of_a_frozen_network_smaller(em_case):
    """Descent from zero against one fixed network: every image's own loss falls, by hand-made evaluation."""
    clean = em_case[0]
    x, y = pixels.to_float(clean.images[:40]), clean.targets["label"][:40]
    model = classifiers.make("resnet8", channels=3, classes=4, size=16, seed=3).eval()
    moved = minimise._minimised(model, x, torch.zeros_like(x), y, EPS, minimise.EM_RECIPES["cpu"])
    with torch.no_grad():
        before, after = (torch.nn.functional.cross_entropy(model(z), y, reduction="none") for z in (x, x + moved))
    assert (after < before).all() and moved.abs().max() <= EPS + 1e-7


def test_em_stops_when_its_surrogate_has_learnt_the_poison(tmp_path, monkeypatch):
    monkeypatch.setenv("UL_PROGRESS", str(tmp_path / "log"))
    make("em", toy(3, 16, [40] * 4, low=96, high=160), eps=16 / 255)
    assert float((tmp_path / "log").read_text().split()[-1]) >= 0.99


@pytest.mark.parametrize("name", [name for name, method in poisons.METHODS.items() if method.recipes])
def test_published_recipes_run(name):
    """With the cost of a network and of images cut, not the loop."""
    small = {"architecture": "lenet5"} | {k: v for k, v in SHORT[name].items() if k != "widths"}
    fields = vars(poisons.recipes(name)["published"])
    options = {k: v for k, v in small.items() if k in fields} | ({"widths": (8, 8)} if "widths" in fields else {})
    clean = toy(3, 16, [8, 8])
    published, reduced = (make(name, clean, recipe=r, **options) for r in names.RECIPES)
    assert published.images.shape == reduced.images.shape


def test_rem_touches_every_image_and_lowers_the_adversarial_loss():
    clean = toy(3, 16, [24, 24], low=60, high=196)
    poisoned = make("rem", clean, visits=12, batch_size=16, steps=2, inner_steps=2)
    delta = delta_of(poisoned, clean)
    assert (delta.flatten(1).abs().amax(1) == 8).all(), "an image was left out"
    assert metrics.linear_separability(delta.float(), clean.targets["label"], seed=0) > 0.9


@pytest.mark.parametrize(("count", "visits", "size"), [(10, 2.5, 4), (3, 2, 8), (7, 0.5, 3)])
def test_rem_visits_no_image_twice_in_a_batch(count, visits, size):
    settings = replace(minimise.REM_RECIPES["cpu"], visits=visits, batch_size=size)
    batches = list(minimise._visits(count, settings, torch.Generator().manual_seed(0)))
    assert sum(map(len, batches)) == round(visits * count)
    assert all(len(b.unique()) == len(b) <= size for b in batches)
    seen = torch.bincount(torch.cat(batches), minlength=count)
    assert seen.max() - seen.min() <= 1


# ---- TAP, HYPO, SEP ------------------------------------------------------------------------------------------------


def test_tap_makes_its_surrogate_see_the_next_class():
    clean = easy()
    settings = dict(training=QUICK, batch_size=32, steps=20, step=0.2, restarts=2)
    poisoned = make("tap", clean, eps=40 / 255, **settings)
    model = surrogate.fitted("resnet8", aim(clean), QUICK)
    labels = clean.targets["label"]
    assert metrics.accuracy(model, pixels.to_float(clean.images), labels) > 0.95
    assert metrics.accuracy(model, pixels.to_float(poisoned.images), (labels + 1) % 4) >= 0.95


def test_tap_keeps_the_best_of_its_restarts():
    clean, labels = easy(), easy().targets["label"]
    settings = dict(training=QUICK, batch_size=64, steps=3, step=0.3)
    model, means = surrogate.fitted("resnet8", aim(clean), QUICK), []
    for restarts in (1, 4):
        poisoned = make("tap", clean, restarts=restarts, **settings)
        means.append(losses(model, poisoned.images, (labels + 1) % 4))
    assert (means[1] <= 1.05 * means[0] + 0.1).all()  # rounding to 8 bits moves losses a little
    assert means[1].mean() < means[0].mean()


def test_hypo_lowers_the_surrogates_loss_of_the_true_class():
    clean = easy()
    poisoned = make("hypo", clean, training=QUICK, batch_size=32, steps=10)
    target = aim(clean)
    weak = targeted.defenses.adversarial(0.25 * EPS, steps=2, step=2.5 * 0.25 * EPS / 2)
    model = surrogate.fitted("resnet8", target, QUICK, defense=weak)
    before, after = (losses(model, images, clean.targets["label"]) for images in (clean.images, poisoned.images))
    assert (after <= before).float().mean() > 0.95 and after.mean() < 0.8 * before.mean()


def test_sep_deceives_checkpoints_of_every_age():
    clean, labels, kept = easy(), easy().targets["label"], {}
    poisoned = make("sep", clean, eps=40 / 255, training=QUICK, batch_size=64, steps=20, checkpoints=3)
    surrogate.fitted("resnet8", aim(clean), QUICK, on_epoch=lambda e, m: kept.update({e: copy.deepcopy(m)}))
    for epoch in (7, 13, 20):  # a third, two thirds, all of the training
        hits = [
            metrics.accuracy(kept[epoch], pixels.to_float(images), (labels + 2) % 4)
            for images in (clean.images, poisoned.images)
        ]
        assert hits[0] < 0.2 and hits[1] > 0.6


@pytest.mark.parametrize("classes, by", [(2, 1), (2, 2), (10, 5), (3, 1), (5, 5)])
def test_shifted_labels_are_never_the_own(classes, by):
    labels = torch.arange(classes)
    moved = targeted.shifted(labels, classes, by)
    assert (moved != labels).all() and sorted(moved.tolist()) == labels.tolist()
