"""Sharpness-aware learnability of layers (SAL): how far the loss moves when one layer's weights move a little."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import InputError, at_least, choose
from .models import probed_layers

Loss = Callable[[Tensor, Tensor], Tensor]
STRIDE = 2.5  # step length = STRIDE * radius / steps: the ball can be crossed and the boundary followed


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
    estimator: str = "pgd",
    batch_size: int = 512,
    seed: int = 0,
) -> pd.DataFrame:
    """SAL of every Conv2d and Linear weight: DataFrame[layer, sal, s_max, s_min, radius, weights].

    For layer l with radius r = epsilon * ||W_l||: s_max = max over ||D|| <= r of L(W_l + D) - L, s_min = L - the
    smallest such L(W_l + D), sal = max(s_max, s_min); L is the mean `loss` over these images, network in eval mode,
    other layers frozen (Ye, Su, Qian 2025, the definition of SAL). images: float[n,c,h,w] as the model takes them.
    layers: names in named_modules() (default all); seed is for estimators that draw (pgd does not).
    Mode, weights, buffers and requires_grad are restored. Raises InputError for unknown layers or a loss not finite.
    """
    measure = ESTIMATORS[choose(estimator, ESTIMATORS, "SAL estimator")]
    at_least(epsilon, 0, "epsilon")
    at_least(steps, 1, "steps")
    names = probed_layers(model) if layers is None else [choose(n, probed_layers(model), "layer") for n in layers]
    rows = []
    with frozen(model):
        for name in names:
            head, tail = split_at(model, name)
            with torch.no_grad():
                inputs = torch.cat([head(batch) for batch in images.split(batch_size)])
            weight = model.get_submodule(name).weight
            probe = measure(weight, _objective(tail, inputs, targets, loss, batch_size), epsilon=epsilon, steps=steps)
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


def split_at(model: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """A sequence cut before the block that holds `layer`: (what need not be recomputed, the rest).

    Anything but nn.Sequential is not cut: (identity, model).
    """
    if not isinstance(model, nn.Sequential):
        return nn.Identity(), model
    position = list(dict(model.named_children())).index(layer.split(".")[0])
    return model[:position], model[position:]


def _objective(tail: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, batch_size: int):
    """A function of no argument: (mean loss, its gradient for `weight` or None) at the weights as they are."""

    def value(weight: Tensor, gradient: bool) -> tuple[float, Tensor | None]:
        total, slope = 0.0, torch.zeros_like(weight) if gradient else None
        with torch.set_grad_enabled(gradient):
            for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
                part = loss(tail(x), y) * (len(x) / len(inputs))
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


def _pgd(weight: nn.Parameter, objective, *, epsilon: float, steps: int) -> Probe:
    """Normalised gradient steps, projected onto the ball after each; the best iterate counts, the start among them."""
    start = weight.detach().clone()
    radius = epsilon * start.norm().item()
    best = {1: 0.0, -1: 0.0}
    try:
        base, first = objective(weight.requires_grad_(), True)
        _finite(base, "before any perturbation; the run diverged, lower its lr")
        for sign in best:
            delta, slope = torch.zeros_like(start), first
            for left in reversed(range(steps)):
                delta = _stepped(delta, slope, sign * STRIDE * radius / steps, radius)
                with torch.no_grad():
                    weight.copy_(start + delta)
                value, slope = objective(weight.requires_grad_(left > 0), left > 0)
                best[sign] = max(best[sign], sign * (_finite(value, "inside the ball; use a smaller epsilon") - base))
    finally:
        weight.requires_grad_(False)
        with torch.no_grad():
            weight.copy_(start)
    return Probe(best[1], best[-1], radius, weight.numel())


ESTIMATORS = {"pgd": _pgd}
