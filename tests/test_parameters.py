"""Parameters of notebooks: types, choices and limits, before anything heavy is imported."""

import subprocess
import sys

import pytest
from papermill.inspection import inspect_notebook

from tests.test_repository import NOTEBOOKS
from ul import convergence, data, defenses, encoders, grid, labels, models, nb, parameters, poisons, public
from ul.config import InputError

TABLES = {
    "method": poisons.NAMES,
    "defense": defenses.NAMES,
    "architecture": models.NAMES,
    "recipe": poisons.RECIPES,
    "encoder": encoders.NAMES,
    "backend": [grid.HERE, *grid.CLUSTERS],
    "departed": public.DEPARTURES,
    "freeze": convergence.MOVED,
    "rare": labels.RARE,
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_choices_are_the_tables_that_the_package_uses(name):
    assert set(parameters.CHOICES[name]) == set(TABLES[name])


def test_data_sets_are_those_that_can_be_loaded():
    assert set(parameters.DATA) == set(data.SOURCES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_parameter_has_a_type_and_help_and_a_default_that_passes(path):
    book = nb.read(path)
    kinds, shown = nb.kinds(book), inspect_notebook(path)
    assert set(shown) == set(kinds)
    for name, found in shown.items():
        assert found["inferred_type_name"] == kinds[name] and found["help"], name
    assert nb.checked(nb.defaults(book), kinds, str(path)) == nb.defaults(book)
    assert f'parameters.check(globals(), "{path.stem}")' in book.cells[2].source


def test_modules_that_check_load_nothing_heavy():
    code = "import sys; from ul import parameters; print({'torch', 'numpy', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


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
    book = nb.read(next(p for p in NOTEBOOKS if p.stem == "04_sal"))
    with pytest.raises(InputError, match=line):
        parameters.refuse_wrong({name: value}, nb.kinds(book), "04_sal")


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
