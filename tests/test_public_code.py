"""The public code's departures, one at a time: what each must and must not change."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.test_sal import assert_same_state, small_net, state_of
from ul.base import names
from ul.base.errors import InputError
from ul.sharpness import public_code, sal
from ul.training import victim


def cropped(images, rng):
    return victim.augment(images, pad=2, flip=True, rng=rng)


def probed(departures, *, net=None, train_loss=0.7, **options):
    model, images, targets = net or small_net(name="lenet5")
    return public_code.per_layer(model, images, targets, departures, train_loss=train_loss, augment=cropped, **options)


def eval_loss(model, images, targets):
    with torch.no_grad():
        return F.cross_entropy(model.eval()(images), targets).item()


def test_without_departures_it_is_the_definition():
    net = small_net(name="lenet5")
    ours, theirs = sal.per_layer(*net, steps=10, tolerance=0.01), probed([], net=net)
    assert theirs["layer"].tolist() == ours["layer"].tolist()
    for column in ("sal", "s_max", "s_min"):
        assert theirs[column].tolist() == pytest.approx(ours[column].tolist(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.5])
def test_another_reference_moves_both_extremes(shift):
    net = small_net(name="lenet5")
    loss = eval_loss(*net)
    ours, theirs = probed([], net=net), probed(["train_loss"], net=net, train_loss=loss + shift)
    assert theirs["s_max"].tolist() == pytest.approx((ours["s_max"] - shift).clip(lower=0).tolist(), abs=1e-5)
    assert theirs["s_min"].tolist() == pytest.approx((ours["s_min"] + shift).clip(lower=0).tolist(), abs=1e-5)


def test_other_crops_move_sal_even_in_a_ball_of_no_size():
    """SAL is 0 at epsilon 0 by definition; with crops drawn anew the luck of the draw counts as sharpness."""
    assert (probed([], epsilon=0.0)["sal"] == 0).all()
    assert (probed(["augmented"], epsilon=0.0)["sal"] > 0).all()
    assert (probed(["augmented", "late_projection"], epsilon=0.0)["sal"] > 0).all()


def test_late_projection_ends_in_the_ball():
    net = small_net(name="lenet5")
    found, best = probed(["late_projection"], net=net), sal.per_layer(*net, estimator="exact")
    assert (found["s_max"] > 0).all() and (found["s_max"] <= 1.01 * best["s_max"]).all()
    assert (found["s_min"] <= 1.01 * best["s_min"]).all()


def test_a_pass_that_diverges_is_lost_without_a_word():
    found = probed(["late_projection"], lr=1e30)
    assert (found["sal"] >= 0).all() and (found["s_max"] < math.inf).all()


def test_the_last_batch_is_left_out():
    model, images, targets = small_net(name="lenet5")
    whole = probed([], net=(model, images[:20], targets[:20]), batch_size=10)
    assert probed(["drop_last"], net=(model, images, targets), batch_size=10).equals(whole)


@pytest.mark.parametrize("departures", [[], ["augmented"], list(names.DEPARTURES)])
def test_the_model_is_as_before(departures):
    net = small_net(width=8)
    before = state_of(net[0].train())
    probed(departures, net=net, iterations=1, batch_size=10)
    assert_same_state(before, state_of(net[0]))


def test_unknown_departures_are_refused():
    with pytest.raises(InputError, match="unknown departure 'late'; choose from augmented, drop_last"):
        probed(["late"])


def test_too_few_images_for_one_batch_are_refused():
    with pytest.raises(InputError, match="full batches with drop_last is 0"):
        probed(["drop_last"], batch_size=32)
