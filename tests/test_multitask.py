"""Multi-task networks, their training, weightings, SAL by task, and the cross-task tables on planted records."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ul.base.errors import InputError
from ul.data import Split
from ul.nets import encoders
from ul.sharpness import by_task
from ul.tables import cross_task as cross_tables
from ul.tasks import definitions
from ul.tasks.definitions import Labelled
from ul.training import multitask, victim, weighting
from ul.training.multitask import Recipe

CPU = torch.device("cpu")
NAMES = ["class_object", "edge_texture", "segment_unsup2d"]
QUICK = Recipe(epochs=2, batch_size=16, lr=3e-3, pad=2)


def planted(n=48, side=16, seed=0):
    """Images whose brightness is the class, whose map is the image itself, and whose boundary is its bright half."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    images = torch.rand((n, 3, side, side), generator=rng) * 60 + 70 * y.view(-1, 1, 1, 1)
    ones = torch.ones(n, 1, side, side)
    grey = images.mean(1, keepdim=True)
    labels = {
        "class_object": y,
        "edge_texture": torch.cat([grey / grey.std(), ones], 1),
        "segment_unsup2d": torch.cat([(grey > 100).float(), ones], 1),
    }
    return Labelled(Split(images.to(torch.uint8), {"class_object": y}, "planted/train"), labels)


def network(encoder="resnet8", names=NAMES, seed=0):
    return multitask.make(encoder, names, planted(), seed=seed)


@pytest.mark.parametrize("encoder", encoders.ENCODERS)
def test_outputs_have_the_labels_shape(encoder):
    data, model = planted(), network(encoder)
    found = multitask.outputs(model.train(), data.images[:5])
    assert model.training
    assert found["class_object"].shape == (5, 3)
    for name in NAMES[1:]:
        assert found[name].shape == (5, definitions.TASKS[name].outputs, 16, 16)


@pytest.mark.parametrize("encoder", encoders.ENCODERS)
def test_single_networks_are_the_same_network(encoder):
    model, x = network(encoder).eval(), torch.rand(4, 3, 16, 16)
    together = model(x)
    for name in NAMES:
        torch.testing.assert_close(model.single(name)(x), together[name])
    joint = by_task.Joint(model)(x)
    torch.testing.assert_close(joint, torch.cat([together[n].flatten(1) for n in NAMES], 1))


@pytest.mark.parametrize("encoder", encoders.ENCODERS)
def test_the_routed_encoders_are_known_by_name(encoder):
    assert network(encoder).encoder.routed == (encoder in encoders.ROUTED)


def test_resnet50_has_its_published_size():
    """25,557,032 parameters with 1,000 classes and a 7x7 stem (torchvision's page); here no classifier, a 3x3 stem."""
    encoder = encoders.make("resnet50", channels=3, size=32, tasks=[], seed=0)
    body = 25_557_032 - 1000 * (2048 + 1) - 3 * 64 * (49 - 9)
    assert sum(p.numel() for p in encoder.parameters()) == body


