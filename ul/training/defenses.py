"""Training-time defenses: what is done once to the images, and what to each batch; test images stay as they are."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ..base.errors import choose
from ..data import pixels
from ..data.split import Split, default_target


@dataclass(frozen=True)
class Mixed:
    """Labels of images that were mixed in pairs: first and second int64[n], and the first one's share, float[n]."""

    first: Tensor
    second: Tensor
    share: Tensor

    def shares(self, classes: int) -> Tensor:
        """The shares of `classes` classes, float[n,classes]."""
        one, two = (F.one_hot(labels, classes) for labels in (self.first, self.second))
        return self.share[:, None] * one + (1 - self.share[:, None]) * two


Batch = Callable[[nn.Module, Tensor, Tensor, Generator], tuple[Tensor, Tensor | Mixed]]


def _same(split: Split) -> Split:
    return split


def as_is(model: nn.Module, images: Tensor, targets: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Nothing is done to a batch, and nothing drawn."""
    return images, targets


@dataclass(frozen=True)
class Defense:
    """`prepare` runs once on the training split; `batch` on float images [n,c,h,w] in [0, 1] and their targets.

    `batch` gives images and targets int64[n], or `Mixed` ones. After the share `until` of the training, `later` takes
    its place.
    """

    name: str
    prepare: Callable[[Split], Split] = _same
    batch: Batch = as_is
    augment: bool = True  # the recipe's crop and flip come before `batch`
    until: float = 1.0
    later: Batch = as_is

    def applied(self, split: Split) -> tuple[Split, "Defense"]:
        """The prepared split, and what is left to do: preparing takes long, and is needed in several places."""
        return self.prepare(split), replace(self, prepare=_same)

    def at(self, progress: float) -> Batch:
        """What a batch goes through at this share (0..1) of the training."""
        return self.batch if progress < self.until else self.later


@contextmanager
def seeded(rng: Generator) -> Iterator[None]:
    """torch's global random numbers seeded from `rng` inside, restored afterwards; for libraries without generators."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**31, (), generator=rng)))
        yield


# ---- Once, on the images -------------------------------------------------------------------------------------------


def jpeg(split: Split, *, quality: int = 10) -> Split:
    """Each image through JPEG (image shortcut squeezing: Liu et al., ICML 2023)."""
    return replace(split, images=torch.stack([_through_jpeg(image, quality) for image in split.images]))


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    from PIL import Image

    buffer, pixels = io.BytesIO(), image.permute(1, 2, 0).numpy()
    Image.fromarray(pixels.squeeze(2) if len(image) == 1 else pixels).save(buffer, "JPEG", quality=quality)
    decoded = np.asarray(Image.open(buffer)).reshape(pixels.shape)
    return torch.from_numpy(decoded.copy()).permute(2, 0, 1)


def gray(split: Split) -> Split:
    """Luminance in every channel (ITU-R 601: .299, .587, .114); gray images stay as they are."""
    if split.images.shape[1] != 3:
        return split
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    out = torch.empty_like(split.images)
    for rows in pixels.blocks_of(split.images):
        out[rows] = (split.images[rows] * weights).sum(1, keepdim=True).round().to(torch.uint8)
    return replace(split, images=out)


def bdr(split: Split, *, bits: int = 2) -> Split:
    """Bit depth reduced to the `bits` highest bits, the rest cleared (as PIL's posterize)."""
    return replace(split, images=split.images & (256 - 2 ** (8 - bits)))


def blur(split: Split, *, sigma: float = 1.0) -> Split:
    """Gaussian blur over 5x5 pixels; the usual public sigma of 0.1 gives neighbours the weight 2e-22: nothing."""
    from kornia.filters import gaussian_blur2d

    parts = [
        pixels.to_uint8(gaussian_blur2d(pixels.to_float(split.images[rows]), (5, 5), (sigma, sigma)))
        for rows in pixels.blocks_of(split.images)
    ]
    return replace(split, images=torch.cat(parts))


def orthogonal(split: Split, *, seed: int = 0, rounds: int = 30) -> Split:
    """The pixel directions of a linear classifier projected away (Sandoval-Segura et al., NeurIPS 2023).

    A softmax without bias is fitted on the pixels (SGD 0.1, batches of 1,024, 20 epochs, divided by ten at 10 and 15),
    and x becomes x - Q Q' x for an orthonormal basis Q of its rows. Deviations: pixels are counted from middle gray, so
    that what is left stays in the range; because images are uint8 here, projection and clipping alternate until both
    hold up to rounding.
    """
    basis = _row_space(_linear_rows(split, seed))
    out = torch.empty_like(split.images)
    for rows in pixels.blocks_of(split.images):
        x = _centred(split.images[rows])
        for _ in range(rounds):
            x = (x - x @ basis @ basis.T).clamp(-0.5, 0.5)
        out[rows] = pixels.to_uint8(x + 0.5).view_as(out[rows])
    return replace(split, images=out)


def _row_space(weights: Tensor) -> Tensor:
    """Orthonormal columns float[d,r] that span the rows; gradients of a softmax sum to zero, so r is classes - 1."""
    _, sizes, directions = torch.linalg.svd(weights.double(), full_matrices=False)
    return directions[sizes > 1e-6 * sizes.max()].T.float()


def _centred(images: Tensor) -> Tensor:
    """Pixels float[n,d] from middle gray, in [-0.5, 0.5]."""
    return pixels.to_float(images).flatten(1) - 0.5


def _linear_rows(split: Split, seed: int) -> Tensor:
    """Weights float[classes, d] of a linear softmax on the centred pixels."""
    labels, rng = split.targets[default_target(split)], Generator().manual_seed(seed)
    weights = torch.zeros((int(labels.max()) + 1, split.images[0].numel()))
    for epoch in range(20):
        rate = 0.1 * 0.1 ** ((epoch >= 10) + (epoch >= 15))
        for rows in torch.randperm(len(split), generator=rng).split(1024):
            x = _centred(split.images[rows])
            error = (x @ weights.T).softmax(1) - F.one_hot(labels[rows], len(weights))
            weights -= rate * error.T @ x / len(rows)
    return weights


# ---- On each batch -------------------------------------------------------------------------------------------------


def cutout(model: nn.Module, images: Tensor, targets: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """A black square of half the side at a random centre, cut at the border (DeVries and Taylor 2017)."""
    n, _, h, w = images.shape
    row, column = (torch.randint(0, size, (n, 1), generator=rng) for size in (h, w))
    rows = (torch.arange(h) - row + h // 4).div(h // 2, rounding_mode="floor") == 0
    columns = (torch.arange(w) - column + w // 4).div(w // 2, rounding_mode="floor") == 0
    hole = (rows[:, :, None] & columns[:, None, :]).to(images.device)
    return images.masked_fill(hole[:, None], 0), targets


def cutmix(model: nn.Module, images: Tensor, targets: Tensor, rng: Generator) -> tuple[Tensor, Mixed]:
    """A box of another image, labels shared by area (Yun et al. 2019; kornia)."""
    with seeded(rng):
        mixed, labels = _kornia("RandomCutMixV2", data_keys=("input", "class"), use_correct_lambda=True)(
            images, targets
        )
    return mixed, Mixed(labels[0, :, 0].long(), labels[0, :, 1].long(), labels[0, :, 2])


def mixup(model: nn.Module, images: Tensor, targets: Tensor, rng: Generator) -> tuple[Tensor, Mixed]:
    """A weighted mean with another image, labels likewise (Zhang et al. 2018; kornia)."""
    with seeded(rng):
        mixed, labels = _kornia("RandomMixUpV2", data_keys=("input", "class"))(images, targets)
    return mixed, Mixed(labels[:, 0].long(), labels[:, 1].long(), 1 - labels[:, 2])


@cache
def _kornia(name: str, **options: Any) -> nn.Module:
    from kornia import augmentation

    options = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    return getattr(augmentation, name)(**options)


@cache
def _eraser() -> nn.Module:
    from kornia import augmentation as k
    from kornia.augmentation.auto import TrivialAugment

    plasma = {"roughness": (0.3, 0.7), "intensity": (0.5, 1.0), "p": 0.5}
    return nn.Sequential(
        k.RandomPlasmaBrightness(**plasma),
        k.RandomPlasmaContrast(roughness=(0.3, 0.7), p=0.5),
        k.RandomChannelShuffle(p=0.5),
        TrivialAugment(),
    )


def erased(model: nn.Module, images: Tensor, targets: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """UEraser once (Qin et al. 2023): plasma brightness and contrast, channel shuffle, TrivialAugment."""
    with seeded(rng):
        return _eraser()(images).detach(), targets


def erased_worst(model: nn.Module, images: Tensor, targets: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Of five draws of `erased`, each image's with the largest loss under the model in eval mode.

    Deviation: one training pass on the chosen draws; published, five passes update the batch statistics. The JPEG
    variant for TAP and AR is not here.
    """
    mode = model.training
    model.eval()
    best, worst = images, images.new_full((len(images),), -torch.inf)
    with torch.no_grad():
        for _ in range(5):
            drawn, _ = erased(model, images, targets, rng)
            loss = F.cross_entropy(model(drawn), targets, reduction="none")
            best = torch.where((loss > worst).view(-1, 1, 1, 1), drawn, best)
            worst = torch.maximum(loss, worst)
    model.train(mode)
    return best, targets


def adversarial(eps: float = 8 / 255, *, steps: int = 10, step: float = 2 / 255) -> Defense:
    """Adversarial training (Madry et al. 2018): PGD against the network in eval mode, from x + N(0, step).

    The radius is that of colour photographs, whatever the strength of a poison.
    """

    def batch(model: nn.Module, images: Tensor, targets: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        mode = model.training
        model.eval().requires_grad_(False)
        start = torch.randn(images.shape, generator=rng).to(images.device) * step
        delta = pixels.sign_descent(
            lambda z: F.cross_entropy(model(z), targets, reduction="sum"),
            images,
            pixels.project_linf(start, images, eps),
            eps=eps,
            steps=steps,
            step=-step,
        )
        model.train(mode).requires_grad_(True)
        return images + delta, targets

    return Defense("at", batch=batch)


DEFENSES: dict[str, Defense] = {
    defense.name: defense
    for defense in (
        Defense("none"),
        Defense("no_augmentation", augment=False),
        Defense("cutout", batch=cutout),
        Defense("cutmix", batch=cutmix),
        Defense("mixup", batch=mixup),
        Defense("jpeg", prepare=jpeg),
        Defense("gray", prepare=gray),
        Defense("bdr", prepare=bdr),
        Defense("blur", prepare=blur),
        Defense("ueraser_lite", batch=erased),
        Defense("ueraser", batch=erased_worst, until=1 / 6, later=erased),
        Defense("ueraser_max", batch=erased_worst),
        adversarial(),
        Defense("orthogonal", prepare=orthogonal),
    )
}


def make(name: str) -> Defense:
    """The defense of that name. Raises InputError that lists them."""
    return DEFENSES[choose(name, DEFENSES, "defense")]
