"""Perturbations of images: projection onto a budget, 8-bit rounding, signed gradient steps."""

from collections.abc import Callable

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """uint8[n,c,h,w] in 0..255 to float32 in [0, 1]."""
    return images.float() / 255


def to_uint8(images: Tensor) -> Tensor:
    """float[n,c,h,w] to uint8, clipped to [0, 1] and rounded to nearest (truncation would bias by -0.5/255)."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def add(images: Tensor, delta: Tensor) -> Tensor:
    """uint8 images plus a float perturbation in units of the pixel range [0, 1], back to uint8."""
    return to_uint8(to_float(images) + delta)


def scaled_to_l2(delta: Tensor, length: float) -> Tensor:
    """Each perturbation [n,c,h,w] scaled to Euclidean length `length` (a zero stays zero)."""
    norms = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
    return delta * (length / norms).view(-1, 1, 1, 1)


def project_linf(delta: Tensor, images: Tensor, eps: float) -> Tensor:
    """Nearest perturbation with |delta| <= eps and images + delta in [0, 1]."""
    return torch.maximum(torch.minimum(delta.clamp(-eps, eps), 1 - images), -images)


def sign_descent(
    loss: Callable[[Tensor], Tensor], images: Tensor, delta: Tensor, *, eps: float, steps: int, step: float
) -> Tensor:
    """`steps` signed gradient steps that lower loss(images + delta), projected onto the L-infinity ball each time.

    images, delta: float[n,c,h,w] in [0, 1]; a negative `step` ascends. loss must sum over images, so that each
    image's gradient is its own. Madry et al. 2018, eq. 4; used warm-started by EM.
    """
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(images + delta), delta)
        delta = project_linf(delta.detach() - step * gradient.sign(), images, eps)
    return delta.detach()


def measure(clean: Tensor, other: Tensor) -> dict[str, float]:
    """Largest size of a perturbation over the set: `linf` and `l2` in units of [0, 1], `l0` in changed pixels."""
    delta = to_float(other) - to_float(clean)
    flat = delta.flatten(1)
    return {
        "linf": flat.abs().max().item(),
        "l2": flat.norm(dim=1).max().item(),
        "l2_mean": flat.norm(dim=1).mean().item(),
        "l0": int((delta != 0).any(1).flatten(1).sum(1).max()),
    }
