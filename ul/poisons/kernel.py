"""NTGA: images that mislead an infinitely wide network, whose training has a closed form."""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..base import records
from ..base.errors import choose
from ..data import pixels
from .target import Target

WEIGHT, BIAS = 1.76, 0.18  # variances of the initialisation
RIDGE = 1e-4  # of the mean diagonal
VALUES = 2**24  # pairs of images times pixels that are worked on at once


@dataclass(frozen=True)
class NTGA:
    """Blocks of images are moved up the loss that a network trained on the block for `time` has on held-out images."""

    kernel: str  # fnn | cnn
    time: float
    block: int
    held: int
    steps: int = 10
    step: float = 0.11  # in units of eps


NTGA_RECIPES = {
    "published": NTGA("cnn", time=64.0, block=512, held=512),
    "cpu": NTGA("fnn", time=4096.0, block=256, held=256),
}


def ntga(target: Target, *, eps: float, settings: NTGA) -> Tensor:
    """Neural tangent generalisation attack (Yuan and Wu, ICML 2021), uint8[n,c,h,w].

    Ten signed ascents of 1.1 eps/10 on the cross-entropy of the closed-form prediction of held-out images. Deviations:
    every step starts where the last one ended (the public code starts each from the clean image, which is one step);
    held-out images are clean training images outside the block (public: the test set); no image is dropped, order is
    kept; float64. `cpu`: the five-layer dense kernel at t = 4096 with blocks of 256 (public: its best dense setting);
    `published`: two strided convolutions and three dense layers at t = 64.
    """
    kernel = KERNELS[choose(settings.kernel, KERNELS, "kernel of ntga")]
    order = torch.randperm(len(target), generator=target.rng())
    blocks = order.tensor_split(max(2, -(-len(target) // settings.block)))
    out = torch.empty_like(target.images)
    for i, rows in enumerate(records.progress(blocks, "ntga", len(blocks))):
        others = torch.cat([*blocks[:i], *blocks[i + 1 :]])
        held = others[torch.randperm(len(others), generator=target.rng(i + 1))[: settings.held]]
        out[rows] = _block(target, rows, held, kernel, eps, settings)
    return out


def _block(
    target: Target, rows: Tensor, held: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], eps: float, settings: NTGA
) -> Tensor:
    x, y = target.part(rows)
    x_held, y_held = target.part(held)
    goal = F.one_hot(y, target.classes).double()

    def loss(z: Tensor) -> Tensor:
        predicted = prediction(_in_rows(kernel, x_held.double(), z), _in_rows(kernel, z, z), goal, settings.time)
        return F.cross_entropy(predicted, y_held, reduction="sum")

    x = x.double()
    start = torch.zeros_like(x)
    delta = pixels.sign_descent(loss, x, start, eps=eps, steps=settings.steps, step=-settings.step * eps)
    return pixels.to_uint8((x + delta).cpu())


def _in_rows(kernel: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """kernel(a, b), a few rows at a time, computed again for the gradient: all pairs and positions fill 10 GB."""
    few = max(1, VALUES // (len(b) * a[0, 0].numel()))
    return torch.cat([checkpoint(kernel, rows, b, use_reentrant=False) for rows in a.split(few)])


def prediction(held: Tensor, within: Tensor, goal: Tensor, time: float) -> Tensor:
    """float[m,k] that gradient flow on the mean squared error predicts after `time`, from zero outputs.

    held: kernel float[m,n] of held-out with training images; within: float[n,n]; goal: float[n,k]. The loss is half the
    mean over n k entries, so f = held within^-1 (1 - exp(-t within / (n k))) goal (Lee et al. 2019, equation 14). The
    inverse cancels in an augmented matrix exponential, which stays exact for singular kernels.
    """
    n, k = goal.shape
    rate = (within + RIDGE * within.diagonal().mean() * torch.eye(n, dtype=within.dtype, device=within.device)) / (
        n * k
    )
    top = torch.cat([-time * rate, time * goal], 1)
    augmented = torch.cat([top, top.new_zeros((k, n + k))])
    return held @ torch.linalg.matrix_exp(augmented)[:n, n:] / (n * k)


def relu_layer(cross: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """(E[relu(u) relu(v)], E[relu'(u) relu'(v)]) for Gaussians of covariance `cross` and variances left, right.

    Cho and Saul 2009, equations 6 and 7; all broadcast together.
    """
    scale = (left * right).clamp_min(1e-24).sqrt()
    cosine = (cross / scale).clamp(-1 + 1e-9, 1 - 1e-9)
    angle = cosine.arccos()
    return scale * (angle.sin() + (pi - angle) * cosine) / (2 * pi), (pi - angle) / (2 * pi)


def dense_tangent(cross: Tensor, left: Tensor, right: Tensor, tangent: Tensor, layers: int) -> Tensor:
    """Tangent kernel after `layers` of (relu, dense), from covariances and tangent kernel before them."""
    for _ in range(layers):
        cross, slope = relu_layer(cross, left, right)
        cross, left, right = (WEIGHT * v + BIAS for v in (cross, left / 2, right / 2))
        tangent = cross + WEIGHT * slope * tangent
    return tangent


def fnn(a: Tensor, b: Tensor) -> Tensor:
    """Neural tangent kernel float[n,m] of a dense network of five layers, images float[n,c,h,w] and float[m,c,h,w]."""
    a, b = a.flatten(1), b.flatten(1)
    size = a.shape[1]
    cross = WEIGHT * a @ b.T / size + BIAS
    left, right = (WEIGHT * v.square().mean(1) + BIAS for v in (a, b))
    return dense_tangent(cross, left[:, None], right[None, :], cross, 4)


def cnn(a: Tensor, b: Tensor) -> Tensor:
    """Neural tangent kernel float[n,m] of two 5x5 convolutions of stride 2 and three dense layers."""
    p, q = _patches(a), _patches(b)  # [n,d,h,w]
    cross = WEIGHT * torch.einsum("ndhw,mdhw->nmhw", p, q) / p.shape[1] + BIAS
    left, right = (WEIGHT * v.square().mean(1) + BIAS for v in (p, q))
    tangent = cross
    covariance, slope = relu_layer(cross, left[:, None], right[None])
    tangent = WEIGHT * _pooled(slope * tangent)
    cross = WEIGHT * _pooled(covariance) + BIAS
    left, right = (WEIGHT * _pooled(v / 2) + BIAS for v in (left, right))
    return _flattened(cross, left, right, cross + tangent)


def _flattened(cross: Tensor, left: Tensor, right: Tensor, tangent: Tensor) -> Tensor:
    """relu, flatten (mean over positions), dense, then twice relu and dense."""
    covariance, slope = relu_layer(cross, left[:, None], right[None])
    tangent = WEIGHT * (slope * tangent).mean((2, 3))
    cross = WEIGHT * covariance.mean((2, 3)) + BIAS
    left, right = (WEIGHT * (v / 2).mean((1, 2)) + BIAS for v in (left, right))
    return dense_tangent(cross, left[:, None], right[None, :], cross + tangent, 2)


def _patches(x: Tensor) -> Tensor:
    side = (x.shape[-2] + 1) // 2, (x.shape[-1] + 1) // 2
    return F.unfold(x, 5, padding=2, stride=2).unflatten(2, side)


def _pooled(x: Tensor) -> Tensor:
    """What a 5x5 convolution of stride 2 with zero padding does to covariances: means over patches."""
    return F.avg_pool2d(x, 5, stride=2, padding=2)


KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"fnn": fnn, "cnn": cnn}
