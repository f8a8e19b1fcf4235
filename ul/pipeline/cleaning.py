"""What stages depend on: notebooks without outputs, each with the code that it uses, and code loaded by name."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from nbformat import NotebookNode, from_dict

from ..base import closure, records
from ..base.names import METHODS
from .notebooks import CLOSURE, NotebookError, cleaned, read, write

CODE = "code"  # folder of the closures of modules that are loaded by name
TEXT = "its own text"


def clean(source: str, target: str) -> list[str]:
    """Write what stages depend on into the folder `target`; a line for each file that changed, and why.

    A folder's notebooks are written cleaned, with the closure of what they import in their metadata; each module of a
    poison has a file of its own closure below CODE. What an earlier call wrote and this one does not is removed.
    Raises NotebookError if there are no notebooks, or one is damaged; nothing is written then.
    """
    paths = sorted(Path(source).glob("*.ipynb"))
    if not paths:
        raise NotebookError(f"{source}: no notebooks there; name the folder that holds them")
    folder = Path(target)
    ready = {path.name: _ready(path) for path in paths}
    modules = {f"poisons.{method.module}.json": f"ul.poisons.{method.module}" for method in METHODS.values()}
    code = {name: closure.of_modules({module}) for name, module in modules.items()}
    before = _closures(folder)
    texts = {name: _text(folder / name) for name in ready}
    gone = _written(folder, before) - {folder / name for name in ready} - {folder / CODE / name for name in code}
    for name, notebook in ready.items():
        write(notebook, folder / name)
    for name, found in code.items():
        records.write_text(folder / CODE / name, json.dumps(found, indent=1) + "\n")
    for path in gone:  # DVC keeps the folder between runs, so that changes can be told
        path.unlink()
    after = _closures(folder)
    new = {name: texts[name] is not None and texts[name] != _text(folder / name) for name in texts}
    lines = [_change(name, before.get(name), after[name], new.get(name, False)) for name in after]
    return [*filter(None, lines), *(f"{path.name}: no longer made" for path in sorted(gone))]


def _ready(path: Path) -> NotebookNode:
    try:
        return with_closure(cleaned(read(path)))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotebookError(f"{path}: its cells are not Python ({records.reason(error)})") from None


def _written(folder: Path, known: Mapping[str, Mapping[str, str]]) -> set[Path]:
    """What an earlier call wrote: notebooks with a closure, and all below CODE that is called as this one calls it."""
    found = {folder / name for name in known if name.endswith(".ipynb")}
    return found | set((folder / CODE).glob("poisons.*.json"))


def with_closure(notebook: NotebookNode) -> NotebookNode:
    """The notebook with the closure of its code cells in its metadata (changed in place)."""
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    notebook.metadata[CLOSURE] = from_dict({"closure": closure.of_source(source)})
    return notebook


def _closures(folder: Path) -> dict[str, Mapping[str, str]]:
    """By file of what `clean` wrote; one that cannot be read has none."""
    found: dict[str, Mapping[str, str]] = {}
    for path in [*sorted(folder.glob("*.ipynb")), *sorted((folder / CODE).glob("poisons.*.json"))]:
        try:
            content = json.loads(path.read_text())
            found[path.name] = dict(content["metadata"][CLOSURE]["closure"] if path.suffix == ".ipynb" else content)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _text(path: Path) -> str | None:
    """A cleaned notebook's cells; None without a readable one."""
    try:
        return json.dumps(json.loads(path.read_text())["cells"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _change(name: str, before: Mapping[str, str] | None, after: Mapping[str, str], text: bool) -> str:
    """`name: by what`; empty if nothing changed. text: whether its cells did."""
    if before is None:
        return f"{name}: new"
    reasons = [TEXT] * text + list(_differing(before, after))
    return f"{name}: {', '.join(reasons)}" if reasons else ""


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for path in sorted({*before, *after}):
        if path not in after:
            yield f"{path} (no longer used)"
        elif path not in before:
            yield f"{path} (new)"
        elif before[path] != after[path]:
            yield path
