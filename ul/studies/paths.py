"""One run of the convergence study: a training whose way through weight space is recorded, and moved weights."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensor_bytes
from scipy.sparse.linalg import eigsh
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..base import records
from ..base.errors import InputError, Record
from ..data import pixels
from ..data.split import Split, classes
from ..nets import classifiers
from ..nets.classifiers import vector
from ..nets.device import device
from ..sharpness import scores
from ..training import defenses, metrics, victim
from .description import Images, described
from .victims import sal_subset


@dataclass(frozen=True)
class Run:
    """One path. seed: of batch order and crops; start: of the weights."""

    images: Images
    architecture: str
    recipe: victim.Recipe
    seed: int
    probes: tuple[int, ...]  # epochs, from 1, at which curvature is looked at
    start: int
    features: int  # principal components that a linear network sees
    points: int  # recorded of the path, beside the start
    looked: int  # images that gradients and curvature are measured on
    drawn: float = 1.0  # share of the training images that each seed draws, the same ones in every condition
    watched: bool = True  # every epoch is looked at, otherwise the end alone

    def __str__(self) -> str:
        return f"path {self.images.dataset} {self.images.method} {self.architecture} seed {self.seed}"


class Features(nn.Module):
    """Principal components of images, each of unit variance: fixed, so that all weights are the classifier's."""

    mean: Tensor
    axes: Tensor

    def __init__(self, images: Tensor, count: int) -> None:
        super().__init__()
        x = pixels.to_float(images).flatten(1)
        mean = x.mean(0)
        turned, spread = components(x - mean, count)
        turned = turned * torch.sign(turned.gather(1, turned.abs().argmax(1, keepdim=True)))
        self.register_buffer("mean", mean)
        self.register_buffer("axes", (turned.T / spread * len(x) ** 0.5).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.mean) @ self.axes


