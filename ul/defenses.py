"""Training-time defenses: what is done once to the images, and what to each batch."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor, nn

from .config import choose
from .data import Split


def _same(split: Split) -> Split:
    return split


def _as_is(model: nn.Module, images: Tensor, targets: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    return images, targets


@dataclass(frozen=True)
class Defense:
    """`prepare` runs once on the training split; `batch` on float images [n,c,h,w] in [0, 1] and their targets."""

    name: str
    prepare: Callable[[Split], Split] = _same
    batch: Callable[[nn.Module, Tensor, Tensor, Generator], tuple[Tensor, Tensor]] = _as_is
    augment: bool = True  # the recipe's crop and flip come before `batch`


NAMES: dict[str, Defense] = {d.name: d for d in (Defense("none"), Defense("no_augmentation", augment=False))}


def make(name: str) -> Defense:
    """The defense of that name. Raises InputError that lists them."""
    return NAMES[choose(name, NAMES, "defense")]
