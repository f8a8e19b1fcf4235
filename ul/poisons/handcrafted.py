"""Poisons that need no model: each takes uint8[n,c,h,w] images and int64[n] labels, and gives uint8 images."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..base import budgets
from ..data import pixels
from .onepixel import ops

GRID = 4  # LSP draws a 4x4 pattern per channel: 8x8 patches at 32x32


def noise(images: Tensor, labels: Tensor, *, eps: float, seed: int) -> Tensor:
    """Uniform noise in [-eps, eps], drawn for every image alone: the baseline at the same budget."""
    rng, out = Generator().manual_seed(seed), torch.empty_like(images)
    for rows in pixels.blocks_of(images):
        out[rows] = pixels.add(images[rows], (2 * torch.rand(images[rows].shape, generator=rng) - 1) * eps)
    return out


def noise_classwise(images: Tensor, labels: Tensor, *, eps: float, seed: int) -> Tensor:
    """Uniform noise in [-eps, eps], one draw for each class: a shortcut that nobody optimised."""
    rng = Generator().manual_seed(seed)
    drawn = (2 * torch.rand((int(labels.max()) + 1, *images.shape[1:]), generator=rng) - 1) * eps
    return torch.cat([pixels.add(images[rows], drawn[labels[rows]]) for rows in pixels.blocks_of(images)])


def lsp(images: Tensor, labels: Tensor, *, eps: float, seed: int) -> Tensor:
    """Linearly separable patterns of constant patches (Yu et al., "Availability Attacks Create Shortcuts", KDD 2022).

    Deviations: a seed (the public code draws without), rounding instead of truncation, enough samples for unbalanced
    classes, patches of ceil(h/4) pixels where h is not 32.
    """
    cells, out = lsp_cells(labels, images.shape[1], seed=seed), torch.empty_like(images)
    for rows in pixels.blocks_of(images):
        delta = grown(cells[rows], images.shape[-2:])
        out[rows] = pixels.add(images[rows], pixels.scaled_to_l2(delta, budgets.lsp(eps, delta[0].numel())))
    return out


def lsp_cells(labels: Tensor, channels: int, *, seed: int) -> Tensor:
    """Patterns float[n,c,4,4]: the next sample of the class's Gaussian cluster for each image, in order."""
    from sklearn.datasets import make_classification

    features, classes = channels * GRID * GRID, int(labels.max()) + 1
    most = int(torch.bincount(labels).max())
    x, y = make_classification(
        n_samples=2 * classes * most,
        n_features=features,
        n_informative=features,
        n_redundant=0,
        n_repeated=0,
        n_classes=classes,
        n_clusters_per_class=1,
        class_sep=10.0,
        flip_y=0.0,
        random_state=seed,
    )
    patterns = torch.zeros(len(labels), features)
    for c in range(classes):
        mine = labels == c
        patterns[mine] = torch.from_numpy(x[y == c][: int(mine.sum())]).float()
    return patterns.view(-1, channels, GRID, GRID)


def grown(cells: Tensor, size: Sequence[int]) -> Tensor:
    """Each cell as a constant patch of ceil(h/4) x ceil(w/4) pixels: float[n,c,4,4] to float[n,c,h,w]."""
    height, width = size
    tall = cells.repeat_interleave(-(-height // GRID), 2)
    return tall.repeat_interleave(-(-width // GRID), 3)[:, :, :height, :width]


def cuda(images: Tensor, labels: Tensor, *, eps: float, seed: int) -> Tensor:
    """Every image blurred with its class's 3x3 kernel (Sadasivan et al., "CUDA", CVPR 2023); eps unused, no budget.

    Each image is divided by its own largest value, as published; a black image stays black (the public code divides by
    zero). Deviation: rounding instead of truncation.
    """
    kernels, channels = cuda_kernels(int(labels.max()) + 1, seed=seed), images.shape[1]
    out = torch.empty_like(images)
    for c in range(len(kernels)):
        for rows in (labels == c).nonzero()[:, 0].split(pixels.block_size(images)):
            weight = kernels[c].expand(channels, 1, 3, 3)
            blurred = F.conv2d(pixels.to_float(images[rows]), weight, padding=1, groups=channels)
            out[rows] = pixels.to_uint8(blurred / blurred.flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1))
    return out


def cuda_kernels(classes: int, *, seed: int) -> Tensor:
    """float[classes,3,3]: uniform in [0, 0.3], one entry drawn at random set to 1; the same for all channels."""
    rng = Generator().manual_seed(seed)
    kernels = 0.3 * torch.rand((classes, 9), generator=rng)
    kernels[torch.arange(classes), torch.randint(0, 9, (classes,), generator=rng)] = 1.0
    return kernels.view(classes, 3, 3)


__all__ = ["cuda", "cuda_kernels", "grown", "lsp", "lsp_cells", "noise", "noise_classwise", "ops"]
