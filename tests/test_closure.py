"""What code a result depends on: told from the source, held against what really runs."""

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.imports import ROOT
from ul.base import closure, stats
from ul.pipeline import cleaning, notebooks
from ul.studies import executor

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `toy` in the place of `ul`: write(name, source) gives it a module."""
    home = tmp_path / "toy"

    def write(name: str, source: str) -> None:
        path = home / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        closure.forget()

    monkeypatch.setattr(closure, "PACKAGE", home)
    monkeypatch.setattr(closure, "TABLES", ("toy.names",))
    for name in ("__init__", "room/__init__"):
        write(name, "")
    yield write
    closure.forget()


def paths(*names: str) -> list[str]:
    return list(closure.of_modules(names))


# ---- Which modules -------------------------------------------------------------------------------------------------


def test_imports_are_followed_in_every_way_that_they_are_written(package):
    package("room/a", "from . import b\nfrom .c import f\nfrom ..d import g\nimport toy.e\nimport os, numpy\n")
    for name in ("room/b", "room/c", "d", "e", "far", "other"):
        package(name, "")
    package("room/c", "def f():\n    from toy import far\n    return far.x\n")
    found = {"toy/room/a.py", "toy/room/b.py", "toy/room/c.py", "toy/d.py", "toy/e.py", "toy/far.py"}
    assert set(paths("toy.room.a")) == found
    assert set(closure.of_source("if True:\n    from toy.room import a")) == found


def test_names_that_a_package_hands_on_lead_to_where_they_are_defined(package):
    package("room/__init__", "from .a import one\nfrom .b import two, three\n")
    package("room/a", "one = 1\n")
    package("room/b", "from . import c\ntwo = three = 2\n")
    package("room/c", "")
    assert list(closure.of_source("from toy.room import one")) == ["toy/room/a.py"]
    assert list(closure.of_source("from toy import room\nprint(room.one)")) == ["toy/room/a.py"]
    whole = ["toy/room/__init__.py", "toy/room/a.py", "toy/room/b.py", "toy/room/c.py"]
    assert list(closure.of_source("from toy import room\nprint(room)")) == whole
    assert list(closure.of_source("from toy.room import b")) == ["toy/room/b.py", "toy/room/c.py"]


def test_a_table_of_names_counts_by_the_parts_that_are_named(package):
    package("names", "from . import size\nA = {'a': 1}\nB = [*A, size.x]\nclass C: pass\nD = C()\n")
    package("size", "x = 1\n")
    package("m", "from .names import B, D\n")
    parts = [f"toy/names.py:{part}" for part in "ABCD"]
    assert paths("toy.m") == ["toy/m.py", *parts, "toy/size.py"]
    before = closure.of_modules(["toy.m"])
    package("names", "from . import size\nA = {'a': 2}\nB = [*A, size.x]\nclass C: pass\nD = C()\nE = 5\n")
    after = closure.of_modules(["toy.m"])
    assert [path for path in after if before[path] != after[path]] == ["toy/names.py:A"]
    assert list(closure.of_source("from toy import names\nnames.D")) == ["toy/names.py:C", "toy/names.py:D"]


def test_what_is_imported_when_asked_for_counts_as_well():
    assert "ul/sharpness/sal.py" in closure.of_source("from ul import sal, ud\nsal.per_layer, ud.distance")
    assert list(closure.of_source("from ul import ud")) == ["ul/base/ud.py"]


# ---- Which code ----------------------------------------------------------------------------------------------------

CODE = '"""Says."""\n\ndef f(x):\n    """Doubles."""\n    return x * 2  # twice\n'


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ('"""Says more."""\n\n\n# aside\ndef f(x):\n    """Twice."""\n    return (\n        x * 2\n    )\n', True),
        ("def f(x):\n    return x * 2\n", True),
        (CODE.replace("2", "3"), False),
        (CODE.replace("(x)", "(x, y=0)"), False),
        (CODE.replace("return x * 2", 'return "x" * 2'), False),
    ],
)
def test_docstrings_comments_and_layout_do_not_count(package, source, same):
    package("m", CODE)
    before = closure.of_modules(["toy.m"])
    package("m", source)
    assert (closure.of_modules(["toy.m"]) == before) is same


def test_hashes_do_not_depend_on_the_version_of_python():
    """`ast` of newer versions has fields that older ones lack; as text only what is there counts."""
    import ast

    tree = ast.parse("def f(x: int = 1, *, y): return [x, y]")
    assert closure._written(tree) == (
        "Module(body=[FunctionDef(name='f',args=arguments(args=[arg(arg='x',annotation=Name(id='int',ctx=Load()))],"
        "kwonlyargs=[arg(arg='y')],kw_defaults=[None],defaults=[Constant(value=1)]),"
        "body=[Return(value=List(elts=[Name(id='x',ctx=Load()),Name(id='y',ctx=Load())],ctx=Load()))])])"
    )


@pytest.mark.parametrize("function", [print, partial(len), lambda: 1, test_docstrings_comments_and_layout_do_not_count])
def test_code_that_is_not_ours_has_no_closure(function):
    with pytest.raises(ValueError, match="is no function of ul, so what it finds cannot be kept"):
        closure.of_functions([function])


def test_functions_are_known_by_their_modules_and_tables_can_be_left_out():
    assert closure.of_functions([stats.holm]) == closure.of_functions([partial(stats.student, level=0.9)])
    from ul.studies import victims

    assert "ul/base/names.py:METHODS" in closure.of_modules(["ul.studies.victims"])
    both = [closure.of_functions([victims.run], without) for without in ((), ("ul.base.names:METHODS",))]
    assert both[0] != both[1]


# ---- Against what really runs --------------------------------------------------------------------------------------

TRACED = """
import json, sys
from functools import partial
from pathlib import Path
from ul.studies import conditions, convergence, cross_task, executor, processes, store
from ul.base import closure
HOME = str(closure.PACKAGE.parent)
jobs, ran = [], set()

