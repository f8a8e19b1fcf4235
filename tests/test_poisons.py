"""One contract for every poison, and each method's own signature measured another way."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from tests.imports import ROOT
from ul import data, poisons
from ul.base import names
from ul.base.errors import InputError
from ul.nets import classifiers
from ul.poisons import making
from ul.training import defenses, victim

EPS = 8 / 255
WITHOUT_SEED = {name for name, method in poisons.METHODS.items() if not method.random}
SHAPES = {
    "32x32, ten classes": (3, 32, [4] * 10),
    "28x28 gray, unbalanced": (1, 28, [25, 4, 1]),
    "16x16": (3, 16, [10, 10, 10]),
}


TINY = victim.Recipe(epochs=2, batch_size=16)
SHORT = {  # settings that take a moment; the arithmetic is that of the whole recipe
    "em": dict(batch_size=16, batches=2, steps=2, step=0.6, rounds=2),
    "em_ops": dict(batch_size=16, batches=2, steps=2, step=0.6, rounds=2),
    "em_classwise": dict(batch_size=16, batches=2, steps=1, step=0.6, rounds=2),
    "rem": dict(batch_size=16, visits=1.5, steps=1, step=0.6, transforms=2, inner_steps=1),
    "tap": dict(training=TINY, batch_size=16, steps=2, step=0.6, restarts=2),
    "hypo": dict(training=TINY, batch_size=16, steps=2, step=0.6, radius_steps=1),
    "sep": dict(training=TINY, batch_size=16, steps=2, step=0.6, checkpoints=2),
    "tue": dict(batch_size=16, epochs=2, batches=2, steps=2),
    "dc": dict(batch_size=16, trials=2, epochs=1, widths=(8, 8)),
    "ntga": dict(block=16, held=16, steps=2, step=0.6),
    "mtue": dict(batch_size=16, batches=2, steps=2, step=0.6, rounds=2),
}


def short(name, split, **options):
    """The poison by the `cpu` recipe cut to SHORT."""
    return make(name, split, **SHORT.get(name, {}) | options)


def toy(channels=3, size=32, counts=(4,) * 10, *, low=0, high=256, seed=0):
    """Images of random pixels that say nothing of the class, labels shuffled."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    images = torch.randint(low, high, (len(labels), channels, size, size), generator=rng).to(torch.uint8)
    return data.Split(
        images, {"label": labels, "depth": torch.rand((len(labels), 1, 2, 2), generator=rng)}, "toy/train"
    )


def delta_of(poisoned, clean):
    """What the poison added, float[n,c,h,w] in levels of 0..255."""
    return poisoned.images.double() - clean.images.double()


def make(name, split, *, eps=EPS, seed=0, recipe="cpu", **options):
    return poisons.make(name, split, eps=eps, seed=seed, device="cpu", recipe=recipe, **options)


# ---- Contract of every poison --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=product(poisons.METHODS, SHAPES), ids=" ".join)
def case(request):
    """(method, clean split, its images before, poison of seed 0, again, of seed 1), made once."""
    name, shape = request.param
    clean = toy(*SHAPES[shape])
    before = clean.images.clone()
    return name, clean, before, *(short(name, clean, seed=s) for s in (0, 0, 1))


def test_keeps_size_type_order_targets_and_input(case):
    _, clean, before, poisoned, *_ = case
    assert poisoned.images.shape == clean.images.shape and poisoned.images.dtype == torch.uint8
    assert poisoned.name == clean.name and poisoned.targets.keys() == clean.targets.keys()
    assert all(torch.equal(poisoned.targets[k], clean.targets[k]) for k in clean.targets)
    assert torch.equal(clean.images, before), "the clean images were written to"
    assert not torch.equal(poisoned.images, clean.images)


