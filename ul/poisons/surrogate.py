"""Poisons made with a surrogate network: EM."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import metrics, models, perturb, records
from ..config import choose


@dataclass(frozen=True)
class EMRecipe:
    """How EM alternates: `batches` SGD steps of the surrogate, then `steps` descents of every image, until `stop`."""

    architecture: str
    batch_size: int
    batches: int
    steps: int
    step: float  # in units of eps
    stop: float = 0.99  # training accuracy of the surrogate on the poison
    rounds: int = 40  # at most


EM_RECIPES = {
    "published": EMRecipe("resnet18", batch_size=512, batches=10, steps=20, step=0.1),
    "cpu": EMRecipe("resnet8", batch_size=128, batches=10, steps=10, step=0.2),
}


def em(images: Tensor, labels: Tensor, *, eps: float, seed: int, device, recipe: str) -> Tensor:
    """Sample-wise error-minimising noise (Huang et al., ICLR 2021, "Unlearnable Examples"), uint8[n,c,h,w].

    Published: ResNet-18, SGD 0.1, momentum 0.9, decay 5e-4, gradient norm clipped at 5, no augmentation; ten batches,
    then twenty signed steps of eps/10 on every image, until training accuracy exceeds 99 %. Deviations: noise keeps
    both signs (the public loader zeroes the negative half), images stay in [0, 1] inside the loop, rounding. `cpu`:
    ResNet-8 of width 8, batches of 128, ten steps of eps/5.
    """
    settings = EM_RECIPES[choose(recipe, EM_RECIPES, "recipe")]
    x, y = perturb.to_float(images).to(device), labels.to(device)
    model = _surrogate(settings.architecture, x, y, seed, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    delta, cursor = torch.zeros_like(x), 0
    for round_ in range(1, settings.rounds + 1):
        cursor = _train_on(model, optimizer, x, delta, y, settings, cursor)
        delta = _minimise(model, x, delta, y, eps, settings)
        accuracy = metrics.accuracy(model, x + delta, y)
        records.note(f"em round {round_}: surrogate accuracy {accuracy:.3f}")
        if accuracy > settings.stop:
            break
    return perturb.to_uint8((x + delta).cpu())


def _surrogate(architecture: str, x: Tensor, y: Tensor, seed: int, device) -> nn.Module:
    classes = int(y.max()) + 1
    model = models.make(architecture, channels=x.shape[1], classes=classes, size=x.shape[-1], seed=seed)
    return model.to(device, memory_format=torch.channels_last)


def _train_on(model, optimizer, x, delta, y, settings: EMRecipe, cursor: int) -> int:
    """SGD on consecutive batches of x + delta, going on where the last round stopped; the new position."""
    model.train()
    for _ in range(settings.batches):
        part = slice(cursor, cursor + settings.batch_size)
        loss = F.cross_entropy(model(x[part] + delta[part]), y[part])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        cursor = part.stop if part.stop < len(x) else 0
    return cursor


def _minimise(model, x, delta, y, eps: float, settings: EMRecipe) -> Tensor:
    """Every image's noise moved down the loss of the frozen model, warm-started."""
    model.eval().requires_grad_(False)
    parts = []
    for rows in torch.arange(len(x)).split(settings.batch_size):

        def loss(z: Tensor, rows: Tensor = rows) -> Tensor:
            return F.cross_entropy(model(z), y[rows], reduction="sum")

        moved = perturb.sign_descent(
            loss, x[rows], delta[rows], eps=eps, steps=settings.steps, step=settings.step * eps
        )
        parts.append(moved)
    model.requires_grad_(True)
    return torch.cat(parts)