def looked(frame, event, argument):
    name = frame.f_code.co_filename
    if event == "call" and name.startswith(str(closure.PACKAGE)) and frame.f_code.co_name != "<module>":
        ran.add(name.removeprefix(HOME + "/"))

def kept(work, label, total, **options):
    for job in work:
        ran.clear()
        sys.setprofile(looked)
        record = job.make()
        sys.setprofile(None)
        module = closure.module_of(job.make)
        paths = {path.partition(":")[0] for path in closure.of_modules([module])}
        jobs.append([job.make.func.__name__, sorted(ran - paths)])
        yield record

executor.run_all = lambda *given, **options: list(kept(*given, **options))
"""
SMALL = {"root": str(ROOT / "data"), "limit": 48, "eps": None, "recipe": "cpu", "poison": None, "share": 1.0,
         "epochs": 2, "probe_epochs": 1, "sal_images": 8, "poisons": None}  # fmt: skip
VICTIMS = {"dataset": "rooms", "architecture": "resnet8", "defense": "jpeg", "seeds": 1, "label_noise": 0.0}
PATHS = {"dataset": "mnist", "architecture": "lenet5", "methods": ["lsp"], "seeds": 3, "start": 0, "features": 2,
         "points": 2, "looked": 8, "grid": 2, "surface_images": 8, "flat_seeds": 1, "flat_methods": ["lsp"],
         "shown": ["lsp"], "freeze": ["differing"]}  # fmt: skip
SEVERAL = {"dataset": "rooms", "size": None, "rare": "drop", "tasks": ["class_object", "depth_euclidean"],
           "single": [], "transfer": True, "methods": ["lsp"], "target": None, "encoder": "resnet8",
           "weighting": "equal", "weightings": [], "own_weights": [10], "balance_methods": ["lsp"], "batch_size": 16,
           "lr": 0.01, "seeds": 1}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "functions"),
    [
        (f"conditions.study({SMALL | VICTIMS}, ['lsp'])", {"run"}),
        (f"cross_task.study({SMALL | SEVERAL})", {"run"}),
        (f"convergence.study({SMALL | PATHS})", {"follow", "transplanted", "joint", "around", "between", "measured"}),
    ],
    ids=["victims", "several tasks", "paths"],
)
def test_no_function_runs_that_a_kept_record_does_not_depend_on(call, functions):
    """Whatever is called while a record is made lies in its closure: a profiler sees what the source may hide."""
    script = f"{TRACED}\n{call}\nprint(json.dumps(jobs))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    import json

    found = json.loads(done.stdout.splitlines()[-1])
    assert {name for name, _ in found} == functions
    assert [(name, missing) for name, missing in found if missing] == []


KEPT = ("victims", "several_tasks", "paths", "surfaces", "sam_runs", "rival_scores", "poison_runs")


@pytest.mark.parametrize("table", ["METHODS", "DATASETS"])
def test_a_new_row_changes_no_kept_record(tmp_path, monkeypatch, table):
    """Its code counts without the table: a job depends on the rows that it names by itself."""
    own, copy = ROOT / "ul", tmp_path / "ul"
    shutil.copytree(own, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(closure, "PACKAGE", copy)
    modules = [f"ul.studies.{name}" for name in KEPT]

    def found() -> list[closure.Hashes]:
        closure.forget()
        return [closure.of_modules([module], executor.TABLES) for module in modules]

    before = found()
    source = (copy / "base" / "names.py").read_text()
    row = {"METHODS": 'Method("New", "new")', "DATASETS": 'DataSet("label", 10)'}[table]
    new, count = re.subn(rf"^({table}: .*{{)$", rf'\1\n    "new": {row},', source, flags=re.MULTILINE)
    assert count == 1
    (copy / "base" / "names.py").write_text(new)
    assert found() == before
    (copy / "base" / "names.py").write_text(source.replace("return known.flip if known else True", "return True"))
    assert found() != before
    closure.forget()


def test_no_kept_record_depends_on_what_runs_or_plans_it():
    for name in KEPT:
        found = closure.of_modules([f"ul.studies.{name}"])
        above = {f"ul/studies/{other}.py" for other in ("executor", "processes", "store", "conditions", "images")}
        assert not above & {*found}, name


def test_runs_depend_on_nothing_that_only_makes_their_images_or_shows_them():
    """The images' bytes count; a chair, a palette or a table does not."""
    for module in ("victims", "several_tasks", "paths"):
        found = closure.of_modules([f"ul.studies.{module}"])
        rooms = {Path(path).parent.name for path in found}
        assert rooms <= {"base", "data", "nets", "tasks", "training", "sharpness", "studies"}, module
        assert not {f"ul/data/{name}.py" for name in ("sources", "taskonomy", "photographs", "formats")} & {*found}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_depends_on_the_renderer(path):
    found = cleaning.with_closure(notebooks.read(path)).metadata[notebooks.CLOSURE]["closure"]
    assert found and not [name for name in found if name.startswith("ul/render/")]
