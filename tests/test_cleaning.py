"""What stages depend on: cleaned notebooks with the code that they use, and what is said when one of them changes."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import ul
from tests.imports import ROOT
from tests.test_notebooks import nbformat, notebook
from ul.base import closure
from ul.base.names import METHODS
from ul.pipeline import cleaning
from ul.pipeline.notebooks import NotebookError

MODULES = sorted({method.module for method in METHODS.values()})
CODE = [f"poisons.{module}.json" for module in MODULES]
USES = """from ul import poisons
from ul.base.names import METHODS
from ul.base.ud import distance
distance, METHODS, poisons.make"""


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the package that closures are read from; `edit` changes it."""
    copy = tmp_path / "copy" / "ul"
    shutil.copytree(ROOT / "ul", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(closure, "PACKAGE", copy)
    closure.forget()
    yield copy
    closure.forget()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    closure.forget()


@pytest.fixture
def sources(tmp_path) -> Path:
    """A folder with one notebook that uses UD and makes poisons, whose modules are loaded by name."""
    folder = tmp_path / "sources"
    folder.mkdir()
    nbformat.write(notebook("n = 1", USES), folder / "x.ipynb")
    return folder


def cleaned(sources: Path) -> list[str]:
    return cleaning.clean(str(sources), str(sources.with_name("cleaned")))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_notebooks_are_written_clean_with_the_code_that_they_use(sources, tmp_path):
    cleaned(sources)
    found = json.loads((tmp_path / "cleaned" / "x.ipynb").read_text())
    used = found["metadata"]["ul"]["closure"]
    assert used == closure.of_source("n = 1\n" + USES)
    assert {"ul/base/ud.py", "ul/base/names.py:METHODS", "ul/poisons/making.py"} <= set(used)
    assert not {f"ul/poisons/{module}.py" for module in MODULES} & set(used)
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in used.values())
    assert b"old" not in (tmp_path / "cleaned" / "x.ipynb").read_bytes()


def test_each_module_of_a_poison_has_a_file_of_its_code(sources, tmp_path):
    cleaned(sources)
    assert sorted(contents(tmp_path / "cleaned")) == sorted([*(f"code/{name}" for name in CODE), "x.ipynb"])
    for module, name in zip(MODULES, CODE, strict=True):
        found = json.loads((tmp_path / "cleaned" / "code" / name).read_text())
        assert found == closure.of_modules({f"ul.poisons.{module}"}) and f"ul/poisons/{module}.py" in found


def test_what_is_new_is_said_once(sources):
    assert cleaned(sources) == [f"{name}: new" for name in ["x.ipynb", *CODE]]
    assert cleaned(sources) == []


def test_a_changed_cell_is_its_own_text(sources):
    cleaned(sources)
    nbformat.write(notebook("n = 2", USES), sources / "x.ipynb")
    assert cleaned(sources) == ["x.ipynb: its own text"]


def test_a_changed_module_is_named_by_all_that_use_it(sources, package):
    cleaned(sources)
    edit(package / "base" / "ud.py", "import numpy as np\n", "import numpy as np\n\nNEW = 1\n")
    assert cleaned(sources) == ["x.ipynb: ul/base/ud.py"]
    edit(package / "poisons" / "handcrafted.py", "import torch\n", "import torch\n\nNEW = 1\n")
    assert cleaned(sources) == ["poisons.handcrafted.json: ul/poisons/handcrafted.py"]
    assert cleaned(sources) == []


def test_a_new_import_is_named_with_what_it_brings_and_so_is_one_that_goes(sources):
    cleaned(sources)
    nbformat.write(notebook("n = 1", f"{USES}\nfrom ul.base import stats\nstats.fixed"), sources / "x.ipynb")
    assert cleaned(sources) == ["x.ipynb: its own text, ul/base/stats.py (new)"]
    nbformat.write(notebook("n = 1", USES), sources / "x.ipynb")
    assert cleaned(sources) == ["x.ipynb: its own text, ul/base/stats.py (no longer used)"]


