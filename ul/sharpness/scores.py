"""Scores to set SAL and UD beside: gradient norm, curvature, SAM's sharpness, certified learnability, recovery."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats as scipy_stats
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..base.errors import at_least
from ..data import pixels
from ..data.split import Split
from .sal import frozen

RADIUS = 0.05  # of the ball that sharpness is measured in, as in SAM's training (L2 over all parameters)
Score = Callable[[nn.Module], float]


def on(split: Split, target: str, where: torch.device) -> tuple[Tensor, Tensor]:
    """(images as floats, labels) of a split on a device, as every score takes them."""
    images = pixels.to_float(split.images.to(where)).contiguous(memory_format=torch.channels_last)
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


def sharpness(model: nn.Module, images: Tensor, targets: Tensor, *, radius: float = RADIUS) -> float:
    """Rise of the mean cross-entropy (nats) `radius` up the gradient, eval mode (SAM: Foret et al. 2021, eq. 2)."""
    with frozen(model):
        weights = [p.requires_grad_(True) for p in model.parameters()]
        before = F.cross_entropy(model(images), targets)
        slopes = torch.autograd.grad(before, weights)
        step = radius / torch.cat([s.flatten() for s in slopes]).norm().clamp_min(1e-12)
        moved = {n: p + step * s for (n, p), s in zip(model.named_parameters(), slopes, strict=True)}
        with torch.no_grad():
            after = F.cross_entropy(torch.func.functional_call(model, moved, (images,)), targets)
    return (after - before).item()


def top_curvature(
    model: nn.Module, images: Tensor, targets: Tensor, *, tolerance: float = 0.01, seed: int = 0
) -> float:
    """Largest eigenvalue of the Hessian of the mean cross-entropy for all parameters, eval mode (Lanczos, ARPACK).

    images: float[n,c,h,w] as the model takes them; tolerance: relative.
    """
    with frozen(model):
        weights = [p.requires_grad_(True) for p in model.parameters()]
        slopes = torch.autograd.grad(F.cross_entropy(model(images), targets), weights, create_graph=True)
        flat = torch.cat([s.flatten() for s in slopes])

        def times(v: np.ndarray) -> np.ndarray:
            product = torch.autograd.grad(flat, weights, torch.from_numpy(v).to(flat).flatten(), retain_graph=True)
            return torch.cat([p.flatten() for p in product]).cpu().numpy()

        operator = LinearOperator((len(flat), len(flat)), matvec=times, dtype=np.float32)
        start = np.random.default_rng(seed).standard_normal(len(flat)).astype(np.float32)
        if not times(start).any():
            return 0.0  # a loss that single precision no longer tells from 0
        return float(eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)[0])


# ---- Certified learnability ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """score: the quantile of the score under weight noise; bound: no weights within the radius have a larger one."""

    score: float
    bound: float


def certified(
    model: nn.Module,
    score: Score,
    *,
    sigma: float,
    radius: float,
    quantile: float = 0.5,
    draws: int = 200,
    confidence: float = 0.99,
    rng: Generator,
) -> Certificate:
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
