"""Scores to set UD beside: gradient norm, Hessian trace, certified learnability, recovery by a few clean images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats as scipy_stats
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from . import perturb
from .config import at_least
from .data import Split
from .sal import frozen

Score = Callable[[nn.Module], float]


def on(split: Split, target: str, where: torch.device) -> tuple[Tensor, Tensor]:
    """(images as floats, labels) of a split on a device, as every score takes them."""
    images = perturb.to_float(split.images.to(where)).contiguous(memory_format=torch.channels_last)
    return images, split.targets[target].to(where)


def _loss_and_slopes(
    model: nn.Module, images: Tensor, targets: Tensor, **options: Any
) -> tuple[list[Tensor], tuple[Any, ...]]:
    """All parameters and the gradient of the mean cross-entropy in eval mode for each."""
    weights = [p.requires_grad_(True) for p in model.parameters()]
    return weights, torch.autograd.grad(F.cross_entropy(model(images), targets), weights, **options)


def gradient_norm(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    """Length of the gradient of the mean cross-entropy for all parameters, eval mode, in nats per unit of weight."""
    with frozen(model):
        _, slopes = _loss_and_slopes(model, images, targets)
    return torch.cat([g.flatten() for g in slopes]).norm().item()


def hessian_trace(model: nn.Module, images: Tensor, targets: Tensor, *, draws: int, rng: Generator) -> list[float]:
    """`draws` independent estimates of the trace of the Hessian of the mean cross-entropy, eval mode (Hutchinson 1990).

    Random signs v give v'Hv, whose mean is the trace, exactly so for a diagonal Hessian.
    """
    at_least(draws, 1, "draws")
    out = []
    with frozen(model):
        weights, slopes = _loss_and_slopes(model, images, targets, create_graph=True)
        for _ in range(draws):
            signs = [torch.randint(0, 2, w.shape, generator=rng).to(w) * 2 - 1 for w in weights]
            turned = torch.autograd.grad(slopes, weights, signs, retain_graph=True)
            out.append(sum((s * t).sum().item() for s, t in zip(signs, turned, strict=True)))
    return out


# ---- Certified learnability ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """score: the quantile of the score under weight noise; bound: no weights within the radius have a larger one."""

    score: float
    bound: float


def certified(
    model: nn.Module, score: Score, *, sigma: float, radius: float, quantile: float = 0.5, draws: int = 200,
    confidence: float = 0.99, rng: Generator,
) -> Certificate:  # fmt: skip
    """Certified (q, eta)-learnability (Wang et al., "Provably Unlearnable Data Examples", NDSS 2025).

    score(model) in 0..1, e.g. clean test accuracy. With weights + N(0, sigma^2) the q-quantile of the score is
    estimated; for all weights moved by at most `radius` (L2 over all parameters) that quantile is at most the
    Phi(Phi^-1(q) + radius / sigma)-quantile here, which the bound exceeds with probability `confidence` (an order
    statistic by the binomial distribution; 1 where the draws are too few to say). The model is left as it was.
    """
    found = sorted(_noisy_scores(model, score, sigma, draws, rng))
    raised = scipy_stats.norm.cdf(scipy_stats.norm.ppf(quantile) + radius / sigma)
    rank = int(scipy_stats.binom.ppf(confidence, draws, raised))  # P(at most `rank` draws lie below) >= confidence
    return Certificate(float(torch.tensor(found).quantile(quantile)), found[rank] if rank < draws else 1.0)


def _noisy_scores(model: nn.Module, score: Score, sigma: float, draws: int, rng: Generator) -> Iterator[float]:
    with restored(model):
        start = [p.detach().clone() for p in model.parameters()]
        for _ in range(at_least(draws, 1, "draws")):
            with torch.no_grad():
                for p, w in zip(model.parameters(), start, strict=True):
                    p.copy_(w + sigma * torch.randn(w.shape, generator=rng).to(w))
            yield score(model)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Weights and buffers as they were afterwards."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(state)


def recover(
    model: nn.Module, images: Tensor, targets: Tensor, *, radius: float, steps: int = 50, lr: float = 0.01
) -> None:
    """Move the weights towards a few clean images, at most `radius` away (L2 over all parameters), in place.

    The recovery attack that certificates are about (Wang et al., NDSS 2025): gradient descent with momentum on the
    cross-entropy in eval mode, so batch statistics stay, and a projection onto the ball after every step.
    """
    start = [p.detach().clone() for p in model.parameters()]
    velocity = [torch.zeros_like(p) for p in start]
    with frozen(model):
        for _ in range(steps):
            weights, slopes = _loss_and_slopes(model, images, targets)
            with torch.no_grad():
                velocity = [0.9 * v + g for v, g in zip(velocity, slopes, strict=True)]
                moved = [w + (-lr) * v for w, v in zip(weights, velocity, strict=True)]
                away = torch.cat([(m - s).flatten() for m, s in zip(moved, start, strict=True)]).norm()
                share = (radius / away.clamp_min(1e-30)).clamp(max=1)
                for p, m, s in zip(weights, moved, start, strict=True):
                    p.copy_(s + share * (m - s))
