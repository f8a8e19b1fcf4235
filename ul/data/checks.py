"""What a user's file of poisoned images is: in order, how large its perturbation is, and whose budget it fits."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import InputError, choose
from ..base.names import METHODS
from . import formats, pixels, poison_files
from .split import Split

ROUNDING = 0.5 / 255  # what 8-bit rounding may add to a pixel
SIDE = 8  # images are compared as means over 8x8 cells
SAMPLE = 1000  # poisoned images that are looked up
ORDERED = 0.5  # least share of them that is nearest to its own clean image
UNITS = {"linf": "L-infinity", "l2": "L2", "l0": "L0", "linf_but_one": "L-infinity without one pixel"}


def own_share(
    clean: Tensor, poisoned: Tensor, *, seed: int = 0, look: Callable[[Tensor], Tensor] | None = None
) -> float:
    """Share (0..1) of poisoned images whose nearest clean image, by centred coarse pixels, is their own.

    Images uint8[n,c,h,w]; up to 1,000 poisoned ones are compared with all clean ones. Equal clean images count as own.
    look: what to compare instead of coarse pixels, uint8[n,c,h,w] -> float[n,d].
    """
    look = look or _coarse
    chosen = torch.randperm(len(poisoned), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
    known = torch.cat([look(clean[rows]) for rows in pixels.blocks_of(clean)])
    distance = torch.cdist(look(poisoned[chosen]), known)
    own = distance[torch.arange(len(chosen)), chosen]
    return (own <= distance.amin(1) + 1e-3).float().mean().item()  # beyond what distances by products round


def _coarse(images: Tensor) -> Tensor:
    """Centred and scaled to length 1, so that brightness and contrast do not count."""
    means = F.adaptive_avg_pool2d(pixels.to_float(images), SIDE).flatten(1)
    return F.normalize(means - means.mean(1, keepdim=True), dim=1)


def _steps(images: Tensor) -> Tensor:
    """Steps between neighbouring pixels, scaled to length 1: strong patterns of flat patches leave most of them."""
    values = pixels.to_float(images)
    across, down = (values.diff(dim=d).flatten(1) for d in (-1, -2))
    return F.normalize(torch.cat([across, down], 1))


def in_order(clean: Split, poisoned: Split, path: str) -> float:
    """`own_share`, of coarse pixels or else of steps between pixels.

    Raises InputError if both are below one half: the images are not in the clean set's order.
    """
    share = own_share(clean.images, poisoned.images)
    if share < ORDERED:
        share = max(share, own_share(clean.images, poisoned.images, look=_steps))
    if share < ORDERED:
        raise InputError(
            f"{path}: only {share:.0%} of the images are nearest to their own clean image of {clean.name}; "
            "keep the order of the clean images"
        )
    return share


def fitting(clean: Split, sizes: dict[str, float], eps: float) -> dict[str, dict[str, bool]]:
    """For each norm that a method's budget uses: which methods' budgets at `eps` these sizes keep to."""
    found: dict[str, dict[str, bool]] = {}
    for name, method in METHODS.items():
        if method.norm is not None:
            found.setdefault(method.norm, {})[name] = sizes[method.norm] <= cast(float, budget(name, eps, clean))
    return found


def report(clean: Split, poisoned: Split, path: str, eps: float) -> list[str]:
    """Lines for a reader: labels, order, sizes in each norm, budgets at `eps` that they fit. Raises as `in_order`."""
    share = in_order(clean, poisoned, path)
    sizes = pixels.measure(clean.images, poisoned.images)
    lines = [
        f"{path}: {len(poisoned)} images of {clean.name}, {tuple(clean.images.shape[1:])}",
        _labels(path, clean),
        f"order: {share:.0%} of the images are nearest to their own clean image",
        f"L-infinity {255 * sizes['linf']:.1f}/255, without each image's largest pixel "
        f"{255 * sizes['linf_but_one']:.1f}/255",
        f"L2 {sizes['l2']:.3f} at most, {sizes['l2_mean']:.3f} on average (range 0 to 1)",
        f"L0 {sizes['l0']} of {clean.images[0, 0].numel()} pixels at most",
    ]
    return lines + [_verdict(norm, fits, eps) for norm, fits in fitting(clean, sizes, eps).items()]


def _labels(path: str, clean: Split) -> str:
    compared = poison_files.shared_labels(formats.read(Path(path)), clean)
    return f"labels: {', '.join(compared)} as in the clean set" if compared else "labels: none in the file"


def _verdict(norm: str, fits: dict[str, bool], eps: float) -> str:
    inside, outside = ([name for name, fit in fits.items() if fit is wanted] for wanted in (True, False))
    told = [f"fits {', '.join(inside)}"] * bool(inside) + [f"exceeds {', '.join(outside)}"] * bool(outside)
    return f"budget in {UNITS[norm]} at {255 * eps:.4g}/255: {'; '.join(told)}"


# ---- Budgets ---------------------------------------------------------------------------------------------------------


def check(clean: Split, poisoned: Split, name: str, eps: float) -> None:
    """Raises InputError unless `poisoned` keeps size, type and targets, and stays within the method's budget."""
    method = METHODS[choose(name, METHODS, "method")]
    if poisoned.images.shape != clean.images.shape or poisoned.images.dtype != torch.uint8:
        raise InputError(f"{name}: images are {poisoned.images.dtype} {tuple(poisoned.images.shape)}, not as clean")
    for key, values in clean.targets.items():
        if key not in poisoned.targets or not torch.equal(values, poisoned.targets[key]):
            raise InputError(f"{name}: target {key} differs from the clean set's; keep order and labels")
    if method.norm is None:
        return
    limit, found = budget(name, eps, clean), pixels.measure(clean.images, poisoned.images)[method.norm]
    if found > cast(float, limit):
        raise InputError(f"{name}: {method.norm} size is {found:.4g}, the budget is {limit:.4g} (eps {eps:.4g})")


def budget(name: str, eps: float, split: Split) -> float | None:
    """Largest size in the method's norm that a poison of `split` may have, 8-bit rounding allowed for; None: any."""
    method, dimension = METHODS[choose(name, METHODS, "method")], split.images[0].numel()
    if method.norm is None:
        return None
    slack = {"l2": ROUNDING * dimension**0.5, "l0": 0}.get(method.norm, ROUNDING)
    return method.budget(eps, dimension) + slack + 1e-6
