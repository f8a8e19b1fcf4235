"""What is looked at once a victim is trained: other scores of unlearnability, and SAL of the same function rescaled."""

import copy
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from ..base.errors import InputError, Record
from ..nets.device import device
from ..sharpness import cut, sal, scores
from ..training import defenses, metrics
from . import victims
from .description import Sets
from .victims import Run, sal_subset

NOISE, REACH, FEW = 0.05, 0.05, 50  # shares of the weights' rms and length; images


def scores_of(run: Run, model: torch.nn.Module, given: Sets, *, draws: int = 100) -> dict[str, float]:
    """What else could stand for unlearnability, of one trained network; accuracies on clean test images, 0..1.

    gradient_norm and hessian_trace of the loss on the images that SAL uses; certified: the median test accuracy under
    weight noise over `draws`, and certified_bound for weights within one standard deviation of it (L2); recovered:
    test accuracy after FEW clean images have moved the weights by at most REACH of their length; separability:
    held-out accuracy of a linear model on the perturbations.
    """
    rng, target = torch.Generator().manual_seed(run.seed), run.images.target
    where = next(model.parameters()).device
    held = scores.on(given.test, target, where)
    looked = scores.on(sal_subset(given.own, run.sal.images), target, where)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    sigma = NOISE * weights.square().mean().sqrt().item()
    certificate = scores.certified(
        model, lambda m: metrics.accuracy(m, *held), sigma=sigma, radius=sigma, draws=draws, rng=rng
    )
    found = {"gradient_norm": scores.gradient_norm(model, *looked)}
    found["hessian_trace"] = float(np.mean(scores.hessian_trace(model, *looked, draws=10, rng=rng)))
    found |= {"certified": certificate.score, "certified_bound": certificate.bound}
    with scores.restored(model):
        few = scores.on(sal_subset(given.clean, FEW, draw=2), target, where)
        scores.recover(model, *few, radius=REACH * weights.norm().item())
        found["recovered"] = metrics.accuracy(model, *held)
    delta = (given.own.images.float() - given.clean.images.float()) / 255
    found["separability"] = metrics.linear_separability(delta, given.clean.targets[target], seed=0)
    return found


def rescaled(model: torch.nn.Module, images: torch.Tensor, factor: float) -> None:
    """Every convolution before a batch norm times `factor`, and the norm's statistics with it: the same function.

    In place, for eval mode; images: one or more that the model takes. Raises InputError if there is no such pair.
    """
    traced = cut.traced(model.eval(), images)
    pairs = cut.normalised(traced) if traced is not None else []
    if not pairs:
        raise InputError("no convolution before a batch norm was found; rescaling needs one")
    with torch.no_grad():
        for conv, norm in pairs:
            conv.weight.mul_(factor)
            cast(torch.Tensor, norm.running_mean).mul_(factor)
            # Every norm of our networks tracks statistics.
            norm.running_var.copy_((norm.running_var + norm.eps) * factor**2 - norm.eps)  # type: ignore[union-attr, operator, arg-type]


def rescaled_sal(run: Run, given: Sets, factors: Sequence[float]) -> Record:
    """SAL of a trained network whose weights are rescaled, over its SAL before: rows factor, layer, ratio.

    Trains the run's victim; epsilon is relative, so that the ratio is 1 up to the search's tolerance.
    """
    model = victims.fit(run, given, *defenses.make(run.defense).applied(given.own))
    images, targets = scores.on(sal_subset(given.own, run.sal.images), run.images.target, device())
    before = sal.per_layer(model, images, targets, least=0.0)["sal"]
    rows = []
    for factor in factors:
        other = copy.deepcopy(model)
        rescaled(other, images[:1], factor)
        frame = sal.per_layer(other, images, targets, least=0.0)
        ratios = zip(frame["layer"], frame["sal"] / before, strict=True)
        rows += [{"factor": factor, "layer": layer, "ratio": ratio} for layer, ratio in ratios]
    return {"rows": rows}
