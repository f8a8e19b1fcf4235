"""Networks cut at a layer: the parts are the whole, and only what the layer reaches is left to compute."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ul.nets import classifiers
from ul.sharpness import cut


def used(name="resnet8", size=16):
    """A network in eval mode whose batch norms have statistics and weights of their own, with images for it."""
    options = {"width": 4} if name == "resnet8" else {}
    model = classifiers.make(name, channels=3, classes=4, size=size, seed=0, **options)
    images = torch.rand((6, 3, size, size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
        model.train()(images)
    return model.eval().requires_grad_(False), images


@pytest.mark.parametrize("name", sorted(classifiers.CLASSIFIERS))
def test_head_and_tail_are_the_network_also_after_the_layer_changed(name):
    """Of a deep network every seventh layer, so that those at each place in a block are among them, and the last."""
    layers = classifiers.probed_layers(used(name)[0])
    cut_at(name, layers if len(layers) < 25 else [*layers[::7], layers[-1]])


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet50", "vit_small"])
def test_head_and_tail_of_every_layer_of_a_deep_network(name):
    cut_at(name, classifiers.probed_layers(used(name)[0]))


def cut_at(name: str, layers: list[str]) -> None:
    model, images = used(name)
    cuts = cut.Cuts()
    for layer in layers:
        head, tail = cuts.at(model, layer, images[:1])
        inputs, weight = head(images), model.get_submodule(layer).weight
        torch.testing.assert_close(tail(*inputs), model(images), rtol=1e-4, atol=1e-4)
        kept = weight.clone()
        weight.mul_(1.5)
        torch.testing.assert_close(tail(*inputs), model(images), rtol=1e-4, atol=1e-4)
        weight.copy_(kept)


class Positioned(nn.Module):
    """Bare parameters before, between and after its layers, as transformers have them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 3)
        self.before, self.between, self.after = (nn.Parameter(torch.randn(n)) for n in (5, 5, 3))

    def forward(self, x):
        return self.second(self.first(x + self.before).relu() * self.between + self.before) + self.after


@pytest.mark.parametrize("layer", ["first", "second"])
def test_bare_parameters_are_on_their_side_of_the_cut(layer):
    model, images = Positioned().eval().requires_grad_(False), torch.randn(4, 5)
    assert cut.traced(model, images) is not None
    head, tail = cut.Cuts().at(model, layer, images[:1])
    inputs = head(images)
    model.get_submodule(layer).weight.mul_(1.5)
    torch.testing.assert_close(tail(*inputs), model(images))


@pytest.mark.parametrize(
    "layer, convolutions, norms",
    [("stem.0", 9, 1), ("block1a.conv2", 7, 1), ("block2a.shortcut.0", 4, 1), ("block3a.conv2", 1, 1), ("fc", 0, 0)],
)
def test_the_tail_has_no_layer_that_is_not_reached_and_one_norm(layer, convolutions, norms):
    """Those after the layer's block, in it only what follows; every norm but the probed layer's own is folded."""
    model, images = used()
    _, tail = cut.Cuts().at(model, layer, images[:1])
    found = {part.target for part in tail.graph.nodes if part.op == "call_module"}
    found = [tail.get_submodule(name) for name in found]
    assert sum(isinstance(m, nn.Conv2d) for m in found) == convolutions
    assert sum(isinstance(m, nn.BatchNorm2d) for m in found) == norms


def test_the_networks_own_modules_stay_as_they_were():
    model, images = used()
    before, inside = model(images), list(model.modules())
    for layer in classifiers.probed_layers(model):
        cut.Cuts().at(model, layer, images[:1])
    assert torch.equal(model(images), before)
    assert all(a is b for a, b in zip(inside, model.modules(), strict=True))


def test_kept_cuts_are_those_of_todays_weights_to_the_bit():
    """A network is probed, trained on, and probed again."""
    model, images = used()
    cuts, layers = cut.Cuts(), classifiers.probed_layers(model)
    for layer in layers:
        cuts.at(model, layer, images[:1])
    model.train()
    for p in model.parameters():
        p.mul_(1.1).add_(0.01)
    model(1 - images)  # other statistics
    model.eval()
    for layer in layers:
        (head, tail), (fresh, wanted) = cuts.at(model, layer, images[:1]), cut.Cuts().at(model, layer, images[:1])
        assert torch.equal(tail(*head(images)), wanted(*fresh(images)))