def test_a_seed_gives_the_same_network_and_twins_share_their_start():
    one, other = network(), network()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    alone = network(names=["edge_texture"])
    for a, b in zip(one.encoder.parameters(), alone.encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(one.heads["edge_texture"].parameters(), alone.heads["edge_texture"].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("encoder", ["resnet8", "vit", "mod_squad"])
def test_training_learns_what_is_planted(encoder):
    data, model = planted(), network(encoder)
    nothing = multitask.uninformed(NAMES, data, data)
    losses = multitask.fit(model, data, recipe=replace(QUICK, epochs=40), seed=0, device=CPU)
    found = multitask.evaluate(model, data)
    assert losses[-1] < losses[0] < 5
    assert found["class_object"] > 0.8 and found["edge_texture"] < 0.8 * nothing["edge_texture"]


def test_the_same_seed_gives_the_same_bytes():
    runs = []
    for _ in range(2):
        model = network()
        losses = multitask.fit(model, planted(), recipe=QUICK, seed=3, device=CPU)
        runs.append((losses, [p.detach().clone() for p in model.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


def test_a_task_can_weigh_more():
    data = planted()
    plain = multitask._units(data, NAMES, QUICK)
    heavy = multitask._units(data, NAMES, replace(QUICK, weights=(("class_object", 10.0),)))
    assert plain == dict.fromkeys(NAMES, 1.0) and heavy == plain | {"class_object": 0.1}
    balanced = multitask._units(data, NAMES, replace(QUICK, weighting="balanced"))
    assert balanced["class_object"] == pytest.approx(math.log(3), rel=1e-5)
    even = data.labels["edge_texture"][:, 0]
    assert balanced["edge_texture"] == pytest.approx((even - even.median()).abs().mean().item(), rel=1e-4)


def test_crops_move_images_and_labels_together():
    data, rows = planted(), torch.arange(16)
    red = data.images[:, :1].float() / 255
    data.labels["edge_texture"] = torch.cat([red, torch.ones_like(red)], 1)
    stacked, classes = multitask._stack(data, NAMES, CPU)
    crops = victim.Crops(3, *torch.randint(0, 7, (2, len(rows), 1), generator=torch.Generator().manual_seed(0)), None)
    x, y = multitask._batch(stacked, classes, rows, crops, data, NAMES)
    assert torch.equal(x[:, :1], y["edge_texture"][:, :1]) and not torch.equal(x[:, :1], red[:16])
    valid = y["edge_texture"][:, 1]
    assert 0 < (valid == 0).float().mean() < 0.6 and (x[:, 0][valid == 0] == 0).all()  # from outside the picture
    assert torch.equal(y["class_object"], data.labels["class_object"][:16])


def test_a_loss_that_is_not_finite_stops():
    with pytest.raises(InputError, match=r"planted/train: loss is .* in epoch 1; lower lr"):
        multitask.fit(network(), planted(), recipe=replace(QUICK, lr=1e30), seed=0, device=CPU)


def test_heads_alone_leave_the_encoder():
    model = network()
    multitask.fit(model, planted(), recipe=QUICK, seed=0, device=CPU)
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    fresh = multitask.MultiTask(
        model.encoder, {"class_object": multitask.head(model.encoder, "class_object", planted(), 1)}
    )
    multitask.fit_heads(fresh, planted(), recipe=replace(QUICK, epochs=40), seed=0, batch_size=16)
    assert all(torch.equal(before[k], v) for k, v in model.encoder.state_dict().items())
    assert multitask.evaluate(fresh, planted())["class_object"] > 0.5


# ---- weightings --------------------------------------------------------------------------------------------------


def quadratic():
    """Two losses of one shared weight through one feature, with their own heads fixed at 1."""
    shared = nn.Parameter(torch.tensor([1.0, 2.0]))
    return shared, {"a": (shared * torch.tensor([3.0, 0.0])).sum(), "b": (shared * torch.tensor([0.0, -1.0])).sum()}


def test_equal_is_the_mean():
    shared, losses = quadratic()
    weighting.make("equal", ["a", "b"]).backward(losses, [shared], None)
    assert shared.grad.tolist() == [1.5, -0.5]


def test_uncertainty_has_its_own_weights():
    shared, losses = quadratic()
    joint = weighting.make("uncertainty", ["a", "b"])
    joint.backward(losses, [shared], None)
    assert shared.grad.tolist() == [1.5, -0.5]  # exp(-0) = 1 at the start
    assert {t: p.grad.item() for t, p in joint.log_variances.items()} == {"a": (1 - 3) / 2, "b": (1 + 2) / 2}


@pytest.mark.parametrize("name", weighting.AGGREGATORS)
def test_gradient_weightings_train(name):
    pytest.importorskip("torchjd")
    before, found = [p.detach().clone() for p in network().encoder.parameters()], []
    for outside in (1, 2):  # PCGrad and GradVac shuffle by the global generator
        torch.manual_seed(outside)
        state, model = torch.random.get_rng_state(), network()
        multitask.fit(model, planted(), recipe=replace(QUICK, weighting=name), seed=0, device=CPU)
        assert torch.equal(torch.random.get_rng_state(), state)
        found.append([p.detach() for p in model.encoder.parameters()])
    assert any(not torch.equal(a, b) for a, b in zip(before, found[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_unknown_weightings_and_encoders():
    with pytest.raises(InputError, match=r"'even'.*equal"):
        weighting.make("even", [])
    with pytest.raises(InputError, match=r"'resnet9'.*resnet8"):
        network("resnet9")
    with pytest.raises(InputError, match="routes by task"):
        pytest.importorskip("torchjd")
        multitask.fit(network("mod_squad"), planted(), recipe=replace(QUICK, weighting="mgda"), seed=0, device=CPU)


# ---- SAL by task -------------------------------------------------------------------------------------------------


def test_sal_by_task_is_sal_of_the_tasks_loss():
    model, data = network().eval(), planted()
    x = data.images[:8].float() / 255
    y = {n: data.labels[n][:8] for n in NAMES}
    units = dict.fromkeys(NAMES, 1.0)
    found = by_task.sal_by_task(model, x, y, units, steps=2)
    assert list(found["task"].unique()) == [*NAMES, "joint"]
    assert set(found["layer"]) == set(by_task.encoder_layers(model))
    halved = by_task.sal_by_task(model, x, y, dict.fromkeys(NAMES, 2.0), steps=2)
    np.testing.assert_allclose(halved["sal"], found["sal"] / 2, rtol=0.05)


def test_the_joint_loss_is_the_mean_of_the_tasks():
    model, data = network().eval(), planted()
    x, units = data.images[:8].float() / 255, {"class_object": 2.0, "edge_texture": 1.0, "segment_unsup2d": 0.5}
    joint = by_task.Joint(model)
    loss = joint.loss(x, {n: data.labels[n][:8] for n in NAMES}, units)
    rows = torch.tensor([5, 1, 3])
    expected = [definitions.TASKS[n].loss(model.single(n)(x[rows]), data.labels[n][rows]) / units[n] for n in NAMES]
    torch.testing.assert_close(loss(joint(x[rows]), rows), torch.stack(expected).mean())


def test_a_routed_encoder_shares_no_gates():
    layers = by_task.encoder_layers(network("mod_squad"))
    assert layers and not any("gates" in name or "experts" in name for name in layers)


def test_gradients_of_a_task_and_of_its_opposite():
    model, data = network().eval(), planted()
    x, y = data.images[:8].float() / 255, {n: data.labels[n][:8] for n in NAMES}
    found = by_task.conflict(model, x, y)
    assert len(found) == 3 and found["cosine"].abs().max() <= 1 + 1e-6
    vectors = {"a": torch.tensor([1.0, 0]), "b": torch.tensor([-2.0, 0]), "c": torch.tensor([0.0, 3])}
    assert by_task.similarity(vectors)["cosine"].tolist() == [-1, 0, 0]
    assert all(p.grad is None for p in model.parameters())


# ---- tables ------------------------------------------------------------------------------------------------------


def record(method, seed, own, depth, sal=(1.0, 2.0)):
    scores = [
        {"regime": "multi", "task": "class_object", "value": own},
        {"regime": "multi", "task": "depth_euclidean", "value": depth},
    ]
    probes = [
        {"epoch": e, "layer": ["a", "b"], "weights": [1, 1], "conflict": [
            {"task": "class_object", "other": "depth_euclidean", "cosine": -0.5}],
         "sal": {"class_object": list(sal), "depth_euclidean": [2.0, 1.0], "joint": [1.0, 3.0]}}
        for e in (1, 2)
    ]  # fmt: skip
    config = {"dataset": "rooms", "encoder": "resnet8", "seed": seed, "method": method}
    return {"config": config, "uninformed": {"class_object": 0.1, "depth_euclidean": 2.0}, "scores": scores,
            "probes": probes}  # fmt: skip


def study():
    runs = [record("clean", s, 0.6, 1.0) for s in range(3)]
    runs += [record("em", s, 0.1 + 0.05 * s, 1.1, sal=(2.0, 1.0)) for s in range(3)]
    return [*runs, *(record("noise", s, 0.6, 1.0) for s in range(3))]


def test_scores_are_tidy():
    frame = cross_tables.scores(study())
    assert list(frame.columns) == cross_tables.COLUMNS and len(frame) == 3 * 2 * 3 + 3 * 2
    depth = frame[(frame.task == "depth_euclidean") & (frame.method == "uninformed")]
    assert (depth.value == 2.0).all() and (depth.metric == "RMSE (metres)").all()


def test_protection_is_the_share_of_the_gap():
    table = cross_tables.protection(cross_tables.scores(study()), "class_object").set_index(["method", "task"])
    assert table.loc[("em", "class_object"), "protection"] == pytest.approx((1.0 + 0.9 + 0.8) / 3)
    assert table.loc[("em", "depth_euclidean"), "protection"] == pytest.approx(0.1)  # an error: lower is better
    assert (table.loc["noise", "protection"] == 0).all()


def test_a_task_that_is_not_learnt_has_no_protection():
    frame = cross_tables.scores(study())
    frame.loc[(frame.method == "clean") & (frame.task == "depth_euclidean"), "value"] = 2.5
    table = cross_tables.protection(frame, "class_object").set_index(["method", "task"])
    assert math.isnan(table.loc[("em", "depth_euclidean"), "protection"])


def test_delta_m_turns_the_sign_of_errors():
    table = cross_tables.delta_m(cross_tables.scores(study())).set_index("method")
    changes = [((0.1 + 0.05 * s) / 0.6 - 1) / 2 * 100 - 0.1 / 2 * 100 for s in range(3)]
    assert table.loc["em", "delta_m"] == pytest.approx(np.mean(changes)) and table.loc["noise", "delta_m"] == 0


def test_clean_runs_are_needed():
    frame = cross_tables.scores(study())
    with pytest.raises(InputError, match="no clean multi run of class_object"):
        cross_tables.protection(frame[frame.method != "clean"], "class_object")


def test_pairs_and_layers():
    pairs = cross_tables.alike(study()).set_index("method")
    assert pairs.loc["clean", "sal"] == pytest.approx(4 / 5) and pairs.loc["em", "sal"] == pytest.approx(1)
    assert pairs.loc["em", "gradient"] == pytest.approx(-0.5)
    ratio = cross_tables.layers(study()).set_index(["method", "task", "layer"])["ratio"]
    assert ratio["em", "class_object", "a"] == pytest.approx(2) and ratio["em", "joint", "b"] == pytest.approx(1)


def test_ud_by_task():
    table = cross_tables.unlearnable(study()).set_index(["method", "task"])
    assert table.loc[("noise", "joint"), "ud"] == pytest.approx(1)
    assert isinstance(table, pd.DataFrame) and set(table.index.get_level_values("task")) == {
        "class_object", "depth_euclidean", "joint",
    }  # fmt: skip


def test_a_change_from_nothing_is_not_a_number():
    frame = cross_tables.scores(study())
    frame.loc[(frame.method == "clean") & (frame.task == "class_object") & (frame.seed == 1), "value"] = 0
    table = cross_tables.delta_m(frame).set_index("method")
    assert math.isnan(table.loc["em", "delta_m"])
