"""SAL against closed forms: on a quadratic the largest and smallest loss in a ball are known."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.imports import ROOT
from tests.plain import plain_sal
from ul import data
from ul.base.errors import InputError
from ul.nets import classifiers
from ul.sharpness import cut, sal
from ul.training import defenses, victim

STEPS = 10


class Quadratic(nn.Module):
    """One Linear whose outputs, on the unit vectors, are its weights w; the loss is sum of curvature (w - centre)^2."""

    def __init__(self, weight, centre, curvature):
        super().__init__()
        self.layer = nn.Linear(len(weight), 1, bias=False)
        self.layer.weight.data = torch.tensor([weight])
        self.centre, self.curvature = torch.tensor(centre), torch.tensor(curvature)

    def forward(self, x):
        return self.layer(x)

    def loss(self, out, which):
        return len(self.centre) * (self.curvature[which] * (out[:, 0] - self.centre[which]) ** 2).mean()

    def probe(self, **options):
        n = len(self.centre)
        return sal.per_layer(self, torch.eye(n), torch.arange(n), loss=self.loss, **options).iloc[0]


class Plain(nn.Module):
    """A network whose graph cannot be traced: it looks at the values."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if x.isfinite().all() else x


def small_net(seed=0, name="resnet8", width=4):
    """A network with batch norm whose statistics and modes are not those of a new one, and images for it."""
    options = {"width": width} if name == "resnet8" else {}
    model = classifiers.make(name, channels=3, classes=4, size=16, seed=seed, **options)
    rng = torch.Generator().manual_seed(seed)
    images, targets = torch.rand((24, 3, 16, 16), generator=rng), torch.randint(0, 4, (24,), generator=rng)
    with torch.no_grad():
        model.train()(images * 0.5)
    return model, images, targets


def isotropic(distance):
    """|w| = 5 (so epsilon = .2 is a radius of 1), the centre `distance` away."""
    return Quadratic([3.0, 4.0], [3.0 + 0.6 * distance, 4.0 - 0.8 * distance], [1.0, 1.0])


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.2])
def test_largest_loss_in_a_ball_of_an_isotropic_quadratic(distance, epsilon):
    found, r = isotropic(distance).probe(epsilon=epsilon), 5 * epsilon
    assert found.radius == pytest.approx(r, rel=1e-6)
    assert found.s_max == pytest.approx((distance + r) ** 2 - distance**2, rel=1e-4)


@pytest.mark.parametrize("distance, epsilon", [(1.0, 0.2), (2.0, 0.2), (7.0, 0.05), (1.5, 0.1)])
def test_smallest_loss_when_the_centre_is_outside(distance, epsilon):
    found, r = isotropic(distance).probe(epsilon=epsilon), 5 * epsilon
    assert found.s_min == pytest.approx(distance**2 - (distance - r) ** 2, rel=1e-4)


@pytest.mark.parametrize("distance", [0.3, 0.55, 0.7, 0.9])
def test_smallest_loss_when_the_centre_is_inside(distance):
    """One parabola from the first step's ends leads to the centre: s_min is the whole loss."""
    assert isotropic(distance).probe(epsilon=0.2).s_min == pytest.approx(distance**2, rel=1e-4)


def ball_extremes(weight, centre, curvature, radius):
    """(max, min) of a convex quadratic over a ball, by bisection on the multiplier (trust-region secular equation)."""
    w, c, a = (torch.tensor(v, dtype=torch.float64) for v in (weight, centre, curvature))
    extremes = []
    for sign, low in ((1, a.max().item()), (-1, 0.0)):
        high = low + 1e6
        for _ in range(200):
            middle = (low + high) / 2
            step = sign * a * (w - c) / (middle - sign * a)
            low, high = (middle, high) if step.norm() > radius else (low, middle)
        extremes.append((a * (w + sign * a * (w - c) / (high - sign * a) - c) ** 2).sum().item())
    return extremes


