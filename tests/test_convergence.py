"""The convergence study on tiny real runs, its tables against planted answers, its figures and errors."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from tests.imports import ROOT
from ul import (
    convergence,
    convergence_figures,
    convergence_tables,
    explore,
    flatness,
    parameters,
    paths,
    planes,
    scores,
)
from ul.config import InputError
from ul.convergence import Run
from ul.paths import Path

CONFIG = {
    "dataset": "mnist", "root": str(ROOT / "data"), "limit": 120, "methods": ["lsp"], "poisons": None, "eps": None,
    "recipe": "cpu", "architecture": "lenet5", "features": 12, "start": 0, "share": 1.0, "epochs": 2, "seeds": 3,
    "points": 4, "probe_epochs": 1, "looked": 16, "grid": 3, "surface_images": 8, "flat_seeds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def study() -> SimpleNamespace:
    cells = convergence.cells(CONFIG)
    given = convergence.sets(cells)
    return SimpleNamespace(cells=cells, given=given, runs=convergence.run_all(cells, given))


def run_of(study, method: str, seed: int = 0) -> Run:
    return next(r for r in study.runs if (r.method, r.seed) == (method, seed))


def test_all_runs_share_their_start_and_seeds_part(study):
    starts = torch.stack([run.path.weights[0] for run in study.runs])
    assert (starts == starts[0]).all()
    assert not torch.equal(run_of(study, "clean", 0).path.weights[1], run_of(study, "clean", 1).path.weights[1])


def test_runs_repeat_their_bytes_in_other_processes(study):
    again = convergence.follow(study.cells[0], study.given["clean"])
    assert torch.equal(again.path.weights, study.runs[0].path.weights) and again.record == study.runs[0].record


def test_records_hold_every_epoch_from_the_start(study):
    rows = convergence_tables.epochs(study.runs)
    assert list(rows.groupby(["method", "seed"]).size()) == [3] * 6
    assert rows[rows.epoch == 0]["distance"].eq(0).all() and rows[rows.epoch > 0]["distance"].gt(0).all()
    assert rows["curvature"].notna().sum() == 6 and rows[rows.epoch > 0]["train_loss"].notna().all()


def test_the_poison_alone_makes_the_difference(study):
    """A poisoned run whose images are the clean ones is the clean run."""
    same = convergence.follow(study.cells[-3], study.given["clean"])
    assert same.method == "lsp" and torch.equal(same.path.weights, study.runs[0].path.weights)


def test_seeds_draw_their_share_of_images_the_same_in_every_condition(study):
    cell = replace(study.cells[0], share=0.5)
    poisoned = replace(cell, run=replace(cell.run, method="lsp"))
    own, other = (convergence.drawn(c, study.given["clean"].own) for c in (cell, poisoned))
    assert len(own) == 60 and torch.equal(own.images, other.images)
    second = replace(cell, run=replace(cell.run, seed=1))
    assert not torch.equal(convergence.drawn(second, study.given["clean"].own).images, own.images)


def test_a_linear_network_sees_twelve_components_of_unit_variance_through_120_weights():
    cells = convergence.cells(CONFIG | {"architecture": "linear", "methods": ["noise"], "epochs": 40})
    given = convergence.sets(cells)
    both = torch.cat([s.own.images for s in given.values()]).float() / 255
    features = given["clean"].features(both)
    torch.testing.assert_close(features.T @ features / len(both), torch.eye(12), atol=1e-3, rtol=0)
    assert paths.vector(convergence.network(cells[0], given["clean"])).shape == (120,)
    run = convergence.follow(cells[0], given["clean"])
    assert run.path.weights.shape[1] == 120 and run.accuracy > 0.4


def test_frozen_runs_leave_the_chosen_weights_at_their_start(study):
    count = study.runs[0].path.weights.shape[1]
    keep = np.arange(count) % 2 == 0
    run = convergence.follow(study.cells[0], study.given["clean"], keep)
    moved = (run.path.weights[-1] - run.path.weights[0]).numpy()
    assert not moved[keep].any() and moved[~keep].any()


def test_interventions_end_at_both_runs(study):
    owners = paths.owners(convergence.network(study.cells[0], study.given["clean"]))
    found = convergence_tables.masks(study.runs)
    chosen = convergence_tables.held_sets(study.runs, owners, found)
    poisoned = [cell for cell in study.cells if cell.run.method == "lsp"]
    frozen = {"random": convergence.repeated(poisoned, study.given, chosen, "random")}
    table = convergence_tables.interventions(study.runs, study.cells, study.given, chosen, frozen)
    for (_, seed), part in table.groupby(["method", "seed"]):
        by = part.set_index(["do", "moved"])["accuracy"]
        own, clean = run_of(study, "lsp", seed), run_of(study, "clean", seed)
        assert by["transplant", "nothing"] == own.accuracy and by["transplant", "everything"] == clean.accuracy
        mixed = convergence._mixed(study.cells[0], study.given, own, clean, np.ones(len(owners), dtype=bool))
        assert mixed == pytest.approx(clean.accuracy, abs=1e-6)
        assert ("freeze", "random") in by
    assert convergence.repeated([], study.given, chosen, "random") == []


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
    cells = convergence.cells(CONFIG | {"architecture": "resnet8", "limit": 400, "epochs": 8, "points": 1})
    given = convergence.sets(cells)
    run = convergence.follow(cells[0], given["clean"])
    seen = convergence.accuracy(cells[0], given["clean"], run.path.weights[-1], [given["clean"].own])
    assert run.accuracy > 0.5 and abs(seen - run.accuracy) < 0.1


# ---- Tables --------------------------------------------------------------------------------------------------------


def walked(method: str, seed: int, weights, losses=(2.0, 1.0, 0.1, 0.0), accuracies=(0.1, 0.5, 0.9, 0.7, 0.6)) -> Run:
    rows = [{"epoch": e, "test_accuracy": a} for e, a in enumerate(accuracies)]
    for row, loss in zip(rows[1:], losses, strict=True):
        row["train_loss"] = loss
    path = Path(list(range(len(weights))), torch.tensor(weights, dtype=torch.float32))
    return Run({"config": {"method": method, "seed": seed}, "epochs": rows}, path, accuracies[-1])


def test_convergence_is_nine_tenths_of_the_fall():
    line = [[0.0], [4.0], [6.0], [7.0], [8.0]]
    row = convergence_tables.moments([walked("clean", s, line) for s in range(2)]).iloc[0]
    assert row["converged"] == 3 and row["accuracy_then"] == 0.7
    assert row["later"] == pytest.approx(-0.1) and row["walked_after"] == pytest.approx(1 / 8)


def test_shares_are_counted_by_layer_and_against_the_null():
    owners = np.array(["a", "a", "b", "b"])
    clean, own = np.array([True, False, False, False]), np.array([True, True, True, False])
    found = {("clean", 0): clean, ("clean", 1): clean, ("em", 0): own, ("em", 1): own}
    table = convergence_tables.shares(found, owners).set_index(["method", "layer"])
    assert table.loc[("em", "all"), ["share", "beyond", "n"]].tolist() == [0.75, 0.5, 2]
    assert table.loc[("em", "b"), ["share", "weights"]].tolist() == [0.5, 2]


def test_concentration_tells_one_mover_from_many():
    still, one, all_ = np.zeros((2, 10)), np.zeros((2, 10)), np.zeros((2, 10))
    one[1, 3], all_[1] = 5, 5
    runs = [walked("clean", s, still + s * all_ / 10) for s in range(2)]
    runs += [walked("em", s, still + one + s * all_ / 10) for s in range(2)]
    table = convergence_tables.concentration(runs).set_index("method")
    assert table.loc["em", "gini"] == pytest.approx(0.9) and table.loc["em", "top"] == pytest.approx(1)
    assert table.loc["clean", "gini"] == pytest.approx(0) and table.loc["clean", "top"] == pytest.approx(0.1)


def test_biting_poisons_take_five_points():
    runs = [
        walked(m, 0, [[0.0]] * 5, accuracies=(0, 0, 0, 0, a)) for m, a in (("clean", 0.8), ("em", 0.7), ("ops", 0.78))
    ]
    assert convergence_tables.biting(runs) == ["em"]


def test_no_gap_no_recovery():
    known = {"nothing": 0.2, "everything": 0.8, "x": 0.5}
    rows = [{"method": "em", "base": 0.2, "moved": m, "accuracy": a} for m, a in known.items()]
    table = pd.DataFrame(rows)
    assert convergence_tables._recovered(table, [])["recovered"].isna().all()
    assert convergence_tables._recovered(table, ["em"])["recovered"].tolist() == pytest.approx([0, 1, 0.5])


# ---- Planes, flatness, figures -------------------------------------------------------------------------------------


def test_planes_hold_both_paths_and_both_objectives(study):
    clean, own = run_of(study, "clean"), run_of(study, "lsp")
    view = planes.joint(study.cells[0], study.given, clean, own, grid=3, images=20)
    assert list(view.surfaces) == ["clean images", "lsp images"] and view.surfaces["clean images"].shape == (3, 3)
    assert list(view.paths) == ["clean", "lsp"] and "of variance" in view.labels[0]
    inside = [(view.xs[0] < p[:, 0]).all() and (p[:, 1] < view.ys[-1]).all() for p in view.paths.values()]
    assert all(inside)
    figure = convergence_figures.plane(view.surfaces, view.xs, view.ys, view.paths, view.labels)
    assert len(figure.legends[0].get_texts()) == 2
    plt.close(figure)


def test_the_line_between_the_ends_is_both_runs_at_its_ends(study):
    clean, own = run_of(study, "clean"), run_of(study, "lsp")
    line = planes.between(study.cells[0], study.given, clean, own, np.array([0.0, 1.0]), images=30)
    assert line["accuracy"] == pytest.approx([clean.accuracy, own.accuracy], abs=1e-6)


def test_the_explorer_follows_its_slider(study, monkeypatch):
    drawn = []
    monkeypatch.setattr(explore, "draw", lambda *a: drawn.append({n: len(p) for n, p in a[-1].items()}))
    view = planes.around(study.cells[0], study.given, run_of(study, "lsp"), grid=2, images=8)
    paths = {"clean": np.zeros((5, 2)), "lsp": np.ones((5, 2))}
    other = replace(view, surfaces={"em images": view.xs}, paths={"em": np.ones((5, 2))})
    box = explore.planes({"lsp": replace(view, paths=paths), "em": other})
    method, objective, shown, until = box.children[0].children
    until.value = 2
    shown.value = ("lsp",)
    assert drawn[0] == {"clean": 5, "lsp": 5} and drawn[-2:] == [{"clean": 2, "lsp": 2}, {"lsp": 2}]
    method.value = "em"
    assert drawn[-1] == {"em": 2} and objective.value == "em images"


def test_sharpness_of_a_linear_loss_is_radius_times_slope(study):
    model = convergence.network(study.cells[0], study.given["clean"])
    x, y = scores.on(study.given["clean"].test.take(torch.arange(20)), "label", torch.device("cpu"))
    tiny = flatness.sharpness(model, x, y, radius=1e-3) / 1e-3
    slopes = torch.autograd.grad(torch.nn.functional.cross_entropy(model.eval()(x), y), list(model.parameters()))
    assert tiny == pytest.approx(torch.cat([s.flatten() for s in slopes]).norm().item(), rel=0.05)


def test_flatness_measures_both_trainings(study):
    cells = flatness.chosen(study.cells, ["lsp"], 1)
    table = flatness.measure(cells, study.given, (0.0, 0.05))
    assert table[["method", "sam"]].to_numpy().tolist() == [["clean", 0], ["clean", 0.05], ["lsp", 0], ["lsp", 0.05]]
    assert table["ud"][0] == 1 and (table["sharpness_own"] > 0).all()
    assert table["sharpness_own"][1] != table["sharpness_own"][0]
    assert (flatness.summary(table)["n"] == 1).all()


def test_figures_tell_conditions_apart_without_colour():
    looks = convergence_figures.styles(["clean", "noise", "em", "lsp", "ops", "ar", "tap", "rem"])
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
        convergence.cells(CONFIG | change)


def test_sections_name_methods_of_the_study_and_networks_of_layers(study):
    with pytest.raises(InputError, match="unknown name in shown 'em'"):
        convergence.among(["em"], ["lsp"], "shown")
    linear = convergence.cells(CONFIG | {"architecture": "linear"})
    with pytest.raises(InputError, match="leave flat_methods empty"):
        flatness.chosen(linear, ["lsp"], 1)


def test_no_seeds_of_sam_are_no_such_section():
    least = parameters.LOWEST["flat_seeds"]
    assert least == convergence.LOWEST["flat_seeds"] == 0
    assert flatness.chosen(convergence.cells(CONFIG | {"flat_seeds": least}), ["lsp"], least) == []


def test_evidence_is_one_row_a_poison(study):
    owners = np.array(["a"] * 4)
    mask = np.array([True, False, False, False])
    share = convergence_tables.shares({(m, s): mask for m in ("clean", "lsp") for s in range(2)}, owners)
    rows = [
        {"method": "lsp", "seed": s, "do": "transplant", "moved": m, "weights": 1, "accuracy": a, "recovered": r}
        for s in range(2)
        for m, a, r in (("nothing", 0.2, 0), ("everything", 0.8, 1), ("differing", 0.5, 0.5))
    ]
    maybe = pd.DataFrame([{"method": "lsp", "n": 2, "possible": 0.4, "possible_low": 0.3, "possible_high": 0.5}])
    effect = convergence_tables.effects(pd.DataFrame(rows))
    found = convergence_tables.evidence("mine", study.cells[0], share, maybe, effect)
    row = found.iloc[0]
    assert (row["study"], row["method"], row["architecture"]) == ("mine", "lsp", "lenet5")
    assert (row["share"], row["beyond"], row["possible"]) == (0.25, 0, 0.4)
    assert row["gap"] == pytest.approx(0.6) and row["recovered"] == 0.5
