"""SAL of networks that a cut or a gradient may get wrong: the value of the uncut network, or a refusal in one line."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from tests.test_sal import Plain, assert_same_state, state_of
from ul.base.errors import InputError
from ul.sharpness import sal

IMAGES = torch.rand((12, 3, 8, 8), generator=torch.Generator().manual_seed(1))
TARGETS = torch.arange(12) % 4


class Network(nn.Module):
    """Two convolutions with norms and a linear map; cases change what happens between."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
            self.norm, self.other = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
            self.fc = nn.Linear(6, 4)
            for norm in (self.norm, self.other):
                nn.init.uniform_(norm.weight, 0.5, 2)
                norm.running_var.uniform_(0.05, 0.4)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        return self.fc(F.relu(self.other(self.second(x))).mean((2, 3)))


class CalledTwice(Network):
    """One convolution before two norms."""

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.relu(self.other(self.second(F.relu(self.norm(self.second(x))))))
        return self.fc(x.mean((2, 3)))


class ReadTwice(Network):
    """A weight read by its module, and by a function before it."""

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.conv2d(x, self.second.weight, padding=1)
        return self.fc(F.relu(self.other(self.second(F.relu(x)))).mean((2, 3)))


class Tied(Network):
    """Two modules of one weight, the second folded into its norm."""

    def __init__(self):
        super().__init__()
        self.third = nn.Conv2d(6, 6, 3, padding=1)
        self.third.weight = self.second.weight

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.norm(self.first(x)))))
        return self.fc(F.relu(self.other(self.third(x))).mean((2, 3)))


class Functional(Network):
    """A layer that is never called, and one whose weight alone is used."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return F.linear(F.relu(self.norm(self.first(x))).mean((2, 3)), self.fc.weight, self.fc.bias)


class Attention(Network):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        tokens = F.relu(self.norm(self.first(x))).flatten(2).transpose(1, 2)
        return self.fc(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def hooked():
    """A hook that changes what a convolution gives to its norm."""
    model = Network()
    model.second.register_forward_hook(lambda module, inputs, output: output * 1.7 + 0.3)
    return model


@pytest.mark.parametrize("make", [Network, CalledTwice, ReadTwice, Tied, Functional, Attention, hooked])
def test_every_layer_has_the_value_of_the_uncut_network(make):
    """`Plain` looks at values, so that nothing of it is traced or cut."""
    model = make()
    before = state_of(model)
    cut, whole = (sal.per_layer(m, IMAGES, TARGETS) for m in (model, Plain(copy.deepcopy(model))))
    assert cut["layer"].tolist() == [name.removeprefix("inner.") for name in whole["layer"]] and len(cut) > 1
    assert cut["sal"].tolist() == pytest.approx(whole["sal"].tolist(), rel=1e-3, abs=1e-6)
    assert (cut["sal"] > 0).all()
    assert_same_state(before, state_of(model))


def test_what_the_network_does_not_use_is_left_out_and_said(tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("UL_PROGRESS", str(log))
    assert sal.per_layer(Functional(), IMAGES, TARGETS)["layer"].tolist() == ["first", "fc"]
    assert "SAL leaves out what the network does not use: second, unused" in log.read_text().splitlines()
    with pytest.raises(InputError, match="the network never calls unused; name other layers"):
        sal.per_layer(Functional(), IMAGES, TARGETS, layers=["fc", "unused"])


# ---- Weights that are made from others -----------------------------------------------------------------------------


class LowRank(nn.Module):
    """A trained offset of low rank on a frozen weight (Hu et al. 2022)."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up, self.down = (nn.Parameter(torch.randn(s, generator=generator) / 4) for s in ((4, 1), (1, 6)))

    def forward(self, weight):
        return weight + self.up @ self.down


def low_rank(model):
    parametrize.register_parametrization(model.fc, "weight", LowRank())
    return model


