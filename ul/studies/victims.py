"""The experiment of this artifact: train a victim on one condition with SAL probes, and keep all of it as a record."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

import pandas as pd
import torch

from ..base import records
from ..base.errors import Record
from ..data import pixels
from ..data.split import Split, classes
from ..nets import classifiers
from ..nets.device import device
from ..sharpness import cut, public_code, sal
from ..training import defenses, victim
from .description import Images, Sets, described

SAL_BATCH = {"cpu": 64, "cuda": 512}  # 64 images of 32x32 stay in a core's cache: a fifth faster than 128


@dataclass(frozen=True)
class Sal:
    """One way to probe: on which images (`part`: the run's own training images, the clean ones, or test) and how."""

    images: int = 128
    part: str = "own"
    epsilon: float = 0.05
    steps: int = 20
    norm: str = "l2"
    estimator: str = "pgd"
    draw: int = 0  # of the images
    departures: tuple[str, ...] = ()  # of the public code (ul.sharpness.public_code); the search is then its own


@dataclass(frozen=True)
class Run:
    """One run, complete: what it trains on, how, and how SAL is probed."""

    images: Images
    architecture: str
    defense: str
    recipe: victim.Recipe
    seed: int
    probes: tuple[int, ...]  # epochs, from 1
    sal: Sal

    def __str__(self) -> str:
        images = self.images
        return f"{images.dataset} {images.method} {self.architecture} {self.defense} seed {self.seed}"


AtEnd = Callable[[Run, torch.nn.Module, Sets], dict[str, float]]
Look = Callable[[int, torch.nn.Module], object]


def run(
    chosen: Run, given: Sets, *, also: Mapping[str, Sal] = MappingProxyType({}), at_end: AtEnd | None = None
) -> Record:
    """Train one victim and probe SAL; the record holds configuration, versions, history and SAL per epoch and layer.

    also: further ways to probe the same network at the same epochs, kept under `also` by name. at_end(run, model,
    sets): called with the trained network, its numbers are kept under `scores`.
    """
    start, where = time.monotonic(), device()
    prepared, defense = defenses.make(chosen.defense).applied(given.own)
    history = victim.History()
    ways = {"sal": chosen.sal, **also}
    probes = {name: _Probe(chosen, way, given, prepared, where, history) for name, way in ways.items()}

    def look(epoch: int, model: torch.nn.Module) -> None:
        for probe in probes.values():
            probe(epoch, model)

    model = fit(chosen, given, prepared, defense, look, history)
    tables = {name: probe.tables for name, probe in probes.items()}
    record = described(chosen, _contents(given), where) | {"history": history.as_dict(), "sal": tables.pop("sal")}
    record |= {"also": {name: {"way": asdict(also[name]), "sal": tables[name]} for name in also}} if also else {}
    record |= {"scores": at_end(chosen, model, given)} if at_end else {}
    records.note(
        f"trained {chosen}: {chosen.recipe.epochs} epochs, {len(record['sal'])} SAL probes, test accuracy "
        f"{history.test_accuracy[-1]:.3f}, {time.monotonic() - start:.1f} s"
    )
    return record


def fit(
    chosen: Run,
    given: Sets,
    prepared: Split,
    defense: defenses.Defense,
    look: Look | None = None,
    history: victim.History | None = None,
) -> torch.nn.Module:
    """The run's network, trained on images that its defense has prepared. look: called after each epoch."""
    model = classifiers.make(
        chosen.architecture,
        channels=given.clean.images.shape[1],
        classes=classes(given.clean, given.test),
        size=given.clean.images.shape[-1],
        seed=chosen.seed,
    )
    victim.fit(
        model,
        prepared,
        given.test,
        recipe=chosen.recipe,
        defense=defense,
        seed=chosen.seed,
        device=device(),
        target=chosen.images.target,
        on_epoch=look,
        history=history,
    )
    return model


class _Probe:
    """Called after each epoch; keeps SAL of the listed epochs as plain lists."""

    tables: list[Record]

    def __init__(
        self, chosen: Run, way: Sal, given: Sets, prepared: Split, where: torch.device, history: victim.History
    ) -> None:
        self.run, self.way, self.history, self.tables, self.cuts = chosen, way, history, [], cut.Cuts()
        parts = {"own": prepared, "clean": given.clean, "test": given.test}
        looked = sal_subset(parts[way.part], way.images, draw=way.draw)
        self.images = pixels.to_float(looked.images.to(where)).contiguous(memory_format=torch.channels_last)
        self.targets = looked.targets[chosen.images.target].to(where)

    def __call__(self, epoch: int, model: torch.nn.Module) -> None:
        if epoch in self.run.probes:
            frame = self.departed(model) if self.way.departures else self.defined(model)
            known = frame.dropna(axis=1, how="all").astype(object)
            self.tables.append({"epoch": epoch, **known.where(known.notna(), None).to_dict("list")})

    def defined(self, model: torch.nn.Module) -> pd.DataFrame:
        return sal.per_layer(
            model,
            self.images,
            self.targets,
            epsilon=self.way.epsilon,
            steps=self.way.steps,
            norm=self.way.norm,
            estimator=self.way.estimator,
            errors=True,
            least=0.0,
            batch_size=SAL_BATCH[self.images.device.type],
            cuts=self.cuts,
        )

    def departed(self, model: torch.nn.Module) -> pd.DataFrame:
        recipe = self.run.recipe
        return public_code.per_layer(
            model,
            self.images,
            self.targets,
            self.way.departures,
            train_loss=self.history.train_loss[-1],
            augment=lambda images, rng: victim.augment(images, pad=recipe.pad, flip=recipe.flip, rng=rng),
            epsilon=self.way.epsilon,
        )


def sal_subset(split: Split, count: int, *, draw: int = 0) -> Split:
    """The first `count` images of a fixed permutation: the same positions in a clean and in a poisoned run."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(draw))
    return split.take(order[:count])


def _contents(given: Sets) -> Record:
    own, test = given.own, given.test
    return {"train": own.digest(), "test": test.digest(), "train_images": len(own), "test_images": len(test)}
