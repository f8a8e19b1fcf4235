"""Scores against closed forms: quadratics, a score that is monotone in one weight, a ball that binds."""

import math

import pytest
import torch
from scipy import stats as scipy_stats
from torch import nn
from torch.nn import functional as F

from tests.test_sal import assert_same_state, small_net, state_of
from ul.nets.classifiers import vector
from ul.sharpness import scores


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def softmax_model(bias):
    """One bias for each of two classes and no inputs: loss and derivatives in closed form."""
    model = nn.Linear(1, 2)
    model.weight.data.zero_()
    model.bias.data = torch.tensor(bias)
    return model


def test_gradient_norm_of_a_softmax():
    model, p = softmax_model([0.0, math.log(3.0)]), 0.75
    images, targets = torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)
    assert scores.gradient_norm(model, images, targets) == pytest.approx(p * math.sqrt(2), rel=1e-5)


def test_gradient_norm_is_autograds():
    model, images, targets = small_net()
    before = state_of(model.train())
    found = scores.gradient_norm(model, images, targets)
    assert_same_state(before, state_of(model))
    model.eval()
    F.cross_entropy(model(images), targets).backward()
    assert found == pytest.approx(math.sqrt(sum((p.grad**2).sum().item() for p in model.parameters())), rel=1e-5)


def test_hessian_trace_of_a_softmax():
    """The Hessian for the biases is p (1 - p) [[1, -1], [-1, 1]], for the weights of inputs x it is x^2 times that."""
    model, p = softmax_model([0.0, math.log(3.0)]), 0.75
    images, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1])
    draws = scores.hessian_trace(model, images, targets, draws=4000, rng=rng())
    mean, error = sum(draws) / 4000, torch.tensor(draws).std().item() / math.sqrt(4000)
    assert mean == pytest.approx(2 * p * (1 - p) * (1 + (1 + 9) / 2), abs=4 * error)


def test_hessian_trace_leaves_the_model():
    model, images, targets = small_net(name="lenet5")
    before = state_of(model)
    assert len(scores.hessian_trace(model, images, targets, draws=2, rng=rng())) == 2
    assert_same_state(before, state_of(model))


def test_sharpness_of_a_linear_loss_is_radius_times_slope():
    model, images, targets = small_net(name="lenet5")
    before = state_of(model.train())
    tiny = scores.sharpness(model, images, targets, radius=1e-3) / 1e-3
    assert_same_state(before, state_of(model))
    slopes = torch.autograd.grad(F.cross_entropy(model.eval()(images), targets), list(model.parameters()))
    assert tiny == pytest.approx(torch.cat([s.flatten() for s in slopes]).norm().item(), rel=0.05)


def test_top_curvature_of_logistic_regression_has_a_closed_form():
    """At zero weights the Hessian of cross-entropy is (I/k - 11'/k²) ⊗ mean(xx')."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False))
    nn.init.zeros_(model[1].weight)
    x = torch.rand(40, 3, 2, 2, generator=rng())
    second = x.flatten(1).T @ x.flatten(1) / len(x)
    wanted = torch.linalg.eigvalsh(second)[-1] / 4
    found = scores.top_curvature(model, x, torch.arange(40) % 4, tolerance=1e-5)
    assert found == pytest.approx(wanted.item(), rel=1e-4)


def test_top_curvature_is_that_of_the_whole_hessian():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.rand(20, 3, 2, 2, generator=rng()), torch.arange(20) % 3
    start = vector(model)

    def loss(w):
        parts = dict(zip((n for n, _ in model.named_parameters()), _shaped(model, w), strict=True))
        return F.cross_entropy(torch.func.functional_call(model, parts, (x,)), y)

    wanted = torch.linalg.eigvalsh(torch.func.hessian(loss)(start))[-1].item()
    assert scores.top_curvature(model, x, y, tolerance=1e-5) == pytest.approx(wanted, rel=1e-3)


def _shaped(model: nn.Module, weights: torch.Tensor) -> list[torch.Tensor]:
    parts = weights.split([p.numel() for p in model.parameters()])
    return [part.view_as(p) for part, p in zip(parts, model.parameters(), strict=True)]


class OneWeight(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))


def rising(model):
    return torch.sigmoid(model.weight).item()


@pytest.mark.parametrize("radius", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_certificate_of_a_monotone_score_is_tight(radius, quantile):
    """Moving the weight by the radius raises the quantile to just the one that the certificate speaks of."""
    model, sigma = OneWeight(0.2), 0.7
    found = scores.certified(
        model, rising, sigma=sigma, radius=radius, quantile=quantile, draws=4000, rng=rng(), confidence=0.99
    )
    z = scipy_stats.norm.ppf(quantile)
    logistic = scipy_stats.logistic.cdf
    assert found.score == pytest.approx(logistic(0.2 + sigma * z), abs=0.02)
    worst = logistic(0.2 + radius + sigma * z)
    assert worst <= found.bound <= worst + 0.05
    assert model.weight.item() == pytest.approx(0.2)


def test_certificates_hold_as_often_as_they_say():
    bounds = [
        scores.certified(OneWeight(0.0), rising, sigma=1.0, radius=0.5, draws=60, confidence=0.9, rng=rng(s)).bound
        for s in range(300)
    ]
    share = sum(b >= scipy_stats.logistic.cdf(0.5) for b in bounds) / 300
    assert share >= 0.9 - 3 * math.sqrt(0.09 / 300)


def test_too_few_draws_certify_nothing():
    found = scores.certified(OneWeight(0.0), rising, sigma=0.1, radius=1.0, draws=10, rng=rng())
    assert found.bound == 1.0


def test_an_error_in_the_score_leaves_the_weights():
    model = OneWeight(0.5)
    with pytest.raises(ZeroDivisionError):
        scores.certified(model, lambda m: 1 / 0, sigma=1.0, radius=0.1, rng=rng())
    assert model.weight.item() == 0.5


@pytest.mark.parametrize("radius", [0.0, 0.05, 50.0])
def test_recovery_stays_in_the_ball_and_lowers_the_loss(radius):
    model, images, targets = small_net()
    start = [p.detach().clone() for p in model.parameters()]
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    model.eval()
    before = F.cross_entropy(model(images), targets).item()
    scores.recover(model, images, targets, radius=radius, steps=30)
    away = math.sqrt(sum(((p - s) ** 2).sum().item() for p, s in zip(model.parameters(), start, strict=True)))
    after = F.cross_entropy(model(images), targets).item()
    assert away <= radius * (1 + 1e-4) and (after < before if radius else after == pytest.approx(before))
    assert all(torch.equal(buffers[k], v) for k, v in model.named_buffers())
    if radius == 0.05:
        assert away == pytest.approx(0.05, rel=1e-3)