PARAMETRISED = {
    "weight_norm": lambda m: parametrizations.weight_norm(m.second) and m,
    "spectral_norm": lambda m: parametrizations.spectral_norm(m.second) and m,
    "orthogonal": lambda m: parametrizations.orthogonal(m.fc) and m,
    "LoRA": low_rank,
    "old weight_norm": lambda m: weight_norm(m.second) and m,
    "old spectral_norm": lambda m: spectral_norm(m.second) and m,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", PARAMETRISED)
def test_a_parametrised_weight_is_moved_as_the_forward_pass_sees_it(kind):
    """The same function with plain weights, written into a fresh network, has the same SAL."""
    model = PARAMETRISED[kind](Network()).eval()
    same = Network().eval()
    model(IMAGES)  # old hooks compute the weight here
    for name in ("first", "second", "fc"):
        same.get_submodule(name).weight.data = model.get_submodule(name).weight.detach().clone()
        same.get_submodule(name).bias.data = model.get_submodule(name).bias.detach().clone()
    torch.testing.assert_close(same(IMAGES), model(IMAGES))
    before = state_of(model)
    found, wanted = (sal.per_layer(m, IMAGES, TARGETS) for m in (model, same))
    assert found["layer"].tolist() == wanted["layer"].tolist()
    assert found["sal"].tolist() == pytest.approx(wanted["sal"].tolist(), rel=1e-4)
    assert found["radius"].tolist() == pytest.approx(wanted["radius"].tolist())
    assert_same_state(before, state_of(model))


# ---- Where it is called --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode])
def test_an_outer_mode_does_not_matter(outer):
    usual = sal.per_layer(Network(), IMAGES, TARGETS)
    model = Network()
    with outer():
        found = sal.per_layer(model, IMAGES * 1, TARGETS * 1)  # images made in that mode
        assert torch.is_grad_enabled() is False
    assert found.equals(usual)


@pytest.fixture
def precisions():
    """All settings of float32's precision, as they were afterwards."""
    places = [torch.backends, torch.backends.cudnn.conv, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    before = [place.fp32_precision for place in places]
    yield places
    for place, old in zip(places, before, strict=True):
        place.fp32_precision = old


def test_a_users_precision_is_put_aside_and_back(precisions):
    usual = sal.per_layer(Network(), IMAGES, TARGETS)
    torch.backends.fp32_precision = "tf32"
    chosen = [place.fp32_precision for place in precisions]
    assert sal.per_layer(Network(), IMAGES, TARGETS).equals(usual)
    assert [place.fp32_precision for place in precisions] == chosen


# ---- Refusals ------------------------------------------------------------------------------------------------------


class Drops(Network):
    """Dropout that does not look at the mode."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, training=True)


def batched():
    model = Network()
    model.norm = nn.BatchNorm2d(6, track_running_stats=False)
    return model


def made_in_inference_mode():
    with torch.inference_mode():
        return Network()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: Network().half(), {}, r"first has float16 weights, too coarse for SAL; call model\.float\(\)"),
        (lambda: Network().bfloat16(), {}, "first has bfloat16 weights"),
        (Drops, {}, r"random in eval mode \(outputs differ by .*\); make it deterministic"),
        (batched, {"batch_size": 5}, "norm takes its statistics from the batch.*give batch_size=12"),
        (made_in_inference_mode, {}, "first.weight was made in inference mode"),
    ],
)
def test_a_network_of_which_sal_is_no_property_is_refused(make, options, message):
    model = make()
    with pytest.raises(InputError, match=message) as caught:
        sal.per_layer(model, IMAGES, TARGETS, **options)
    assert len(str(caught.value).splitlines()) == 1 and model.training


def test_a_batchs_own_statistics_are_allowed_where_there_is_one_batch():
    assert (sal.per_layer(batched(), IMAGES, TARGETS)["sal"] > 0).all()


@pytest.mark.parametrize(("images", "targets"), [(IMAGES[:0], TARGETS[:0]), (IMAGES, TARGETS[:3])])
def test_images_without_targets_are_refused(images, targets):
    with pytest.raises(InputError, match=f"got {len(images)} images, {len(targets)} targets"):
        sal.per_layer(Network(), images, targets)
