"""The experiment of this artifact: train a victim on one condition with SAL probes, and keep all of it as a record."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import joblib
import torch
from joblib.externals.loky import get_reusable_executor

from . import data, defenses, models, perturb, poisons, records, sal, train
from .config import at_least, choose, probe_epochs

CLEAN = "clean"
SAL_BATCH = {"cpu": 64, "cuda": 512}  # 64 images of 32x32 stay in a core's cache: a fifth faster than 128


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
    sal_images: int
    sal_epsilon: float
    sal_steps: int


def cells(config: Mapping) -> list[Cell]:
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
        recipe=recipe, seed=0, probes=probes, sal_images=config["sal_images"], sal_epsilon=0.05, sal_steps=10,
    )  # fmt: skip
    return [replace(first, seed=seed) for seed in range(config["seeds"])]


@lru_cache(maxsize=4)
def clean_splits(dataset: str, root: str, size: int | None, limit: int | None, target: str):
    """(train, test) of a data set with one target; the test part is limited to half as many images."""
    held = None if limit is None else max(1, limit // 2)
    return tuple(
        data.load(dataset, part, root=root, size=size, limit=count, targets=(target,))
        for part, count in (("train", limit), ("test", held))
    )


def splits(cell: Cell):
    """(clean train, clean test) that a cell uses."""
    return clean_splits(cell.dataset, cell.root, cell.size, cell.limit, cell.target)


def poisoned(cell: Cell) -> data.Split:
    """What the cell's victim trains on: clean images, a user's file, or a poison made now."""
    clean, _ = splits(cell)
    if cell.poison is not None:
        return data.read_poison(cell.poison, clean)
    if cell.method == CLEAN:
        return clean
    return poisons.make(
        cell.method, clean, eps=cell.eps, seed=cell.poison_seed, device=models.device(), target=cell.target,
        recipe=cell.poison_recipe,
    )  # fmt: skip


def run(cell: Cell, images: data.Split | None = None) -> dict:
    """Train one victim and probe SAL; the record holds configuration, versions, history and SAL per epoch and layer.

    images: the cell's training images if they are at hand (default: `poisoned(cell)`).
    """
    start = time.monotonic()
    clean, test = splits(cell)
    images = poisoned(cell) if images is None else images
    where = models.device()
    model = models.make(
        cell.architecture, channels=clean.images.shape[1], classes=data.SOURCES[cell.dataset].classes,
        size=clean.images.shape[-1], seed=cell.seed,
    )  # fmt: skip
    defense, probe = defenses.make(cell.defense), _Probe(cell, images, where)
    with models.one_thread(where):
        history = train.fit(
            model, images, test, recipe=cell.recipe, defense=defense, seed=cell.seed, device=where,
            target=cell.target, on_epoch=probe,
        )  # fmt: skip
    record = _configuration(cell, images, test, where) | {"history": history.as_dict(), "sal": probe.tables}
    records.note(
        f"trained {cell.dataset} {cell.method} {cell.architecture} {cell.defense} seed {cell.seed}: "
        f"{cell.recipe.epochs} epochs, {len(probe.tables)} SAL probes, test accuracy "
        f"{history.test_accuracy[-1]:.3f}, {time.monotonic() - start:.1f} s"
    )
    return records.rounded(record)


class _Probe:
    """Called after each epoch; keeps SAL of the listed epochs as plain lists."""

    def __init__(self, cell: Cell, images: data.Split, where: torch.device):
        self.cell, self.tables = cell, []
        self.chosen = sal_subset(defenses.make(cell.defense).prepare(images), cell.sal_images)
        images = perturb.to_float(self.chosen.images.to(where))
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.targets = self.chosen.targets[cell.target].to(where)

    def __call__(self, epoch: int, model: torch.nn.Module) -> None:
        if epoch in self.cell.probes:
            frame = sal.per_layer(
                model, self.images, self.targets, epsilon=self.cell.sal_epsilon, steps=self.cell.sal_steps,
                batch_size=SAL_BATCH[self.images.device.type],
            )  # fmt: skip
            self.tables.append({"epoch": epoch, **frame.to_dict("list")})


def sal_subset(split: data.Split, count: int) -> data.Split:
    """The first `count` images of a fixed permutation: the same positions in a clean and in a poisoned run."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return split.take(order[:count])


def _configuration(cell: Cell, images: data.Split, test: data.Split, where: torch.device) -> dict:
    settings = asdict(cell)
    settings["poison"] = cell.poison is not None
    del settings["root"]
    contents = {"train": images.digest(), "test": test.digest(), "train_images": len(images), "test_images": len(test)}
    machine = {"device": where.type, "threads": 1 if where.type == "cpu" else torch.get_num_threads()}
    return {"config": settings, "data": contents, "machine": machine, "versions": records.versions()}


def run_all(chosen: list[Cell], images: data.Split | None = None, *, jobs: int | None = None) -> list[dict]:
    """Records of all cells in order; on the CPU in `jobs` processes (default: one a core), each with one thread."""
    images = poisoned(chosen[0]) if images is None else images
    if models.device().type == "cuda":
        jobs = 1
    jobs = min(jobs or os.cpu_count() or 1, len(chosen))
    label = f"{chosen[0].dataset} {chosen[0].method}"
    if jobs == 1:
        return list(records.progress((run(cell, images) for cell in chosen), label, len(chosen)))
    with joblib.Parallel(n_jobs=jobs, return_as="generator") as parallel:
        found = list(records.progress(parallel(joblib.delayed(run)(c, images) for c in chosen), label, len(chosen)))
    # Workers that idle on would be interrupted with the kernel and write tracebacks.
    get_reusable_executor().shutdown(wait=True)
    return found


def clean_twin(chosen: list[Cell]) -> list[Cell]:
    """The same cells on clean images without a defense: what UD divides by."""
    return [replace(cell, method=CLEAN, poison=None, defense="none") for cell in chosen]


def save(runs: list[dict], path: str | None) -> None:
    """Write the records of one condition to one JSON file; None writes nothing."""
    if path is not None:
        records.save({"runs": runs}, path)
