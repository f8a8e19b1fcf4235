"""Tasks: derived labels against Taskonomy's own files, losses and metrics with known values, packing and refusals."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.conftest import one_hot, plant, planted_rooms, view_arrays
from ul import data
from ul.base import names
from ul.base.errors import InputError
from ul.data import mnist, sources
from ul.tasks import definitions, derived_labels, labels

VIEW = 8  # pixels of planted views


def correlation(a, b):
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


# ---- derived labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["edge_texture", "keypoints2d"])
def test_derived_labels_are_those_that_taskonomy_ships(shared_data, tmp_path, name):
    (tmp_path / "taskonomy").symlink_to((shared_data / "taskonomy-sample").resolve())
    split = data.load("taskonomy", "all", root=tmp_path, targets=(name,))
    ours = derived_labels.label(name, split.images, {})
    for own, shipped in zip(ours.numpy(), split.targets[name].numpy(), strict=True):
        assert correlation(own, shipped) >= 0.99
        assert (own * shipped).sum() / (shipped**2).sum() == pytest.approx(1, abs=0.01)


def test_shading_is_what_taskonomy_ships(shared_data, tmp_path):
    (tmp_path / "taskonomy").symlink_to((shared_data / "taskonomy-sample").resolve())
    split = data.load("taskonomy", "all", root=tmp_path, targets=("reshading", "depth_euclidean", "normal"))
    seen = split.targets["mask_valid"]
    ours = derived_labels.label("reshading", split.images, split.targets)
    for own, shipped, valid in zip(ours, split.targets["reshading"], seen, strict=True):
        assert correlation(own[valid], shipped[valid]) > 0.95  # the field of view is taken as 60 degrees


def test_edges_of_a_step_are_where_it_is():
    image = np.zeros((3, 512, 512), np.uint8)
    image[:, :, 200:] = 255
    found = derived_labels.edges(image)[0]
    assert abs(int(found[256].argmax()) - 200) <= 1
    assert found[:, :150].max() < 1e-6 and found[5:-5, 250:-20].max() < 1e-6


def test_keypoints_are_strongest_on_a_blob():
    y, x = np.mgrid[:64, :64]
    image = (255 * np.exp(-((x - 20) ** 2 + (y - 40) ** 2) / 18)).astype(np.uint8)[None]
    found = derived_labels.keypoints(image)[0]
    assert found.min() >= 0 and np.unravel_index(found.argmax(), found.shape) == pytest.approx((40, 20), abs=1)


def test_regions_of_two_flat_halves():
    image = np.zeros((3, 64, 64), np.uint8)
    image[:, :, 32:] = 200
    ids = derived_labels.regions(image)[0]
    left, right = ids[:, :29], ids[:, 35:]
    assert len(np.unique(left)) == len(np.unique(right)) == 1 and left[0, 0] != right[0, 0]


def test_boundaries_are_left_of_and_above_a_change():
    ids = np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]])
    assert derived_labels.boundaries(ids).tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]


def test_shading_of_a_wall_ahead():
    """Straight ahead a wall four metres off faces the camera; the edge is turned away; without depth it is dark."""
    depth, normal = np.full((1, 63, 63), 4.0), np.zeros((3, 63, 63))
    normal[2], depth[0, 0, 0] = -1, 0
    found = derived_labels.shading(depth, normal)
    assert found[0, 31, 31] == pytest.approx(1.6 * 8 / 24, abs=1e-6) and found[0, 0, 0] == 0
    assert found[0, 31, 0] < 0.95 * found[0, 31, 31]


# ---- the table ---------------------------------------------------------------------------------------------------


def made(name, n=6, side=4, seed=0, holes=0.33):
    """Random packed labels, a third of the pixels invalid, and outputs that match them perfectly.

    Class 0 comes more often than class 2.
    """
    rng, task = torch.Generator().manual_seed(seed), definitions.TASKS[name]
    if not task.dense:
        y = torch.tensor([0, 0, 0, 1, 1, 2])[torch.arange(n) % 6]
        return y, F.one_hot(y, 3).float() * 50
    valid = (torch.rand((n, 1, side, side), generator=rng) >= holes).float()
    if task.loss is definitions._pixel_classes:
        ids = torch.randint(0, 3, (n, 1, side, side), generator=rng)
        return torch.cat([ids, valid], 1).float(), F.one_hot(ids[:, 0], definitions.IDS).permute(
            0, 3, 1, 2
        ).float() * 50
    if task.loss is definitions._pixel_yes:
        yes = (torch.rand((n, 1, side, side), generator=rng) > 0.6).float()
        return torch.cat([yes * valid, valid], 1), (yes - 0.5) * 100
    values = torch.randn((n, task.outputs, side, side), generator=rng)
    values = F.normalize(values, dim=1) if name == "normal" else values
    return torch.cat([values * valid, valid], 1), values


@pytest.mark.parametrize("name", definitions.TASKS)
def test_a_perfect_answer_has_no_loss_and_the_best_score(name):
    task, (y, out) = definitions.TASKS[name], made(name)
    assert task.loss(out, y).item() == pytest.approx(0, abs=1e-4)
    assert task.score(out, y) == pytest.approx(1 if names.TASKS[name].higher else 0, abs=0.05)


@pytest.mark.parametrize("name", definitions.TASKS)
def test_invalid_pixels_do_not_count(name):
    task, (y, out) = definitions.TASKS[name], made(name)
    if not task.dense:
        pytest.skip("classes have no pixels")
    wild = torch.where(y[:, -1:] > 0, out, torch.full_like(out, 9.0))
    assert task.loss(wild, y).item() == pytest.approx(task.loss(out, y).item(), abs=1e-5)
    assert task.score(wild, y) == pytest.approx(task.score(out, y), abs=1e-4)


@pytest.mark.parametrize("name", definitions.TASKS)
def test_no_other_constant_is_better(name):
    """The constant predictor's loss against small moves in every output channel."""
    task, (y, _) = definitions.TASKS[name], made(name, n=30, holes=0)
    best = task.constant(y)

    def loss(constant):
        return task.loss(constant.expand(len(y), *constant.shape[1:2], *y.shape[2:]), y).item()

    for channel in range(best.shape[1]):
        for move in (-0.2, 0.2):
            other = best.clone()
            other[:, channel] += move
            assert loss(other) >= loss(best) - 1e-4
    assert math.isfinite(loss(best))


