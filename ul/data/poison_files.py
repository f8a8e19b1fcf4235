"""Poisoned images on disk: read against the clean set that they belong to, and written for other codes."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..base.errors import InputError, existing
from . import formats
from .split import Split, default_target

USUAL = ("label", "labels", "y")  # names that other codes give to labels


def read_poison(path: Path | str, clean: Split) -> Split:
    """Poisoned images, uint8[n,h,w,c], of a file or folder in a format of `formats`, with the clean set's targets.

    Raises InputError if the file cannot be read, has another length, shape or dtype, or labels that differ.
    """
    path = existing(path, "name a file of poisoned images")
    arrays = formats.read(path)
    images = arrays["images"]
    if images.dtype != np.uint8:
        raise InputError(f"{path}: images are {images.dtype}, not uint8; round to 0..255 before saving")
    n, c, h, w = clean.images.shape
    if images.shape != (n, h, w, c):
        raise InputError(f"{path}: images are {images.shape}, {clean.name} needs {(n, h, w, c)}; poison those images")
    _same_labels(path, arrays, clean)
    return replace(clean, images=torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))


def _same_labels(path: Path, arrays: formats.Arrays, clean: Split) -> None:
    for key, target in shared_labels(arrays, clean).items():
        if not np.array_equal(arrays[key], clean.targets[target].numpy()):
            raise InputError(f"{path}: {key} differs from {clean.name}; keep order and labels of the clean images")


def shared_labels(names: Iterable[str], clean: Split) -> dict[str, str]:
    """Which of these arrays hold which target of the clean set; label, labels and y are its default target."""
    usual = default_target(clean)
    known = {key: key for key in clean.targets} | ({key: usual for key in USUAL} if usual in clean.targets else {})
    return {name: known[name] for name in names if name in known}


def export(split: Split, path: Path | str, format: str | None = None) -> Path:
    """Write images (uint8 NHWC) and integer targets in a format of `formats`, so that other codes can read them.

    "npz", "safetensors", or "png": a folder `data/<index>.png` without targets, as APBench has it; None: by the suffix,
    a name without one being a folder. Raises InputError if the suffix is another format's.
    """
    labels = {k: v.numpy() for k, v in split.targets.items() if v.ndim == 1}
    images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
    return formats.write({"images": images, **labels}, Path(path), format or formats.format_of(Path(path)))
