"""The one shape of data: a `Split` of uint8 images with named targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ..base import names, records
from ..base.errors import InputError
from ..base.names import default_target as target_of


@dataclass(frozen=True)
class Split:
    """One part of a data set; every target has the images' order.

    Classification targets are int64[n]; dense ones are float32[n,c,h,w] with units in `ul.data.taskonomy.DOMAINS`.
    """

    images: Tensor  # uint8[n,c,h,w]
    targets: dict[str, Tensor]
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor) -> "Split":
        """The images at int64[m] positions, in that order."""
        return replace(self, images=self.images[index], targets={k: v[index] for k, v in self.targets.items()})

    def digest(self) -> str:
        """16 hex digits over images and targets."""
        return records.digest(self.images.numpy(), *(self.targets[k].numpy() for k in sorted(self.targets)))


Targets = Sequence[str] | None  # the names of those wanted; None: all there are
Load = Callable[[Path, str, int | None, Targets, int | None], Split]  # (root, part, limit, targets, size)
PULL = "run `dvc pull data.dvc`, or name the folder that holds it with root"


def classes(*parts: Split) -> int:
    """How many outputs a classifier of these parts of one data set needs."""
    source = names.DATASETS.get(parts[0].name.partition("/")[0])
    known = source and source.classes
    return known or max(int(part.targets[default_target(part)].max()) + 1 for part in parts)


def default_target(split: Split) -> str:
    """The image-level target that poisons and classifiers of this data set use."""
    return target_of(split.name)


def subset(count: int, limit: int | None) -> np.ndarray:
    """Sorted positions of a fixed random `limit` of `count` items; all of them without a limit."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])


def check_labels(labels: np.ndarray, classes: int, path: Path) -> None:
    """Raises InputError that names the file if a label is no class."""
    if (bad := labels[(labels < 0) | (labels >= classes)]).size:
        raise InputError(f"{path}: label {bad[0]} is out of range 0..{classes - 1}; fetch the file again")
