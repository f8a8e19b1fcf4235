"""One contract for every defense, and what each does to images that make its effect plain."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from kornia import augmentation
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tests.test_poisons import make, toy
from ul import data
from ul.data import pixels
from ul.nets import classifiers
from ul.training import defenses, metrics, victim

CLASSES = 4


@pytest.fixture(params=[3, 1], ids=["colour", "gray"])
def split(request):
    return toy(request.param, 16, (8,) * CLASSES)


def network(channels=3, seed=0):
    return classifiers.make("lenet5", channels=channels, classes=CLASSES, size=16, seed=seed)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(name, images, labels, model=None, seed=0):
    return defenses.make(name).batch(model or network(images.shape[1]), images, labels, rng(seed))


def goal(labels):
    """What the loss compares outputs with."""
    return labels.shares(CLASSES) if isinstance(labels, defenses.Mixed) else labels


# ---- Contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", defenses.DEFENSES)
def test_prepare_keeps_shape_type_targets_and_input(name, split):
    before = split.images.clone()
    prepared = defenses.make(name).prepare(split)
    assert prepared.images.shape == split.images.shape and prepared.images.dtype == torch.uint8
    assert prepared.targets.keys() == split.targets.keys() and prepared.name == split.name
    assert torch.equal(split.images, before)
    assert torch.equal(defenses.make(name).prepare(split).images, prepared.images)


@pytest.mark.parametrize("name", defenses.DEFENSES)
def test_batch_is_seeded_stays_in_range_and_leaves_the_model_alone(name, split):
    images, labels = pixels.to_float(split.images), split.targets["label"]
    before, model = images.clone(), network(images.shape[1])
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (batch_of(name, images, labels, model, s) for s in (0, 0, 1))
    assert torch.rand(1) == expected, "the global random numbers were used"
    assert first[0].shape == images.shape and first[0].min() >= 0 and first[0].max() <= 1
    assert torch.equal(first[0], again[0]) and torch.equal(goal(first[1]), goal(again[1]))
    assert torch.equal(images, before) and not first[0].requires_grad
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    random = name in {"cutout", "cutmix", "mixup", "ueraser_lite", "ueraser", "ueraser_max", "at"}
    assert torch.equal(first[0], other[0]) != random


@pytest.mark.parametrize("name", defenses.DEFENSES)
def test_a_network_trains_with_it(name, split):
    history = victim.fit(
        network(split.images.shape[1]), split, split, recipe=victim.Recipe(epochs=2, batch_size=16),
        defense=defenses.make(name), seed=0, device="cpu",
    )  # fmt: skip
    assert np.isfinite(history.train_loss).all() and len(history.test_accuracy) == 2


@pytest.mark.parametrize("name", defenses.DEFENSES)
def test_what_is_prepared_once_is_not_prepared_again(name, split):
    defense = defenses.make(name)
    prepared, rest = defense.applied(split)
    assert prepared.digest() == defense.prepare(split).digest() and rest.prepare(prepared) is prepared
    assert replace(rest, prepare=defense.prepare) == defense


def test_unknown_defense_lists_them():
    with pytest.raises(ValueError, match="unknown defense 'nope'; choose from at, bdr, blur, cutmix"):
        defenses.make("nope")


# ---- Once, on the images -------------------------------------------------------------------------------------------


def test_jpeg_is_pillows_at_quality_ten(split):
    prepared = defenses.make("jpeg").prepare(split)
    for before, after in zip(split.images[:5], prepared.images[:5], strict=True):
        pixels = before.permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels if len(before) == 3 else pixels[:, :, 0]).save(buffer, format="jpeg", quality=10)
        expected = np.array(Image.open(buffer)).reshape(pixels.shape)
        assert np.array_equal(after.permute(1, 2, 0).numpy(), expected)


def test_gray_is_luminance():
    split = toy(3, 16, (8,) * CLASSES)
    gray = defenses.make("gray").prepare(split).images
    for before, after in zip(split.images[:5], gray[:5], strict=True):
        expected = np.array(Image.fromarray(before.permute(1, 2, 0).numpy()).convert("L")).astype(int)
        assert (after == after[:1]).all() and np.abs(after[0].numpy().astype(int) - expected).max() <= 1


def test_bdr_leaves_four_levels(split):
    found = defenses.make("bdr").prepare(split).images
    assert set(found.unique().tolist()) <= {0, 64, 128, 192}
    assert torch.equal(found, split.images // 64 * 64)


def test_blur_spreads_a_point_and_keeps_what_is_flat():
    split = toy(3, 16, (2, 2))
    split.images[0], split.images[1] = 0, 77
    split.images[0, :, 8, 8] = 255
    found = defenses.make("blur").prepare(split).images
    assert (found[1] == 77).all()
    assert 20 < found[0, 0, 8, 8] < 60 and found[0, 0, 8, 9] == found[0, 0, 7, 8] > 10
    assert abs(int(found[0, 0].sum()) - 255) < 15


def test_orthogonal_removes_a_linear_shortcut():
    """A shortcut of one direction a class: nothing of what a linear classifier reads is left, the rest stays."""
    clean = toy(3, 16, [60] * CLASSES, low=60, high=196)
    poisoned = make("noise_classwise", clean, eps=32 / 255)
    labels, prepared = clean.targets["label"], defenses.make("orthogonal").prepare(poisoned)
    before, after = (metrics.linear_separability(s.images.float(), labels, seed=0) for s in (poisoned, prepared))
    assert before > 0.95 and after < 0.6
    assert metrics.linear_separability(clean.images.float(), labels, seed=0) < 0.45
    assert (prepared.images.float() - poisoned.images.float()).abs().mean() < 40


def test_orthogonal_images_have_no_part_along_the_classifier():
    split = toy(3, 16, [40] * CLASSES, low=30, high=225)
    weights = defenses._linear_rows(split, 0)
    before, after = (
        ((pixels.to_float(s.images).flatten(1) - 0.5) @ weights.T).abs().amax() / weights.norm()
        for s in (split, defenses.make("orthogonal").prepare(split))
    )
    assert before > 0.2 and after < 0.01


# ---- On each batch -------------------------------------------------------------------------------------------------


def constant(levels, size=16):
    """Images of one level each: what a mixture took from whom can be read off the pixels."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, size, size).clone()