def test_cuts_of_another_network_are_made_anew():
    (model, images), (other, _) = used(), used("lenet5")
    cuts = cut.Cuts()
    cuts.at(model, "fc", images[:1])
    head, tail = cuts.at(other, "fc3", images[:1])
    torch.testing.assert_close(tail(*head(images)), other(images))


class Shared(nn.Module):
    """One convolution called twice, its second output used beside a batch norm: nothing there may be folded."""

    def __init__(self):
        super().__init__()
        self.first, self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 4)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        y = self.conv(F.relu(self.conv(self.first(x))))
        return self.fc((self.norm(y) + y).mean((2, 3)))


@pytest.mark.parametrize("layer", ["first", "conv", "fc"])
def test_a_layer_that_is_called_twice(layer):
    model = Shared().eval().requires_grad_(False)
    model.norm.running_var.fill_(0.3)
    images = torch.rand((2, 3, 16, 16))
    head, tail = cut.Cuts().at(model, layer, images[:1])
    inputs = head(images)
    model.get_submodule(layer).weight.mul_(2)
    torch.testing.assert_close(tail(*inputs), model(images), rtol=1e-4, atol=1e-4)


def test_a_layer_that_is_never_called_leaves_the_network_whole(log):
    model, images = Shared().eval(), torch.rand((2, 3, 16, 16))
    _, tail = cut.Cuts().at(model, "unused", images)
    assert tail is model
    assert log.read_text() == "SAL takes the whole network for unused, which is not called as a module\n"


class Twice(nn.Module):
    """One convolution before two norms, and a weight that is read by its module and by a function."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 1, bias=False), nn.Linear(3, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])

    def forward(self, x):
        for norm in self.norms:
            x = F.relu(norm(self.conv(x)))
        return self.fc(F.linear(x.mean((2, 3)), self.fc.weight))


@pytest.mark.parametrize("layer", ["conv", "fc"])
def test_parts_that_compute_something_else_are_given_up(layer, log):
    model, images = Twice().eval().requires_grad_(False), torch.rand((2, 3, 8, 8))
    model.norms[0].running_var.fill_(0.1)
    _, tail = cut.Cuts().at(model, layer, images)
    kept = model.get_submodule(layer).weight.clone()
    if tail is model:
        assert f"SAL takes the whole network for {layer}: its parts compute something else" in log.read_text()
    assert torch.equal(model.get_submodule(layer).weight, kept)
    model.get_submodule(layer).weight.mul_(1.5)
    head, tail = cut.Cuts().at(model, layer, images)
    torch.testing.assert_close(tail(*head(images)), model(images))


class Counts(nn.Module):
    """Its output depends on how often it was called, by this share a call, which a graph cannot know."""

    def __init__(self, share=1.0):
        super().__init__()
        self.fc, self.share, self.calls = nn.Linear(2, 2), share, 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x) * (1 + self.share * self.calls)


class Looks(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


@pytest.fixture
def log(tmp_path, monkeypatch):
    """The run's progress file."""
    path = tmp_path / "log"
    path.touch()
    monkeypatch.setenv("UL_PROGRESS", str(path))
    return path


@pytest.mark.parametrize(
    "model, line",
    [
        (Counts(), r"its graph computes something else \(by 0\.\d+\)"),
        (Counts(1e-4), r"its graph computes something else \(by 0\.0001\)"),
        (Counts(float("nan")), r"its graph computes something else \(by nan\)"),
        (Looks(), r"torch\.fx cannot follow it \(TraceError: .*control flow.*\)"),
    ],
)
def test_what_cannot_be_traced_stays_whole_and_the_log_says_so(model, line, log):
    x = torch.ones(1, 2)
    cuts = cut.Cuts()
    for _ in range(2):  # said once
        head, tail = cuts.at(model, "fc", x)
    assert tail is model and head(x)[0] is x
    said = log.read_text().splitlines()
    assert len(said) == 1 and re.fullmatch(f"SAL takes the whole network for every layer: {line}", said[0])


def test_an_unequal_last_bit_is_no_other_network(log):
    """As a GPU's sums may differ from call to call: SAL would take the whole network and many times as long."""
    model, x = Counts(2e-7), torch.ones(3, 2)
    assert not torch.equal(model(x), model(x))
    assert cut.traced(model, x) is not None and log.read_text() == ""


@pytest.mark.parametrize("name", ["resnet8", "vit_tiny"])
def test_our_networks_are_traced_without_a_word(name, log):
    assert cut.traced(*used(name)) is not None and log.read_text() == ""
