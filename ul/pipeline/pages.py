"""Sources of the report: README, executed notebooks, tables and figures as pages at the paths they have in git."""

import ast
import posixpath
import re
import shutil
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from nbformat import NotebookNode

from ..base import records
from ..base.errors import InputError, existing
from . import notebooks

RAW = "raw"  # folder of files that pages show or offer as they are
LINK = re.compile(r"(!?)\[((?:[^\[\]]|!?\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"(^```.*?^```[^\S\n]*$)", re.M | re.S)
KEPT = re.compile(r"[a-z][a-z0-9+.-]+:|#")  # targets that are left alone: with a scheme, or inside the page
TOC = "```{{toctree}}\n:maxdepth: 1\n{options}\n{entries}\n```"


@dataclass(frozen=True)
class Source:
    """A notebook of the pipeline with its executed copies, one a variant; page: what stands for all of them."""

    stem: str
    title: str
    page: str
    paths: tuple[str, ...]


def stage(root: Path, profile: str, package: Path, source: Path) -> None:
    """Write the sources of a profile's report into the folder `source`.

    root: the repository (README.md, results/<profile>); package: folder of modules for the API reference. Links that
    name a page lead there, links that name another file lead to a copy, and others become plain text.
    Raises InputError if the profile has no results.
    """
    results = existing(root / "results" / profile, "`ls results` shows profiles with results, `dvc repro` makes them")
    if not any((results / "notebooks").glob("*.ipynb")):
        raise InputError(f"{results}/notebooks holds no executed notebook; `dvc repro` makes them")
    where = f"results/{profile}"
    found = {p: notebooks.read(root / p) for p in _names(root, f"{where}/notebooks", "*.ipynb")}
    sources = _sources(found, where)
    texts = _notebook_pages(sources, where) | _table_pages(root, where) | _figure_pages(root, where)
    texts |= _api_pages(package)
    texts["index.md"] = _landing(root, where, sources, texts)
    known = {*found, *texts}
    for path, notebook in found.items():
        notebooks.write(_shown(notebook, path, known, root), source / path)
    for path, text in texts.items():
        records.write_text(source / path, linked(text, posixpath.dirname(path), known, root))
    _copy_raw(root, source)


def _names(root: Path, folder: str, pattern: str) -> list[str]:
    """Files below a folder as paths in the repository, `a` before `a-b`."""
    names = (p.relative_to(root).as_posix() for p in (root / folder).rglob(pattern))
    return sorted(names, key=posixpath.splitext)


def linked(text: str, folder: str, known: set[str], root: Path) -> str:
    """Markdown whose links and images work in the site; folder: where the text lies, known: paths of the pages."""

    def link(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        label = LINK.sub(link, label)
        if KEPT.match(target):
            return f"{image}[{label}]({target})"
        found = resolved(target, folder, known, root)
        return f"{image}[{label}]({found.removeprefix('path:') if image else found})" if found else label

    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in FENCE.split(text))


def resolved(target: str, folder: str, known: set[str], root: Path) -> str | None:
    """What a link to a file means in the site: a page, a folder's index, a copied file, or None."""
    name, mark, anchor = target.partition("#")
    path = name[1:] if name.startswith("/") else posixpath.normpath(posixpath.join(folder, name))
    for page in (path, f"{path}/index.md"):
        if page in known:
            return f"/{page}{mark}{anchor}"
    inside = (root / path).resolve().is_relative_to(root.resolve())
    return raw(path) if inside and (root / path).is_file() else None


def raw(path: str) -> str:
    """The link to a copy of a file, given by its path in the repository."""
    return f"path:/{RAW}/{path}"


def _copy_raw(root: Path, source: Path) -> None:
    """Copy what pages name under RAW; written pages are read again so that no list has to be kept."""
    names = set()
    for page in [*source.rglob("*.md"), *source.rglob("*.ipynb")]:
        names |= set(re.findall(rf"/{RAW}/([^)\s\"\\]+)", page.read_text()))
    for name in filter(lambda n: (root / n).is_file(), names):
        target = source / RAW / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target)


def heading(notebook: NotebookNode, path: str) -> str:
    """The text of a notebook's first heading. Raises NotebookError, which names `path`, if it has none."""
    texts = (c.source for c in notebook.cells if c.cell_type == "markdown")
    found = re.search(r"^#+ +(.+)$", "\n".join(texts), re.M)
    if not found:
        raise notebooks.NotebookError(f"{path}: no heading; begin its first cell with `# `")
    return found[1]


def _shown(notebook: NotebookNode, path: str, known: set[str], root: Path) -> NotebookNode:
    """A notebook as a page: links that work, its variant in the heading, the parameters folded."""
    variant = _variant(path)
    title = heading(notebook, path)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, posixpath.dirname(path), known, root)
        elif "parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = [*cell.metadata["tags"], "hide-input"]
    first = next(c for c in notebook.cells if c.cell_type == "markdown" and title in c.source)
    if variant:
        first.source = first.source.replace(title, f"{title} ({variant})", 1)
    return notebook


def _variant(path: str) -> str:
    """`results/laptop/notebooks/04_sal-mnist-jpeg.ipynb` -> `mnist-jpeg`."""
    return Path(path).stem.partition("-")[2]


def _sources(found: dict[str, NotebookNode], where: str) -> list[Source]:
    groups = groupby(found, key=lambda path: Path(path).stem.partition("-")[0])
    return [_source(stem, tuple(paths), found, where) for stem, paths in groups]


def _source(stem: str, paths: tuple[str, ...], found: dict[str, NotebookNode], where: str) -> Source:
    page = paths[0] if len(paths) == 1 else f"{where}/notebooks/{stem}/index.md"
    return Source(stem, heading(found[paths[0]], paths[0]), page, paths)


