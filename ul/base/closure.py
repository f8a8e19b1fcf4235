"""What code a result depends on: a module's imports, directly and through others, each with a hash of its syntax tree.

Read from the source, nothing is imported. Names that a package's `__init__` hands on lead to the modules that define
them, so that a file depends on what it uses and not on all that lies in a room. Docstrings and comments do not count.
Modules loaded by name (a poison's, `names.METHODS`) are not seen: whoever loads them adds them.
"""

import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
TABLES = ("ul.base.names",)  # of which a file depends on the parts that it names
IMPORTS = (ast.Import, ast.ImportFrom)
Hashes = dict[str, str]  # path in the repository -> 16 hex digits


def of_modules(names: Iterable[str], without: Iterable[str] = ()) -> Hashes:
    """The closure of modules, named as in "ul.base.ud", sorted by path. Raises ValueError for one that is not ours.

    without: what does not count, nor what only it uses; a part of a table as "ul.base.names:METHODS".
    """
    left_out = set(without)
    todo, seen = set(names) - left_out, set()
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= imports_of(name) - seen - left_out
    return dict(sorted((path_of(name), tree_hash(name)) for name in seen))


def of_source(source: str) -> Hashes:
    """The closure of a source text outside the package, a notebook's cells or a script's."""
    return of_modules(_imports(ast.parse(source), "", False))


def of_functions(functions: Iterable[Callable[..., Any]], without: Iterable[str] = ()) -> str:
    """16 hex digits of the closure of the modules that define these functions (or `partial`s of them).

    without: see `of_modules`. Raises ValueError for a function that is not at the top
    of a module of `ul`: an edit of it would not be seen.
    """
    return _digest(tuple(sorted({module_of(function) for function in functions})), tuple(without))


@lru_cache
def _digest(modules: tuple[str, ...], without: tuple[str, ...]) -> str:
    return hashlib.sha256(repr(of_modules(modules, without)).encode()).hexdigest()[:16]


def module_of(function: Callable[..., Any]) -> str:
    """The module of `ul` that defines a function. Raises ValueError if there is none."""
    whole = function.func if isinstance(function, partial) else function
    module, name = whole.__module__, whole.__qualname__
    if not module.startswith(f"{PACKAGE.name}.") or "<" in name:
        raise ValueError(f"{module}.{name} is no function of {PACKAGE.name}, so what it finds cannot be kept")
    return module


# ---- Modules -------------------------------------------------------------------------------------------------------


def file_of(name: str) -> Path | None:
    """Where a module lies, a package's `__init__` for a package; None if there is no such module."""
    head, *parts = name.split(".")
    if head != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*parts)
    places = [path / "__init__.py", *([path.with_suffix(".py")] if parts else [])]
    return next((place for place in places if place.is_file()), None)


def path_of(name: str) -> str:
    """A module's path in the repository, a table's part behind it. Raises ValueError if there is none."""
    module, mark, part = name.partition(":")
    if (path := file_of(module)) is None:
        raise ValueError(f"no module {name}")
    return path.relative_to(PACKAGE.parent).as_posix() + mark + part


@cache
def _tree(name: str) -> ast.Module:
    module, _, part = name.partition(":")
    tree = ast.parse((PACKAGE.parent / path_of(module)).read_text())
    return _part(tree, part) if part else tree


def _part(tree: ast.Module, name: str) -> ast.Module:
    """The statements that give a name at the top of a module its value, and the imports that these use."""
    own = [statement for statement in tree.body if name in _bound(statement)]
    needed = _used(own)
    imports = [s for s in tree.body if isinstance(s, IMPORTS) and s not in own and needed & _bound(s)]
    return ast.Module([*imports, *own], [])


def _beside(name: str) -> set[str]:
    """The other parts of its table that a part uses, each of which counts by itself."""
    module, _, part = name.partition(":")
    statements = [s for s in _tree(module).body if not isinstance(s, IMPORTS)]
    used = _used([s for s in statements if part in _bound(s)])
    bound = {own for statement in statements for own in _bound(statement)}
    return {f"{module}:{other}" for other in used & bound - {part}}


