"""The images that runs train on: clean ones, a user's file or a poison made now, in part, with label noise."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import torch

from ..base.budgets import strength
from ..base.errors import InputError, choose, existing, within
from ..base.names import CLEAN, DATASETS, METHODS, RECIPES
from ..data.poison_files import read_poison
from ..data.sources import load
from ..data.split import Split
from . import poison_runs
from .description import Images, Sets

MEND = "make it with 01_poison (out, seeds), or leave out poisons"


def sets(images: Images) -> Sets:
    """What a run on these images needs."""
    clean, test = splits(images)
    return Sets(poisoned(images), clean, test)


def splits(images: Images) -> tuple[Split, Split]:
    """(clean train, clean test) of a data set with one target; the test part is limited to half as many images."""
    return _clean(images.dataset, images.root, images.size, images.limit, images.target)


@lru_cache(maxsize=4)
def _clean(dataset: str, root: str, size: int | None, limit: int | None, target: str) -> tuple[Split, Split]:
    held = None if limit is None else max(1, limit // 2)
    parts = (("train", limit), ("test", held))
    found = [load(dataset, part, root=root, size=size, limit=count, targets=(target,)) for part, count in parts]
    return cast(tuple[Split, Split], tuple(found))


def poisoned(images: Images) -> Split:
    """What a victim trains on."""
    clean, _ = splits(images)
    whole = _whole(replace(images, share=1.0, label_noise=0.0))
    return relabelled(mixed(clean, whole, images.share), images.target, images.label_noise)


@lru_cache(maxsize=8)
def _whole(images: Images) -> Split:
    """All images poisoned; a method against all tasks sees all labels there are, the victim its own alone."""
    clean, _ = splits(images)
    if images.poison is None and images.method != CLEAN and METHODS[images.method].tasks:
        every = load(images.dataset, "train", root=images.root, size=images.size, limit=images.limit)
        return replace(clean, images=of_method(images, every).images)
    return of_method(images, clean)


def of_config(config: Mapping[str, Any], *, size: int | None = None, target: str | None = None) -> Images:
    """The clean images that a notebook's parameters name, with strength and recipe of their poisons.

    size, target: instead of the data set's. Raises InputError.
    """
    source = DATASETS[choose(config["dataset"], DATASETS, "data set")]
    return Images(
        dataset=config["dataset"],
        root=config["root"],
        limit=config["limit"],
        size=size or source.size,
        target=target or source.target,
        method=CLEAN,
        poison=None,
        poison_recipe=choose(config["recipe"], RECIPES, "recipe"),
        poison_seed=0,
        eps=strength(source.eps if config["eps"] is None else config["eps"]),
    )


def draw(images: Images, method: str, seed: int, folder: str | None) -> Images:
    """The same images poisoned by another method, drawn from `seed`; clean ones have no draw.

    folder: of poisons made before, see `stored`; None: it is made. Raises InputError.
    """
    if method == CLEAN:
        return replace(images, method=CLEAN, poison=None, poison_seed=0)
    file = stored(folder, images.dataset, method, seed) if folder is not None else None
    return replace(images, method=method, poison=file, poison_seed=seed)


def stored(folder: str, dataset: str, method: str, seed: int) -> str:
    """The file of one draw of a poison, in a folder or in one below it. Raises InputError unless there is just one."""
    name = file_name(dataset, method, seed)
    there = [path for pattern in (name, f"*/{name}") for path in existing(folder, MEND).glob(pattern)]
    if len(there) != 1:
        raise InputError(f"{folder} holds {len(there)} files {name}; {MEND}")
    return str(there[0])


def file_name(dataset: str, method: str, seed: int) -> str:
    """What one draw of a poison is called on disk."""
    return f"{dataset}-{method}-{seed}.npz"


def of_method(images: Images, clean: Split) -> Split:
    """A clean split poisoned as `images` says: left as it is, read from a file, or made now."""
    if images.poison is not None:
        return read_poison(images.poison, clean)
    if images.method == CLEAN:
        return clean
    return poison_runs.poisoned(images, clean)


def mixed(clean: Split, poison: Split, share: float) -> Split:
    """`poison` on this share (0..1) of the images, `clean` on the rest; a larger share holds a smaller one's images."""
    keep = _first(len(clean), 1 - within(share, "share"), seed=1)
    images = poison.images.clone()
    images[keep] = clean.images[keep]
    return replace(poison, images=images)


def relabelled(split: Split, target: str, share: float) -> Split:
    """This share (0..1) of the labels drawn anew, uniformly from the other classes.

    Raises InputError if there are no others.
    """
    chosen = _first(len(split), within(share, "label_noise"), seed=2)
    if not len(chosen):
        return split
    labels = split.targets[target].clone()
    classes = int(labels.max()) + 1
    if classes == 1:
        raise InputError(f"label_noise is {share}, but all labels are of one class; take more images or no label noise")
    shift = torch.randint(1, classes, (len(split),), generator=torch.Generator().manual_seed(3))
    labels[chosen] = (labels[chosen] + shift[chosen]) % classes
    return replace(split, targets=split.targets | {target: labels})


def _first(count: int, share: float, *, seed: int) -> torch.Tensor:
    """The first `share` of a fixed permutation of `count` rows."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: round(share * count)]
