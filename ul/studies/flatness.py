"""Flat minima: what sharpness-aware minimisation calls flat and what SAL calls unlearnable, on the same networks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch.nn import functional as F

from ..base import ud
from ..base.errors import InputError, Record, choose
from ..base.names import CLEAN
from ..nets.device import device, one_thread
from ..sharpness import sal, scores
from ..sharpness.scores import RADIUS
from ..training import defenses, metrics, victim
from . import executor, paths
from .description import depends
from .executor import Job
from .paths import PathSets, Run
from .victims import sal_subset

RADII = (0.0, RADIUS)  # of SAM's training; 0: SGD


def chosen(runs: Sequence[Run], methods: Sequence[str], seeds: int) -> list[Run]:
    """The runs of clean and these methods, of the first seeds; none without methods. Raises InputError."""
    if not methods:
        return []
    if runs[0].architecture == "linear":
        raise InputError("a linear network has one layer, UD's threshold needs two or more; leave flat_methods empty")
    known = {run.images.method for run in runs}
    names = [CLEAN, *(choose(name, known, "name in flat_methods") for name in methods)]
    return [run for run in runs if run.images.method in names and run.seed < seeds]


def measure(runs: Sequence[Run], given: Mapping[str, PathSets], **options: Any) -> list[Record]:
    """Train each run by SGD (radius 0) and by SAM, and measure both kinds of flatness: a row a network.

    Keys method, seed, sam, test_accuracy (0..1); on the run's own training images and on the same ones unpoisoned
    loss (nats), sharpness (nats), curvature (top eigenvalue of the Hessian); sal: the layers' mean on own images
    (nats); ud: layers above the threshold of the clean SGD run of that seed over that run's, at the last epoch.
    """
    work = [_job(run, given, radius) for run in runs for radius in RADII]
    found = executor.run_all(work, f"{runs[0].images.dataset} flatness", len(work), **options)
    layers = {(row["method"], row["seed"], row["sam"]): row.pop("layers") for row in found}
    for row in found:
        clean = layers[CLEAN, row["seed"], RADII[0]]
        row["ud"] = ud.distance([layers[row["method"], row["seed"], row["sam"]]], [clean])
    return found


def _job(run: Run, given: Mapping[str, PathSets], radius: float) -> Job:
    own, clean = given[run.images.method], given[CLEAN]
    make = partial(measured, run, own, clean, radius)
    return Job(f"SAM {radius:g} of {run}", make, (depends(run), own.digests(), clean.digests(), radius))


def measured(run: Run, own: PathSets, clean: PathSets, radius: float) -> Record:
    """One row of `measure`, with SAL of the layers under `layers` instead of ud."""
    where = device()
    with one_thread(where):
        model = paths.network(run, own)
        victim.fit(
            model,
            paths.drawn(run, own.own),
            None,
            recipe=replace(run.recipe, sam=radius),
            defense=defenses.make("none"),
            seed=run.seed,
            device=where,
            target=run.images.target,
        )
        row: Record = {"method": run.images.method, "seed": run.seed, "sam": radius}
        row["test_accuracy"] = metrics.accuracy(model, *scores.on(own.test, run.images.target, where))
        parts = {"own": paths.drawn(run, own.own), "clean": paths.drawn(run, clean.own)}
        looked = {k: scores.on(sal_subset(s, run.looked), run.images.target, where) for k, s in parts.items()}
        for name, (x, y) in looked.items():
            row[f"loss_{name}"] = F.cross_entropy(metrics.logits(model, x), y).item()
            row[f"sharpness_{name}"] = scores.sharpness(model, x, y)
            row[f"curvature_{name}"] = scores.top_curvature(model, x, y)
        values = sal.per_layer(model, *looked["own"])["sal"].to_numpy()
    return row | {"sal": float(values.mean()), "layers": values.tolist()}
