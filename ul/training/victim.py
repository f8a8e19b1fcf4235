"""One training loop: the whole data set on the device, vectorised crop and flip, no Python data loader."""

from collections.abc import Callable, Iterator
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
from . import defenses, metrics
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
    found = draws(len(images), recipe.batch_size, pad=recipe.pad, flip=recipe.flip, crop=crop, rng=rng)
    for rows, crops in shipped(found, images.device) if batch is defenses.as_is else found:
        index = rows.to(images.device)
        x = images[index] if crops is None else cropped(images[index], crops)
        x, y = batch(model, pixels.to_float(x), targets[index], rng)
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


# ---- What an epoch draws --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crops:
    """Where images are cropped: upper and left edges int64[n,1] in the padded image; mirrored bool[n,1], or None."""

    pad: int
    top: Tensor
    left: Tensor
    mirrored: Tensor | None


Drawn = tuple[Tensor, Crops | None]  # rows of a batch, int64[n], and their crops


def draws(count: int, batch_size: int, *, pad: int, flip: bool, crop: bool, rng: Generator) -> Iterator[Drawn]:
    """The batches of an epoch over `count` images, drawn on the CPU one after another."""
    for index in torch.randperm(count, generator=rng).split(batch_size):
        yield index, _crops(len(index), pad, flip, rng) if crop else None


def shipped(found: Iterator[Drawn], where: torch.device) -> list[Drawn]:
    """All of them on a device, copied there together; only where nothing else draws from the same generator."""
    drawn = list(found)
    sizes = [len(index) for index, _ in drawn]
    rows = torch.cat([index for index, _ in drawn]).to(where).split(sizes)
    crops = [crops for _, crops in drawn if crops is not None]
    if not crops:
        return [(index, None) for index in rows]
    top, left = (torch.cat([getattr(c, name) for c in crops]).to(where).split(sizes) for name in ("top", "left"))
    mirrors = [c.mirrored for c in crops if c.mirrored is not None]
    mirrored = torch.cat(mirrors).to(where).split(sizes) if mirrors else [None] * len(sizes)
    parts = zip(rows, top, left, mirrored, strict=True)
    return [(index, Crops(crops[0].pad, *at)) for index, *at in parts]


def _crops(count: int, pad: int, flip: bool, rng: Generator) -> Crops:
    top = torch.randint(0, 2 * pad + 1, (count, 1), generator=rng)
    left = torch.randint(0, 2 * pad + 1, (count, 1), generator=rng)
    return Crops(pad, top, left, torch.rand((count, 1), generator=rng) < 0.5 if flip else None)


def augment(images: Tensor, *, pad: int, flip: bool, rng: Generator) -> Tensor:
    """A random crop of each zero-padded image and, with `flip`, a mirror for half of them; [n,c,h,w] in one gather."""
    return cropped(images, _crops(len(images), pad, flip, rng))


def cropped(images: Tensor, crops: Crops) -> Tensor:
    """Each zero-padded image cropped and mirrored as drawn; [n,c,h,w] in one gather."""
    (n, _, h, w), where = images.shape, images.device
    top, left = crops.top.to(where), crops.left.to(where)
    columns = torch.arange(w, device=where).expand(n, w)
    if crops.mirrored is not None:
        columns = torch.where(crops.mirrored.to(where), columns.flip(1), columns)
    rows, columns = torch.arange(h, device=where) + top, columns + left
    padded = F.pad(images, (crops.pad,) * 4).permute(0, 2, 3, 1)
    which = torch.arange(n, device=where).view(n, 1, 1)
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
