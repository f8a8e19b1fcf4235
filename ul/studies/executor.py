"""Many pieces of work at once: in processes or on a cluster, finished ones kept, failed ones reported at the end."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, cast

import joblib

from ..base import closure, records
from ..base.errors import InputError, Record, choose
from ..base.names import EXECUTORS
from ..nets.device import deterministic, device, one_thread
from . import processes, store

# What stands in a row of these, a job depends on by itself (`description.depends`): a new row changes no other.
TABLES = ("ul.base.names:DATASETS", "ul.base.names:METHODS")


@dataclass(frozen=True)
class Job:
    """One piece of work, of any study.

    name: in progress and failures. make(): its record, by a function at the top of a module of `ul` or a `partial` of
    one, whose code counts. depends: what the record depends on beside code: settings and digests, as JSON can hold.
    also: further functions whose code counts.
    """

    name: str
    make: Callable[[], Record]
    depends: tuple[Any, ...]
    also: tuple[Callable[..., Any], ...] = ()

    @property
    def identity(self) -> str:
        """16 hex digits of settings, data, code and machine. Raises ValueError for code that is not of `ul`."""
        functions = (self.make, *self.also)
        named = [_called(self.make)[0], *(_called(function) for function in self.also)]
        return store.name(named, *self.depends, closure.of_functions(functions, TABLES), store.machine())


def _called(function: Callable[..., Any]) -> list[Any]:
    """A function's name and, of a `partial`, its settings; those of `make` are what the job depends on."""
    whole = function if isinstance(function, partial) else partial(function)
    return [whole.func.__qualname__, *whole.args, whole.keywords]


MEND = "start workers with the same packages and `ul.base.arithmetic.settings()` in their environment"


