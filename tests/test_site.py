"""The report is one site that needs nothing else: links, formulas, tables and search, on a desk and on a phone."""

import base64
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat import v4

from tests import imports, sites
from tests.conftest import picture, ul
from ul.base.errors import InputError
from ul.pipeline import notebooks, pages, site

README = """# A toy

See [tables](results/tiny/tables), [`one`](results/tiny/tables/deep/one.md),
[first](results/tiny/notebooks/00_first.ipynb), [data](results/other/x.csv), [a folder](ul), [nothing](gone.md) and [a site](https://example.org).

![a figure](results/tiny/figures/x.png)

```text
[not](a-link.md)
```
"""
FORMULA = r"""with $a^2$ and

$$\frac{\text{a long numerator}}{b}$$

[the csv](../tables/deep/one.csv), [four](04_sal-b.ipynb#part)"""
WIDE = picture(np.full((90, 900, 3), 128, np.uint8))
TABLE = "\n|".join(["| zebra |" + " column |" * 30, "---|" * 31, " 1.25 |" * 31]) + "\n"


def notebook(title: str, text: str = ""):
    image = v4.new_output("display_data", {"image/png": base64.b64encode(WIDE).decode()})
    wide = "<table class='dataframe'><tr>" + "<td>quantity</td>" * 40 + "</tr></table>"
    outputs = [image, v4.new_output("display_data", {"text/html": wide}), v4.new_output("stream", text="a " * 400)]
    parameters = v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]})
    code = v4.new_code_cell("x = " + " + ".join("abcdefgh" * 9), outputs=outputs, execution_count=1)
    cells = [v4.new_markdown_cell(f"# {title}\n\n{text}"), parameters, code, v4.new_markdown_cell("## Part\n\nend")]
    return v4.new_notebook(cells=cells, metadata=notebooks.KERNEL)


