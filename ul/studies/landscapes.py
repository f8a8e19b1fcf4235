"""The loss landscapes of a convergence study: which views, kept as other finished work is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..base import records
from ..base.errors import Record
from ..base.names import CLEAN
from . import executor
from .description import depends
from .executor import Job
from .paths import PathSets, Run
from .surfaces import around, between, joint


class Ended(Protocol):
    """What is needed of a finished run."""

    @property
    def weights(self) -> np.ndarray:
        """At the recorded steps, float32[t,p]."""


def study(
    run: Run,
    given: Mapping[str, PathSets],
    first: Mapping[str, Ended],
    methods: Sequence[str],
    shown: Sequence[str],
    shares: np.ndarray,
    *,
    grid: int,
    images: int,
    **options: Any,
) -> Record:
    """`surfaces.joint` and `around` of the `shown` methods, as `planes` and `random`, and `between` of all.

    run: any of the study's; first: one finished run by method, clean among them. line: `shares`.
    """
    clean, size = first[CLEAN].weights, {"grid": grid, "images": images}
    of = {m: _as(run, m) for m in methods}
    work = [_job(joint, of[m], given, (first[m].weights, clean), size) for m in shown]
    work += [_job(around, of[m], given, (first[m].weights[-1],), size) for m in shown]
    ends = [(first[m].weights[-1], clean[-1], shares) for m in methods]
    work += [_job(between, of[m], given, arrays, {"images": images}) for m, arrays in zip(methods, ends, strict=True)]
    found = executor.run_all(work, f"{run.images.dataset} surfaces", len(work), **options)
    count = len(shown)
    return {
        "planes": dict(zip(shown, found[:count], strict=True)),
        "random": dict(zip(shown, found[count : 2 * count], strict=True)),
        "between": dict(zip(methods, found[2 * count :], strict=True)),
        "line": shares.tolist(),
    }


def _as(run: Run, method: str) -> Run:
    """The same network's run under another name."""
    return replace(run, images=replace(run.images, method=method))


def _job(
    make: Callable[..., Record], run: Run, given: Mapping[str, PathSets], arrays: Sequence[np.ndarray], size: Record
) -> Job:
    own, clean = given[run.images.method], given[CLEAN]
    name = f"{make.__name__} of {run}"
    depend = (depends(run), own.digests(), clean.digests(), [records.digest(array) for array in arrays], size)
    return Job(name, partial(make, run, own, clean, *arrays, **size), depend)
