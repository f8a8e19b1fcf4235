"""The cross-task study: which networks are trained, on which images, from a notebook's parameters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from ..base import records
from ..base.errors import InputError, Record, at_least, choose, probe_epochs
from ..base.names import CLEAN, DATASETS, ENCODERS, METHODS, OWN, TASKS
from ..nets.encoders import ROUTED
from ..tasks import labels
from ..tasks.definitions import Labelled
from ..training import weighting
from ..training.multitask import Recipe
from . import executor, images, several_tasks
from .conditions import seeds_of
from .description import Images, depends, of_files
from .executor import Failure, Job
from .several_tasks import LabelledSets, Run

VIEWS = 2  # test views whose outputs are kept, to be shown


def planned(config: Mapping[str, Any]) -> list[Run]:
    """The runs of all methods and `conditions.seeds_of` a notebook's parameters, clean first, one's own file last.

    Raises InputError.
    """
    source = DATASETS[choose(config["dataset"], DATASETS, "data set")]
    _check(config)
    names = _distinct(config["tasks"], "tasks") or source.tasks
    for task in names:
        choose(task, TASKS, "task")
    clean = images.of_config(config, size=config["size"], target=config["target"])
    first = Run(
        images=clean,
        rare=config["rare"],
        tasks=names,
        single=tuple(config["single"]) or (clean.target,),
        transfer=config["transfer"],
        encoder=config["encoder"],
        recipe=Recipe(**{name: config[name] for name in ("epochs", "batch_size", "lr", "weighting")}),
        seed=0,
        probes=probe_epochs(config["epochs"], config["probe_epochs"]),
        sal_images=config["sal_images"],
    )
    if unknown := set(first.single) - set(first.tasks):
        raise InputError(f"single names {sorted(unknown)[0]}, which is not among the tasks; add it there")
    own = replace(clean, method=OWN, poison=config["poison"])
    return [
        replace(first, images=own if method == OWN else images.draw(clean, method, seed, config["poisons"]), seed=seed)
        for method in (CLEAN, *config["methods"], *[OWN] * bool(config["poison"]))
        for seed in seeds_of(config)
    ]


def _check(config: Mapping[str, Any]) -> None:
    """Raise InputError unless there is a poison to compare with, and names and numbers can be used."""
    if not config["methods"] and not config["poison"]:
        raise InputError("methods is empty; name a poison to compare with clean images, or give a poison of your own")
    for method in _distinct(config["methods"], "methods"):
        choose(method, METHODS, "method")
    choose(config["encoder"], ENCODERS, "encoder")
    _usable(config["weighting"], config["encoder"])
    _positive(config["lr"], "lr")
    for name in ("batch_size", "sal_images"):
        at_least(config[name], 1, name)


def variants(config: Mapping[str, Any]) -> list[Run]:
    """Joint networks of clean and `balance_methods` with other `weightings`, then with the attacked task's loss
    weighing `own_weights` times as much; none without `balance_methods`. Raises InputError.
    """
    names = config["balance_methods"]
    if other := [name for name in names if name not in config["methods"]]:
        raise InputError(f"balance_methods names {other[0]}, which is not among the methods; add it there or give []")
    if not names:
        return []
    base = planned({**config, "methods": names, "poison": None})
    chosen = [replace(run, single=(), transfer=False, probes=()) for run in base]
    others = _distinct([config["weighting"], *config["weightings"]], "weighting and weightings")[1:]
    changes: list[dict[str, Any]] = [{"weighting": _usable(name, config["encoder"])} for name in others]
    weights = [_positive(w, "own_weights") for w in _distinct(config["own_weights"], "own_weights")]
    changes += [{"weights": ((chosen[0].images.target, w),)} for w in weights]
    return [replace(run, recipe=replace(run.recipe, **change)) for change in changes for run in chosen]


def _distinct(values: Sequence[Any], what: str) -> tuple[Any, ...]:
    """The values as a tuple. Raises InputError if one comes twice."""
    for value in values:
        if list(values).count(value) > 1:
            raise InputError(f"{value} comes twice in {what}; name it once")
    return tuple(values)


def _positive(value: float, what: str) -> float:
    if not value > 0:
        raise InputError(f"{what} is {value}; it must be above 0")
    return float(value)


def _usable(name: str, encoder: str) -> str:
    """A weighting's name, if its package is there and the encoder has features that all tasks share."""
    weighting.make(name, [])
    if name in weighting.AGGREGATORS and encoder in ROUTED:
        raise InputError(f"{encoder} routes by task, so weighting {name} cannot be used; take equal or uncertainty")
    return name


