"""Plain loops that the package is measured and tested against: slow, and easy to believe."""

import copy
from itertools import product

import torch
from torch import Tensor, nn
from torch.func import replace_all_batch_norm_modules_
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters

from ul.nets import classifiers

STRIDE = 2.5  # ball radii that all steps of the plain SAL loop together could go


def plain_sal(
    model: nn.Module, images: Tensor, targets: Tensor, *, epsilon: float = 0.05, steps: int = 10, layers=None
) -> dict:
    """(S_max, S_min) of every layer by a plain loop: for each direction a full pass a step, then the projection."""
    model.eval()
    out = {}
    for name in layers or classifiers.probed_layers(model):
        weight = model.get_submodule(name).weight
        start, radius = weight.detach().clone(), epsilon * weight.norm().item()
        base, best = F.cross_entropy(model(images), targets).item(), {1: 0.0, -1: 0.0}
        for sign in best:
            delta = torch.zeros_like(start)
            for _ in range(steps):
                weight.data = start + delta
                model.zero_grad()
                F.cross_entropy(model(images), targets).backward()
                delta = delta + sign * STRIDE * radius / steps * weight.grad / weight.grad.norm()
                delta = delta * min(1.0, radius / delta.norm().item())
                weight.data = start + delta
                with torch.no_grad():
                    value = F.cross_entropy(model(images), targets).item()
                best[sign] = max(best[sign], sign * (value - base))
            weight.data = start
        out[name] = (best[1], best[-1])
    return out


def plain_augment(images: Tensor, *, pad: int, rng: torch.Generator) -> Tensor:
    """Crop and flip image by image."""
    padded, (h, w) = F.pad(images, (pad,) * 4), images.shape[-2:]
    out = []
    for image in padded:
        top, left = torch.randint(0, 2 * pad + 1, (2,), generator=rng).tolist()
        crop = image[:, top : top + h, left : left + w]
        out.append(crop.flip(2) if torch.rand((), generator=rng) < 0.5 else crop)
    return torch.stack(out)


def plain_ar(start: Tensor, filters: Tensor) -> Tensor:
    """The autoregressive process of one image, value by value; start float64[c,h+4,w+4], filters float64[c,3,3]."""
    field = start.clone()
    for i, j in product(range(2, start.shape[1]), range(2, start.shape[2])):
        for k in range(len(field)):
            window = field[k, i - 2 : i + 1, j - 2 : j + 1].flatten()[:8]
            field[k, i, j] = (window * filters[k].flatten()[:8]).sum()
    return field[:, 4:, 4:]


def plain_ops(images: Tensor) -> tuple[int, int, tuple[int, ...]]:
    """OPS's choice for one class with no pair taken, candidate by candidate and image by image; uint8[n,c,h,w]."""
    _, channels, h, w = images.shape
    best, choice = -1.0, None
    for row, column, colour in product(range(h), range(w), product((0, 1), repeat=channels)):
        gaps = torch.stack([(torch.tensor(colour) - image[:, row, column] / 255).abs() for image in images])
        score = (gaps.mean() / gaps.std(correction=0).clamp_min(1e-6)).item()
        if score > best:
            best, choice = score, (row, column, colour)
    return choice


def plain_passes(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int) -> None:
    """One forward and backward pass of a frozen network for every float image, and nothing else."""
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        x = x.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)


def plain_training(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int) -> None:
    """One SGD step with momentum on every batch of float images, and nothing else."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def plain_loader(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int, device: str = "cpu") -> None:
    """An epoch with a data loader that crops and mirrors image by image (uint8 images on the CPU)."""

    class Cropped(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            image = plain_augment(images[i : i + 1], pad=4, rng=torch.default_generator)[0]
            return image.float() / 255, labels[i]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for x, y in torch.utils.data.DataLoader(Cropped(), batch_size=batch_size, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x.to(device)), y.to(device)).backward()
        optimizer.step()


def plain_tasks(model: nn.Module, images: Tensor, *, batch_size: int) -> None:
    """A bare epoch of a multi-task network: every head's outputs squared, no crops, labels, masks or schedule."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    for x in inputs.split(batch_size):
        optimizer.zero_grad(set_to_none=True)
        torch.stack([out.square().mean() for out in model.train()(x).values()]).mean().backward()
        optimizer.step()


def plain_surface(model: nn.Module, split, plane, xs: Tensor, ys: Tensor) -> Tensor:
    """The loss [y,x] on a plane, point by point: weights set, all images through the network."""
    model, out = replace_all_batch_norm_modules_(copy.deepcopy(model)).eval(), torch.zeros(len(ys), len(xs))
    images, targets = split.images.float() / 255, split.targets["label"]
    with torch.no_grad():
        for i, y in enumerate(ys):
            for j, x in enumerate(xs):
                vector_to_parameters(plane.origin + x * plane.axes[0] + y * plane.axes[1], model.parameters())
                out[i, j] = F.cross_entropy(model(images), targets)
    return out
