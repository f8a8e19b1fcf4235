"""Poisoned images from users: three formats both ways, damaged files, and what check-poison says of them."""

import json
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import planted_rooms, ul, write_cifar
from tests.imports import ROOT
from tests.test_poisons import EPS, make, toy
from ul import data
from ul.base.errors import InputError
from ul.data import checks, formats, pixels
from ul.pipeline.commands import main

CLEAN = toy(3, 16, (5,) * 4, low=20, high=236)
GRAY = toy(1, 16, (5,) * 4, low=20, high=236)


def photographs(count=40, size=16):
    """Smooth images, each unlike the others, as photographs are."""
    rng = torch.Generator().manual_seed(0)
    coarse = 40 + 170 * torch.rand((count, 3, 4, 4), generator=rng)
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return data.Split(images.to(torch.uint8), {"label": torch.arange(count) % 4}, "toy/train")


# ---- Formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clean", [CLEAN, GRAY], ids=["colour", "gray"])
@pytest.mark.parametrize(("format", "name"), [("npz", "p.npz"), ("safetensors", "p.safetensors"), ("png", "p")])
def test_every_format_gives_the_images_back(tmp_path, format, name, clean):
    poisoned = make("noise", clean)
    path = data.export(poisoned, tmp_path / name, format)
    assert torch.equal(data.read_poison(path, clean).images, poisoned.images)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_suffix_decides_and_must_fit_the_format(tmp_path):
    poisoned = make("noise", CLEAN)
    for name in ("a.npz", "a.safetensors", "folder"):
        assert torch.equal(data.read_poison(data.export(poisoned, tmp_path / name), CLEAN).images, poisoned.images)
    with pytest.raises(InputError, match=r"a\.txt: no format has this suffix; use \.npz, \.safetensors, a folder"):
        data.export(poisoned, tmp_path / "a.txt")
    with pytest.raises(InputError, match=r"b\.npz: the suffix is not that of png"):
        data.export(poisoned, tmp_path / "b.npz", "png")
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize("key", ["label", "labels", "y", "class_object"])
def test_labels_are_compared_under_their_usual_names(tmp_path, key):
    clean = data.Split(CLEAN.images, {"class_object": CLEAN.targets["label"]}, "rooms/train")
    images = clean.images.permute(0, 2, 3, 1).numpy()
    for labels, fits in ((clean.targets["class_object"], True), (clean.targets["class_object"].flip(0), False)):
        np.savez(tmp_path / "p.npz", images=images, **{key: labels.numpy()})
        if fits:
            assert checks._labels(tmp_path / "p.npz", clean) == f"labels: {key} as in the clean set"
            data.read_poison(tmp_path / "p.npz", clean)
        else:
            with pytest.raises(InputError, match=f"{key} differs from rooms/train"):
                data.read_poison(tmp_path / "p.npz", clean)


@pytest.mark.parametrize("limit", [1e3, "all", True])
def test_limits_are_whole_numbers(tmp_path, limit):
    with pytest.raises(InputError, match=r"limit is .*; it must be a whole number"):
        data.load("mnist", "train", root=tmp_path, limit=limit)


def test_png_folders_are_apbenchs_and_sorted_by_number(tmp_path):
    poisoned = make("noise", CLEAN)
    data.export(poisoned, tmp_path / "p", "png")
    for index in (0, 2, 10, 19):
        pixels = np.array(Image.open(tmp_path / "p" / "data" / f"{index}.png"))
        assert np.array_equal(pixels, poisoned.images[index].permute(1, 2, 0).numpy())
    (tmp_path / "p" / "data").rename(tmp_path / "bare")
    assert torch.equal(data.read_poison(tmp_path / "bare", CLEAN).images, poisoned.images)