def test_cutout_blackens_a_square_of_half_the_side():
    images = torch.ones(400, 3, 16, 16)
    found, _ = batch_of("cutout", images, torch.zeros(400).long())
    hole = found == 0
    assert torch.equal(hole.any(1), hole.all(1))
    area = hole[:, 0].flatten(1).sum(1)
    assert area.max() == 64 and area.min() >= 16 and (area == 64).float().mean() > 0.2
    rows, columns = hole[:, 0].any(2), hole[:, 0].any(1)
    assert torch.equal(hole[:, 0], rows[:, :, None] & columns[:, None, :])


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_mixtures_share_labels_as_they_share_pixels(name):
    """Image i is the constant i/3 and of class i, so the mean of the pixels is the mean of the labels."""
    labels = torch.arange(CLASSES).repeat(8)
    found, mixed = batch_of(name, constant((labels / 3).tolist()), labels)
    shares = mixed.shares(CLASSES)
    assert shares.shape == (32, CLASSES) and torch.allclose(shares.sum(1), torch.ones(32))
    assert torch.allclose(found.mean((1, 2, 3)), shares @ (torch.arange(CLASSES) / 3), atol=1e-5)
    assert ((shares > 0.01).sum(1) == 2).float().mean() > 0.4
    if name == "cutmix":
        assert all(len(image.unique()) <= 2 for image in found)


class Aside(nn.Module):
    """A classifier whose last linear layer is not the one that tells the classes."""

    def __init__(self):
        super().__init__()
        self.fc, self.aside = nn.Linear(3 * 16 * 16, CLASSES), nn.Linear(3, 7)

    def forward(self, x):
        return self.fc(x.flatten(1)) + 0 * self.aside(x.mean((2, 3))).sum()


