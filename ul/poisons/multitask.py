"""MTUE: one perturbation an image that minimises the loss of every task at once."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ..base import records
from ..data import pixels
from ..tasks.definitions import TASKS, Labelled
from ..tasks.labels import every as all_tasks
from ..training import multitask, weighting
from ..training.multitask import MultiTask
from .surrogate import frozen
from .target import Target, counted

FLAT = 1e-4  # loss of the best constant predictor below which there is nothing to learn


@dataclass(frozen=True)
class MTUE:
    """`batches` steps of the multi-task surrogate, then `steps` descents of every image, `rounds` times."""

    encoder: str
    batch_size: int
    batches: int
    steps: int
    step: float  # in units of eps
    rounds: int
    lr: float = 3e-3


MTUE_RECIPES = {
    "published": MTUE("resnet18", batch_size=128, batches=40, steps=20, step=0.1, rounds=30),
    "cpu": MTUE("resnet8", batch_size=64, batches=20, steps=5, step=0.2, rounds=10),
}


def mtue(target: Target, *, eps: float, settings: MTUE) -> Tensor:
    """Error-minimising noise against every task that the images have labels for, uint8[n,c,h,w]; not published before.

    EM's min-min game (Huang et al., ICLR 2021) with a multi-task surrogate: every stored target and every label that
    can be derived from the images is a task, and each task's loss is weighed by the inverse of its gradient's mean
    length on the images, so that all pull alike (the idea of GradNorm, Chen et al., ICML 2018, on the perturbation).
    MTL-UE (Yu et al., ICML 2025) has a generator and class embeddings instead. The recipes are ours; `cpu`: ResNet-8,
    ten rounds of twenty batches of 64 and five steps of eps/5. A task that is the same on all images is left out.
    """
    every = _learnable(all_tasks(cast(Any, target.split)))
    model = multitask.make(settings.encoder, list(every.labels), every, seed=target.seed).to(
        target.device, memory_format=torch.channels_last
    )  # type: ignore[call-overload]  # torch's types of `to` lack it
    counted(model.encoder)
    game = _Game(model, every, target, settings)
    delta = torch.zeros(every.images.shape, device=target.device)
    for round_ in range(1, settings.rounds + 1):
        loss = game.train(delta)
        delta = game.minimise(delta, eps)
        records.note(f"mtue round {round_}: surrogate loss {loss:.3f} of the best constant predictor's")
    return pixels.rounded(game.x, delta)


def _learnable(every: Labelled) -> Labelled:
    """Without the tasks that a constant answers."""
    kept = {n: values for n, values in every.labels.items() if multitask.unit(n, values) > FLAT}
    return replace(every, labels=kept)


class _Game:
    """The surrogate, and what it is trained on."""

    def __init__(self, model: MultiTask, every: Labelled, target: Target, settings: MTUE) -> None:
        self.model, self.settings, self.cursor = model, settings, 0
        self.x = pixels.to_float(every.images.to(target.device))
        self.y = {name: values.to(target.device) for name, values in every.labels.items()}
        self.units = {name: multitask.unit(name, values) for name, values in every.labels.items()}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)

    def train(self, delta: Tensor) -> float:
        """Steps on consecutive batches, going on where the last round stopped; the mean loss over tasks."""
        self.model.train().requires_grad_(True)
        joint, total = weighting.Equal(), 0.0
        for _ in range(self.settings.batches):
            rows = slice(self.cursor, self.cursor + self.settings.batch_size)
            x = (self.x[rows] + delta[rows]).clamp(0, 1)
            losses = multitask.step(self.model, x, self._labels(rows), self.units, joint, self.optimizer)
            total += torch.stack(list(losses.values())).mean().item()
            self.cursor = rows.stop if rows.stop < len(self.x) else 0
        return total / self.settings.batches

    def minimise(self, delta: Tensor, eps: float) -> Tensor:
        """Every image's noise moved down the balanced losses of the frozen surrogate, warm-started."""
        frozen(self.model)
        for rows in pixels.blocks(len(self.x), self.settings.batch_size):
            x, y = self.x[rows], self._labels(rows)
            weights = self._balance(x + delta[rows], y)
            delta[rows] = pixels.sign_descent(
                partial(self._weighed, y, weights),
                x,
                delta[rows],
                eps=eps,
                steps=self.settings.steps,
                step=self.settings.step * eps,
            )
        return delta

    def _labels(self, rows: slice) -> dict[str, Tensor]:
        return {name: values[rows] for name, values in self.y.items()}

    def _losses(self, z: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every task's loss, summed over images."""
        return {n: TASKS[n].loss(out, y[n]) * len(z) for n, out in self.model(z).items()}

    def _weighed(self, y: dict[str, Tensor], weights: dict[str, float], z: Tensor) -> Tensor:
        return cast(Tensor, sum(weights[n] * loss for n, loss in self._losses(z, y).items()))

    def _balance(self, z: Tensor, y: dict[str, Tensor]) -> dict[str, float]:
        """For each task one over the mean length of its gradient on an image."""
        leaf = z.detach().requires_grad_()
        losses = self._losses(leaf, y)
        slopes = {n: torch.autograd.grad(loss, leaf, retain_graph=True)[0] for n, loss in losses.items()}
        return {n: 1 / max(g.flatten(1).norm(dim=1).mean().item(), 1e-12) for n, g in slopes.items()}
