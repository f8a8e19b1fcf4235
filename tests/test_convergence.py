"""The convergence study on tiny real runs, its tables against planted answers, its figures and errors."""

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from tests.imports import ROOT
from ul.base import parameters
from ul.base.errors import InputError
from ul.figures import convergence as figures
from ul.figures import explorer
from ul.studies import convergence, flatness, paths, surfaces
from ul.studies.convergence import Followed
from ul.tables import convergence as tables
from ul.training import victim

CONFIG = {
    "dataset": "mnist", "root": str(ROOT / "data"), "limit": 120, "methods": ["lsp"], "poisons": None, "eps": None,
    "recipe": "cpu", "architecture": "lenet5", "features": 12, "start": 0, "share": 1.0, "epochs": 2, "seeds": 3,
    "points": 4, "probe_epochs": 1, "looked": 16, "grid": 3, "surface_images": 8, "flat_seeds": 1, "flat_methods": [],
    "shown": ["lsp"], "freeze": ["random"],
}  # fmt: skip


def small_study() -> SimpleNamespace:
    chosen = convergence.planned(CONFIG)
    given = convergence.sets(chosen)
    return SimpleNamespace(chosen=chosen, given=given, runs=convergence.run_all(chosen, given, jobs=1))


@pytest.fixture(scope="module")
def study() -> SimpleNamespace:
    return small_study()


def run_of(study, method: str, seed: int = 0) -> Followed:
    return next(r for r in study.runs if (r.method, r.seed) == (method, seed))


def moved_of(study) -> tuple[np.ndarray, convergence.Sets]:
    """The parameters' layers, and the sets that are moved of every poisoned run."""
    owners = paths.owners(paths.network(study.chosen[0], study.given["clean"]))
    return owners, convergence.held_sets(study.runs, owners, convergence.masks(study.runs))


def counted(monkeypatch, module, name: str, fails=lambda number, *given, **options: None) -> list[int]:
    """A function of a module counted: fails(number, ...) is called first, with the number of the call."""
    real, calls = getattr(module, name), []

    def call(*given, **options):
        calls.append(len(calls) + 1)
        fails(calls[-1], *given, **options)
        return real(*given, **options)

    monkeypatch.setattr(module, name, call)
    return calls


def test_all_runs_share_their_start_and_seeds_part(study):
    starts = np.stack([run.weights[0] for run in study.runs])
    assert (starts == starts[0]).all()
    assert not np.array_equal(run_of(study, "clean", 0).weights[1], run_of(study, "clean", 1).weights[1])


def test_runs_repeat_their_bytes_in_other_processes(study):
    again = convergence.run_all(study.chosen[:4:3], study.given, jobs=2)
    for run, other in zip(study.runs[:4:3], again, strict=True):
        assert np.array_equal(run.weights, other.weights)
    assert again[0].record == study.runs[0].record


def test_records_hold_every_epoch_from_the_start(study):
    rows = tables.epochs({"runs": [run.record for run in study.runs]})
    assert list(rows.groupby(["method", "seed"]).size()) == [3] * 6
    assert rows[rows.epoch == 0]["distance"].eq(0).all() and rows[rows.epoch > 0]["distance"].gt(0).all()
    assert rows["curvature"].notna().sum() == 6 and rows[rows.epoch > 0]["train_loss"].notna().all()


def test_lengths_are_those_between_the_recorded_steps(study):
    run = run_of(study, "lsp")
    lengths = np.linalg.norm(np.diff(run.weights.astype(float), axis=0), axis=1)
    assert run.record["path"]["lengths"] == pytest.approx(lengths.tolist(), rel=1e-4)
    assert run.record["path"]["steps"] == run.path.steps == [0, 1, 2, 3, 4]


def test_the_poison_alone_makes_the_difference(study):
    """A poisoned run whose images are the clean ones is the clean run."""
    same = paths.follow(study.chosen[-3], study.given["clean"])
    assert same["config"]["method"] == "lsp"
    assert np.array_equal(same["arrays"]["weights"], study.runs[0].weights)


def test_seeds_draw_their_share_of_images_the_same_in_every_condition(study):
    run = replace(study.chosen[0], drawn=0.5)
    poisoned = replace(run, images=replace(run.images, method="lsp"))
    own, other = (paths.drawn(r, study.given["clean"].own) for r in (run, poisoned))
    assert len(own) == 60 and torch.equal(own.images, other.images)
    assert not torch.equal(paths.drawn(replace(run, seed=1), study.given["clean"].own).images, own.images)


