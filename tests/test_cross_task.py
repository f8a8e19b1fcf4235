"""The cross-task study: its runs and variants, its records on planted views, and its notebook on real views."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from tests.conftest import one_hot, plant, real_views, view_arrays
from tests.imports import ROOT
from ul.base import names, records
from ul.base.errors import InputError
from ul.figures import cross_task as cross_figures
from ul.figures import style
from ul.studies import cross_task
from ul.tables import cross_task as cross_tables
from ul.training import multitask

CONFIG = {
    "dataset": "rooms", "root": "data", "limit": None, "size": None, "rare": "error", "tasks": [], "single": [],
    "transfer": True, "methods": ["noise", "lsp"], "poison": None, "poisons": None, "target": None, "eps": None,
    "recipe": "cpu", "encoder": "resnet8", "weighting": "equal", "weightings": ["balanced"], "own_weights": [3, 10],
    "balance_methods": ["lsp"],
    "epochs": 4, "batch_size": 32, "lr": 0.02, "seeds": 2, "probe_epochs": 2, "sal_images": 8,
}  # fmt: skip
HEADLINE = ["class_scene", "keypoints2d", "depth_euclidean", "segment_unsup2d"]


def test_runs_are_paired_by_seed(tmp_path):
    runs = cross_task.planned(CONFIG)
    assert [(r.images.method, r.seed) for r in runs] == [(m, s) for m in ("clean", "noise", "lsp") for s in (0, 1)]
    assert runs[0].tasks == names.VIEWS and runs[0].single == ("class_object",) and runs[0].probes == (2, 4)
    for name in (f"rooms-{m}-{s}.npz" for m in ("noise", "lsp") for s in (0, 1)):
        (tmp_path / name).write_bytes(b"")
    stored = [r.images.poison for r in cross_task.planned(CONFIG | {"poisons": str(tmp_path)})]
    assert stored == [None, None, *(f"{tmp_path}/rooms-{m}-{s}.npz" for m in ("noise", "lsp") for s in (0, 1))]
    assert [r.images.poison_seed for r in runs] == [0, 0, 0, 1, 0, 1]


def test_seeds_count_from_the_first_one():
    found = cross_task.planned(CONFIG | {"first_seed": 3})
    assert [r.seed for r in found] == [3, 4] * 3 and [r.images.poison_seed for r in found] == [0, 0, 3, 4, 3, 4]
    with pytest.raises(InputError, match="first_seed is -1; it must be at least 0"):
        cross_task.planned(CONFIG | {"first_seed": -1})


def test_a_file_of_ones_own_is_a_method_beside_the_others():
    mine = CONFIG | {"poison": "mine.npz"}
    found = [(r.images.method, r.images.poison) for r in cross_task.planned(mine)]
    assert found[-2:] == [("own", "mine.npz")] * 2
    assert cross_task.variants(mine) == cross_task.variants(CONFIG)
    alone = cross_task.planned(mine | {"methods": []})
    assert [r.images.method for r in alone] == ["clean"] * 2 + ["own"] * 2


def test_classified_images_have_derived_tasks():
    run = cross_task.planned(CONFIG | {"dataset": "cifar10"})[0]
    assert (run.images.target, run.tasks, run.single) == ("label", names.CLASSIFIED, ("label",))


def test_variants_are_joint_networks_alone():
    found = cross_task.variants(CONFIG)
    conditions = [(r.images.method, r.seed) for r in found[:4]]
    assert conditions == [("clean", 0), ("clean", 1), ("lsp", 0), ("lsp", 1)]
    assert not any(r.single or r.transfer or r.probes for r in found)
    named = [cross_tables.weighted({"weighting": r.recipe.weighting, "weights": r.recipe.weights}) for r in found[::4]]
    assert named == ["balanced", "equal, class_object x 3", "equal, class_object x 10"]


def test_no_balance_methods_no_variants():
    assert cross_task.variants(CONFIG | {"balance_methods": []}) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["lps"]}, r"unknown method 'lps'; .*lsp"),
        ({"single": ["normal"]}, "single names normal, which is not among the tasks; add it there"),
        ({"seeds": 0}, "seeds is 0"),
        ({"weightings": ["even"]}, "unknown weighting 'even'"),
        ({"weighting": "even"}, "unknown weighting 'even'"),
        ({"encoder": "resnet9"}, "unknown encoder 'resnet9'"),
        ({"encoder": "mod_squad", "weightings": ["pcgrad"]}, "mod_squad routes by task.*take equal"),
        ({"target": "class_scne"}, "single names class_scne"),
        ({"lr": -1}, "lr is -1; it must be above 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"own_weights": [0]}, "own_weights is 0; it must be above 0"),
        ({"own_weights": [10, 10]}, "10 comes twice in own_weights; name it once"),
        ({"methods": ["lsp", "lsp"]}, "lsp comes twice in methods"),
        ({"weightings": ["equal"]}, "equal comes twice in weighting and weightings"),
        ({"dataset": "roms"}, "unknown data set 'roms'"),
        ({"methods": []}, "methods is empty; name a poison"),
        ({"methods": ["noise"]}, "balance_methods names lsp, which is not among the methods"),
        ({"tasks": ["class_object", "depht"]}, "unknown task 'depht'"),
    ],
)
def test_bad_settings_end_before_training(change, message):
    with pytest.raises(InputError, match=message):
        (cross_task.planned(CONFIG | change), cross_task.variants(CONFIG | change))


def planted(root, buildings=("hanson", "merom", "ihlen"), views=6):
    for building in buildings:
        for view in range(views):
            arrays = view_arrays(view, 16) | {"class_scene": one_hot(43 + view % 2, 365)}
            del arrays["class_object"], arrays["segment_semantic"]
            plant(root / "taskonomy", (building, view, 0), arrays)


TINY = {"dataset": "taskonomy", "size": 16, "methods": ["noise"], "epochs": 1, "probe_epochs": 1}


@pytest.fixture
def small(tmp_path):
    """Settings of runs of a second."""
    planted(tmp_path)
    chosen = {"root": str(tmp_path), "tasks": ["class_scene", "depth_euclidean"], "transfer": False}
    return CONFIG | TINY | chosen


def trained(*_, **__):
    raise AssertionError("a run was trained again")


def test_kept_runs_are_read_instead_of_trained(small, tmp_path, monkeypatch):
    """Byte for byte, views included; a run is another one if anything that its numbers depend on is."""
    runs, folder = cross_task.planned(small), tmp_path / "kept"
    first = json.dumps(cross_task.run_all(runs, jobs=1, views=2))  # in the order of keys
    assert json.dumps(cross_task.run_all(runs, jobs=1, views=2, folder=folder)) == first
    assert len(list(folder.iterdir())) == 4 and set(json.loads(first)[0]["views"]) == {"depth_euclidean"}
    with monkeypatch.context() as patch:
        patch.setattr(multitask, "fit", trained)
        assert json.dumps(cross_task.run_all(runs, jobs=2, views=2, folder=folder)) == first
    train, _ = cross_task.parts(runs[0])
    other = train.labels | {"depth_euclidean": train.labels["depth_euclidean"] + 1}
    monkeypatch.setattr(cross_task, "_clean", lambda *_: (replace(train, labels=other), train))
    named = {file.name for file in folder.iterdir()}
    cross_task.run_all(runs[:1], jobs=1, views=2, folder=folder)
    assert len({file.name for file in folder.iterdir()} - named) == 1


def test_a_failing_run_is_named_and_the_others_are_finished(small, tmp_path, monkeypatch):
    runs, folder = cross_task.planned(small), tmp_path / "kept"
    whole, fit = json.dumps(cross_task.run_all(runs, jobs=1)), multitask.fit

    def failing(model, data, *, seed, **options):
        if seed == 1 and not torch.equal(data.images, cross_task.parts(runs[0])[0].images):
            raise RuntimeError("no\nluck")
        return fit(model, data, seed=seed, **options)

    with monkeypatch.context() as patch:
        patch.setattr(multitask, "fit", failing)
        message = "1 of 4 runs failed: cross-task taskonomy noise resnet8 seed 1: RuntimeError: no luck .*kept in "
        with pytest.raises(InputError, match=message):
            cross_task.run_all(runs, jobs=1, folder=folder)
    assert len(list(folder.iterdir())) == 3
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert json.dumps(cross_task.run_all(runs, jobs=1, folder=folder)) == whole
    assert before.items() <= {file: file.stat().st_mtime_ns for file in folder.iterdir()}.items()


def test_a_poison_that_cannot_be_read_stops_its_own_runs_only(small, tmp_path):
    for seed in (0, 1):
        (tmp_path / f"taskonomy-noise-{seed}.npz").write_bytes(b"")
    runs = cross_task.planned(small | {"poisons": str(tmp_path)})
    with pytest.raises(InputError, match=r"2 of 4 runs failed: .*taskonomy-noise-0\.npz"):
        cross_task.run_all(runs, jobs=1, folder=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_views_are_those_that_the_network_gives_and_labels_are_theirs(small):
    found = cross_task.study(small | {"seeds": 1, "balance_methods": []}, jobs=1)
    views, labels = found["views"], records.unpacked(found["views"]["labels"]["depth_euclidean"])
    assert found["tasks"] == ["class_scene", "depth_euclidean"] and found["target"] == "class_scene"
    assert len(found["runs"]) == 2 and found["rest"] == [] and json.dumps(found)
    outputs = records.unpacked(found["runs"][0]["views"]["depth_euclidean"])
    assert outputs.dtype == labels.dtype == np.float16 and outputs.shape == (2, 1, 16, 16) and labels.shape[1] == 2
    rows = cross_figures.predictions(found["runs"], views, ["depth_euclidean"], count=2)
    assert [*rows] == ["depth_euclidean 1", "depth_euclidean 2"]
    assert [*rows["depth_euclidean 2"]] == ["image", "label", "clean", "noise"]
    np.testing.assert_allclose(rows["depth_euclidean 2"]["clean"], np.exp(outputs[1, 0].astype(np.float32)))
    _, test = cross_task.parts(cross_task.planned(small)[0])
    np.testing.assert_array_equal(rows["depth_euclidean 1"]["image"], test.images[0].numpy() / 255)


def test_records_hold_every_regime(tmp_path):
    planted(tmp_path)
    tasks = ["class_scene", "depth_euclidean", "edge_texture"]
    change = TINY | {"root": str(tmp_path), "tasks": tasks}
    change |= {"balance_methods": ["noise"], "own_weights": [2], "weightings": []}
    chosen, others = cross_task.planned(CONFIG | change), cross_task.variants(CONFIG | change)
    runs = cross_task.run_all([*chosen, *others], jobs=1)
    frame = cross_tables.scores(runs[: len(chosen)])
    counts = frame.groupby("regime")["task"].nunique().to_dict()
    assert counts == {"multi": 3, "single": 1, "transfer": 3, "none": 3} and frame["value"].notna().all()
    assert [len(run["probes"]) for run in runs] == [1] * 4 + [0] * 4
    assert runs[0]["data"]["train_images"] == 12 and runs[0]["data"]["test_images"] == 6
    assert runs[0]["data"]["train"] == runs[1]["data"]["train"] != runs[2]["data"]["train"]
    table = cross_tables.balance(runs, "class_scene")
    assert list(table["weighting"].unique()) == ["equal", "equal, class_scene x 2"]
    json.dumps(runs)


@pytest.mark.slow
def test_the_notebook_on_real_views(shared_data, tmp_path):
    """The paper's four tasks, by parameter."""
    real_views(shared_data, tmp_path)
    tasks = "\n".join(f"- {name}" for name in HEADLINE)
    values = {"dataset": "taskonomy", "root": tmp_path, "size": 64, "epochs": 1, "seeds": 2, "out": tmp_path / "out"}
    settings = "".join(f"{key}: {value}\n" for key, value in values.items())
    (tmp_path / "settings.yaml").write_text(f"{settings}tasks:\n{tasks}\nmethods: [noise]\nbalance_methods: [noise]\n")
    command = [sys.executable, "-m", "papermill", "notebooks/02_cross_task.ipynb", tmp_path / "read.ipynb"]
    found = subprocess.run([*command, "-f", tmp_path / "settings.yaml"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    frame = pd.read_csv(tmp_path / "out" / "tables" / "cross_task" / "scores.csv")
    assert set(frame["task"]) == set(HEADLINE) and set(frame["method"]) == {"clean", "noise", "uninformed"}


@pytest.mark.parametrize("methods, tasks", [(3, 2), (8, 5), (17, 10)])
def test_figures_of_many_methods_and_tasks_stay_on_a_page(methods, tasks):
    rng, named = np.random.default_rng(0), [f"task {i}" for i in range(tasks)]
    conditions = ["clean", *list(style.COLOURS)[1:methods]]
    table = pd.DataFrame([{"task": "task 0", "other": "task 1", "sal": 0.25}])
    pictures = {task: dict.fromkeys(["image", "label", *conditions], rng.random((4, 4))) for task in named}
    with style.style():
        pairs = cross_figures.pairs(dict.fromkeys(conditions, table), "sal", named)
        views = cross_figures.panels(pictures)
    matrices = [ax for ax in pairs.axes if ax.images and ax.get_title()]
    assert [ax.get_title() for ax in matrices] == conditions
    assert all(ax.images[0].get_array()[0, 1] == 0.25 for ax in matrices)
    assert len(views.axes) == tasks * (methods + 2)
    for figure in (pairs, views):
        figure.draw_without_rendering()
        (wide, high), tight = figure.get_size_inches(), figure.get_tightbbox()
        assert wide < 14.5 and tight.x0 > -0.1 and tight.y0 > -0.1, "nothing is cut"
        assert tight.x1 < wide + 0.1 and tight.y1 < high + 0.1, "nothing is cut"
        plt.close(figure)
