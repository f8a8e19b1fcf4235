"""What the pipeline found comes into README by a command of its own: block by block, and nothing else changes."""

import re

import pandas as pd
import pytest

from tests.conftest import ul
from tests.imports import ROOT
from tests.test_comparisons import grown
from ul.base.errors import InputError
from ul.pipeline import readme
from ul.tables import benchmark

FOUND = {"headline": "| trained on | n |\n|---|---|\n| lsp | 3 |", "claims": "| C1 | **holds** |\n\n<!-- a comment -->"}
PAGE = """# A page

<!-- claims: written by the pipeline -->
an old table
<!-- end of claims -->
between, with `code` and trailing space \n
<!-- headline: written by the pipeline -->
<!-- end of headline -->

<!-- pipeline: written by the pipeline -->
a drawing
<!-- end of pipeline -->
end without a newline"""


@pytest.fixture
def page(tmp_path):
    """README.md with places for three blocks, findings.md with two of them."""
    (tmp_path / "README.md").write_text(PAGE)
    (tmp_path / "findings.md").write_text(readme.findings(**FOUND))
    return tmp_path / "README.md"


def test_findings_are_copied_between_their_comments_and_the_rest_stays(page):
    assert readme.renew(page, page.with_name("findings.md")) == ["headline", "claims"]
    wanted = PAGE.replace("an old table", FOUND["claims"])
    start = readme.START.format(name="headline")
    assert page.read_text() == wanted.replace(start, f"{start}\n{FOUND['headline']}")


def test_renewing_twice_changes_nothing(page):
    readme.renew(page, page.with_name("findings.md"))
    once = page.read_bytes()
    readme.renew(page, page.with_name("findings.md"))
    assert page.read_bytes() == once


def test_one_block_alone_leaves_the_others(page):
    page.with_name("findings.md").write_text(readme.findings(claims="new"))
    assert readme.renew(page, page.with_name("findings.md")) == ["claims"]
    assert page.read_text() == PAGE.replace("an old table", "new")


UNUSABLE = {
    "no blocks": (b"# Nothing\n", r"findings\.md: holds no block; run `dvc repro` again"),
    "a block that does not end": (b"<!-- claims: written by the pipeline -->\nx\n", r"findings\.md: holds no block"),
    "a block without a place": (readme.findings(others="x").encode(), r"README\.md: no place for others: write the"),
    "one of two without a place": (readme.findings(claims="x", others="x").encode(), "no place for others"),
    "no text": (b"\xff\xfe", r"findings\.md: 'utf-8' codec can't decode"),
    "nothing": (None, r"findings\.md is missing; run `dvc repro`"),
}


