"""How far a loss rises and falls in a ball around one weight: searches by projected gradient steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Generator, Tensor

from ..base.errors import InputError

SHRINK, GROW = 0.1, 2.0  # how much one step's length may differ from that of the step before it
Objective = Callable[[Tensor, bool], tuple[float, Any]]  # (offset, gradient?) -> (loss, its gradient or None)


@dataclass(frozen=True)
class Ball:
    """Offsets of a weight of length at most `radius`: Euclidean ("l2") or the largest entry ("linf")."""

    radius: float
    norm: str = "l2"

    def project(self, delta: Tensor) -> Tensor:
        """The nearest offset in the ball."""
        if self.norm == "linf":
            return delta.clamp(-self.radius, self.radius)
        return delta * (self.radius / delta.norm().clamp_min(1e-30)).clamp(max=1)

    def ascent(self, slope: Tensor) -> Tensor:
        """The steepest offset of length `radius`; 0 for a zero slope."""
        if self.norm == "linf":
            return self.radius * slope.sign()
        return self.radius * slope / slope.norm().clamp_min(1e-30)

    def random(self, like: Tensor, rng: Generator) -> Tensor:
        """A random offset of full length: a uniform direction, or random signs."""
        return self.ascent(torch.randn(like.shape, generator=rng).to(like))


@dataclass(frozen=True)
class Found:
    """The best offset seen, and how far the loss moved there (at least 0: the start counts)."""

    gain: float
    delta: Tensor


def search(
    at: Objective,
    base: tuple[float, Tensor],
    ball: Ball,
    sign: int,
    *,
    steps: int,
    tolerance: float,
    enough: float = 0.0,
    start: Tensor | None = None,
    above: float = -inf,
) -> Found:
    """The largest rise (sign 1) or fall (-1) of the loss from `base` = (loss, slope) at the ball's centre.

    At most `steps` steps of normalised gradient ascent, each projected onto the ball, the best iterate counts; it ends
    when a step gains no more than the share `tolerance` of what is gained, or of `enough` if that is more. The first
    step is a radius long; later ones as long as the parabola through the last step's slope and gain says. In one layer
    the loss is nearly convex: steps upwards grow into power iteration on the ball's surface, while downwards they find
    the bottom of narrow valleys. start: an offset to begin from instead of the centre, given up at once if it does not
    gain more than `above`.
    """
    (centre, slope), best, length = base, 0.0, 1.0
    delta = torch.zeros_like(slope)
    if start is not None:
        (value, slope), delta = at(start, True), start
        best = sign * (_finite(value) - centre)
        if best <= above:
            return Found(0.0, torch.zeros_like(delta))
    for left in reversed(range(steps)):
        trial = ball.project(delta + sign * length * ball.ascent(slope))
        if torch.equal(trial, delta):
            break
        value, gradient = at(trial, left > 0)
        gain = sign * (_finite(value) - centre) - best
        ahead = _peak(sign * (slope * (trial - delta)).sum().item(), gain)
        length *= ahead if gain > 0 else min(ahead, 0.5)
        if gain > 0:
            best, delta, slope = best + gain, trial, gradient
            if gain <= tolerance * max(best, enough):
                break
    return Found(best, delta) if best > 0 else Found(0.0, torch.zeros_like(delta))


def both_sides(climb: Callable[..., Found], start: Tensor | None) -> Found:
    """The better of a search and of a second one from the opposite of what the first found, if the loss moves there.

    climb: `search` but for where it begins. A loss that is nearly convex in the ball has a maximum on either side of
    the centre; the slope at the centre leads to one of them, and not always to the higher.
    """
    first = climb(start=start)
    second = climb(start=-first.delta, above=0.0)
    return max(first, second, key=lambda found: found.gain)


def starts(base: tuple[float, Tensor], ball: Ball, count: int, rng: Generator) -> Iterator[Tensor | None]:
    """Where searches begin: the centre, and `count` - 1 random offsets of full length."""
    yield None
    for _ in range(count - 1):
        yield ball.random(base[1], rng)


def _finite(value: float) -> float:
    if not isfinite(value):
        raise InputError(f"SAL: the loss is {value} inside the ball; use a smaller epsilon")
    return value


def _peak(slope: float, gain: float) -> float:
    """Where a parabola that starts with `slope` and is `gain` at 1 has its peak, within SHRINK and GROW."""
    return min(max(slope / (2 * (slope - gain)), SHRINK), GROW) if slope > gain else GROW
