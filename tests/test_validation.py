"""Curves along a known truth and steadiness of rankings, on planted records."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats

from tests.test_sal import small_net
from tests.test_victims import SETTINGS
from ul.base import names
from ul.base.errors import InputError
from ul.sharpness import sal
from ul.studies import conditions, images, rival_scores, validation, victims
from ul.studies.description import Sets
from ul.studies.victims import Sal
from ul.tables import validation as tables
from ul.tables.validation import Choice
from ul.training import defenses, victim

LAYERS = 10
CLEAN = [5, 5]  # learnable layers of the clean run at its two probed epochs


def probe(counts):
    """SAL by epoch with this many layers at 2 and the rest at 1; the clean threshold is then 1.5."""
    names, weights = [f"l{i}" for i in range(LAYERS)], [10 ** (i % 3) for i in range(LAYERS)]
    return [
        {"epoch": e + 1, "layer": names, "weights": weights, "sal": [2.0] * n + [1.0] * (LAYERS - n)}
        for e, n in enumerate(counts)
    ]


def run(method, seed, counts, accuracy=0.5, also=None, **config):
    config = {"method": method, "seed": seed, "share": 1.0, "label_noise": 0.0, "eps": 8 / 255} | config
    other = {"also": {name: {"sal": probe(c)} for name, c in also.items()}} if also else {}
    return {"config": config, "history": {"test_accuracy": [0.0, accuracy]}, "sal": probe(counts)} | other


def test_ways_change_one_setting_at_a_time():
    base = Sal(images=40)
    for name, way in validation.ways(base, [0.05, 0.1], [10, 40, 160]).items():
        changed = {k for k in asdict(base) if getattr(way, k) != getattr(base, k)}
        assert len(changed) == 1, name


def test_ways_on_no_image_are_refused():
    with pytest.raises(InputError, match="images to probe on is 0; it must be at least 1"):
        validation.ways(Sal(images=2), [0.05], [0, 8])


def test_departures_are_the_named_ones_and_all_together():
    base = Sal(images=40)
    found = validation.departures(base, ["late_projection"])
    assert {name: way.departures for name, way in found.items()} == {
        "public: late_projection": ("late_projection",), "public: all": tuple(names.DEPARTURES),
    }  # fmt: skip
    assert len(validation.departures(base)) == len(names.DEPARTURES) + 1
    with pytest.raises(InputError, match=r"late_projektion.*late_projection"):
        validation.departures(base, ["late_projektion"])


def test_distance_follows_the_choice():
    clean = run("clean", 0, CLEAN, also={"linf": [2, 2]})
    other = run("lsp", 0, [1, 4], also={"linf": [1, 2]})
    assert tables.distance(other, clean) == 5 / 10
    assert tables.distance(other, clean, Choice(first=1)) == 4 / 5
    assert tables.distance(other, clean, Choice(way="linf")) == 3 / 4
    weights = np.array(clean["sal"][0]["weights"])
    expected = (weights[:1].sum() + weights[:4].sum()) / (2 * weights[:5].sum())
    assert tables.distance(other, clean, Choice(unit="weights")) == pytest.approx(expected)


def test_a_clean_twin_that_counts_too_few_layers_carries_no_distance():
    """The same rule as the benchmark's, by every choice: a fifth of the layers and epochs that it looks at."""
    layers = len(run("clean", 0, CLEAN)["sal"][0]["sal"])
    one = run("clean", 0, [1, 1])
    assert 2 / (2 * layers) < 0.2 and math.isnan(tables.distance(one, one))
    late = run("clean", 0, [1, layers // 2])
    assert tables.distance(late, late, Choice(first=1)) == 1


def test_a_seed_without_distance_is_in_no_mean():
    clean = {0: run("clean", 0, CLEAN), 1: run("clean", 1, [1, 1])}
    runs = [run("lsp", s, [n, n], share=k / 3) for s in (0, 1) for k, n in enumerate((5, 4, 3, 2))]
    found = tables.trend(tables.curve(runs, clean, "share"), "ud_layers")
    assert (found.estimate, found.n) == (-1, 1)
    alone = tables.trend(tables.curve(runs[4:], clean, "share"), "ud_layers")
    assert math.isnan(alone.estimate) and alone.n == 0


def test_clean_runs_are_those_without_poison_and_label_noise():
    runs = [run("clean", 0, CLEAN), run("lsp", 1, CLEAN, share=0.0), run("clean", 2, CLEAN, label_noise=0.5)]
    assert set(tables.twins(runs)) == {0, 1}


def test_a_curve_has_a_row_a_run():
    clean = {s: run("clean", s, CLEAN) for s in (0, 1)}
    runs = [run("lsp", s, [5 - k, 5 - k], 0.9 - k / 10, share=k / 5) for k in range(4) for s in (0, 1)]
    frame = tables.curve(runs, clean, "share")
    assert frame["ud_layers"].tolist() == pytest.approx(np.repeat([1, 0.8, 0.6, 0.4], 2).tolist())
    assert frame["test_accuracy"].tolist() == pytest.approx(np.repeat([0.9, 0.8, 0.7, 0.6], 2).tolist())
    assert (frame["axis"] == "share").all() and frame["value"].tolist() == np.repeat([0, 0.2, 0.4, 0.6], 2).tolist()


def test_trend_is_kendalls_tau_over_seeds():
    clean = {s: run("clean", s, CLEAN) for s in (0, 1, 2)}
    falling, mixed, flat = [5, 4, 3, 2], [5, 2, 4, 3], [5, 5, 5, 5]
    runs = [run("lsp", s, [n, n], share=k / 3) for s, ns in enumerate((falling, mixed, flat)) for k, n in enumerate(ns)]
    found = tables.trend(tables.curve(runs, clean, "share"), "ud_layers")
    taus = [-1, scipy_stats.kendalltau(range(4), mixed)[0], 0]
    assert found.estimate == pytest.approx(np.mean(taus)) and found.n == 3


def grid():
    """Methods a < b < c by their own SAL; the other way to probe turns a and c in seed 1."""
    own = {"clean": 5, "a": 1, "b": 2, "c": 4}
    other = {0: own, 1: own | {"a": 4, "c": 1}}
    return [
        run(m, s, [n, n], also={"other": [other[s][m]] * 2, "flat": [5, 5], "dead": [0, 0]})
        for s in (0, 1)
        for m, n in own.items()
    ]


CHOICES = {"default": Choice(), "other": Choice(way="other"), "flat": Choice(way="flat"), "dead": Choice(way="dead")}


def test_every_choice_gives_a_log_distance_a_run():
    frame = tables.by_choice(grid(), CHOICES).set_index(["choice", "seed", "method"])["log_ud"].sort_index()
    assert frame.loc["default", 0].to_dict() == pytest.approx(
        {m: math.log(n / 5) for m, n in zip("abc", (1, 2, 4), strict=True)}
    )
    assert frame.loc["other", 1, "a"] == pytest.approx(math.log(4 / 5))
    assert frame.loc["dead"].isna().all()


def test_zero_is_raised_to_half_a_layer():
    runs = [run("clean", 0, CLEAN), run("lsp", 0, [0, 0])]
    frame = tables.by_choice(runs, {"default": Choice(), "late": Choice(first=1)})
    assert frame["log_ud"].tolist() == pytest.approx([math.log(0.5 / 10), math.log(0.5 / 5)])


def test_steadiness_against_the_default():
    frame = tables.steadiness(tables.by_choice(grid(), CHOICES), "default")
    assert frame.index[0] == "another seed" and frame.loc["another seed", ["tau", "n"]].tolist() == [1, 1]
    assert frame.loc["default", ["tau", "tau_of_means"]].tolist() == [1, 1]
    assert frame.loc["other", "tau"] == 0 and frame.loc["other", "n"] == 2
    assert frame.loc["flat", "tau"] == 0
    assert np.isnan(frame.loc["dead", "tau"]) and frame.loc["dead", "n"] == 0  # no seed has a UD to be steady
    assert (frame["accuracy_tau"].dropna() == 0).all()  # every run has the same accuracy


def test_a_choice_may_order_as_accuracy_does():
    runs = [run("clean", 0, CLEAN)] + [
        run(m, 0, [n, 6 - n], a) for m, n, a in (("a", 1, 0.2), ("b", 2, 0.3), ("c", 4, 0.7))
    ]
    frame = tables.steadiness(tables.by_choice(runs, {"early": Choice(), "late": Choice(first=1)}), "late")
    assert frame.loc["late", "accuracy_tau"] == -1 and np.isnan(frame.loc["late", "accuracy_tau_low"])
    assert frame.loc["early", ["tau", "accuracy_tau"]].tolist() == [0, 0]  # six layers for all


def test_seeds_that_disagree_are_the_yardstick():
    runs = [run("clean", s, CLEAN) for s in range(3)]
    for seed, counts in enumerate([(1, 2, 3), (1, 2, 3), (3, 2, 1)]):
        runs += [run(m, seed, [n, n]) for m, n in zip("abc", counts, strict=True)]
    frame = tables.steadiness(tables.by_choice(runs, {"default": Choice()}), "default")
    assert frame.loc["another seed", ["tau", "n"]].tolist() == pytest.approx([-1 / 3, 3])


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([1, 2, 3], [4, 5, 9], 1),
        ([1, 2, 3], [9, 5, 4], -1),
        ([1, 2], [3, 3], 0),
        ([1, math.nan], [1, 2], math.nan),
        ([1], [2], 0),
    ],
)
def test_tau_by_hand(a, b, expected):
    assert tables.tau(a, b) == pytest.approx(expected, nan_ok=True)


