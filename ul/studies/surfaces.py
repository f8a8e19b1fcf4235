"""Loss landscapes: planes through weight space, the loss on many points of a plane at once, and views of two runs."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import vector_to_parameters

from ..base import records
from ..base.errors import InputError, Record
from ..base.names import CLEAN
from ..data import pixels
from ..data.split import Split
from ..nets import classifiers
from ..nets.classifiers import vector
from ..nets.device import device
from . import paths
from .paths import PathSets, Run
from .victims import sal_subset

IMAGES = 250  # a block of images: larger ones leave a core's cache, smaller ones pay for calls
NUMBERS = {"cpu": 2**19, "cuda": 2**27}  # outputs of the first layer that are worked on at once


@dataclass(frozen=True)
class Plane:
    """Points origin + x axes[0] + y axes[1] of weight space.

    origin: float[p]; axes: float[2,p]; explained: the axes' shares of the variance of what they were fitted to.
    """

    origin: Tensor
    axes: Tensor
    explained: tuple[float, float] | None = None

    def coordinates(self, weights: Tensor) -> Tensor:
        """[..., 2]: where float[..., p] falls on the plane, in units of the axes (least squares)."""
        return torch.linalg.lstsq(self.axes.T.double(), (weights - self.origin).double().T).solution.T.float()


def pca_plane(trajectory: Tensor) -> Plane:
    """The plane of the two first principal components of float[t,p], through the mean; axes of length 1.

    Raises InputError for fewer than three points.
    """
    if len(trajectory) < 3:
        raise InputError(f"a plane needs three points or more, got {len(trajectory)}")
    centre = trajectory.mean(0)
    moved = (trajectory - centre).double()
    variance, turned = torch.linalg.eigh(moved @ moved.T)  # t x t: far smaller than p x p
    axes = F.normalize(turned[:, [-1, -2]].T @ moved, dim=1)
    axes = axes * torch.sign(axes.gather(1, axes.abs().argmax(1, keepdim=True)))  # signs of eigenvectors are arbitrary
    shares = (variance[[-1, -2]] / variance.sum()).tolist()
    return Plane(centre, axes.float(), (shares[0], shares[1]))


def random_plane(model: nn.Module, *, rng: Generator) -> Plane:
    """Two random directions around the model's weights, filter by filter as long as the filter they move.

    Filter normalisation of Li et al. (NeurIPS 2018, section 4): a filter is an output channel or row; biases and batch
    norms stay.
    """
    axes = [torch.cat([_like_filters(p.detach(), rng) for p in model.parameters()]) for _ in range(2)]
    return Plane(vector(model), torch.stack(axes))


def _like_filters(weights: Tensor, rng: Generator) -> Tensor:
    if weights.ndim < 2:
        return torch.zeros_like(weights).flatten()
    drawn = torch.randn(weights.shape, generator=rng).to(weights).flatten(1)
    scale = weights.flatten(1).norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)
    return (drawn * scale).flatten()


# ---- Values on a plane ---------------------------------------------------------------------------------------------

Score = Callable[[Tensor, Tensor], Tensor]  # outputs float[n,classes], targets int64[n] -> float[n]


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each image, in nats."""
    return F.cross_entropy(outputs.float(), targets, reduction="none")