# ---- Their images --------------------------------------------------------------------------------------------------


def parts(run: Run) -> tuple[Labelled, Labelled]:
    """(clean train, clean test) with labels for the run's tasks."""
    own = run.images
    return _clean(own.dataset, own.root, own.size, own.limit, run.tasks, run.rare, own.target)


@lru_cache(maxsize=2)
def _clean(
    dataset: str, root: str, size: int | None, limit: int | None, names: tuple[str, ...], rare: str, target: str
) -> tuple[Labelled, Labelled]:
    return labels.load(dataset, names, root=root, size=size, limit=limit, rare=rare, target=target)


def sets(run: Run) -> LabelledSets:
    """What a run needs: its images are poisoned, their labels are clean."""
    clean, test = parts(run)
    return LabelledSets(clean.with_images(images.of_method(run.images, clean.split)), clean, test)


# ---- Running them --------------------------------------------------------------------------------------------------


def run_all(chosen: Sequence[Run], *, views: int = 0, **options: Any) -> list[Record]:
    """Records of all runs in order. views: see `several_tasks.run`; options: of `executor.run_all`. Raises InputError.

    The runs belong to one study: they differ in method, recipe and seed alone.
    """
    label = f"{chosen[0].images.dataset} cross-task"
    found = executor.run_all(_work(chosen, views), label, len(chosen), **options)
    of_files(found, chosen)
    return found


def _work(chosen: Sequence[Run], views: int) -> Iterator[Job | Failure]:
    """Images are made, or found impossible to make, once a draw of a method."""
    made: dict[Images, LabelledSets | Exception] = {}
    digests: dict[Images, list[str]] = {}
    for run in chosen:
        if run.images not in made:
            try:
                made[run.images] = given = sets(run)
                digests[run.images] = given.digests()
            except Exception as error:  # it stops its own runs only
                made[run.images] = error
        own = made[run.images]
        if isinstance(own, Exception):
            yield Failure(str(run), records.reason(own))
        else:
            make = partial(several_tasks.run, run, own, views=views)
            yield Job(str(run), make, (depends(run), digests[run.images], views))


def study(config: Mapping[str, Any], **options: Any) -> Record:
    """All runs of the study and what is shown of its first test views: what notebook 02 draws from.

    options: of `executor.run_all`. Keys: `runs`; `rest` (runs with other weightings and weights); `tasks`, `target`;
    `views` (images, packed, and dense labels [n,k,h,w] by task, packed; the outputs are in the runs of seed 0).
    """
    chosen, others = planned(config), variants(config)
    found = run_all([*chosen, *others], views=VIEWS, **options)
    for run in found[len(chosen) :]:
        run.pop("views", None)  # nobody looks at theirs
    _, test = parts(chosen[0])
    dense = {task: values[:VIEWS] for task, values in test.labels.items() if TASKS[task].dense}
    return {
        "runs": found[: len(chosen)],
        "rest": found[len(chosen) :],
        "tasks": list(chosen[0].tasks),
        "target": chosen[0].images.target,
        "views": {
            "images": records.packed(test.images[:VIEWS].numpy()),
            "labels": {task: records.packed(values.half().numpy()) for task, values in dense.items()},
        },
    }
