"""TUE: noise that is a shortcut for contrastive learning as well as for supervised learning."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..base import records
from ..base.errors import InputError
from ..data import pixels
from ..training.defenses import seeded
from .surrogate import frozen, network
from .target import Target


@dataclass(frozen=True)
class TUE:
    """`batches` contrastive training steps, then `steps` signed descents of every image, for `epochs` in all."""

    architecture: str
    batch_size: int
    epochs: int
    batches: int
    steps: int
    step: float  # in units of eps
    contrastive: float = 1.0  # weight of the contrastive loss
    separability: float = 1.0  # weight of class_separability
    temperature: float = 0.5
    outputs: int = 64  # of the projection


TUE_RECIPES = {
    "published": TUE("resnet18", batch_size=512, epochs=40, batches=20, steps=20, step=0.1),
    "cpu": TUE("resnet8", batch_size=128, epochs=10, batches=9, steps=6, step=0.2),
}


def tue(target: Target, *, eps: float, settings: TUE) -> Tensor:
    """Transferable unlearnable examples (Ren et al., ICLR 2023), uint8[n,c,h,w], with SimCLR as surrogate.

    In turn: train an encoder on x + delta (NT-Xent, Adam 1e-3), then lower contrastive loss + class separability of
    delta for every image. Deviations: both weights are 1, as the public code has them for MoCo (for SimCLR it sets the
    contrastive weight to 0, which makes the encoder irrelevant); the spread within a class has a gradient (the public
    code detaches it); a random start; shuffled batches; the network's last layer is the projection. `cpu`: ResNet-8,
    batches of 128, ten epochs, six steps of eps/5 after each nine batches.
    """
    x, y = target.part(slice(None))
    rng, model = target.rng(), network(settings.architecture, target, outputs=settings.outputs)
    views = augmentations(x.shape[1:], flip=target.flip)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = (2 * torch.rand(x.shape, generator=rng) - 1).to(x.device) * eps
    delta = pixels.project_linf(start, x, eps)
    queue = list(_batches(len(x), settings, rng))
    rounds = [queue[i : i + settings.batches] for i in range(0, len(queue), settings.batches)]
    for batches in records.progress(rounds, "tue", len(rounds)):
        model.train().requires_grad_(True)
        for rows in batches:
            _contrastive_step(model, optimizer, x[rows] + delta[rows], views, settings, rng)
        frozen(model)
        for rows in _mixed(len(x), settings.batch_size, rng):
            delta[rows] = _descended(model, x[rows], delta[rows], y[rows], eps, views, settings, rng)
    records.note(f"tue: class separability {class_separability(delta[:1000], y[:1000]).item():.3f}")
    return pixels.rounded(x, delta)


def augmentations(shape: Sequence[int], *, flip: bool) -> nn.Module:
    """SimCLR's views (Chen et al. 2020, appendix A): crop, mirror, and for colour images jitter and gray."""
    from kornia import augmentation as k

    steps = [k.RandomResizedCrop(shape[1:], scale=(0.2, 1.0)), *([k.RandomHorizontalFlip()] if flip else [])]
    if shape[0] == 3:
        steps += [k.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), k.RandomGrayscale(p=0.2)]
    return nn.Sequential(*steps)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Mean NT-Xent loss of two views' outputs float[n,k] (Chen et al. 2020, equation 1)."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(a))
    return F.cross_entropy(similarity, partner)


def class_separability(delta: Tensor, labels: Tensor) -> Tensor:
    """Mean over pairs of classes of (spread of one + spread of the other) / distance of centres; small is separable.

    delta: float[n,...]; a class's spread is the mean distance to its centre (Davies and Bouldin 1979, as in TUE).
    Zero with fewer than two classes.
    """
    flat, (classes, which) = delta.flatten(1), labels.unique(return_inverse=True)
    member = F.one_hot(which, len(classes)).to(flat) / torch.bincount(which).to(flat)
    centres = member.T @ flat
    spread = member.T @ _length(flat - centres[which])
    i, j = torch.triu_indices(len(classes), len(classes), 1, device=flat.device)
    if not len(i):
        return flat.sum() * 0
    return ((spread[i] + spread[j]) / _length(centres[i] - centres[j]).clamp_min(1e-6)).mean()


def _length(rows: Tensor) -> Tensor:
    """Euclidean length with a gradient at zero."""
    return (rows.square().sum(1) + 1e-12).sqrt()


def _mixed(count: int, size: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randperm(count, generator=rng).split(size)


def _batches(count: int, settings: TUE, rng: torch.Generator) -> Iterator[Tensor]:
    for _ in range(settings.epochs):
        yield from _mixed(count, settings.batch_size, rng)


def _contrastive_loss(model: nn.Module, z: Tensor, views: nn.Module, settings: TUE, rng: torch.Generator) -> Tensor:
    with seeded(rng):
        a, b = views(z), views(z)
    return nt_xent(model(a), model(b), settings.temperature)


def _contrastive_step(
    model: nn.Module, optimizer: Optimizer, z: Tensor, views: nn.Module, settings: TUE, rng: torch.Generator
) -> None:
    if len(z) < 2:
        return  # one image has nothing to be contrasted with
    loss = _contrastive_loss(model, z, views, settings, rng)
    if not torch.isfinite(loss):
        raise InputError(f"tue: the surrogate's loss is {loss.item()}; use another seed")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _descended(
    model: nn.Module,
    x: Tensor,
    delta: Tensor,
    y: Tensor,
    eps: float,
    views: nn.Module,
    settings: TUE,
    rng: torch.Generator,
) -> Tensor:
    def loss(z: Tensor) -> Tensor:
        together = settings.separability * class_separability(z - x, y)
        if settings.contrastive and len(z) > 1:
            together = together + settings.contrastive * _contrastive_loss(model, z, views, settings, rng)
        return together

    return pixels.sign_descent(loss, x, delta, eps=eps, steps=settings.steps, step=settings.step * eps)