def test_losses_are_means_over_images():
    for name in definitions.TASKS:
        task, (y, _) = definitions.TASKS[name], made(name)
        shape = (len(y), 3) if not task.dense else (len(y), task.outputs, *y.shape[2:])
        out = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        each = [task.loss(out[i : i + 1], y[i : i + 1]).item() for i in range(len(y))]
        assert task.loss(out, y).item() == pytest.approx(np.mean(each), rel=1e-5), name


def test_known_metric_values():
    depth = torch.cat([torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)], 1)  # log of one metre
    assert definitions.TASKS["depth_euclidean"].score(torch.full((1, 1, 2, 2), math.log(3.0)), depth) == pytest.approx(
        2
    )
    ahead, right = torch.tensor([0.0, 0, 1]).view(1, 3, 1, 1), torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    labels_ = torch.cat([ahead, torch.ones(1, 1, 1, 1)], 1)
    assert definitions.TASKS["normal"].score(right, labels_) == pytest.approx(90)
    ids = torch.tensor([0.0, 0, 1, 1]).view(1, 1, 2, 2)
    guess = F.one_hot(torch.tensor([[0, 1], [1, 1]]), definitions.IDS).permute(2, 0, 1)[None].float()
    both = torch.cat([ids, torch.ones_like(ids)], 1)
    assert definitions.TASKS["segment_semantic"].score(guess, both) == pytest.approx((1 / 2 + 2 / 3) / 2)


# ---- labels of a data set ----------------------------------------------------------------------------------------


@pytest.fixture
def rooms(tmp_path):
    planted_rooms(tmp_path)
    return tmp_path


def test_every_task_of_rooms(rooms):
    chosen = [n for n in definitions.TASKS if n != "label"]
    train, test = labels.load("rooms", chosen, root=str(rooms), size=None, limit=None)
    for part in (train, test):
        assert set(part.labels) == set(chosen)
        for name in chosen:
            task, packed = definitions.TASKS[name], part.labels[name]
            if task.dense:
                channels = {"segment_semantic": 1}.get(name, task.outputs)
                assert packed.shape == (len(part), channels + 1, VIEW, VIEW) and packed.dtype == torch.float32
                assert set(packed[:, -1].unique().tolist()) <= {0.0, 1.0}
            else:
                assert packed.dtype == torch.int64 and packed.shape == (len(part),)


def test_labels_come_from_clean_images(rooms):
    train, _ = labels.load("rooms", ["edge_texture", "autoencoding"], root=str(rooms), size=None, limit=None)
    other = train.with_images(replace(train.split, images=255 - train.images))
    assert torch.equal(other.images, 255 - train.images)
    assert all(torch.equal(other.labels[n], train.labels[n]) for n in train.labels)


def test_maps_have_spread_one(rooms):
    train, _ = labels.load("rooms", ["keypoints2d", "depth_euclidean"], root=str(rooms), size=None, limit=None)
    assert train.labels["keypoints2d"][:, 0].std().item() == pytest.approx(1, rel=1e-4)
    metres = train.labels["depth_euclidean"][:, 0].exp() * train.labels["depth_euclidean"][:, 1]
    stored = train.split.targets["depth_euclidean"][:, 0]
    assert torch.allclose(metres, stored, atol=1e-4)


