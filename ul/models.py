"""Networks, built by name as sequences of named blocks; images come as floats in [0, 1]."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import InputError, choose


class Standardise(nn.Module):
    """(x - 0.5) / 0.25: fixed, so that no statistics of a data set enter the model."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) * 4


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left; projection where the shape changes)."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def _stem(channels: int, width: int) -> list[tuple[str, nn.Module]]:
    conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
    return [("standardise", Standardise()), ("stem", nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()))]


def _resnet(channels: int, classes: int, size: int, *, width: int, blocks: tuple[int, ...]) -> nn.Module:
    layers, inner = _stem(channels, width), width
    for stage, count in enumerate(blocks):
        for i in range(count):
            outer = width * 2**stage
            layers.append((f"block{stage + 1}{'abcdef'[i]}", BasicBlock(inner, outer, 2 if stage and not i else 1)))
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


def _resnet8(channels: int, classes: int, size: int, *, width: int = 8) -> nn.Module:
    return _resnet(channels, classes, size, width=width, blocks=(1, 1, 1))


def _resnet18(channels: int, classes: int, size: int) -> nn.Module:
    """ResNet-18 with a 3x3 stem and no first pooling: the usual variant for 32x32 images."""
    return _resnet(channels, classes, size, width=64, blocks=(2, 2, 2, 2))


NAMES: dict[str, Callable[..., nn.Module]] = {
    "linear": _linear,
    "lenet5": _lenet5,
    "resnet8": _resnet8,
    "resnet18": _resnet18,
}


def make(name: str, *, channels: int, classes: int, size: int, seed: int, **options) -> nn.Module:
    """A network for float images [n, channels, size, size] in [0, 1], initialised from `seed` alone.

    Raises InputError for an unknown name or images below 16 pixels.
    """
    if size < 16:
        raise InputError(f"images of {size} pixels are too small for the networks; use 16 or more")
    build = NAMES[choose(name, NAMES, "architecture")]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not the GPUs', which are not restored
        return build(channels, classes, size, **options)


def probed_layers(model: nn.Module) -> list[str]:
    """Names in named_modules() of every Conv2d and Linear: the layers that SAL probes."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def device() -> torch.device:
    """CUDA where there is a GPU, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def one_thread(device: torch.device | str) -> Iterator[None]:
    """On the CPU one thread inside: the same sums in the same order, however many runs share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if torch.device(device).type == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
