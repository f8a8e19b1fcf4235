"""What poisons with a surrogate network share: the network, its training, and blocks of images."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import records
from ..base.errors import InputError
from ..data import pixels
from ..data.split import Split
from ..nets import classifiers
from ..training import defenses, victim
from .target import Target, counted


def network(architecture: str, target: Target, *, outputs: int | None = None) -> nn.Module:
    """An untrained surrogate on the target's device."""
    _, channels, _, size = target.images.shape
    shape = {"channels": channels, "classes": outputs or target.classes, "size": size}
    model = classifiers.make(architecture, **shape, seed=target.seed)
    # torch's types of `to` lack memory_format.
    return counted(model.to(target.device, memory_format=torch.channels_last))  # type: ignore[call-overload]


def fitted(
    architecture: str,
    target: Target,
    recipe: victim.Recipe,
    *,
    defense: defenses.Defense | None = None,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """A surrogate trained on the clean images with `victim.fit`, then frozen in eval mode."""
    model = network(architecture, target)
    split = Split(target.images, {"label": target.labels}, "surrogate")
    history = victim.fit(
        model,
        split,
        None,
        recipe=recipe,
        defense=defense or defenses.make("none"),
        seed=target.seed,
        device=target.device,
        on_epoch=on_epoch,
    )
    records.note(f"surrogate {architecture}: training accuracy {history.train_accuracy[-1]:.3f}")
    return frozen(model)


def frozen(model: nn.Module) -> nn.Module:
    """Eval mode, no gradients of parameters."""
    return model.eval().requires_grad_(False)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that EM and REM train their surrogates with."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """One step on the mean cross-entropy, gradient norm clipped at 5. Raises InputError if the loss is not finite."""
    loss = F.cross_entropy(model(x), y)
    if not torch.isfinite(loss):
        raise InputError(f"the surrogate's loss is {loss.item()}; use another seed, or images that are not all alike")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()


def cross_entropy(model: nn.Module, y: Tensor) -> pixels.Loss:
    """z -> the sum over images of the cross-entropy of model(z) to y."""
    return lambda z: F.cross_entropy(model(z), y, reduction="sum")


def in_blocks(target: Target, attack: Callable[[Tensor, Tensor], Tensor], *, size: int, label: str) -> Tensor:
    """uint8 images + attack(float images, labels), block by block, so that few floats are held at once."""
    out = torch.empty_like(target.images)
    parts = list(pixels.blocks(len(target), size))
    for rows in records.progress(parts, label, len(parts)):
        x, y = target.part(rows)
        out[rows] = pixels.to_uint8((x + attack(x, y)).cpu())
    return out


def jittered(x: Tensor, *, flip: bool, rng: torch.Generator, shift: int = 4) -> Tensor:
    """One shift of up to `shift` pixels for all images, a mirror for half of them; differentiable, zeros at edges."""
    h, w = x.shape[-2:]
    top, left = torch.randint(0, 2 * shift + 1, (2,), generator=rng).tolist()
    x = F.pad(x, (shift,) * 4)[:, :, top : top + h, left : left + w]
    if not flip:
        return x
    mirrored = (torch.rand(len(x), generator=rng) < 0.5).to(x.device)
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