def _notebook_pages(sources: list[Source], where: str) -> dict[str, str]:
    """The list of notebooks, and for a source that ran in several variants a page that leads to each."""
    pages = {s.page: _variants(s) for s in sources if s.page not in s.paths}
    intro = (
        f"# All notebooks\n\nExecuted by the pipeline under the profile `{Path(where).name}`, outputs as they came.\n"
    )
    lines = [intro]
    for s in sources:
        lines += [
            f"- [`{s.stem}`](/{s.page}) {s.title}",
            *(f"  - [{_variant(p)}](/{p})" for p in s.paths if _variant(p)),
        ]
    return pages | {f"{where}/notebooks/index.md": "\n".join([*lines, ""])}


def _variants(source: Source) -> str:
    entries = "\n".join(f"{_variant(p) or source.stem} </{p}>" for p in source.paths)
    intro = f"`{source.stem}` was run in {len(source.paths)} variants:"
    return f"# {source.title}\n\n{intro}\n\n{TOC.format(options='', entries=entries)}\n"


def _table_pages(root: Path, where: str) -> dict[str, str]:
    """A page for every table with its files to download, and their list."""
    folder, pages, rows = f"{where}/tables", {}, []
    for path in _names(root, folder, "*.md"):
        name, table = path.removeprefix(f"{folder}/").removesuffix(".md"), (root / path).read_text()
        files = [p for p in _names(root, posixpath.dirname(path), f"{Path(path).stem}.*") if _same_stem(p, path)]
        offered = " · ".join(f"[{Path(p).suffix[1:]}]({raw(p)})" for p in files)
        count = table.count("\n|") - 1
        title, box = name.replace("/", " / "), f"```{{container}} data-table\n\n{table}\n```"
        pages[path] = f"# {title}\n\n{count} rows; download as {offered}\n\n{box}\n"
        rows.append(f"- [{name}](/{path}), {count} rows: {offered}")
    return pages | _listed(f"{folder}/index.md", "# Tables", rows, pages)


def _listed(path: str, top: str, rows: list[str], pages: dict[str, str]) -> dict[str, str]:
    """The page at `path` that lists other pages and holds them in the contents; none if there is nothing to list."""
    toc = TOC.format(options=":hidden:\n", entries="\n".join(f"/{page}" for page in pages))
    return {path: "\n".join([top, "", *rows, "", toc, ""])} if pages else {}


def _same_stem(path: str, other: str) -> bool:
    return posixpath.splitext(path)[0] == posixpath.splitext(other)[0]


def _figure_pages(root: Path, where: str) -> dict[str, str]:
    """One page a folder of figures, each with its vector version to download, and the list of the pages."""
    folder = f"{where}/figures"
    groups = {name: list(paths) for name, paths in groupby(_by_folder(root, folder), key=posixpath.dirname)}
    pages = {}
    for name, paths in groups.items():
        title = name.removeprefix(folder).strip("/").replace("/", " / ") or "data and poisons"
        pages[f"{name}/gallery.md"] = f"# {title}: figures\n\n" + "\n\n".join(_figure(root, p) for p in paths) + "\n"
    rows = [f"- [{text.partition(chr(10))[0][2:]}](/{page})" for page, text in pages.items()]
    return pages | _listed(f"{folder}/index.md", "# Figures", rows, pages)


def _by_folder(root: Path, folder: str) -> list[str]:
    return sorted(_names(root, folder, "*.png"), key=lambda p: (posixpath.dirname(p), p))


def _figure(root: Path, path: str) -> str:
    name, vector = Path(path).stem, path.removesuffix(".png") + ".svg"
    offered = f"\n\n[svg]({raw(vector)})" if (root / vector).is_file() else ""
    image = f"```{{image}} /{RAW}/{path}\n:alt: {name}\n:scale: 60\n```"  # drawn at 160 dots an inch, shown at 96
    return f"## {name}\n\n{image}{offered}"


def _api_pages(package: Path) -> dict[str, str]:
    """A page for every module, filled from its docstrings when Sphinx reads it, and their list."""
    files = sorted(p for p in package.rglob("*.py") if p.name != "__main__.py" and p.parent / "__init__.py" != p)
    files += [p for p in package.rglob("__init__.py") if p.parent != package]
    modules = {".".join(_dotted(p, package)): (ast.get_docstring(ast.parse(p.read_text())) or "") for p in files}
    names = sorted(modules)
    pages = {f"api/{name}.md": _module(name) for name in names}
    rows = [f"- [{name}](/api/{name}.md): {modules[name].partition(chr(10))[0]}" for name in names]
    return pages | _listed("api/index.md", "# API reference", rows, pages)


def _dotted(path: Path, package: Path) -> list[str]:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return [part for part in parts if part != "__init__"]


def _module(name: str) -> str:
    return f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n   :member-order: bysource\n```\n"


def _landing(root: Path, where: str, sources: list[Source], texts: dict[str, str]) -> str:
    """The README with the contents of the whole site."""
    readme = existing(root / "README.md", "it is the report's first page; restore it with git").read_text()
    readme = readme.replace("```mermaid", "```text")  # drawn by code hosts alone
    results = [f"/{where}/{part}/index.md" for part in ("tables", "figures")]
    numbered = [f"{s.stem[:2]} {s.title.replace('`', '')} </{s.page}>" for s in sources]
    contents = {
        "Notebooks": [f"/{where}/notebooks/index.md", *numbered],
        "Results": [page for page in results if page[1:] in texts],
        "Code": ["/api/index.md", "genindex"],
    }
    toc = [TOC.format(options=f":hidden:\n:caption: {k}\n", entries="\n".join(v)) for k, v in contents.items() if v]
    return "\n\n".join([readme, *toc]) + "\n"
