"""The repository holds together: layers, stage dependencies, pins, notebooks, profiles."""

import ast
import inspect
import json
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from tests import dag, imports, licences
from ul import axes, cross_task, grid, models, poisons, published, validation

ROOT = imports.ROOT
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = [ROOT / "params.yaml", *ROOT.glob("profiles/*/params.yaml")]
LOCKS = [ROOT / "dvc.lock", *sorted(ROOT.glob("profiles/*/dvc.lock"))]
POISONS = {path.stem for path in (ROOT / "ul" / "poisons").glob("*.py")} - {"__init__"}
# Each row imports only rows above it.
ROWS = [
    {
        "buildings",
        "config",
        "critical",
        "derived",
        "perturb",
        "published",
        "rays",
        "shapes",
        "stats",
        "ud",
        "vit",
    },
    {"records", "rooms", "metrics", "graph", "extremes", "fetch", "folders", "parameters"},
    {"figures", "taskonomy", "tables", "models", "files", "nb"},
    {"data", "axes", "behaviour", "kept", "readme", "tasks", "encoders", "weighting"},
    {"defenses", "sal", "labels", "cross_tables", "claims", "processes"},
    {"train", "public", "scores", "cross_figures", "landscape", "convergence_figures", "pages"},
    {"multitask", "paths", "plain", "report"},
    {"poisons", *(f"poisons.{name}" for name in POISONS)},
    {"benchmark", "checks"},
    {"grid", "validation", "taskwise", "convergence"},
    {"cross_task", "convergence_tables", "flatness", "planes"},
    {"explore"},
    {"__main__"},
]
ROW = {name: i for i, row in enumerate(ROWS) for name in row}
TOP = {
    "notebooks", "ul", "data", "data.dvc", "dvc.yaml", "dvc.lock", "tests", "environment.yml", "README.md", "LICENSE",
    "CITATION.cff", "pyproject.toml", "requirements.lock", "Makefile", "params.yaml", "profiles", "results", "build",
    "logs",
}  # fmt: skip


def load_yaml(path: Path):
    return YAML(typ="safe", pure=True).load(path)


def test_every_module_has_a_row():
    assert set(imports.modules()) == set(ROW)


@pytest.mark.parametrize("name", sorted(ROW))
def test_modules_import_only_rows_above(name):
    family = name.split(".")[0]
    for other in imports.of_module(name):
        inside = other.split(".")[0] == family == "poisons"
        assert inside or ROW[other] < ROW[name], f"{name} imports {other}"


@pytest.mark.parametrize("path", sorted((ROOT / "ul").rglob("*.py")) + sorted((ROOT / "tests").rglob("*.py")), ids=str)
def test_files_and_functions_stay_small(path):
    source = path.read_text()
    assert source.count("\n") <= 350, path
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def stages_of(notebook: str):
    for name, stage in load_yaml(ROOT / "dvc.yaml")["stages"].items():
        stage = stage.get("do", stage)
        if f"/nb/{notebook}.ipynb" in stage["cmd"] and "nb-run" in stage["cmd"]:
            yield name, stage


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stage_dependencies_are_the_imports(path):
    """A method's own module is loaded when its poison is made; what such modules import counts for all of them.

    Poisons against several tasks need far more, and have a stage of their own.
    """
    stages, own = list(stages_of(path.stem)), "ul/poisons/${item.module}.py"
    assert stages, f"no stage runs {path.name}"
    for name, stage in stages:
        wanted = imports.of_notebook(path)
        if own in stage["deps"]:
            made = [method for method in poisons.NAMES.values() if method.tasks == (name == "poison_tasks")]
            wanted |= imports.of_making({f"poisons.{method.module}" for method in made})
        assert {d for d in stage["deps"] if d.startswith("ul/")} - {own} == imports.files_of(wanted), name
    assert (path.stem == "01_poison") == (own in stages[0][1]["deps"])