def test_a_linear_network_sees_twelve_components_of_unit_variance_through_120_weights():
    chosen = convergence.planned(CONFIG | {"architecture": "linear", "methods": ["noise"], "epochs": 40})
    given = convergence.sets(chosen)
    both = torch.cat([s.own.images for s in given.values()]).float() / 255
    features = given["clean"].features(both)
    torch.testing.assert_close(features.T @ features / len(both), torch.eye(12), atol=1e-3, rtol=0)
    assert paths.vector(paths.network(chosen[0], given["clean"])).shape == (120,)
    run = paths.follow(chosen[0], given["clean"])
    assert run["arrays"]["weights"].shape[1] == 120 and run["epochs"][-1]["test_accuracy"] > 0.4


def test_frozen_runs_leave_the_chosen_weights_at_their_start(study):
    keep = np.arange(study.runs[0].weights.shape[1]) % 2 == 0
    weights = paths.follow(study.chosen[0], study.given["clean"], keep)["arrays"]["weights"]
    moved = weights[-1] - weights[0]
    assert not moved[keep].any() and moved[~keep].any()


def test_interventions_end_at_both_runs(study, monkeypatch):
    owners, sets = moved_of(study)
    whole = {key: named | {"all": np.ones(len(owners), dtype=bool)} for key, named in sets.items()}
    monkeypatch.setattr(convergence, "biting", lambda runs: ["lsp"])
    rows = convergence.interventions(study.chosen, study.given, study.runs, whole, ["random"], jobs=1)
    table = tables.interventions({"interventions": rows, "biting": ["lsp"]})
    assert table["seed"].is_monotonic_increasing
    for (_, seed), part in table.groupby(["method", "seed"]):
        by = part.set_index(["do", "moved"])["accuracy"]
        own, clean = run_of(study, "lsp", seed), run_of(study, "clean", seed)
        assert by["transplant", "nothing"] == own.accuracy and by["transplant", "everything"] == clean.accuracy
        assert by["transplant", "all"] == pytest.approx(clean.accuracy, abs=1e-6)
        assert ("freeze", "random") in by and len(by) == 2 + 5 + 1
    assert convergence.repeated([], study.given, sets, "random") == []


def test_a_poison_that_does_not_bite_is_not_repeated(study, monkeypatch):
    monkeypatch.setattr(convergence, "biting", lambda runs: [])
    rows = convergence.interventions(study.chosen, study.given, study.runs, moved_of(study)[1], ["rest"], jobs=1)
    assert {row["do"] for row in rows} == {"transplant"}


def test_sets_have_one_size_and_the_random_one_keeps_the_layers():
    owners = np.repeat(["a", "b"], [30, 70])
    mask = np.zeros(100, dtype=bool)
    mask[[0, 1, 2, 40]] = True
    gap = np.arange(100.0)
    sets = convergence.sets_of(mask, gap, owners, seed=0)
    assert list(np.flatnonzero(sets["largest"])) == [96, 97, 98, 99]
    assert sets["random"][:30].sum() == 3 and sets["random"][30:].sum() == 1
    assert (sets["rest"] == ~mask).all()


def test_batch_statistics_are_taken_anew_for_moved_weights():
    chosen = convergence.planned(CONFIG | {"architecture": "resnet8", "limit": 400, "epochs": 16, "points": 1})
    given = convergence.sets(chosen)
    run = paths.follow(chosen[0], given["clean"])
    accuracy, weights = run["epochs"][-1]["test_accuracy"], torch.from_numpy(run["arrays"]["weights"][-1])
    seen = paths.accuracy(chosen[0], given["clean"], weights, [given["clean"].own])
    assert accuracy > 0.5 and abs(seen - accuracy) < 0.1


# ---- Tables --------------------------------------------------------------------------------------------------------


def walked(
    method: str, seed: int, weights, losses=(2.0, 1.0, 0.1, 0.0), accuracies=(0.1, 0.5, 0.9, 0.7, 0.6)
) -> Followed:
    rows = [{"epoch": e, "test_accuracy": a} for e, a in enumerate(accuracies)]
    for row, loss in zip(rows[1:], losses, strict=True):
        row["train_loss"] = loss
    weights = np.array(weights, dtype=np.float32)
    path = {"steps": list(range(len(weights))), "lengths": np.linalg.norm(np.diff(weights, axis=0), axis=1).tolist()}
    return Followed({"config": {"method": method, "seed": seed}, "epochs": rows, "path": path}, weights)