@pytest.mark.parametrize("curvature", [[1.0, 2.0, 3.0], [0.5, 5.0, 1.0], [4.0, 1.0, 0.1]])
def test_anisotropic_quadratic_stays_below_the_true_extremes_and_comes_near(curvature):
    weight, centre, epsilon = [2.0, -1.0, 2.0], [0.5, 0.5, 1.0], 0.1
    model = Quadratic(weight, centre, curvature)
    base = sum(a * (w - c) ** 2 for a, w, c in zip(curvature, weight, centre, strict=True))
    high, low = ball_extremes(weight, centre, curvature, 3 * epsilon)
    for options, share in (({}, 0.97), ({"steps": 300, "tolerance": 0}, 0.9999)):
        found = model.probe(epsilon=epsilon, **options)
        assert share * (high - base) <= found.s_max <= (high - base) * (1 + 1e-5)
        assert base - low - (1 - share) * (high - base) <= found.s_min <= (base - low) * (1 + 1e-5)
        assert found.sal == max(found.s_max, found.s_min)


@pytest.mark.parametrize("distance, searched", [(0.3, False), (1.0, False), (7.0, True)])
def test_a_fall_that_cannot_decide_is_not_searched_for(distance, searched):
    """From a loss of d^2 a radius of 1 climbs by 2 d + 1, more than the loss could fall where d < 1 + sqrt 2."""
    known, plain = (isotropic(distance).probe(epsilon=0.2, least=least) for least in (0.0, None))
    assert known.sal == plain.sal and known.s_max == plain.s_max and not math.isnan(plain.s_min)
    assert known.s_min == plain.s_min if searched else math.isnan(known.s_min)


@pytest.mark.slow
def test_the_default_comes_near_the_truth_in_a_network_that_fits_its_images():
    """Where poisoned networks end: the slope at the centre is hardly any, and the loss climbs late."""
    split = data.load("mnist", "train", root=ROOT / "data", limit=600, targets=("label",))
    model = classifiers.make("lenet5", channels=1, classes=10, size=28, seed=0)
    recipe = replace(victim.RECIPES["lenet5"], epochs=60, pad=0, flip=False, weight_decay=0.0)
    victim.fit(model, split, None, recipe=recipe, defense=defenses.make("none"), seed=0, device="cpu")
    images, targets = split.images[:64].float() / 255, split.targets["label"][:64]
    default, truth = (sal.per_layer(model, images, targets, estimator=name)["sal"] for name in ("pgd", "exact"))
    assert F.cross_entropy(model.eval()(images), targets) < 2e-3
    assert (default / truth).min() > 0.95


@pytest.mark.parametrize("name", ["lenet5", "resnet8"])
def test_a_known_floor_changes_no_sal(name):
    model, images, _ = small_net(name=name)
    with torch.no_grad():  # confident outputs: losses of which most are smaller than their rise
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        last.weight.mul_(300)
    right = model.eval()(images).argmax(1)
    known, plain = (sal.per_layer(model, images, right, errors=True, least=least) for least in (0.0, None))
    assert known["s_min"].isna().any()
    columns = ["layer", "sal", "s_max", "error", "radius"]
    assert known[columns].equals(plain[columns])


def test_larger_balls_hold_larger_changes():
    model, images, targets = small_net(name="lenet5")
    frames = [sal.per_layer(model, images, targets, epsilon=e) for e in (0, 0.02, 0.05, 0.1)]
    values = torch.tensor([f["sal"].tolist() for f in frames])
    assert (values[0] == 0).all() and (frames[0][["s_max", "s_min", "radius"]] == 0).all(axis=None)
    assert (values[1:] > values[:-1]).all()
    assert all((f[["s_max", "s_min"]] >= 0).all(axis=None) for f in frames)


