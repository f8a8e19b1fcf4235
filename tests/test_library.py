"""The package as a library: the README's example does what it says, and type checkers see the types."""

import ast
import re
import tomllib

import torch

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


def test_an_installed_package_is_whole_and_typed():
    project = tomllib.loads((imports.ROOT / "pyproject.toml").read_text())
    setup = project["tool"]["setuptools"]
    folders = {p.parent.relative_to(imports.ROOT) for p in (imports.ROOT / "ul").rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == set(setup["packages"])
    assert setup["package-data"] == {"ul": ["py.typed", "report.css"]} and (imports.ROOT / "ul" / "py.typed").exists()
    assert "Typing :: Typed" in project["project"]["classifiers"]


def test_every_function_says_what_it_takes_and_gives():
    for path in (imports.ROOT / "ul").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = [
                    *node.args.posonlyargs,
                    *node.args.args,
                    *node.args.kwonlyargs,
                    node.args.vararg,
                    node.args.kwarg,
                ]
                bare = [a.arg for a in given if a and not a.annotation and a.arg not in ("self", "cls")]
                assert node.returns and not bare, f"{path}:{node.lineno} {node.name}"