def test_convergence_is_nine_tenths_of_the_fall():
    line = [[0.0], [4.0], [6.0], [7.0], [8.0]]
    row = tables.moments({"runs": [walked("clean", s, line).record for s in range(2)]}).iloc[0]
    assert row["converged"] == 3 and row["accuracy_then"] == 0.7
    assert row["later"] == pytest.approx(-0.1) and row["walked_after"] == pytest.approx(1 / 8)


def test_shares_are_counted_by_layer_and_against_the_null():
    owners = np.array(["a", "a", "b", "b"])
    masks = {"clean": np.array([True, False, False, False]), "em": np.array([True, True, True, False])}
    runs = [walked(m, s, [[0.0] * 4, [1.0 + s] * 4]) for m in masks for s in range(3)]
    found = convergence.differences(runs, {(m, s): masks[m] for m in masks for s in range(3)}, owners)
    layers = [["all", 4], ["a", 2], ["b", 2]]
    table = tables.shares({"differences": found, "layers": layers}).set_index(["method", "layer"])
    assert table.loc[("em", "all"), ["share", "beyond", "n"]].tolist() == [0.75, 0.5, 3]
    assert table.loc[("em", "b"), ["share", "weights"]].tolist() == [0.5, 2]


def test_concentration_tells_one_mover_from_many():
    still, one, all_ = np.zeros((2, 10)), np.zeros((2, 10)), np.zeros((2, 10))
    one[1, 3], all_[1] = 5, 5
    runs = [walked("clean", s, still + s * all_ / 10) for s in range(3)]
    runs += [walked("em", s, still + one + s * all_ / 10) for s in range(3)]
    owners, none = np.repeat("a", 10), np.zeros(10, dtype=bool)
    found = {"differences": convergence.differences(runs, {(r.method, r.seed): none for r in runs}, owners)}
    table = tables.concentration(found).set_index("method")
    assert table.loc["em", "gini"] == pytest.approx(0.9) and table.loc["em", "top"] == pytest.approx(1)
    assert table.loc["clean", "gini"] == pytest.approx(0) and table.loc["clean", "top"] == pytest.approx(0.1)
    curves = tables.inequality(found)
    assert curves["clean"][[0, 100, 200]] == pytest.approx([0, 0.5, 1]) and len(curves["em"]) == convergence.CURVE
    assert curves["em"][180] == pytest.approx(0, abs=1e-6) and curves["em"][200] == pytest.approx(1)


def test_distances_are_to_the_clean_run_of_the_seed_and_of_the_next_one():
    runs = [walked("clean", s, [[0.0], [2.0**s]]) for s in range(3)] + [walked("em", 1, [[0.0], [5.0]])]
    found = {key: value.item() * 2**0.5 for key, value in convergence.distances(runs).items()}
    assert found == pytest.approx({("clean", 0): 1, ("clean", 1): 2, ("clean", 2): 3, ("em", 1): 3})


def test_biting_poisons_take_five_points():
    runs = [
        walked(m, 0, [[0.0]] * 5, accuracies=(0, 0, 0, 0, a)) for m, a in (("clean", 0.8), ("em", 0.7), ("ops", 0.78))
    ]
    assert convergence.biting(runs) == ["em"]


def test_no_gap_no_recovery():
    known = {"nothing": 0.2, "everything": 0.8, "x": 0.5}
    rows = [{"method": "em", "seed": 0, "do": "transplant", "moved": m, "accuracy": a} for m, a in known.items()]
    found = {"interventions": rows, "biting": []}
    assert tables.interventions(found)["recovered"].isna().all()
    found["biting"] = ["em"]
    assert tables.interventions(found)["recovered"].tolist() == pytest.approx([0, 1, 0.5])


def test_recovery_is_counted_from_the_runs_seed_over_the_methods_mean_gap():
    known = {0: {"nothing": 0.2, "everything": 0.8, "x": 0.5}, 1: {"nothing": 0.4, "everything": 0.6, "x": 0.5}}
    rows = [
        {"method": "em", "seed": s, "do": "transplant", "moved": m, "accuracy": a}
        for s, by in known.items()
        for m, a in by.items()
    ]
    table = tables.interventions({"interventions": rows, "biting": ["em"]})
    assert table[table["moved"] == "x"]["recovered"].tolist() == pytest.approx([0.3 / 0.4, 0.1 / 0.4])


