"""One training loop: the whole data set on the device, vectorised crop and flip, no Python data loader."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..base.errors import InputError
from ..data import pixels
from ..data.split import Split
from . import metrics
from .defenses import Batch, Defense, Mixed


@dataclass(frozen=True)
class Recipe:
    """How a victim is trained: linear warm-up to `lr`, then cosine to zero."""

    epochs: int = 20
    optimizer: str = "sgd"  # with Nesterov momentum, or adamw
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.2  # share of the steps
    pad: int = 4  # pixels of zero padding before the random crop; 0: no crop
    flip: bool = True
    sam: float = 0.0  # radius of sharpness-aware minimisation (Foret et al. 2021); 0: plain SGD


RECIPES = {  # of victims, by architecture
    "linear": Recipe(batch_size=64, lr=0.02),
    "lenet5": Recipe(batch_size=64, lr=0.02, pad=2),
    "resnet8": Recipe(batch_size=64, lr=0.1),
    "senet8": Recipe(batch_size=64, lr=0.1),
    "vit_tiny": Recipe(batch_size=32, lr=0.004, optimizer="adamw", weight_decay=0.01),
    "resnet18": Recipe(batch_size=128, lr=0.1),
    "resnet50": Recipe(batch_size=128, lr=0.1),
    "senet18": Recipe(batch_size=128, lr=0.1),
    "vit_small": Recipe(batch_size=128, lr=0.0005, optimizer="adamw", weight_decay=0.01),
}


@dataclass(frozen=True)
class History:
    """What happened, one entry an epoch; losses in nats, accuracies 0..1, train values over augmented batches."""

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, list[float]]:
        return asdict(self)


def fit(
    model: nn.Module,
    train: Split,
    test: Split | None,
    *,
    recipe: Recipe,
    defense: Defense,
    seed: int,
    device: torch.device | str,
    target: str = "label",
    on_epoch: Callable[[int, nn.Module], object] | None = None,
    history: History | None = None,
) -> History:
    """Train `model` in place on train.images with train.targets[target]; score it on `test`, if given, every epoch.

    seed: batch order and augmentation (drawn on the CPU, so the same on every device). on_epoch(epoch, model) is called
    after each epoch, counted from 1. history: filled in place if given, so that on_epoch can read it. Raises InputError
    if the loss is no longer finite.
    """
    device = torch.device(device)
    rng = Generator().manual_seed(seed)
    # torch's types of `to` lack memory_format.
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    prepared = defense.prepare(train)
    images, targets = prepared.images.to(device), prepared.targets[target].to(device)
    held = test and (pixels.to_float(test.images.to(device)), test.targets[target].to(device))
    optimizer, schedule = _optimizer(model, recipe, steps=recipe.epochs * -(-len(train) // recipe.batch_size))
    history = History() if history is None else history
    for epoch in range(1, recipe.epochs + 1):
        batch = defense.at((epoch - 1) / recipe.epochs)
        loss, accuracy = _epoch(model, images, targets, recipe, defense.augment, batch, optimizer, schedule, rng)
        if not torch.isfinite(torch.tensor(loss)):
            raise InputError(f"{train.name}: loss is {loss} in epoch {epoch}; lower lr (now {recipe.lr})")
        history.train_loss.append(loss)
        history.train_accuracy.append(accuracy)
        if held:
            history.test_accuracy.append(metrics.accuracy(model, *held))
        if on_epoch:
            on_epoch(epoch, model)
    return history


def _optimizer(model: nn.Module, recipe: Recipe, steps: int) -> tuple[Optimizer, LRScheduler]:
    shared: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), **shared)
    else:
        optimizer = torch.optim.SGD(model.parameters(), momentum=recipe.momentum, nesterov=True, **shared)
    rise = max(1, round(steps * recipe.warmup))
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, rise)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - rise))
    return optimizer, torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, fall], [rise])


def _epoch(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    crop: bool,
    batch: Batch,
    optimizer: Optimizer,
    schedule: LRScheduler,
    rng: Generator,
) -> tuple[float, float]:
    model.train()
    totals = torch.zeros(2, device=images.device)
    for index in torch.randperm(len(images), generator=rng).split(recipe.batch_size):
        x = images[index.to(images.device)]
        if crop:
            x = augment(x, pad=recipe.pad, flip=recipe.flip, rng=rng)
        x, y = batch(model, pixels.to_float(x), targets[index.to(images.device)], rng)
        x = x.contiguous(memory_format=torch.channels_last)
        loss, hits = _backward(model, x, y, optimizer)
        if recipe.sam:
            _sharpest(model, x, y, optimizer, recipe.sam)
        optimizer.step()
        schedule.step()
        totals += torch.stack([loss * len(x), hits])
    loss, accuracy = (totals / len(images)).tolist()
    return loss, accuracy


def _backward(model: nn.Module, x: Tensor, y: Tensor | Mixed, optimizer: Optimizer) -> tuple[Tensor, Tensor]:
    """(loss, number of hits) of a batch, with its gradient in the parameters; a mixed image's class is the larger."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
        out = model(x)
    goal = y.shares(out.shape[1]) if isinstance(y, Mixed) else y
    loss = F.cross_entropy(out.float(), goal)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    hits = out.detach().argmax(1) == (goal if goal.ndim == 1 else goal.argmax(1))
    return loss.detach(), hits.sum().float()


def _sharpest(model: nn.Module, x: Tensor, y: Tensor | Mixed, optimizer: Optimizer, radius: float) -> None:
    """The gradient replaced by the one a `radius` further up (SAM: Foret et al. 2021, eq. 2); weights as before.

    Batch statistics move in the first pass only.
    """
    weights = [p for p in model.parameters() if p.grad is not None]
    norm = torch.stack([cast(Tensor, p.grad).norm() for p in weights]).norm().clamp_min(1e-12)
    ahead = [p.grad * (radius / norm) for p in weights]
    momenta = {m: m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    torch._foreach_add_([p.data for p in weights], ahead)
    for m in momenta:
        m.momentum = 0.0
    _backward(model, x, y, optimizer)
    for m, momentum in momenta.items():
        m.momentum = momentum
    torch._foreach_sub_([p.data for p in weights], ahead)


def augment(images: Tensor, *, pad: int, flip: bool, rng: Generator) -> Tensor:
    """A random crop of each zero-padded image and, with `flip`, a mirror for half of them; [n,c,h,w] in one gather."""
    n, _, h, w = images.shape
    top = torch.randint(0, 2 * pad + 1, (n, 1), generator=rng)
    left = torch.randint(0, 2 * pad + 1, (n, 1), generator=rng)
    columns = torch.arange(w).expand(n, w)
    if flip:
        mirrored = torch.rand((n, 1), generator=rng) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = (torch.arange(h) + top).to(images.device), (columns + left).to(images.device)
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    which = torch.arange(n, device=images.device).view(n, 1, 1)
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
