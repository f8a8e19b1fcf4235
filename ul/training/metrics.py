"""Scores of models on images."""

import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..data.pixels import block_size


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Outputs float[n, classes] in eval mode, the mode restored; images float[n,c,h,w] as the model takes them."""
    mode = model.training
    model.eval()
    out = torch.cat([model(batch) for batch in images.split(block_size(images))])
    model.train(mode)
    return out.float()


def accuracy(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    """Share of images (0..1) whose largest output is the target."""
    return (logits(model, images).argmax(1) == targets).float().mean().item()


def linear_accuracy(x_fit: Tensor, y_fit: Tensor, x_held: Tensor, y_held: Tensor) -> float:
    """Accuracy (0..1) on held-out rows of a logistic regression on standardised float[n, ...] features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000, C=0.01))
    model.fit(x_fit.flatten(1).numpy(), y_fit.numpy())
    return float(model.score(x_held.flatten(1).numpy(), y_held.numpy()))


def linear_separability(features: Tensor, targets: Tensor, *, seed: int) -> float:
    """`linear_accuracy` of float[n, ...] with half the rows to fit and half to score, drawn by `seed`.

    In-sample accuracy would be inflated by the many dimensions: noise alone would look separable.
    """
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    fit, held = order[: len(order) // 2], order[len(order) // 2 :]
    if len(targets[fit].unique()) < 2:
        raise InputError(f"separability needs two classes in half of {len(order)} images; take more images")
    return linear_accuracy(features[fit], targets[fit], features[held], targets[held])