def methods_of(params: dict) -> dict[str, list[str]]:
    """Data set -> the poisons that its plain setting trains on."""
    plain = {name: params["settings"][name]["with"] for name in params["grid"]["settings"]}
    return {name: [settings["method"], *settings.get("others", [])] for name, settings in plain.items()}


@pytest.mark.parametrize("path", PROFILES, ids=str)
def test_conditions_are_the_grid_with_each_methods_module(path):
    params = load_yaml(path)
    settings = params["settings"]
    wanted = {
        f"{d}-{m}": {"dataset": d, "method": m, "module": poisons.NAMES[m].module, "at": settings[d]["at"]}
        for d, methods in methods_of(params).items()
        for m in methods
    }
    assert params["conditions"] == wanted
    for key, row in params["task_conditions"].items():
        assert key == f"{row['dataset']}-{row['method']}" and poisons.NAMES[row["method"]].tasks
        assert row["module"] == poisons.NAMES[row["method"]].module
    assert params["grid"]["settings"] == list(params["poison"])


@pytest.mark.parametrize("path", PROFILES, ids=str)
def test_settings_differ_from_the_plain_one_in_what_their_place_says(path):
    """A setting is a data set, or `<data set>-<name>` with another defense, network or length and fewer methods."""
    params = load_yaml(path)
    grid, settings = params["grid"], params["settings"]
    assert list(settings) == [*grid["settings"], *grid["defended"], *grid["architectures"]]
    plain = methods_of(params)
    for name, setting in settings.items():
        own, dataset = setting["with"], name.partition("-")[0]
        base = settings[dataset]["with"]
        assert (
            own["dataset"] == dataset
            and own["poisons"] == setting["uses"] == f"build/{params['profile']['name']}/poisons"
        )
        assert {own["method"], *own.get("others", [])} <= set(plain[dataset])
        for key in ("limit", "root"):
            assert own.get(key) == base.get(key) == params["poison"][dataset].get(key)
        assert setting["at"].rpartition("/")[0] == own.get("root", "data")
        assert (name in grid["architectures"]) == (own["architecture"] != base["architecture"])
        assert own["probe_epochs"] == base["probe_epochs"] and own["sal_images"] == base["sal_images"], name
    assert set(params["claims"]["defended"]) <= set(grid["defended"])
    assert params["claims"]["architectures"] == grid["architectures"]
    assert params["claims"]["setting"] == grid["settings"][0]


@pytest.mark.parametrize("name, code", [("benchmark", grid.CODE), ("cross_task", cross_task.CODE)])
def test_kept_runs_are_bound_to_all_code_that_their_numbers_depend_on(name, code):
    """What else a run imports only makes its images, whose bytes count, or has no part in its numbers."""
    other = {"buildings", "data", "files", "folders", "rays", "rooms", "shapes", "taskonomy"}
    other |= {module for module in imports.closure({name}) if module.partition(".")[0] == "poisons"}
    assert set(code) == imports.closure({name}) - other - {"config", "kept", "processes", "records"}


def test_kept_scores_are_bound_to_the_code_that_makes_them():
    own, source = imports.closure({"validation"}) - set(grid.CODE), inspect.getsource(validation.scores_of)
    assert set(grid.ENDING) == {"validation"} | {name for name in own - {"config", "data"} if f"{name}." in source}


def test_every_profile_runs_the_same_pipeline():
    for params in ROOT.glob("profiles/*/params.yaml"):
        # Copies: in other revisions DVC does not follow links, and compares nothing (`dvc exp show`, `dvc plots diff`).
        own = params.parent / "dvc.yaml"
        assert not own.is_symlink() and own.read_bytes() == (ROOT / "dvc.yaml").read_bytes(), "run `make profiles`"
        profile = load_yaml(params)["profile"]
        assert profile["name"] == params.parent.name
        assert profile["file"] == str(params.relative_to(ROOT))
        assert (params.parent / profile["root"]).resolve() == ROOT


