"""Taskonomy's file layout and encodings: index views, decode domains to physical units, resize with masks.

Files are called `point_<P>_view_<V>_domain_<suffix>.<ext>`. They lie in `<domain>/[taskonomy/]<building>/` (omnitools,
domain-first), in `<building>/<domain>/` or in `<building>_<domain>/<domain>/` (building-first).
Encodings: StanfordVL/taskonomy data README and omnidata `settings.py`, checked on real files.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import records
from ..base.errors import InputError, choose, existing
from . import photographs

INVALID = 65535  # depth_euclidean where the scan has a hole
CHUNK = 128  # views decoded before they are resized: bounds memory at 512 x 512
STEM = re.compile(r"point_(\d+)_view_(\d+)_domain_([a-z0-9_]+)$")
# The ImageNet and Places classes that Taskonomy keeps (selected_class.npy; class_places_workspace_and_home).
OBJECTS = (
    *(401, 402, 409, 412, 414, 430, 431, 435, 453, 462, 463, 470, 478, 487, 488, 492, 495, 504, 505, 508, 519, 520),
    *(521, 526, 527, 528, 530, 532, 533, 534, 539, 545, 546, 548, 550, 553, 559, 564, 579, 588, 598, 606, 619, 620),
    *(632, 648, 651, 662, 664, 673, 681, 700, 706, 711, 713, 716, 721, 728, 729, 733, 736, 737, 738, 742, 748, 750),
    *(752, 753, 754, 760, 761, 765, 770, 773, 778, 794, 799, 804, 805, 809, 825, 827, 831, 844, 846, 849, 851, 859),
    *(861, 882, 883, 892, 894, 897, 904, 905, 907, 923, 968, 999),
)
SCENES = (
    *(3, 23, 25, 26, 28, 37, 43, 45, 51, 52, 56, 61, 63, 88, 89, 93, 95, 100, 102, 106, 121, 124, 126, 129, 131, 133),
    *(135, 156, 165, 176, 177, 179, 182, 203, 208, 215, 217, 228, 240, 241, 244, 246, 248, 253, 255, 264, 269, 280),
    *(281, 282, 285, 298, 303, 311, 317, 318, 328, 332, 343, 346, 352, 358, 363),
)

View = tuple[str, int, int]  # building, point, view


@dataclass(frozen=True)
class Domain:
    """One kind of file: how it is named, decoded and resized."""

    decode: Callable[[np.ndarray], np.ndarray]  # raw [n,h,w] or [n,h,w,c] -> float32/uint8 [n,c,h,w]
    resize: str  # area | nearest | masked | unit
    mode: str  # what Pillow must report
    unit: str
    suffix: str | None = None  # where it differs from the folder's name


def _map16(raw: np.ndarray) -> np.ndarray:
    return raw[:, None].astype(np.float32) / 65535


def _metres(raw: np.ndarray) -> np.ndarray:
    return np.where(raw == INVALID, 0, raw.astype(np.float32) / 512)[:, None]


def _vectors(raw: np.ndarray) -> np.ndarray:
    n = raw.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    return n / np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-6)


def _grey8(raw: np.ndarray) -> np.ndarray:
    return raw[..., 0][:, None].astype(np.float32) / 255


def _ids(raw: np.ndarray) -> np.ndarray:
    return raw[:, None]


def _rgb(raw: np.ndarray) -> np.ndarray:
    return raw.transpose(0, 3, 1, 2)


def _curvature(raw: np.ndarray) -> np.ndarray:
    return ((raw[..., :2].astype(np.float32) - 127) / 127 / 0.03).transpose(0, 3, 1, 2)


DOMAINS: dict[str, Domain] = {
    "rgb": Domain(_rgb, "area", "RGB", "0..255"),
    "depth_euclidean": Domain(_metres, "masked", "I;16", "metres along the ray, 0 where mask_valid is False"),
    "depth_zbuffer": Domain(_metres, "masked", "I;16", "metres to the image plane, 0 where mask_valid is False"),
    "normal": Domain(_vectors, "unit", "RGB", "unit vector: +x right, +y down, +z into the scene"),
    "principal_curvature": Domain(_curvature, "area", "RGB", "1/metres, two channels"),
    "reshading": Domain(_grey8, "area", "RGB", "0..1"),
    "edge_texture": Domain(_map16, "area", "I;16", "Sobel magnitude, 0..1"),
    "edge_occlusion": Domain(_map16, "area", "I;16", "Sobel magnitude of root depth, 0..1"),
    "keypoints2d": Domain(_map16, "area", "I;16", "SURF-like response, 0..1"),
    "keypoints3d": Domain(_map16, "area", "I;16", "NARF response, 0..1"),
    "segment_unsup2d": Domain(_ids, "nearest", "L", "region id stretched to 0..255"),
    "segment_unsup25d": Domain(_ids, "nearest", "L", "region id stretched to 0..255"),
    "segment_semantic": Domain(_ids, "nearest", "L", "0 uncertain, 1 background, 2..17 object", "segmentsemantic"),
}
CLASSES = {"class_object": "class_object", "class_scene": "class_places"}  # folder -> suffix of the .npy
LENGTHS = {"class_object": 1000, "class_scene": 365}


def suffix(domain: str) -> str:
    """How files of a domain end; Taskonomy's folders and suffixes differ for three domains."""
    choose(domain, [*DOMAINS, *CLASSES], "Taskonomy domain")
    return CLASSES.get(domain) or DOMAINS[domain].suffix or domain