# ---- Planes, flatness, figures -------------------------------------------------------------------------------------


def sets_and_paths(study):
    """The poisoned run of seed 0, what it and the clean one train on, and both paths."""
    run = next(run for run in study.chosen if run.images.method == "lsp")
    weights = [run_of(study, method).weights for method in ("lsp", "clean")]
    return run, study.given["lsp"], study.given["clean"], *weights


def test_planes_hold_both_paths_and_both_objectives(study):
    record = surfaces.joint(*sets_and_paths(study), grid=3, images=20)
    view = tables.views({"lsp": json.loads(json.dumps(record))}, ["lsp"])["lsp"]
    assert list(view.surfaces) == ["clean images", "lsp images"] and view.surfaces["clean images"].shape == (3, 3)
    assert list(view.paths) == ["clean", "lsp"] and "of variance" in view.labels[0]
    inside = [(view.xs[0] < p[:, 0]).all() and (p[:, 1] < view.ys[-1]).all() for p in view.paths.values()]
    assert all(inside)
    figure = figures.plane(view.surfaces, view.xs, view.ys, view.paths, view.labels)
    assert len(figure.legends[0].get_texts()) == 2
    plt.close(figure)


def test_the_line_between_the_ends_is_both_runs_at_its_ends(study):
    run, own, clean, path, clean_path = sets_and_paths(study)
    line = surfaces.between(run, own, clean, path[-1], clean_path[-1], np.array([0.0, 1.0]), images=30)
    accuracies = [run_of(study, method).accuracy for method in ("clean", "lsp")]
    assert line["accuracy"] == pytest.approx(accuracies, abs=1e-6)


def test_arrays_that_workers_share_read_only_give_no_warning(study):
    """joblib maps large arrays into memory; torch warned once a process, in one run's notebook and not in another's."""
    run, own, clean, path, clean_path = sets_and_paths(study)
    shared = [np.array(values) for values in (path, clean_path, path[-1], clean_path[-1])]
    for values in shared:
        values.setflags(write=False)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            surfaces.joint(run, own, clean, *shared[:2], grid=2, images=8)
            surfaces.around(run, own, clean, shared[2], grid=2, images=8)
            surfaces.between(run, own, clean, *shared[2:], np.array([0.0, 1.0]), images=8)
            paths.transplanted(run, own, shared[2], [own.own, clean.own])
    finally:
        torch.set_warn_always(before)


def test_the_explorer_follows_its_slider(study, monkeypatch):
    drawn = []
    monkeypatch.setattr(explorer, "draw", lambda *a: drawn.append({n: len(p) for n, p in a[-1].items()}))
    run, own, clean, path, _ = sets_and_paths(study)
    record = surfaces.around(run, own, clean, path[-1], grid=2, images=8)
    view = tables.views({"lsp": record}, ["lsp"])["lsp"]
    assert view.labels == ("random direction 1", "random direction 2") and list(view.paths) == ["lsp"]
    both = {"clean": np.zeros((5, 2)), "lsp": np.ones((5, 2))}
    other = replace(view, surfaces={"em images": view.xs}, paths={"em": np.ones((5, 2))})
    box = explorer.planes({"lsp": replace(view, paths=both), "em": other})
    method, objective, shown, until = box.children[0].children
    until.value = 2
    shown.value = ("lsp",)
    assert drawn[0] == {"clean": 5, "lsp": 5} and drawn[-2:] == [{"clean": 2, "lsp": 2}, {"lsp": 2}]
    method.value = "em"
    assert drawn[-1] == {"em": 2} and objective.value == "em images"


def test_flatness_measures_both_trainings(study):
    found = flatness.measure(flatness.chosen(study.chosen, ["lsp"], 1), study.given, jobs=1)
    table = pd.DataFrame(found)
    assert table[["method", "sam"]].to_numpy().tolist() == [["clean", 0], ["clean", 0.05], ["lsp", 0], ["lsp", 0.05]]
    assert (table["sharpness_own"] > 0).all()
    assert table["sharpness_own"][1] != table["sharpness_own"][0]
    shown = tables.flat({"flat": found})
    assert (shown["n"] == 1).all() and shown["ud"][0] == 1


