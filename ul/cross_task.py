"""The cross-task experiment: networks trained on one condition, together, one by one and on a frozen encoder."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from . import (
    benchmark,
    data,
    encoders,
    kept,
    labels,
    models,
    multitask,
    perturb,
    poisons,
    processes,
    records,
    tasks,
    taskwise,
    weighting,
)
from .benchmark import CLEAN
from .config import OWN, InputError, Record, at_least, choose, probe_epochs
from .labels import Labelled
from .multitask import MultiTask, Recipe

REGIMES = ("multi", "single", "transfer")
# What a run's numbers depend on besides its cell, its images and labels; an edit makes kept runs worthless.
CODE = (
    "benchmark", "cross_task", "defenses", "derived", "encoders", "extremes", "graph", "labels", "metrics", "models",
    "multitask", "perturb", "public", "sal", "tasks", "taskwise", "train", "vit", "weighting",
)  # fmt: skip
# Tasks where none are named: of views with several labels, and of classified images, whose other labels are derived.
SEVERAL = ("class_object", "class_scene", "keypoints2d", "depth_euclidean", "segment_unsup2d")
USUAL = {"rooms": SEVERAL, "taskonomy": tasks.HEADLINE, "taskonomy_medium": tasks.HEADLINE}
DERIVED = ("label", "keypoints2d", "edge_texture", "segment_unsup2d", "autoencoding")


@dataclass(frozen=True)
class Cell:
    """One condition and seed. tasks: trained together; single: which are also trained alone; paths: root and poison."""

    dataset: str
    root: str
    limit: int | None
    size: int | None
    rare: str
    tasks: tuple[str, ...]
    single: tuple[str, ...]
    transfer: bool
    method: str
    poison: str | None
    poison_recipe: str
    target: str  # the image-level target that the poison is made for
    eps: float
    encoder: str
    recipe: Recipe
    seed: int
    probes: tuple[int, ...]  # epochs, from 1, at which SAL and gradients are looked at
    sal_images: int


def cells(config: Mapping[str, Any]) -> list[Cell]:
    """The cells of all methods and seeds from a notebook's parameters, clean first, a file of one's own last.

    Raises InputError.
    """
    source = data.SOURCES[choose(config["dataset"], data.SOURCES, "data set")]
    _check(config)
    strength = poisons.strength(source.eps if config["eps"] is None else config["eps"])
    recipe = Recipe(**{name: config[name] for name in ("epochs", "batch_size", "lr", "weighting")})
    target = config["target"] or source.target
    names = _distinct(config["tasks"], "tasks") or USUAL.get(config["dataset"], DERIVED)
    for task in names:
        choose(task, tasks.NAMES, "task")
    first = Cell(
        dataset=config["dataset"], root=config["root"], limit=config["limit"], size=config["size"] or source.size,
        rare=config["rare"], tasks=names, single=tuple(config["single"]) or (target,),
        transfer=config["transfer"], method=CLEAN, poison=None, poison_recipe=config["recipe"],
        target=target, eps=strength, encoder=config["encoder"], recipe=recipe, seed=0,
        probes=probe_epochs(config["epochs"], config["probe_epochs"]), sal_images=config["sal_images"],
    )  # fmt: skip
    if unknown := set(first.single) - set(first.tasks):
        raise InputError(f"single names {sorted(unknown)[0]}, which is not among the tasks; add it there")
    folder, found = config["poisons"], [first]
    for method in config["methods"]:
        found.append(replace(first, method=method, poison=folder and f"{folder}/{first.dataset}-{method}.npz"))
    if config["poison"]:
        found.append(replace(first, method=OWN, poison=config["poison"]))
    return [replace(cell, seed=seed) for cell in found for seed in range(config["seeds"])]


def _check(config: Mapping[str, Any]) -> None:
    """Raise InputError unless there is a poison to compare with, and names and numbers can be used."""
    if not config["methods"] and not config["poison"]:
        raise InputError("methods is empty; name a poison to compare with clean images, or give a poison of your own")
    for method in _distinct(config["methods"], "methods"):
        choose(method, poisons.NAMES, "method")
    choose(config["encoder"], encoders.NAMES, "encoder")
    _usable(config["weighting"], config["encoder"])
    _positive(config["lr"], "lr")
    for name in ("seeds", "batch_size", "sal_images"):
        at_least(config[name], 1, name)


def variants(config: Mapping[str, Any]) -> list[Cell]:
    """Joint networks of clean and `balance_methods` with other `weightings`, then with the attacked task's loss
    weighing `own_weights` times as much; none without `balance_methods`. Raises InputError.
    """
    names = config["balance_methods"]
    if other := [name for name in names if name not in config["methods"]]:
        raise InputError(f"balance_methods names {other[0]}, which is not among the methods; add it there or give []")
    if not names:
        return []
    chosen = [
        replace(c, single=(), transfer=False, probes=()) for c in cells({**config, "methods": names, "poison": None})
    ]
    others = _distinct([config["weighting"], *config["weightings"]], "weighting and weightings")[1:]
    changes: list[dict[str, Any]] = [{"weighting": _usable(name, config["encoder"])} for name in others]
    weights = [_positive(w, "own_weights") for w in _distinct(config["own_weights"], "own_weights")]
    changes += [{"weights": ((chosen[0].target, w),)} for w in weights]
    return [replace(c, recipe=replace(c.recipe, **change)) for change in changes for c in chosen]


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
    if name in weighting.AGGREGATORS and encoder in encoders.ROUTED:
        raise InputError(f"{encoder} routes by task, so weighting {name} cannot be used; take equal or uncertainty")
    return name


@dataclass(frozen=True)
class Sets:
    """own: what the cell's networks train on; train and test: the clean images, for transfer and for scores."""

    own: Labelled
    train: Labelled
    test: Labelled