@dataclass(frozen=True)
class Failure:
    """Work that could not be finished, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Left(Failure):
    """Work that was not begun in time."""


class OutOfTime(InputError):
    """Some work is left, and nothing of what was begun failed."""


def run_all(
    work: Iterable[Job | Failure],
    label: str,
    total: int,
    *,
    jobs: int | None = None,
    backend: str = EXECUTORS[0],
    address: str | None = None,
    folder: Path | str | None = None,
    until: float | None = None,
) -> list[Record]:
    """Records of all work in order; what fails does not stop the rest.

    work: `total` pieces; a failure stands for one that could not even be begun. label: of the progress. jobs: how many
    at once (default: one a core, on a GPU as many as its memory holds), each with one thread. backend: "processes", or
    "dask" or "ray" (extra `cluster`) on the cluster at `address` (default: a local one). folder: keeps finished work;
    what is there, with unchanged settings, code and data, is read instead of run (default: a temporary one, left only
    if something fails). until: by `time.time()`, after it nothing is begun; what is left then raises OutOfTime. Raises
    InputError that names everything that failed and its reason, once all others are finished, or says that a worker
    process is lost.
    """
    choose(backend, EXECUTORS, "backend")
    own = None if folder or address else Path(mkdtemp(prefix="ul-runs-"))
    kept = own if folder is None else Path(folder)
    try:
        found = _carried_out(_tasks(work, kept, until, strict=own is None), label, total, jobs, backend, address)
    except Exception as error:
        if type(error).__name__ not in LOST:
            raise
        reason = records.reason(error)[:300]
        raise InputError(f"a worker is lost ({reason}); run again, {_where(kept)}") from error
    if failed := [f for f in found if isinstance(f, Failure) and not isinstance(f, Left)]:
        reasons = "; ".join(map(str, failed))
        raise InputError(f"{len(failed)} of {len(found)} runs failed: {reasons} ({_where(kept)})")
    if left := [f for f in found if isinstance(f, Left)]:
        what = f"{len(left)} of {len(found)} runs are left, the next is {left[0].name}"
        raise OutOfTime(f"{label}: {what}; {_where(kept)}")
    if own is not None:
        shutil.rmtree(own)
    return cast(list[Record], found)


def _tasks(
    work: Iterable[Job | Failure], kept: Path | None, until: float | None, *, strict: bool
) -> Iterator[tuple[Job | Failure, Path | None, list[Any], float | None]]:
    """Work with its file, `store.machine` and `until`. Work of code that is not of `ul` has no file; with `strict` it
    raises ValueError.
    """
    wanted = store.machine()
    for job in work:
        path = None
        if kept is not None and isinstance(job, Job):
            try:
                path = kept / f"{job.identity}.json"
            except ValueError:
                if strict:
                    raise
        yield job, path, wanted, until


def _finish(job: Job | Failure, path: Path | None, wanted: list[Any], until: float | None) -> Record | Failure:
    """The record of a job: the kept one, or a new one, kept at once by the process that made it, with one thread.

    wanted: `store.machine` where the job comes from; a worker of another kind would give other numbers. until: after
    that moment it is left.
    """
    if isinstance(job, Failure):
        return job
    if until is not None and time.time() > until and _there(job, path) is None:
        return Left(job.name, "no time was left to begin it")
    if (own := store.machine()) != wanted:
        return Failure(job.name, f"the worker computes otherwise ({own} instead of {wanted}); {MEND}")
    try:
        with one_thread(device()), deterministic(device()):
            return store.once(path, job.make)
    except Exception as error:  # whatever it is, the others go on
        return Failure(job.name, records.reason(error))


def _there(job: Job | Failure, path: Path | None, *_: Any) -> Record | Failure | None:
    """A failure, or what is kept of a job; None if it has to be run."""
    if isinstance(job, Failure):
        return job
    return None if path is None else store.load(path)


def _where(kept: Path | None) -> str:
    return f"finished runs are kept in {kept}" if kept else "nothing was kept"


# ---- Where they run ------------------------------------------------------------------------------------------------

Place = tuple[dict[str, Any], str]  # joblib's configuration, and how results come back


@contextmanager
def _dask(jobs: int, address: str | None) -> Iterator[Place]:
    """A scheduler at `address`, or a local cluster; its workers share the folder of finished work."""
    from distributed import Client, LocalCluster

    local = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
    with nullcontext(address) if address else LocalCluster(**local) as cluster, Client(cluster):
        yield {"backend": "dask", "n_jobs": -1}, "generator"


@contextmanager
def _ray(jobs: int, address: str | None) -> Iterator[Place]:
    """A Ray cluster at `address`, or a local one."""
    import ray
    from ray.util.joblib import register_ray

    own: dict[str, Any] = {} if address else {"num_cpus": jobs, "include_dashboard": False}
    ray.init(address=address, log_to_driver=False, **own)
    register_ray()
    try:
        everywhere = int(ray.cluster_resources().get("CPU", jobs)) if address else jobs
        # Ray's backend hands out nothing before all are finished.
        yield {"backend": "ray", "n_jobs": everywhere}, "list"
    finally:
        ray.shutdown()


CLUSTERS: dict[str, Callable[[int, str | None], AbstractContextManager[Place]]] = {"dask": _dask, "ray": _ray}
# What the backends raise for a process that died.
LOST = ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker", "WorkerCrashedError", "ActorDiedError")


def _carried_out(
    tasks: Iterator[tuple[Any, ...]], label: str, total: int, jobs: int | None, backend: str, address: str | None
) -> list[Record | Failure]:
    if backend not in CLUSTERS:
        return processes.each(_finish, tasks, label, total=total, jobs=jobs, finished=_there)
    return _on_cluster(tasks, CLUSTERS[backend](processes.how_many(total, jobs), address), label, total)


def _on_cluster(
    tasks: Iterator[tuple[Any, ...]], place: AbstractContextManager[Place], label: str, total: int
) -> list[Record | Failure]:
    with place as (options, how), joblib.parallel_config(**options), joblib.Parallel(return_as=how) as parallel:
        return list(records.progress(parallel(joblib.delayed(_finish)(*task) for task in tasks), label, total))