def domains_in(folder: Path) -> list[str]:
    """Known domains that have a folder, in any layout."""
    return [d for d in (*DOMAINS, *CLASSES) if (folder / d).is_dir() or any(folder.glob(f"*/{d}"))]


def index(folder: Path, domains: Sequence[str], buildings: Iterable[str] | None = None) -> dict[View, dict[str, Path]]:
    """Views that have a file in every domain, sorted by building, point and view, with their files.

    buildings: only these. Views that lack a domain are left out, with a note (the release has such gaps). Raises
    InputError for a domain without a folder, none of the buildings, or no view common to all domains.
    """
    found = {d: _files(folder, d) for d in domains}
    for empty in [d for d in domains if not found[d]]:
        existing(folder / empty, "fetch that domain, or leave it out")
    every = set.union(*(set(files) for files in found.values()))
    if buildings is not None:
        every = {v for v in every if v[0] in set(buildings)} or _no_building(folder, every, list(buildings))
    wanted = sorted(v for v in every if all(v in files for files in found.values()))
    if not wanted:
        raise InputError(
            f"{folder}: no view has all of {', '.join(domains)}; fetch the missing ones, or name fewer targets"
        )
    if left := len(every) - len(wanted):
        records.note(f"{folder.name}: {left} of {len(every)} views lack one of {', '.join(domains)} and are left out")
    return {v: {d: found[d][v] for d in domains} for v in wanted}


def _no_building(folder: Path, views: Iterable[View], wanted: list[str]) -> NoReturn:
    have = sorted({building for building, _, _ in views})
    raise InputError(
        f"{folder}: has {', '.join(have[:3])}, but none of this part's {len(wanted)} buildings "
        f"({', '.join(wanted[:3])}, …); fetch one of them, or name the part all"
    )


def _files(folder: Path, domain: str) -> dict[View, Path]:
    """Every file of a domain by its view, in whichever layout `folder` has."""
    ending, first, found = suffix(domain), folder / domain, {}  # the suffix refuses unknown names first
    if first.is_dir():
        named = [((p.parent if p.parent != first else folder).name, p) for p in first.rglob("point_*")]
    else:
        places = [p for p in folder.glob(f"*/{domain}") if p.is_dir()]
        named = [(p.parent.name.removesuffix(f"_{domain}"), path) for p in places for path in p.glob("point_*")]
    for building, path in named:
        match = STEM.match(path.stem)
        if match and match[3] == ending:
            found[building, int(match[1]), int(match[2])] = path
    return found


def incomplete(folder: Path, domains: Sequence[str]) -> list[str]:
    """Files that some domain has and another lacks, as `<domain>/…/<building> point view`, sorted."""
    found = {d: set(_files(folder, d)) for d in domains}
    every = set.union(*found.values())
    return [f"{folder / d}: {b} point {p} view {v}" for d in domains for b, p, v in sorted(every - found[d])]


@dataclass(frozen=True)
class Kept:
    """The source classes of a class_* domain that count; their positions are the labels."""

    indices: Sequence[int]
    closed: bool = False  # the best class must be one of them (true labels, not a network's guess)


def read(views: dict[View, dict[str, Path]], *, size: int | None, classes: dict[str, Kept]) -> dict[str, Tensor]:
    """Decoded domains of indexed views, one tensor each, in the index's order; depth brings `mask_valid` [n,1,h,w].

    size: side in pixels, resized chunk by chunk; classes: the kept source classes of each class_* domain.
    Raises InputError for files that are no images, truncated, of another mode or size.
    """
    rows = list(views.values())
    chunks = [_decode(rows[i : i + CHUNK], size, classes) for i in range(0, len(rows), CHUNK)]
    try:
        return {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}
    except RuntimeError:
        raise InputError(f"{rows[0]['rgb'].parent}: views differ in size; name one with size") from None