def planted(root: Path) -> Path:
    """A repository with results of a profile `tiny` and a package `toyreport`."""
    results = root / "results" / "tiny"
    for folder in ("notebooks", "tables/deep", "figures", "../other", "../../toyreport"):
        (results / folder).mkdir(parents=True)
    (root / "README.md").write_text(README)
    (root / "results" / "other" / "x.csv").write_text("a\n1\n")
    for name, made in {
        "00_first": notebook("First `light`", FORMULA), "04_sal-a": notebook("Fourth"), "04_sal-b": notebook("Fourth"),
    }.items():  # fmt: skip
        nbformat.write(made, results / "notebooks" / f"{name}.ipynb")
    for suffix, text in {"md": TABLE, "csv": "zebra\n1\n", "tex": "zebra"}.items():
        (results / "tables" / "deep" / f"one.{suffix}").write_text(text)
    (results / "figures" / "x.png").write_bytes(WIDE)
    (results / "figures" / "x.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (root / "toyreport" / "__init__.py").write_text('"""A package."""\n')
    function = '"""A module: plain text."""\n\n\ndef f(a_b: int = 1) -> int:\n    """|x_| * `a_b`s * 2_."""\n'
    (root / "toyreport" / "part.py").write_text(function)
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, int, list[str]]:
    """The site of the planted repository: (folder, pages, warnings)."""
    root = planted(tmp_path_factory.mktemp("report"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        out = root / "build" / "site"
        return out, *site.build(root, "tiny", out, package=root / "toyreport")


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, sites.CHROMIUM)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(sites.CHROMIUM)} is installed")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_site_is_whole_and_every_link_leads_somewhere(tiny):
    site, count, warnings = tiny
    known = sites.pages(site)
    assert warnings == [] and count == len(known)
    assert sites.broken(site) == []
    where = "results/tiny"
    names = [f"{where}/notebooks/{n}.html" for n in ("index", "00_first", "04_sal/index", "04_sal-a", "04_sal-b")]
    names += [f"{where}/tables/index.html", f"{where}/tables/deep/one.html", f"{where}/figures/index.html"]
    assert {*names, "index.html", "api/toyreport.part.html", "search.html"} <= set(known)
    assert not list(site.parent.glob("site.part-*"))


def test_links_of_the_readme_and_of_notebooks_lead_to_what_they_name(tiny):
    known = sites.pages(tiny[0])
    links = known["index.html"].links
    for target in ("tables/index.html", "tables/deep/one.html", "notebooks/00_first.html"):
        assert f"results/tiny/{target}" in links
    assert [x for x in links if x.endswith("/x.csv")] and "https://example.org" in links
    text = (tiny[0] / "index.html").read_text()
    assert "a folder" in text and "nothing" in text and "[not](a-link.md)" in text and "gone.md" not in text
    links = known["results/tiny/notebooks/00_first.html"].links
    assert "04_sal-b.html#part" in links and [x for x in links if x.endswith("/one.csv")]


def test_tables_and_figures_are_shown_and_offered(tiny):
    site = tiny[0]
    table = site / "results/tiny/tables/deep/one.html"
    assert "zebra" in table.read_text() and "1 rows" in table.read_text()
    for suffix, original in {"csv": "zebra\n1\n", "tex": "zebra", "md": TABLE}.items():
        link = next(x for x in sites.pages(site)["results/tiny/tables/deep/one.html"].links if x.endswith(suffix))
        assert (table.parent / link).read_text() == original
    gallery = sites.pages(site)["results/tiny/figures/gallery.html"]
    assert [x for x in gallery.loaded if x.endswith("x.png")] and [x for x in gallery.links if x.endswith("x.svg")]


def test_titles_variants_parameters_and_docstrings(tiny):
    folder = tiny[0] / "results/tiny/notebooks"
    assert "Fourth (b)" in (folder / "04_sal-b.html").read_text()
    assert "was run in 2 variants" in (folder / "04_sal" / "index.html").read_text()
    assert "<details" in (folder / "04_sal-b.html").read_text()
    assert "00 First light" in (tiny[0] / "index.html").read_text()
    assert "genindex.html" in sites.pages(tiny[0])["index.html"].links
    api = (tiny[0] / "api" / "toyreport.part.html").read_text()
    assert "|x_| * " in api and "s * 2_." in api and ">a_b</span>" in api


def test_every_module_has_a_page_by_default():
    package = inspect.signature(site.build).parameters["package"].default
    modules = {f"api/ul.{name}.md" for name in imports.modules() if name != "__main__"}
    assert set(pages._api_pages(package)) == modules | {"api/index.md"}


def test_docstrings_are_plain_text_with_code():
    assert site.escaped("|D| <= `r_l`s, x_ *") == r"\|D\| <= \ ``r_l``\ s, x\_ \*"


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("a.ipynb", "/n/a.ipynb"),
        ("/t/one.md#x", "/t/one.md#x"),
        ("../t", "/t/index.md"),
        ("../file.txt", "path:/raw/file.txt"),
        ("../../secret.txt", None),
        ("missing.txt", None),
    ],
)
def test_links_mean_pages_copies_or_nothing(tmp_path, target, found):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.txt").write_text("x")
    (root / "file.txt").write_text("x")
    assert pages.resolved(target, "n", {"n/a.ipynb", "t/one.md", "t/index.md"}, root) == found


def test_a_failed_build_leaves_the_old_site_and_nothing_else(tmp_path, monkeypatch):
    root, out = planted(tmp_path / "root"), tmp_path / "site"
    out.mkdir()
    (out / "searchindex.js").write_text("old")

    def failing(*args):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(site, "_sphinx", failing)
    with pytest.raises(RuntimeError, match="in the middle"):
        site.build(root, "tiny", out, package=root / "toyreport")
    assert [p.name for p in tmp_path.iterdir() if p != root] == ["site"] and (
        out / "searchindex.js"
    ).read_text() == "old"


def test_folders_that_are_no_report_are_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="mine exists and is no report"):
        site.build(tmp_path, "tiny", tmp_path / "mine")


def test_missing_results_are_one_line(tmp_path):
    planted(tmp_path)
    shutil.rmtree(tmp_path / "results" / "tiny" / "notebooks")
    for profile, line in {"nope": "results/nope is missing", "tiny": "holds no executed notebook"}.items():
        done = ul("report", "--profile", profile, cwd=tmp_path)
        assert done.returncode == 1 and line in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "build" / "site").exists()


def test_notebooks_without_a_heading_are_named(tmp_path):
    root = planted(tmp_path / "root")
    nbformat.write(v4.new_notebook(), root / "results/tiny/notebooks/05_x.ipynb")
    with pytest.raises(notebooks.NotebookError, match=r"05_x.ipynb: no heading"):
        site.build(root, "tiny", tmp_path / "site", package=root / "toyreport")


def shown_well(browser, site: Path, word: str, page: str) -> None:
    """Every page in a wide and a narrow window; of those that are alike every tenth module and every fifth table."""
    named = sites.pages(site)
    modules, tables = ([n for n in named if part in f"/{n}"] for part in ("/api/", "/tables/"))
    names = [n for n in named if n not in {*modules, *tables}] + modules[::10] + tables[::5]
    assert sites.faults(browser, site, names, 1280) + sites.faults(browser, site, names, 375) == []
    assert any(path.endswith(page) for path in sites.hits(browser, site, word))


@pytest.mark.slow
def test_browser_shows_the_tiny_site(tiny, browser):
    shown_well(browser, tiny[0], "zebra", "results/tiny/tables/deep/one.html")


@pytest.mark.slow
def test_the_checks_see_what_is_wrong(tiny, browser, tmp_path):
    """Without the style sheet wide things stick out; with an image from elsewhere a request is made."""
    site, name = tmp_path / "site", "results/tiny/notebooks/00_first.html"
    shutil.copytree(tiny[0], site)
    (site / "_static" / "report.css").write_text("")
    assert [line for line in sites.faults(browser, site, [name], 375) if "sticks out" in line]
    page = (site / name).read_text().replace("</article>", "<img src='https://example.org/x.png'></article>")
    (site / name).write_text(page.replace("04_sal-b.html#part", "04_sal-b.html#parts"))
    assert sorted(sites.broken(site)) == [f"{name}: 04_sal-b.html#parts", f"{name}: https://example.org/x.png"]
    assert [line for line in sites.faults(browser, site, [name], 1280) if "request: https://example.org" in line]


@pytest.mark.slow
def test_browser_shows_the_real_site(tmp_path, browser):
    """In a process of its own: Sphinx warns when it is set up a second time."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "ul", "report", "--profile", "laptop", "--out", str(site)]
    done = subprocess.run(command, cwd=imports.ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert sites.broken(site) == []
    shown_well(browser, site, "sharpness", "api/ul.sharpness.sal.html")
