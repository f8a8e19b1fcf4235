"""How the losses of several tasks become one training step."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import InputError, choose


class Equal(nn.Module):
    """The mean of the losses."""

    def backward(self, losses: Mapping[str, Tensor], shared: list[nn.Parameter], features: Tensor | None) -> None:
        torch.stack(list(losses.values())).mean().backward()


class Uncertainty(nn.Module):
    """Each loss times exp(-s) plus s, s (log of variance) learnt for each task (Kendall et al., CVPR 2018, eq. 10)."""

    def __init__(self, tasks: Iterable[str]) -> None:
        super().__init__()
        self.log_variances = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in tasks})

    def backward(self, losses: Mapping[str, Tensor], shared: list[nn.Parameter], features: Tensor | None) -> None:
        parts = [(-self.log_variances[t]).exp() * loss + self.log_variances[t] for t, loss in losses.items()]
        torch.stack(parts).mean().backward()


class Aggregated(nn.Module):
    """The tasks' gradients on the shared encoder, aggregated by a method of torchjd (an optional extra).

    Some of its methods shuffle the tasks by torch's global generator, which goes its own way from `seed` for them.
    """

    def __init__(self, name: str, seed: int) -> None:
        super().__init__()
        self.rng = torch.Generator().manual_seed(seed)
        try:
            from torchjd import aggregation
        except ImportError:
            raise InputError(f"weighting {name} needs torchjd; install it with pip install 'ul[mtl]'") from None
        self.aggregator = getattr(aggregation, AGGREGATORS[name])()

    def backward(self, losses: Mapping[str, Tensor], shared: list[nn.Parameter], features: Tensor | None) -> None:
        from torchjd.autojac import jac_to_grad, mtl_backward

        if features is None:
            raise InputError(
                "an encoder that routes by task has no shared features; use weighting equal or uncertainty"
            )
        mtl_backward(list(losses.values()), features=features)
        with torch.random.fork_rng(devices=[]):
            torch.random.set_rng_state(self.rng.get_state())
            jac_to_grad(shared, self.aggregator)
            self.rng.set_state(torch.random.get_rng_state())


AGGREGATORS = {"pcgrad": "PCGrad", "mgda": "MGDA", "imtlg": "IMTLG", "aligned": "AlignedMTL", "gradvac": "GradVac"}
Weighting = Equal | Uncertainty | Aggregated
WEIGHTINGS: dict[str, Callable[..., Any]] = {
    "equal": lambda tasks, seed: Equal(),
    "balanced": lambda tasks, seed: Equal(),  # of losses that the training loop has divided by a constant predictor's
    "uncertainty": lambda tasks, seed: Uncertainty(tasks),
} | {name: (lambda tasks, seed, name=name: Aggregated(name, seed)) for name in AGGREGATORS}


def make(name: str, tasks: list[str], *, seed: int = 0) -> Weighting:
    """A weighting by name; its parameters are trained with the model's. Raises InputError for unknown names."""
    return WEIGHTINGS[choose(name, WEIGHTINGS, "weighting")](tasks, seed)