def test_safetensors_holds_nhwc_bytes_and_labels(tmp_path):
    raw = data.export(CLEAN, tmp_path / "p.safetensors", "safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["images"]["dtype"] == "U8" and header["images"]["shape"] == [20, 16, 16, 3]
    assert header["label"]["dtype"] == "I64"


def png(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode=mode).save(path)


def spoil_folder(folder, damage):
    data.export(CLEAN, folder, "png")
    file = folder / "data" / "7.png"
    {
        "missing": file.unlink,
        "cut": lambda: file.write_bytes(file.read_bytes()[:60]),
        "text": lambda: file.write_text("no image"),
        "size": lambda: Image.new("RGB", (15, 16)).save(file),
        "mode": lambda: Image.new("RGBA", (16, 16)).save(file),
        "deep": lambda: Image.fromarray(np.zeros((16, 16), np.uint16)).save(file),
        "jpeg": lambda: Image.new("RGB", (16, 16)).save(file, format="JPEG"),
        "fewer": (folder / "data" / "19.png").unlink,
    }[damage]()


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        ("missing", "7.png is missing; images are numbered from 0 without a gap"), ("cut", "7.png: not a readable PNG"),
        ("text", "7.png: not a readable PNG"), ("size", "7.png: (16, 15, 3), but 0.png is (16, 16, 3)"),
        ("mode", "7.png: mode RGBA, not RGB or L"), ("deep", "7.png: mode I;16, not RGB or L"),
        ("jpeg", "7.png: not a readable PNG"), ("fewer", "images are (19, 16, 16, 3), toy/train needs (20, 16, 16, 3)"),
    ],
)  # fmt: skip
def test_damaged_folders(tmp_path, damage, part):
    spoil_folder(tmp_path / "p", damage)
    with pytest.raises(InputError) as error:
        data.read_poison(tmp_path / "p", CLEAN)
    assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "raw", "part"),
    [
        ("p.txt", b"x", "not a kind of file that holds poisoned images; use .npz, .safetensors, a folder"),
        ("p.safetensors", b"", "not a readable .safetensors"), ("p.safetensors", b"\xff" * 64, "not a readable"),
        ("p.safetensors", pickle.dumps([1]), "not a readable .safetensors"),
        ("p.safetensors", (2).to_bytes(8, "little") + b"{}", "holds [], not `images`"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path, name, raw, part):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(InputError) as error:
        data.read_poison(tmp_path / name, CLEAN)
    assert part in str(error.value) and str(tmp_path / name) in str(error.value)


def test_an_empty_folder_and_an_existing_target_are_named(tmp_path):
    (tmp_path / "p").mkdir()
    with pytest.raises(InputError, match=r"holds no <index>\.png"):
        data.read_poison(tmp_path / "p", CLEAN)
    with pytest.raises(InputError, match=r"p exists; remove it or name another folder"):
        data.export(CLEAN, tmp_path / "p", "png")


def test_random_bytes_never_crash_the_safetensors_reader(tmp_path):
    good = data.export(CLEAN, tmp_path / "p.safetensors", "safetensors").read_bytes()
    rng, path = np.random.default_rng(0), tmp_path / "q.safetensors"
    for _ in range(300):
        raw = bytearray(good[: rng.integers(len(good))] if rng.random() < 0.5 else good)
        for place in rng.integers(0, min(len(raw), 300) or 1, 3):
            if place < len(raw):
                raw[place] = rng.integers(256)
        path.write_bytes(bytes(raw))
        try:
            formats.read(path)
        except InputError as error:
            assert "\n" not in str(error)


# ---- CIFAR-100 -----------------------------------------------------------------------------------------------------


def test_cifar100_takes_the_fine_label(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    record = bytes([19, 71]) + bytes([10]) * 1024 + bytes([20]) * 1024 + bytes([30]) * 1024
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(record * 3)
    split = data.load("cifar100", "train", root=tmp_path)
    assert split.targets["label"].tolist() == [71] * 3 and split.name == "cifar100/train"
    assert split.images.flatten(2).unique(dim=2)[0].flatten().tolist() == [10, 20, 30]
    (folder / "test.bin").write_bytes(bytes([19, 100]) + record[2:])
    with pytest.raises(InputError, match=r"test\.bin: label 100 is out of range 0\.\.99"):
        data.load("cifar100", "test", root=tmp_path)
    (folder / "test.bin").write_bytes(record[:-1])
    with pytest.raises(InputError, match=r"test\.bin: 3073 bytes are not whole records of 3074"):
        data.load("cifar100", "test", root=tmp_path)


# ---- export and check-poison -----------------------------------------------------------------------------------------


def test_images_in_another_order_are_found_out():
    clean = photographs()
    poisoned = make("noise", clean, eps=16 / 255)
    assert checks.own_share(clean.images, poisoned.images) == 1
    moved = replace(poisoned, images=poisoned.images.roll(1, 0))
    assert checks.own_share(clean.images, moved.images) < 0.1
    with pytest.raises(InputError, match=r"p\.npz: only \d+% of the images are nearest to their own clean image"):
        checks.in_order(clean, moved, "p.npz")


def test_strong_patches_do_not_count_as_disorder_but_a_shuffle_under_them_does():
    """LSP at half of the range moves the coarse pixels of drawings farther than these lie apart; their edges stay."""
    strokes = (torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.05) * 255
    clean = replace(photographs(), images=strokes.to(torch.uint8), targets={"label": torch.arange(200) % 4})
    strong = make("lsp", clean, eps=128 / 255)
    assert checks.own_share(clean.images, strong.images) < checks.ORDERED < checks.in_order(clean, strong, "p.npz")
    with pytest.raises(InputError, match="keep the order"):
        checks.in_order(clean, replace(strong, images=strong.images.roll(1, 0)), "p.npz")


def test_equal_clean_images_do_not_count_as_disorder():
    clean = photographs()
    clean.images[1::2] = clean.images[::2]
    assert checks.own_share(clean.images, clean.images) == 1


@pytest.mark.parametrize(
    ("method", "fits", "exceeds"), [("noise", "linf", "l0"), ("lsp", "l2", "linf"), ("ops", "l0", "linf")]
)
def test_a_poison_fits_its_own_budget_and_not_the_others(method, fits, exceeds):
    poisoned = make(method, CLEAN)
    found = checks.fitting(CLEAN, pixels.measure(CLEAN.images, poisoned.images), EPS)
    assert found[fits][method] and not any(found[exceeds].values())


def check_poison(*arguments):
    return ul("check-poison", *arguments, cwd=ROOT)


@pytest.fixture
def planted(tmp_path):
    """(root of a CIFAR-10 of smooth images, its training split)."""
    write_cifar(tmp_path)
    images = photographs(20, 32).images.flatten(1).numpy()
    for i in range(5):
        rows = images[4 * i : 4 * i + 4]
        raw = b"".join(bytes([j]) + row.tobytes() for j, row in enumerate(rows))
        (tmp_path / "cifar-10-batches-bin" / f"data_batch_{i + 1}.bin").write_bytes(raw)
    return tmp_path, data.load("cifar10", "train", root=tmp_path)


def test_check_poison_reports_order_sizes_and_budgets(planted):
    root, clean = planted
    path = data.export(make("noise", clean), root / "p.npz")
    done = check_poison(path, "--clean", "cifar10", "--root", root)
    assert done.returncode == 0 and not done.stderr
    assert "20 images of cifar10/train, (3, 32, 32)" in done.stdout and "order: 100%" in done.stdout
    assert "labels: label as in the clean set" in done.stdout
    assert "L-infinity 8.0/255" in done.stdout and "exceeds ops" in done.stdout
    assert "L-infinity at 8/255: fits noise, noise_classwise, em" in done.stdout


def test_check_poison_fails_in_one_line(planted, monkeypatch):
    root, clean = planted
    good = make("noise", clean)
    path = data.export(good, root / "p.npz")
    other = replace(good, images=good.images.flip(0), targets={})
    moved = data.export(other, root / "moved.npz")
    for arguments, part in [
        ((path, "--eps", "4/255", "--method", "noise"), "noise: linf size is 0.03137, the budget is 0.01765"),
        ((path, "--eps", "8"), "for 8 levels give 8/255"),
        ((path, "--eps", "x"), "eps is 'x'; give a number or a fraction such as 8/255"),
        ((path, "--method", "nope"), "unknown method 'nope'"),
        ((moved,), "keep the order of the clean images"),
        ((path, "--limit", "7"), "images are (20, 32, 32, 3), cifar10/train needs (7, 32, 32, 3)"),
        ((root / "none.npz",), "none.npz is missing"),
    ]:
        command = ["ul", "check-poison", *map(str, arguments), "--clean", "cifar10", "--root", str(root)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            main()
        assert part in stop.value.code and "\n" not in stop.value.code, arguments


@pytest.mark.parametrize("name", ["clean.npz", "clean.safetensors", "clean"])
def test_exported_images_are_those_that_a_poison_is_held_against(planted, name):
    root, clean = planted
    done = ul("export", "cifar10", root / name, "--root", root, cwd=root)
    assert done.returncode == 0 and "clean images of cifar10/train, uint8 (20, 32, 32, 3)" in done.stdout, done.stderr
    assert torch.equal(data.read_poison(root / name, clean).images, clean.images)
    assert "L-infinity 0.0/255" in check_poison(root / name, "--clean", "cifar10", "--root", root).stdout


def test_images_are_exported_at_the_size_that_is_trained_on(tmp_path):
    planted_rooms(tmp_path)
    done = ul("export", "rooms", "clean.npz", "--root", ".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "clean.npz") as file:
        assert file["images"].shape == (1, 32, 32, 3) and file["class_object"].shape == (1,)


@pytest.mark.parametrize(
    ("name", "part"),
    [("there.npz", "there.npz exists; remove it"), ("new.jpg", "use .npz, .safetensors, a folder of <index>.png")],
)
def test_export_refuses_in_one_line(planted, name, part):
    root, _ = planted
    (root / "there.npz").write_bytes(b"mine")
    done = ul("export", "cifar10", name, "--root", ".", cwd=root)
    assert done.returncode == 1 and part in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert (root / "there.npz").read_bytes() == b"mine" and not (root / "new.jpg").exists()
