"""Independent work in processes of this machine."""

import warnings
from collections.abc import Callable, Iterable, Sized
from typing import Any, TypeVar, cast

import joblib
from joblib.externals.loky import get_reusable_executor

from ..base import records
from ..nets.device import device

T = TypeVar("T")


def how_many(total: int, jobs: int | None = None) -> int:
    """`jobs`, but no more than pieces of work; by default one a core that this process may use, and one on a GPU."""
    usual = 1 if device().type == "cuda" else joblib.cpu_count()
    return max(1, min(jobs or usual, total))


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
