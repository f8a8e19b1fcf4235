"""Independent work in processes of this machine."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar, cast

import joblib
import torch
from joblib.externals.loky import get_reusable_executor

from ..base import records
from ..nets.device import device

T = TypeVar("T")


# Nine runs of a ResNet-18 on 10,000 CIFAR-10 images took 66 GB of an H200, and 28 s a run where one alone took 49 s.
GPU_SHARE, GPU_MOST = 7.5 * 2**30, 9  # bytes that a run may take; more at once were not measured


def how_many(total: int, jobs: int | None = None) -> int:
    """`jobs`, but no more than pieces of work.

    By default one a core that this process may use; on a GPU as many of these as its free memory holds, GPU_MOST at
    most.
    """
    return max(1, min(jobs or _usual(), total))


def _usual() -> int:
    cores = joblib.cpu_count()
    if device().type != "cuda":
        return cores
    free, _ = torch.cuda.mem_get_info()
    return min(int(free // GPU_SHARE), GPU_MOST, cores)


def _never(*_: Any) -> None:
    return None


def each(
    function: Callable[..., T],
    work: Iterable[tuple[Any, ...]],
    label: str,
    *,
    total: int | None = None,
    jobs: int | None = None,
    finished: Callable[..., T | None] = _never,
) -> list[T]:
    """function(*given) for every piece of `work`, as a list in order, with progress under `label`.

    work: of known length, or `total` long. jobs: see `how_many`. finished(*given): a result that is there already, for
    which no process is started; None: there is none.
    """
    total = len(cast(Sized, work)) if total is None else total
    there: dict[int, T] = {}
    left = _left(work, finished, there)
    jobs = how_many(total, jobs)
    if jobs == 1:
        return _whole(((i, function(*given)) for i, given in left), there, label, total)
    try:
        with warnings.catch_warnings(), joblib.Parallel(n_jobs=jobs, return_as="generator") as parallel:
            # loky renews a worker whose memory grew by 300 MB, as it does from a small network to a large one
            warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
            found = parallel(joblib.delayed(_numbered)(i, function, given) for i, given in left)
            return _whole(found, there, label, total)
    finally:
        get_reusable_executor().shutdown(wait=True)  # idle workers would be interrupted with the kernel


def _left(
    work: Iterable[tuple[Any, ...]], finished: Callable[..., T | None], there: dict[int, T]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """What is to be done, with its place; what is `finished` goes into `there`."""
    for i, given in enumerate(work):
        if (found := finished(*given)) is None:
            yield i, given
        else:
            there[i] = found


def _numbered(i: int, function: Callable[..., T], given: tuple[Any, ...]) -> tuple[int, T]:
    return i, function(*given)


def _whole(found: Iterable[tuple[int, T]], there: dict[int, T], label: str, total: int) -> list[T]:
    """All results in order; progress counts those that were there as they are come upon."""
    results: dict[int, T] = {}
    for i, result in records.progress(_joined(found, there), label, total):
        results[i] = result
    return [results[i] for i in sorted(results)]


def _joined(found: Iterable[tuple[int, T]], there: dict[int, T]) -> Iterator[tuple[int, T]]:
    for pair in found:
        yield from _taken(there)
        yield pair
    yield from _taken(there)


def _taken(there: dict[int, T]) -> Iterator[tuple[int, T]]:
    while there:
        yield there.popitem()
