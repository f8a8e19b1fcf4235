"""Networks, built by name as sequences of named blocks; images come as floats in [0, 1]."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError, choose
from . import vit

PATCH = 4  # pixels of a transformer's patch


class Standardise(nn.Module):
    """(x - 0.5) / 0.25: fixed, so that no statistics of a data set enter the model."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) * 4


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left; projection where the shape changes)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut = projection(inner, outer, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, four times as wide outside, and a shortcut (He et al. 2016, figure 5 right)."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        middle = outer // 4
        sides = [(inner, middle, 1, 1), (middle, middle, 3, stride), (middle, outer, 1, 1)]
        first, second, last = (convolution(*side) for side in sides)
        self.body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
        changed = stride != 1 or inner != outer
        self.shortcut = projection(inner, outer, stride) if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class SqueezeBlock(BasicBlock):
    """A basic block whose channels are weighted by what all of the map says (Hu et al. 2018, figure 3)."""

    def __init__(self, inner: int, outer: int, stride: int, *, reduction: int = 16) -> None:
        super().__init__(inner, outer, stride)
        narrow = max(outer // reduction, 4)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(outer, narrow),
            nn.ReLU(),
            nn.Linear(narrow, outer),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y * self.squeeze(y)[:, :, None, None] + self.shortcut(x))


def convolution(inner: int, outer: int, side: int, stride: int) -> nn.Sequential:
    """A convolution of side x side without bias that keeps the map's size (over the stride), and its batch norm."""
    return nn.Sequential(nn.Conv2d(inner, outer, side, stride, side // 2, bias=False), nn.BatchNorm2d(outer))


def projection(inner: int, outer: int, stride: int) -> nn.Sequential:
    """Every stride-th pixel through a 1x1 convolution without bias, and its batch norm.

    A strided 1x1 convolution computes the same, but on CPUs with few channels its gradient writes past a buffer and can
    crash (channels last, oneDNN issue 6035).
    """
    every = [("pool", nn.MaxPool2d(1, stride))] if stride > 1 else []
    conv = nn.Conv2d(inner, outer, 1, bias=False)
    return nn.Sequential(OrderedDict([*every, ("0", conv), ("1", nn.BatchNorm2d(outer))]))


def _stem(channels: int, width: int) -> list[tuple[str, nn.Module]]:
    conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
    return [("standardise", Standardise()), ("stem", nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()))]


def _resnet(
    channels: int,
    classes: int,
    size: int,
    *,
    width: int,
    blocks: tuple[int, ...],
    block: type[nn.Module] = BasicBlock,
    expansion: int = 1,
) -> nn.Module:
    """block(inner, outer, stride): `blocks` of them in each stage; a stage is width * expansion * 2^stage wide."""
    layers, inner = _stem(channels, width), width
    for stage, count in enumerate(blocks):
        for i in range(count):
            outer = width * expansion * 2**stage
            layers.append((f"block{stage + 1}{'abcdef'[i]}", block(inner, outer, 2 if stage and not i else 1)))
            inner = outer
    layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("fc", nn.Linear(inner, classes))]
    return nn.Sequential(OrderedDict(layers))


def _linear(channels: int, classes: int, size: int) -> nn.Module:
    layers = [("standardise", Standardise()), ("flatten", nn.Flatten())]
    return nn.Sequential(OrderedDict([*layers, ("fc", nn.Linear(channels * size * size, classes))]))


def _lenet5(channels: int, classes: int, size: int) -> nn.Module:
    """LeCun et al. 1998 with ReLU and max-pooling, as it is used today; 28x28 and 32x32 both end in 5x5 maps."""
    pad = 2 if size == 28 else 0
    side = ((size + 2 * pad - 4) // 2 - 4) // 2
    layers = [
        ("standardise", Standardise()),
        ("conv1", nn.Sequential(nn.Conv2d(channels, 6, 5, padding=pad), nn.ReLU(), nn.MaxPool2d(2))),
        ("conv2", nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())),
        ("fc1", nn.Sequential(nn.Linear(16 * side * side, 120), nn.ReLU())),
        ("fc2", nn.Sequential(nn.Linear(120, 84), nn.ReLU())),
        ("fc3", nn.Linear(84, classes)),
    ]
    return nn.Sequential(OrderedDict(layers))


def patches(size: int) -> int:
    """How many patches an image is wide. Raises InputError for a size that is no multiple of PATCH."""
    if size % PATCH:
        raise InputError(f"size is {size}; a transformer needs a multiple of {PATCH} pixels")
    return size // PATCH


def transformer(channels: int, size: int, *, width: int, depth: int, heads: int) -> list[tuple[str, nn.Module]]:
    """The named blocks of a vision transformer on patches of PATCH pixels, up to its last norm: [n, tokens, width]."""
    patches(size)
    blocks = [(f"block{i + 1}", vit.Block(width, heads)) for i in range(depth)]
    first = [("standardise", Standardise()), ("patches", vit.Patches(channels, size, PATCH, width))]
    return [*first, *blocks, ("norm", nn.LayerNorm(width))]


def _vit(channels: int, classes: int, size: int, *, width: int, depth: int, heads: int) -> nn.Module:
    layers = transformer(channels, size, width=width, depth=depth, heads=heads)
    return nn.Sequential(OrderedDict([*layers, ("pool", vit.Mean()), ("fc", nn.Linear(width, classes))]))


# The ResNets have a 3x3 stem and no first pooling, as is usual for 32x32 images; the transformers read the mean token.
CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "linear": _linear,
    "lenet5": _lenet5,
    "resnet8": partial(_resnet, width=8, blocks=(1, 1, 1)),
    "senet8": partial(_resnet, width=8, blocks=(1, 1, 1), block=SqueezeBlock),
    "vit_tiny": partial(_vit, width=48, depth=2, heads=3),  # for a CPU; DeiT's "tiny" is 192 wide, 12 deep
    "resnet18": partial(_resnet, width=64, blocks=(2, 2, 2, 2)),
    "resnet50": partial(_resnet, width=64, blocks=(3, 4, 6, 3), block=Bottleneck, expansion=4),
    "senet18": partial(_resnet, width=64, blocks=(2, 2, 2, 2), block=SqueezeBlock),
    "vit_small": partial(_vit, width=384, depth=12, heads=6),
}


def make(name: str, *, channels: int, classes: int, size: int, seed: int, **options: Any) -> nn.Module:
    """A network for float images [n, channels, size, size] in [0, 1], initialised from `seed` alone.

    Raises InputError for an unknown name or images below 16 pixels.
    """
    if size < 16:
        raise InputError(f"images of {size} pixels are too small for the networks; use 16 or more")
    build = CLASSIFIERS[choose(name, CLASSIFIERS, "architecture")]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not the GPUs', which are not restored
        return build(channels, classes, size, **options)


def probed_layers(model: nn.Module) -> list[str]:
    """Names in named_modules() of every Conv2d and Linear: the layers that SAL probes."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def vector(model: nn.Module) -> Tensor:
    """All parameters as one float[p], detached."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])
