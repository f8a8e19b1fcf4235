"""Parameters of notebooks: types, choices and limits; a choice follows from what stands in the table of names."""

import importlib
from dataclasses import replace

import pytest
from papermill.inspection import inspect_notebook

from tests.test_repository import NOTEBOOKS
from ul.base import names, parameters
from ul.base.errors import InputError
from ul.pipeline import notebooks

TABLES = {
    "method": names.METHODS,
    "defense": names.DEFENSES,
    "architecture": names.NETWORKS,
    "dataset": names.DATASETS,
    "recipe": names.RECIPES,
    "encoder": names.ENCODERS,
    "backend": names.EXECUTORS,
    "departed": names.DEPARTURES,
    "freeze": names.MOVED,
    "rare": names.RARE,
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_choices_are_the_names_in_the_table(name):
    assert parameters.CHOICES[name] == (*TABLES[name],)


@pytest.fixture
def read_again(monkeypatch):
    """Choices made anew from changed tables, and as they were afterwards."""
    yield lambda: importlib.reload(parameters)
    monkeypatch.undo()
    importlib.reload(parameters)


def taken(notebook, name, value):
    """Whether a notebook takes this value of a parameter."""
    try:
        parameters.refuse_wrong({name: value}, {name: "str"}, notebook)
    except InputError:
        return False
    return True


def placed(table, **rows):
    """The table with more rows: behind the others, and before them."""
    return {**table, **rows}, {**rows, **table}


@pytest.mark.parametrize("place", [0, 1], ids=["last", "first"])
def test_which_data_sets_a_notebook_takes_follows_from_their_rows(monkeypatch, read_again, place):
    """The cross-task study takes all but a user's own."""
    public, own = names.DATASETS["cifar10"], names.DATASETS["folder"]
    table = placed(names.DATASETS, new=public, mine=own, given=replace(own, a_users=False))[place]
    monkeypatch.setattr(names, "DATASETS", table)
    read_again()
    found = {name: taken("02_cross_task", "dataset", name) for name in table}
    assert found == {name: name not in ("folder", "mine") for name in table}
    assert all(taken(other, "dataset", name) for other in ("01_poison", "04_sal") for name in table)


@pytest.mark.parametrize("place", [0, 1], ids=["last", "first"])
@pytest.mark.parametrize("notebook", ["04_sal", "06_validation", "08_my_poison"])
def test_which_networks_a_notebook_takes_follows_from_their_rows(monkeypatch, read_again, notebook, place):
    """UD needs several layers."""
    deep, flat = names.Network(), names.Network(several_layers=False)
    table = placed(names.NETWORKS, deep=deep, flat=flat)[place]
    monkeypatch.setattr(names, "NETWORKS", table | {"linear": deep, "lenet5": flat})
    read_again()
    found = {name: taken(notebook, "architecture", name) for name in table}
    assert found == {name: name not in ("flat", "lenet5") for name in table}
    assert all(taken("03_convergence", "architecture", name) for name in table)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_parameter_has_a_type_and_help_and_a_default_that_passes(path):
    book = notebooks.read(path)
    kinds, shown = notebooks.kinds(book), inspect_notebook(path)
    assert set(shown) == set(kinds)
    for name, found in shown.items():
        assert found["inferred_type_name"] == kinds[name] and found["help"], name
    assert notebooks.checked(notebooks.defaults(book), kinds, str(path)) == notebooks.defaults(book)
    assert f'parameters.check(globals(), "{path.stem}")' in book.cells[2].source


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [("int", [1], [1.0, True, "1", None]), ("float", [1, 0.5], [True, "0.5"]), ("bool", [False], [0, "no"]),
     ("str or None", ["a", None], [1]), ("list[str]", [[], ["a"]], ["a", [1], None, ["a", None]]),
     ("list[float]", [[1, 0.5]], [[True], 0.5]), ("float or str or None", [1, "8/255", None], [[1], True])],
)  # fmt: skip
def test_values_fit_their_type(kind, good, bad):
    assert all(parameters.fits(value, kind) for value in good)
    assert not any(parameters.fits(value, kind) for value in bad)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [("method", "emm", "method: unknown 'emm'; choose from clean, noise, "), ("epochs", 0, "epochs is 0; .* least 1"),
     ("others", ["lsp", "x"], "others: unknown 'x'; choose from clean, "), ("share", 1.5, "share is 1.5; .* 0 to 1"),
     ("share", float("nan"), "share is nan"), ("epochs", "ten", "epochs must be int, got str 'ten'")],
)  # fmt: skip
def test_values_out_of_bounds_are_named_with_what_is_allowed(name, value, line):
    book = notebooks.read(next(p for p in NOTEBOOKS if p.stem == "04_sal"))
    with pytest.raises(InputError, match=line):
        parameters.refuse_wrong({name: value}, notebooks.kinds(book), "04_sal")


@pytest.mark.parametrize("name", ["levels", "epsilons", "own_weights"])
def test_strengths_are_above_0(name):
    with pytest.raises(InputError, match=f"{name} is 0; it must be above 0"):
        parameters.refuse_wrong({name: [0.5, 0]}, {name: "list[float]"}, "06_validation")


@pytest.mark.parametrize("notebook", ["04_sal", "06_validation", "08_my_poison"])
def test_a_network_of_one_layer_has_no_ud(notebook):
    with pytest.raises(InputError, match="architecture: unknown 'linear'; choose from lenet5"):
        parameters.refuse_wrong({"architecture": "linear"}, {"architecture": "str"}, notebook)
    parameters.refuse_wrong({"architecture": "linear"}, {"architecture": "str"}, "03_convergence")


def test_one_notebook_may_take_what_another_does_not():
    parameters.refuse_wrong({"method": "clean"}, {"method": "str"}, "04_sal")
    with pytest.raises(InputError, match="unknown 'clean'"):
        parameters.refuse_wrong({"method": "clean"}, {"method": "str"}, "01_poison")


def space(**changes):
    """What a running notebook with two parameters has among its names."""
    return {"__annotations__": {"n": int, "of": "list[str]"}, "n": 1, "of": [], "In": ["", "n: int = 1"]} | changes


def test_names_that_papermill_injects_must_be_parameters():
    parameters.check(space(), "x")
    parameters.check(space(In=["", "# Parameters\nn = 2\n"], other=3), "x")
    with pytest.raises(InputError, match="unknown parameter m, of_; there are n, of"):
        parameters.check(space(In=["", "# Parameters\nof_ = 2\nm = 1\nn = 3\n"]), "x")
    with pytest.raises(InputError, match="parameter n must be int, got NoneType None"):
        parameters.check(space(n=None), "x")
