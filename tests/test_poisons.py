"""One contract for every poison, and each method's own signature measured another way."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from ul import data, defenses, metrics, models, perturb, poisons, train
from ul.config import InputError
from ul.poisons import handcrafted, surrogate

ROOT = Path(__file__).resolve().parent.parent
EPS = 8 / 255
WITHOUT_SEED = {"ops"}
SHAPES = {
    "32x32, ten classes": (3, 32, [4] * 10),
    "28x28 gray, unbalanced": (1, 28, [25, 4, 1]),
    "16x16": (3, 16, [10, 10, 10]),
}


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


def make(name, split, *, eps=EPS, seed=0, recipe="cpu"):
    return poisons.make(name, split, eps=eps, seed=seed, device="cpu", recipe=recipe)


@pytest.fixture(scope="module")
def short_em():
    """EM with both of its recipes cut to a few steps, for as long as the context lasts."""

    @contextmanager
    def context():
        with pytest.MonkeyPatch.context() as patch:
            for name, recipe in list(surrogate.EM_RECIPES.items()):
                short = replace(recipe, batch_size=16, batches=2, steps=2, step=0.6, rounds=2)
                patch.setitem(surrogate.EM_RECIPES, name, short)
            yield

    return context


# ---- Contract of every poison --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=product(poisons.NAMES, SHAPES), ids=" ".join)
def case(request, short_em):
    """(method, clean split, its images before, poison of seed 0, again, of seed 1), made once."""
    name, shape = request.param
    clean = toy(*SHAPES[shape])
    before = clean.images.clone()
    with short_em():
        return name, clean, before, *(make(name, clean, seed=s) for s in (0, 0, 1))


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
    if name == "ops":
        assert ((delta != 0).any(1).sum((1, 2)) <= 1).all()
    elif name == "lsp":
        d = delta[0].size
        assert np.sqrt((delta**2).sum((1, 2, 3))).max() <= 6 * np.sqrt(d) + 0.5 * np.sqrt(d)
    else:
        assert np.abs(delta).max() <= 8


def test_same_seed_same_bytes(case):
    name, _, _, first, again, other = case
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.images, other.images) == (name in WITHOUT_SEED)


def test_leaves_the_global_random_numbers_alone(short_em):
    torch.manual_seed(7)
    np.random.seed(7)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(7)
    np.random.seed(7)
    with short_em():
        for name in poisons.NAMES:
            make(name, toy(3, 16, [4, 4]))
    assert (torch.rand(1), np.random.rand()) == expected


# ---- Signatures ----------------------------------------------------------------------------------------------------


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
    delta = handcrafted.lsp_patterns(clean.targets["label"], clean.images.shape[1:], seed=0)
    return perturb.scaled_to_l2(delta, handcrafted.lsp_length(EPS, delta[0].numel()))


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
    patterns = handcrafted.lsp_patterns(labels, (1, 28, 28), seed=0)
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
        found = handcrafted.ops_choice(images[labels == c], taken)
        assert found in free and free[found] == pytest.approx(max(free.values()))
        taken.append(found)


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
        found.append(handcrafted.ops_choice(images, found))
    assert len(set(found)) == 8 and {f[2] for f in found[:4]} == {(1,)}  # white is farther from 10 than black
    with pytest.raises(InputError, match="no pixel and colour is left"):
        handcrafted.ops_choice(images, found)


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
    x, y = perturb.to_float(clean.images[:40]), clean.targets["label"][:40]
    model = models.make("resnet8", channels=3, classes=4, size=16, seed=3).eval()
    moved = surrogate._minimise(model, x, torch.zeros_like(x), y, EPS, surrogate.EM_RECIPES["cpu"])
    with torch.no_grad():
        before, after = (torch.nn.functional.cross_entropy(model(z), y, reduction="none") for z in (x, x + moved))
    assert (after < before).all() and moved.abs().max() <= EPS + 1e-7
    assert all(p.requires_grad for p in model.parameters())


def test_em_published_recipe_runs(short_em):
    clean = toy(3, 16, [8, 8])
    assert surrogate.EM_RECIPES["published"].architecture == "resnet18"
    with short_em():
        published, reduced = (make("em", clean, recipe=r) for r in ("published", "cpu"))
    assert not torch.equal(published.images, reduced.images)


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
        ("nope", lambda s: s, "unknown method 'nope'; choose from em, lsp, noise, ops"),
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
        ("nope", {}, "unknown method 'nope'; choose from em, lsp, noise, ops"),
        ("noise", {"recipe": "nope"}, "unknown recipe 'nope'; choose from cpu, published"),
        ("noise", {"target": "nope"}, "unknown target of toy/train 'nope'; choose from depth, label"),
        ("noise", {"eps": -0.1}, "eps is -0.1"),
    ],
)
def test_make_refuses_unknown_names_before_work(name, options, message):
    with pytest.raises(InputError, match=message):
        poisons.make(name, toy(3, 16, [2, 2]), seed=0, device="cpu", **options)


# ---- Behaviour -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "data" / "mnist").exists(), reason="run `dvc pull data.dvc`")
def test_a_victim_of_lsp_loses_what_a_victim_of_noise_keeps():
    parts = {part: data.load("mnist", part, root=ROOT / "data", limit=800) for part in ("train", "test")}
    recipe, scores = train.Recipe(epochs=10, batch_size=64, lr=0.02, pad=2, flip=False), {}
    for name in ("noise", "lsp"):
        model = models.make("lenet5", channels=1, classes=10, size=28, seed=0)
        poisoned = make(name, parts["train"], eps=128 / 255)
        history = train.fit(
            model, poisoned, parts["test"], recipe=recipe, defense=defenses.make("none"), seed=0, device="cpu"
        )
        scores[name] = history.test_accuracy[-1]
    assert scores["noise"] > 0.7 and scores["lsp"] < scores["noise"] - 0.2
