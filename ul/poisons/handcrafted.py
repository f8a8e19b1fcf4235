"""Poisons that need no model: each takes uint8[n,c,h,w] images and int64[n] labels, and gives uint8 images."""

from itertools import product

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from .. import perturb
from ..config import InputError

GRID = 4  # LSP draws a 4x4 pattern per channel: 8x8 patches at 32x32


def noise(images: Tensor, labels: Tensor, *, eps: float, seed: int) -> Tensor:
    """Uniform noise in [-eps, eps], drawn for every image alone: the baseline at the same budget."""
    rng = Generator().manual_seed(seed)
    return perturb.add(images, (2 * torch.rand(images.shape, generator=rng) - 1) * eps)


def noise_classwise(images: Tensor, labels: Tensor, *, eps: float, seed: int) -> Tensor:
    """Uniform noise in [-eps, eps], one draw for each class: a shortcut that nobody optimised."""
    rng = Generator().manual_seed(seed)
    drawn = (2 * torch.rand((int(labels.max()) + 1, *images.shape[1:]), generator=rng) - 1) * eps
    return torch.cat([perturb.add(images[rows], drawn[labels[rows]]) for rows in perturb.blocks(len(images))])


def lsp_length(eps: float, dimension: int) -> float:
    """LSP's Euclidean budget, 3/4 eps sqrt(d): 6/255 sqrt(3072) = 1.304 at eps = 8/255 (public code)."""
    return 0.75 * eps * dimension**0.5


def lsp(images: Tensor, labels: Tensor, *, eps: float, seed: int) -> Tensor:
    """Linearly separable patterns of constant patches (Yu et al., "Availability Attacks Create Shortcuts", KDD 2022).

    Deviations: a seed (the public code draws without), rounding instead of truncation, enough samples for unbalanced
    classes, patches of ceil(h/4) pixels where h is not 32.
    """
    delta = lsp_patterns(labels, images.shape[1:], seed=seed)
    return perturb.add(images, perturb.scaled_to_l2(delta, lsp_length(eps, delta[0].numel())))


def lsp_patterns(labels: Tensor, shape: tuple[int, int, int], *, seed: int) -> Tensor:
    """Unscaled patterns float[n,c,h,w]: the next sample of the class's Gaussian cluster for each image, in order."""
    from sklearn.datasets import make_classification

    channels, height, width = shape
    features, classes = channels * GRID * GRID, int(labels.max()) + 1
    most = int(torch.bincount(labels).max())
    x, y = make_classification(
        n_samples=2 * classes * most, n_features=features, n_informative=features, n_redundant=0, n_repeated=0,
        n_classes=classes, n_clusters_per_class=1, class_sep=10.0, flip_y=0.0, random_state=seed,
    )  # fmt: skip
    patterns = torch.zeros(len(labels), features)
    for c in range(classes):
        mine = labels == c
        patterns[mine] = torch.from_numpy(x[y == c][: int(mine.sum())]).float()
    cell = (-(-height // GRID), -(-width // GRID))
    grown = patterns.view(-1, channels, GRID, GRID).repeat_interleave(cell[0], 2).repeat_interleave(cell[1], 3)
    return grown[:, :, :height, :width]


def ops(images: Tensor, labels: Tensor, *, eps: float, seed: int) -> Tensor:
    """One pixel per class set to one corner colour (Wu et al., ICLR 2023, "One-Pixel Shortcut"); eps and seed unused.

    Deviation: any class count; a pair of position and colour serves one class only, as published.
    """
    out, taken = images.clone(), []
    for c in labels.unique().tolist():
        mine = labels == c
        row, column, colour = ops_choice(images[mine], taken)
        taken.append((row, column, colour))
        out[mine, :, row, column] = torch.tensor(colour, dtype=torch.uint8) * 255
    return out


def ops_choice(images: Tensor, taken: list[tuple]) -> tuple[int, int, tuple[int, ...]]:
    """The free (row, column, colour in {0,1}^c) with the largest mean|v - x| / std|v - x| over images and channels."""
    x = perturb.to_float(images).double()
    colours = list(product((0, 1), repeat=x.shape[1]))
    gap = torch.stack([(torch.tensor(v).view(1, -1, 1, 1) - x).abs() for v in colours])  # [colour,n,c,h,w]
    score = gap.mean((1, 2)) / gap.flatten(1, 2).std(1, correction=0).clamp_min(1e-6)
    for row, column, colour in taken:
        score[colours.index(colour), row, column] = -1
    best = int(score.argmax())
    if score.view(-1)[best] <= 0:
        raise InputError("OPS: no pixel and colour is left for the next class; use larger images or fewer classes")
    which, row, column = np.unravel_index(best, score.shape)
    return int(row), int(column), colours[which]


def cuda(images: Tensor, labels: Tensor, *, eps: float, seed: int) -> Tensor:
    """Every image blurred with its class's 3x3 kernel (Sadasivan et al., "CUDA", CVPR 2023); eps unused, no budget.

    Each image is divided by its own largest value, as published; a black image stays black (the public code divides by
    zero). Deviation: rounding instead of truncation.
    """
    kernels, channels = cuda_kernels(int(labels.max()) + 1, seed=seed), images.shape[1]
    out = torch.empty_like(images)
    for c in range(len(kernels)):
        for rows in (labels == c).nonzero()[:, 0].split(perturb.BLOCK):
            weight = kernels[c].expand(channels, 1, 3, 3)
            blurred = F.conv2d(perturb.to_float(images[rows]), weight, padding=1, groups=channels)
            out[rows] = perturb.to_uint8(blurred / blurred.flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1))
    return out


def cuda_kernels(classes: int, *, seed: int) -> Tensor:
    """float[classes,3,3]: uniform in [0, 0.3], one entry drawn at random set to 1; the same for all channels."""
    rng = Generator().manual_seed(seed)
    kernels = 0.3 * torch.rand((classes, 9), generator=rng)
    kernels[torch.arange(classes), torch.randint(0, 9, (classes,), generator=rng)] = 1.0
    return kernels.view(classes, 3, 3)
