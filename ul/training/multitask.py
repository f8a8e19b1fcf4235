"""One network for several tasks, or one for each: a shared encoder with a light head a task, trained and scored."""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..base.errors import InputError
from ..data import pixels
from ..nets import encoders
from ..tasks.definitions import TASKS, Labelled
from . import weighting
from .victim import Crops, cropped, draws, shipped


@dataclass(frozen=True)
class Recipe:
    """How a multi-task network is trained: AdamW, linear warm-up, then cosine to zero."""

    epochs: int = 10
    batch_size: int = 16
    lr: float = 1e-2
    weight_decay: float = 1e-2
    warmup: float = 0.2  # share of the steps
    pad: int = 4  # pixels of zero padding before the random crop; no mirror: it would turn normals
    weighting: str = "equal"
    weights: tuple[tuple[str, float], ...] = ()  # of single tasks' losses, where not 1


class MultiTask(nn.Module):
    """encoder and one head a task; forward gives every task's outputs."""

    def __init__(self, encoder: encoders.AnyEncoder, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, nn.ModuleDict(heads)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The map [n, width, h, w] that each head reads; one and the same tensor unless the encoder routes by task."""
        if self.encoder.routed:
            return {task: self.encoder(x, task) for task in self.heads}
        return dict.fromkeys(self.heads, self.encoder(x))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {task: self.heads[task](f) for task, f in self.features(x).items()}

    def single(self, task: str) -> nn.Module:
        """The network of one task, over the same weights; its encoder's layers are called encoder…."""
        return OneTask(self, task)


class OneTask(nn.Module):
    """One task's outputs of a multi-task network, which it shares weights with."""

    def __init__(self, network: MultiTask, task: str) -> None:
        super().__init__()
        self.encoder, self.head, self.task = network.encoder, network.heads[task], task

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x, self.task) if self.encoder.routed else self.encoder(x))


def make(encoder: str, names: Sequence[str], data: Labelled, *, seed: int) -> MultiTask:
    """A network for the data's images and these tasks, initialised from `seed`; heads do not depend on one another."""
    channels, size = data.images.shape[1], data.images.shape[-1]
    body = encoders.make(encoder, channels=channels, size=size, tasks=list(names), seed=seed)
    return MultiTask(body, {name: head(body, name, data, seed) for name in names})


def head(encoder: encoders.AnyEncoder, name: str, data: Labelled, seed: int) -> nn.Module:
    """A new head of one task for an encoder; heads of two tasks start differently."""
    task = TASKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed * 2**32 + zlib.crc32(name.encode()))
        if task.dense:
            return encoders.dense_head(encoder.width, cast(int, task.outputs), encoder.stride)
        return encoders.class_head(encoder.width, int(data.labels[name].max()) + 1)


# ---- Training ------------------------------------------------------------------------------------------------------