def test_stays_within_the_budget_in_whole_levels(case):
    name, clean, _, poisoned, *_ = case
    poisons.check(clean, poisoned, name, EPS)
    delta = delta_of(poisoned, clean).numpy()
    d, length, changed = delta[0].size, np.sqrt((delta**2).sum((1, 2, 3))), np.abs(delta).max(1) > 8
    kept = {
        "ops": lambda: (delta != 0).any(1).sum((1, 2)).max() <= 1,
        "lsp": lambda: length.max() <= 6.5 * np.sqrt(d),
        "ar": lambda: length.max() <= (255 / np.sqrt(3072) + 0.5) * np.sqrt(d),
        "em_ops": lambda: changed.sum((1, 2)).max() <= 1,
        "cuda": lambda: True,
    }.get(name, lambda: not changed.any())
    assert kept()


def test_same_seed_same_bytes(case):
    name, _, _, first, again, other = case
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.images, other.images) == (name in WITHOUT_SEED)


@pytest.mark.parametrize("name", poisons.METHODS)
def test_leaves_the_global_random_numbers_alone(name):
    torch.manual_seed(7)
    np.random.seed(7)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(7)
    np.random.seed(7)
    short(name, toy(3, 16, [4, 4]))
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize("name", poisons.METHODS)
def test_the_docstring_cites_and_every_recipe_is_complete(name):
    method, text = poisons.METHODS[name], making.maker(name).__doc__
    assert name.startswith("noise") or "et al." in text or "and" in text.split("(")[1]
    assert set(poisons.recipes(name)) == set(names.RECIPES)
    assert method.recipes is None or "`cpu`" in text or "see `em`" in text


@pytest.mark.parametrize("name", poisons.METHODS)
def test_black_images_give_a_defined_result(name):
    clean = toy(3, 16, [6, 6])
    black = replace(clean, images=torch.zeros_like(clean.images))
    poisoned = short(name, black)
    assert poisoned.images.dtype == torch.uint8
    unchanged = {"cuda", "ntga"}  # a blurred black image is black; a dense kernel has no slope at zero
    assert (name in unchanged) == torch.equal(poisoned.images, black.images)


@pytest.mark.parametrize("name", poisons.METHODS)
def test_classes_without_images_do_not_matter(name):
    clean = toy(3, 16, [6, 6])
    gaps = replace(clean, targets=clean.targets | {"label": 3 * clean.targets["label"] + 1})
    assert torch.equal(short(name, gaps).images, short(name, clean).images)


@pytest.mark.parametrize("name", poisons.METHODS)
def test_one_class_is_refused_where_a_second_is_needed(name):
    one = toy(3, 16, [6])
    if poisons.METHODS[name].classes > 1:
        with pytest.raises(InputError, match=f"{name} needs images of at least 2 classes; toy/train has one"):
            short(name, one)
    else:
        assert short(name, one).images.shape == one.images.shape


# ---- Refusals ------------------------------------------------------------------------------------------------------


def shifted(split, levels):
    return replace(split, images=(split.images.int() + levels).to(torch.uint8))


@pytest.mark.parametrize(
    "name, spoil, message",
    [
        ("noise", lambda s: replace(s, images=s.images[1:]), r"noise: images are torch.uint8 \(8, 3, 16, 16\)"),
        ("noise", lambda s: replace(s, images=s.images.float()), r"noise: images are torch.float32"),
        ("noise", lambda s: replace(s, targets=s.targets | {"label": 1 - s.targets["label"]}), "target label differs"),
        ("noise", lambda s: replace(s, targets={"label": s.targets["label"]}), "target depth differs"),
        ("noise", lambda s: s.take(torch.arange(9).flip(0)), "differs from the clean set's; keep order"),
        ("noise", lambda s: shifted(s, 9), r"linf size is 0\.03529, the budget is 0\.033"),
        ("em", lambda s: shifted(s, -9), "em: linf size"),
        ("lsp", lambda s: shifted(s, 7), "lsp: l2 size is"),
        ("ops", lambda s: shifted(s, 1), "ops: l0 size is 256, the budget is 1"),
        (
            "nope",
            lambda s: s,
            "unknown method 'nope'; choose from ar, cuda, dc, em, em_classwise, em_ops, hypo, lsp, mtue, noise",
        ),
    ],
)
def test_check_refuses(name, spoil, message):
    clean = toy(3, 16, [5, 4], low=20, high=230)
    with pytest.raises(InputError, match=message):
        poisons.check(clean, spoil(clean), name, EPS)


