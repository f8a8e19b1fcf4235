"""AR: noise that a class's autoregressive filter predicts exactly."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from ..base import budgets
from ..base.errors import InputError
from ..data import pixels

WINDOW = 3
MARGIN = 4  # rows and columns that are dropped: the random start
TRIALS = 3  # patterns on which a candidate filter is tried
LONGEST = 50.0  # Euclidean length of a pattern of 3x32x32 values: longer ones grow without bound
RESPONSE = 10.0  # least response of another class's filter, for 3x32x32 values
CANDIDATES = 64  # filters that are tried at once
ROUNDS = 200  # of candidates, before the search gives up


def ar(images: Tensor, labels: Tensor, *, eps: float, seed: int) -> Tensor:
    """Autoregressive noise (Sandoval-Segura et al., NeurIPS 2022, "Autoregressive Perturbations"), uint8[n,c,h,w].

    Each class has a 3x3 filter per channel; each image starts from its own noise, and in raster order every value is
    the filter's sum over the eight values before it. Deviations: filters are found here by the published criteria
    (scaled to the image size), and every trial pattern is checked for being finite, not the last one only.
    """
    rng = Generator().manual_seed(seed)
    filters = find_filters(int(labels.max()) + 1, images.shape[1:], rng=rng)
    out = torch.empty_like(images)
    for rows in pixels.blocks_of(images):
        patterns = generate(filters[labels[rows]], images.shape[-2:], rng=rng).float()
        out[rows] = pixels.add(images[rows], pixels.scaled_to_l2(patterns, budgets.ar(eps, patterns[0].numel())))
    return out


def generate(filters: Tensor, size: Sequence[int], *, rng: Generator) -> Tensor:
    """Patterns float64[n,c,h,w] from filters float64[n,c,3,3], every image from its own random start, all at once."""
    n, channels = filters.shape[:2]
    h, w = size[0] + MARGIN, size[1] + MARGIN
    field = torch.randn((n, channels, h, w), generator=rng, dtype=torch.float64).permute(2, 3, 0, 1).contiguous()
    weights = filters.permute(2, 3, 0, 1).contiguous()
    for i in range(WINDOW - 1, h):
        for j in range(WINDOW - 1, w):
            field[i, j] = (field[i - 2 : i + 1, j - 2 : j + 1] * weights).sum((0, 1))
    return field[MARGIN:, MARGIN:].permute(2, 3, 0, 1)


def residual(patterns: Tensor, filters: Tensor) -> Tensor:
    """What filters float[m,c,3,3] leave of patterns float[n,c,h,w]: float[n,m,c,h-2,w-2], 0 by a pattern's own."""
    m, channels = filters.shape[:2]
    kernel = filters.clone()
    kernel[..., -1, -1] = -1.0
    found = torch.conv2d(patterns, kernel.transpose(0, 1).reshape(channels * m, 1, 3, 3), groups=channels)
    return found.unflatten(1, (channels, m)).transpose(1, 2)


def find_filters(classes: int, shape: Sequence[int], *, rng: Generator) -> Tensor:
    """float64[classes,c,3,3]: entries of a channel sum to 1, the last is 0; stable, and each alien to the earlier ones.

    A candidate is kept if its trial patterns are at most 50 long and every earlier class's filter responds to them
    with at least 10 (both for 3x32x32 values; public code of AR). Raises InputError if too few are found.
    """
    found = torch.empty((0, shape[0], WINDOW, WINDOW), dtype=torch.float64)
    for _ in range(ROUNDS):
        for candidate, patterns in _stable(shape, rng):
            if len(found) < classes and _alien(patterns, found):
                found = torch.cat([found, candidate[None]])
        if len(found) == classes:
            return found
    raise InputError(f"AR: only {len(found)} of {classes} filters were found; use another seed or larger images")


def _stable(shape: Sequence[int], rng: Generator) -> list[tuple[Tensor, Tensor]]:
    """Candidates whose trial patterns are short enough, each with those patterns float64[3,c,h,w]."""
    drawn = torch.randn((CANDIDATES, shape[0], WINDOW, WINDOW), generator=rng, dtype=torch.float64)
    drawn[..., -1, -1] = 0
    drawn /= drawn.sum((-2, -1), keepdim=True)
    patterns = generate(drawn.repeat_interleave(TRIALS, 0), shape[1:], rng=rng).unflatten(0, (CANDIDATES, TRIALS))
    limit = LONGEST * (patterns[0, 0].numel() / 3072) ** 0.5
    kept = (patterns.flatten(2).norm(dim=2) <= limit).all(1)  # false for nan and infinity too
    return [(drawn[i], patterns[i]) for i in kept.nonzero()[:, 0].tolist()]


def _alien(patterns: Tensor, filters: Tensor) -> bool:
    if not len(filters):
        return True
    least = RESPONSE * patterns[0].numel() / 3072
    return bool((residual(patterns, filters).relu().sum((2, 3, 4)) >= least).all())
