"""One run of the cross-task study: networks trained on one condition, together, one by one and on a frozen encoder."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator

from ..base import records
from ..base.errors import Record
from ..data import pixels
from ..nets.device import device
from ..sharpness import by_task
from ..tasks.definitions import Labelled
from ..training import multitask
from ..training.multitask import MultiTask, Recipe
from .description import Images, described
from .victims import SAL_BATCH


@dataclass(frozen=True)
class Run:
    """One condition and seed. tasks: trained together; single: which are also trained alone."""

    images: Images  # its target: the image-level one that the poison is made for
    rare: str
    tasks: tuple[str, ...]
    single: tuple[str, ...]
    transfer: bool
    encoder: str
    recipe: Recipe
    seed: int
    probes: tuple[int, ...]  # epochs, from 1, at which SAL and gradients are looked at
    sal_images: int

    def __str__(self) -> str:
        return f"cross-task {self.images.dataset} {self.images.method} {self.encoder} seed {self.seed}"


@dataclass(frozen=True)
class LabelledSets:
    """own: what the run's networks train on; clean and test: the clean images, for transfer and for scores."""

    own: Labelled
    clean: Labelled
    test: Labelled

    def digests(self) -> list[str]:
        """Of the images and labels of each part."""
        parts = (self.own, self.clean, self.test)
        labels = [records.digest(*(part.labels[task].numpy() for task in sorted(part.labels))) for part in parts]
        return [part.split.digest() for part in parts] + labels


def run(chosen: Run, given: LabelledSets, *, views: int = 0) -> Record:
    """The record of one run: configuration, scores by regime and task, SAL and gradient cosines by probed epoch.

    views: for seed 0, the joint network's outputs on this many test views are kept under `views`, float16[n,k,h,w] by
    task, packed.
    """
    start, where = time.monotonic(), device()
    together, probes, losses = _together(chosen, given.own, where)
    scores = {"multi": multitask.evaluate(together, given.test), "single": _alone(chosen, given, where)}
    scores["transfer"] = _transferred(chosen, together, given) if chosen.transfer else {}
    rows = [{"regime": r, "task": t, "value": v} for r, found in scores.items() for t, v in found.items()]
    records.note(
        f"trained {chosen}: {chosen.recipe.epochs} epochs, {len(chosen.single)} single tasks, "
        f"{time.monotonic() - start:.1f} s"
    )
    made = described(chosen, _contents(given), where)
    made["uninformed"] = multitask.uninformed(chosen.tasks, given.clean, given.test)
    record = made | {"losses": losses, "scores": rows, "probes": probes}
    if views and chosen.seed == 0:
        found = multitask.outputs(together, given.test.images[:views])
        record["views"] = {t: records.packed(out.half().numpy()) for t, out in found.items() if out.ndim == 4}
    return record


def _together(chosen: Run, images: Labelled, where: torch.device) -> tuple[MultiTask, list[Record], list[float]]:
    model = multitask.make(chosen.encoder, chosen.tasks, images, seed=chosen.seed)
    probes: list[Record] = []
    look = _probe(chosen, images, where)
    losses = multitask.fit(
        model,
        images,
        recipe=chosen.recipe,
        seed=chosen.seed,
        device=where,
        on_epoch=lambda epoch, m: probes.append(look(epoch, m)) if epoch in chosen.probes else None,
    )
    return model, probes, losses


def _probe(chosen: Run, images: Labelled, where: torch.device) -> Callable[[int, MultiTask], Record]:
    """SAL by task and gradient cosines on the first images of the run's own training set."""
    rows = torch.randperm(len(images), generator=Generator().manual_seed(0))[: chosen.sal_images]
    x = pixels.to_float(images.images[rows].to(where)).contiguous(memory_format=torch.channels_last)
    y = {t: images.labels[t][rows].to(where) for t in chosen.tasks}
    units = {t: multitask.unit(t, images.labels[t]) for t in chosen.tasks}

    def look(epoch: int, model: MultiTask) -> Record:
        found = by_task.sal_by_task(model, x, y, units, least=0.0, batch_size=SAL_BATCH[where.type])
        values = {t: part["sal"].tolist() for t, part in found.groupby("task", sort=False)}
        first = found[found["task"] == found["task"].iloc[0]]
        conflicts = by_task.conflict(model, x, y).to_dict("records")
        layers = {"layer": first["layer"].tolist(), "weights": first["weights"].tolist()}
        return {"epoch": epoch, **layers, "sal": values, "conflict": conflicts}

    return look


def _alone(chosen: Run, given: LabelledSets, where: torch.device) -> dict[str, float]:
    """A network of its own for each task, of the same budget."""
    found: dict[str, float] = {}
    for task in chosen.single:
        model = multitask.make(chosen.encoder, [task], given.own, seed=chosen.seed)
        multitask.fit(model, given.own, recipe=chosen.recipe, seed=chosen.seed, device=where)
        found |= multitask.evaluate(model, given.test)
    return found


def _transferred(chosen: Run, model: MultiTask, given: LabelledSets) -> dict[str, float]:
    """New heads fitted to clean data on the frozen encoder."""
    heads = {task: multitask.head(model.encoder, task, given.clean, chosen.seed) for task in chosen.tasks}
    fresh = MultiTask(model.encoder, heads)
    multitask.fit_heads(fresh, given.clean, recipe=chosen.recipe, seed=chosen.seed)
    return multitask.evaluate(fresh, given.test)


def _contents(given: LabelledSets) -> Record:
    contents: Record = {"train": given.own.split.digest(), "test": given.test.split.digest()}
    return contents | {"train_images": len(given.own), "test_images": len(given.test)}
