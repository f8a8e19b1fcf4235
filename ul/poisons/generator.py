"""DeepConfuse: a generator of noise, trained so that a victim of its noise fails on clean images."""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import Optimizer

from ..base import records
from ..base.errors import InputError
from .surrogate import in_blocks, network
from .target import Target, counted


@dataclass(frozen=True)
class DC:
    """`trials` times: a new victim trained for `epochs` on the generator's noise while a candidate generator learns."""

    architecture: str
    widths: tuple[int, ...]  # of the U-Net's levels
    batch_size: int
    trials: int
    epochs: int
    victim_lr: float
    generator_lr: float


DC_RECIPES = {
    "published": DC("resnet18", (64, 128, 256, 512), 256, trials=50, epochs=20, victim_lr=0.01, generator_lr=1e-4),
    "cpu": DC("lenet5", (16, 32, 64), 64, trials=10, epochs=8, victim_lr=0.05, generator_lr=1e-3),
}


class _Double(nn.Sequential):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(
            nn.Conv2d(inner, outer, 3, padding=1),
            nn.GroupNorm(4, outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, padding=1),
            nn.GroupNorm(4, outer),
            nn.ReLU(),
        )


class UNet(nn.Module):
    """Double convolutions, average pooling, bilinear growth, tanh: float[n,c,h,w] to values in [-1, 1]."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        if any(width % 4 for width in widths):
            raise InputError(f"widths of dc are {widths}; each must be a multiple of 4")
        pairs = list(zip((channels, *widths[:-1]), widths, strict=True))
        self.down = nn.ModuleList(_Double(a, b) for a, b in pairs)
        self.up = nn.ModuleList(_Double(a + b, a) for a, b in reversed(pairs[1:]))
        self.out = nn.Conv2d(widths[0], channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            skip = skips.pop()
            grown = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, grown], 1))
        return torch.tanh(self.out(x))


def dc(target: Target, *, eps: float, settings: DC) -> Tensor:
    """DeepConfuse (Feng, Cai and Zhou, NeurIPS 2019), uint8[n,c,h,w]: the noise of a U-Net.

    Each batch: the victim's gradient on the candidate's noise gives weights one step on; the candidate is moved to
    raise those weights' loss on clean images; the victim itself steps on the noise of the generator of the last trial.
    Deviations: 50 trials at most (published: up to 1,000, five to seven GPU-days), the last generator instead of the
    best by clean test accuracy, group instead of batch norm (train and use then agree), ResNet-18 instead of VGG11 as
    victim. `cpu`: LeNet-5, a U-Net of widths 16, 32, 64, ten trials of eight epochs (after two epochs victims are too
    young to be confused).
    """
    generator, rng = _generator(target, settings), target.rng()
    candidate = copy.deepcopy(generator)
    optimizer = torch.optim.Adam(candidate.parameters(), lr=settings.generator_lr)
    for trial in records.progress(range(settings.trials), "dc", settings.trials):
        victim = network(settings.architecture, replace(target, seed=target.seed + trial))
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(target), generator=rng).split(settings.batch_size):
                x, y = target.part(rows)
                _confuse(candidate, optimizer, victim, x, y, eps, settings.victim_lr)
                with torch.no_grad():
                    z = noisy(generator, x, eps)
                _victim_step(victim, z, y, settings.victim_lr)
        generator.load_state_dict(candidate.state_dict())

    def attack(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return noisy(generator, x, eps) - x

    return in_blocks(target, attack, size=settings.batch_size, label="dc noise")


def noisy(generator: nn.Module, x: Tensor, eps: float) -> Tensor:
    """x plus the generator's noise, in [0, 1]."""
    return (x + eps * generator(x)).clamp(0, 1)


def _generator(target: Target, settings: DC) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(target.seed)
        return counted(UNet(target.images.shape[1], settings.widths).to(target.device))


def _confuse(
    candidate: nn.Module, optimizer: Optimizer, victim: nn.Module, x: Tensor, y: Tensor, eps: float, lr: float
) -> None:
    weights = dict(victim.named_parameters())
    loss = F.cross_entropy(victim(noisy(candidate, x, eps)), y)
    if not torch.isfinite(loss):
        raise InputError(f"dc: the victim's loss is {loss.item()}; lower victim_lr")
    slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    moved = {name: w - lr * g for (name, w), g in zip(weights.items(), slopes, strict=True)}
    gain = -F.cross_entropy(functional_call(victim, moved, x), y)
    optimizer.zero_grad()
    for p, g in zip(candidate.parameters(), torch.autograd.grad(gain, list(candidate.parameters())), strict=True):
        p.grad = g
    optimizer.step()


def _victim_step(victim: nn.Module, x: Tensor, y: Tensor, lr: float) -> None:
    weights: list[Tensor] = list(victim.parameters())
    slopes = torch.autograd.grad(F.cross_entropy(victim(x), y), weights)
    with torch.no_grad():
        for w, g in zip(weights, slopes, strict=True):
            w -= lr * g
