"""What makes the images of a run, and what its record says of how it was made."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..base import records
from ..base.errors import Record
from ..base.names import DATASETS, METHODS
from ..data.split import Split
from ..nets import device


@dataclass(frozen=True)
class Images:
    """A data set, a poison of it, and how much of that. `root` and `poison` are paths."""

    dataset: str
    root: str
    limit: int | None  # training images; None: all
    size: int | None  # side in pixels; None: as stored
    target: str
    method: str
    poison: str | None  # a file of poisoned images instead of making them
    poison_recipe: str
    poison_seed: int
    eps: float
    share: float = 1.0  # of the training images that are poisoned
    label_noise: float = 0.0  # share of the training labels that are drawn anew


@dataclass(frozen=True)
class Sets:
    """own: what a run trains on; clean: the same images unpoisoned, with true labels; test: clean."""

    own: Split
    clean: Split
    test: Split

    def digests(self) -> list[str]:
        return [self.own.digest(), self.clean.digest(), self.test.digest()]


def settings(run: Any) -> Record:
    """A run's settings as one flat dict, those of its `images` (if it has any) among them."""
    found = asdict(run)
    return found.pop("images", {}) | found


def depends(run: Any) -> Record:
    """`settings` with the tables' rows that they name, without places: where a file lies changes no number."""
    found = {key: value for key, value in settings(run).items() if key not in ("root", "poison")}
    rows = [DATASETS.get(found["dataset"]), METHODS.get(found["method"])]
    return found | {"rows": [vars(row) | {"budget": None} if row else None for row in rows]}


def of_files(found: Sequence[Record], chosen: Sequence[Any]) -> None:
    """Write into records, in place, whether their run's images came from a file.

    A kept record does not know: it is the same run, wherever its images came from.
    """
    for record, run in zip(found, chosen, strict=True):
        record["config"]["poison"] = run.images.poison is not None


def described(run: Any, contents: dict[str, Any], where: torch.device) -> Record:
    """What a record says of how a run was made: config, data, machine, versions.

    contents: digests and numbers of the images. Of places on this machine only stays whether a file of poisoned images
    was given.
    """
    config = settings(run)
    config = {key: value for key, value in config.items() if key != "root"} | {"poison": config["poison"] is not None}
    return {"config": config, "data": contents, "machine": device.machine(where), "versions": records.versions()}
