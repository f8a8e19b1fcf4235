"""The convergence study: clean and poisoned runs from the same start in the same batch order, and interventions."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters

from . import benchmark, data, defenses, landscape, metrics, models, paths, perturb, processes, records, scores, train
from .benchmark import CLEAN
from .config import InputError, Record, at_least, choose, within
from .paths import Path


class Features(nn.Module):
    """Principal components of images, each of unit variance: fixed, so that all weights are the classifier's."""

    mean: Tensor
    axes: Tensor

    def __init__(self, images: Tensor, count: int) -> None:
        super().__init__()
        x = perturb.to_float(images).flatten(1)
        mean = x.mean(0)
        _, spread, turned = torch.linalg.svd(x - mean, full_matrices=False)
        turned = turned[:count]
        turned = turned * torch.sign(turned.gather(1, turned.abs().argmax(1, keepdim=True)))
        self.register_buffer("mean", mean)
        self.register_buffer("axes", (turned.T / spread[:count] * len(x) ** 0.5).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.mean) @ self.axes


MOVED = ("differing", "largest", "random", "rest")  # sets of parameters that interventions move
LOWEST = {"epochs": 2, "points": 1, "features": 1, "looked": 1, "grid": 2, "surface_images": 2, "flat_seeds": 0}


@dataclass(frozen=True)
class Cell:
    """One run. run: data, condition and recipe, its seed drawing batch order and crops; start: seed of the weights."""

    run: benchmark.Cell
    start: int
    features: int  # principal components that a linear network sees
    points: int  # recorded of the path, beside the start
    looked: int  # images that gradients and curvature are measured on
    share: float = 1.0  # of the training images that each seed draws, the same ones in every condition
    watched: bool = True  # every epoch is looked at, otherwise the end alone


@dataclass(frozen=True)
class Sets:
    """own: what the cell trains on; test: clean; features: of a linear network."""

    own: data.Split
    test: data.Split
    features: Features | None


def cells(config: Mapping[str, Any]) -> list[Cell]:
    """The cells of all methods and seeds from a notebook's parameters, clean first. Raises InputError."""
    if config["seeds"] < 3:
        raise InputError(f"seeds is {config['seeds']}; a spread over clean runs needs 3 or more")
    methods = config["methods"]
    if isinstance(methods, str) or not methods or CLEAN in methods:
        raise InputError(f"methods is {methods!r}; give a list of poisons, clean is always there")
    for name, low in LOWEST.items():
        at_least(config[name], low, name)
    own = {name: config[name] for name in ("start", "features", "points", "looked", "share")}
    if within(own["share"], "share") == 0:
        raise InputError("share is 0; every run needs images")
    if twice := [m for m in methods if list(methods).count(m) > 1]:
        raise InputError(f"{twice[0]} comes twice in methods; name it once")
    found = []
    for method in (CLEAN, *methods):
        folder = config["poisons"] if method != CLEAN else None
        poison = folder and f"{folder}/{config['dataset']}-{method}.npz"
        settings = {"defense": "none", "share": 1.0, "label_noise": 0.0, "sal_images": config["looked"]}
        for run in benchmark.cells({**config, **settings, "method": method, "poison": poison}):
            found.append(Cell(_plain(run), **own))
    return found


def among(names: Sequence[str], choices: Sequence[str], what: str) -> list[str]:
    """The names, if all are among the choices. Raises InputError that lists these."""
    for name in names:
        choose(name, set(choices), f"name in {what}")
    return list(names)


def _plain(run: benchmark.Cell) -> benchmark.Cell:
    """Principal components of crops and mirrors would be others: a linear network sees the images as they are."""
    return replace(run, recipe=replace(run.recipe, pad=0, flip=False)) if run.architecture == "linear" else run


def sets(chosen: Sequence[Cell]) -> dict[str, Sets]:
    """What the cells of a study train on, by method; a linear network's components are those of all methods' images.

    With the clean images' components alone most of a perturbation would be projected away.
    """
    first = {cell.run.method: cell for cell in reversed(chosen)}
    _, test = benchmark.splits(chosen[0].run)
    own = {method: benchmark.poisoned(first[method].run) for method in dict.fromkeys(c.run.method for c in chosen)}
    features = None
    if chosen[0].run.architecture == "linear":
        features = Features(torch.cat([split.images for split in own.values()]), chosen[0].features)
    return {method: Sets(split, test, features) for method, split in own.items()}


