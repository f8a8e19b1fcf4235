"""Labels that Taskonomy computes itself: 2-D ones from the clean image, shading from depth and normals."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FULL = 512  # pixels a side at which Taskonomy computes its labels: filter widths below are for that size
FIELD = 0.577  # tan(fov / 2) of 60 degrees, Taskonomy's mean; views do not say theirs
NARROWEST = 1.0  # pixels: narrower filters see nothing between two pixels


def _grey(image: np.ndarray) -> np.ndarray:
    """float[h,w] in 0..1 from uint8[c,h,w]: ITU-R 601 luma, rounded to 8 bits as Pillow's mode L is."""
    if len(image) == 1:
        return image[0] / 255
    red, green, blue = image.astype(np.float64)
    return np.floor(0.299 * red + 0.587 * green + 0.114 * blue + 0.5) / 255


def _width(side: int, at_full_size: float) -> float:
    return at_full_size * side / FULL


def edges(image: np.ndarray) -> np.ndarray:
    """edge_texture: Sobel magnitude of the grey image after a Gaussian of 3 pixels at 512, float[1,h,w] in 0..1."""
    from skimage.filters import gaussian, sobel

    grey, sigma = _grey(image), _width(image.shape[-1], 3.0)
    weight = gaussian(np.ones_like(grey), sigma, mode="constant")
    return sobel(gaussian(grey, sigma, mode="constant") / weight)[None]


def keypoints(image: np.ndarray) -> np.ndarray:
    """keypoints2d: the largest determinant of the Hessian over ten widths up to 30 pixels at 512, float[1,h,w], >= 0.

    Below 512 pixels the widths shrink with the side, but not below one pixel.
    """
    from skimage.feature import hessian_matrix_det

    grey, side = _grey(image), image.shape[-1]
    widths = np.maximum(np.linspace(_width(side, 1), _width(side, 30), 10), NARROWEST)
    found = [hessian_matrix_det(grey, sigma, approximate=True) for sigma in np.unique(widths)]
    return np.clip(np.max(found, axis=0), 0, None)[None]


def regions(image: np.ndarray) -> np.ndarray:
    """segment_unsup2d: Felzenszwalb's regions, int64[1,h,w], ids from 0.

    Deviations: the regions are not merged by a normalised cut as Taskonomy's are, which takes seconds an image; instead
    the scale is 400, not 200 (on a real view of 64 pixels: 20 % boundary pixels, 21 % in Taskonomy's own label; adapted
    Rand error .25). Width and smallest region shrink with the side.
    """
    from skimage.segmentation import felzenszwalb

    side = image.shape[-1]
    pixels = image.transpose(1, 2, 0) if len(image) > 1 else image[0]
    least = max(2, round(20 * (side / FULL) ** 2))
    return felzenszwalb(pixels, 400, _width(side, 3), least).astype(np.int64)[None]


def boundaries(ids: np.ndarray) -> np.ndarray:
    """1.0 where a pixel's right or lower neighbour is of another region, else 0.0; [h,w]."""
    out = np.zeros(ids.shape, bool)
    out[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    out[:-1] |= ids[:-1] != ids[1:]
    return out.astype(np.float64)


def shading(depth: np.ndarray, normal: np.ndarray, *, tangent: float = FIELD) -> np.ndarray:
    """reshading: white surfaces lit from the camera, float[1,h,w] in 0..1: 1.6 cos(angle) 8 / (8 + metres^2).

    depth: metres along the ray, float[1,h,w], 0 where unknown (dark there); normal: float[3,h,w]; tangent: tan(fov/2).
    """
    side = depth.shape[-1]
    x = ((np.arange(side) + 0.5) * 2 / side - 1) * tangent
    rays = np.stack([*np.meshgrid(x, x), np.ones((side, side))])
    facing = -(normal * rays / np.linalg.norm(rays, axis=0)).sum(0)
    return np.where(depth > 0, np.clip(1.6 * facing * 8 / (8 + depth**2), 0, 1), 0)


@dataclass(frozen=True)
class Label:
    """How a label is computed for one view: from its image and those of its stored targets that it needs."""

    compute: Callable[..., np.ndarray]
    needs: tuple[str, ...] = ()  # besides, or for reshading instead of, the image


LABELS: dict[str, Label] = {
    "edge_texture": Label(edges),
    "keypoints2d": Label(keypoints),
    "segment_unsup2d": Label(regions),
    "reshading": Label(shading, ("depth_euclidean", "normal")),
}


def label(name: str, images: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """LABELS[name] of clean images uint8[n,c,h,w] at the side they are stored with: [n,1,h,w], float32 or int64 ids."""
    row = LABELS[name]
    columns = [targets[need].numpy() for need in row.needs] or [images.numpy()]
    found = torch.from_numpy(np.stack([row.compute(*given) for given in zip(*columns, strict=True)]))
    return found.float() if found.is_floating_point() else found
