"""The light table of names: held to what stands behind each name, and light."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.conftest import idx_bytes, one_hot, picture, plant, planted_rooms, view_arrays, write_cifar
from tests.imports import modules
from ul import data, poisons
from ul.base import names
from ul.data import buildings, checks, pixels, sources
from ul.nets import classifiers, encoders, vit
from ul.poisons import making
from ul.sharpness import public_code
from ul.studies import convergence, executor, several_tasks
from ul.tasks import definitions, labels
from ul.training import defenses, victim, weighting

SAME = {
    "defenses": (names.DEFENSES, defenses.DEFENSES),
    "networks": (names.NETWORKS, classifiers.CLASSIFIERS),
    "victims": (names.NETWORKS, victim.RECIPES),
    "encoders": (names.ENCODERS, encoders.ENCODERS),
    "weightings": (names.WEIGHTINGS, weighting.WEIGHTINGS),
    "data sets": (names.DATASETS, sources.SOURCES),
    "tasks": (names.TASKS, definitions.TASKS),
    "executors": (names.EXECUTORS, ("processes", *executor.CLUSTERS)),
}


@pytest.mark.parametrize(("table", "behind"), SAME.values(), ids=SAME)
def test_names_are_those_of_what_stands_behind_them(table, behind):
    assert [*table] == [*behind]


# ---- Methods -------------------------------------------------------------------------------------------------------


def makers():
    """Every function below `ul.poisons` that takes what makers take, but the one that calls them."""
    found = {}
    for module in pkgutil.iter_modules(poisons.__path__, "ul.poisons."):
        for name, function in vars(importlib.import_module(module.name)).items():
            if inspect.isfunction(function) and function.__module__ == module.name and not name.startswith("_"):
                given = inspect.signature(function).parameters
                if "eps" in given and {"seed", "settings"} & {*given} and function is not making.make:
                    found[name] = function
    return found


def test_every_maker_has_a_name_and_every_name_a_maker():
    assert {name: making.maker(name) for name in names.METHODS} == makers()


@pytest.mark.parametrize("name", names.METHODS)
def test_a_maker_is_given_what_its_row_says(name):
    method, found = names.METHODS[name], poisons.recipes(name)
    given = [*inspect.signature(making.maker(name)).parameters]
    assert given == (["target", "eps", "settings"] if method.recipes else ["images", "labels", "eps", "seed"])
    assert set(found) == {*names.RECIPES} and all((row is not None) == bool(method.recipes) for row in found.values())
    nothing = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    assert method.norm is None or method.norm in {*pixels.measure(nothing, nothing)} & {*checks.UNITS}
    assert method.norm is None or method.budget(8 / 255, 3072) > 0


# ---- Networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names.NETWORKS)
def test_a_network_has_the_layers_that_its_row_says(name):
    model, row = classifiers.make(name, channels=1, classes=2, size=16, seed=0), names.NETWORKS[name]
    assert row.several_layers == (len(classifiers.probed_layers(model)) > 1)
    assert row.transformer == any(isinstance(module, vit.Attention) for module in model.modules())


def test_encoders_that_route_are_among_the_encoders():
    assert {*encoders.ROUTED} < {*names.ENCODERS}


# ---- Data sets and tasks -------------------------------------------------------------------------------------------


def mnist(root):
    (root / "mnist").mkdir()
    for stem in ("train", "t10k"):
        for kind, values in (("images-idx3", np.zeros((3, 28, 28))), ("labels-idx1", np.array([0, 9, 4]))):
            (root / "mnist" / f"{stem}-{kind}-ubyte").write_bytes(idx_bytes(values))


def cifar100(root):
    (root / "cifar-100-binary").mkdir()
    for name in ("train", "test"):
        (root / "cifar-100-binary" / f"{name}.bin").write_bytes(bytes([19, 99]) + bytes(3072))


def taskonomy(root):
    for split in buildings.SPLITS.values():
        for place, (first, *_) in enumerate(split.values()):
            plant(root / "taskonomy", (first, 0, 0), view_arrays(place) | {"class_scene": one_hot(43, 365)})


def folder(root):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            (root / part / name / "0.png").write_bytes(picture(np.zeros((40, 40, 3), np.uint8)))


PLANTED = {
    "rooms": planted_rooms, "mnist": mnist, "cifar10": write_cifar, "cifar100": cifar100, "taskonomy": taskonomy,
    "taskonomy_medium": taskonomy, "folder": folder,
}  # fmt: skip


@pytest.mark.parametrize("name", names.DATASETS)
def test_every_part_of_a_data_set_loads_with_its_target(tmp_path, name):
    PLANTED[name](tmp_path)
    row = names.DATASETS[name]
    for part in row.parts:
        split = data.load(name, part, root=tmp_path, size=row.size)
        wanted = split.targets[row.target]
        assert split.name == f"{name}/{part}" and len(split) and wanted.ndim == 1
        assert data.classes(split) == (row.classes or 2) > wanted.max()
        assert row.size in (None, *split.images.shape[-2:])
        assert data.default_target(split) == names.default_target(split.name) == row.target


@pytest.mark.parametrize("name", names.DATASETS)
def test_a_data_sets_usual_tasks_are_tasks_and_its_target_is_among_them(name):
    row = names.DATASETS[name]
    assert row.target in row.tasks and {*row.tasks} <= {*names.TASKS} and not names.TASKS[row.target].dense


def test_tasks_are_dense_where_their_labels_are():
    assert {n: row.dense for n, row in names.TASKS.items()} == {n: row.dense for n, row in definitions.TASKS.items()}


# ---- Names without a table of their own ----------------------------------------------------------------------------


def compared(module, *, operator):
    """Texts that a module's code compares something with, by == or by `in`."""
    tree = ast.parse(inspect.getsource(module))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Compare) and isinstance(node.ops[0], operator)]
    sides = [side for node in nodes for side in (node.left, *node.comparators)]
    return {side.value for side in sides if isinstance(side, ast.Constant) and isinstance(side.value, str)}


