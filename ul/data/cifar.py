"""CIFAR-10 and CIFAR-100 in their official binary versions."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..base.errors import InputError, existing
from .split import Load, Split, Targets, check_labels, subset

CIFAR10 = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR100 = {"train": ["train.bin"], "test": ["test.bin"]}


def reader(folder: str, files_of: dict[str, list[str]], *, label_bytes: int, classes: int) -> Load:
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
    check_labels(rows[:, label_bytes - 1], classes, path)
    return rows


cifar10 = reader("cifar-10-batches-bin", CIFAR10, label_bytes=1, classes=10)
cifar100 = reader("cifar-100-binary", CIFAR100, label_bytes=2, classes=100)
