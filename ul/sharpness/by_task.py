"""Why other tasks stay learnable: SAL of the shared encoder by task, and how the tasks' gradients conflict."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tasks.definitions import TASKS
from ..training.multitask import MultiTask
from . import sal

JOINT = "joint"  # the mean of all tasks' losses

Labels = dict[str, Tensor]


def encoder_layers(model: MultiTask) -> list[str]:
    """Names, below `encoder`, of the layers that every task uses; a routed encoder's gates and experts are left out."""
    own = ("gates", "experts")
    return [
        f"encoder.{name}" for name, module in model.encoder.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not any(part in name.split(".") for part in own)
    ]  # fmt: skip


def sal_by_task(
    model: MultiTask, images: Tensor, labels: Labels, units: dict[str, float], **options: Any
) -> pd.DataFrame:
    """SAL of every encoder layer for each task's loss and for the joint loss: rows task, layer and SAL's columns.

    images: float[n,c,h,w]; units: each task's loss is divided by its own, as in training, so that values compare.
    """
    layers, parts = encoder_layers(model), []
    for name, labelled in labels.items():
        loss = _in_units(name, units)
        frame = sal.per_layer(model.single(name), images, labelled, loss=loss, layers=layers, **options)
        parts.append(frame.assign(task=name))
    network = Joint(model)
    rows = torch.arange(len(images))
    frame = sal.per_layer(network, images, rows, loss=network.loss(images, labels, units), layers=layers, **options)
    return pd.concat([*parts, frame.assign(task=JOINT)], ignore_index=True)


def _in_units(name: str, units: dict[str, float]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda out, y: TASKS[name].loss(out, y) / units[name]


class Joint(nn.Module):
    """All tasks' outputs side by side in one tensor [n, values], so that one loss sees them all."""

    def __init__(self, network: MultiTask) -> None:
        super().__init__()
        self.encoder, self.heads, self.routed = network.encoder, network.heads, network.encoder.routed

    def forward(self, x: Tensor) -> Tensor:
        shared = None if self.routed else self.encoder(x)
        parts = [head(self.encoder(x, t) if self.routed else shared).flatten(1) for t, head in self.heads.items()]
        return torch.cat(parts, 1)

    def loss(self, images: Tensor, labels: Labels, units: dict[str, float]) -> Callable[[Tensor, Tensor], Tensor]:
        """The mean of the tasks' losses; its second argument is rows of `labels`."""
        with torch.no_grad(), sal.frozen(self):
            shared = None if self.routed else self.encoder(images[:1])
            shapes = {
                t: h(self.encoder(images[:1], t) if self.routed else shared).shape[1:] for t, h in self.heads.items()
            }

        def mean(out: Tensor, rows: Tensor) -> Tensor:
            parts = out.split([shape.numel() for shape in shapes.values()], 1)
            found = [
                TASKS[t].loss(part.unflatten(1, shape), labels[t][rows]) / units[t]
                for (t, shape), part in zip(shapes.items(), parts, strict=True)
            ]
            return torch.stack(found).mean()

        return mean


def conflict(model: MultiTask, images: Tensor, labels: Labels) -> pd.DataFrame:
    """Cosine of the tasks' gradients on the shared encoder, eval mode: rows task, other, cosine (-1 to 1)."""
    weights = [cast(Tensor, model.get_submodule(name).weight) for name in encoder_layers(model)]
    with sal.frozen(model):
        for w in weights:
            w.requires_grad_(True)
        found = {t: _slope(TASKS[t].loss(model.single(t)(images), y), weights) for t, y in labels.items()}
    return similarity(found)


def _slope(loss: Tensor, weights: Sequence[Tensor]) -> Tensor:
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(found, weights, strict=True)])


def similarity(vectors: dict[str, Tensor]) -> pd.DataFrame:
    """Cosine of every pair of vectors: rows task, other, cosine; a zero vector has cosine 0."""
    names = list(vectors)
    return pd.DataFrame(
        [
            {"task": a, "other": b, "cosine": F.cosine_similarity(vectors[a], vectors[b], dim=0).item()}
            for i, a in enumerate(names)
            for b in names[i + 1 :]
        ]
    )