@pytest.mark.parametrize("name", ["resnet8", "lenet5", "linear"])
def test_cutting_the_network_changes_nothing(name):
    model, images, targets = small_net(name=name)
    assert cut.traced(Plain(model), images) is None
    parts, whole = sal.per_layer(model, images, targets), sal.per_layer(Plain(model), images, targets)
    assert parts["layer"].tolist() == [n.removeprefix("inner.") for n in whole["layer"]]
    parts, whole = (torch.tensor(frame.drop(columns=["layer", "error"]).to_numpy()) for frame in (parts, whole))
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch_size", [5, 23])
def test_batch_size_does_not_matter(batch_size):
    model, images, targets = small_net()
    layers = ["stem.0", "block2a.shortcut.0", "fc"]
    whole, parts = (sal.per_layer(model, images, targets, layers=layers, batch_size=b) for b in (512, batch_size))
    torch.testing.assert_close(torch.tensor(parts["sal"]), torch.tensor(whole["sal"]), rtol=1e-4, atol=1e-5)


def state_of(model):
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return tensors, grads, [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


def assert_same_state(before, after):
    assert all(torch.equal(before[0][k], after[0][k]) for k in before[0]), "weights or buffers"
    for a, b in zip(before[1], after[1], strict=True):
        assert (a is b is None) or torch.equal(a, b)
    assert before[2:] == after[2:]


def fails_at(call):
    """A cross-entropy that raises in its call-th evaluation."""
    calls = iter(range(1, 10_000))

    def loss(out, y):
        if next(calls) == call:
            raise RuntimeError("planted")
        return F.cross_entropy(out, y)

    return loss


@pytest.mark.parametrize("call", [None, 1, 2, 7, 15, 40])
def test_the_model_is_as_before_even_after_an_error(call):
    model, images, targets = small_net()
    model.train()
    model.block1a.eval()
    F.cross_entropy(model(images), targets).backward()
    model.fc.bias.grad = None
    model.stem[0].weight.requires_grad_(False)
    before = state_of(model)
    if call is None:
        sal.per_layer(model, images, targets)
    else:
        with pytest.raises(RuntimeError, match="planted"):
            sal.per_layer(model, images, targets, loss=fails_at(call))
    assert_same_state(before, state_of(model))


def test_probing_does_not_change_training():
    x = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    split = data.Split(x, {"label": torch.arange(40) % 4}, "toy/train")
    images = x.float() / 255
    states = []
    for hook in (None, lambda epoch, model: sal.per_layer(model, images, split.targets["label"], steps=2)):
        model = classifiers.make("resnet8", channels=3, classes=4, size=16, seed=0)
        recipe = victim.Recipe(epochs=2, batch_size=16, pad=2)
        victim.fit(
            model, split, split, recipe=recipe, defense=defenses.make("none"), seed=0, device="cpu", on_epoch=hook
        )
        states.append(model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize("name", ["resnet8", "lenet5"])
def test_many_short_steps_find_hardly_more(name):
    model, images, targets = small_net(name=name)
    frame = sal.per_layer(model, images, targets, epsilon=0.1)
    found = plain_sal(model, images, targets, epsilon=0.1, steps=60)
    for row in frame.itertuples():
        s_max, s_min = found[row.layer]
        assert 0.95 * max(s_max, s_min) <= row.sal <= 1.05 * max(s_max, s_min), row.layer
        assert (row.s_max, row.s_min) == pytest.approx((s_max, s_min), rel=0.15), row.layer


def test_the_extremes_are_losses_of_weights_in_the_ball():
    model, images, targets = small_net()
    weight = model.block2a.conv1.weight
    start, seen = weight.detach().clone(), []

    def spy(out, y):
        value = F.cross_entropy(out, y)
        seen.append((value.item(), (weight - start).norm().item()))
        return value

    found = sal.per_layer(model, images, targets, loss=spy, layers=["block2a.conv1"]).iloc[0]
    (base, unmoved), values = seen[0], [v for v, _ in seen]
    assert unmoved == 0 and max(d for _, d in seen) <= found.radius * (1 + 1e-5)
    assert (found.s_max, found.s_min) == pytest.approx((max(values) - base, base - min(values)), abs=1e-7)
    assert found.radius == pytest.approx(0.05 * start.norm().item(), rel=1e-6)


@pytest.fixture
def counted_loss():
    """A cross-entropy that counts its calls."""

    def loss(out, y):
        loss.calls += 1
        return F.cross_entropy(out, y)

    loss.calls = 0
    return loss


@pytest.mark.parametrize("tolerance, fewest, most", [(0.0, 3 + 6, 33), (0.01, 3 + 2, 22), (0.5, 3, 12)])
def test_a_step_that_gains_little_is_the_last(counted_loss, tolerance, fewest, most):
    model, images, targets = small_net(name="lenet5")
    frame = sal.per_layer(model, images, targets, steps=10, tolerance=tolerance, loss=counted_loss)
    assert fewest <= counted_loss.calls / len(frame) <= most


# ---- Where the public code departs from the definition (design, section 2) ------------------------------------------


def test_reference_loss_is_in_eval_mode_on_the_images_as_given():
    """The public code takes the training-mode loss over augmented batches."""
    model, images, targets = small_net()
    eval_loss, train_loss = (
        F.cross_entropy(getattr(copy.deepcopy(model), mode)()(images), targets).item() for mode in ("eval", "train")
    )
    seen = []

    def spy(out, y):
        assert torch.equal(y, targets)
        seen.append(F.cross_entropy(out, y))
        return seen[-1]

    found = sal.per_layer(model.train(), images, targets, loss=spy, layers=["fc"], steps=1)
    assert seen[0].item() == pytest.approx(eval_loss, abs=1e-6)
    assert abs(seen[0].item() - train_loss) > 1e-3
    assert found.equals(sal.per_layer(model.eval(), images, targets, layers=["fc"], steps=1))


def test_every_step_is_projected():
    """The public code projects once a pass over the data."""
    model, lengths = Quadratic([3.0, 4.0], [1.0, 9.0], [1.0, 3.0]), []
    start = model.layer.weight.detach().clone()

    def spy(out, which):
        lengths.append((model.layer.weight - start).norm().item())
        return model.loss(out, which)

    sal.per_layer(model, torch.eye(2), torch.arange(2), loss=spy, epsilon=0.2)
    assert max(lengths) == pytest.approx(1, abs=1e-5)
    assert lengths[:3] == pytest.approx([0, 0, 1], abs=1e-5) and 5 < len(lengths) <= 2 + 2 * STEPS


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("call, where", [(1, "diverged, lower its lr"), (6, "smaller epsilon")])
def test_a_loss_that_is_not_finite_is_refused(value, call, where):
    """The public code keeps NaN weights and lets the candidate lose."""
    model, images, targets = small_net()
    calls, before = iter(range(1, 1000)), state_of(model)

    def loss(out, y):
        return F.cross_entropy(out, y) * (value if next(calls) == call else 1)

    with pytest.raises(InputError, match=where):
        sal.per_layer(model, images, targets, loss=loss)
    assert_same_state(before, state_of(model))


def test_layers_are_all_convolutions_and_linear_maps():
    model, images, targets = small_net()
    frame = sal.per_layer(model, images, targets, steps=1)
    conv = [k.removesuffix(".weight") for k, v in model.state_dict().items() if k.endswith("weight") and v.ndim > 1]
    assert frame["layer"].tolist() == conv and len(conv) == 10
    assert frame["weights"].tolist() == [model.get_submodule(n).weight.numel() for n in conv]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": ["fc", "nope"]}, r"unknown layer 'nope'; choose from .*block1a\.conv1.*fc"),
        ({"estimator": "nope"}, "unknown SAL estimator 'nope'; choose from .*pgd"),
        ({"epsilon": -0.1}, "epsilon is -0.1"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    model, images, targets = small_net()
    with pytest.raises(InputError, match=message):
        sal.per_layer(model, images, targets, **options)