@pytest.mark.parametrize("path", PROFILES, ids=str)
def test_profiles_name_only_parameters_that_notebooks_know(path):
    from ul import nb

    params = load_yaml(path)
    rows = {
        "00_data": [params["data"]],
        "01_poison": params["poison"].values(),
        "02_cross_task": [row["with"] for row in params["cross_tasks"].values()],
        "03_convergence": [row["with"] for row in params["convergences"].values()],
        "04_sal": [row["with"] for row in params["settings"].values()],
        "05_benchmark": [params["grid"]],
        "06_validation": [params["validation"]["with"]],
        "07_claims": [params["claims"]],
        "08_my_poison": [params["my_poison"]["with"]],
    }
    for stem, settings in rows.items():
        notebook = ROOT / "notebooks" / f"{stem}.ipynb"
        for own in settings:
            nb.checked(own, nb.kinds(nb.read(notebook)), str(notebook))
    for name, study in params["convergences"].items():
        poisons_of = study["with"].get("poisons")
        assert study["uses"] == poisons_of if poisons_of else (ROOT / study["uses"]).is_file(), name


def test_lock_satisfies_pyproject_and_environment_installs_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [project["dependencies"], *project["optional-dependencies"].values()]
    pins = {licences.normal(name): version for name, version in licences.pins().items()}
    for requirement in map(Requirement, chain.from_iterable(wanted)):
        assert requirement.specifier.contains(pins[licences.normal(requirement.name)]), requirement
    assert pins["torch"] == "2.13.0"
    environment = load_yaml(ROOT / "environment.yml")["dependencies"]
    assert environment[-1]["pip"] == ["-r requirements.lock", "-e ."]
    assert project["requires-python"].startswith(">=3.11.5,") and "python=3.11" in environment


def test_top_level_is_what_the_layout_names():
    extra = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - TOP
    assert {name for name in extra if not name.endswith((".egg-info", "__pycache__"))} == set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_clean_short_and_argue(path):
    cells = json.loads(path.read_text())["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells) == 1
    assert not any(c["outputs"] or c["execution_count"] for c in code)
    for cell in code:
        lines = "".join(cell["source"]).splitlines()
        long = len(lines) > 12 and "parameters" not in cell["metadata"].get("tags", [])
        defined = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, DEFINITIONS)]
        assert not long and not defined, lines[:2]


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/*/notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_executed_copies_are_small_and_name_no_path_of_a_machine(path):
    text = path.read_text()
    assert len(text) <= 1_000_000
    assert not re.search(r"/(home|root|tmp|Users)/", text)
    assert '"output_type": "error"' not in text
    assert '"name": "stderr"' not in text, "a warning or a progress bar was printed"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_results_are_outputs_of_the_pipeline(lock):
    stages = load_yaml(lock)["stages"].values()
    outputs = {out["path"] for stage in stages for out in stage.get("outs", ()) if out["path"].startswith("results/")}
    profile = "laptop" if lock.parent == ROOT else lock.parent.name
    files = [path.relative_to(ROOT) for path in (ROOT / "results" / profile).rglob("*") if path.is_file()]
    assert [str(file) for file in files if not {str(file), *map(str, file.parents)} & outputs] == []
    assert sorted(out for out in outputs if not (ROOT / out).exists()) == []


def test_readme_draws_the_pipeline_as_it_is():
    assert dag.drawn() in (ROOT / "README.md").read_text(), "run `python -m tests.dag`"


def test_store_is_within_its_bounds():
    files = [p for p in (ROOT / ".dvc-store").rglob("*") if p.is_file()]
    assert 0 < len(files) <= 9_000
    assert sum(p.stat().st_size for p in files) <= 25e6


def test_methods_without_a_surrogate_have_one_recipe():
    assert set(published.ONE_RECIPE) == {name for name, method in poisons.NAMES.items() if not method.recipes}


def test_transformers_are_networks():
    assert set(axes.TRANSFORMERS) <= set(models.NAMES)
