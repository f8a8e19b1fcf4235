"""OPS: one pixel a class. Apart from the other handcrafted poisons because EM is combined with it."""

from itertools import product

import numpy as np
import torch
from torch import Tensor

from ..base.errors import InputError
from ..data import pixels

Shortcut = tuple[int, int, tuple[int, ...]]  # row, column, colour in {0, 1}^c


def ops(images: Tensor, labels: Tensor, *, eps: float, seed: int) -> Tensor:
    """One pixel per class set to one corner colour (Wu et al., ICLR 2023, "One-Pixel Shortcut"); eps and seed unused.

    Deviation: any class count; a pair of position and colour serves one class only, as published.
    """
    taken: list[Shortcut]
    out, taken = images.clone(), []
    for c in labels.unique().tolist():
        mine = labels == c
        row, column, colour = ops_choice(images[mine], taken)
        taken.append((row, column, colour))
        out[mine, :, row, column] = torch.tensor(colour, dtype=torch.uint8) * 255
    return out


def ops_choice(images: Tensor, taken: list[Shortcut]) -> Shortcut:
    """The free (row, column, colour in {0,1}^c) with the largest mean|v - x| / std|v - x| over images and channels."""
    colours = list(product((0, 1), repeat=images.shape[1]))
    moments = _moments(images)
    score = torch.stack([_score(*moments, torch.tensor(colour)) for colour in colours])
    for row, column, colour in taken:
        score[colours.index(colour), row, column] = -1
    best = int(score.argmax())
    if score.view(-1)[best] <= 0:
        raise InputError("OPS: no pixel and colour is left for the next class; use larger images or fewer classes")
    which, row, column = np.unravel_index(best, score.shape)
    return int(row), int(column), colours[which]


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square over images of each value, float64[c,h,w] in units of [0, 1], from exact integer sums."""
    first, second = torch.zeros((2, *images.shape[1:]), dtype=torch.int64)
    for rows in pixels.blocks_of(images):
        values = images[rows].long()
        first += values.sum(0)
        second += values.square().sum(0)
    return first / (255.0 * len(images)), second / (255.0**2 * len(images))


def _score(first: Tensor, second: Tensor, colour: Tensor) -> Tensor:
    """mean / standard deviation of |colour - x| over images and channels, float64[h,w]: |1 - x| = 1 - x in [0, 1]."""
    white = colour.bool().view(-1, 1, 1)
    mean = torch.where(white, 1 - first, first).mean(0)
    square = torch.where(white, 1 - 2 * first + second, second).mean(0)
    return mean / (square - mean**2).clamp_min(1e-12).sqrt()
