"""Encoders that several tasks share: images in [0, 1] to feature maps, with light heads on top."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import InputError, choose
from . import classifiers, vit
from .classifiers import PATCH


class Encoder(nn.Module):
    """body: images to a map [n, width, side / stride, side / stride], the same for every task."""

    routed = False

    def __init__(self, body: nn.Module, width: int, stride: int) -> None:
        super().__init__()
        self.body, self.width, self.stride = body, width, stride

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _residual(name: str, stride: int, *, coarse: bool = False, **options: Any) -> Callable[..., Encoder]:
    """A classifier of `classifiers` without its pooling and last layer; coarse: its stem sees every second pixel."""

    def build(channels: int, size: int, tasks: Sequence[str], seed: int) -> Encoder:
        network: Any = classifiers.make(name, channels=channels, classes=2, size=size, seed=seed, **options)
        if coarse:
            network.stem[0].stride = (2, 2)
        width = network.fc.in_features
        kept = [(n, m) for n, m in network.named_children() if n not in ("pool", "flatten", "fc")]
        return Encoder(nn.Sequential(OrderedDict(kept)), width, stride)

    return build


def _transformer(
    channels: int, size: int, tasks: Sequence[str], seed: int, *, width: int = 96, depth: int = 4, heads: int = 3
) -> Encoder:
    layers = classifiers.transformer(channels, size, width=width, depth=depth, heads=heads)
    return Encoder(nn.Sequential(OrderedDict([*layers, ("map", vit.AsMap(classifiers.patches(size)))])), width, PATCH)


# ---- Mixture of experts --------------------------------------------------------------------------------------------


class Experts(nn.Module):
    """Perceptrons of which each task's gate picks `chosen` for every token (Mod-Squad: Chen et al., CVPR 2023).

    Mod-Squad's attention experts and its mutual-information loss are left out: only the perceptrons are mixed.
    """

    def __init__(self, width: int, hidden: int, experts: int, chosen: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.chosen = chosen
        self.experts = nn.ModuleList(vit.Perceptron(width, hidden) for _ in range(experts))
        self.gates = nn.ModuleDict({task: nn.Linear(width, experts) for task in tasks})

    def forward(self, x: Tensor, task: str) -> Tensor:
        values, picked = self.gates[task](x).topk(self.chosen, dim=-1)
        shares = torch.zeros(*x.shape[:-1], len(self.experts), device=x.device, dtype=x.dtype)
        shares = shares.scatter(-1, picked, values.softmax(-1).to(x.dtype))
        return sum(shares[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class RoutedBlock(nn.Module):
    """A transformer block whose perceptron is a mixture that depends on the task."""

    def __init__(self, width: int, heads: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.experts = vit.Attention(width, heads), Experts(width, 2 * width, 4, 2, tasks)

    def forward(self, x: Tensor, task: str) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.experts(self.norm2(x), task)


class ModSquad(nn.Module):
    """A transformer in the spirit of Mod-Squad: tasks share attention and choose among shared experts."""

    routed = True

    def __init__(self, channels: int, size: int, tasks: Sequence[str], *, width: int = 96, depth: int = 4) -> None:
        super().__init__()
        self.width, self.stride = width, PATCH
        self.standardise, self.patches = classifiers.Standardise(), vit.Patches(channels, size, PATCH, width)
        self.blocks = nn.ModuleList(RoutedBlock(width, 3, tasks) for _ in range(depth))
        self.norm, self.map = nn.LayerNorm(width), vit.AsMap(classifiers.patches(size))

    def forward(self, x: Tensor, task: str) -> Tensor:
        x = self.patches(self.standardise(x))
        for block in self.blocks:
            x = block(x, task)
        return self.map(self.norm(x))


def _mod_squad(channels: int, size: int, tasks: Sequence[str], seed: int) -> ModSquad:
    classifiers.patches(size)
    return ModSquad(channels, size, tasks)


AnyEncoder = Encoder | ModSquad
ENCODERS: dict[str, Callable[..., AnyEncoder]] = {
    "resnet8": _residual("resnet8", 4),
    "resnet8_coarse": _residual("resnet8", 8, coarse=True, width=16),  # twice as wide, and yet faster
    "resnet18": _residual("resnet18", 8),
    "resnet50": _residual("resnet50", 8),
    "vit": _transformer,
    "mod_squad": _mod_squad,
}

ROUTED = ("mod_squad",)  # whose features differ from task to task


def make(name: str, *, channels: int, size: int, tasks: Sequence[str], seed: int) -> AnyEncoder:
    """An encoder for float images [n, channels, size, size], initialised from `seed` alone.

    It has `width` (channels of its map), `stride` (pixels of the image to one of the map) and `routed`: whether
    forward takes the task's name as well. Raises InputError for unknown names and sizes that do not fit.
    """
    build = ENCODERS[choose(name, ENCODERS, "encoder")]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        encoder = build(channels, size, tasks, seed)
    if size % encoder.stride:
        raise InputError(f"size is {size}; {name} needs a multiple of {encoder.stride} pixels")
    return encoder


# ---- Heads ---------------------------------------------------------------------------------------------------------


def class_head(width: int, outputs: int) -> nn.Module:
    """Mean over the map, then one linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs))


def dense_head(width: int, outputs: int, stride: int, *, inner: int = 16) -> nn.Module:
    """A 3x3 and a 1x1 convolution, then every cell unfolded into stride x stride pixels."""
    return nn.Sequential(
        nn.Conv2d(width, inner, 3, 1, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, outputs * stride**2, 1),
        nn.PixelShuffle(stride),
    )
