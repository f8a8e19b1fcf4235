"""Which modules of `ul` a notebook or module imports, directly and through others, read from the source."""

import ast
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def module_file(name: str) -> Path | None:
    """`data` -> ul/data.py, `poisons` -> ul/poisons/__init__.py."""
    path = ROOT / "ul" / Path(*name.split("."))
    found = [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()]
    return found[0] if found else None


def _names(node: ast.ImportFrom, package: list[str]) -> list[str]:
    if node.level:
        base = package[: len(package) - (node.level - 1)]
    elif node.module and node.module.split(".")[0] == "ul":
        base = []
    else:
        return []
    tail = (node.module or "").split(".") if node.level else node.module.split(".")[1:]
    stem = [*base, *filter(None, tail)]
    children = [".".join([*stem, alias.name]) for alias in node.names]
    modules = [c for c in children if module_file(c)]
    return modules or [".".join(stem)]


def direct(source: str, package: list[str]) -> set[str]:
    """Modules of `ul` that a source text imports; package: where it lies below `ul`."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)]
    return {name for node in nodes for name in _names(node, package) if name}


def of_module(name: str) -> set[str]:
    """Modules that `ul.<name>` imports itself."""
    path = module_file(name)
    package = list(path.parent.relative_to(ROOT / "ul").parts)
    return direct(path.read_text(), package)


def closure(names: set[str]) -> set[str]:
    """These modules and all that they import, directly and through others."""
    todo, seen = set(names), set()
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= of_module(name) - seen
    return seen


def files_of(names: set[str]) -> set[str]:
    """Files of modules, as paths relative to the repository."""
    return {str(module_file(name).relative_to(ROOT)) for name in names}


def of_notebook(path: Path) -> set[str]:
    """Every module of `ul` that a notebook needs."""
    cells = json.loads(path.read_text())["cells"]
    source = "\n".join("".join(c["source"]).rstrip(";") for c in cells if c["cell_type"] == "code")
    return closure(direct(source, []))


def of_making(makers: set[str]) -> set[str]:
    """What every poison needs to be made, without the modules that hold the methods (loaded on demand)."""
    return closure(makers) - makers


def modules() -> list[str]:
    """All module names below `ul`, packages by their own name; without the package `ul` itself."""
    files = [p.relative_to(ROOT / "ul") for p in (ROOT / "ul").rglob("*.py")]
    names = [".".join(f.with_suffix("").parts).removesuffix("__init__").strip(".") for f in files]
    return sorted(filter(None, names))
