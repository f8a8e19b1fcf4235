"""SAL's estimators, norms, errors and precisions against closed forms, and in their order."""

import numpy as np
import pytest
import torch

from tests import bench_sal
from tests.test_sal import Quadratic, ball_extremes, isotropic, small_net
from ul.base.errors import InputError
from ul.sharpness import sal

WEIGHT, CENTRE = [2.0, -1.0, 2.0], [0.5, 0.5, 1.0]
CURVATURES = [[1.0, 2.0, 3.0], [0.5, 5.0, 1.0], [4.0, 1.0, 0.1]]


def at_centre(curvature):
    return sum(a * (w - c) ** 2 for a, w, c in zip(curvature, WEIGHT, CENTRE, strict=True))


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("epsilon", [0.02, 0.1, 0.3])
def test_exact_meets_the_closed_form(curvature, epsilon):
    found = Quadratic(WEIGHT, CENTRE, curvature).probe(epsilon=epsilon, estimator="exact")
    high, low = ball_extremes(WEIGHT, CENTRE, curvature, 3 * epsilon)
    assert found.s_max == pytest.approx(high - at_centre(curvature), rel=1e-4)
    assert found.s_min == pytest.approx(at_centre(curvature) - low, rel=1e-4)


@pytest.mark.parametrize("estimator", ["pgd", "exact"])
@pytest.mark.parametrize("curvature", CURVATURES)
def test_box_extremes_of_a_quadratic(curvature, estimator):
    """In a box every weight is on its own: the far corner is the maximum, the nearest point the minimum."""
    epsilon = 0.2
    w, c, a = (np.array(v) for v in (WEIGHT, CENTRE, curvature))
    side = epsilon * 3 / 3**0.5
    high = (a * (np.abs(w - c) + side) ** 2).sum()
    low = (a * np.maximum(np.abs(w - c) - side, 0) ** 2).sum()
    found = Quadratic(WEIGHT, CENTRE, curvature).probe(epsilon=epsilon, norm="linf", estimator=estimator)
    assert found.radius == pytest.approx(side)
    assert found.s_max == pytest.approx(high - at_centre(curvature), rel=1e-4)
    assert found.s_min == pytest.approx(at_centre(curvature) - low, rel=1e-4)


@pytest.mark.parametrize("distance, s_min", [(2.0, 4 - 1), (0.7, 0.49)])
def test_taylor_is_exact_where_the_gradient_points_at_the_centre(distance, s_min):
    """|w| = 5, radius 1: the gradient's line runs through the centre, which lies outside or inside the ball."""
    found = isotropic(distance).probe(epsilon=0.2, estimator="taylor")
    assert found.s_max == pytest.approx((distance + 1) ** 2 - distance**2, rel=1e-5)
    assert found.s_min == pytest.approx(s_min, rel=1e-5)


def test_taylor_on_a_loss_that_bends_downwards():
    """-(w - c)^2: the loss rises to 0 at the centre, .7 away, and falls the most at the far end."""
    model = isotropic(0.7)
    model.curvature = -model.curvature
    found = model.probe(epsilon=0.2, estimator="taylor")
    assert found.s_max == pytest.approx(0.49, rel=1e-5)
    assert found.s_min == pytest.approx(1.7**2 - 0.49, rel=1e-5)


@pytest.mark.parametrize("norm, length", [("l2", 1.0), ("linf", (0.6 + 0.8) / 2**0.5)])
def test_gradient_is_the_radius_times_the_slope(norm, length):
    found = isotropic(2.0).probe(epsilon=0.2, estimator="gradient", norm=norm)
    assert found.s_max == found.s_min == pytest.approx(2 * 2.0 * length, rel=1e-5)


def test_dearer_estimators_find_no_less():
    net = small_net(name="lenet5")
    best = sal.per_layer(*net, estimator="exact")
    for estimator, share in (("taylor", 0.5), ("pgd", 0.9)):
        found = sal.per_layer(*net, estimator=estimator)
        for column in ("s_max", "s_min"):
            assert (found[column] <= best[column] * (1 + 1e-4) + 1e-7).all()
        assert (found["sal"] >= share * best["sal"]).all()


@pytest.mark.parametrize("estimator", list(sal.ESTIMATORS))
def test_no_radius_no_sal(estimator):
    found = sal.per_layer(*small_net(name="lenet5"), epsilon=0.0, estimator=estimator)
    assert (found["sal"] == 0).all()