def fit(
    model: MultiTask,
    data: Labelled,
    *,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[int, MultiTask], object] | None = None,
) -> list[float]:
    """Train in place on the tasks that the model has heads for; the mean loss of every epoch.

    recipe.weighting: a name of `weighting.WEIGHTINGS`. With "balanced" every loss is divided by what the best constant
    predictor has on the same labels, so that tasks of different units weigh alike. seed: batch order, crops and what
    the weighting draws. on_epoch(epoch, model): after each epoch, counted from 1. Raises InputError if the loss is no
    longer finite.
    """
    names, rng = list(model.heads), Generator().manual_seed(seed)
    # torch's types of `to` lack memory_format.
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    joint = weighting.make(recipe.weighting, names, seed=seed).to(device)
    units = _units(data, names, recipe)
    stacked, classes = _stack(data, names, device)
    steps = recipe.epochs * -(-len(data) // recipe.batch_size)
    optimizer, schedule = _optimizer([*model.parameters(), *joint.parameters()], recipe, steps)
    history = []
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        total = torch.zeros((), dtype=torch.float64, device=device)
        found = draws(len(data), recipe.batch_size, pad=recipe.pad, flip=False, crop=True, rng=rng)
        for index, crops in shipped(found, device):
            x, y = _batch(stacked, classes, index, cast(Crops, crops), data, names)
            losses = step(model, x, y, units, joint, optimizer)
            schedule.step()
            total += torch.stack(list(losses.values())).double().mean() * len(index)
        history.append(_finite(total.item() / len(data), data.split.name, epoch, recipe.lr))
        if on_epoch:
            on_epoch(epoch, model)
    return history


def _finite(loss: float, name: str, epoch: int, lr: float) -> float:
    if not math.isfinite(loss):
        raise InputError(f"{name}: loss is {loss} in epoch {epoch}; lower lr (now {lr})")
    return loss


def _units(data: Labelled, names: Sequence[str], recipe: Recipe) -> dict[str, float]:
    """What each task's loss is divided by."""
    weights = dict(recipe.weights)
    bases = {n: unit(n, data.labels[n]) if recipe.weighting == "balanced" else 1.0 for n in names}
    return {n: base / weights.get(n, 1.0) for n, base in bases.items()}


def fit_heads(model: MultiTask, data: Labelled, *, recipe: Recipe, seed: int, batch_size: int = 128) -> None:
    """Train the heads alone, in place, on features of the frozen encoder in eval mode, without crops."""
    names, rng = list(model.heads), Generator().manual_seed(seed)
    where = next(model.parameters()).device
    features = _features(model, data.images)
    units = {name: unit(name, data.labels[name]) for name in names}
    labels = {name: data.labels[name].to(where) for name in names}
    steps = recipe.epochs * -(-len(data) // batch_size)
    model.heads.to(where).train()
    optimizer, schedule = _optimizer(list(model.heads.parameters()), recipe, steps)
    for _ in range(recipe.epochs):
        for index in torch.randperm(len(data), generator=rng).split(batch_size):
            rows = index.to(where)
            found = [TASKS[n].loss(model.heads[n](features[n][rows]), labels[n][rows]) / units[n] for n in names]
            optimizer.zero_grad(set_to_none=True)
            torch.stack(found).mean().backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def _features(model: MultiTask, images: Tensor) -> dict[str, Tensor]:
    """Every task's map of uint8 images in eval mode; one tensor for all unless the encoder routes by task."""
    where = next(model.encoder.parameters()).device
    model.encoder.eval()
    blocks = [_input(block, where) for block in images.split(pixels.block_size(images))]
    if model.encoder.routed:
        return {t: torch.cat([model.encoder(x, t) for x in blocks]) for t in model.heads}
    return dict.fromkeys(model.heads, torch.cat([model.encoder(x) for x in blocks]))


def unit(name: str, labels: Tensor) -> float:
    """The loss of the best constant predictor."""
    task = TASKS[name]
    return task.loss(_spread(task.constant(labels), labels), labels).item()


def _spread(constant: Tensor, like: Tensor) -> Tensor:
    """The same outputs for every row and pixel of labels."""
    return constant.expand(len(like), *constant.shape[1:2], *like.shape[2:])


def _stack(data: Labelled, names: Sequence[str], device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """Images and dense labels in one tensor, so that one crop moves them all; classes apart."""
    dense = [data.labels[n] for n in names if TASKS[n].dense]
    stacked = torch.cat([pixels.to_float(data.images), *dense], 1).to(device)
    return stacked, {n: data.labels[n].to(device) for n in names if not TASKS[n].dense}


def _batch(
    stacked: Tensor,
    classes: dict[str, Tensor],
    index: Tensor,
    crops: Crops,
    data: Labelled,
    names: Sequence[str],
) -> tuple[Tensor, dict[str, Tensor]]:
    rows = cropped(stacked[index], crops)
    widths = {n: data.labels[n].shape[1] for n in names if TASKS[n].dense}
    x, *dense = rows.split([data.images.shape[1], *widths.values()], 1)
    y = dict(zip(widths, dense, strict=True)) | {n: labels[index] for n, labels in classes.items()}
    return x.contiguous(memory_format=torch.channels_last), y


def step(
    model: MultiTask,
    x: Tensor,
    y: dict[str, Tensor],
    units: dict[str, float],
    joint: weighting.Weighting,
    optimizer: Optimizer,
) -> dict[str, Tensor]:
    """One optimiser step; the losses by task, each divided by its unit."""
    features = model.features(x)
    losses = {n: TASKS[n].loss(model.heads[n](features[n]), y[n]) / units[n] for n in model.heads}
    optimizer.zero_grad(set_to_none=True)
    common = None if model.encoder.routed else next(iter(features.values()))
    joint.backward(losses, list(model.encoder.parameters()), common)
    optimizer.step()
    return {n: loss.detach() for n, loss in losses.items()}


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe, steps: int) -> tuple[Optimizer, LRScheduler]:
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    rise = max(1, round(steps * recipe.warmup))
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, rise)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - rise))
    return optimizer, torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, fall], [rise])


# ---- Scores --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def outputs(model: MultiTask, images: Tensor) -> dict[str, Tensor]:
    """Every task's outputs on uint8[n,c,h,w] in eval mode, on the CPU; the mode restored."""
    where, mode = next(model.parameters()).device, model.training
    model.eval()
    parts = [model(_input(block, where)) for block in images.split(pixels.block_size(images))]
    model.train(mode)
    return {name: torch.cat([part[name].float().cpu() for part in parts]) for name in model.heads}


def _input(images: Tensor, where: torch.device) -> Tensor:
    return pixels.to_float(images.to(where)).contiguous(memory_format=torch.channels_last)


def evaluate(model: MultiTask, data: Labelled) -> dict[str, float]:
    """Every task's metric on clean images."""
    return {name: TASKS[name].score(out, data.labels[name]) for name, out in outputs(model, data.images).items()}


def uninformed(names: Sequence[str], fitted: Labelled, held: Labelled) -> dict[str, float]:
    """Every task's metric for the best constant predictor of the labels `fitted`: what is known without any image."""
    found = {}
    for name in names:
        task, labels, like = TASKS[name], fitted.labels[name], held.labels[name]
        found[name] = task.score(_spread((task.guess or task.constant)(labels), like), like)
    return found
