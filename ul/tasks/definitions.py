"""The tasks of the cross-task study: what each predicts, how it is trained and scored, and what knowing nothing gives.

Losses and metrics as in Taskonomy's own training, AdaShare (NeurIPS 2020) and Mod-Squad (CVPR 2023): cross-entropy,
masked L1 (of the logarithm for depth), 1 - cosine for normals. segment_unsup2d is learnt in its boundary form.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.split import Split
from .derived_labels import boundaries

IDS = 17  # segment_semantic: file values 1..17 are classes, 0 is uncertain

Loss = Callable[[Tensor, Tensor], Tensor]
Pack = Callable[[Mapping[str, Tensor], str], Tensor]  # (targets, name) -> dense labels


@dataclass(frozen=True)
class Task:
    """One row. Dense labels are float32[n,k+1,h,w], the last channel 1 where valid; classes are int64[n].

    outputs: channels that a head gives (None: the number of classes). loss(outputs, labels): a mean over images of
    each image's mean over valid pixels. score(outputs, labels): the metric over all images. constant(labels): the
    outputs [1,outputs(,1,1)] of the best predictor that sees no image, by the loss; guess(labels): by the metric, where
    that is another one (a normal's is the mean direction for both).
    """

    outputs: int | None
    loss: Loss
    score: Callable[[Tensor, Tensor], float]
    constant: Callable[[Tensor], Tensor]
    pack: Pack | None = None  # None: a class
    guess: Callable[[Tensor], Tensor] | None = None
    scaled: bool = False  # labels are divided by their standard deviation

    @property
    def dense(self) -> bool:
        return self.pack is not None


# ---- Labels --------------------------------------------------------------------------------------------------------


def _packed(values: Tensor, valid: Tensor | None = None) -> Tensor:
    values = values.float()
    valid = torch.ones_like(values[:, :1]) if valid is None else valid.float()
    return torch.cat([values * valid, valid], 1)


def _map(targets: Mapping[str, Tensor], name: str) -> Tensor:
    return _packed(targets[name])


def _shading(targets: Mapping[str, Tensor], name: str) -> Tensor:
    """Where depth is known; all of it if the data set has no depth."""
    return _packed(targets[name], targets.get("mask_valid"))


def _depth(targets: Mapping[str, Tensor], name: str) -> Tensor:
    """Logarithm of metres, as AdaShare and Taskonomy train it."""
    return _packed(targets[name].clamp_min(0.05).log(), targets["mask_valid"])


def _vectors(targets: Mapping[str, Tensor], name: str) -> Tensor:
    seen = targets[name].norm(dim=1, keepdim=True) > 0.5
    return _packed(targets[name], seen & targets["mask_valid"] if "mask_valid" in targets else seen)


def _classes(targets: Mapping[str, Tensor], name: str) -> Tensor:
    ids = targets[name].float()
    return _packed(ids - 1, ids > 0)


def _boundary(targets: Mapping[str, Tensor], name: str) -> Tensor:
    return _packed(torch.stack([torch.from_numpy(boundaries(ids[0].numpy()))[None] for ids in targets[name]]))


# ---- Losses --------------------------------------------------------------------------------------------------------


def _over_valid(error: Tensor, labels: Tensor) -> Tensor:
    """error [n,h,w]: each image's mean over valid pixels, then the mean over images."""
    valid = labels[:, -1]
    return ((error * valid).sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)).mean()


def _absolute(outputs: Tensor, labels: Tensor) -> Tensor:
    return _over_valid((outputs - labels[:, :-1]).abs().mean(1), labels)


def _angle(outputs: Tensor, labels: Tensor) -> Tensor:
    return _over_valid(1 - F.cosine_similarity(outputs, labels[:, :-1], dim=1), labels)


def _pixel_classes(outputs: Tensor, labels: Tensor) -> Tensor:
    return _over_valid(F.cross_entropy(outputs, labels[:, 0].long(), reduction="none"), labels)


def _pixel_yes(outputs: Tensor, labels: Tensor) -> Tensor:
    error = F.binary_cross_entropy_with_logits(outputs[:, 0], labels[:, 0], reduction="none")
    return _over_valid(error, labels)


# ---- Metrics over all valid pixels of a set ------------------------------------------------------------------------