@lru_cache(maxsize=2)
def _clean(
    dataset: str, root: str, size: int | None, limit: int | None, names: tuple[str, ...], rare: str, target: str
) -> tuple[Labelled, Labelled]:
    return labels.load(dataset, names, root=root, size=size, limit=limit, rare=rare, target=target)


def parts(cell: Cell) -> tuple[Labelled, Labelled]:
    """(clean train, clean test) with labels for the cell's tasks."""
    return _clean(cell.dataset, cell.root, cell.size, cell.limit, cell.tasks, cell.rare, cell.target)


def poisoned(cell: Cell) -> Labelled:
    """What the cell's networks train on: clean images, a user's file or a poison made now, under clean labels."""
    train, _ = parts(cell)
    if cell.method == CLEAN:
        return train
    if cell.poison is not None:
        return train.with_images(data.read_poison(cell.poison, train.split))
    return train.with_images(poisons.make(
        cell.method, train.split, eps=cell.eps, seed=0, device=models.device(), target=cell.target,
        recipe=cell.poison_recipe,
    ))  # fmt: skip


def run(cell: Cell, sets: Sets | None = None, *, views: int = 0) -> Record:
    """The record of one cell: configuration, scores by regime and task, SAL and gradient cosines by probed epoch.

    views: for seed 0, the joint network's outputs on this many test views are kept under `views`, as lists of shape
    [n,k,h,w] with four digits.
    """
    start = time.monotonic()
    sets = Sets(poisoned(cell), *parts(cell)) if sets is None else sets
    where = models.device()
    with models.one_thread(where):
        together, probes, losses = _together(cell, sets.own, where)
        scores = {"multi": multitask.evaluate(together, sets.test), "single": _alone(cell, sets, where)}
        scores["transfer"] = _transferred(cell, together, sets) if cell.transfer else {}
    rows = [{"regime": r, "task": t, "value": v} for r, found in scores.items() for t, v in found.items()]
    records.note(
        f"cross-task {cell.dataset} {cell.method} seed {cell.seed}: {cell.recipe.epochs} epochs, "
        f"{len(cell.single)} single tasks, {time.monotonic() - start:.1f} s"
    )
    record = records.rounded(_configuration(cell, sets) | {"losses": losses, "scores": rows, "probes": probes})
    if views and cell.seed == 0:
        found = multitask.outputs(together, sets.test.images[:views])
        record["views"] = {t: records.rounded(out.tolist(), 4) for t, out in found.items() if out.ndim == 4}
    return record


def _together(cell: Cell, images: Labelled, where: torch.device) -> tuple[MultiTask, list[Record], list[float]]:
    model = multitask.make(cell.encoder, cell.tasks, images, seed=cell.seed)
    probes: list[Record] = []
    look = _probe(cell, images, where)
    losses = multitask.fit(
        model, images, recipe=cell.recipe, seed=cell.seed, device=where,
        on_epoch=lambda epoch, m: probes.append(look(epoch, m)) if epoch in cell.probes else None,
    )  # fmt: skip
    return model, probes, losses