def _decode(rows: list[dict[str, Path]], size: int | None, classes: dict[str, Kept]) -> dict[str, Tensor]:
    out = {}
    for domain in rows[0]:
        paths = [row[domain] for row in rows]
        if domain in CLASSES:
            out[domain] = torch.tensor([_label(p, domain, classes[domain]) for p in paths])
            continue
        raw = _stack(paths, DOMAINS[domain].mode)
        out[domain] = torch.from_numpy(np.ascontiguousarray(DOMAINS[domain].decode(raw)))
        if DOMAINS[domain].resize == "masked":
            out["mask_valid"] = torch.from_numpy(raw != INVALID)[:, None]
    return out if size is None else resize(out, size)


def _stack(paths: list[Path], mode: str) -> np.ndarray:
    arrays = [read_png(p, mode) for p in paths]
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise InputError(
                f"{path}: {array.shape[:2]} pixels, {paths[0].name} has {arrays[0].shape[:2]}; fetch both again"
            )
    return np.stack(arrays)


def read_png(path: Path, mode: str) -> np.ndarray:
    """A PNG's pixels. Raises InputError if it is no image, truncated, or of another Pillow mode."""
    try:
        with photographs.opened(path, ("PNG",)) as image:
            image.load()
            found, pixels = image.mode, np.asarray(image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and struct.error on damaged files
        raise InputError(f"{path}: not a whole image ({error}); fetch the file again") from None
    if found != mode:
        raise InputError(f"{path}: Pillow mode is {found}, the domain needs {mode}; fetch the file again")
    return pixels.astype(np.uint16) if mode == "I;16" else pixels


def _label(path: Path, domain: str, kept: Kept) -> int:
    try:
        scores = np.load(path, allow_pickle=False, mmap_mode="r").astype(np.float64).reshape(-1)
    except Exception as error:  # damaged headers raise many types
        raise InputError(f"{path}: not a readable .npy ({type(error).__name__}); fetch the file again") from None
    if len(scores) != LENGTHS[domain] or not np.isfinite(scores).all():
        raise InputError(f"{path}: needs {LENGTHS[domain]} finite scores, holds {len(scores)}; fetch the file again")
    if kept.closed and (best := int(scores.argmax())) not in kept.indices:
        raise InputError(f"{path}: label {best} is out of range, not one of {kept.indices}; fetch the file again")
    return int(scores[list(kept.indices)].argmax())


# ---- Resizing ------------------------------------------------------------------------------------------------------


def resize(targets: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Dense tensors [n,c,h,w] at size x size: area means (depth: over valid pixels), nearest for ids; others as given.

    A mask stays true where any valid pixel falls into the cell, so depth never mixes with holes. Raises InputError for
    depth without `mask_valid` beside it.
    """
    mask = targets.get("mask_valid")
    out = {}
    for name, value in targets.items():
        how = "nearest" if name not in DOMAINS else DOMAINS[name].resize
        if how == "masked" and mask is None:
            raise InputError(f"{name} cannot be resized without its holes; give mask_valid bool[n,1,h,w] beside it")
        out[name] = value if value.ndim != 4 or name == "mask_valid" else RESIZE[how](value, mask, size)
    if mask is not None:
        out["mask_valid"] = F.interpolate(mask.float(), (size, size), mode="area") > 0
    return out


def _area(x: Tensor, mask: Tensor | None, size: int) -> Tensor:
    mean = F.interpolate(x.float(), (size, size), mode="area")
    return mean.round().to(x.dtype) if x.dtype == torch.uint8 else mean


def _masked(x: Tensor, mask: Tensor, size: int) -> Tensor:
    weight = F.interpolate(mask.float(), (size, size), mode="area")
    return F.interpolate(x * mask, (size, size), mode="area") / weight.clamp_min(1e-9) * (weight > 0)


def _unit(x: Tensor, mask: Tensor | None, size: int) -> Tensor:
    return F.normalize(F.interpolate(x, (size, size), mode="area"), dim=1)


def _nearest(x: Tensor, mask: Tensor | None, size: int) -> Tensor:
    return F.interpolate(x.float(), (size, size), mode="nearest").to(x.dtype)


# (values, mask, side): the mask is None but for depth, which alone reads it.
RESIZE: dict[str, Callable[[Tensor, Any, int], Tensor]] = {
    "area": _area,
    "masked": _masked,
    "unit": _unit,
    "nearest": _nearest,
}