def network(cell: Cell, given: Sets) -> nn.Module:
    """The network before training: the same for every condition and seed of a study."""
    classes = data.classes(given.own, given.test)
    channels, size = given.own.images.shape[1], given.own.images.shape[-1]
    if given.features is None:
        return models.make(cell.run.architecture, channels=channels, classes=classes, size=size, seed=cell.start)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(cell.start)
        fc = nn.Linear(cell.features, classes, bias=False)
    return nn.Sequential(OrderedDict(features=given.features, fc=fc))


# ---- Runs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """record: configuration and one row an epoch, from 0, the start; path: its weights."""

    record: Record
    path: Path
    accuracy: float  # on clean test images, 0..1

    @property
    def method(self) -> str:
        return self.record["config"]["method"]

    @property
    def seed(self) -> int:
        return self.record["config"]["seed"]


def follow(cell: Cell, given: Sets, keep: np.ndarray | None = None) -> Run:
    """Train one network and record where its weights go. keep: bool[p], parameters that stay at their start."""
    where, run = models.device(), cell.run
    with models.one_thread(where):
        # torch's types of `to` lack memory_format.
        model = network(cell, given).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
        look, history, own = _Look(cell, given, model, where), train.History(), drawn(cell, given.own)
        steps = run.recipe.epochs * -(-len(own) // run.recipe.batch_size)
        look(0, model)
        still = nullcontext() if keep is None else paths.held(model, torch.as_tensor(keep))
        with still, paths.recorded(model, max(1, -(-steps // cell.points))) as path:
            train.fit(
                model, own, None, recipe=run.recipe, defense=defenses.make("none"), seed=run.seed,
                device=where, target=run.target, on_epoch=look, history=history,
            )  # fmt: skip
    for row in look.rows:
        if at := row["epoch"]:
            row |= {"train_loss": history.train_loss[at - 1], "train_accuracy": history.train_accuracy[at - 1]}
    held = "" if keep is None else ", part held"
    records.note(f"path {run.dataset} {run.method} seed {run.seed}: {steps} steps{held}")
    record = records.rounded(_configuration(cell, own, given.test, where) | {"epochs": look.rows})
    return Run(record, path, look.rows[-1]["test_accuracy"])


def _configuration(cell: Cell, own: data.Split, test: data.Split, where: torch.device) -> Record:
    more = {"start": cell.start, "features": cell.features, "points": cell.points, "drawn": cell.share}
    contents = {"train": own.digest(), "test": test.digest(), "train_images": len(own)}
    return processes.described(asdict(cell.run) | more, contents, where)


def drawn(cell: Cell, split: data.Split) -> data.Split:
    """The cell's share of the training images, drawn by its seed: the same positions in every condition."""
    if cell.share == 1:
        return split
    order = torch.randperm(len(split), generator=Generator().manual_seed(cell.run.seed))
    return split.take(order[: max(1, round(cell.share * len(split)))].sort().values)


class _Look:
    """Called after each epoch: losses and accuracies, gradient, distance from the start and, at probes, curvature."""

    rows: list[Record]

    def __init__(self, cell: Cell, given: Sets, model: nn.Module, where: torch.device) -> None:
        self.cell, self.rows, self.start = cell, [], landscape.vector(model)
        target = cell.run.target
        self.own = scores.on(benchmark.sal_subset(drawn(cell, given.own), cell.looked), target, where)
        self.test = scores.on(given.test, target, where)

    def __call__(self, epoch: int, model: nn.Module) -> None:
        if not self.cell.watched and epoch != self.cell.run.recipe.epochs:
            return
        out = metrics.logits(model, self.test[0])
        row = {
            "epoch": epoch, "test_loss": F.cross_entropy(out, self.test[1]).item(),
            "test_accuracy": (out.argmax(1) == self.test[1]).float().mean().item(),
            "gradient_norm": scores.gradient_norm(model, *self.own),
            "distance": (landscape.vector(model) - self.start).norm().item(),
        }  # fmt: skip
        if epoch in self.cell.run.probes:
            row["curvature"] = landscape.top_curvature(model, *self.own)
        self.rows.append(row)


def run_all(
    chosen: Sequence[Cell],
    given: Mapping[str, Sets],
    keep: Sequence[np.ndarray] | None = None,
) -> list[Run]:
    """All cells in order; on the CPU in processes, one a core, each with one thread."""
    masks = [None] * len(chosen) if keep is None else keep
    work = [(cell, given[cell.run.method], mask) for cell, mask in zip(chosen, masks, strict=True)]
    return processes.each(follow, work, f"{chosen[0].run.dataset} paths")


def save(runs: Sequence[Run], path: str | None) -> None:
    """Write the records to one JSON file; None writes nothing."""
    if path is not None:
        records.save({"runs": [run.record for run in runs]}, path)


# ---- Interventions -------------------------------------------------------------------------------------------------


def accuracy(cell: Cell, given: Sets, weights: Tensor, seen: Sequence[data.Split]) -> float:
    """Clean test accuracy (0..1) of a network with these weights, float[p].

    seen: images that batch norms take their statistics from, all together: moved weights have no use for old ones.
    """
    model = network(cell, given)
    vector_to_parameters(weights, model.parameters())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    if norms:
        images = torch.cat([split.images for split in seen])
        with torch.no_grad():
            for part in images.split(perturb.block_size(images)):
                model.train()(perturb.to_float(part))
    return metrics.accuracy(model, *scores.on(given.test, cell.run.target, torch.device("cpu")))


def sets_of(mask: np.ndarray, gap: np.ndarray, owners: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Sets of parameters to move, bool[p] each: the differing ones, as many others to compare with, and the rest.

    differing: `mask`; largest: as many with the largest `gap` at the end; random: as many of each layer, drawn; rest:
    all but the differing.
    """
    count = int(mask.sum())
    largest = np.zeros_like(mask)
    largest[np.argsort(-gap, kind="stable")[:count]] = True
    rng, random = np.random.default_rng(seed), np.zeros_like(mask)
    for layer in np.unique(owners):
        at = np.flatnonzero(owners == layer)
        random[rng.choice(at, int(mask[at].sum()), replace=False)] = True
    return dict(zip(MOVED, (mask, largest, random, ~mask), strict=True))


def transplants(
    cell: Cell, given: Mapping[str, Sets], own: Run, clean: Run, chosen: Mapping[str, np.ndarray]
) -> list[Record]:  # fmt: skip
    """Rows do ("transplant"), moved (name of the set), weights (how many), accuracy: what parts of a clean run bring.

    The clean run's end values of the chosen parameters, bool[p], are put into the poisoned network. With nothing moved
    it is the poisoned run itself, with everything the clean one; in between batch norms see both runs' images.
    """
    count = len(own.path.weights[-1])
    rows = [(name, int(mask.sum()), _mixed(cell, given, own, clean, mask)) for name, mask in chosen.items()]
    rows = [("nothing", 0, own.accuracy), ("everything", count, clean.accuracy), *rows]
    return [{"do": "transplant", "moved": n, "weights": w, "accuracy": a} for n, w, a in rows]


def _mixed(cell: Cell, given: Mapping[str, Sets], own: Run, clean: Run, mask: np.ndarray) -> float:
    weights = torch.where(torch.from_numpy(mask), clean.path.weights[-1], own.path.weights[-1])
    return accuracy(cell, given[own.method], weights, [given[own.method].own, given[CLEAN].own])


Chosen = Mapping[tuple[str, int], Mapping[str, np.ndarray]]  # sets of parameters, bool[p], by (method, seed) and name


def repeated(cells: Sequence[Cell], given: Mapping[str, Sets], chosen: Chosen, kind: str) -> list[Run]:
    """The cells once more, with one kind of their sets of parameters held at the start all along.

    chosen: `convergence_tables.held_sets`; kind: one of MOVED.
    """
    again = [replace(c, points=1, watched=False, run=replace(c.run, probes=())) for c in cells]
    keys = [(c.run.method, c.run.seed) for c in again]
    return run_all(again, given, [chosen[key][kind] for key in keys]) if again else []