@pytest.mark.parametrize(("content", "line"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_copied_is_one_line_and_nothing_is_written(page, content, line):
    source = page.with_name("findings.md")
    source.unlink()
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(InputError, match=line) as caught:
        readme.renew(page, source)
    assert len(str(caught.value).splitlines()) == 1
    assert page.read_text() == PAGE and sorted(p.name for p in page.parent.iterdir() if p != source) == ["README.md"]


def test_the_command_names_the_blocks_or_ends_in_one_line(page):
    words = ("readme", "--readme", page, "--findings", page.with_name("findings.md"))
    done = ul(*words, cwd=page.parent)
    assert done.returncode == 0 and re.fullmatch(r".*README\.md: headline, claims as in .*findings\.md\n", done.stdout)
    assert "an old table" not in page.read_text()
    page.write_text("# No place\n")
    refused = ul(*words, cwd=page.parent)
    assert refused.returncode == 1 and re.fullmatch(r"error: .*README\.md: no place for headline: .*\n", refused.stderr)
    assert page.read_text() == "# No place\n"


def test_what_is_not_run_yet_says_which_seeds_are_to_come(tmp_path):
    """Its place holds words until there are findings, which then take it."""
    names = ("cifar10_headline", "cifar10_claims")
    for name in ("profiles/cifar10", "results/cifar10"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "README.md").write_text(places(*names))
    (tmp_path / "profiles/cifar10/params.yaml").write_text("settings: {cifar10: {with: {seeds: 4, first_seed: 3}}}\n")
    words = ("readme", "--findings", "results/cifar10/findings.md")
    assert ul(*words, cwd=tmp_path).stdout == f"README.md: {', '.join(names)} not run yet\n"
    said = (tmp_path / "README.md").read_text()
    assert said.count("**Not run yet**: seeds 3 to 6 of profile `cifar10`, each with a poison of its own.") == 2
    (tmp_path / "results/cifar10/findings.md").write_text(readme.findings(**dict.fromkeys(names, "found")))
    assert ul(*words, cwd=tmp_path).returncode == 0
    assert "Not run yet" not in (tmp_path / "README.md").read_text()


def test_claims_that_are_not_decided_are_shown_as_seen():
    row = {"claim": "C3", "part": "", "text": "SAL is lower", "seeds": "0-2", "measured": "em 0.1", "verdict": "holds"}
    table = pd.DataFrame([row])
    assert readme.listing(table).splitlines()[2] == "| C3 | SAL is lower | **holds** | 0-2 | em 0.1 |"
    seen = readme.listing(table.assign(seen="holds", verdict="not run yet")).splitlines()
    assert "these seeds" in seen[0] and seen[2] == "| C3 | SAL is lower | holds | 0-2 | em 0.1 |"


# ---- The blocks -----------------------------------------------------------------------------------------------------


def places(*names):
    return "before\n" + "\n".join(f"{readme.START.format(name=n)}\nold\n{readme.END.format(name=n)}" for n in names)


def test_blocks_are_put_between_their_comments(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(places("headline", "claims") + "\nafter\n")
    readme.update(path, headline="| new |", claims="| c |")
    once = path.read_text()
    assert "old" not in once and once.startswith("before\n") and once.endswith("\nafter\n")
    assert once.index("| new |") < once.index("| c |")
    readme.update(path, headline="| new |", claims="| c |")
    assert path.read_text() == once


@pytest.mark.parametrize("text", ["nothing", places("headline", "headline")])
def test_a_page_without_its_place_is_refused_and_left(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(InputError, match="no place for headline: write the lines"):
        readme.update(path, headline="x")
    assert path.read_text() == text


def test_the_headline_is_the_table():
    summary = benchmark.by_method(grown())
    lines = readme.headline(summary).splitlines()
    assert len(lines) == 2 + 4
    clean, noise, lsp = lines[2:5]
    assert clean.endswith("| 1 | 15 over 15, of 60 |") and noise.split("|")[4].strip() == ""
    row = summary.set_index("method").loc["lsp"]
    assert f"{row.ud_layers:.2f} [{row.ud_layers_low:.2f}, {row.ud_layers_high:.2f}]" in lsp


@pytest.mark.parametrize(
    ("changes", "cell"),
    [
        ({"ud_n": 0}, "too few to count by"),
        ({"zeros": 2}, "0 in 2 of 3"),
        ({"ud_n": 2}, "0.20 [0.16, 0.25], n = 2"),
        ({"ud_layers_high": 4000.0, "ud_n": 2}, "0.20 [0.16, >100], n = 2"),
    ],
)
def test_the_headline_says_where_there_is_no_ud(changes, cell):
    summary = benchmark.by_method(grown())
    lsp = summary[summary["method"] == "lsp"].assign(
        ud_layers=0.2, ud_layers_low=0.16, **{"ud_layers_high": 0.25} | changes
    )
    assert readme.headline(lsp).splitlines()[2].split("|")[-3].strip() == cell


def test_the_readme_has_the_committed_results():
    """What the pipeline wrote last is what is committed."""
    tables = ROOT / "results" / "laptop" / "tables"
    table = pd.read_csv(tables / "claims" / "claims.csv", keep_default_na=False)
    summary = pd.read_csv(tables / "benchmark" / "ud_by_data.csv")
    text = (ROOT / "README.md").read_text()
    assert readme.listing(table) in text
    assert readme.headline(summary[summary["dataset"] == "rooms"]) in text