def test_every_departure_is_looked_for_in_the_code_and_no_other():
    assert compared(public_code, operator=ast.In) == {*names.DEPARTURES}


def test_ways_with_rare_classes_are_those_that_the_labels_know():
    assert (inspect.signature(labels.load).parameters["rare"].default, "drop") == names.RARE
    assert compared(labels, operator=ast.Eq) & {*names.RARE} == {names.RARE[0]}  # the other way is what is left


def test_sets_of_parameters_are_those_that_are_moved():
    differ = np.array([True, False, False, True])
    found = convergence.sets_of(differ, np.arange(4.0), np.array(["a", "a", "b", "b"]), seed=0)
    assert (*found,) == names.MOVED
    assert (found["differing"] == differ).all() and (found["rest"] == ~differ).all()
    assert found["largest"].tolist() == [False, False, True, True] and found["random"].sum() == 2


def test_regimes_are_those_that_networks_are_scored_in():
    keys = [
        node for node in ast.walk(ast.parse(inspect.getsource(several_tasks.run))) if isinstance(node, ast.Constant)
    ]
    assert {*names.REGIMES} <= {key.value for key in keys}


# ---- Weight --------------------------------------------------------------------------------------------------------


def loaded(code):
    """What is imported after these lines, in a process of its own."""
    lines = f"import sys\n{code}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["names", "parameters"])
def test_names_and_choices_load_nothing_heavy(module):
    found = loaded(f"import ul.base.{module}")
    assert not found & {"torch", "numpy", "pandas", "scipy", "matplotlib"}
    rooms = {name for name in found if name.startswith("ul.")} - {f"ul.base.{module}", "ul.base.names"}
    light = {"ul.base", "ul.base.budgets", "ul.base.errors"}
    assert rooms == light | ({"ul.base.arithmetic"} if module == "parameters" else set())


def test_tables_figures_and_what_they_rest_on_load_no_torch():
    rooms = [name for name in modules() if name.partition(".")[0] in ("base", "tables", "figures")]
    found = loaded("\n".join(f"import ul.{name}" for name in rooms))
    assert {f"ul.{name}" for name in rooms} <= found and "torch" not in found
    assert not [
        name for name in found if name.startswith("ul.") and name.split(".")[1] not in ("base", "tables", "figures")
    ]
