"""The report: one static site of a profile's results and the API reference, made by Sphinx, readable offline."""

import io
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from ..base.errors import InputError
from . import notebooks, pages

HOME = Path(__file__).resolve().parent
MATHJAX, FORMULAS = "sphinx-mathjax-offline", "tex-svg-full.js"  # one file: fonts and every extension are in it
SETTINGS = {
    "project": "ul",
    "extensions": ["myst_nb", "sphinx.ext.autodoc"],
    "exclude_patterns": [pages.RAW],
    "smartquotes": False,
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "nb_code_prompt_show": "Parameters and their defaults",
    "nb_code_prompt_hide": "Parameters and their defaults",
    "nb_ipywidgets_js": {},  # the default names a server
    "nb_render_image_options": {"scale": "100"},  # an image with a scale links to its file, which a phone can enlarge
    "myst_enable_extensions": ["amsmath", "dollarmath"],
    "myst_heading_anchors": 4,
    "mathjax_path": FORMULAS,
    "mathjax3_config": {"options": {"enableMenu": False}},  # the menu loads further parts from a server
    "autodoc_inherit_docstrings": False,
    "autodoc_preserve_defaults": True,
    "add_module_names": False,
    "maximum_signature_line_length": 100,
    "html_theme": "furo",
    "html_static_path": ["_static"],
    "html_css_files": ["report.css"],
    "html_copy_source": False,
    "html_domain_indices": False,
    "html_show_search_summary": False,  # a browser may not read other pages from file://
    "html_show_copyright": False,
}


def build(root: Path, profile: str, out: Path, *, package: Path = HOME.parent) -> tuple[int, list[str]]:
    """Write the site of results/<profile> to the folder `out`: (pages, warnings), one line a warning.

    root: the repository; package: folder of modules for the API reference, which are imported. The site appears whole
    or not at all, and takes the place of an earlier one.
    Raises InputError if the profile has no results, or if `out` is something else than a report.
    """
    if out.exists() and not (out / "searchindex.js").is_file():
        raise InputError(f"{out} exists and is no report; remove it or name another --out")
    with _swapped(out) as folder:
        source = folder / "source"
        pages.stage(root, profile, package, source)
        _static(source / "_static")
        warnings = _sphinx(source, folder / "site", folder / "doctrees", profile)
        count = sum(1 for _ in (folder / "site").rglob("*.html"))
    return count, warnings


@contextmanager
def _swapped(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`; what is called `site` in it becomes `out` when the block ends well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{out.name}.part-", dir=out.parent))
    try:
        yield folder
        if out.exists():
            out.rename(folder / "before")
        (folder / "site").rename(out)
    finally:
        shutil.rmtree(folder)


def _static(folder: Path) -> None:
    """The style sheet and MathJax, which no page may fetch from elsewhere."""
    try:
        script = next(f for f in files(MATHJAX) or [] if f.name == FORMULAS)
    except PackageNotFoundError:
        raise InputError(f"{MATHJAX} is not installed; `pip install -e .[report]`") from None
    folder.mkdir(parents=True)
    shutil.copyfile(HOME / "report.css", folder / "report.css")
    shutil.copyfile(script.locate(), folder / FORMULAS)


def _sphinx(source: Path, target: Path, doctrees: Path, profile: str) -> list[str]:
    try:
        from sphinx.application import Sphinx
    except ImportError:
        raise InputError("sphinx is not installed; `pip install -e .[report]`") from None
    warnings = io.StringIO()
    settings = SETTINGS | {"html_title": f"ul: results of profile {profile}"}
    app = Sphinx(source, None, target, doctrees, "html", settings, status=None, warning=warnings)
    app.connect("autodoc-process-docstring", _plain)
    app.build()
    lines = notebooks.ANSI.sub("", warnings.getvalue()).replace(f"{source}/", "").splitlines()
    return [line for line in lines if line.strip()]


def _plain(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings here are plain text with code between backticks: nothing else in them is markup (changed in place)."""
    lines[:] = [escaped(line) for line in lines]


def escaped(line: str) -> str:
    """A line of plain text with `code` as reStructuredText."""
    parts = re.split(r"`+([^`]+)`+", line)
    parts[::2] = [re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [rf"\ ``{part}``\ " for part in parts[1::2]]
    return "".join(parts)