def hit(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 for each image whose largest output is the target."""
    return (outputs.argmax(1) == targets).float()


def surface(
    model: nn.Module, split: Split, plane: Plane, xs: Tensor, ys: Tensor, *, target: str = "label", score: Score = loss
) -> Tensor:
    """Mean score [y,x] of `split` with the model's parameters at plane points (x, y); the model is left as it was.

    Batch norms take the mean and variance of the split itself, everything else is in eval mode. The first layer is
    linear in its weights, so it is computed three times and combined; of small networks many points run at once.
    Raises InputError if the plane is not of this model's parameters.
    """
    where = next(model.parameters()).device
    if plane.origin.numel() != sum(p.numel() for p in model.parameters()):
        raise InputError(f"the plane has {plane.origin.numel()} weights, the network has another number; use its own")
    quick, plane = _quick(model), Plane(plane.origin.to(where), plane.axes.to(where))
    whole = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    images, labels = split.images.to(where), split.targets[target].to(where)
    total = torch.zeros(len(ys), len(xs), device=where)
    with torch.no_grad():
        for rows in torch.arange(len(split), device=where).split(len(split) if whole else IMAGES):
            block = pixels.to_float(images[rows]), labels[rows]
            total += _sums(quick, plane, xs.to(where), ys.to(where), block, score)
    return (total / len(split)).cpu()


def _sums(quick: nn.Module, plane: Plane, xs: Tensor, ys: Tensor, block: tuple[Tensor, Tensor], score: Score) -> Tensor:
    """The summed score [y,x] of one block of images."""
    images, labels = block
    first = classifiers.probed_layers(quick)[0]
    around = (plane.origin, *plane.axes)
    start, across, along = (_activation(quick, first, _named(quick, w), images) for w in around)
    rest = copy.deepcopy(quick)
    rest.set_submodule(first, Given())

    def run(weights: Tensor, value: Tensor) -> Tensor:
        named = {n: w for n, w in _named(quick, weights).items() if not n.startswith(f"{first}.")}
        return functional_call(rest, named | {f"{first}.value": value}, (images[:1],))

    at_once = max(1, NUMBERS[images.device.type] // start.numel())
    out = []
    for y in ys:
        here = plane.origin + y * plane.axes[1], torch.add(start, along, alpha=y.item())
        for part in xs.split(at_once):
            outputs = _outputs(run, part, here, (plane.axes[0], across))
            out.append(score(outputs, labels.repeat(len(part))).view(len(part), -1).sum(1))
    return torch.cat(out).view(len(ys), len(xs))


def _outputs(
    run: Callable[..., Tensor], xs: Tensor, here: tuple[Tensor, Tensor], step: tuple[Tensor, Tensor]
) -> Tensor:
    """What `run` gives for weights and activations here + x step, for all x, one below the other."""
    if len(xs) == 1:  # as fast as it gets on a CPU: vmap's grouped convolutions are slower
        return run(*(torch.add(a, b, alpha=xs.item()) for a, b in zip(here, step, strict=True)))
    moved = [a + xs.view(-1, *[1] * a.ndim) * b for a, b in zip(here, step, strict=True)]
    with sdpa_kernel(SDPBackend.MATH):  # the one that vmap has a rule for
        return vmap(run)(*moved).flatten(0, 1)


def _activation(model: nn.Module, layer: str, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """What `layer` returns with these weights."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, out: kept.append(out))
    functional_call(model, weights, (x,))
    handle.remove()
    if len(kept) != 1:
        raise InputError(f"{layer} is called {len(kept)} times; surfaces need a first layer that is called once")
    return kept[0]


def _named(model: nn.Module, weights: Tensor) -> dict[str, Tensor]:
    """Parameters by name from float[..., p]."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    parts = weights.split([s.numel() for s in shapes.values()], -1)
    return {n: part.view(*weights.shape[:-1], *shapes[n]) for n, part in zip(shapes, parts, strict=True)}


class Given(nn.Module):
    """In the place of a layer: returns `value`, whatever it is called with."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.value


class Windows(nn.Module):
    """Max-pooling of 2x2 windows side by side: the values of nn.MaxPool2d(2), in a seventh of its time on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        rows = torch.maximum(x[..., 0:h:2, :w], x[..., 1:h:2, :w])
        return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def _quick(model: nn.Module) -> nn.Module:
    """A copy in eval mode that computes the same, but for batch norms, which take each batch's own statistics."""
    found = replace_all_batch_norm_modules_(copy.deepcopy(model)).eval().requires_grad_(False)
    for name, module in list(found.named_modules()):
        if isinstance(module, nn.MaxPool2d) and (module.kernel_size, module.stride, module.padding) == (2, 2, 0):
            found.set_submodule(name, Windows())
    for part in [m for m in found.modules() if isinstance(m, nn.Sequential)]:
        for i in range(1, len(part)):
            if isinstance(part[i], Windows) and isinstance(part[i - 1], nn.ReLU):
                part[i - 1], part[i] = part[i], part[i - 1]  # the same values from a quarter of the numbers
    return found


# ---- Views of two runs -----------------------------------------------------------------------------------------------


def objectives(own: PathSets, clean: PathSets, method: str, images: int) -> dict[str, Split]:
    """The same training images, unpoisoned and poisoned, that losses are taken over."""
    parts = {"clean images": clean.own, f"{method} images": own.own}
    return {name: sal_subset(split, images) for name, split in parts.items()}


def joint(
    run: Run, own: PathSets, clean: PathSets, path: np.ndarray, clean_path: np.ndarray, *, grid: int, images: int
) -> Record:
    """The plane of the two first principal components of a clean and a poisoned path [t,p], with both objectives.

    explained: the components' shares of the variance; xs, ys: float[grid] in units of the axes; surfaces: pairs of an
    objective and its loss [y,x] in nats, packed; paths: pairs of a method and its points [t,2].
    """
    plane = pca_plane(torch.tensor(np.concatenate([clean_path, path])))
    ways = {CLEAN: clean_path, run.images.method: path}
    seen = {method: plane.coordinates(torch.tensor(way)).numpy() for method, way in ways.items()}
    points = np.concatenate(list(seen.values()))
    low, high = points.min(0), points.max(0)
    xs, ys = (np.linspace(a - 0.25 * (b - a), b + 0.25 * (b - a), grid) for a, b in zip(low, high, strict=True))
    return _view(run, own, clean, plane, xs, ys, images) | {
        "paths": [[method, way.tolist()] for method, way in seen.items()]
    }


def around(run: Run, own: PathSets, clean: PathSets, end: np.ndarray, *, grid: int, images: int) -> Record:
    """A filter-normalised random plane around weights float[p], from -1 to 1, with both objectives; as `joint`."""
    model = paths.network(run, own)
    vector_to_parameters(torch.tensor(end), model.parameters())
    plane, at = random_plane(model, rng=Generator().manual_seed(0)), np.linspace(-1, 1, grid)
    return _view(run, own, clean, plane, at, at, images) | {"paths": [[run.images.method, [[0.0, 0.0]]]]}


def _view(
    run: Run, own: PathSets, clean: PathSets, plane: Plane, xs: np.ndarray, ys: np.ndarray, images: int
) -> Record:
    model = paths.network(run, own).to(device())
    where = [torch.tensor(values).float() for values in (xs, ys)]
    found = [
        [name, records.packed(surface(model, split, plane, *where, target=run.images.target).numpy())]
        for name, split in objectives(own, clean, run.images.method, images).items()
    ]
    explained = None if plane.explained is None else list(plane.explained)
    return {"explained": explained, "xs": xs.tolist(), "ys": ys.tolist(), "surfaces": found}


def between(
    run: Run, own: PathSets, clean: PathSets, end: np.ndarray, clean_end: np.ndarray, shares: np.ndarray, *, images: int
) -> Record:
    """On the straight line from the clean (0) to the poisoned end (1), float[shares] each: losses (nats), accuracy.

    Keys "clean", "own" (losses of the same training images, unpoisoned and poisoned) and "accuracy" (clean test, 0..1).
    """
    model = paths.network(run, own).to(device())
    start, ahead = torch.tensor(clean_end), torch.tensor(end - clean_end)
    line = Plane(start, torch.stack([ahead, torch.zeros_like(start)]))
    at, nowhere = torch.tensor(np.asarray(shares)).float(), torch.zeros(1)
    splits = dict(zip(("clean", "own"), objectives(own, clean, run.images.method, images).values(), strict=True))
    target = run.images.target
    found = {name: surface(model, s, line, at, nowhere, target=target)[0].tolist() for name, s in splits.items()}
    return found | {"accuracy": surface(model, own.test, line, at, nowhere, target=target, score=hit)[0].tolist()}
