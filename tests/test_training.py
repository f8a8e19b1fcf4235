"""Training, augmentation, networks and defenses against brute force and counts by hand."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator, nn
from torch.nn import functional as F

from tests.imports import ROOT
from ul import data
from ul.base.errors import InputError
from ul.data import pixels
from ul.nets import classifiers
from ul.training import defenses, metrics, victim


def toy(n=64, channels=1, size=16, classes=4, seed=0):
    rng = Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, channels, size, size), generator=rng).to(torch.uint8)
    return data.Split(images, {"label": torch.arange(n) % classes}, "toy/train")


def run(split, *, name="resnet8", defense="none", seed=0, on_epoch=None, **recipe):
    classes = int(split.targets["label"].max()) + 1
    _, channels, _, size = split.images.shape
    model = classifiers.make(name, channels=channels, classes=classes, size=size, seed=0)
    settings = victim.Recipe(**{"epochs": 2, "batch_size": 16, "pad": 2} | recipe)
    history = victim.fit(
        model, split, split, recipe=settings, defense=defenses.make(defense), seed=seed, device="cpu", on_epoch=on_epoch
    )
    return model, history


def weights(model):
    return torch.cat([v.double().flatten() for v in model.state_dict().values()])


# ---- Augmentation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad, height, width", [(4, 8, 8), (1, 5, 9), (0, 6, 6)])
def test_augment_is_a_crop_and_a_flip_of_each_image(pad, height, width, flip):
    images = torch.randint(1, 256, (40, 3, height, width)).to(torch.uint8)
    found = victim.augment(images, pad=pad, flip=flip, rng=Generator().manual_seed(5)).numpy()
    rng = Generator().manual_seed(5)
    top, left = (torch.randint(0, 2 * pad + 1, (40,), generator=rng).tolist() for _ in range(2))
    mirrored = (torch.rand(40, generator=rng) < 0.5).tolist() if flip else [False] * 40
    for i, image in enumerate(images.numpy()):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        crop = padded[:, top[i] : top[i] + height, left[i] : left[i] + width]
        assert (found[i] == (crop[:, :, ::-1] if mirrored[i] else crop)).all()
    assert not flip or 8 < sum(mirrored) < 32


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [False, True])
def test_an_epochs_draws_shipped_together_are_those_drawn_batch_by_batch(flip, crop):
    def drawn():
        return victim.draws(23, 5, pad=2, flip=flip, crop=crop, rng=Generator().manual_seed(3))

    one, other = [*drawn()], victim.shipped(drawn(), torch.device("cpu"))
    assert [len(index) for index, _ in one] == [5, 5, 5, 5, 3] and len(other) == 5
    assert torch.equal(torch.cat([index for index, _ in one]).sort().values, torch.arange(23))
    for (a, before), (b, after) in zip(one, other, strict=True):
        assert torch.equal(a, b) and (before is None) == (after is None) == (not crop)
        if before is not None:
            assert before.pad == after.pad == 2 and torch.equal(before.top, after.top)
            assert torch.equal(before.left, after.left) and (before.mirrored is None) == (not flip)
            assert not flip or torch.equal(before.mirrored, after.mirrored)


def test_every_shift_and_both_directions_occur():
    marked = torch.zeros(600, 1, 7, 7, dtype=torch.uint8)
    marked[:, :, 3, 3] = 255
    moved = victim.augment(marked, pad=1, flip=True, rng=Generator().manual_seed(0))
    places, counts = moved[:, 0].nonzero()[:, 1:].unique(dim=0, return_counts=True)
    assert places.tolist() == [[r, c] for r in (2, 3, 4) for c in (2, 3, 4)] and counts.min() > 35


# ---- Training ------------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_other_seed_other_bytes():
    (first, a), (again, b), (other, _) = (run(toy(), seed=s) for s in (0, 0, 1))
    assert torch.equal(weights(first), weights(again)) and a == b
    assert not torch.equal(weights(first), weights(other))


def test_training_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, _ = run(toy(32), epochs=1)
    assert torch.rand(1) == expected
    assert torch.equal(weights(first), weights(run(toy(32), epochs=1)[0]))


def test_overfits_64_images_of_noise():
    model, history = run(toy(), defense="no_augmentation", epochs=15, lr=0.05, weight_decay=0)
    split = toy()
    assert metrics.accuracy(model, pixels.to_float(split.images), split.targets["label"]) == 1
    assert history.test_accuracy[-1] == 1 and history.train_loss[-1] < 0.2 < 1 < history.train_loss[0]
    assert model.training and {len(v) for v in history.as_dict().values()} == {15}


def test_one_plain_step_by_hand():
    """One batch, no momentum or decay: w - lr * gradient of the mean cross-entropy."""
    split, settings = toy(12), {"epochs": 1, "batch_size": 12, "lr": 0.3, "momentum": 0.0, "weight_decay": 0.0}
    model = classifiers.make("linear", channels=1, classes=4, size=16, seed=0)
    x = (pixels.to_float(split.images).flatten(1) - 0.5) * 4
    w, b = model.fc.weight.detach().clone(), model.fc.bias.detach().clone()
    error = torch.softmax(x @ w.T + b, 1) - torch.eye(4)[split.targets["label"]]
    rate = 0.05 * 0.3  # the warm-up starts at a twentieth
    optimizer, schedule = victim._optimizer(model, victim.Recipe(**settings | {"momentum": 0.9}), steps=1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    loss, accuracy = victim._epoch(
        model, split.images, split.targets["label"], victim.Recipe(**settings), False, defenses.make("none").batch,
        torch.optim.SGD(model.parameters(), rate), schedule, Generator().manual_seed(0),
    )  # fmt: skip
    torch.testing.assert_close(model.fc.weight.detach(), w - rate * error.T @ x / 12, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.fc.bias.detach(), b - rate * error.mean(0), atol=1e-6, rtol=1e-5)
    picked = torch.log_softmax(x @ w.T + b, 1)[torch.arange(12), split.targets["label"]]
    assert loss == pytest.approx(-picked.mean().item(), rel=1e-5)
    assert accuracy == pytest.approx(((x @ w.T + b).argmax(1) == split.targets["label"]).float().mean().item())


def test_learning_rate_rises_then_falls_to_zero():
    optimizer, schedule = victim._optimizer(nn.Linear(2, 2), victim.Recipe(lr=0.4, warmup=0.2), steps=50)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.02) and rates[10] == pytest.approx(0.4) and max(rates) == rates[10]
    cosine = [0.2 * (1 + np.cos(np.pi * k / 40)) for k in range(40)]
    assert rates[10:] == pytest.approx(cosine, abs=1e-6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)


def test_on_epoch_sees_the_trained_model_once_an_epoch():
    seen = []
    _, history = run(toy(), name="linear", epochs=3, on_epoch=lambda epoch, model: seen.append((epoch, weights(model))))
    assert [e for e, _ in seen] == [1, 2, 3] and not torch.equal(seen[0][1], seen[1][1])
    assert len(history.test_accuracy) == 3


def test_a_loss_that_is_not_finite_names_the_lr():
    with pytest.raises(InputError, match=r"toy/train: loss is (nan|inf) in epoch \d+; lower lr \(now 1e\+20\)"):
        run(toy(), lr=1e20, warmup=0.0)


# ---- Networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", classifiers.CLASSIFIERS)
@pytest.mark.parametrize("channels, size", [(3, 32), (1, 28), (3, 16)])
def test_every_network_gives_one_number_a_class(name, channels, size):
    model = classifiers.make(name, channels=channels, classes=7, size=size, seed=0).eval()
    images = torch.rand((2, channels, size, size), generator=Generator().manual_seed(0))
    with torch.no_grad():
        out = model(images)
        alone = model(images[1:])
    assert out.shape == (2, 7) and torch.isfinite(out).all()
    torch.testing.assert_close(out[1:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name, channels, size, count",
    [
        ("linear", 3, 32, 3072 * 10 + 10),
        ("linear", 1, 28, 784 * 10 + 10),
        ("lenet5", 3, 32, 456 + 2416 + 48120 + 10164 + 850),
        ("lenet5", 1, 28, 61_706),  # as in LeCun et al. 1998 with full C3
        ("resnet18", 3, 32, 11_173_962),
    ],
)
def test_parameters_are_as_many_as_published(name, channels, size, count):
    model = classifiers.make(name, channels=channels, classes=10, size=size, seed=0)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name, count", [("linear", 1), ("lenet5", 5), ("resnet8", 10), ("resnet18", 21)])
def test_probed_layers_are_as_many_as_the_paper_counts(name, count):
    model = classifiers.make(name, channels=3, classes=10, size=32, seed=0)
    names = classifiers.probed_layers(model)
    assert len(names) == count
    assert all(isinstance(model.get_submodule(n), nn.Conv2d | nn.Linear) for n in names)


@pytest.mark.parametrize("name", ["linear", "lenet5", "resnet8"])
def test_initial_weights_depend_on_the_seed_alone(name):
    def make(seed):
        return weights(classifiers.make(name, channels=3, classes=4, size=16, seed=seed))

    torch.manual_seed(3)
    before, first = torch.get_rng_state(), make(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(make(0), first) and not torch.equal(make(1), first)


def test_networks_that_cannot_be_made_are_refused():
    with pytest.raises(InputError, match="unknown architecture 'nope'; choose from lenet5, linear, resnet18, resnet50"):
        classifiers.make("nope", channels=3, classes=2, size=32, seed=0)
    with pytest.raises(InputError, match="15 pixels are too small"):
        classifiers.make("linear", channels=3, classes=2, size=15, seed=0)


# ---- Defenses and metrics ------------------------------------------------------------------------------------------


def test_unknown_defense_lists_the_choices():
    with pytest.raises(InputError, match=r"unknown defense 'nope'; choose from at, bdr, .*, no_augmentation, none, "):
        defenses.make("nope")


class Recorder(nn.Module):
    """A linear network that keeps the images it was trained on."""

    def __init__(self):
        super().__init__()
        self.fc, self.seen = nn.Linear(256, 4), []

    def forward(self, x):
        if self.training:
            self.seen.append(x.detach().clone())
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("defense, unchanged", [("none", False), ("no_augmentation", True)])
def test_only_no_augmentation_shows_the_images_as_they_are(defense, unchanged):
    split, model = toy(32), Recorder()
    victim.fit(
        model, split, split, recipe=victim.Recipe(epochs=1, batch_size=8), defense=defenses.make(defense), seed=0,
        device="cpu",
    )  # fmt: skip
    seen = torch.cat(model.seen)
    known = {i.numpy().tobytes() for i in pixels.to_float(split.images)}
    shown = {i.contiguous().numpy().tobytes() for i in seen}
    assert len(seen) == 32 and (known == shown) == unchanged
    assert unchanged or len(known & shown) < 4


def test_accuracy_by_hand_and_mode_kept(monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9)).train()
    images = torch.eye(4).view(4, 4, 1, 1)
    assert metrics.accuracy(model, images, torch.tensor([0, 1, 2, 0])) == 0.75
    assert model.training
    monkeypatch.setattr(metrics, "block_size", lambda images: 3)
    assert metrics.logits(model, images).tolist() == torch.eye(4).tolist()


def test_without_test_images_only_training_is_recorded():
    split = toy()
    model = classifiers.make("linear", channels=split.images.shape[1], classes=4, size=split.images.shape[-1], seed=0)
    history = victim.fit(
        model, split, None, recipe=victim.Recipe(epochs=2), defense=defenses.make("none"), seed=0, device="cpu"
    )
    assert len(history.train_accuracy) == 2 and history.test_accuracy == []


def test_shares_of_classes_are_learnt_and_scored_by_the_larger():
    """Labels given as shares, all of them the first image's, train to the same weights as plain labels."""
    split, found = toy(), {}
    for name in ("plain", "shares"):

        def batch(model, images, targets, rng, name=name):
            mixed = defenses.Mixed(targets, targets.roll(1), torch.ones(len(targets)))
            return images, targets if name == "plain" else mixed

        model = classifiers.make(
            "linear", channels=split.images.shape[1], classes=4, size=split.images.shape[-1], seed=0
        )
        defense = replace(defenses.make("none"), batch=batch)
        recipe = victim.Recipe(epochs=2, lr=0.01)
        history = victim.fit(model, split, split, recipe=recipe, defense=defense, seed=0, device="cpu")
        found[name] = (model.fc.weight.detach().clone(), history.train_accuracy)
    assert torch.allclose(found["plain"][0], found["shares"][0], atol=1e-6)
    assert found["plain"][1] == found["shares"][1]