def components(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(float[count,d], float[count]): the first right singular vectors of float[n,d], and their singular values.

    By Lanczos steps on the smaller of x x^T and x^T x in double precision: all that an SVD finds besides would be
    thrown away. Raises InputError unless count is below n and d.
    """
    if count >= min(x.shape):
        raise InputError(f"features is {count}, but {len(x)} images of {x.shape[1]} values have fewer; take less")
    wide = x.double().numpy()
    flat = wide if len(x) < x.shape[1] else wide.T
    values, vectors = eigsh(flat @ flat.T, count, v0=np.ones(len(flat)))
    spread, vectors = np.sqrt(values[::-1]), vectors[:, ::-1]
    axes = flat.T @ vectors / spread if len(x) < x.shape[1] else vectors
    return torch.from_numpy(axes.T.copy()).to(x), torch.from_numpy(spread.copy()).to(x)


@dataclass(frozen=True)
class PathSets:
    """own: what a run trains on; test: clean; features: of a linear network."""

    own: Split
    test: Split
    features: Features | None

    def digests(self) -> list[str]:
        found = [self.own.digest(), self.test.digest()]
        if self.features is not None:
            found.append(records.digest(self.features.mean.numpy(), self.features.axes.numpy()))
        return found


def network(run: Run, given: PathSets) -> nn.Module:
    """The network before training: the same for every condition and seed of a study."""
    outputs = classes(given.own, given.test)
    channels, size = given.own.images.shape[1], given.own.images.shape[-1]
    if given.features is None:
        return classifiers.make(run.architecture, channels=channels, classes=outputs, size=size, seed=run.start)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.start)
        fc = nn.Linear(run.features, outputs, bias=False)
    return nn.Sequential(OrderedDict(features=given.features, fc=fc))


def drawn(run: Run, split: Split) -> Split:
    """The run's share of the training images, drawn by its seed: the same positions in every condition."""
    if run.drawn == 1:
        return split
    order = torch.randperm(len(split), generator=Generator().manual_seed(run.seed))
    return split.take(order[: max(1, round(run.drawn * len(split)))].sort().values)


def follow(run: Run, given: PathSets, keep: np.ndarray | None = None) -> Record:
    """Train one network and record where its weights go. keep: bool[p], parameters that stay at their start.

    The record has one row an epoch under `epochs`, from 0, the start; `path`: the recorded steps, counted from 0, and
    the lengths of the ways between; and under `arrays` the weights there, float32[t,p].
    """
    where = device()
    # torch's types of `to` lack memory_format.
    model = network(run, given).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    look, history, own = _Look(run, given, model, where), victim.History(), drawn(run, given.own)
    steps = run.recipe.epochs * -(-len(own) // run.recipe.batch_size)
    look(0, model)
    still = nullcontext() if keep is None else held(model, torch.tensor(keep))
    with still, recorded(model, max(1, -(-steps // run.points))) as path:
        victim.fit(
            model,
            own,
            None,
            recipe=run.recipe,
            defense=defenses.make("none"),
            seed=run.seed,
            device=where,
            target=run.images.target,
            on_epoch=look,
            history=history,
        )
    for row in look.rows:
        if at := row["epoch"]:
            row |= {"train_loss": history.train_loss[at - 1], "train_accuracy": history.train_accuracy[at - 1]}
    records.note(f"trained {run}: {steps} steps{'' if keep is None else ', part held'}")
    contents = {"train": own.digest(), "test": given.test.digest(), "train_images": len(own)}
    lengths = path.weights.diff(dim=0).norm(dim=1).tolist()
    found = {"epochs": look.rows, "path": {"steps": path.steps, "lengths": lengths}}
    return described(run, contents, where) | found | {"arrays": {"weights": path.weights.numpy()}}


class _Look:
    """Called after each epoch: losses and accuracies, gradient, distance from the start and, at probes, curvature."""

    rows: list[Record]

    def __init__(self, run: Run, given: PathSets, model: nn.Module, where: torch.device) -> None:
        self.run, self.rows, self.start = run, [], vector(model)
        target = run.images.target
        self.own = scores.on(sal_subset(drawn(run, given.own), run.looked), target, where)
        self.test = scores.on(given.test, target, where)

    def __call__(self, epoch: int, model: nn.Module) -> None:
        if not self.run.watched and epoch != self.run.recipe.epochs:
            return
        out = metrics.logits(model, self.test[0])
        row: dict[str, Any] = {
            "epoch": epoch,
            "test_loss": F.cross_entropy(out, self.test[1]).item(),
            "test_accuracy": (out.argmax(1) == self.test[1]).float().mean().item(),
            "gradient_norm": scores.gradient_norm(model, *self.own),
            "distance": (vector(model) - self.start).norm().item(),
        }
        if epoch in self.run.probes:
            row["curvature"] = scores.top_curvature(model, *self.own)
        self.rows.append(row)


# ---- Moved weights -------------------------------------------------------------------------------------------------


def transplanted(run: Run, given: PathSets, weights: np.ndarray, seen: Sequence[Split]) -> Record:
    """`accuracy` of a network with these weights, float[p], as a record. seen: see `accuracy`."""
    return {"accuracy": accuracy(run, given, torch.tensor(weights), seen)}


def accuracy(run: Run, given: PathSets, weights: Tensor, seen: Sequence[Split]) -> float:
    """Clean test accuracy (0..1) of a network with these weights, float[p].

    seen: images that batch norms take their statistics from, all together: moved weights have no use for old ones.
    """
    model = network(run, given)
    vector_to_parameters(weights, model.parameters())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    if norms:
        images = torch.cat([split.images for split in seen])
        with torch.no_grad():
            for part in images.split(pixels.block_size(images)):
                model.train()(pixels.to_float(part))
    return metrics.accuracy(model, *scores.on(given.test, run.images.target, torch.device("cpu")))


# ---- Recording -----------------------------------------------------------------------------------------------------


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


def save(paths: Mapping[str, Path], file: File | str) -> None:
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