def test_comments_docstrings_and_layout_are_no_change(sources, package):
    cleaned(sources)
    before = contents(sources.with_name("cleaned"))
    path = package / "base" / "ud.py"
    edit(path, '"""', '"""Another sentence. ')
    edit(path, "import numpy as np\n", "import numpy as np  # arrays\n\n\n# more\n")
    edit(path, "    return ", "    return  ")
    assert cleaned(sources) == [] and contents(sources.with_name("cleaned")) == before


def test_what_is_no_longer_made_goes_and_what_is_not_ours_stays(sources, tmp_path):
    shutil.copy(sources / "x.ipynb", sources / "y.ipynb")
    cleaned(sources)
    folder = tmp_path / "cleaned"
    (folder / "code" / "poisons.gone.json").write_text('{"ul/poisons/gone.py": "0123456789abcdef"}')
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine")
    nbformat.write(notebook("n = 1"), folder / "mine.ipynb")
    (sources / "y.ipynb").unlink()
    assert cleaned(sources) == ["poisons.gone.json: no longer made", "y.ipynb: no longer made"]
    assert cleaned(sources) == []
    own = ["mine/notes.txt", "mine.ipynb"]
    assert sorted(contents(folder)) == sorted([*own, *(f"code/{name}" for name in CODE), "x.ipynb"])


def test_cleaning_a_cleaned_folder_changes_nothing(sources, tmp_path):
    cleaned(sources)
    before = contents(tmp_path / "cleaned")
    cleaning.clean(str(tmp_path / "cleaned"), str(tmp_path / "again"))
    assert contents(tmp_path / "again") == before
    assert cleaning.clean(str(tmp_path / "cleaned"), str(tmp_path / "cleaned")) == []
    assert contents(tmp_path / "cleaned") == before


@pytest.mark.parametrize("content", ["", "[1]", '{"metadata": {"ul": {"closure": 1}}}', "\xff", "[" * 99_999])
def test_damaged_files_of_an_earlier_call_are_new(sources, tmp_path, content):
    cleaned(sources)
    before = contents(tmp_path / "cleaned")
    (tmp_path / "cleaned" / "x.ipynb").write_text(content, "latin-1")
    (tmp_path / "cleaned" / "code" / CODE[0]).write_text(content[:3], "latin-1")
    assert cleaned(sources) == ["x.ipynb: new", f"{CODE[0]}: new"]
    assert contents(tmp_path / "cleaned") == before


def test_a_folder_without_notebooks_is_refused(tmp_path):
    with pytest.raises(NotebookError, match="no notebooks there"):
        cleaning.clean(str(tmp_path / "nowhere"), str(tmp_path / "cleaned"))
    assert not (tmp_path / "cleaned").exists()


@pytest.mark.parametrize("cell", ["n = (", "%matplotlib inline", "a = '\0'", "(" * 500 + ")" * 500])
def test_cells_that_are_not_python_are_one_line(sources, cell):
    nbformat.write(notebook("n = 1", cell), sources / "y.ipynb")
    with pytest.raises(NotebookError, match=r"sources/y\.ipynb: its cells are not Python") as caught:
        cleaned(sources)
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_prints_what_changed(sources, tmp_path):
    words = ("nb-clean", "sources", "cleaned")
    first, second = (ul(*words, cwd=tmp_path) for _ in range(2))
    assert first.returncode == second.returncode == 0
    assert first.stdout.splitlines() == [f"{name}: new" for name in ["x.ipynb", *CODE]]
    assert second.stdout == "nothing changed\n"


def test_every_notebook_of_the_repository_has_its_code(tmp_path):
    lines = cleaning.clean(str(ROOT / "notebooks"), str(tmp_path))
    names = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert lines == [f"{name}: new" for name in [*names, *CODE]] and len(names) == 9
    for name in names:
        assert json.loads((tmp_path / name).read_text())["metadata"]["ul"]["closure"], name