@pytest.mark.parametrize(("name", "kornia"), [("cutmix", "RandomCutMixV2"), ("mixup", "RandomMixUpV2")])
def test_shares_are_of_the_classes_that_the_network_tells(name, kornia):
    """The loss of mixed labels is that of float targets made from kornia's (label, other label, share of either)."""
    torch.manual_seed(0)
    images, labels, model = torch.rand(32, 3, 16, 16), torch.arange(32) % CLASSES, Aside()
    mixed, shared = batch_of(name, images, labels, model)
    options = {"use_correct_lambda": True} if name == "cutmix" else {}
    with defenses.seeded(rng()):
        _, told = getattr(augmentation, kornia)(data_keys=["input", "class"], **options)(images, labels)
    first, second, share = told.reshape(32, 3).unbind(1)
    share = share if name == "cutmix" else 1 - share
    ones = torch.eye(CLASSES)
    wanted = share[:, None] * ones[first.long()] + (1 - share[:, None]) * ones[second.long()]
    assert torch.equal(shared.shares(CLASSES), wanted)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss, hits = victim._backward(model, mixed, shared, optimizer)
    out = model(mixed)
    assert loss.item() == F.cross_entropy(out, wanted).item()
    assert hits == (out.argmax(1) == wanted.argmax(1)).sum()


def loss_of(model, images, labels):
    with torch.no_grad():
        return F.cross_entropy(model.eval()(images), labels, reduction="none")


def test_ueraser_max_takes_the_worst_of_five_draws_image_by_image():
    images, labels, model = torch.rand(12, 3, 16, 16), torch.arange(12) % CLASSES, network()
    worst, _ = batch_of("ueraser_max", images, labels, model)
    shared = rng()
    draws = torch.stack([loss_of(model, defenses.erased(model, images, labels, shared)[0], labels) for _ in range(5)])
    assert torch.allclose(loss_of(model, worst, labels), draws.amax(0), atol=1e-5)


def test_ueraser_is_the_worst_case_early_and_one_draw_later():
    early, late = (defenses.make("ueraser").at(progress) for progress in (0.0, 0.5))
    assert early is defenses.make("ueraser_max").batch and late is defenses.make("ueraser_lite").batch
    assert defenses.make("ueraser_max").at(0.99) is early and defenses.make("none").at(0.99) is defenses.as_is


def test_adversarial_images_raise_the_loss_within_the_radius():
    images, labels, model = torch.rand(16, 3, 16, 16), torch.arange(16) % CLASSES, network()
    model.train()
    found, _ = batch_of("at", images, labels, model)
    assert (found - images).abs().max() <= 8 / 255 + 1e-6
    assert (loss_of(model, found, labels) > loss_of(model, images, labels)).all()


def test_no_augmentation_is_without_crop_and_flip():
    split = replace(toy(3, 16, (8,) * CLASSES), name="toy/train")
    seen = {}
    for name in ("none", "no_augmentation"):
        defense = defenses.make(name)

        def keep(model, images, targets, rng, name=name):
            seen[name] = torch.cat([seen.get(name, images[:0]), images])
            return images, targets

        recipe = victim.Recipe(epochs=1, batch_size=8)
        victim.fit(network(), split, None, recipe=recipe, defense=replace(defense, batch=keep), seed=0, device="cpu")
    known = {image.numpy().tobytes() for image in pixels.to_float(split.images)}
    kept = {name: sum(image.numpy().tobytes() in known for image in images) for name, images in seen.items()}
    assert kept["no_augmentation"] == 32 and kept["none"] < 8


def test_the_default_target_is_the_data_sets():
    assert data.default_target(toy(3, 16, (2, 2))) == "label"
    assert data.default_target(replace(toy(3, 16, (2, 2)), name="rooms/train")) == "class_object"
