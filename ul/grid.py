"""Many cells at once: in processes or on a cluster, finished ones kept in a folder, failed ones reported at the end."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from types import MappingProxyType
from typing import Any, cast

import joblib

from . import benchmark, data, kept, processes, records
from .benchmark import CLEAN, AtEnd, Cell, Sal
from .config import OWN, InputError, Record, choose

# What a run's numbers depend on besides its cell and its images; an edit of any of them makes kept cells worthless.
CODE = ("benchmark", "defenses", "extremes", "graph", "metrics", "models", "perturb", "public", "sal", "train", "vit")
ENDING = ("scores", "validation")  # where a function may come from whose scores at the end are kept


@dataclass(frozen=True)
class Failure:
    """A cell that could not be finished, and why."""

    cell: Cell
    reason: str

    def __str__(self) -> str:
        cell = self.cell
        return f"{cell.dataset} {cell.method} {cell.architecture} {cell.defense} seed {cell.seed}: {self.reason}"


# ---- Which cells ---------------------------------------------------------------------------------------------------


def conditions(
    config: Mapping[str, Any], methods: Sequence[str], *, poisons: str | None = None, baseline: bool = True
) -> list[Cell]:  # fmt: skip
    """The cells of several methods in one setting, all seeds of one method after another, each cell once.

    config: as for `benchmark.cells`; its method is not read. poisons: folder of <data set>-<method>.npz to read instead
    of making them; a file of the user's own (config["poison"]) is the method "own". baseline: the clean runs beside
    them, under the same defense and without one. Raises InputError.
    """
    if config["poison"] and CLEAN in methods:
        raise InputError(f"poison is {config['poison']}, but method is clean; name the method that it is closest to")
    if twice := [m for m in methods if list(methods).count(m) > 1]:
        raise InputError(f"{twice[0]} comes twice among the methods; name it once")
    if config["poison"] and (poisons or len(methods) > 1):
        raise InputError(f"poison is {config['poison']}: one file is one method; leave out poisons and the others")
    found = []
    for method in methods:
        file = f"{poisons}/{config['dataset']}-{method}.npz" if poisons and method != CLEAN else config["poison"]
        cells = benchmark.cells({**config, "method": method, "poison": file})
        found += [replace(cell, method=OWN) for cell in cells] if config["poison"] else cells
    if baseline:
        clean = [replace(cell, method=CLEAN, poison=None) for cell in found]
        found = [*benchmark.clean_twin(found), *clean, *found]
    return list(dict.fromkeys(found))


# ---- Finished cells ------------------------------------------------------------------------------------------------


def identity(cell: Cell, images: data.Split, also: Mapping[str, Sal], at_end: AtEnd | None = None) -> str:
    """16 hex digits of configuration, code and data; where a poison's file lies does not count."""
    settings = asdict(replace(cell, root="", poison=None))
    ways = {name: asdict(way) for name, way in also.items()}
    clean, test = benchmark.splits(cell)
    contents = [images.digest(), test.digest(), data.classes(clean, test), kept.code(CODE), kept.machine()]
    return kept.name(settings, ways, *contents, *_ending(at_end))


def _ending(at_end: AtEnd | None) -> list[Any]:
    """The name, settings and code of a function of ENDING, or of a `partial` of it. Raises ValueError for others."""
    if at_end is None:
        return []
    whole = at_end if isinstance(at_end, partial) else partial(at_end)
    module, name = whole.func.__module__, whole.func.__qualname__
    if module not in {f"{__package__}.{own}" for own in ENDING} or "<" in name:
        raise ValueError(f"{module}.{name} is no function of {' or '.join(ENDING)}, so what it finds cannot be kept")
    return [name, *whole.args, whole.keywords, kept.code(ENDING)]


def _finish(
    cell: Cell, images: data.Split | Failure, path: Path | None, options: Mapping[str, Any]
) -> Record | Failure:
    """The record of a cell: the kept one, or a new one, kept at once by the process that made it."""
    if isinstance(images, Failure):
        return replace(images, cell=cell)
    try:
        return kept.once(path, cell.poison, lambda: benchmark.run(cell, images, **options))
    except Exception as error:  # whatever it is, the other cells go on
        return Failure(cell, kept.reason(error))


def _images(cell: Cell) -> data.Split | Failure:
    try:
        return benchmark.poisoned(cell)
    except Exception as error:
        return Failure(cell, kept.reason(error))


