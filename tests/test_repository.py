"""The repository holds together: layers, stage dependencies, pins, notebooks, profiles."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from tests import dag, imports, licences
from ul.base import names
from ul.pipeline import commands, notebooks, readme, run_list
from ul.studies import conditions, own_poison

ROOT = imports.ROOT
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = [ROOT / "params.yaml", *ROOT.glob("profiles/*/params.yaml")]
LOCKS = [ROOT / "dvc.lock", *sorted(ROOT.glob("profiles/*/dvc.lock"))]
EXPLORATORY = ROOT / "profiles" / "cifar10" / "exploratory"  # the one import: made by another state of the code
IMPORTED = {f"records/{name}.json" for name in ("cifar10", "cifar10-jpeg", "poison-cifar10")} | {
    "studies/cross_task.json"
}
IMPORTED |= {f"notebooks/01_poison-cifar10-{method}.ipynb" for method in ("noise", "em", "lsp", "ops", "ar", "tap")}
IMPORTED |= {f"notebooks/04_sal-{name}.ipynb" for name in ("cifar10", "cifar10-jpeg")}
TOP = {
    "notebooks", "ul", "data", "data.dvc", "dvc.yaml", "dvc.lock", "tests", "environment.yml", "README.md", "LICENSE",
    "CITATION.cff", "pyproject.toml", "requirements.lock", "Makefile", "params.yaml", "profiles", "results", "build",
    "logs",
}  # fmt: skip


def load_yaml(path: Path):
    return YAML(typ="safe", pure=True).load(path)


def test_rooms_are_those_of_the_layout_and_none_holds_a_single_file():
    rooms = {path.name: [*path.glob("*.py")] for path in (ROOT / "ul").iterdir() if path.is_dir()}
    rooms.pop("__pycache__", None)
    assert set(rooms) == {
        "base", "data", "render", "nets", "tasks", "training", "poisons", "sharpness", "studies", "tables", "figures",
        "pipeline",
    }  # fmt: skip
    assert all(len(files) > 2 for files in rooms.values())
    assert {path.name for path in (ROOT / "ul").glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.slow
def test_rooms_use_those_below_them():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout[-2000:]


def test_the_contracts_of_rooms_name_every_room():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = {room for contract in contracts for row in contract.get("layers", []) for room in row.split(" | ")}
    named |= {room for contract in contracts for room in contract.get("source_modules", [])}
    assert named == {f"ul.{path.name}" for path in (ROOT / "ul").iterdir() if (path / "__init__.py").exists()}


def stages_of(notebook: str):
    for name, stage in load_yaml(ROOT / "dvc.yaml")["stages"].items():
        stage = stage.get("do", stage)
        if f"/nb/{notebook}.ipynb" in stage["cmd"] and "nb-run" in stage["cmd"]:
            yield name, stage


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stages_depend_on_their_notebook_which_tells_its_code(path):
    """Nobody lists modules: a cleaned notebook holds the closure of what it imports."""
    stages = list(stages_of(path.stem))
    assert stages, f"no stage runs {path.name}"
    for name, stage in stages:
        assert f"build/${{profile.name}}/nb/{path.name}" in stage["deps"], name
        assert not [dep for dep in stage["deps"] if dep.startswith("ul/")], name


def test_a_poisons_stage_depends_on_the_code_of_its_methods():
    """It is loaded by name, where no import tells; so are those of stages that make poisons of their own."""
    stages = load_yaml(ROOT / "dvc.yaml")["stages"]
    code = "build/${profile.name}/nb/code"
    assert code in stages["poison"]["do"]["deps"]
    assert code in stages["validation"]["deps"] and f"{code}/poisons.handcrafted.json" in stages["my_poison"]["deps"]
    assert names.METHODS["noise"].module == names.METHODS[own_poison.EXAMPLE].module == "handcrafted"


def test_the_pipeline_is_short_and_stages_own_folders():
    text = (ROOT / "dvc.yaml").read_text()
    assert text.count("\n") <= 300
    stages = load_yaml(ROOT / "dvc.yaml")["stages"]
    assert stages["clean"]["deps"] == ["notebooks", "ul"]
    outs = [next(iter(out)) for s in stages.values() for out in s.get("do", s)["outs"] if isinstance(out, dict)]
    drawn = [out for out in outs if "/figures/" in out or "/tables/" in out]
    assert drawn and not [out for out in drawn if out.endswith((".csv", ".md", ".tex", ".svg", ".png"))]


def test_a_record_is_drawn_from_only_where_somebody_asks():
    """`recorded` is never used by `dvc repro`."""
    assert "recorded" not in (ROOT / "dvc.yaml").read_text()
    for path in PROFILES:
        assert "recorded" not in path.read_text()


def methods_of(params: dict) -> dict[str, list[str]]:
    """Data set -> the poisons that its plain setting trains on."""
    plain = {name: params["settings"][name]["with"] for name in params["grid"]["settings"]}
    return {name: [settings["method"], *settings.get("others", [])] for name, settings in plain.items()}


@pytest.mark.parametrize("path", PROFILES, ids=str)
def test_poisons_are_those_of_the_grid_drawn_for_all_its_seeds(path):
    """Beside the benchmark's methods there may be one against several tasks, which the cross-task study uses."""
    params = load_yaml(path)
    settings = params["settings"]
    for dataset, methods in methods_of(params).items():
        made = params["poisons"][dataset]
        own = [made["with"]["method"], *made["with"].get("others", [])]
        assert made["with"]["dataset"] == dataset and made["at"] == settings[dataset]["at"]
        assert [m for m in own if not names.METHODS[m].tasks] == sorted(methods, key=own.index)
        users = [s["with"] for s in settings.values()] + [s["with"] for s in params["cross_tasks"].values()]
        used = {seed for u in users if u["dataset"] == dataset for seed in conditions.seeds_of(u)}
        assert used <= set(conditions.seeds_of(made["with"]))
    assert params["grid"]["settings"] == list(params["poisons"])


