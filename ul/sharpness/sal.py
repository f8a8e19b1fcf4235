"""Sharpness-aware learnability of layers (SAL): how far the loss moves when one layer's weights move a little."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite
from typing import Any, cast

import pandas as pd
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError, at_least, choose
from ..nets.classifiers import probed_layers
from . import cut
from .search import Ball, Found, both_sides, search, starts

Loss = Callable[[Tensor, Tensor], Tensor]
NORMS = ("l2", "linf")
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """How SAL is searched for; `per_layer` describes each."""

    epsilon: float
    steps: int
    tolerance: float
    norm: str
    errors: bool
    precision: str
    seed: int


@dataclass(frozen=True)
class Probe:
    """One layer's neighbourhood; nats, but for the radius (units of weights). error: standard error over images."""

    sal: float
    s_max: float
    s_min: float
    error: float
    radius: float
    weights: int


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
    norm: str = "l2",
    estimator: str = "pgd",
    errors: bool = False,
    precision: str = "float32",
    batch_size: int = 512,
    seed: int = 0,
) -> pd.DataFrame:
    """SAL of every Conv2d and Linear weight: DataFrame[layer, sal, s_max, s_min, error, radius, weights].

    For layer l with radius r = epsilon * ||W_l||: s_max = max over ||D|| <= r of L(W_l + D) - L, s_min = L - the
    smallest such L(W_l + D), sal = max(s_max, s_min); L is the mean `loss` over these images, network in eval mode,
    other layers frozen (Ye, Su, Qian 2025, the definition of SAL). images: float[n,c,h,w] as the model takes them;
    loss(outputs, targets): a mean over images. layers: names in named_modules() (default all).

    norm: "l2", or "linf" with r = epsilon * ||W_l|| / sqrt(number of weights), the largest such box in the l2 ball.
    estimator, from cheap to dear: "gradient" (r times the gradient's length: one pass for all layers), "taylor" (that
    and the loss at both ends of the gradient's line, and the parabola through them), "pgd" (at most `steps` projected
    gradient steps each way, fewer once a step gains no more than the share `tolerance` of SAL, and upwards once more
    from the opposite of what was found), "exact" (the same with sixty steps and a share of 1e-5, from the centre and
    four random offsets drawn from `seed`, the best of all). The last two are lower bounds. error, with `errors` and the
    last two: the standard error of the loss change over the images at the extreme found, as another draw of as many
    images would move it; else nan. precision, of the last two's steps: "float32", "tf32" (CUDA alone knows it) or
    "bfloat16" (autocast); what they find is scored in float32.
    Mode, weights, buffers and requires_grad are restored. Raises InputError for unknown layers or a loss not finite.
    """
    measure = ESTIMATORS[choose(estimator, ESTIMATORS, "SAL estimator")]
    settings = Settings(
        at_least(epsilon, 0, "epsilon"),
        at_least(steps, 1, "steps"),
        at_least(tolerance, 0, "tolerance"),
        choose(norm, NORMS, "norm"),
        errors,
        choose(precision, PRECISIONS, "precision"),
        seed,
    )
    names = probed_layers(model) if layers is None else [choose(n, probed_layers(model), "layer") for n in layers]
    rows = []
    with frozen(model), computed("float32", images.device):
        network = cut.traced(model, images[:1])
        slopes = gradients(model, names, images, targets, loss, batch_size)
        for name, slope in zip(names, slopes, strict=True):
            weight = cast(Tensor, model.get_submodule(name).weight)
            at = _Layer(weight, cut.cut(model, network, name), images, targets, loss, batch_size)
            rows.append({"layer": name} | asdict(measure(at, slope, settings)))
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


@contextmanager
def computed(precision: str, device: torch.device) -> Iterator[None]:
    """Convolutions and matrix products in one of PRECISIONS inside."""
    backends: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = precision == "tf32"
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def gradients(
    model: nn.Module, names: list[str], images: Tensor, targets: Tensor, loss: Loss, batch_size: int
) -> list[Tensor]:
    """The gradient of the mean loss for the weight of every named layer, from one pass over the images."""
    weights = [cast(Tensor, model.get_submodule(name).weight).requires_grad_(True) for name in names]
    try:
        total = [torch.zeros_like(w) for w in weights]
        for x, y in zip(images.split(batch_size), targets.split(batch_size), strict=True):
            part = loss(model(x), y) * (len(y) / len(targets))
            _checked(part.item())
            found = torch.autograd.grad(part, weights, allow_unused=True)
            total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
    finally:
        for w in weights:
            w.requires_grad_(False)
    return total


def _checked(value: float) -> None:
    if not isfinite(value):
        raise InputError(f"SAL: the loss is {value} before any perturbation; the run diverged, lower its lr")


