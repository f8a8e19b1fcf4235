"""The package as a library: the README's example does what it says, and type checkers see the types."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
import torch

import ul
from tests import imports

README = (imports.ROOT / "README.md").read_text()


def test_the_readmes_example_prints_a_distance(tmp_path, monkeypatch, capsys):
    """Any network and tensors to SAL of every layer at two epochs and to UD, in an empty folder."""
    source = re.search(r"### Measure it yourself.*?```python\n(.*?)```", README, re.DOTALL)[1]
    found = {}
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        exec(compile(source, "README.md", "exec"), found)
    assert [len(probes) for probes in found["runs"]] == [2, 2]
    assert all(len(sal) == 3 and (sal >= 0).all() for probes in found["runs"] for sal in probes)
    printed = float(capsys.readouterr().out)
    assert printed == found["ud"].distance(*found["runs"]) and 0 <= printed < 0.5
    assert not list(tmp_path.iterdir())


def printed(code):
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=imports.ROOT)
    return done.stdout.strip()


LOADED = "print(sorted(m for m in sys.modules if m.startswith('ul.') or m in ('torch', 'numpy', 'pandas')))"


def test_the_package_alone_loads_nothing():
    assert printed(f"import sys, ul; {LOADED}") == "[]"


def test_modules_that_are_used_on_their_own_are_loaded_when_they_are_asked_for():
    assert printed(f"import sys; from ul import ud; {LOADED}") == "['numpy', 'ul.base', 'ul.base.ud']"
    code = "from ul import sal, train, ud; print(sal.__name__, train.__name__, ud.__name__)"
    assert printed(code) == "ul.sharpness.sal ul.training.victim ul.base.ud"
    assert printed("import ul; print(ul.sal is ul.sal, ul.train.fit.__name__)") == "True fit"


def test_names_that_the_package_does_not_have_are_refused():
    with pytest.raises(AttributeError, match="module 'ul' has no attribute 'nothing'"):
        ul.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'ul'"):
        from ul import nothing  # noqa: F401


def test_an_installed_package_is_whole_and_typed():
    project = tomllib.loads((imports.ROOT / "pyproject.toml").read_text())
    setup = project["tool"]["setuptools"]
    folders = {p.parent.relative_to(imports.ROOT) for p in (imports.ROOT / "ul").rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == set(setup["packages"])
    assert setup["package-data"] == {"ul": ["py.typed", "pipeline/report.css"]}
    assert all((imports.ROOT / "ul" / name).exists() for name in setup["package-data"]["ul"])
    assert "Typing :: Typed" in project["project"]["classifiers"]


def test_every_function_says_what_it_takes_and_gives():
    for path in (imports.ROOT / "ul").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                given += [node.args.vararg, node.args.kwarg]
                bare = [a.arg for a in given if a and not a.annotation and a.arg not in ("self", "cls")]
                assert node.returns and not bare, f"{path}:{node.lineno} {node.name}"
