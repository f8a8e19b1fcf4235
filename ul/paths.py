"""Paths through weight space: what training does to a network's parameters, step by step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path as File

import numpy as np
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from . import records
from .config import InputError
from .landscape import vector


@dataclass
class Path:
    """What one training did. steps: counted from 0, the start; weights: float[t,p], one row a recorded step."""

    steps: list[int] = field(default_factory=list)
    weights: Tensor = None  # type: ignore[assignment]  # until the training ends


@contextmanager
def recorded(model: nn.Module, every: int) -> Iterator[Path]:
    """A path that is filled while optimisers step inside: the start, every `every`-th step and the last one."""
    path, kept, count = Path(), [vector(model)], 0

    def look(*_: object) -> None:
        nonlocal count
        count += 1
        if count % every == 0:
            kept.append(vector(model))
            path.steps.append(count)

    path.steps.append(0)
    handle = register_optimizer_step_post_hook(look)
    try:
        yield path
    finally:
        handle.remove()
        if count > path.steps[-1]:
            kept.append(vector(model))
            path.steps.append(count)
        path.weights = torch.stack(kept).cpu()


@contextmanager
def held(model: nn.Module, chosen: Tensor) -> Iterator[None]:
    """The chosen parameters, bool[p], stay at their values of now, whatever optimisers do inside."""
    parameters = list(model.parameters())
    parts = chosen.split([p.numel() for p in parameters])
    masks = [part.view_as(p).to(p.device) for part, p in zip(parts, parameters, strict=True)]
    values = [p.detach().clone() for p in parameters]

    def undo(*_: object) -> None:
        with torch.no_grad():
            for p, mask, value in zip(parameters, masks, values, strict=True):
                p.copy_(torch.where(mask, value, p))

    handle = register_optimizer_step_post_hook(undo)
    try:
        yield
    finally:
        handle.remove()


def owners(model: nn.Module) -> np.ndarray:
    """For each of the p single parameters the name of its layer: str[p]."""
    names = [name.rpartition(".")[0] for name, _ in model.named_parameters()]
    return np.repeat(names, [p.numel() for p in model.parameters()])


def save(paths: dict[str, Path], file: File | str) -> None:
    """Write paths to one safetensors file: steps, the start and what was added to it since, at half precision.

    The start in single precision, the moves as float16: relative error 5e-4 of the move.
    """
    tensors = {}
    for name, path in paths.items():
        tensors[f"{name}/steps"] = torch.tensor(path.steps)
        tensors[f"{name}/start"] = path.weights[0].contiguous()
        tensors[f"{name}/moves"] = (path.weights[1:] - path.weights[0]).half()
    records.write_bytes(file, tensor_bytes(tensors))


def load(file: File | str) -> dict[str, Path]:
    """Read what `save` wrote. Raises InputError if the file is missing or damaged."""
    try:
        tensors = read_tensors(File(file).read_bytes())
        return {name: _path(tensors, name) for name in dict.fromkeys(key.rpartition("/")[0] for key in tensors)}
    except Exception as error:  # damaged files raise many types
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{file}: no readable paths ({reason}); run 03_convergence again") from None


def _path(tensors: dict[str, Tensor], name: str) -> Path:
    steps, start, moves = (tensors[f"{name}/{part}"] for part in ("steps", "start", "moves"))
    if steps.dtype != torch.int64 or start.ndim != 1 or moves.shape != (len(steps) - 1, len(start)):
        raise ValueError(f"{name}: steps, start and moves do not fit")
    return Path(steps.tolist(), start + torch.cat([torch.zeros_like(start)[None], moves.float()]))