@pytest.mark.parametrize("name, levels", [("noise", 8), ("em", -8), ("lsp", 6), ("ops", 0)])
def test_check_accepts_the_whole_budget(name, levels):
    clean = toy(3, 16, [5, 4], low=20, high=230)
    poisons.check(clean, shifted(clean, levels), name, EPS)


@pytest.mark.parametrize(
    "name, options, message",
    [
        (
            "nope",
            {},
            "unknown method 'nope'; choose from ar, cuda, dc, em, em_classwise, em_ops, hypo, lsp, mtue, noise",
        ),
        ("noise", {"recipe": "nope"}, "unknown recipe 'nope'; choose from cpu, published"),
        ("noise", {"target": "nope"}, "unknown image-level target of toy/train 'nope'; choose from label"),
        ("noise", {"eps": -0.1}, "eps is -0.1; it must be above 0"),
        ("ops", {"eps": 0}, "eps is 0; it must be above 0"),
        ("em", {"eps": 8}, "eps is 8; it is a share of the range .* for 8 levels give 8/255"),
        ("em", {"eps": 300}, "eps is 300; it must be above 0 and at most 1"),
        ("em", {"nope": 1}, "unknown setting of em 'nope'; choose from architecture, batch_size"),
        ("lsp", {"steps": 1}, "unknown setting of lsp 'steps'"),
        ("em", {"eps": "8"}, "for 8 levels give 8/255"),
        ("em", {"eps": "eight"}, "eps is 'eight'; give a number or a fraction such as 8/255"),
        ("em", {"seed": -1}, "seed is -1; it must be at least 0"),
        ("em", {"batch_size": 0}, "batch_size of em is 0; it must be at least 1"),
        ("sep", {"checkpoints": 99, "recipe": "cpu"}, "sep: 99 checkpoints of 20 epochs; take fewer"),
        ("ntga", {"kernel": "x"}, "unknown kernel of ntga 'x'; choose from cnn, fnn"),
        ("dc", {"widths": (6,)}, r"widths of dc are \(6,\); each must be a multiple of 4"),
    ],
)
def test_make_refuses_unknown_names_before_work(name, options, message):
    with pytest.raises(InputError, match=message):
        poisons.make(name, toy(3, 16, [2, 2]), **{"seed": 0, "device": "cpu"} | options)


def test_strength_may_be_a_fraction_in_words():
    assert poisons.strength("8/255") == 8 / 255 and poisons.strength("0.1") == 0.1
    clean = toy(3, 16, [4, 4])
    assert torch.equal(make("noise", clean, eps="8/255").images, make("noise", clean).images)


# ---- Behaviour -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "data" / "mnist").exists(), reason="run `dvc pull data.dvc`")
def test_a_victim_of_lsp_loses_what_a_victim_of_noise_keeps():
    parts = {part: data.load("mnist", part, root=ROOT / "data", limit=800) for part in ("train", "test")}
    recipe, scores = victim.Recipe(epochs=10, batch_size=64, lr=0.02, pad=2, flip=False), {}
    for name in ("noise", "lsp"):
        model = classifiers.make("lenet5", channels=1, classes=10, size=28, seed=0)
        poisoned = make(name, parts["train"], eps=128 / 255)
        history = victim.fit(
            model, poisoned, parts["test"], recipe=recipe, defense=defenses.make("none"), seed=0, device="cpu"
        )
        scores[name] = history.test_accuracy[-1]
    assert scores["noise"] > 0.7 and scores["lsp"] < scores["noise"] - 0.2
