"""Sharpness-aware minimisation: a step by hand, batch statistics, parameters that nothing uses."""

import torch
from torch import Generator, nn

from tests.test_training import toy
from ul.data import pixels
from ul.nets import classifiers
from ul.training import defenses, victim


def test_a_sharpness_aware_step_by_hand():
    """SAM: the step's gradient is the one a radius further up the hill; the weights it starts from are those before."""
    split, rho, rate = toy(12), 0.5, 0.3
    model = classifiers.make("linear", channels=1, classes=4, size=16, seed=0)
    x = (pixels.to_float(split.images).flatten(1) - 0.5) * 4
    truth = torch.eye(4)[split.targets["label"]]

    def slopes(w, b):
        error = (torch.softmax(x @ w.T + b, 1) - truth) / 12
        return error.T @ x, error.sum(0)

    w, b = model.fc.weight.detach().clone(), model.fc.bias.detach().clone()
    gw, gb = slopes(w, b)
    norm = (gw.square().sum() + gb.square().sum()).sqrt()
    gw, gb = slopes(w + rho * gw / norm, b + rho * gb / norm)
    recipe = victim.Recipe(epochs=1, batch_size=12, sam=rho)
    optimizer, schedule = torch.optim.SGD(model.parameters(), rate), victim._optimizer(model, recipe, steps=1)[1]
    victim._epoch(
        model, split.images, split.targets["label"], recipe, False, defenses.make("none").batch, optimizer, schedule,
        Generator().manual_seed(0),
    )  # fmt: skip
    torch.testing.assert_close(model.fc.weight.detach(), w - rate * gw, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.fc.bias.detach(), b - rate * gb, atol=1e-6, rtol=1e-5)


def test_sharpness_aware_steps_leave_out_parameters_that_nothing_uses():
    class Spare(nn.Module):
        def __init__(self, spare):
            super().__init__()
            self.fc = nn.Linear(16, 4)
            nn.init.ones_(self.fc.weight)
            self.spare = nn.Linear(3, 3) if spare else None

        def forward(self, x):
            return self.fc(x.flatten(1)[:, :16])

    split, trained = toy(32), []
    for spare in (False, True):
        model = Spare(spare)
        nn.init.zeros_(model.fc.bias)
        recipe = victim.Recipe(epochs=2, batch_size=16, sam=0.1)
        victim.fit(model, split, None, recipe=recipe, defense=defenses.make("none"), seed=0, device="cpu")
        trained.append(model.fc.weight.detach())
    assert torch.equal(*trained) and not torch.equal(trained[0], torch.ones(4, 16))


def test_sharpness_aware_steps_move_batch_statistics_once():
    split = toy(32)
    states = []
    for sam in (0.0, 0.1):
        model = classifiers.make("resnet8", channels=split.images.shape[1], classes=4, size=16, seed=0)
        recipe = victim.Recipe(epochs=1, batch_size=32, lr=0.0, warmup=1.0, sam=sam)
        victim.fit(model, split, None, recipe=recipe, defense=defenses.make("none"), seed=0, device="cpu")
        states.append(dict(model.named_buffers()))
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0] if "running" in k)