def test_a_defense_changes_at_its_share_of_the_training():
    seen = []
    early, late = (lambda *a, word=word: seen.append(word) or a[1:3] for word in ("early", "late"))
    split = toy()
    model = classifiers.make("linear", channels=split.images.shape[1], classes=4, size=split.images.shape[-1], seed=0)
    defense = replace(defenses.make("none"), batch=early, until=0.5, later=late)
    recipe = victim.Recipe(epochs=4, batch_size=len(split))
    victim.fit(model, split, None, recipe=recipe, defense=defense, seed=0, device="cpu")
    assert seen == ["early", "early", "late", "late"]


@pytest.mark.parametrize("name", ["resnet8", "senet8", "resnet18", "resnet50", "senet18"])
def test_no_convolution_of_one_pixel_has_a_stride(name):
    """Its gradient would write past a buffer on CPUs (oneDNN issue 6035); what stands for it computes the same."""
    model = classifiers.make(name, channels=3, classes=10, size=32, seed=0)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.stride == (1, 1) for m in convolutions if m.kernel_size == (1, 1))


@pytest.mark.parametrize("side", [7, 8])
def test_a_projection_is_a_strided_convolution(side):
    found, x = classifiers.projection(3, 5, 2).eval(), torch.rand(2, 3, side, side)
    wanted = F.conv2d(x, found[1].weight, stride=2) / (1 + found[2].eps) ** 0.5
    torch.testing.assert_close(found(x), wanted)


@pytest.mark.parametrize("size", [28, 48, 64])
def test_larger_images_train(size):
    """In a process of its own: a write past a buffer ends it."""
    code = (
        "import torch; from torch.nn import functional as F; from ul.nets import classifiers\n"
        "nhwc = torch.channels_last\n"
        f"m = classifiers.make('resnet8', channels=3, classes=10, size={size}, seed=0).to(memory_format=nhwc)\n"
        f"x = torch.rand(8, 3, {size}, {size}).contiguous(memory_format=nhwc)\n"
        "for _ in range(3): F.cross_entropy(m(x), torch.arange(8)).backward()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
