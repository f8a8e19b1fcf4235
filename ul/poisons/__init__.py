"""Poisons as a table: each takes a clean `Split` and gives one with the same order and targets and other images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor

from .. import models, perturb
from ..config import InputError, at_least, choose
from ..data import SOURCES, Split, default_target
from . import budgets
from .base import Passes, Target, counting

RECIPES = ("published", "cpu")
ROUNDING = 0.5 / 255  # what 8-bit rounding may add to a pixel


@dataclass(frozen=True)
class Method:
    """A poison: where it is made, and the budget that `check` holds it to.

    module: below ul.poisons, imported when the poison is made, so that an edit of one method leaves results of the
    others valid. Its function of the method's name takes (images, labels, eps=, seed=), or with `recipes` (the name of
    the module's table) takes (Target, eps=, settings=). budget: (eps, values an image) -> largest size in `norm`.
    """

    title: str
    module: str
    recipes: str | None = None
    norm: str | None = "linf"  # a key of perturb.measure; None: the paper sets no budget
    budget: Callable[[float, int], float] = budgets.linf
    random: bool = True  # another seed gives another poison
    classes: int = 2  # it needs at least
    tasks: bool = False  # made against all targets of the split, not one

    def load(self, name: str) -> Callable[..., Tensor]:
        """The function that makes the poison."""
        return getattr(import_module(f".{self.module}", __package__), name)

    def wanted(self, target: str) -> tuple[str, ...] | None:
        """Which targets of a data set to load for it; None: all there are."""
        return None if self.tasks else (target,)

    def settings(self) -> Mapping[str, Any]:
        """Its recipes by name; the one definition there is, under both names, is None."""
        if self.recipes is None:
            return dict.fromkeys(RECIPES)
        return getattr(import_module(f".{self.module}", __package__), self.recipes)


NAMES: dict[str, Method] = {
    "noise": Method("Uniform noise", "handcrafted", classes=1),
    "noise_classwise": Method("Uniform noise, one a class", "handcrafted", classes=1),
    "em": Method("EM (Huang et al. 2021)", "minimise", "EM_RECIPES"),
    "em_classwise": Method("EM, class-wise (Huang et al. 2021)", "minimise", "EM_CLASSWISE_RECIPES"),
    "rem": Method("REM (Fu et al. 2022)", "minimise", "REM_RECIPES"),
    "tap": Method("TAP (Fowl et al. 2021)", "targeted", "TAP_RECIPES"),
    "hypo": Method("HYPO (Tao et al. 2022)", "targeted", "HYPO_RECIPES"),
    "lsp": Method("LSP (Yu et al. 2022)", "handcrafted", norm="l2", budget=budgets.lsp),
    "ops": Method("OPS (Wu et al. 2023)", "handcrafted", norm="l0", budget=budgets.one_pixel, random=False, classes=1),
    "em_ops": Method("EM and OPS (Wu et al. 2023)", "minimise", "EM_RECIPES", norm="linf_but_one"),
    "ar": Method("AR (Sandoval-Segura et al. 2022)", "autoregressive", norm="l2", budget=budgets.ar, classes=1),
    "dc": Method("DeepConfuse (Feng et al. 2019)", "generator", "DC_RECIPES"),
    "ntga": Method("NTGA (Yuan and Wu 2021)", "kernel", "NTGA_RECIPES"),
    "cuda": Method("CUDA (Sadasivan et al. 2023)", "handcrafted", norm=None, classes=1),
    "tue": Method("TUE (Ren et al. 2023)", "contrastive", "TUE_RECIPES"),
    "sep": Method("SEP (Chen et al. 2023)", "targeted", "SEP_RECIPES"),
    "mtue": Method("MTUE: EM against every task", "multitask", "MTUE_RECIPES", tasks=True),
}


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
    method = NAMES[choose(name, NAMES, "method")]
    choose(recipe, RECIPES, "recipe")
    eps = strength(eps)
    at_least(seed, 0, "seed")
    labels = _labels(split, target)
    if int(labels.max()) + 1 < method.classes:
        raise InputError(f"{name} needs images of at least {method.classes} classes; {split.name} has one")
    settings = _settings(name, recipe, options)
    with models.one_thread(device):
        if settings is None:
            images = method.load(name)(split.images, labels, eps=eps, seed=seed)
        else:
            aim = Target(split.images, labels, seed, torch.device(device), _flips(split), split)
            images = method.load(name)(aim, eps=eps, settings=settings)
    poisoned = replace(split, images=images)
    check(split, poisoned, name, eps)
    return poisoned


def _labels(split: Split, target: str | None) -> Tensor:
    """int64[n], classes counted from 0; those without an image are left out."""
    classes = [key for key, values in split.targets.items() if values.ndim == 1]
    wanted = split.targets[choose(target or default_target(split), classes, f"image-level target of {split.name}")]
    return wanted.unique(return_inverse=True)[1]


def strength(eps: float | str) -> float:
    """`eps` as a number in (0, 1]; text may be a fraction: "8/255". Raises InputError that says how to give it."""
    if isinstance(eps, str):
        eps = _fraction(eps)
    if 1 < eps <= 255:
        raise InputError(f"eps is {eps}; it is a share of the range [0, 1]: for {eps:g} levels give {eps:g}/255")
    if not 0 < eps <= 1:
        raise InputError(f"eps is {eps}; it must be above 0 and at most 1 (8/255 is the published budget)")
    return eps


def _fraction(text: str) -> float:
    top, _, bottom = text.partition("/")
    try:
        return float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"eps is {text!r}; give a number or a fraction such as 8/255") from None


def _settings(name: str, recipe: str, options: dict[str, Any]) -> Any:
    base = NAMES[name].settings()[recipe]
    for option in options:
        choose(option, vars(base) if base else [], f"setting of {name}")
    for option, value in options.items():
        if isinstance(value, int) and not isinstance(value, bool):
            at_least(value, 1, f"{option} of {name}")
    return replace(base, **options) if options else base


def _flips(split: Split) -> bool:
    source = SOURCES.get(split.name.partition("/")[0])
    return source.flip if source else True


def check(clean: Split, poisoned: Split, name: str, eps: float) -> None:
    """Raises InputError unless `poisoned` keeps size, type and targets, and stays within the method's budget."""
    method = NAMES[choose(name, NAMES, "method")]
    if poisoned.images.shape != clean.images.shape or poisoned.images.dtype != torch.uint8:
        raise InputError(f"{name}: images are {poisoned.images.dtype} {tuple(poisoned.images.shape)}, not as clean")
    for key, values in clean.targets.items():
        if key not in poisoned.targets or not torch.equal(values, poisoned.targets[key]):
            raise InputError(f"{name}: target {key} differs from the clean set's; keep order and labels")
    if method.norm is None:
        return
    limit, found = budget(name, eps, clean), perturb.measure(clean.images, poisoned.images)[method.norm]
    if found > cast(float, limit):
        raise InputError(f"{name}: {method.norm} size is {found:.4g}, the budget is {limit:.4g} (eps {eps:.4g})")


def budget(name: str, eps: float, split: Split) -> float | None:
    """Largest size in the method's norm that a poison of `split` may have, 8-bit rounding allowed for; None: any."""
    method, dimension = NAMES[choose(name, NAMES, "method")], split.images[0].numel()
    if method.norm is None:
        return None
    slack = {"l2": ROUNDING * dimension**0.5, "l0": 0}.get(method.norm, ROUNDING)
    return method.budget(eps, dimension) + slack + 1e-6


__all__ = ["NAMES", "RECIPES", "Method", "Passes", "budget", "check", "counting", "make", "strength"]
