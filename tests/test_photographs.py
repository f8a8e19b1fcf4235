"""A user's own photographs: classes by folder, odd files, and a run from end to end."""

import numpy as np
import pytest
from PIL import Image

from tests.test_victims import SETTINGS
from ul import data
from ul.base.errors import InputError
from ul.data import photographs
from ul.studies import conditions


def photograph(path, colour, size=(48, 40), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(options.pop("mode", "RGB"), size, colour).save(path, **options)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for name, base in (("cat", 60), ("dog", 180)):
            for i in range(count):
                place = tmp_path / part / name / f"{i:02d}.{'jpg' if i % 2 else 'png'}"
                photograph(place, tuple(int(v) for v in rng.integers(base - 40, base + 40, 3)))
    return tmp_path


def test_classes_are_the_folders_in_order(root):
    train, test = (data.load("folder", part, root=root, size=32) for part in ("train", "test"))
    assert train.images.shape == (24, 3, 32, 32) and train.targets["label"].tolist() == [0] * 12 + [1] * 12
    assert test.targets["label"].tolist() == [0] * 6 + [1] * 6 and data.classes(train, test) == 2
    assert train.images[:12].float().mean() < 110 < train.images[12:].float().mean()
    assert len(data.load("folder", "train", root=root, size=32, limit=5)) == 5


def test_images_are_upright_middle_squares(tmp_path):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, 16:48] = 200  # the left half of the middle square
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[::-1, ::-1].copy()).save(tmp_path / "b.png", exif=exif)
    one, other = (photographs.read(tmp_path / name, 32) for name in ("a.png", "b.png"))
    assert (one[:, :, :16] == 200).all() and (one[:, :, 16:] == 0).all() and np.array_equal(one, other)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    photograph(tmp_path / "a.tif", 77, mode=mode)
    assert photographs.read(tmp_path / "a.tif", 32).shape == (3, 32, 32)


def broken(path, content=b"not an image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil, part, message",
    [
        (lambda r: broken(r / "train" / "cat" / "00.png"), "train", r"00\.png: not a readable image"),
        (lambda r: photograph(r / "train" / "dog" / "x.png", 0, (31, 64)), "train", r"x\.png: 31 x 64 pixels, 32 are"),
        (lambda r: photograph(r / "test" / "cow" / "x.png", 0), "test", r"cow: no such class in"),
        (lambda r: (r / "train" / "empty").mkdir(), "train", r"empty holds no image"),
        (lambda r: (r / "test").rename(r / "tests"), "test", r"test is missing; put the images into"),
    ],
)
def test_odd_files_are_named(root, spoil, part, message):
    spoil(root)
    with pytest.raises(InputError, match=message):
        data.load("folder", part, root=root, size=32)


def test_one_class_is_no_data_set(tmp_path):
    photograph(tmp_path / "train" / "cat" / "0.png", 0)
    with pytest.raises(InputError, match="holds 1 folders of classes"):
        data.load("folder", "train", root=tmp_path, size=32)


def test_hidden_files_and_others_are_passed_over(root):
    broken(root / "train" / "cat" / "notes.txt")
    broken(root / "train" / ".cache" / "x.png")
    assert len(data.load("folder", "train", root=root, size=32)) == 24


def test_a_benchmark_runs_on_photographs(root):
    config = SETTINGS | {"dataset": "folder", "root": str(root), "limit": None, "seeds": 1, "epochs": 1}
    runs = conditions.run_all(conditions.several(config, ["lsp"]), jobs=1)
    assert [run["config"]["method"] for run in runs] == ["clean", "lsp"]
    assert runs[0]["data"]["train_images"] == 24
