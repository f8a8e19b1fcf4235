"""SAL as the paper's public code computes it, one departure from the definition at a time, to see what each does.

HowFarAreFromTrueUnlearnability at ea9a4a6: poison_train_sharp.py.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from math import isnan
from typing import Any, cast

import pandas as pd
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..base.errors import at_least, choose
from ..base.names import DEPARTURES
from ..nets.classifiers import probed_layers
from .sal import frozen
from .search import Ball, both_sides, search

Augment = Callable[[Tensor, Generator], Tensor]


def per_layer(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    departures: Collection[str],
    *,
    train_loss: float,
    augment: Augment,
    epsilon: float = 0.05,
    iterations: int = 10,
    lr: float = 0.1,
    batch_size: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """SAL of every layer with these DEPARTURES: DataFrame[layer, sal, s_max, s_min, weights], nats.

    images: float[n,c,h,w] as the model takes them; train_loss: the epoch's running training loss; augment(images, rng):
    a new random draw of them. Without departures these are nearly the values of `sal.per_layer`, which goes on longer.
    Raises InputError for an unknown departure.
    """
    wanted = {choose(name, DEPARTURES, "departure") for name in departures}
    if "drop_last" in wanted:
        kept = at_least(len(images) // batch_size, 1, "full batches with drop_last") * batch_size
        images, targets = images[:kept], targets[:kept]
    extremes, rows = _late if "late_projection" in wanted else _each_step, []
    with frozen(model):
        for name in probed_layers(model):
            weight, rng = cast(Tensor, model.get_submodule(name).weight), Generator().manual_seed(seed)
            drawn: Any = (lambda rng=rng: augment(images, rng)) if "augmented" in wanted else (lambda: images)
            loss = _Loss(model, weight, drawn, targets, batch_size)
            centre = train_loss if "train_loss" in wanted else loss.value()
            ball = Ball(epsilon * weight.norm().item())
            high, low = extremes(loss, ball, centre, iterations, lr)
            row = {"s_max": max(high - centre, 0.0), "s_min": max(centre - low, 0.0)}
            rows.append({"layer": name, "sal": max(row.values()), **row, "weights": weight.numel()})
    return pd.DataFrame(rows)


class _Loss:
    """The mean loss of the whole network as a function of one weight, over images that may be drawn anew each time."""

    def __init__(
        self, model: nn.Module, weight: Tensor, drawn: Callable[[], Tensor], targets: Tensor, batch_size: int
    ) -> None:
        self.model, self.weight, self.drawn, self.targets, self.batch_size = model, weight, drawn, targets, batch_size

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = self.drawn().contiguous(memory_format=torch.channels_last)
        return zip(images.split(self.batch_size), self.targets.split(self.batch_size), strict=True)

    @torch.no_grad()
    def value(self) -> float:
        return sum(F.cross_entropy(self.model(x), y).item() * len(y) for x, y in self.batches()) / len(self.targets)

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of one batch's mean loss; NaN where that is not finite (max-pooling's backward would crash)."""
        self.weight.requires_grad_(True)
        try:
            loss = F.cross_entropy(self.model(x), y)
            return torch.autograd.grad(loss, self.weight)[0] if loss.isfinite() else self.weight.detach() * torch.nan
        finally:
            self.weight.requires_grad_(False)


def _each_step(loss: _Loss, ball: Ball, centre: float, iterations: int, lr: float) -> tuple[float, float]:
    """The largest and smallest loss by our own search: normalised steps, each projected."""
    start = loss.weight.detach().clone()

    def at(offset: Tensor, gradient: bool) -> tuple[float, Any]:
        with torch.no_grad():
            loss.weight.copy_(start + offset)
        slopes = [loss.slope(x, y) * (len(y) / len(loss.targets)) for x, y in loss.batches()] if gradient else []
        value = loss.value()
        with torch.no_grad():
            loss.weight.copy_(start)
        return value, sum(slopes) if gradient else None

    base = at(torch.zeros_like(start), True)
    up = both_sides(partial(search, at, base, ball, 1, steps=iterations, tolerance=0.01), None)
    down = search(at, base, ball, -1, steps=iterations, tolerance=0.01, enough=up.gain)
    return base[0] + up.gain, base[0] - down.gain


@torch.no_grad()
def _late(loss: _Loss, ball: Ball, centre: float, iterations: int, lr: float) -> tuple[float, float]:
    """The largest and smallest loss seen at the ends of passes of plain steps; a NaN candidate loses silently."""
    start, best = loss.weight.detach().clone(), {1: centre, -1: centre}
    for sign in best:
        for _ in range(iterations):
            for x, y in loss.batches():
                with torch.enable_grad():
                    slope = loss.slope(x, y)
                loss.weight += sign * lr * slope
            delta = loss.weight - start
            if delta.norm() > ball.radius:  # False for NaN
                loss.weight.copy_(start + ball.project(delta))
            value = loss.value()
            if not isnan(value):
                best[sign] = sign * max(sign * best[sign], sign * value)
        loss.weight.copy_(start)
    return best[1], best[-1]
