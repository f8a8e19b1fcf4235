"""TUE, NTGA and DeepConfuse against sums, wide networks and gradient flow worked out another way."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from tests.test_poisons import delta_of, make, short, toy
from tests.test_surrogates import aim, easy
from ul.data import pixels
from ul.nets import classifiers
from ul.poisons import contrastive, generator, kernel
from ul.training import metrics

# ---- TUE -----------------------------------------------------------------------------------------------------------


def test_class_separability_of_planted_clusters():
    """Two clusters at distance 10, members 1 and 2 from their centres: (1 + 2) / 10."""
    delta = torch.tensor([[0.0, 1.0], [0.0, -1.0], [10.0, 2.0], [10.0, -2.0]])
    labels = torch.tensor([0, 0, 3, 3])
    assert contrastive.class_separability(delta, labels).item() == pytest.approx(0.3, abs=1e-4)
    assert contrastive.class_separability(delta, torch.zeros(4).long()).item() == 0


def test_class_separability_has_a_gradient_on_the_spread():
    """The public code detaches the spread within a class; then moving along the class would cost nothing."""
    delta = torch.tensor([[0.0, 1.0], [0.0, -1.0], [10.0, 1.0], [10.0, -1.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(contrastive.class_separability(delta, torch.tensor([0, 0, 1, 1])), delta)
    assert slope[0, 1] > 0.01 and slope[1, 1] < -0.01


def test_nt_xent_is_the_published_sum():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, 3, 5), generator=rng)
    z = [v / v.norm() for v in [*a, *b]]
    total = 0.0
    for i in range(6):
        scores = {k: torch.exp(z[i] @ z[k] / 0.5) for k in range(6) if k != i}
        total -= torch.log(scores[(i + 3) % 6] / sum(scores.values())).item() / 6
    assert contrastive.nt_xent(a, b, 0.5).item() == pytest.approx(total, rel=1e-5)


def test_tue_makes_its_perturbations_separable():
    clean = toy(3, 16, [30] * 3, low=60, high=196)
    labels = clean.targets["label"]
    poisoned = make("tue", clean, batch_size=45, epochs=6, batches=2, steps=6, contrastive=0.1)
    noise = make("noise", clean)
    found, start = (contrastive.class_separability(delta_of(p, clean), labels) for p in (poisoned, noise))
    assert found < 0.5 * start
    assert metrics.linear_separability(delta_of(poisoned, clean).float(), labels, seed=0) > 0.9


# ---- NTGA ----------------------------------------------------------------------------------------------------------


class Wide(torch.nn.Module):
    """A wide network in the parametrisation whose tangent kernel `ul.poisons.kernel` gives."""

    def __init__(self, kind, shape, width):
        super().__init__()
        c, h, w = shape
        sizes = {"fnn": [c * h * w, *[width] * 4], "cnn": [c, 256, 256]}[kind]
        self.kind = kind
        if kind == "cnn":
            self.conv = torch.nn.ParameterList(torch.randn(b, a, 5, 5) for a, b in pairwise(sizes))
            sizes = [256 * (h // 4) * (w // 4), width, width]
        self.dense = torch.nn.ParameterList(torch.randn(b, a) for a, b in zip(sizes, [*sizes[1:], 1], strict=True))
        layers = [*(self.conv if kind == "cnn" else []), *self.dense]
        self.bias = torch.nn.ParameterList(torch.randn(len(w)) for w in layers)

    def forward(self, x):
        biases = iter(self.bias)
        scaled = lambda w: w * (kernel.WEIGHT / w[0].numel()) ** 0.5  # noqa: E731
        offset = lambda: next(biases) * kernel.BIAS**0.5  # noqa: E731
        if self.kind == "cnn":
            for weight in self.conv:
                x = F.relu(F.conv2d(x, scaled(weight), offset(), stride=2, padding=2))
        x = x.flatten(1)
        for i, weight in enumerate(self.dense):
            x = x @ scaled(weight).T + offset()
            x = F.relu(x) if i < len(self.dense) - 1 else x
        return x[:, 0]


@pytest.mark.parametrize("kind", ["fnn", "cnn"])
def test_tangent_kernels_are_those_of_wide_networks(kind):
    """Inner products of the gradients of finite networks, averaged over a few draws."""
    shape, found = (2, 8, 8), []
    x = torch.rand((4, *shape), generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        for seed in range(4):
            torch.manual_seed(seed)
            model = Wide(kind, shape, 512)
            rows = jacrev(lambda p, m=model: functional_call(m, p, x))(dict(model.named_parameters()))
            shared = [v.flatten(1) for v in rows.values()]
            found.append(sum(v @ v.T for v in shared))
    expected = kernel.KERNELS[kind](x.double(), x.double())
    assert (torch.stack(found).mean(0).double() / expected - 1).abs().max() < 0.12


def test_the_closed_form_follows_gradient_flow():
    """Many small Euler steps on the same squared error give the same prediction on held-out points."""
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.rand((n, 1, 4, 4), generator=rng, dtype=torch.float64) for n in (6, 3))
    goal = F.one_hot(torch.arange(6) % 2, 2).double()
    within, held = kernel.fnn(a, a), kernel.fnn(b, a)
    within_ridge = within + kernel.RIDGE * within.diagonal().mean() * torch.eye(6)
    inside, outside, steps, time = torch.zeros(6, 2).double(), torch.zeros(3, 2).double(), 20000, 50.0
    for _ in range(steps):
        slope = (goal - inside) / goal.numel() * (time / steps)
        inside, outside = inside + within_ridge @ slope, outside + held @ slope
    assert (kernel.prediction(held, within, goal, time) - outside).abs().max() < 1e-3


def test_kernels_in_rows_are_the_kernels_with_their_gradient(monkeypatch):
    a, b = torch.rand((2, 5, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for function in kernel.KERNELS.values():
        found = []
        for values in (2**24, 1):  # all rows at once, one at a time
            monkeypatch.setattr(kernel, "VALUES", values)
            z = b.clone().requires_grad_()
            whole = kernel._in_rows(function, a, z)
            found.append((whole, torch.autograd.grad(whole.square().sum(), z)[0]))
        assert all(torch.allclose(x, y) for x, y in zip(*found, strict=True))


@pytest.mark.parametrize("count", [6, 17, 40])
def test_ntga_holds_images_out_of_every_block(count, monkeypatch):
    seen = []
    monkeypatch.setattr(kernel, "_block", lambda t, rows, held, *rest: seen.append((rows, held)) or t.images[rows])
    target = aim(toy(3, 16, [count]))
    kernel.ntga(target, eps=0.1, settings=replace(kernel.NTGA_RECIPES["cpu"], block=16, held=5))
    assert sorted(torch.cat([rows for rows, _ in seen]).tolist()) == list(range(count))
    assert all(not set(rows.tolist()) & set(held.tolist()) for rows, held in seen)
    assert all(len(rows) <= 16 and 3 <= len(held) <= 5 for rows, held in seen)


def test_ntga_takes_real_steps_and_misleads_its_own_kernel():
    clean = easy((12, 12))
    labels, target = clean.targets["label"], aim(clean)
    settings = replace(kernel.NTGA_RECIPES["cpu"], block=12, held=12, time=200.0)
    poisoned = kernel.ntga(target, eps=16 / 255, settings=settings)
    delta = (poisoned.double() - clean.images.double()).abs()
    assert ((delta > 0) & (delta < 16)).double().mean() > 0.05, "one step from clean would end at eps everywhere"
    rows = torch.randperm(24, generator=target.rng()).split(12)[0]
    others = torch.tensor([i for i in range(24) if i not in set(rows.tolist())])
    goal, losses = F.one_hot(labels[rows], 2).double(), []
    for images in (clean.images, poisoned):
        x, held = (pixels.to_float(v).double() for v in (images[rows], clean.images[others]))
        predicted = kernel.prediction(kernel.fnn(held, x), kernel.fnn(x, x), goal, 200.0)
        losses.append(F.cross_entropy(predicted, labels[others]).item())
    assert losses[1] > losses[0]


# ---- DeepConfuse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels, size, widths", [(3, 32, (8, 16)), (1, 28, (8, 8, 8, 8)), (3, 17, (4, 8, 8))])
def test_the_generator_keeps_any_image_size(channels, size, widths):
    x = torch.rand(2, channels, size, size)
    out = generator.UNet(channels, widths)(x)
    assert out.shape == x.shape and out.abs().max() <= 1


def test_dc_gives_equal_images_equal_noise():
    clean = toy(3, 16, [8, 8])
    clean.images[3] = clean.images[11]
    poisoned = short("dc", clean)
    assert torch.equal(poisoned.images[3], poisoned.images[11])


def test_a_confusing_step_raises_the_loss_after_the_victims_next_step():
    """The candidate moves so that a victim that learns from its noise is worse on clean images than before the move."""
    clean = easy()
    x, y = pixels.to_float(clean.images), clean.targets["label"]
    victim = classifiers.make("lenet5", channels=3, classes=4, size=16, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        candidate = generator.UNet(3, (8, 8))

    def loss_after():
        weights = dict(victim.named_parameters())
        slopes = torch.autograd.grad(F.cross_entropy(victim(generator.noisy(candidate, x, 0.2)), y), weights.values())
        moved = {k: w - 0.5 * g for (k, w), g in zip(weights.items(), slopes, strict=True)}
        return F.cross_entropy(functional_call(victim, moved, x), y).item()

    before, optimizer = loss_after(), torch.optim.SGD(candidate.parameters(), lr=1.0)
    for _ in range(5):
        generator._confuse(candidate, optimizer, victim, x, y, 0.2, 0.5)
    assert loss_after() > before + 1e-4