class _Layer:
    """The mean loss and its gradient as a function of one weight's offset; after a call the weight is as before."""

    def __init__(
        self, weight: Tensor, parts: cut.Parts, images: Tensor, targets: Tensor, loss: Loss, batch_size: int
    ) -> None:
        head, self.tail = parts
        self.weight, self.loss, self.count = weight, loss, len(targets)
        with torch.no_grad():
            pairs = zip(images.split(batch_size), targets.split(batch_size), strict=True)
            self.batches = [(head(x), y) for x, y in pairs]

    @contextmanager
    def moved(self, offset: Tensor | None, gradient: bool) -> Iterator[None]:
        """The weight moved by `offset` inside, its gradient wanted or not."""
        start = self.weight.detach().clone()
        try:
            with torch.no_grad():
                self.weight.copy_(start if offset is None else start + offset)
            self.weight.requires_grad_(gradient)
            with torch.set_grad_enabled(gradient):
                yield
        finally:
            self.weight.requires_grad_(False)
            with torch.no_grad():
                self.weight.copy_(start)

    def __call__(self, offset: Tensor | None, gradient: bool) -> tuple[float, Tensor | None]:
        slope: Any  # a tensor if it is wanted
        value, slope = 0.0, torch.zeros_like(self.weight) if gradient else None
        with self.moved(offset, gradient):
            for inputs, y in self.batches:
                part = self.loss(self.tail(*inputs), y) * (len(y) / self.count)
                value += part.item()
                if gradient:
                    slope += torch.autograd.grad(part, self.weight)[0]
        return value, slope

    def each(self, offset: Tensor | None) -> Tensor:
        """The loss of every image alone, float[n]."""
        with self.moved(offset, gradient=False):
            outputs = [(self.tail(*inputs), y) for inputs, y in self.batches]
            return torch.stack([self.loss(out[i : i + 1], y[i : i + 1]) for out, y in outputs for i in range(len(y))])

    def ball(self, settings: Settings) -> Ball:
        scale = self.weight.numel() ** 0.5 if settings.norm == "linf" else 1.0
        return Ball(settings.epsilon * self.weight.norm().item() / scale, settings.norm)

    def probe(self, s_max: float, s_min: float, radius: float, error: float = float("nan")) -> Probe:
        return Probe(max(s_max, s_min), s_max, s_min, error, radius, self.weight.numel())

    def error(self, best: Found) -> float:
        """The standard error of the loss change at this offset over the images; nan for one image."""
        changes = self.each(best.delta) - self.each(None)
        return (changes.std() / self.count**0.5).item()


def _searched(
    at: _Layer, slope: Tensor, settings: Settings, *, least: int = 1, most: float = 1.0, begins: int = 1
) -> Probe:
    """Both extremes by projected gradient steps, the best over `begins` starts; tolerance is at most `most`."""
    ball, rng, base = at.ball(settings), Generator().manual_seed(settings.seed), (at(None, False)[0], slope)
    limits: dict[str, Any] = {"steps": max(settings.steps, least), "tolerance": min(settings.tolerance, most)}
    best: dict[int, Found] = {}
    for sign in (1, -1):
        climb = partial(search, at, base, ball, sign, **limits, enough=best[1].gain if best else 0.0)
        with computed(settings.precision, slope.device):
            turned = sign > 0 or begins > 1  # falls have a far side as rarely as valleys have two bottoms
            found = [both_sides(climb, s) if turned else climb(start=s) for s in starts(base, ball, begins, rng)]
        best[sign] = max(found, key=lambda f: f.gain)
        if settings.precision != "float32":
            best[sign] = replace(best[sign], gain=max(sign * (at(best[sign].delta, False)[0] - base[0]), 0.0))
    error = at.error(max(best.values(), key=lambda f: f.gain)) if settings.errors else float("nan")
    return at.probe(best[1].gain, best[-1].gain, ball.radius, error)


def _gradient(at: _Layer, slope: Tensor, settings: Settings) -> Probe:
    """First order: how far a step of full length along the gradient would move a linear loss, up or down."""
    ball = at.ball(settings)
    change = (slope * ball.ascent(slope)).sum().item()
    return at.probe(change, change, ball.radius)


def _taylor(at: _Layer, slope: Tensor, settings: Settings) -> Probe:
    """Second order along the gradient: the losses at both ends of its line, and the parabola's extremum between."""
    ball, centre = at.ball(settings), at(None, False)[0]
    ahead = ball.ascent(slope)
    ends = [at(sign * ahead, False)[0] - centre for sign in (1, -1)]
    rise, bend = (slope * ahead).sum().item(), sum(ends) / 2
    between = -(rise**2) / (4 * bend) if rise < 2 * abs(bend) else 0.0  # a fall if it bends up, a rise if down
    return at.probe(max(*ends, between, 0.0), max(-min(ends), -between, 0.0), ball.radius)


ESTIMATORS: dict[str, Callable[[_Layer, Tensor, Settings], Probe]] = {
    "gradient": _gradient,
    "taylor": _taylor,
    "pgd": _searched,
    "exact": partial(_searched, least=60, most=1e-5, begins=5),
}
