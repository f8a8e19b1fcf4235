"""What every poison maker is given, and the count of passes through networks; imports no maker."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data import pixels
from ..data.split import Split

_PASSES: ContextVar["Passes | None"] = ContextVar("passes", default=None)


@dataclass
class Passes:
    """Forward passes with a gradient, in images; each is followed by one backward pass."""

    images: int = 0


@contextmanager
def counting() -> Iterator[Passes]:
    """Counts the passes of every surrogate network inside."""
    passes = Passes()
    token = _PASSES.set(passes)
    try:
        yield passes
    finally:
        _PASSES.reset(token)


def counted(model: nn.Module) -> nn.Module:
    """The model, its passes with a gradient counted inside `counting`."""
    model.register_forward_hook(_count)
    return model


def _count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    passes = _PASSES.get()
    if passes is not None and output.requires_grad:
        passes.images += len(output)


@dataclass(frozen=True)
class Target:
    """What a poison is made for. images: uint8[n,c,h,w]; labels: int64[n] in 0..classes-1, none of them empty."""

    images: Tensor
    labels: Tensor
    seed: int
    device: torch.device
    flip: bool  # mirrored images keep their label
    split: Split | None = None  # with every target, for poisons against several tasks

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.images)

    def part(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """(float images in [0, 1], labels) at these rows, on the device."""
        return pixels.to_float(self.images[rows].to(self.device)), self.labels[rows].to(self.device)

    def rng(self, stream: int = 0) -> torch.Generator:
        """Random numbers on the CPU; each stream is another sequence of the same seed."""
        return torch.Generator().manual_seed(1000 * self.seed + stream)
