"""Perturbations of images: projection onto a budget, 8-bit rounding, signed gradient steps."""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

BLOCK = 250  # images of 3x32x32 values that are held as floats at once; fewer larger ones
Loss = Callable[[Tensor], Tensor]


def to_float(images: Tensor) -> Tensor:
    """uint8[n,c,h,w] in 0..255 to float32 in [0, 1]."""
    return images.float() / 255


def to_uint8(images: Tensor) -> Tensor:
    """float[n,c,h,w] to uint8, clipped to [0, 1] and rounded to nearest (truncation would bias by -0.5/255)."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def add(images: Tensor, delta: Tensor) -> Tensor:
    """uint8 images plus a float perturbation in units of the pixel range [0, 1], back to uint8."""
    return to_uint8(to_float(images) + delta)


def rounded(images: Tensor, delta: Tensor) -> Tensor:
    """uint8 images from float images and perturbation, on the CPU, a block at a time."""
    return torch.cat([to_uint8((images[rows] + delta[rows]).cpu()) for rows in blocks_of(images)])


def scaled_to_l2(delta: Tensor, length: float) -> Tensor:
    """Each perturbation [n,c,h,w] scaled to Euclidean length `length` (a zero stays zero)."""
    norms = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
    return delta * (length / norms).view(-1, 1, 1, 1)


def project_linf(delta: Tensor, images: Tensor, eps: float) -> Tensor:
    """Nearest perturbation with |delta| <= eps and images + delta in [0, 1]."""
    return torch.maximum(torch.minimum(delta.clamp(-eps, eps), 1 - images), -images)


def block_size(images: Tensor) -> int:
    """How many images [n,c,h,w] are worked on at once."""
    return max(1, min(BLOCK, BLOCK * 3072 // images[0].numel())) if len(images) else BLOCK


def blocks_of(images: Tensor) -> Iterator[slice]:
    """Slices that cover images [n,c,h,w], `block_size` at a time."""
    return blocks(len(images), block_size(images))


def blocks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(count)."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def sign_descent(
    losses: Loss | Sequence[Loss], images: Tensor, delta: Tensor, *, eps: float, steps: int, step: float
) -> Tensor:
    """`steps` signed gradient steps that lower the sum of losses(images + delta), projected onto the ball each time.

    images, delta: float[n,c,h,w] in [0, 1]; the ball is L-infinity of radius eps within [0, 1]; a negative `step`
    ascends. A loss must sum over images, so that each image's gradient is its own; several are differentiated one by
    one, so that one graph is held at a time. Madry et al. 2018, eq. 4.
    """
    losses = losses if isinstance(losses, Sequence) else [losses]
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        gradient = cast(Tensor, sum(torch.autograd.grad(loss(images + delta), delta)[0] for loss in losses))
        delta = project_linf(delta.detach() - step * gradient.sign(), images, eps)
    return delta.detach()


def measure(clean: Tensor, other: Tensor) -> dict[str, float]:
    """Largest size of a perturbation over the set: `linf` and `l2` in units of [0, 1], `l0` in changed pixels.

    `l2_mean` is the mean over images; `linf_but_one` leaves out the pixel that changed most (for EM with one pixel on
    top).
    """
    parts = [_sizes(clean[rows], other[rows]) for rows in blocks_of(clean)]
    linf, l2, l0, but_one = (torch.cat(values) for values in zip(*parts, strict=True))
    return {
        "linf": linf.max().item(),
        "l2": l2.max().item(),
        "l2_mean": l2.mean().item(),
        "l0": int(l0.max()),
        "linf_but_one": but_one.max().item(),
    }


def _sizes(clean: Tensor, other: Tensor) -> tuple[Tensor, ...]:
    delta = to_float(other) - to_float(clean)
    pixels = delta.abs().amax(1).flatten(1)
    largest = pixels.topk(2, dim=1).values
    return largest[:, 0], delta.flatten(1).norm(dim=1), (pixels != 0).sum(1), largest[:, 1]