@pytest.mark.parametrize("distance", [0.7, 2.0])
def test_error_is_the_spread_of_the_images_changes(distance):
    """Image i's loss is 2 (w_i - c_i)^2; the largest is at one radius straight away from the centre."""
    away = np.array([-0.6, 0.8])  # from the centre
    changes = 2 * ((distance + 1) ** 2 - distance**2) * away**2
    found = isotropic(distance).probe(epsilon=0.2, errors=True)
    assert found.error == pytest.approx(changes.std(ddof=1) / 2**0.5, rel=1e-4)
    assert np.isnan(isotropic(distance).probe(epsilon=0.2).error)


def test_error_says_how_far_other_images_move_sal():
    """Over many draws of images, SAL's spread is about its error (both extremes of one trained-like network)."""
    model, _, _ = small_net(name="lenet5")
    rng = torch.Generator().manual_seed(1)
    found = []
    for _ in range(30):
        images, targets = torch.rand((24, 3, 16, 16), generator=rng), torch.randint(0, 4, (24,), generator=rng)
        found.append(sal.per_layer(model, images, targets, layers=["fc3"], errors=True).iloc[0])
    spread = np.std([f.sal for f in found], ddof=1)
    assert 0.5 < spread / np.mean([f.error for f in found]) < 2


@pytest.mark.parametrize("precision", sal.PRECISIONS)
def test_a_coarse_search_is_scored_in_float32(precision):
    """Near the float32 search, never above the truth, and global settings as before."""
    net = small_net(name="lenet5")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.is_autocast_enabled("cpu")
    usual, best = sal.per_layer(*net), sal.per_layer(*net, estimator="exact")
    found = sal.per_layer(*net, precision=precision)
    assert found["sal"].tolist() == pytest.approx(usual["sal"].tolist(), rel=0.15)
    assert (found["sal"] <= best["sal"] * (1 + 1e-4)).all()
    after = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.is_autocast_enabled("cpu")
    assert after == before


def test_float32_is_float32_on_a_gpu_as_well():
    allowed = []

    def loss(outputs, targets):
        allowed.append((torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision))
        return torch.nn.functional.cross_entropy(outputs, targets)

    net = small_net(name="lenet5")
    sal.per_layer(*net, loss=loss, layers=["fc3"])
    assert set(allowed) == {("ieee", "ieee")}
    sal.per_layer(*net, loss=loss, layers=["fc3"], precision="tf32")
    assert set(allowed) == {("ieee", "ieee"), ("tf32", "tf32")}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"norm": "l1"}, "unknown norm 'l1'; choose from l2, linf"),
        ({"precision": "half"}, "unknown precision 'half'; choose from .*bfloat16"),
        ({"tolerance": -1.0}, "tolerance is -1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        sal.per_layer(*small_net(), **options)


@pytest.mark.parametrize("estimator", ["pgd", "exact"])
def test_the_far_side_is_searched_as_well(estimator):
    """t/5 + 2 t^2 - 1.5 t^3 along one weight: the slope at 0 leads to .4125 at t = .5, but at -.5 it is .5875."""
    model = Quadratic([1.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    model.loss = lambda out, which: (2 * which * (out[:, 0] / 5 + 2 * out[:, 0] ** 2 - 1.5 * out[:, 0] ** 3)).mean()
    assert model.probe(epsilon=0.5, estimator=estimator).s_max == pytest.approx(0.5875, rel=1e-5)


def test_the_bench_compares_every_estimator_with_exact():
    model, images, targets = small_net(name="lenet5")
    rows = bench_sal.rows_of(model.eval(), images, targets, ["conv1.0", "fc3"], {"model": "lenet5"})
    assert [row["estimator"] for row in rows] == list(bench_sal.SETTINGS)
    found = {row["estimator"]: row for row in rows}
    assert found["gradient"]["passes"] == 1  # of all images, in one batch
    assert found["pgd, 1 steps"]["passes"] < found["pgd, 3 steps"]["passes"] <= found["pgd, 10 steps"]["passes"]
    assert found[bench_sal.DEFAULT]["good_layers"] == 1 and found[bench_sal.DEFAULT]["worst"] > bench_sal.GOOD
    assert "times the plain loop" in bench_sal.in_words(
        found[bench_sal.DEFAULT] | {"data": "", "epoch": 1, "images": 24}
    )
