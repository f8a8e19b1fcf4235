"""Error-minimising poisons: EM per image and per class, REM against adversarial training, and EM with one pixel."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from ..base import records
from ..data import pixels
from ..training import metrics
from . import onepixel
from .surrogate import cross_entropy, frozen, jittered, network, sgd, train_step
from .target import Target


@dataclass(frozen=True)
class EM:
    """`batches` SGD steps of the surrogate, then `steps` descents of every image, in turn until `stop`."""

    architecture: str
    batch_size: int
    batches: int
    steps: int
    step: float  # in units of eps
    stop: float = 0.99  # training accuracy of the surrogate on the poison
    rounds: int = 40  # at most
    share: float = 1.0  # of the images that noise is computed on (class-wise only)


@dataclass(frozen=True)
class REM:
    """Every image is visited `visits` times: noise of `steps` descents, then one SGD step on adversarial images."""

    architecture: str
    batch_size: int
    visits: float
    steps: int
    step: float  # in units of eps
    transforms: int
    inner_steps: int
    inner_step: float  # in units of the adversary's radius
    warm: bool  # noise goes on from the last visit
    inner: float = 0.5  # the adversary's radius, in units of eps


EM_RECIPES = {
    "published": EM("resnet18", batch_size=512, batches=10, steps=20, step=0.1),
    "cpu": EM("resnet8", batch_size=128, batches=10, steps=10, step=0.2),
}
EM_CLASSWISE_RECIPES = {
    "published": EM("resnet18", batch_size=128, batches=10, steps=1, step=0.1, share=0.2),
    "cpu": EM("resnet8", batch_size=128, batches=10, steps=1, step=0.1),
}
REM_RECIPES = {
    "published": REM(
        "resnet18", batch_size=128, visits=12.8, steps=10, step=0.2, transforms=5, inner_steps=10, inner_step=0.2,
        warm=False,
    ),
    "cpu": REM(
        "resnet8", batch_size=32, visits=9, steps=3, step=0.4, transforms=2, inner_steps=3, inner_step=0.5, warm=True
    ),
}  # fmt: skip


def em(target: Target, *, eps: float, settings: EM) -> Tensor:
    """Sample-wise error-minimising noise (Huang et al., ICLR 2021, "Unlearnable Examples"), uint8[n,c,h,w].

    Published: ResNet-18, SGD 0.1, momentum 0.9, decay 5e-4, gradient norm clipped at 5, no augmentation; ten batches,
    then twenty signed steps of eps/10 on every image, until training accuracy exceeds 99 %. Deviations: noise keeps
    both signs (the public loader zeroes the negative half), images stay in [0, 1] inside the loop, rounding; at most
    40 rounds. `cpu`: ResNet-8 of width 8, batches of 128, ten steps of eps/5.
    """
    x, y = target.part(slice(None))
    model = network(settings.architecture, target)
    optimizer, delta, cursor = sgd(model), torch.zeros_like(x), 0
    for round_ in range(1, settings.rounds + 1):
        cursor = _train_on(model, optimizer, x, delta, y, settings, cursor)
        delta = _minimised(model, x, delta, y, eps, settings)
        if _good_enough(model, x + delta, y, settings, f"em round {round_}"):
            break
    return pixels.rounded(x, delta)


def em_classwise(target: Target, *, eps: float, settings: EM) -> Tensor:
    """Class-wise error-minimising noise: one perturbation a class (Huang et al., ICLR 2021), uint8[n,c,h,w].

    Published: noise from a fifth of the images; each batch takes one signed step of eps/10 per image and sets its
    classes' noise to the mean over their images; until the training error is 1 %. Deviations: the fifth is drawn class
    by class, so that none is left without noise; batches of 128; images stay in [0, 1] inside the loop; rounding.
    `cpu`: ResNet-8, all images.
    """
    x, y = target.part(slice(None))
    chosen = _share_of_each(target.labels, settings.share, target.rng())
    model = network(settings.architecture, target)
    optimizer, cursor = sgd(model), 0
    noise = x.new_zeros((target.classes, *x.shape[1:]))
    for round_ in range(1, settings.rounds + 1):
        cursor = _train_on(model, optimizer, x, noise[y], y, settings, cursor)
        frozen(model)
        for rows in chosen.to(y.device).split(settings.batch_size):
            noise = _class_step(model, x[rows], y[rows], noise, eps, settings)
        if _good_enough(model, (x + noise[y]).clamp(0, 1), y, settings, f"em_classwise round {round_}"):
            break
    labels = target.labels
    return torch.cat(
        [pixels.add(target.images[rows], noise.cpu()[labels[rows]]) for rows in pixels.blocks_of(target.images)]
    )


def em_ops(target: Target, *, eps: float, settings: EM) -> Tensor:
    """EM noise with a one-pixel shortcut on top: CIFAR-10-S (Wu et al., ICLR 2023); see `em` and `ops`."""
    return onepixel.ops(em(target, eps=eps, settings=settings), target.labels, eps=eps, seed=target.seed)


def _train_on(
    model: nn.Module, optimizer: Optimizer, x: Tensor, delta: Tensor, y: Tensor, settings: EM, cursor: int
) -> int:
    """SGD on consecutive batches of x + delta, going on where the last round stopped; the new position."""
    model.train().requires_grad_(True)
    for _ in range(settings.batches):
        part = slice(cursor, cursor + settings.batch_size)
        train_step(model, optimizer, (x[part] + delta[part]).clamp(0, 1), y[part])
        cursor = part.stop if part.stop < len(x) else 0
    return cursor


def _minimised(model: nn.Module, x: Tensor, delta: Tensor, y: Tensor, eps: float, settings: EM) -> Tensor:
    """Every image's noise moved down the loss of the frozen model, warm-started; `delta` is written to."""
    frozen(model)
    for rows in pixels.blocks(len(x), settings.batch_size):
        loss, step = cross_entropy(model, y[rows]), settings.step * eps
        delta[rows] = pixels.sign_descent(loss, x[rows], delta[rows], eps=eps, steps=settings.steps, step=step)
    return delta