def test_figures_tell_conditions_apart_without_colour():
    looks = figures.styles(["clean", "noise", "em", "lsp", "ops", "ar", "tap", "rem"])
    assert len({(str(v["linestyle"]), v["marker"]) for v in looks.values()}) == 8


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seeds": 2}, "seeds is 2; a spread over clean runs needs 3 or more"),
        ({"points": 0}, "points is 0"),
        ({"epochs": 1}, "epochs is 1; it must be at least 2"),
        ({"methods": []}, "give a list of poisons"),
        ({"methods": "lsp"}, "give a list of poisons"),
        ({"methods": ["clean", "lsp"]}, "give a list of poisons"),
        ({"grid": 1}, "grid is 1; it must be at least 2"),
        ({"share": 0.0}, "share is 0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"architecture": "alexnet"}, "unknown architecture 'alexnet'"),
        ({"methods": ["ems"]}, "unknown method 'ems'"),
        ({"methods": ["lsp", "lsp"]}, "lsp comes twice in methods"),
    ],
)
def test_wrong_settings_fail_before_any_run(change, text):
    with pytest.raises(InputError, match=text):
        convergence.planned(CONFIG | change)


def test_sections_name_methods_of_the_study_and_networks_of_layers():
    with pytest.raises(InputError, match="unknown name in shown 'em'"):
        convergence.among(["em"], ["lsp"], "shown")
    linear = convergence.planned(CONFIG | {"architecture": "linear"})
    with pytest.raises(InputError, match="leave flat_methods empty"):
        flatness.chosen(linear, ["lsp"], 1)


@pytest.mark.parametrize("change", [{"shown": ["em"]}, {"freeze": ["some"]}, {"flat_methods": ["em"]}])
def test_wrong_sections_fail_before_any_run(change, monkeypatch):
    trained = counted(monkeypatch, victim, "fit")
    with pytest.raises(InputError, match=f"unknown name in {next(iter(change))}"):
        convergence.study(CONFIG | change)
    assert not trained


def test_no_seeds_of_sam_are_no_such_section():
    least = parameters.lowest("03_convergence")["flat_seeds"]
    assert least == 0
    assert flatness.chosen(convergence.planned(CONFIG | {"flat_seeds": least}), ["lsp"], least) == []


def test_ends_are_how_far_the_last_weights_lie_apart(study):
    """A poisoned run from the clean run of its seed, a clean run from that of the next seed."""
    found = convergence.masks(study.runs)
    rows = convergence.differences(study.runs, found, np.array(["all"] * study.runs[0].weights.shape[1]))
    last = {(run.method, run.seed): run.weights[-1] for run in study.runs}
    for row in rows:
        other = last["clean", (row["seed"] + 1) % 3 if row["method"] == "clean" else row["seed"]]
        assert row["end"] == pytest.approx(np.sqrt(np.sum((last[row["method"], row["seed"]] - other) ** 2)), rel=1e-5)


def test_evidence_is_one_row_a_poison(study):
    mask = {"all": 0.25, "a": 0.25}
    ends = {"clean": (2.0, 4.0), "lsp": (4.0, 2.0)}  # twice and half as far apart as two clean runs
    differences = [{"method": m, "seed": s, "share": mask, "end": ends[m][s]} for m in ends for s in range(2)]
    share = tables.shares({"differences": differences, "layers": [["all", 4], ["a", 4]]})
    rows = [
        {"method": "lsp", "seed": s, "do": "transplant", "moved": m, "weights": 1, "accuracy": a, "recovered": r}
        for s in range(2)
        for m, a, r in (("nothing", 0.2, 0), ("everything", 0.8, 1), ("differing", 0.5, 0.5))
    ]
    maybe = pd.DataFrame([{"method": "lsp", "n": 2, "possible": 0.4, "possible_low": 0.3, "possible_high": 0.5}])
    effect = tables.effects(pd.DataFrame(rows))
    record = {"runs": [run.record for run in study.runs], "differences": differences}
    found = tables.evidence("mine", record, share, maybe, effect)
    row = found.iloc[0]
    assert (row["study"], row["method"], row["architecture"], row["drawn"]) == ("mine", "lsp", "lenet5", 1.0)
    assert (row["share"], row["beyond"], row["possible"]) == (0.25, 0, 0.4)
    assert row["gap"] == pytest.approx(0.6) and row["recovered"] == 0.5
    assert row["ends"] == pytest.approx(1) and row["seeds"] == "0-1" and row["ends_low"] < 0.01 < 100 < row["ends_high"]
