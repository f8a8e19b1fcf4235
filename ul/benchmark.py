"""The experiment of this artifact: train a victim on one condition with SAL probes, and keep all of it as a record."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, cast

import pandas as pd
import torch

from . import data, defenses, models, perturb, poisons, processes, public, records, sal, train
from .config import InputError, Record, at_least, choose, probe_epochs, within

CLEAN = "clean"
SAL_BATCH = {"cpu": 64, "cuda": 512}  # 64 images of 32x32 stay in a core's cache: a fifth faster than 128


@dataclass(frozen=True)
class Sal:
    """One way to probe: on which images (`part`: the run's own training images, the clean ones, or test) and how."""

    images: int = 128
    part: str = "own"
    epsilon: float = 0.05
    steps: int = 10
    norm: str = "l2"
    estimator: str = "pgd"
    draw: int = 0  # of the images
    departures: tuple[str, ...] = ()  # of the public code (ul.public); the search is then its own


@dataclass(frozen=True)
class Cell:
    """One run, complete: what it trains on, how, and how SAL is probed. `root` and `poison` are paths."""

    dataset: str
    root: str
    limit: int | None  # training images; None: all
    size: int | None  # side in pixels; None: as stored
    target: str
    method: str
    poison: str | None  # a file of poisoned images instead of making them
    poison_recipe: str
    poison_seed: int
    eps: float
    architecture: str
    defense: str
    recipe: train.Recipe
    seed: int
    probes: tuple[int, ...]  # epochs, from 1
    sal: Sal
    share: float = 1.0  # of the training images that are poisoned
    label_noise: float = 0.0  # share of the training labels that are drawn anew


def cells(config: Mapping[str, Any]) -> list[Cell]:
    """The cells of one condition, seeds 0 to n-1, from a notebook's parameters. Raises InputError for wrong values."""
    source = data.SOURCES[choose(config["dataset"], data.SOURCES, "data set")]
    choose(config["method"], [CLEAN, *poisons.NAMES], "method")
    choose(config["defense"], defenses.NAMES, "defense")
    base = train.RECIPES[choose(config["architecture"], models.NAMES, "architecture")]
    recipe = replace(base, epochs=config["epochs"], flip=base.flip and source.flip)
    probes = probe_epochs(config["epochs"], config["probe_epochs"])
    at_least(config["seeds"], 1, "seeds")
    named = {name: config[name] for name in ("dataset", "root", "limit", "method", "poison", "architecture", "defense")}
    strength = poisons.strength(source.eps if config["eps"] is None else config["eps"])
    first = Cell(
        **named, size=source.size, target=source.target, poison_recipe=config["recipe"], poison_seed=0, eps=strength,
        recipe=recipe, seed=0, probes=probes, sal=Sal(images=config["sal_images"]), share=config["share"],
        label_noise=config["label_noise"],
    )  # fmt: skip
    return [replace(first, seed=seed) for seed in range(config["seeds"])]


AtEnd = Callable[[Cell, torch.nn.Module, data.Split], dict[str, float]]


@lru_cache(maxsize=4)
def clean_splits(
    dataset: str, root: str, size: int | None, limit: int | None, target: str
) -> tuple[data.Split, data.Split]:
    """(train, test) of a data set with one target; the test part is limited to half as many images."""
    held = None if limit is None else max(1, limit // 2)
    return cast(tuple[data.Split, data.Split], tuple(
        data.load(dataset, part, root=root, size=size, limit=count, targets=(target,))
        for part, count in (("train", limit), ("test", held))
    ))  # fmt: skip


def splits(cell: Cell) -> tuple[data.Split, data.Split]:
    """(clean train, clean test) that a cell uses."""
    return clean_splits(cell.dataset, cell.root, cell.size, cell.limit, cell.target)


def poisoned(cell: Cell) -> data.Split:
    """What the cell's victim trains on: clean images, a user's file or a poison made now, in part, with label noise."""
    clean, _ = splits(cell)
    same: dict[str, Any] = {
        "seed": 0,
        "share": 1.0,
        "label_noise": 0.0,
        "architecture": "",
        "defense": "",
        "probes": (),
    }
    whole = _whole(replace(cell, **same, recipe=train.Recipe(), sal=Sal()))
    return relabelled(mixed(clean, whole, cell.share), cell.target, cell.label_noise)


@lru_cache(maxsize=8)
def _whole(cell: Cell) -> data.Split:
    """All images poisoned, kept for cells that differ in what the poison does not depend on."""
    clean, _ = splits(cell)
    if cell.poison is not None:
        return data.read_poison(cell.poison, clean)
    if cell.method == CLEAN:
        return clean
    return poisons.make(
        cell.method, clean, eps=cell.eps, seed=cell.poison_seed, device=models.device(), target=cell.target,
        recipe=cell.poison_recipe,
    )  # fmt: skip


def mixed(clean: data.Split, poison: data.Split, share: float) -> data.Split:
    """`poison` on this share (0..1) of the images, `clean` on the rest; a larger share holds a smaller one's images."""
    keep = _first(len(clean), 1 - within(share, "share"), seed=1)
    images = poison.images.clone()
    images[keep] = clean.images[keep]
    return replace(poison, images=images)


def relabelled(split: data.Split, target: str, share: float) -> data.Split:
    """This share (0..1) of the labels drawn anew, uniformly from the other classes.

    Raises InputError if there are no others.
    """
    chosen = _first(len(split), within(share, "label_noise"), seed=2)
    if not len(chosen):
        return split
    labels = split.targets[target].clone()
    classes = int(labels.max()) + 1
    if classes == 1:
        raise InputError(f"label_noise is {share}, but all labels are of one class; take more images or no label noise")
    shift = torch.randint(1, classes, (len(split),), generator=torch.Generator().manual_seed(3))
    labels[chosen] = (labels[chosen] + shift[chosen]) % classes
    return replace(split, targets=split.targets | {target: labels})


def _first(count: int, share: float, *, seed: int) -> torch.Tensor:
    """The first `share` of a fixed permutation of `count` rows."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: round(share * count)]


def run(
    cell: Cell, images: data.Split | None = None, *, also: Mapping[str, Sal] = MappingProxyType({}),
    at_end: AtEnd | None = None,
) -> Record:  # fmt: skip
    """Train one victim and probe SAL; the record holds configuration, versions, history and SAL per epoch and layer.

    images: the cell's training images if they are at hand (default: `poisoned(cell)`). also: further ways to probe the
    same network at the same epochs, kept under `also` by name. at_end(cell, model, images): called with the trained
    network, its numbers are kept under `scores`.
    """
    start = time.monotonic()
    clean, test = splits(cell)
    images = poisoned(cell) if images is None else images
    where = models.device()
    model = models.make(
        cell.architecture, channels=clean.images.shape[1], classes=data.classes(clean, test),
        size=clean.images.shape[-1], seed=cell.seed,
    )  # fmt: skip
    history = train.History()
    probes = {name: _Probe(cell, way, images, where, history) for name, way in {"sal": cell.sal, **also}.items()}
    with models.one_thread(where):
        train.fit(
            model, images, test, recipe=cell.recipe, defense=defenses.make(cell.defense), seed=cell.seed, device=where,
            # Each probe returns None; nobody reads the list.
            target=cell.target, on_epoch=lambda epoch, m: [probe(epoch, m) for probe in probes.values()],  # type: ignore[func-returns-value]
            history=history,
        )  # fmt: skip
    tables = {name: probe.tables for name, probe in probes.items()}
    record = _configuration(cell, images, test, where) | {"history": history.as_dict(), "sal": tables.pop("sal")}
    record |= {"also": {name: {"way": asdict(also[name]), "sal": tables[name]} for name in also}} if also else {}
    record |= {"scores": at_end(cell, model, images)} if at_end else {}
    records.note(
        f"trained {cell.dataset} {cell.method} {cell.architecture} {cell.defense} seed {cell.seed}: "
        f"{cell.recipe.epochs} epochs, {len(record['sal'])} SAL probes, test accuracy "
        f"{history.test_accuracy[-1]:.3f}, {time.monotonic() - start:.1f} s"
    )
    return records.rounded(record)


class _Probe:
    """Called after each epoch; keeps SAL of the listed epochs as plain lists."""

    tables: list[Record]

    def __init__(self, cell: Cell, way: Sal, images: data.Split, where: torch.device, history: train.History) -> None:
        self.cell, self.way, self.history, self.tables = cell, way, history, []
        chosen = sal_subset(_part(cell, way, images), way.images, draw=way.draw)
        self.images = perturb.to_float(chosen.images.to(where)).contiguous(memory_format=torch.channels_last)
        self.targets = chosen.targets[cell.target].to(where)

    def __call__(self, epoch: int, model: torch.nn.Module) -> None:
        if epoch in self.cell.probes:
            frame = self.departed(model) if self.way.departures else self.defined(model)
            self.tables.append({"epoch": epoch, **frame.dropna(axis=1).to_dict("list")})

    def defined(self, model: torch.nn.Module) -> pd.DataFrame:
        return sal.per_layer(
            model, self.images, self.targets, epsilon=self.way.epsilon, steps=self.way.steps, norm=self.way.norm,
            estimator=self.way.estimator, errors=True, batch_size=SAL_BATCH[self.images.device.type],
        )  # fmt: skip

    def departed(self, model: torch.nn.Module) -> pd.DataFrame:
        recipe = self.cell.recipe
        return public.per_layer(
            model, self.images, self.targets, self.way.departures, train_loss=self.history.train_loss[-1],
            augment=lambda images, rng: train.augment(images, pad=recipe.pad, flip=recipe.flip, rng=rng),
            epsilon=self.way.epsilon, iterations=self.way.steps,
        )  # fmt: skip


def _part(cell: Cell, way: Sal, images: data.Split) -> data.Split:
    """The images that a probe draws from: the run's own after its defense's preparation, the clean ones, or test."""
    clean, test = splits(cell)
    return {"own": defenses.make(cell.defense).prepare(images), "clean": clean, "test": test}[way.part]


def sal_subset(split: data.Split, count: int, *, draw: int = 0) -> data.Split:
    """The first `count` images of a fixed permutation: the same positions in a clean and in a poisoned run."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(draw))
    return split.take(order[:count])


def _configuration(cell: Cell, images: data.Split, test: data.Split, where: torch.device) -> Record:
    contents = {"train": images.digest(), "test": test.digest(), "train_images": len(images), "test_images": len(test)}
    return processes.described(asdict(cell), contents, where)


def clean_twin(chosen: list[Cell]) -> list[Cell]:
    """The same cells on clean images without a defense: what UD divides by."""
    return [replace(cell, method=CLEAN, poison=None, defense="none") for cell in chosen]


def save(runs: list[Record], path: str | None) -> None:
    """Write the records of one condition to one JSON file; None writes nothing."""
    if path is not None:
        records.save({"runs": runs}, path)
