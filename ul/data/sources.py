"""Data sets by name: how each is read."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..base.errors import at_least, choose, located, whole
from ..base.names import DATASETS
from . import cifar, mnist, photographs, rooms, taskonomy, views
from .split import Load, Split


def _label(root: Path) -> list[str]:
    return ["label"]


@dataclass(frozen=True)
class Source:
    """How a data set is read, and which targets its files below a root hold."""

    load: Load
    stored: Callable[[Path], list[str]] = _label


SOURCES: dict[str, Source] = {
    "rooms": Source(views.rendered, lambda root: list(rooms.DOMAINS)),
    "mnist": Source(mnist.mnist),
    "cifar10": Source(cifar.cifar10),
    "cifar100": Source(cifar.cifar100),
    "taskonomy": Source(views.tiny, views.stored),
    "taskonomy_medium": Source(views.medium, views.stored),
    "folder": Source(photographs.folder),
}


def load(
    name: str,
    part: str,
    *,
    root: Path | str,
    size: int | None = None,
    limit: int | None = None,
    targets: tuple[str, ...] | None = None,
) -> Split:
    """Read `part` ("train", "test", …) of a data set below `root`.

    size: side in pixels after area-averaging (None: as stored); limit: this many images, a fixed random subset in
    stored order; targets: only these (None: all there are). Raises InputError for unknown names and damaged files.
    """
    source = SOURCES[choose(name, SOURCES, "data set")]
    choose(part, DATASETS[name].parts, f"part of {name}")
    for what, value in (("limit", limit), ("size", size)):
        if value is not None:
            at_least(whole(value, what), 1, what)
    split = source.load(located(root), part, limit, targets, size)
    return split if size is None else resized(split, size)


def resized(split: Split, size: int) -> Split:
    """Images and dense targets at size x size: area means (depth over valid pixels only), nearest for labels."""
    if split.images.shape[-2:] == (size, size):
        return split
    every = taskonomy.resize({"rgb": split.images, **split.targets}, size)
    return replace(split, images=every.pop("rgb"), targets=every)
