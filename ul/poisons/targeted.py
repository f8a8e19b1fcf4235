"""Poisons from frozen surrogates trained on clean images: TAP, HYPO and SEP."""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError
from ..data import pixels
from ..training import defenses
from ..training.victim import Recipe
from .surrogate import cross_entropy, fitted, frozen, in_blocks, jittered
from .target import Target


@dataclass(frozen=True)
class TAP:
    """A clean surrogate, then `steps` signed descents towards the next class from each of `restarts` starts."""

    architecture: str
    training: Recipe
    batch_size: int
    steps: int
    step: float  # in units of eps
    restarts: int


@dataclass(frozen=True)
class HYPO:
    """A surrogate trained against weak adversaries, then `steps` signed descents towards the true class."""

    architecture: str
    training: Recipe
    batch_size: int
    steps: int
    step: float  # in units of eps
    radius: float  # of the surrogate's adversarial training, in units of eps
    radius_steps: int


@dataclass(frozen=True)
class SEP:
    """`checkpoints` of one training, then `steps` signed descents on their mean loss."""

    architecture: str
    training: Recipe
    batch_size: int
    checkpoints: int
    steps: int
    step: float  # in units of eps


TAP_RECIPES = {
    "published": TAP("resnet18", Recipe(epochs=40, batch_size=128), 512, steps=250, step=0.05, restarts=8),
    "cpu": TAP("resnet8", Recipe(epochs=20, batch_size=32), 128, steps=30, step=0.2, restarts=1),
}
HYPO_RECIPES = {
    "published": HYPO("resnet18", Recipe(epochs=10, batch_size=128), 256, 100, 0.1, radius=0.25, radius_steps=10),
    "cpu": HYPO("resnet8", Recipe(epochs=20, batch_size=32), 128, 20, 0.2, radius=0.25, radius_steps=2),
}
SEP_RECIPES = {
    "published": SEP("resnet18", Recipe(epochs=120, batch_size=128), 128, checkpoints=30, steps=30, step=0.125),
    "cpu": SEP("resnet8", Recipe(epochs=20, batch_size=32), 128, checkpoints=5, steps=10, step=0.25),
}


def shifted(labels: Tensor, classes: int, by: int) -> Tensor:
    """The class `by` places on, around the end; never a label's own."""
    return (labels + max(1, by % classes)) % classes


def tap(target: Target, *, eps: float, settings: TAP) -> Tensor:
    """Targeted adversarial poison (Fowl et al., NeurIPS 2021, "Adversarial Examples Make Strong Poisons"), uint8.

    Published: ResNet-18 trained for 40 epochs; 250 signed steps of eps/20 towards label + 1 under random shifts and
    mirrors, eight restarts. Deviations: warm-up and cosine instead of a stepped rate; starts stay in [0, 1]; the
    best restart is chosen image by image; one shift of up to four pixels a batch. `cpu`:
    ResNet-8, 30 steps of eps/5, one start.
    """
    model = fitted(settings.architecture, target, _flipped(settings.training, target))
    rng = target.rng(1)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        goal = shifted(y, target.classes, 1)
        best, least = torch.zeros_like(x), x.new_full((len(x),), torch.inf)
        for _ in range(settings.restarts):
            start = torch.randn(x.shape, generator=rng).to(x.device).clamp(-1, 1) * eps
            moved = pixels.sign_descent(
                lambda z: cross_entropy(model, goal)(jittered(z, flip=target.flip, rng=rng)),
                x,
                pixels.project_linf(start, x, eps),
                eps=eps,
                steps=settings.steps,
                step=settings.step * eps,
            )
            with torch.no_grad():
                loss = F.cross_entropy(model(x + moved), goal, reduction="none")
            better = loss < least
            best[better], least[better] = moved[better], loss[better]
        return best

    return in_blocks(target, attack, size=settings.batch_size, label="tap")


def hypo(target: Target, *, eps: float, settings: HYPO) -> Tensor:
    """Hypocritical perturbation: error-minimising on a frozen surrogate (Tao et al., NeurIPS 2021 and 2022), uint8.

    As in the 2022 code: ResNet-18 trained for ten epochs against adversaries of eps/4, then 100 signed steps of eps/10
    down the loss of the true label under random shifts and mirrors, from no perturbation. Deviations: warm-up and
    cosine instead of a constant rate; one shift a batch. `cpu`: ResNet-8, 20 epochs with two-step adversaries, 20
    steps of eps/5.
    """
    radius = settings.radius * eps
    weak = defenses.adversarial(radius, steps=settings.radius_steps, step=2.5 * radius / settings.radius_steps)
    model = fitted(settings.architecture, target, _flipped(settings.training, target), defense=weak)
    rng = target.rng(1)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        return pixels.sign_descent(
            lambda z: cross_entropy(model, y)(jittered(z, flip=target.flip, rng=rng)),
            x,
            torch.zeros_like(x),
            eps=eps,
            steps=settings.steps,
            step=settings.step * eps,
        )

    return in_blocks(target, attack, size=settings.batch_size, label="hypo")


def sep(target: Target, *, eps: float, settings: SEP) -> Tensor:
    """Self-ensemble protection (Chen et al., ICLR 2023): targeted steps against checkpoints of one training, uint8.

    Published: 30 evenly spaced checkpoints of 120 epochs of ResNet-18, 30 signed steps of the mean gradient towards
    the class half the classes on ((y + 5) mod 10), eps 2/255. Deviations: eps is the common strength (8/255, as in
    later benchmarks), steps of eps/8, warm-up and cosine instead of a stepped rate; the plain variant, without
    feature alignment. `cpu`: ResNet-8, five checkpoints of 20 epochs, ten steps of eps/4.
    """
    if settings.checkpoints > settings.training.epochs:
        raise InputError(f"sep: {settings.checkpoints} checkpoints of {settings.training.epochs} epochs; take fewer")
    kept: list[nn.Module]
    every, kept = settings.training.epochs / settings.checkpoints, []

    def keep(epoch: int, model: nn.Module) -> None:
        if epoch >= round((len(kept) + 1) * every):
            kept.append(frozen(copy.deepcopy(model)))

    fitted(settings.architecture, target, _flipped(settings.training, target), on_epoch=keep)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        goal = shifted(y, target.classes, target.classes // 2)
        losses = [cross_entropy(model, goal) for model in kept]
        start = torch.zeros_like(x)
        return pixels.sign_descent(losses, x, start, eps=eps, steps=settings.steps, step=settings.step * eps)

    return in_blocks(target, attack, size=settings.batch_size, label="sep")


def _flipped(recipe: Recipe, target: Target) -> Recipe:
    return replace(recipe, flip=target.flip)
