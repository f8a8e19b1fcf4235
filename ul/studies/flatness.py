"""Flat minima: what sharpness-aware minimisation calls flat and what SAL calls unlearnable, on the same networks."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..base.errors import InputError, Record, choose
from ..base.names import CLEAN
from ..sharpness.scores import RADIUS
from . import executor
from .description import depends
from .executor import Job
from .paths import PathSets, Run
from .sam_runs import measured

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
    loss (nats), sharpness (nats), curvature (top eigenvalue of the Hessian); layers: SAL of each on own images (nats),
    and sal, their mean.
    """
    work = [_job(run, given, radius) for run in runs for radius in RADII]
    return executor.run_all(work, f"{runs[0].images.dataset} flatness", len(work), **options)


def _job(run: Run, given: Mapping[str, PathSets], radius: float) -> Job:
    own, clean = given[run.images.method], given[CLEAN]
    make = partial(measured, run, own, clean, radius)
    return Job(f"SAM {radius:g} of {run}", make, (depends(run), own.digests(), clean.digests(), radius))