def _probe(cell: Cell, images: Labelled, where: torch.device) -> Callable[[int, MultiTask], Record]:
    """SAL by task and gradient cosines on the first images of the run's own training set."""
    chosen = torch.randperm(len(images), generator=Generator().manual_seed(0))[: cell.sal_images]
    x = perturb.to_float(images.images[chosen].to(where)).contiguous(memory_format=torch.channels_last)
    y = {t: images.labels[t][chosen].to(where) for t in cell.tasks}
    units = {t: multitask.unit(t, images.labels[t]) for t in cell.tasks}

    def look(epoch: int, model: MultiTask) -> Record:
        found = taskwise.sal_by_task(model, x, y, units, batch_size=benchmark.SAL_BATCH[where.type])
        by_task = {t: part["sal"].tolist() for t, part in found.groupby("task", sort=False)}
        first = found[found["task"] == found["task"].iloc[0]]
        conflicts = taskwise.conflict(model, x, y).to_dict("records")
        layers = {"layer": first["layer"].tolist(), "weights": first["weights"].tolist()}
        return {"epoch": epoch, **layers, "sal": by_task, "conflict": conflicts}

    return look


def _alone(cell: Cell, sets: Sets, where: torch.device) -> dict[str, float]:
    """A network of its own for each task, of the same budget."""
    found: dict[str, float] = {}
    for task in cell.single:
        model = multitask.make(cell.encoder, [task], sets.own, seed=cell.seed)
        multitask.fit(model, sets.own, recipe=cell.recipe, seed=cell.seed, device=where)
        found |= multitask.evaluate(model, sets.test)
    return found


def _transferred(cell: Cell, model: MultiTask, sets: Sets) -> dict[str, float]:
    """New heads fitted to clean data on the frozen encoder."""
    fresh = MultiTask(model.encoder, {t: multitask.head(model.encoder, t, sets.train, cell.seed) for t in cell.tasks})
    multitask.fit_heads(fresh, sets.train, recipe=cell.recipe, seed=cell.seed)
    return multitask.evaluate(fresh, sets.test)


def _configuration(cell: Cell, sets: Sets) -> Record:
    contents: Record = {"train": sets.own.split.digest(), "test": sets.test.split.digest()}
    contents |= {"train_images": len(sets.own), "test_images": len(sets.test)}
    uninformed = multitask.uninformed(cell.tasks, sets.train, sets.test)
    return processes.described(asdict(cell), contents, models.device()) | {"uninformed": uninformed}


def identity(cell: Cell, contents: Sequence[str], views: int) -> str:
    """16 hex digits of configuration, code and data (`contents`: digests); a poison's place does not count."""
    settings = asdict(replace(cell, root="", poison=None))
    return kept.name(settings, *contents, views, kept.code(CODE), kept.machine())


def _digests(sets: Sets) -> list[str]:
    """Of the images and labels of each part."""
    parts = (sets.own, sets.train, sets.test)
    labelled = [records.digest(*(part.labels[task].numpy() for task in sorted(part.labels))) for part in parts]
    return [part.split.digest() for part in parts] + labelled


def run_all(
    chosen: Sequence[Cell], *, jobs: int | None = None, views: int = 0, store: str | None = None
) -> list[Record]:
    """Records of all cells in order; on the CPU in `jobs` processes (default: one a core), each with one thread.

    The cells belong to one study: they differ in method, recipe and seed alone. store: folder that keeps finished runs;
    those whose configuration, code and data are unchanged are read from it. None: nowhere.
    """
    first = {cell.method: cell for cell in chosen}
    made = {method: Sets(poisoned(cell), *parts(cell)) for method, cell in first.items()}
    contents = {method: _digests(sets) for method, sets in made.items()} if store else {}
    paths = [Path(store) / f"{identity(cell, contents[cell.method], views)}.json" if store else None for cell in chosen]
    work = [(cell, made[cell.method], path) for cell, path in zip(chosen, paths, strict=True)]
    return processes.each(partial(_finish, views=views), work, f"{chosen[0].dataset} cross-task", jobs=jobs)


def _finish(cell: Cell, sets: Sets, path: Path | None, *, views: int) -> Record:
    return kept.once(path, cell.poison, lambda: run(cell, sets, views=views))


def save(runs: Sequence[Record], path: str | None) -> None:
    """Write the records to one JSON file, without views; None writes nothing."""
    if path is not None:
        records.save({"runs": [{k: v for k, v in run.items() if k != "views"} for run in runs]}, path)
