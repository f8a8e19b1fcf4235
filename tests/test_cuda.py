"""What holds on a GPU: skipped where there is none."""

from dataclasses import replace

import pytest
import torch

from tests import canary
from ul import poisons, sal
from ul.data import pixels
from ul.nets import classifiers
from ul.nets.device import deterministic
from ul.training import defenses, victim

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
RECIPE = victim.Recipe(epochs=2, batch_size=16)


def trained(split, defense="none"):
    model = classifiers.make("resnet18", channels=3, classes=4, size=32, seed=0, width=8)
    victim.fit(model, split, split, recipe=RECIPE, defense=defenses.make(defense), seed=0, device="cuda")
    return model


def probed(model, split, **options):
    x = pixels.to_float(split.images).cuda().contiguous(memory_format=torch.channels_last)
    return sal.per_layer(model, x, split.targets["label"].cuda(), **options)


@pytest.mark.parametrize("defense", ["none", "jpeg", "mixup"])
def test_one_seed_trains_and_is_probed_to_the_same_bytes_twice(defense):
    split = canary.split()
    with deterministic("cuda"):
        (one, first), (other, second) = (
            (m, probed(m, split)) for m in (trained(split, defense), trained(split, defense))
        )
    assert torch.equal(classifiers.vector(one), classifiers.vector(other)) and first.equals(second)


def test_a_poison_is_the_same_twice():
    with deterministic("cuda"):
        made = [poisons.make("em", canary.split(), seed=0, device="cuda", recipe="cpu", rounds=1) for _ in range(2)]
    assert made[0].digest() == made[1].digest()


def test_steps_in_tf32_are_the_default_and_find_what_float32_finds():
    split = canary.split()
    model = trained(split)
    usual, wanted, named = (probed(model, split, precision=p)["sal"] for p in (None, "float32", "tf32"))
    assert usual.tolist() == named.tolist()
    assert ((usual / wanted - 1).abs() < 0.01).all()


def test_draws_are_the_same_as_on_the_cpu():
    split, models = canary.split(), []
    for device in ("cpu", "cuda"):
        model = classifiers.make("linear", channels=3, classes=4, size=32, seed=0)
        victim.fit(
            model, split, None, recipe=replace(RECIPE, lr=0.01), defense=defenses.make("none"), seed=0, device=device
        )
        models.append(classifiers.vector(model).cpu())
    torch.testing.assert_close(*models, rtol=0.05, atol=2e-3)  # bfloat16 on the GPU


def test_determinism_is_asked_for_inside_only():
    with deterministic("cuda"):
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
