"""What the landscape looks like around two runs: their joint plane, random planes, and the line between their ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Generator
from torch.nn.utils import vector_to_parameters

from . import benchmark, convergence, data, landscape, models
from .benchmark import CLEAN
from .convergence import Cell, Run, Sets
from .landscape import Plane


@dataclass(frozen=True)
class View:
    """surfaces: loss [y,x] in nats by objective; paths: [t,2] by condition; xs, ys: where, in units of the axes."""

    plane: Plane
    xs: np.ndarray
    ys: np.ndarray
    surfaces: dict[str, np.ndarray]
    paths: dict[str, np.ndarray]

    @property
    def labels(self) -> tuple[str, str]:
        """The axes in words, with the shares of the paths' variance that they explain."""
        if self.plane.explained is None:
            return "random direction 1", "random direction 2"
        return cast(
            tuple[str, str],
            tuple(f"component {i} ({share:.0%} of variance)" for i, share in enumerate(self.plane.explained, 1)),
        )


def objectives(method: str, given: Mapping[str, Sets], images: int) -> dict[str, data.Split]:
    """The same training images, unpoisoned and poisoned, that losses are taken over."""
    parts = {"clean images": given[CLEAN].own, f"{method} images": given[method].own}
    return {name: benchmark.sal_subset(split, images) for name, split in parts.items()}


def joint(cell: Cell, given: Mapping[str, Sets], clean: Run, own: Run, *, grid: int, images: int) -> View:
    """The plane of the two first principal components of a clean and a poisoned path together, with both objectives."""
    plane = landscape.pca_plane(torch.cat([clean.path.weights, own.path.weights]))
    paths = {run.method: plane.coordinates(run.path.weights).numpy() for run in (clean, own)}
    points = np.concatenate(list(paths.values()))
    low, high = points.min(0), points.max(0)
    xs, ys = (np.linspace(a - 0.25 * (b - a), b + 0.25 * (b - a), grid) for a, b in zip(low, high, strict=True))
    return View(plane, xs, ys, _surfaces(cell, given, own.method, plane, xs, ys, images), paths)


def _surfaces(
    cell: Cell, given: Mapping[str, Sets], method: str, plane: Plane, xs: np.ndarray, ys: np.ndarray, images: int
) -> dict[str, np.ndarray]:
    model = convergence.network(cell, given[method]).to(models.device())
    where = [torch.from_numpy(values).float() for values in (xs, ys)]
    return {
        name: landscape.surface(model, split, plane, *where, target=cell.run.target).numpy()
        for name, split in objectives(method, given, images).items()
    }


def around(cell: Cell, given: Mapping[str, Sets], run: Run, *, grid: int, images: int, seed: int = 0) -> View:
    """A filter-normalised random plane around the end of a run, from -1 to 1, with both objectives."""
    model = convergence.network(cell, given[run.method])
    vector_to_parameters(run.path.weights[-1], model.parameters())
    plane, at = landscape.random_plane(model, rng=Generator().manual_seed(seed)), np.linspace(-1, 1, grid)
    method = run.method if run.method != CLEAN else next(m for m in given if m != CLEAN)
    surfaces = _surfaces(cell, given, method, plane, at, at, images)
    return View(plane, at, at, surfaces, {run.method: np.zeros((1, 2))})


def between(
    cell: Cell, given: Mapping[str, Sets], clean: Run, own: Run, shares: np.ndarray, *, images: int
) -> dict[str, np.ndarray]:  # fmt: skip
    """On the straight line from the clean (0) to the poisoned end (1), float[shares] each: losses (nats), accuracy.

    Keys "clean", "own" (losses of the same training images, unpoisoned and poisoned) and "accuracy" (clean test, 0..1).
    """
    model = convergence.network(cell, given[own.method]).to(models.device())
    start, end = clean.path.weights[-1], own.path.weights[-1]
    line = Plane(start, torch.stack([end - start, torch.zeros_like(start)]))
    at, nowhere = torch.from_numpy(np.asarray(shares)).float(), torch.zeros(1)
    splits = dict(zip(("clean", "own"), objectives(own.method, given, images).values(), strict=True))
    found = {
        name: landscape.surface(model, split, line, at, nowhere, target=cell.run.target)[0].numpy()
        for name, split in splits.items()
    }
    test = given[own.method].test
    score = landscape.surface(model, test, line, at, nowhere, target=cell.run.target, score=landscape.hit)
    return found | {"accuracy": score[0].numpy()}