def test_a_score_that_orders_as_accuracy_does_agrees():
    rows = [{"method": m, "seed": s, "test_accuracy": a, "same": 2 * a, "turned": -a, "flat": 1.0}
            for s in (0, 1) for m, a in (("a", 0.1), ("b", 0.3), ("c", 0.2))]  # fmt: skip
    frame = tables.agreement(pd.DataFrame(rows), ["same", "turned", "flat"]).set_index("score")
    assert frame["tau"].tolist() == pytest.approx([1, -1, 0]) and (frame["n"] == 2).all()


# ---- The same function with other weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_rescaling_leaves_the_function_and_relative_sal(factor):
    model, images, targets = small_net()
    before, found = model.eval()(images), sal.per_layer(model, images, targets, tolerance=0.0)
    length = model.block1a.conv1.weight.norm().item()
    rival_scores.rescaled(model, images[:1], factor)
    assert model.block1a.conv1.weight.norm().item() == pytest.approx(factor * length, rel=1e-5)
    torch.testing.assert_close(model(images), before, rtol=1e-3, atol=1e-4)
    again = sal.per_layer(model, images, targets, tolerance=0.0)
    assert again["sal"].tolist() == pytest.approx(found["sal"].tolist(), rel=0.01)
    assert again["radius"].iloc[0] == pytest.approx(factor * found["radius"].iloc[0], rel=1e-5)