def _accuracy(outputs: Tensor, labels: Tensor) -> float:
    return (outputs.argmax(1) == labels).float().mean().item()


def _mean_absolute(outputs: Tensor, labels: Tensor) -> float:
    return _absolute(outputs, labels).item()


def _rmse_metres(outputs: Tensor, labels: Tensor) -> float:
    valid = labels[:, 1] > 0
    error = outputs[:, 0][valid].exp() - labels[:, 0][valid].exp()
    return error.square().mean().sqrt().item()


def _degrees(outputs: Tensor, labels: Tensor) -> float:
    cosine = F.cosine_similarity(outputs, labels[:, :-1], dim=1)[labels[:, -1] > 0]
    return torch.rad2deg(cosine.clamp(-1, 1).acos()).mean().item()


def _mean_iou(outputs: Tensor, labels: Tensor) -> float:
    valid = labels[:, -1] > 0
    guess, truth = outputs.argmax(1)[valid], labels[:, 0].long()[valid]
    shares = []
    for c in truth.unique():
        either = ((guess == c) | (truth == c)).sum()
        shares.append(((guess == c) & (truth == c)).sum() / either)
    return torch.stack(shares).mean().item()


def _precision(outputs: Tensor, labels: Tensor) -> float:
    from sklearn.metrics import average_precision_score

    valid = labels[:, -1] > 0
    return float(average_precision_score(labels[:, 0][valid].cpu().numpy() > 0.5, outputs[:, 0][valid].cpu().numpy()))


# ---- Knowing the labels' statistics, but no image ------------------------------------------------------------------


def _values(labels: Tensor) -> Tensor:
    """[k, pixels] of all valid pixels."""
    return labels[:, :-1].transpose(0, 1)[:, labels[:, -1] > 0]


def _most_frequent(labels: Tensor) -> Tensor:
    counts = torch.bincount(labels).float()
    return (counts / counts.sum()).clamp_min(1e-6).log()[None]


def _median(labels: Tensor) -> Tensor:
    return _values(labels).median(1).values.view(1, -1, 1, 1)


def _mean_metres(labels: Tensor) -> Tensor:
    return _values(labels).exp().mean(1).log().view(1, -1, 1, 1)


def _mean_vector(labels: Tensor) -> Tensor:
    return F.normalize(_values(labels).mean(1), dim=0).view(1, -1, 1, 1)


def _frequent_class(labels: Tensor) -> Tensor:
    counts = torch.bincount(_values(labels)[0].long(), minlength=IDS).float()
    return (counts / counts.sum()).clamp_min(1e-6).log().view(1, -1, 1, 1)


def _log_odds(labels: Tensor) -> Tensor:
    return torch.logit(_values(labels).mean(1), 1e-6).view(1, -1, 1, 1)


def _class() -> Task:
    return Task(None, F.cross_entropy, _accuracy, _most_frequent)


def _regressed(channels: int) -> Task:
    return Task(channels, _absolute, _mean_absolute, _median, _map, scaled=True)


TASKS: dict[str, Task] = {
    "label": _class(),
    "class_object": _class(),
    "class_scene": _class(),
    "segment_semantic": Task(IDS, _pixel_classes, _mean_iou, _frequent_class, _classes),
    "depth_euclidean": Task(1, _absolute, _rmse_metres, _median, _depth, _mean_metres),
    "normal": Task(3, _angle, _degrees, _mean_vector, _vectors),
    "keypoints2d": _regressed(1),
    "edge_texture": _regressed(1),
    "reshading": replace(_regressed(1), pack=_shading),
    "autoencoding": _regressed(3),
    "segment_unsup2d": Task(1, _pixel_yes, _precision, _log_odds, _boundary),
}


@dataclass(frozen=True)
class Labelled:
    """Clean images with packed labels by task; `split` keeps the poison's target as well."""

    split: Split
    labels: dict[str, Tensor]

    @property
    def images(self) -> Tensor:
        """uint8[n,c,h,w]."""
        return self.split.images

    def with_images(self, images: Split) -> "Labelled":
        """Other images under the same labels: a poison."""
        return replace(self, split=replace(self.split, images=images.images))

    def __len__(self) -> int:
        return len(self.split)
