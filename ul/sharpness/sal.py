"""Sharpness-aware learnability of layers (SAL): how far the loss moves when one layer's weights move a little."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite, isnan
from typing import Any, cast

import pandas as pd
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..base import records
from ..base.errors import InputError, at_least, choose
from ..nets.classifiers import probed_layers
from . import cut
from .search import Ball, Found, both_sides, search, starts

Loss = Callable[[Tensor, Tensor], Tensor]
NORMS = ("l2", "linf")
PRECISIONS = ("float32", "tf32", "bfloat16")
USUAL = {"cuda": "tf32"}  # precision of the steps by kind of device; float32 elsewhere
HOOKS = (WeightNorm, SpectralNorm)  # parametrisations of before `torch.nn.utils.parametrize`
FEW = 8  # images on which two calls are compared


@dataclass(frozen=True)
class Settings:
    """How SAL is searched for, by the estimators "pgd" and "exact", which are lower bounds.

    norm: "l2", or "linf" with radius epsilon * ||W|| / sqrt(number of weights), the largest such box in the l2 ball.
    steps, tolerance: at most so many projected gradient steps each way, fewer once one gains no more than this share of
    SAL. errors: also the standard error of the loss change over the images at the extreme found, as another draw of as
    many images would move it (`Probe.error`; else nan). precision, of the steps: "float32", "tf32" (CUDA alone knows
    it) or "bfloat16" (autocast); what they find is scored in float32. seed: of the offsets that "exact" starts from.
    least: what the loss cannot fall below, if that is known (cross-entropy: 0); where s_max is as much as the loss
    could fall, s_min cannot decide SAL: it is not searched for, and nan.
    """

    epsilon: float
    steps: int
    tolerance: float
    norm: str
    errors: bool
    precision: str
    seed: int
    least: float | None


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
    steps: int = 20,
    tolerance: float = 0.003,
    norm: str = "l2",
    estimator: str = "pgd",
    errors: bool = False,
    precision: str | None = None,
    batch_size: int = 512,
    seed: int = 0,
    least: float | None = None,
    cuts: cut.Cuts | None = None,
) -> pd.DataFrame:
    """SAL of every Conv2d and Linear weight: DataFrame[layer, sal, s_max, s_min, error, radius, weights].

    For layer l with radius r = epsilon * ||W_l||: s_max = max over ||D|| <= r of L(W_l + D) - L, s_min = L - the
    smallest such L(W_l + D), sal = max(s_max, s_min); L is the mean `loss` over these images, network in eval mode,
    other layers frozen (Ye, Su, Qian 2025, the definition of SAL). images: float[n,c,h,w] as the model takes them;
    loss(outputs, targets): a mean over images. layers: names in named_modules() (default all). cuts: keeps what is made
    of the network for its next probe. The rest: `Settings`, precision by default tf32 on CUDA and else float32;
    estimator: a key of ESTIMATORS, which says what each is.
    Layers that the network does not use are left out, with a note in the log. A weight with parametrisations is moved
    as the forward pass sees it, on a copy of the network. The network is restored; an outer no_grad does not matter.
    Raises InputError for unknown or (if named) unused layers, no images, a loss that is not finite, and networks of
    which SAL would be no property (`_refuse`, `_refuse_random`).
    """
    measure = ESTIMATORS[choose(estimator, ESTIMATORS, "SAL estimator")]
    settings = Settings(
        at_least(epsilon, 0, "epsilon"),
        at_least(steps, 1, "steps"),
        at_least(tolerance, 0, "tolerance"),
        choose(norm, NORMS, "norm"),
        errors,
        choose(precision or USUAL.get(images.device.type, "float32"), PRECISIONS, "precision"),
        seed,
        least,
    )
    names = probed_layers(model) if layers is None else [choose(n, probed_layers(model), "layer") for n in layers]
    _refuse(model, names, images, targets, batch_size)
    rows = []
    with torch.inference_mode(False), torch.enable_grad(), computed("float32"), frozen(model):
        model, images, targets = plain(model), _own(images), _own(targets)
        _refuse_random(model, images[:FEW])
        cuts = cuts or cut.Cuts()
        slopes = gradients(model, names, images, targets, loss, batch_size)
        if layers is not None and (unused := [n for n in names if n not in slopes]):
            raise InputError(f"the network never calls {unused[0]}; name other layers")
        for name, slope in slopes.items():
            weight = cast(Tensor, model.get_submodule(name).weight)
            at = _Layer(weight, cuts.at(model, name, images[:1]), images, targets, loss, batch_size)
            rows.append({"layer": name} | asdict(measure(at, slope, settings)))
    return pd.DataFrame(rows, columns=["layer", *Probe.__dataclass_fields__])


def plain(model: nn.Module) -> nn.Module:
    """The network itself, or a copy with the weights that parametrisations give in eval mode in their place.

    Of `torch.nn.utils.parametrize`, and of the older hooks of weight and spectral norm.
    """
    hooked = [m for m in model.modules() if any(isinstance(h, HOOKS) for h in m._forward_pre_hooks.values())]
    names = [n for n, module in model.named_modules() if parametrize.is_parametrized(module) or module in hooked]
    if not names:
        return model
    with torch.no_grad():  # what the last forward pass left there may hang on its graph, which cannot be copied
        for module in hooked:
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, HOOKS):
                    hook(module, ())
    found = copy.deepcopy(model)
    for module in (found.get_submodule(name) for name in names):
        _fix(module)
    return found.requires_grad_(False)


def _fix(module: nn.Module) -> None:
    """Its parametrised weights become plain ones of the same values."""
    for name in [*getattr(module, "parametrizations", {})]:
        parametrize.remove_parametrizations(module, name)
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, HOOKS):
            hook.remove(module)
            del module._forward_pre_hooks[key]


def _own(values: Tensor) -> Tensor:
    """A tensor made in inference mode cannot be differentiated through; its copy can."""
    return values.clone() if values.is_inference() else values


def _refuse(model: nn.Module, names: list[str], images: Tensor, targets: Tensor, batch_size: int) -> None:
    """Raise InputError where SAL would be no property of the network.

    With half-precision weights, made in inference mode, or with a batch norm that takes its statistics from the batch
    and more images than `batch_size`.
    """
    if not len(images) or len(images) != len(targets):
        raise InputError(f"SAL needs images and a target for each; got {len(images)} images, {len(targets)} targets")
    for name in names:
        weight = cast(Tensor, model.get_submodule(name).weight)
        if weight.dtype not in (torch.float32, torch.float64):
            kind = str(weight.dtype).removeprefix("torch.")
            raise InputError(f"{name} has {kind} weights, too coarse for SAL; call model.float() and give float images")
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        if values.is_inference():
            raise InputError(f"{name} was made in inference mode, where nothing has a gradient; make it outside of it")
    for name, module in model.named_modules():
        batched = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        if batched and batch_size < len(images):
            more = f"give batch_size={len(images)}, or track running statistics"
            raise InputError(f"{name} takes its statistics from the batch, so SAL depends on batch_size; {more}")


def _refuse_random(model: nn.Module, images: Tensor) -> None:
    """Raise InputError if two calls of the network in eval mode give different outputs."""
    with torch.no_grad():
        first, second = model(images), model(images)
        if not isinstance(first, Tensor):
            return
        far = (first - second).abs().max().item() / first.abs().max().clamp_min(1e-12).item()
    if far > cut.NEAR:
        raise InputError(f"the network is random in eval mode (outputs differ by {far:.2g}); make it deterministic")


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
def computed(precision: str, kind: str = "cpu") -> Iterator[None]:
    """Convolutions and matrix products in one of PRECISIONS inside, on a `kind` of device."""
    backends: tuple[Any, ...] = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    backends += torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends[:2]:
            backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        for backend in backends[2:]:
            backend.fp32_precision = "ieee"
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            yield
    finally:
        for backend, old in zip(backends, before, strict=True):
            backend.fp32_precision = old


def gradients(
    model: nn.Module, names: list[str], images: Tensor, targets: Tensor, loss: Loss, batch_size: int
) -> dict[str, Tensor]:
    """The gradient of the mean loss for the weight of every named layer that it depends on, from one pass.

    What it does not depend on is noted in the log.
    """
    weights = [cast(Tensor, model.get_submodule(name).weight).requires_grad_(True) for name in names]
    total: list[Tensor | None] = [None for _ in weights]
    try:
        for x, y in zip(images.split(batch_size), targets.split(batch_size), strict=True):
            part = loss(model(x), y) * (len(y) / len(targets))
            _checked(part.item())
            found = torch.autograd.grad(part, weights, allow_unused=True)
            total = [t if g is None else g if t is None else t + g for t, g in zip(total, found, strict=True)]
    finally:
        for w in weights:
            w.requires_grad_(False)
    slopes = {name: slope for name, slope in zip(names, total, strict=True) if slope is not None}
    if unused := [name for name in names if name not in slopes]:
        records.note(f"SAL leaves out what the network does not use: {', '.join(unused)}")
    return slopes


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
            if self.loss is F.cross_entropy:
                return torch.cat([F.cross_entropy(out, y, reduction="none") for out, y in outputs])
            return torch.stack([self.loss(out[i : i + 1], y[i : i + 1]) for out, y in outputs for i in range(len(y))])

    def ball(self, settings: Settings) -> Ball:
        scale = self.weight.numel() ** 0.5 if settings.norm == "linf" else 1.0
        return Ball(settings.epsilon * self.weight.norm().item() / scale, settings.norm)

    def probe(self, s_max: float, s_min: float, radius: float, error: float = float("nan")) -> Probe:
        sal = s_max if isnan(s_min) else max(s_max, s_min)
        return Probe(sal, s_max, s_min, error, radius, self.weight.numel())

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
        if sign < 0 and settings.least is not None and best[1].gain >= base[0] - settings.least:
            break
        climb = partial(search, at, base, ball, sign, **limits, enough=best[1].gain if best else 0.0)
        with computed(settings.precision, slope.device.type):
            turned = sign > 0 or begins > 1  # falls have a far side as rarely as valleys have two bottoms
            found = [both_sides(climb, s) if turned else climb(start=s) for s in starts(base, ball, begins, rng)]
        best[sign] = max(found, key=lambda f: f.gain)
        if settings.precision != "float32":
            best[sign] = replace(best[sign], gain=max(sign * (at(best[sign].delta, False)[0] - base[0]), 0.0))
    error = at.error(max(best.values(), key=lambda f: f.gain)) if settings.errors else float("nan")
    fall = best[-1].gain if -1 in best else float("nan")
    return at.probe(best[1].gain, fall, ball.radius, error)


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


# From cheap to dear. gradient: r times the gradient's length, one pass for all layers. taylor: that and the loss at
# both ends of the gradient's line, and the parabola through them. pgd: projected gradient steps each way, upwards once
# more from the opposite of what was found. exact: the same, longer, from the centre and random offsets.
ESTIMATORS: dict[str, Callable[[_Layer, Tensor, Settings], Probe]] = {
    "gradient": _gradient,
    "taylor": _taylor,
    "pgd": _searched,
    "exact": partial(_searched, least=60, most=1e-5, begins=5),
}