def test_classification_sets_have_derived_tasks(tmp_path):
    digits = np.random.default_rng(0).integers(0, 256, (40, 28, 28)).astype(np.uint8)
    for stem in ("train", "t10k"):
        mnist.write_idx(digits, tmp_path / "mnist" / f"{stem}-images-idx3-ubyte")
        mnist.write_idx((np.arange(40) % 10).astype(np.uint8), tmp_path / "mnist" / f"{stem}-labels-idx1-ubyte")
    chosen = ["label", "edge_texture", "keypoints2d", "segment_unsup2d", "autoencoding"]
    train, test = labels.load("mnist", chosen, root=str(tmp_path), size=None, limit=20)
    assert (len(train), len(test)) == (20, 10)
    assert {n: tuple(train.labels[n].shape) for n in chosen[1:]} == {
        "edge_texture": (20, 2, 28, 28), "keypoints2d": (20, 2, 28, 28), "segment_unsup2d": (20, 2, 28, 28),
        "autoencoding": (20, 2, 28, 28),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "name", "part"),
    [("rooms", "depth", "depth_euclidean"), ("rooms", "label", "class_object"), ("rooms", "edge_occlusion", "unknown")],
)
def test_tasks_that_are_not_there(rooms, dataset, name, part):
    with pytest.raises(InputError, match=part):
        labels.load(dataset, [name], root=str(rooms), size=None, limit=None)


def test_dense_only_tasks_of_classification_sets(tmp_path):
    with pytest.raises(InputError, match=r"mnist has no depth_euclidean; name tasks among autoencoding, edge_texture"):
        labels.load("mnist", ["depth_euclidean"], root=str(tmp_path), size=None, limit=None)


def taskonomy_views(root, classes, holes=False):
    for place, (building, scene) in enumerate(classes):
        arrays = view_arrays(place) | {"class_scene": one_hot(scene, 365)}
        if holes:
            arrays["depth_euclidean"] = np.full((VIEW, VIEW), 65535, np.uint16)
        plant(root / "taskonomy", (building, place, 0), arrays)


def test_tasks_made_of_what_is_not_stored_are_not_offered(tmp_path):
    """Shading is made of depth and normals."""
    plant(tmp_path / "taskonomy", ("hanson", 0, 0), {n: a for n, a in view_arrays(0).items() if n != "normal"})
    with pytest.raises(InputError, match=r"taskonomy has no normal; name tasks among .*depth_euclidean") as found:
        labels.load("taskonomy", ["normal"], root=str(tmp_path), size=None, limit=None)
    assert "keypoints2d" in str(found.value) and "reshading" not in str(found.value)


def test_what_is_stored_is_what_the_source_says(rooms, monkeypatch):
    """Of any data set: no name is treated in a way of its own."""
    source, asked = sources.SOURCES["rooms"], []
    row = replace(source, stored=lambda root: asked.append(root) or ["class_object", "normal"])
    monkeypatch.setitem(sources.SOURCES, "mine", row)
    monkeypatch.setitem(names.DATASETS, "mine", names.DATASETS["rooms"])
    options = {"root": str(rooms), "size": None, "limit": None}
    train, _ = labels.load("mine", ["normal", "edge_texture"], **options)
    assert set(train.labels) == {"normal", "edge_texture"} and set(asked) == {rooms}
    message = (
        "mine has no depth_euclidean; name tasks among autoencoding, class_object, edge_texture, keypoints2d, normal"
    )
    with pytest.raises(InputError, match=message):
        labels.load("mine", ["depth_euclidean"], **options)


def test_depth_without_a_valid_pixel(tmp_path):
    taskonomy_views(tmp_path, [("hanson", 43), ("ihlen", 43)], holes=True)
    with pytest.raises(InputError, match=r"0\.0% of depth_euclidean's pixels are valid; fetch it again"):
        labels.load("taskonomy", ["depth_euclidean"], root=str(tmp_path), size=None, limit=None)


def test_a_class_of_one_building_only(tmp_path):
    taskonomy_views(tmp_path, [("hanson", 43), ("hanson", 45), ("ihlen", 43), ("ihlen", 52)])
    options = {"root": str(tmp_path), "size": None, "limit": None}
    with pytest.raises(InputError, match=r"class \d+ of class_scene is in test views only .*-p rare drop"):
        labels.load("taskonomy", ["class_scene"], **options)
    train, test = labels.load("taskonomy", ["class_scene"], rare="drop", **options)
    assert (len(train), len(test)) == (2, 1)


def test_classes_that_the_parts_do_not_share(tmp_path):
    taskonomy_views(tmp_path, [("hanson", 43), ("ihlen", 52)])
    with pytest.raises(InputError, match="share no class of class_scene"):
        labels.load("taskonomy", ["class_scene"], root=str(tmp_path), size=None, limit=None, rare="drop")


def test_no_other_constant_has_a_lower_error_in_metres():
    """The guess for depth's metric is the mean of metres, not the median that its loss asks for."""
    task, (y, _) = definitions.TASKS["depth_euclidean"], made("depth_euclidean", n=30)

    def error(constant):
        return task.score(constant.expand(len(y), 1, *y.shape[2:]), y)

    best = task.guess(y)
    assert all(error(best + move) > error(best) for move in (-0.05, 0.05))
    assert error(task.constant(y)) > error(best)