@pytest.mark.parametrize("path", PROFILES, ids=str)
def test_settings_differ_from_the_plain_one_in_what_their_place_says(path):
    """A setting is a data set, or `<data set>-<name>` with another defense, network or length and fewer methods."""
    params = load_yaml(path)
    grid, settings = params["grid"], params["settings"]
    lengths = grid.get("lengths", [])
    assert list(settings) == [*grid["settings"], *grid["defended"], *grid["architectures"], *lengths]
    plain = methods_of(params)
    for name, setting in settings.items():
        own, dataset = setting["with"], name.partition("-")[0]
        base = settings[dataset]["with"]
        assert (
            own["dataset"] == dataset
            and own["poisons"] == setting["uses"] == f"build/{params['profile']['name']}/poisons"
        )
        assert {own["method"], *own.get("others", [])} <= {"clean", *plain[dataset]}
        assert name not in lengths or (own["epochs"] != base["epochs"] and own.get("defense") == base.get("defense"))
        for key in ("limit", "root"):
            assert own.get(key) == base.get(key) == params["poisons"][dataset]["with"].get(key)
        assert setting["at"].rpartition("/")[0] == own.get("root", "data")
        assert (name in grid["architectures"]) == (own["architecture"] != base["architecture"])
        assert own["probe_epochs"] == base["probe_epochs"] and own["sal_images"] == base["sal_images"], name
    assert set(params["claims"]["defended"]) <= set(grid["defended"])
    assert params["claims"]["architectures"] == grid["architectures"]
    assert params["claims"]["setting"] == grid["settings"][0]


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
    params = load_yaml(path)
    rows = {
        "00_data": [params["data"]],
        "01_poison": [row["with"] for row in params["poisons"].values()],
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
            notebooks.checked(own, notebooks.kinds(notebooks.read(notebook)), str(notebook))
    for name, study in params["convergences"].items():
        poisons_of = study["with"].get("poisons")
        own = {
            f"build/{params['profile']['name']}/nb/code/poisons.{names.METHODS[m].module}.json"
            for m in study["with"]["methods"]
        }
        assert {study["uses"]} == ({poisons_of} if poisons_of else own), name


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
    assert profile != "cifar10", "its results have the exploratory ones among them: leave those out here"
    files = [path.relative_to(ROOT) for path in (ROOT / "results" / profile).rglob("*") if path.is_file()]
    assert [str(file) for file in files if not {str(file), *map(str, file.parents)} & outputs] == []
    assert sorted(out for out in outputs if not (ROOT / out).exists()) == []


def test_exploratory_results_are_imported_or_drawn_from_what_was_imported():
    """Their own lock fits no code of today; the lock beside it ties today's drawing to the imported records."""
    stages = load_yaml(EXPLORATORY / "dvc.lock")["stages"]
    folder = ROOT / "results" / "cifar10" / "exploratory"
    outputs = {out["path"] for stage in stages.values() for out in stage["outs"]}
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    drawn = {f for f in files if {str((folder / p).relative_to(ROOT)) for p in (f, *f.parents)} & outputs}
    assert {str(f) for f in files - drawn} == IMPORTED
    read = {dep["path"] for stage in stages.values() for dep in stage["deps"]}
    assert {"results/cifar10/exploratory/records", "results/cifar10/exploratory/studies/cross_task.json"} <= read
    told = (EXPLORATORY / "README.md").read_text()
    assert all(
        word in told for word in ("another state of the code", "01fa769", "H200", "decide nothing", "JPEG copies")
    )


def test_what_the_exploratory_records_tell_is_what_was_measured():
    """UD and accuracies as the run's own notes have them (three digits, by the code of then)."""
    table = pd.read_csv(ROOT / "results/cifar10/exploratory/tables/benchmark/ud_by_data.csv").set_index("method")
    assert table["test_accuracy"].round(3).to_dict() == pytest.approx(
        {"clean": 0.799, "noise": 0.796, "em": 0.135, "lsp": 0.299, "ops": 0.208, "ar": 0.179, "tap": 0.117}, abs=0.002
    )
    assert table["ud_layers"].drop("clean").to_dict() == pytest.approx(
        {"noise": 1.0, "em": 0.165, "lsp": 0.41, "ops": 0.31, "ar": 0.88, "tap": 0.50}, abs=0.005
    )
    assert table.loc["em", ["ud_layers_low", "ud_layers_high"]].tolist() == pytest.approx([0.016, 1.68], abs=0.005)


def test_what_was_run_where_is_up_to_date():
    assert run_list.page(ROOT) == (ROOT / "results" / "runs.md").read_text(), "run `make readme`"


def test_readme_draws_the_pipeline_as_it_is():
    assert dag.drawn() in (ROOT / "README.md").read_text(), "run `python -m tests.dag`"


def test_store_is_within_its_bounds():
    files = [p for p in (ROOT / ".dvc-store").rglob("*") if p.is_file()]
    assert 0 < len(files) <= 9_000
    assert sum(p.stat().st_size for p in files) <= 25e6


def test_readme_says_what_the_pipeline_found():
    """Blocks are copied, never typed: `make readme`."""
    text, told = (ROOT / "README.md").read_text(), [ROOT / name for name in commands.FINDINGS]
    for path in [path for path in told if path.exists()]:
        blocks = [match[0] for match in readme.BLOCK.finditer(path.read_text())]
        assert len(blocks) == 2 and all(block in text for block in blocks), "run `make readme`"
    assert set(commands.WAITING) <= set(commands.FINDINGS)
    for source, (profile, setting) in commands.WAITING.items():
        waiting = readme.waiting(profile, notebooks.parameters_from([str(ROOT / setting)], []))
        assert (ROOT / source).exists() or all(block in text for block in waiting.values())


def test_readme_draws_the_rooms_as_they_are():
    section = (ROOT / "README.md").read_text().split("## Layout")[1].split("\n## ")[0]
    rooms = [path.name for path in (ROOT / "ul").iterdir() if (path / "__init__.py").exists()]
    assert all(re.search(rf"^ *\W*{room}\b.* \S+", section, re.M) for room in rooms)
    modules = {path.stem for path in (ROOT / "ul").rglob("*.py")}
    missing = {name for name in re.findall(r"`ul\.([\w.]+)`", section) if name.split(".")[-1] not in modules | {*rooms}}
    assert missing == set()


LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)#\s]+)[^)]*\)|!\[[^\]]*\]\(([^)\s]+)\)")


def test_no_link_of_readme_is_dead():
    text = (ROOT / "README.md").read_text()
    targets = {a or b for a, b in LINK.findall(text)}
    assert len(targets) > 10 and [t for t in targets if "://" not in t and not (ROOT / t).exists()] == []
