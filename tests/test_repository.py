"""The repository holds together: layers, stage dependencies, pins, notebooks, profiles."""

import ast
import json
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from tests import imports
from ul import poisons

ROOT = imports.ROOT
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = [ROOT / "params.yaml", *ROOT.glob("profiles/*/params.yaml")]
POISONS = {
    "autoregressive", "base", "budgets", "contrastive", "generator", "handcrafted", "kernel", "minimise", "multitask",
    "onepixel", "surrogate", "targeted",
}  # fmt: skip
# Each row imports only rows above it.
ROWS = [
    {
        "buildings",
        "config",
        "critical",
        "derived",
        "nb",
        "perturb",
        "published",
        "rays",
        "shapes",
        "stats",
        "ud",
        "vit",
    },
    {"records", "rooms", "metrics", "graph", "extremes", "fetch", "critical"},
    {"figures", "taskonomy", "tables", "models", "files"},
    {"data", "claims", "behaviour", "tasks", "encoders", "weighting"},
    {"defenses", "sal", "labels", "cross_tables"},
    {"train", "public", "scores", "cross_figures", "landscape", "convergence_figures"},
    {"multitask", "paths"},
    {"poisons", *(f"poisons.{name}" for name in POISONS)},
    {"benchmark", "checks"},
    {"validation", "taskwise", "convergence"},
    {"cross_task", "convergence_tables", "flatness", "planes"},
    {"explore"},
    {"__main__"},
]
ROW = {name: i for i, row in enumerate(ROWS) for name in row}
TOP = {
    *(
        "notebooks",
        "ul",
        "data",
        "data.dvc",
        "dvc.yaml",
        "dvc.lock",
        "tests",
        "environment.yml",
        "README.md",
        "LICENSE",
    ),
    *("CITATION.cff", "pyproject.toml", "requirements.lock", "Makefile", "params.yaml", "profiles", "results"),
    *("LICENSE", "build", "logs"),
}


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


@pytest.mark.parametrize("path", PROFILES, ids=str)
def test_conditions_are_the_grid_with_each_methods_module(path):
    params = load_yaml(path)
    wanted = {
        f"{d}-{m}": {"dataset": d, "method": m, "module": poisons.NAMES[m].module}
        for d, methods in params["grid"]["methods"].items()
        for m in methods
    }
    several = {key for key, row in wanted.items() if poisons.NAMES[row["method"]].tasks}
    assert params["conditions"] == {key: row for key, row in wanted.items() if key not in several}
    for key, row in params["task_conditions"].items():
        assert key == f"{row['dataset']}-{row['method']}" and poisons.NAMES[row["method"]].tasks
        assert row["module"] == poisons.NAMES[row["method"]].module
    assert list(params["grid"]["methods"]) == list(params["poison"])


@pytest.mark.parametrize("path", PROFILES, ids=str)
def test_runs_are_the_grid_under_each_setting(path):
    """A setting is a data set, or `<data set>-<name>` with methods of that data set."""
    params = load_yaml(path)
    settings = params["grid"]["methods"] | params["grid"]["defended"]
    dataset = {setting: setting.partition("-")[0] for setting in settings}
    assert params["baselines"] == {s: {"dataset": d} for s, d in dataset.items()}
    assert params["runs"] == {
        f"{s}-{m}": {"dataset": dataset[s], "method": m, "setting": s}
        for s, methods in settings.items()
        for m in methods
    }
    assert list(params["sal"]) == list(settings)
    for setting, methods in params["grid"]["defended"].items():
        assert set(methods) <= set(params["grid"]["methods"][dataset[setting]]), setting


def test_every_profile_runs_the_same_pipeline():
    for params in ROOT.glob("profiles/*/params.yaml"):
        assert (params.parent / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
        profile = load_yaml(params)["profile"]
        assert profile["name"] == params.parent.name
        assert profile["file"] == str(params.relative_to(ROOT))
        assert (params.parent / profile["root"]).resolve() == ROOT


@pytest.mark.parametrize("path", PROFILES, ids=str)
def test_profiles_name_only_parameters_that_notebooks_know(path):
    from ul import nb

    params = load_yaml(path)
    for section, stem in {"poison": "01_poison", "sal": "04_sal"}.items():
        known = nb.defaults(nb.read(ROOT / "notebooks" / f"{stem}.ipynb"))
        for name, settings in params[section].items():
            nb.checked(settings, known, f"{path}:{section}")
            assert params["poison"][name.partition("-")[0]].get("limit") == settings.get("limit"), name
    for section, stem in {"data": "00_data", "grid": "05_benchmark", "claims": "07_claims"}.items():
        nb.checked(params[section], nb.defaults(nb.read(ROOT / "notebooks" / f"{stem}.ipynb")), section)
    known = nb.defaults(nb.read(ROOT / "notebooks" / "03_convergence.ipynb"))
    for name, study in params["convergences"].items():
        nb.checked(study["with"], known, f"{path}:{name}")
        poisons_of = study["with"].get("poisons")
        assert study["uses"] == poisons_of if poisons_of else (ROOT / study["uses"]).is_file(), name


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] not in "#-"]
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)}


def test_lock_satisfies_pyproject_and_environment_installs_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in map(Requirement, chain.from_iterable(wanted)):
        version = pins()[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version), requirement
    assert pins()["torch"] == "2.13.0"
    environment = load_yaml(ROOT / "environment.yml")["dependencies"]
    assert environment[-1]["pip"] == ["-r requirements.lock", "-e ."]
    assert project["requires-python"] == ">=3.11.5" and "python=3.11" in environment


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


def test_store_is_within_its_bounds():
    files = [p for p in (ROOT / ".dvc-store").rglob("*") if p.is_file()]
    assert 0 < len(files) <= 9_000
    assert sum(p.stat().st_size for p in files) <= 25e6
