"""Damaged files and wrong names end in one InputError that names the file or value and how to mend it."""

import gzip
import io
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import idx_bytes, one_hot, picture, plant, planted_rooms, view_arrays, write_cifar
from ul import data
from ul.base.errors import InputError
from ul.data import mnist, rooms, taskonomy

MEND = re.compile(r"[;,] (fetch|run|put|unpack|write|round|poison|keep|name|choose|it must|leave)\b")


def refused(action, *parts: str) -> str:
    """The message of the InputError that `action` must raise: one line with every part and a mend."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert MEND.search(message), message
    for part in parts:
        assert part in message
    return message


# ---- names and numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "part"),
    [(("cifar", "train"), {}, "cifar10"), (("cifar10", "val"), {}, "'val'"), (("mnist", "all"), {}, "test, train"),
     (("cifar10", "test"), {"limit": 0}, "limit is 0"), (("cifar10", "test"), {"limit": -3}, "limit is -3"),
     (("cifar10", "test"), {"size": 0}, "size is 0"), (("taskonomy", "train"), {}, "all"),
     (("taskonomy", "all"), {"targets": ("depth",)}, "'depth'")],
)  # fmt: skip
def test_unknown_names_and_sizes(tmp_path, arguments, options, part):
    write_cifar(tmp_path)
    plant(tmp_path / "taskonomy", ("a", 0, 0), view_arrays(0))
    refused(lambda: data.load(*arguments, root=tmp_path, **options), part)


@pytest.mark.parametrize(
    ("name", "part", "folder"),
    [("cifar10", "train", "cifar-10-batches-bin"), ("mnist", "test", "mnist"), ("rooms", "val", "rooms"),
     ("taskonomy", "all", "taskonomy")],
)  # fmt: skip
@pytest.mark.parametrize("exists", [False, True])
def test_missing_and_empty_folders(tmp_path, name, part, folder, exists):
    if exists:
        (tmp_path / folder).mkdir()
    refused(lambda: data.load(name, part, root=tmp_path), str(tmp_path / folder), "missing")


def test_unknown_export_format(tmp_path):
    refused(lambda: data.export(clean(), tmp_path / "x", "jpeg"), "'jpeg'", "npz, png, safetensors")


# ---- images ------------------------------------------------------------------------------------------------------


def planted_views(root, count: int = 3) -> None:
    for point in range(count):
        plant(root / "taskonomy", ("a", point, 0), view_arrays(point))


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path):
    path.write_text("<html>404 not found</html>")


def empty(path):
    path.write_bytes(b"")


def grey(path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)


def larger(path):
    with Image.open(path) as image:
        big = image.resize((16, 16), Image.Resampling.NEAREST)
    big.save(path)


@pytest.mark.parametrize("damage", [cut_short, text, empty, grey, larger])
@pytest.mark.parametrize("domain", ["rgb", "depth_euclidean"])
@pytest.mark.parametrize("size", [None, 4])
def test_damaged_images(tmp_path, damage, domain, size):
    planted_views(tmp_path)
    path = tmp_path / "taskonomy" / domain / "taskonomy" / "a" / f"point_1_view_0_domain_{domain}.png"
    damage(path)
    refused(lambda: data.load("taskonomy", "all", root=tmp_path, size=size), str(path))


def test_views_of_two_sizes_in_different_chunks(tmp_path, monkeypatch):
    planted_views(tmp_path)
    for domain in ("rgb", "depth_euclidean"):
        larger(tmp_path / "taskonomy" / domain / "taskonomy" / "a" / f"point_1_view_0_domain_{domain}.png")
    monkeypatch.setattr(taskonomy, "CHUNK", 1)
    refused(lambda: data.load("taskonomy", "all", root=tmp_path), "rgb", "differ in size")


def test_missing_domain_folder(tmp_path):
    planted_views(tmp_path)
    targets = ("edge_texture",)
    refused(lambda: data.load("taskonomy", "all", root=tmp_path, targets=targets), "edge_texture is missing")


# ---- class scores ------------------------------------------------------------------------------------------------


def save_scores(scores):
    return lambda path: np.save(path, scores)


@pytest.mark.parametrize(
    "damage",
    [cut_short, text, empty, save_scores(np.ones(999)), save_scores(np.full(1000, np.nan)),
     save_scores(np.array(["a"] * 1000)), save_scores(np.array([{}] * 1000, object))],
)  # fmt: skip
def test_damaged_scores(tmp_path, damage):
    planted_views(tmp_path)
    path = tmp_path / "taskonomy/class_object/taskonomy/a/point_1_view_0_domain_class_object.npy"
    damage(path)
    refused(lambda: data.load("taskonomy", "all", root=tmp_path), str(path))


# ---- rooms -------------------------------------------------------------------------------------------------------


def test_rooms_refuses_a_label_it_does_not_have(tmp_path):
    planted_rooms(tmp_path)
    plant(tmp_path / "rooms", (rooms.BUILDINGS["train"][0], 0, 0), {"class_object": one_hot(999, 1000)})
    refused(lambda: data.load("rooms", "train", root=tmp_path), "class_object.npy", "label 999", "out of range")


@pytest.mark.parametrize("domain", ["rgb", "normal", "class_scene"])
@pytest.mark.parametrize("whole", [False, True])
def test_rooms_lacking_a_file_or_a_domain(tmp_path, domain, whole):
    planted_rooms(tmp_path)
    for path in sorted((tmp_path / "rooms" / domain).rglob("point_*"))[: None if whole else 1]:
        path.unlink()
    if whole:
        for place in sorted((tmp_path / "rooms" / domain).rglob("*"), reverse=True):
            place.rmdir()
        (tmp_path / "rooms" / domain).rmdir()
    refused(lambda: data.load("rooms", "train", root=tmp_path), str(tmp_path / "rooms" / domain), "dvc pull")


# ---- IDX and CIFAR -----------------------------------------------------------------------------------------------

IMAGES, LABELS = np.zeros((6, 28, 28), np.uint8), np.arange(6)
DEFLATED = gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 9, (6, 28, 28))))
BAD_IMAGES = {
    "magic": b"\0\0\x0d\3" + idx_bytes(IMAGES)[4:],
    "short": idx_bytes(IMAGES)[:-1],
    "long": idx_bytes(IMAGES) + b"\0",
    "header only": idx_bytes(IMAGES)[:9],
    "nothing": b"",
    "no images": idx_bytes(IMAGES[:0]),
    "impossible": bytes([0, 0, 8, 3]) + bytes(4) + b"\xff" * 8,
    "gzip cut": DEFLATED[:-20],
    "gzip damaged": DEFLATED[:40] + bytes(b ^ 0xFF for b in DEFLATED[40:60]) + DEFLATED[60:],
    "gzip magic only": DEFLATED[:2],
    "labels": idx_bytes(LABELS),
    "another count": idx_bytes(IMAGES[:5]),
}
BAD_LABELS = {
    "ten": idx_bytes(np.array([0, 1, 2, 10, 4, 5])),
    "another count": idx_bytes(LABELS[:5]),
    "images": idx_bytes(IMAGES),
}


@pytest.mark.parametrize(("images", "labels"), [
    *[pytest.param(raw, idx_bytes(LABELS), id=f"images {name}") for name, raw in BAD_IMAGES.items()],
    *[pytest.param(idx_bytes(IMAGES), raw, id=f"labels {name}") for name, raw in BAD_LABELS.items()],
])  # fmt: skip
def test_damaged_idx_files(tmp_path, images, labels):
    (tmp_path / "mnist").mkdir()
    for kind, raw in (("images-idx3", images), ("labels-idx1", labels)):
        (tmp_path / "mnist" / f"t10k-{kind}-ubyte").write_bytes(raw)
    refused(lambda: data.load("mnist", "test", root=tmp_path), str(tmp_path / "mnist" / "t10k-"))


def test_label_above_nine_is_named(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist/t10k-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    (tmp_path / "mnist/t10k-labels-idx1-ubyte").write_bytes(BAD_LABELS["ten"])
    refused(lambda: data.load("mnist", "test", root=tmp_path), "labels-idx1-ubyte", "label 10", "0..9")


RECORD = bytes([3]) + bytes(3072)


@pytest.mark.parametrize("raw", [b"", RECORD[:-1], RECORD + b"\0", bytes([10]) + RECORD[1:]])
@pytest.mark.parametrize(("part", "name"), [("train", "data_batch_4.bin"), ("test", "test_batch.bin")])
def test_damaged_cifar_records(tmp_path, raw, part, name):
    write_cifar(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / name
    path.write_bytes(raw)
    refused(lambda: data.load("cifar10", part, root=tmp_path), str(path))


def test_missing_cifar_batch(tmp_path):
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-bin/data_batch_2.bin").unlink()
    refused(lambda: data.load("cifar10", "train", root=tmp_path), "data_batch_2.bin is missing")


# ---- poisons -----------------------------------------------------------------------------------------------------


def clean() -> data.Split:
    return data.Split(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), {"label": torch.arange(4)}, "tiny/train")


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


GOOD = {"images": np.zeros((4, 2, 2, 3), np.uint8), "label": np.arange(4)}
BAD_POISONS = {
    "other length": (npz(images=GOOD["images"][:3]), "(4, 2, 2, 3)"),
    "channels first": (npz(images=np.zeros((4, 3, 2, 2), np.uint8)), "(4, 3, 2, 2)"),
    "one number": (npz(images=np.uint8(3)), "()"),
    "float": (npz(images=GOOD["images"] / 255), "float64"),
    "other labels": (npz(images=GOOD["images"], label=np.arange(4)[::-1]), "label"),
    "fewer labels": (npz(images=GOOD["images"], label=np.arange(3)), "label"),
    "other key": (npz(x=GOOD["images"]), "['x']"),
    "not a zip": (b"poison", "not a readable .npz"),
    "empty": (b"", "not a readable .npz"),
    "zip cut": (npz(**GOOD)[:-30], "not a readable .npz"),
    "pickle": (pickle.dumps(GOOD["images"]), "not a readable .npz"),
}


@pytest.mark.parametrize(("raw", "part"), BAD_POISONS.values(), ids=BAD_POISONS)
def test_unusable_poisons(tmp_path, raw, part):
    path = tmp_path / "poison.npz"
    path.write_bytes(raw)
    refused(lambda: data.read_poison(path, clean()), str(path), part)


def test_missing_poison(tmp_path):
    refused(lambda: data.read_poison(tmp_path / "none.npz", clean()), "none.npz is missing")


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("packed", [True, False])
def test_no_pickle_is_ever_loaded(tmp_path, packed):
    proof, path = tmp_path / "unpickled", tmp_path / "poison.npz"
    content = npz(images=np.array([Trap(str(proof))] * 4, object)) if packed else pickle.dumps(Trap(str(proof)))
    path.write_bytes(content)
    refused(lambda: data.read_poison(path, clean()), str(path))
    assert not proof.exists()
    np.save(tmp_path / "scores.npy", np.array([Trap(str(proof))] * 1000, object))
    kept = taskonomy.Kept(taskonomy.OBJECTS)
    refused(lambda: taskonomy._label(tmp_path / "scores.npy", "class_object", kept), "scores.npy")
    assert not proof.exists()


# ---- random damage -----------------------------------------------------------------------------------------------


def stored(**arrays) -> bytes:
    """An .npz without compression, so that damage reaches the array headers."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, array in arrays.items():
            inner = io.BytesIO()
            np.save(inner, array)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), inner.getvalue())
    return buffer.getvalue()


def _read_poison(path):
    data.read_poison(path, clean())


READERS = {
    "idx": (mnist.read_idx, [idx_bytes(IMAGES[:2, :4, :4]), gzip.compress(idx_bytes(LABELS))]),
    "poison": (_read_poison, [npz(**GOOD), stored(**GOOD)]),
    "png": (
        lambda path: taskonomy.read_png(path, "RGB"),
        [picture(GOOD["images"][0]), picture(np.zeros((2, 2), np.uint16))],
    ),
}


@st.composite
def damaged(draw, whole: list[bytes]) -> bytes:
    """Random bytes, or a whole file with a few bytes changed and perhaps its end cut off."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    raw = bytearray(draw(st.sampled_from(whole)))
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)):
        raw[place] = value
    return bytes(raw[: draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.filterwarnings("ignore")
def test_random_damage_raises_input_errors_only(tmp_path, kind):
    reader, whole = READERS[kind]
    outcomes = set()

    @settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(raw=damaged(whole))
    def attempt(raw):
        path = tmp_path / "file"
        path.write_bytes(raw)
        try:
            reader(path)
            outcomes.add("read")
        except InputError as error:
            assert str(path) in str(error)
            outcomes.add("refused")

    attempt()
    assert "refused" in outcomes
