"""What the pipeline writes into the README: the headline table and the claims, between comments that mark the place."""

from pathlib import Path

import pandas as pd

from . import records, stats, tables
from .config import InputError, existing, located

START, END = "<!-- {name}: written by the pipeline -->", "<!-- end of {name} -->"


def placed(text: str, name: str, block: str) -> str:
    """`text` with `block` between the comments that name it. Raises InputError if they are not there."""
    start, end = START.format(name=name), END.format(name=name)
    if text.count(start) != 1 or text.count(end) != 1:
        raise InputError(f"no place for {name}: write the lines `{start}` and `{end}` where it belongs")
    before, after = text.partition(start)[0], text.partition(end)[2]
    return f"{before}{start}\n{block}\n{end}{after}"


def update(path: Path | str, **blocks: str) -> None:
    """Put the blocks into a text file, each between the comments that name it. Raises InputError if it has no place."""
    path = existing(located(path), "restore it with git")
    try:
        text = path.read_text()
        for name, block in blocks.items():
            text = placed(text, name, block)
    except ValueError as error:  # no UTF-8, or no place
        raise InputError(f"{path}: {error}") from None
    records.write_text(path, text)


def headline(summary: pd.DataFrame) -> str:
    """Markdown: accuracy, its difference to noise and UD of every method of one block, with intervals and n."""
    rows = ["| trained on | n | accuracy on clean test images | minus noise | UD, layers |", "|---|---|---|---|---|"]
    for _, row in summary.iterrows():
        cells = [_cell(row, name) for name in ("test_accuracy", "accuracy_minus_noise", "ud_layers")]
        rows.append(" | ".join(["| " + row["method"], str(row["n"]), *cells]) + " |")
    return "\n".join(rows)


def _cell(row: pd.Series, name: str) -> str:
    if row["method"] == {"accuracy_minus_noise": tables.NOISE, "ud_layers": tables.CLEAN}.get(name):
        return "1" if name == "ud_layers" else ""
    value, low, high = (stats.fixed(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def listing(table: pd.DataFrame) -> str:
    """Markdown: every claim with its verdict and what was measured."""
    rows = [f"| {row.claim} | {row.text} | **{row.verdict}** | {row.measured} |" for row in table.itertuples()]
    return "\n".join(["| claim | | verdict | measured |", "|---|---|---|---|", *rows])
