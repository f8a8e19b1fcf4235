"""Flat minima: what sharpness-aware minimisation calls flat and what SAL calls unlearnable, on the same networks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import benchmark, convergence, landscape, metrics, models, processes, sal, scores, tables, train, ud
from .benchmark import CLEAN
from .config import InputError, Record
from .convergence import Cell, Sets
from .defenses import make
from .sal import frozen

RADIUS = 0.05  # of the ball that sharpness is measured in, as in SAM's training (L2 over all parameters)


def sharpness(model: nn.Module, images: Tensor, targets: Tensor, *, radius: float = RADIUS) -> float:
    """Rise of the mean cross-entropy (nats) `radius` up the gradient, eval mode (SAM: Foret et al. 2021, eq. 2)."""
    with frozen(model):
        weights = [p.requires_grad_(True) for p in model.parameters()]
        before = F.cross_entropy(model(images), targets)
        slopes = torch.autograd.grad(before, weights)
        step = radius / torch.cat([s.flatten() for s in slopes]).norm().clamp_min(1e-12)
        moved = {n: p + step * s for (n, p), s in zip(model.named_parameters(), slopes, strict=True)}
        with torch.no_grad():
            after = F.cross_entropy(torch.func.functional_call(model, moved, (images,)), targets)
    return (after - before).item()


def chosen(cells: Sequence[Cell], methods: Sequence[str], seeds: int) -> list[Cell]:
    """The cells of clean and these methods, of the first seeds; none without methods. Raises InputError."""
    if not methods:
        return []
    if cells[0].run.architecture == "linear":
        raise InputError("a linear network has one layer, UD's threshold needs two or more; leave flat_methods empty")
    names = [CLEAN, *convergence.among(methods, [c.run.method for c in cells], "flat_methods")]
    return [cell for cell in cells if cell.run.method in names and cell.run.seed < seeds]


def measure(cells: Sequence[Cell], given: Mapping[str, Sets], radii: Sequence[float]) -> pd.DataFrame:
    """Train each cell by SGD (radius 0) and by SAM, and measure both kinds of flatness: a row a network.

    Columns method, seed, sam, test_accuracy (0..1); on the run's own training images and on the same ones unpoisoned
    loss (nats), sharpness (nats), curvature (top eigenvalue of the Hessian); sal: the layers' mean on own images
    (nats); ud: layers above the threshold of the clean SGD run of that seed over that run's, at the last epoch.
    """
    rows, layers = [], {}
    work = [(cell, given, radius) for cell in cells for radius in radii]
    for row, values in processes.each(_measured, work, f"{cells[0].run.dataset} flatness"):
        rows.append(row)
        layers[row["method"], row["seed"], row["sam"]] = values
    for row in rows:
        clean = layers[CLEAN, row["seed"], radii[0]]
        row["ud"] = ud.distance(layers[row["method"], row["seed"], row["sam"]][None], clean[None])
    return pd.DataFrame(rows)


def _measured(cell: Cell, given: Mapping[str, Sets], radius: float) -> tuple[Record, np.ndarray]:
    where = models.device()
    with models.one_thread(where):
        return _trained(cell, given, radius, where)


def _trained(cell: Cell, given: Mapping[str, Sets], radius: float, where: torch.device) -> tuple[Record, np.ndarray]:
    run, sets = cell.run, given[cell.run.method]
    model = convergence.network(cell, sets)
    train.fit(
        model, convergence.drawn(cell, sets.own), None, recipe=replace(run.recipe, sam=radius), defense=make("none"),
        seed=run.seed, device=where, target=run.target,
    )  # fmt: skip
    row = {"method": run.method, "seed": run.seed, "sam": radius}
    row["test_accuracy"] = metrics.accuracy(model, *scores.on(sets.test, run.target, where))
    parts = {"own": convergence.drawn(cell, sets.own), "clean": convergence.drawn(cell, given[CLEAN].own)}
    looked = {k: scores.on(benchmark.sal_subset(s, cell.looked), run.target, where) for k, s in parts.items()}
    for name, (x, y) in looked.items():
        row[f"loss_{name}"] = F.cross_entropy(metrics.logits(model, x), y).item()
        row[f"sharpness_{name}"] = sharpness(model, x, y)
        row[f"curvature_{name}"] = landscape.top_curvature(model, x, y)
    values = sal.per_layer(model, *looked["own"])["sal"].to_numpy()
    return row | {"sal": float(values.mean())}, values


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with t-intervals: a row a method and radius."""
    return tables.over_seeds(table.drop(columns="seed"), ["method", "sam"])