def _tasks(
    chosen: Sequence[Cell], images: data.Split | None, store: Path | None, options: Mapping[str, Any]
) -> Iterator[tuple[Any, ...]]:
    """What `_finish` takes, cell by cell; images are made once for seeds that follow one another."""
    shared, current = None, images
    for cell in chosen:
        if images is None and replace(cell, seed=0) != shared:
            shared, current = replace(cell, seed=0), _images(cell)
        path = None
        if store is not None and not isinstance(current, Failure):
            path = store / f"{identity(cell, cast(data.Split, current), **options)}.json"
        yield cell, current, path, options


# ---- Where they run ------------------------------------------------------------------------------------------------


Place = tuple[dict[str, Any], str]  # joblib's configuration, and how results come back


@contextmanager
def _dask(jobs: int, address: str | None) -> Iterator[Place]:
    """A scheduler at `address`, or a local cluster; its workers share the folder of finished cells."""
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
        yield (
            {"backend": "ray", "n_jobs": everywhere},
            "list",
        )  # Ray's backend hands out nothing before all are finished
    finally:
        ray.shutdown()


HERE = "processes"
CLUSTERS: dict[str, Callable[[int, str | None], AbstractContextManager[Place]]] = {"dask": _dask, "ray": _ray}
# What the backends raise for a process that died.
LOST = ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker", "WorkerCrashedError", "ActorDiedError")


def run_all(
    chosen: Sequence[Cell], images: data.Split | None = None, *, jobs: int | None = None, backend: str = HERE,
    address: str | None = None, store: Path | str | None = None, also: Mapping[str, Sal] = MappingProxyType({}),
    at_end: AtEnd | None = None,
) -> list[Record]:  # fmt: skip
    """Records of all cells in order; a failed cell does not stop the others.

    images: what all of them train on (default: each its own). jobs: how many at once (default: one a core, one on a
    GPU), each with one thread. backend: "processes", or "dask" or "ray" (extra `cluster`) on the cluster at `address`
    (default: a local one). store: folder that keeps finished cells; those whose configuration, code and data are
    unchanged are read from it instead of run (default: a temporary one, left only if something fails). also, at_end:
    see `benchmark.run`; with a store at_end is a function of ENDING, or a `partial` of one (ValueError otherwise), and
    without one nothing is kept beside it.
    Raises InputError that names every failed cell and its reason, once all others are finished, or says that a worker
    process is lost.
    """
    choose(backend, [HERE, *CLUSTERS], "backend")
    own = None if store or at_end or address else Path(mkdtemp(prefix="ul-runs-"))
    store = own if store is None else Path(store)
    tasks = _tasks(chosen, images, store, {"also": dict(also), "at_end": at_end})
    try:
        found = _carried_out(tasks, _label(chosen), len(chosen), jobs, backend, address)
    except Exception as error:
        if type(error).__name__ not in LOST:
            raise
        raise InputError(f"a worker is lost ({kept.reason(error)[:300]}); run again, {_where(store)}") from error
    if failed := [f for f in found if isinstance(f, Failure)]:
        reasons = "; ".join(map(str, failed))
        raise InputError(f"{len(failed)} of {len(found)} runs failed: {reasons} ({_where(store)})")
    if own is not None:
        shutil.rmtree(own)
    return cast(list[Record], found)


def _carried_out(
    tasks: Iterator[tuple[Any, ...]], label: str, total: int, jobs: int | None, backend: str, address: str | None
) -> list[Record | Failure]:
    if backend == HERE:
        return processes.each(_finish, tasks, label, total=total, jobs=jobs)
    return _on_cluster(tasks, CLUSTERS[backend](processes.how_many(total, jobs), address), label, total)


def _label(chosen: Sequence[Cell]) -> str:
    """What stands before the progress: data set, architecture and defenses of the runs."""
    named = ["/".join(dict.fromkeys(getattr(c, n) for c in chosen)) for n in ("dataset", "architecture", "defense")]
    return " ".join(named)


def _where(store: Path | None) -> str:
    return f"finished runs are kept in {store}" if store else "nothing was kept"


def _on_cluster(
    tasks: Iterator[tuple[Any, ...]], place: AbstractContextManager[Place], label: str, total: int
) -> list[Record | Failure]:
    with place as (options, how), joblib.parallel_config(**options), joblib.Parallel(return_as=how) as parallel:
        return list(records.progress(parallel(joblib.delayed(_finish)(*task) for task in tasks), label, total))