def test_rescaling_needs_a_batch_norm():
    model, images, _ = small_net(name="lenet5")
    with pytest.raises(InputError, match="no convolution before a batch norm"):
        rival_scores.rescaled(model, images[:1], 2.0)


@pytest.fixture(scope="module")
def quick():
    """A run of a second, and its images."""
    config = SETTINGS | {"epochs": 1, "probe_epochs": 1, "limit": 32, "sal_images": 8}
    run = conditions.one(config)[0]
    return run, images.sets(run.images)


def test_rescaled_victims_have_the_same_sal(quick):
    run, given = quick
    found = pd.DataFrame(rival_scores.rescaled_sal(run, given, (0.3, 1.0, 3.0))["rows"])
    assert found["factor"].unique().tolist() == [0.3, 1.0, 3.0] and found["layer"].nunique() == len(found) / 3
    assert (found[found["factor"] == 1]["ratio"] == 1).all()
    assert found["ratio"].tolist() == pytest.approx([1] * len(found), rel=0.1)


def test_scores_are_of_the_images_that_are_given(quick):
    """Perturbations are separable by a line where each class has its own, and not where there are none."""
    run, given = quick
    model = victims.fit(run, given, *defenses.make("none").applied(given.own))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    labels = given.clean.targets[run.images.target]
    moved = (given.clean.images.int() + 10 * (labels % 2).view(-1, 1, 1, 1)).clamp(max=255).to(torch.uint8)
    shifted = Sets(replace(given.own, images=moved), given.clean, given.test)
    clean = Sets(given.clean, given.clean, given.test)
    found, none = (rival_scores.scores_of(run, model, sets, draws=3) for sets in (shifted, clean))
    assert found["separability"] > none["separability"]
    assert found["gradient_norm"] != none["gradient_norm"] and found["recovered"] == none["recovered"]
    assert all(0 <= found[name] <= 1 for name in ("certified", "certified_bound", "recovered", "separability"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- Which runs ----------------------------------------------------------------------------------------------------


def test_an_axis_changes_one_setting_of_the_images(quick):
    run, _ = quick
    for axis in validation.AXES:
        found = validation.varied(run, axis, [0.1, 0.2], 2)
        assert [(getattr(r.images, axis), r.seed) for r in found] == [(v, s) for v in (0.1, 0.2) for s in (0, 1)]
        assert [r.images.poison_seed for r in found] == [r.seed for r in found]
        same = {axis: getattr(run.images, axis), "poison_seed": 0}
        assert {conditions.of(replace(r, seed=0), **same) for r in found} == {run}


def test_methods_come_after_clean_from_a_folder_of_poisons(quick, tmp_path):
    run, _ = quick
    for seed in (0, 1):
        (tmp_path / f"rooms-lsp-{seed}.npz").write_bytes(b"")
    found = validation.methods_of(run, ["lsp"], 2, str(tmp_path))
    files = [(r.images.method, r.images.poison, r.seed) for r in found]
    assert files == [("clean", None, s) for s in (0, 1)] + [("lsp", f"{tmp_path}/rooms-lsp-{s}.npz", s) for s in (0, 1)]
    with pytest.raises(InputError, match="methods is empty"):
        validation.methods_of(run, [], 2, None)


def test_choices_change_one_setting_at_a_time():
    found = tables.countings(4) | {name: choice for name, choice in tables.probings(["linf"]).items()}
    base = asdict(found.pop("default"))
    assert all(sum(asdict(choice)[k] != base[k] for k in base) == 1 for choice in found.values())
    assert len({tuple(asdict(choice).values()) for choice in found.values()}) == len(found)
    assert found["late half"].first == 2 and found["last epoch"].first == 3 and found["linf"].way == "linf"


def test_scores_of_all_runs_stand_in_one_table():
    runs = [run(m, s, [n, n], 0.5) for s in (0, 1) for m, n in (("clean", 5), ("lsp", 1))]
    for record in runs:
        record["history"]["train_accuracy"] = [0.1, 0.9]
        record["scores"] = {"certified": 0.25}
    found = tables.score_table(runs).set_index(["method", "seed"])
    assert found.loc[("lsp", 1)].to_dict() == pytest.approx(
        {"test_accuracy": 0.5, "gap": 0.4, "ud_layers": 0.2, "certified": 0.25}
    )
    assert (found.loc["clean", "ud_layers"] == 1).all()


@pytest.mark.slow
def test_the_whole_study_is_read_where_it_is_finished(tmp_path, monkeypatch):
    config = SETTINGS | {
        "epochs": 1, "seeds": 1, "probe_epochs": 1, "limit": 32, "sal_images": 8, "architecture": "resnet8",
        "methods": ["noise"], "varied": "noise", "poisons": None, "epsilons": [0.05], "departed": ["drop_last"],
        "shares": [0.5], "label_noises": [0.5], "levels": [16], "draws": 2, "sam": 0.05,
    }  # fmt: skip
    monkeypatch.setattr(validation, "ways", lambda base, *_: {"1 steps": replace(base, steps=1)})
    monkeypatch.setattr(validation, "departures", lambda *_: {})
    first = validation.study(config, jobs=1, folder=tmp_path)
    assert {axis: len(runs) for axis, runs in first["varied"].items()} == dict.fromkeys(validation.AXES, 1)
    assert [*first["runs"][0]["also"]] == first["ways"] == ["1 steps"] and "scores" in first["runs"][1]
    assert first["flat"][0]["config"]["recipe"]["sam"] == 0.05 and len(first["rescaled"]) % 3 == 0
    monkeypatch.setattr(victim, "fit", None)
    assert json.dumps(validation.study(config, jobs=1, folder=tmp_path)) == json.dumps(first)
