"""A user's own photographs: one folder a class, read as square images of one size."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..base.errors import InputError, existing
from .split import Split, Targets, subset

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
# By contents, whatever the name says: for EPS, for example, Pillow would start another program.
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
DENSEST = 8 * 1032  # pixels a byte: one bit each, deflated as far as that goes
SIDE = 32  # pixels a side, where none are asked for
LAYOUT = "put the images into <root>/train/<class>/ and <root>/test/<class>/"


def listed(root: Path, part: str) -> tuple[list[Path], np.ndarray]:
    """Image files of `<root>/<part>/<class>/` in order of their names, and int64[n] classes by the names in train.

    Raises InputError if the folder, its classes or its images are missing, or a class is not in train.
    """
    classes = {place.name: i for i, place in enumerate(_classes(root / "train"))}
    files, labels = [], []
    for place in _classes(root / part):
        if place.name not in classes:
            raise InputError(f"{place}: no such class in {root / 'train'}; every class needs training images")
        found = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(f"{place} holds no image ({', '.join(SUFFIXES)}); remove it or add some")
        files += found
        labels += [classes[place.name]] * len(found)
    return files, np.array(labels, np.int64)


def _classes(folder: Path) -> list[Path]:
    found = sorted(p for p in existing(folder, LAYOUT).iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(found) < 2:
        raise InputError(f"{folder} holds {len(found)} folders of classes; {LAYOUT}, two classes or more")
    return found


def opened(path: Path, kinds: tuple[str, ...]) -> "Picture":
    """Pillow's image, not yet decoded. Raises ValueError if its header promises more pixels than its bytes can hold."""
    from PIL import Image

    raw = path.read_bytes()  # from a file Pillow asks for as many bytes as a damaged header says
    image = Image.open(io.BytesIO(raw), formats=kinds)
    if image.width * image.height > DENSEST * len(raw):
        raise ValueError("more pixels than the file can hold")
    return image


def read(path: Path, size: int) -> np.ndarray:
    """One image as uint8[3,size,size]: turned upright, RGB, the middle square, area means.

    Raises InputError if the file is no readable image or smaller than `size`.
    """
    from PIL import Image, ImageOps

    try:
        with opened(path, KINDS) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # damaged files raise many types
        raise InputError(f"{path}: not a readable image ({type(error).__name__}); remove or export it again") from None
    if min(image.size) < size:
        raise InputError(f"{path}: {image.width} x {image.height} pixels, {size} are needed; remove or enlarge it")
    square = ImageOps.fit(image, (size, size), Image.Resampling.BOX)
    return np.asarray(square).transpose(2, 0, 1)


def folder(root: Path, part: str, limit: int | None, targets: Targets, size: int | None) -> Split:
    paths, labels = listed(root, part)
    rows = subset(len(paths), limit)
    images = np.stack([read(paths[i], size or SIDE) for i in rows])
    return Split(torch.from_numpy(images), {"label": torch.from_numpy(labels[rows])}, f"folder/{part}")
