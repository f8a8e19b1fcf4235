"""Making poisons: a method's function called on clean images, and its result held to its budget."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..base.budgets import strength
from ..base.errors import InputError, at_least, choose
from ..base.names import METHODS, RECIPES, flips
from ..data.checks import check
from ..data.split import Split, default_target
from ..nets.device import one_thread
from .target import Target


def maker(name: str) -> Callable[..., Tensor]:
    """The function that makes a poison, from its module."""
    return getattr(import_module(f".{METHODS[name].module}", __package__), name)


def recipes(name: str) -> Mapping[str, Any]:
    """A method's recipes by name; a method without a surrogate has one definition, None under both names."""
    method = METHODS[name]
    if method.recipes is None:
        return dict.fromkeys(RECIPES)
    return getattr(import_module(f".{method.module}", __package__), method.recipes)


def make(
    name: str,
    split: Split,
    *,
    eps: float | str = 8 / 255,
    seed: int,
    device: torch.device | str,
    target: str | None = None,
    recipe: str = "published",
    **options: Any,
) -> Split:
    """Poison `split` for the image-level `target` (default: its data set's) and check the result.

    eps: strength; 8/255 means the published budget (OPS and CUDA ignore it). recipe: "published" or "cpu", for methods
    with a surrogate; options replace single settings of it. Raises InputError for unknown names, a missing target, an
    eps outside (0, 1], too few classes, a surrogate that diverges, or a budget exceeded.
    """
    method = METHODS[choose(name, METHODS, "method")]
    choose(recipe, RECIPES, "recipe")
    eps = strength(eps)
    at_least(seed, 0, "seed")
    labels = _labels(split, target)
    if int(labels.max()) + 1 < method.classes:
        raise InputError(f"{name} needs images of at least {method.classes} classes; {split.name} has one")
    settings = _settings(name, recipe, options)
    with one_thread(device):
        if settings is None:
            images = maker(name)(split.images, labels, eps=eps, seed=seed)
        else:
            aim = Target(split.images, labels, seed, torch.device(device), flips(split.name), split)
            images = maker(name)(aim, eps=eps, settings=settings)
    poisoned = replace(split, images=images)
    check(split, poisoned, name, eps)
    return poisoned


def _labels(split: Split, target: str | None) -> Tensor:
    """int64[n], classes counted from 0; those without an image are left out."""
    classes = [key for key, values in split.targets.items() if values.ndim == 1]
    wanted = split.targets[choose(target or default_target(split), classes, f"image-level target of {split.name}")]
    return wanted.unique(return_inverse=True)[1]


def _settings(name: str, recipe: str, options: dict[str, Any]) -> Any:
    base = recipes(name)[recipe]
    for option in options:
        choose(option, vars(base) if base else [], f"setting of {name}")
    for option, value in options.items():
        if isinstance(value, int) and not isinstance(value, bool):
            at_least(value, 1, f"{option} of {name}")
    return replace(base, **options) if options else base
