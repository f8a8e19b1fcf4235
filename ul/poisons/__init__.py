"""Poisons as a table: each takes a clean `Split` and gives one with the same order and targets and other images."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import perturb
from ..config import InputError, at_least, choose
from ..data import SOURCES, Split
from . import handcrafted, surrogate

ROUNDING = 0.5 / 255  # what 8-bit rounding may add to a pixel


@dataclass(frozen=True)
class Method:
    """A poison: how it is made, and the budget that `check` holds it to."""

    title: str
    make: Callable[..., Tensor]
    norm: str  # linf | l2 | l0
    budget: Callable[[float, int], float]  # (eps, values an image) -> largest size in that norm, before rounding
    uses_model: bool = False


def _linf(eps: float, dimension: int) -> float:
    return eps


def _one_pixel(eps: float, dimension: int) -> float:
    return 1


NAMES: dict[str, Method] = {
    "noise": Method("Uniform noise", handcrafted.noise, "linf", _linf),
    "lsp": Method("LSP (Yu et al. 2022)", handcrafted.lsp, "l2", handcrafted.lsp_length),
    "ops": Method("OPS (Wu et al. 2023)", handcrafted.ops, "l0", _one_pixel),
    "em": Method("EM (Huang et al. 2021)", surrogate.em, "linf", _linf, uses_model=True),
}


def make(
    name: str,
    split: Split,
    *,
    eps: float = 8 / 255,
    seed: int,
    device: torch.device | str,
    target: str | None = None,
    recipe: str = "published",
    **options,
) -> Split:
    """Poison `split` for the image-level `target` (default: its data set's) and check the result.

    eps: strength; 8/255 means the published budget (OPS ignores it). recipe: "published" or "cpu", for methods with a
    surrogate. Raises InputError for unknown names, a missing target or a budget exceeded.
    """
    method = NAMES[choose(name, NAMES, "method")]
    choose(recipe, surrogate.EM_RECIPES, "recipe")
    at_least(eps, 0, "eps")
    labels = split.targets[choose(target or default_target(split), split.targets, f"target of {split.name}")]
    if method.uses_model:
        options |= {"device": torch.device(device), "recipe": recipe}
    images = method.make(split.images, labels, eps=eps, seed=seed, **options)
    poisoned = replace(split, images=images)
    check(split, poisoned, name, eps)
    return poisoned


def default_target(split: Split) -> str:
    """The image-level target that poisons of this data set aim at."""
    source = SOURCES.get(split.name.partition("/")[0])
    return source.target if source else "label"


def check(clean: Split, poisoned: Split, name: str, eps: float) -> None:
    """Raises InputError unless `poisoned` keeps size, type and targets, and stays within the method's budget."""
    method = NAMES[choose(name, NAMES, "method")]
    if poisoned.images.shape != clean.images.shape or poisoned.images.dtype != torch.uint8:
        raise InputError(f"{name}: images are {poisoned.images.dtype} {tuple(poisoned.images.shape)}, not as clean")
    for key, values in clean.targets.items():
        if key not in poisoned.targets or not torch.equal(values, poisoned.targets[key]):
            raise InputError(f"{name}: target {key} differs from the clean set's; keep order and labels")
    limit, found = budget(name, eps, clean), perturb.measure(clean.images, poisoned.images)[method.norm]
    if found > limit:
        raise InputError(f"{name}: {method.norm} size is {found:.4g}, the budget is {limit:.4g} (eps {eps:.4g})")


def budget(name: str, eps: float, split: Split) -> float:
    """Largest size in the method's norm that a poison of `split` may have, 8-bit rounding allowed for."""
    method, dimension = NAMES[choose(name, NAMES, "method")], split.images[0].numel()
    slack = {"linf": ROUNDING, "l2": ROUNDING * dimension**0.5, "l0": 0}[method.norm]
    return method.budget(eps, dimension) + slack + 1e-6