def _class_step(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, eps: float, settings: EM) -> Tensor:
    """The classes in this batch get the mean of their images' noise after `steps` descents."""
    start = pixels.project_linf(noise[y], x, eps)
    moved = pixels.sign_descent(
        cross_entropy(model, y), x, start, eps=eps, steps=settings.steps, step=settings.step * eps
    )
    noise = noise.clone()
    for c in y.unique():
        noise[c] = moved[y == c].mean(0).clamp(-eps, eps)
    return noise


def _share_of_each(labels: Tensor, share: float, rng: Generator) -> Tensor:
    """Shuffled rows: this share of every class's images, at least one."""
    order = torch.randperm(len(labels), generator=rng)
    rows = [order[labels[order] == c] for c in labels.unique()]
    kept = torch.cat([r[: max(1, round(share * len(r)))] for r in rows])
    return kept[torch.randperm(len(kept), generator=rng)]


def _good_enough(model: nn.Module, x: Tensor, y: Tensor, settings: EM, label: str) -> bool:
    accuracy = metrics.accuracy(model, x, y)
    records.note(f"{label}: surrogate accuracy {accuracy:.3f}")
    return accuracy > settings.stop


def rem(target: Target, *, eps: float, settings: REM) -> Tensor:
    """Robust error-minimising noise (Fu et al., ICLR 2022), uint8[n,c,h,w]: EM that survives adversarial training.

    Published: ResNet-18, 5,000 steps of batches of 128 (12.8 visits an image of CIFAR-10, kept for other sizes); per
    visit ten signed steps of eps/5 from a random start, each the mean over five random crops and mirrors of the
    gradient at an inner adversary (ten steps within eps/2); then one SGD step on adversarial images, and a last pass
    over all images. Deviations: constant rate (published: divided by ten every 2,000 steps), one shift a batch and
    transform, gradient norm clipped at 5, no image left out of the last pass. `cpu`: ResNet-8, batches of 32, nine
    visits, three steps, two transforms, three adversary steps, noise kept between visits: 276 passes an image.
    """
    x, y = target.part(slice(None))
    model, rng = network(settings.architecture, target), target.rng()
    optimizer, delta = sgd(model), torch.zeros_like(x)
    batches = list(_visits(len(x), settings, rng))
    for rows in records.progress(batches, "rem", len(batches)):
        rows = rows.to(y.device)
        delta[rows] = _robust(model, x[rows], delta[rows], y[rows], eps, settings, target.flip, rng)
        z = jittered(x[rows] + delta[rows], flip=target.flip, rng=rng)
        z = z + _adversary(model, z, y[rows], eps, settings, rng)
        train_step(model.train().requires_grad_(True), optimizer, z, y[rows])
    for rows in pixels.blocks(len(x), settings.batch_size):
        delta[rows] = _robust(model, x[rows], delta[rows], y[rows], eps, settings, target.flip, rng)
    records.note(f"rem: surrogate accuracy {metrics.accuracy(model, x + delta, y):.3f}")
    return pixels.rounded(x, delta)


def _visits(count: int, settings: REM, rng: Generator) -> Iterator[Tensor]:
    """Shuffled batches, `visits` times over all images; none holds an image twice."""
    left = round(settings.visits * count)
    while left > 0:
        order = torch.randperm(count, generator=rng)[:left]
        left -= len(order)
        yield from order.split(settings.batch_size)


def _robust(
    model: nn.Module, x: Tensor, delta: Tensor, y: Tensor, eps: float, settings: REM, flip: bool, rng: Generator
) -> Tensor:
    """Noise moved down the adversary's loss, expected over random transforms; the adversary is held constant."""
    frozen(model)
    delta = delta if settings.warm else pixels.project_linf(_uniform(x, eps, rng), x, eps)
    for _ in range(settings.steps):
        total = torch.zeros_like(x)
        for _ in range(settings.transforms):
            leaf = delta.detach().requires_grad_()
            z = jittered(x + leaf, flip=flip, rng=rng)
            attack = _adversary(model, z.detach(), y, eps, settings, rng)
            total += torch.autograd.grad(cross_entropy(model, y)(z + attack), leaf)[0]
        delta = pixels.project_linf(delta - settings.step * eps * total.sign(), x, eps)
    return delta


def _adversary(model: nn.Module, z: Tensor, y: Tensor, eps: float, settings: REM, rng: Generator) -> Tensor:
    """The perturbation within the inner radius that raises the loss at z, from a random start."""
    frozen(model)
    radius = settings.inner * eps
    start = pixels.project_linf(_uniform(z, radius, rng), z, radius)
    step = -settings.inner_step * radius
    return pixels.sign_descent(cross_entropy(model, y), z, start, eps=radius, steps=settings.inner_steps, step=step)


def _uniform(like: Tensor, radius: float, rng: Generator) -> Tensor:
    return ((2 * torch.rand(like.shape, generator=rng) - 1) * radius).to(like.device)
