"""Every task's labels of a data set, from clean images: stored ones read, others derived, all packed for training."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from ..base.errors import InputError, choose, located
from ..base.names import DATASETS, RARE
from ..data import pixels
from ..data.sources import SOURCES, resized
from ..data.sources import load as load_split
from ..data.split import Split
from .definitions import TASKS, Labelled, Pack
from .derived_labels import LABELS, label

FEWEST_VALID = 0.02  # share of a part's pixels that a dense task needs


Both = tuple[Labelled, Labelled]  # train, test


def load(
    dataset: str,
    names: Sequence[str],
    *,
    root: str,
    size: int | None,
    limit: int | None,
    rare: str = "error",
    target: str | None = None,
) -> Both:
    """(train, test) of a data set with labels for these tasks; the test part is limited to half as many images.

    target: the image-level target that poisons are made for, kept in `split`; None: the data set's own. Maps are in
    units of their standard deviation over the training part. rare: what happens to test views
    of a class that training never shows, as one that a single building has: "error" or "drop". Raises InputError for
    unknown tasks, tasks that the data set has no labels for, a dense task without valid pixels, and rare classes.
    """
    for name in names:
        choose(name, TASKS, "task")
    limits = {"train": limit, "test": None if limit is None else max(1, limit // 2)}
    parts = [read(dataset, part, names, root=root, size=size, limit=limits[part], target=target) for part in limits]
    for name in names:
        if not TASKS[name].dense:
            # There are two parts, which a list cannot tell mypy.
            parts[1] = _learnable(*parts, name, choose(rare, RARE, "way with rare classes"))  # type: ignore[call-arg, arg-type]
    packed = [{n: pack(part, n) for n in names} for part in parts]
    for name in names:
        _scale(name, *(labels[name] for labels in packed))
    return cast(Both, tuple(Labelled(part, labels) for part, labels in zip(parts, packed, strict=True)))


def read(
    dataset: str,
    part: str,
    names: Sequence[str],
    *,
    root: str,
    size: int | None,
    limit: int | None,
    target: str | None = None,
) -> Split:
    """A part with the raw targets of these tasks and the image-level one; labels derived at the stored size.

    Normals and shading come with depth, where it is stored, whose holes are theirs.
    """
    usual = DATASETS[choose(dataset, DATASETS, "data set")].target
    stored = _stored(dataset, root)
    new = [n for n in names if n in LABELS and n not in stored]
    needed = [need for n in new for need in LABELS[n].needs]
    needed += ["depth_euclidean"] if {"normal", "reshading"} & {*names} and "depth_euclidean" in stored else []
    wanted = dict.fromkeys([target or usual, *(n for n in names if n not in new and n != "autoencoding"), *needed])
    if unknown := [n for n in wanted if n not in stored]:
        made = {n for n, row in LABELS.items() if {*row.needs} <= {*stored}}
        able = sorted({n for n in stored if n in TASKS} | made | {"autoencoding"})
        raise InputError(f"{dataset} has no {unknown[0]}; name tasks among {', '.join(able)}")
    if not new:  # views are made small one by one, not all at once
        split = load_split(dataset, part, root=root, limit=limit, targets=tuple(wanted), size=size)
        return _with_image(split)
    split = load_split(dataset, part, root=root, limit=limit, targets=tuple(wanted))
    more = {n: label(n, split.images, split.targets) for n in new}
    split = replace(split, targets=split.targets | more)
    return _with_image(split if size is None else resized(split, size))


def _with_image(split: Split) -> Split:
    """The image itself as autoencoding's target."""
    return replace(split, targets=split.targets | {"autoencoding": pixels.to_float(split.images)})


def every(split: Split) -> Labelled:
    """All tasks that a split has targets for, and those that can be derived from it, packed; classes without gaps."""
    new = [n for n, row in LABELS.items() if n not in split.targets and {*row.needs} <= {*split.targets}]
    more = {n: label(n, split.images, split.targets) for n in new}
    more["autoencoding"] = pixels.to_float(split.images)
    whole = replace(split, targets=split.targets | more)
    packed = {n: pack(whole, n) for n in whole.targets if n in TASKS}
    for name, values in packed.items():
        _scale(name, values)
        if not TASKS[name].dense:
            packed[name] = values.unique(return_inverse=True)[1]
    return Labelled(whole, packed)


def _stored(dataset: str, root: str) -> list[str]:
    """Targets that files hold."""
    return SOURCES[dataset].stored(located(root))


def pack(split: Split, name: str) -> Tensor:
    """A task's labels of a split in the form of `definitions.Task`. Raises InputError if hardly a pixel is valid."""
    task = TASKS[name]
    if not task.dense:
        return split.targets[name]
    packed = cast(Pack, task.pack)(split.targets, name)
    share = packed[:, -1].mean().item()
    if share < FEWEST_VALID:
        raise InputError(
            f"{split.name}: {share:.1%} of {name}'s pixels are valid; fetch it again, or leave the task out"
        )
    return packed


def _scale(name: str, train: Tensor, *others: Tensor) -> None:
    """Divide regressed maps, in place, by their standard deviation over the training part."""
    if TASKS[name].scaled:
        spread = train[:, :-1].std().clamp_min(1e-6)
        for labels in (train, *others):
            labels[:, :-1] /= spread


def _learnable(train: Split, test: Split, name: str, rare: str) -> Split:
    """The test part without the views of classes that training never shows, if that is wanted."""
    seen = train.targets[name].unique()
    known = torch.isin(test.targets[name], seen)
    if not known.any():
        raise InputError(f"{train.name}: training and test views share no class of {name}; fetch more buildings")
    if not known.all() and rare == "error":
        strange = test.targets[name][~known].unique()
        raise InputError(
            f"{test.name}: class {strange[0]} of {name} is in test views only ({len(strange)} such classes), so it "
            "cannot be learnt; fetch more buildings, or leave such views out with -p rare drop"
        )
    return test.take(known.nonzero()[:, 0])