def _used(statements: Iterable[ast.stmt]) -> set[str]:
    """The names in them."""
    return {n.id for statement in statements for n in ast.walk(statement) if isinstance(n, ast.Name)}


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement gives a value."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


@cache
def tree_hash(name: str) -> str:
    """16 hex digits over a module's syntax tree without docstrings, alike in all versions of Python."""
    return hashlib.sha256(_written(_tree(name)).encode()).hexdigest()[:16]


def _written(node: Any) -> str:
    """A syntax tree as text; empty fields are left out, since versions of Python differ in them."""
    if isinstance(node, list):
        return f"[{','.join(map(_written, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _documented(node):
        fields["body"] = node.body[1:]
    return f"{type(node).__name__}({','.join(f'{name}={_written(value)}' for name, value in fields.items())})"


def _documented(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return ast.get_docstring(node, clean=False) is not None


@cache
def imports_of(name: str) -> frozenset[str]:
    """The modules of `ul` that a module uses itself."""
    module, _, part = name.partition(":")
    path = file_of(module)
    found = _imports(_tree(name), name, path is not None and path.name == "__init__.py")
    return frozenset(found | (_beside(name) if part else set()))


def _imports(tree: ast.AST, name: str, is_package: bool) -> set[str]:
    """name: of the module that the tree is of, empty outside the package."""
    nodes = list(ast.walk(tree))
    taken = _taken(nodes)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if file_of(alias.name)}
        if isinstance(node, ast.ImportFrom) and (base := _base(node, name.partition(":")[0], is_package)):
            for alias in node.names:
                found |= set(_meant(base, alias.name, taken.get(alias.asname or alias.name, set())))
    return found


def _base(node: ast.ImportFrom, name: str, is_package: bool) -> str | None:
    """The module that is imported from; None if it is not ours."""
    if not node.level:
        return node.module if node.module and file_of(node.module) else None
    parts = name.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *filter(None, [node.module])])


def _taken(nodes: Iterable[ast.AST]) -> dict[str, set[str] | None]:
    """What is taken from each name, as in `name.this`; None for a name that is used in another way."""
    whole: Counter[str] = Counter()
    parts: dict[str, list[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Name):
            whole[node.id] += 1
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            parts.setdefault(node.value.id, []).append(node.attr)
    return {name: set(parts[name]) if len(parts.get(name, ())) == count else None for name, count in whole.items()}


def _meant(base: str, name: str, taken: set[str] | None) -> Iterator[str]:
    """The modules that `from base import name` makes a file depend on. taken: see `_taken`."""
    inner = _handed_on(base).get(name, f"{base}.{name}")
    path = file_of(inner)
    if path is None:
        yield f"{base}:{name}" if base in TABLES else base  # something that the module defines itself
    elif taken is not None and (inner in TABLES or path.name == "__init__.py"):
        for part in taken:
            yield from _meant(inner, part, None)
    elif path.name == "__init__.py":
        yield from {inner, *imports_of(inner)}
    else:
        yield inner


@cache
def _handed_on(name: str) -> dict[str, str]:
    """Names that a package's `__init__` imports from its modules, and the modules that it imports when asked for."""
    path = file_of(name)
    if path is None or path.name != "__init__.py":
        return {}
    found: dict[str, str] = {}
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.ImportFrom) and (base := _base(node, name, True)):
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found[alias.asname or alias.name] = inner if file_of(inner) else base
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "SHORT":
            found |= {short: f"{name}.{long}" for short, long in ast.literal_eval(node.value).items()}
    return found


def forget() -> None:
    """Read the source anew from now on: for tests that edit it."""
    for cached in (_tree, tree_hash, imports_of, _handed_on, _digest):
        cached.cache_clear()
