"""Independent work in processes of this machine."""

import os
import warnings
from collections.abc import Callable, Iterable, Sized
from typing import Any, TypeVar, cast

import joblib
import torch
from joblib.externals.loky import get_reusable_executor

from . import models, records
from .config import Record

T = TypeVar("T")


def how_many(total: int, jobs: int | None = None) -> int:
    """`jobs` (default: one a core), but no more than pieces of work; one on a GPU, which they would share."""
    return 1 if models.device().type == "cuda" else min(jobs or os.cpu_count() or 1, total)


def described(settings: dict[str, Any], contents: dict[str, Any], where: torch.device) -> Record:
    """What a record says of how a run was made: config, data, machine, versions.

    settings: as a dict, with `root` and `poison`; of places on this machine only stays whether a file of poisoned
    images was given. contents: digests and numbers of the images.
    """
    config = {name: value for name, value in settings.items() if name != "root"}
    config["poison"] = settings["poison"] is not None
    machine = {"device": where.type, "threads": 1 if where.type == "cpu" else torch.get_num_threads()}
    return {"config": config, "data": contents, "machine": machine, "versions": records.versions()}


def each(
    function: Callable[..., T],
    work: Iterable[tuple[Any, ...]],
    label: str,
    *,
    total: int | None = None,
    jobs: int | None = None,
) -> list[T]:
    """function(*given) for every piece of `work`, as a list in order, with progress under `label`.

    work: of known length, or `total` long. jobs: see `how_many`.
    """
    total = len(cast(Sized, work)) if total is None else total
    jobs = how_many(total, jobs)
    if jobs == 1:
        return list(records.progress((function(*given) for given in work), label, total))
    try:
        with warnings.catch_warnings(), joblib.Parallel(n_jobs=jobs, return_as="generator") as parallel:
            # loky renews a worker whose memory grew by 300 MB, as it does from a small network to a large one
            warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
            found = parallel(joblib.delayed(function)(*given) for given in work)
            return list(records.progress(found, label, total))
    finally:
        get_reusable_executor().shutdown(wait=True)  # idle workers would be interrupted with the kernel
