"""Sharpness-aware learnability of layers (SAL): how far the loss moves when one layer's weights move a little."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import graph
from .config import InputError, at_least, choose
from .models import probed_layers

Loss = Callable[[Tensor, Tensor], Tensor]
SHRINK, GROW = 0.1, 2.0  # how much one step's length may differ from that of the step before it


@dataclass(frozen=True)
class Probe:
    """One layer's neighbourhood; all in nats but the radius (weight units)."""

    s_max: float
    s_min: float
    radius: float
    weights: int

    @property
    def sal(self) -> float:
        return max(self.s_max, self.s_min)


def per_layer(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    loss: Loss = F.cross_entropy,
    layers: list[str] | None = None,
    epsilon: float = 0.05,
    steps: int = 10,
    tolerance: float = 0.01,
    estimator: str = "pgd",
    batch_size: int = 512,
    seed: int = 0,
) -> pd.DataFrame:
    """SAL of every Conv2d and Linear weight: DataFrame[layer, sal, s_max, s_min, radius, weights].

    For layer l with radius r = epsilon * ||W_l||: s_max = max over ||D|| <= r of L(W_l + D) - L, s_min = L - the
    smallest such L(W_l + D), sal = max(s_max, s_min); L is the mean `loss` over these images, network in eval mode,
    other layers frozen (Ye, Su, Qian 2025, the definition of SAL). images: float[n,c,h,w] as the model takes them.
    Each extreme takes at most `steps` projected gradient steps, fewer once a step gains no more than the share
    `tolerance` of SAL; both are lower bounds. layers: names in named_modules() (default all); seed is for estimators
    that draw (pgd does not).
    Mode, weights, buffers and requires_grad are restored. Raises InputError for unknown layers or a loss not finite.
    """
    measure = ESTIMATORS[choose(estimator, ESTIMATORS, "SAL estimator")]
    at_least(epsilon, 0, "epsilon")
    at_least(steps, 1, "steps")
    at_least(tolerance, 0, "tolerance")
    names = probed_layers(model) if layers is None else [choose(n, probed_layers(model), "layer") for n in layers]
    rows = []
    with frozen(model):
        network = graph.traced(model, images[:1])
        for name in names:
            objective = _objective(*graph.cut(model, network, name), images, targets, loss, batch_size)
            weight = model.get_submodule(name).weight
            probe = measure(weight, objective, epsilon=epsilon, steps=steps, tolerance=tolerance)
            row = {"sal": probe.sal, "s_max": probe.s_max, "s_min": probe.s_min}
            rows.append({"layer": name, **row, "radius": probe.radius, "weights": probe.weights})
    return pd.DataFrame(rows)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode without parameter gradients inside; modes, requires_grad and .grad as they were afterwards."""
    modes = {module: module.training for module in model.modules()}
    wanted = {p: (p.requires_grad, p.grad) for p in model.parameters()}
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for p, (requires_grad, grad) in wanted.items():
            p.requires_grad_(requires_grad)
            p.grad = grad


def _objective(head: Callable, tail: nn.Module, images: Tensor, targets: Tensor, loss: Loss, batch_size: int):
    """A function (weight, gradient?) -> (mean loss, its gradient for `weight` or None) at the weights as they are."""
    with torch.no_grad():
        batches = [(head(x), y) for x, y in zip(images.split(batch_size), targets.split(batch_size), strict=True)]

    def value(weight: Tensor, gradient: bool) -> tuple[float, Tensor | None]:
        total, slope = 0.0, torch.zeros_like(weight) if gradient else None
        with torch.set_grad_enabled(gradient):
            for inputs, y in batches:
                part = loss(tail(*inputs), y) * (len(y) / len(targets))
                total += part.item()
                if gradient:
                    slope += torch.autograd.grad(part, weight)[0]
        return total, slope

    return value


def _finite(value: float, where: str) -> float:
    if not isfinite(value):
        raise InputError(f"SAL: the loss is {value} {where}")
    return value


def _stepped(delta: Tensor, slope: Tensor, length: float, radius: float) -> Tensor:
    """One step of `length` along the normalised gradient, back onto the ball; a zero gradient moves nothing."""
    moved = delta + length * slope / slope.norm().clamp_min(1e-30)
    return moved * (radius / moved.norm().clamp_min(1e-30)).clamp(max=1)


def _pgd(weight: nn.Parameter, objective, *, epsilon: float, steps: int, tolerance: float) -> Probe:
    """Normalised gradient steps, projected onto the ball after each; the best iterate counts, the start among them."""
    start = weight.detach().clone()
    radius = epsilon * start.norm().item()

    def at(delta: Tensor, gradient: bool) -> tuple[float, Tensor | None]:
        with torch.no_grad():
            weight.copy_(start + delta)
        return objective(weight.requires_grad_(gradient), gradient)

    try:
        base = at(torch.zeros_like(start), True)
        _finite(base[0], "before any perturbation; the run diverged, lower its lr")
        s_max = _extreme(at, base, 1, radius, steps, tolerance)
        s_min = _extreme(at, base, -1, radius, steps, tolerance, enough=s_max)
    finally:
        weight.requires_grad_(False)
        with torch.no_grad():
            weight.copy_(start)
    return Probe(s_max, s_min, radius, weight.numel())


def _extreme(
    at, base: tuple[float, Tensor], sign: int, radius: float, steps: int, tolerance: float, *, enough: float = 0.0
) -> float:
    """How far the loss rises (sign 1) or falls (-1) from `base` = (loss, slope); done when a step gains little.

    Little is measured against what is gained already or `enough`, if that is more.
    The first step is a radius long; later ones as long as the parabola through the last step's slope and gain says. In
    one layer the loss is nearly convex: steps upwards grow into power iteration on the ball's surface, while downwards
    they find the bottom of narrow valleys.
    """
    (start, slope), best, length = base, 0.0, radius
    delta = torch.zeros_like(slope)
    for left in reversed(range(steps)):
        trial = _stepped(delta, slope, sign * length, radius)
        if torch.equal(trial, delta):
            break
        value, gradient = at(trial, left > 0)
        gain = sign * (_finite(value, "inside the ball; use a smaller epsilon") - start) - best
        ahead = _peak(sign * (slope * (trial - delta)).sum().item(), gain)
        length *= ahead if gain > 0 else min(ahead, 0.5)
        if gain > 0:
            best, delta, slope = best + gain, trial, gradient
            if gain <= tolerance * max(best, enough):
                break
    return best


def _peak(slope: float, gain: float) -> float:
    """Where a parabola that starts with `slope` and is `gain` at 1 has its peak, within SHRINK and GROW."""
    return min(max(slope / (2 * (slope - gain)), SHRINK), GROW) if slope > gain else GROW


ESTIMATORS = {"pgd": _pgd}
