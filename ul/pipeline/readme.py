"""What the pipeline finds as blocks of text, and how they come into README: between comments that mark the place."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..base import records, stats
from ..base.errors import InputError, existing, located
from ..base.names import CLEAN, NOISE

BLOCK = re.compile(r"<!-- (?P<name>\w+): written by the pipeline -->\n(?P<block>.*?)\n<!-- end of (?P=name) -->", re.S)
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
    text = _read(path)
    try:
        for name, block in blocks.items():
            text = placed(text, name, block)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    records.write_text(path, text)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def findings(**blocks: str) -> str:
    """The blocks as a text of their own, which `renew` copies from."""
    return "\n\n".join(f"{START.format(name=n)}\n{block}\n{END.format(name=n)}" for n, block in blocks.items()) + "\n"


def waiting(profile: str, setting: Mapping[str, Any]) -> dict[str, str]:
    """What stands in the place of a profile's blocks until it is run: which seeds of its main setting are to come."""
    first = setting.get("first_seed", 0)
    seeds = f"seeds {first} to {first + setting['seeds'] - 1}"
    text = f"**Not run yet**: {seeds} of profile `{profile}`, each with a poison of its own."
    return {f"{profile}_headline": text, f"{profile}_claims": text}


def renew(path: Path | str, source: Path | str) -> list[str]:
    """Copy all blocks of a text that `findings` wrote into another, and name them. Raises InputError as `update`."""
    text = _read(existing(located(source), "run `dvc repro`"))
    blocks = {match["name"]: match["block"] for match in BLOCK.finditer(text)}
    if not blocks:
        raise InputError(f"{source}: holds no block; run `dvc repro` again")
    update(path, **blocks)
    return list(blocks)


HEADLINE = {
    "test_accuracy": "accuracy on clean test images",
    "accuracy_minus_noise": "minus noise",
    "late_sal": "late SAL over noise",
    "ud_layers": "UD, layers",
}


def headline(summary: pd.DataFrame) -> str:
    """Markdown: the measures of HEADLINE for every method of one block, with intervals and n, and the counts of UD."""
    titles = ["trained on", "n", *HEADLINE.values(), "learnable layers"]
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for _, row in summary.iterrows():
        cells = [_cell(row, name) for name in HEADLINE]
        rows.append(f"| {' | '.join([row['method'], str(row['n']), *cells, row['counts']])} |")
    return "\n".join(rows)


def _cell(row: pd.Series, name: str) -> str:
    """An interval; what it is by definition, or why there is none."""
    if row["method"] == {"accuracy_minus_noise": NOISE, "late_sal": NOISE, "ud_layers": CLEAN}.get(name):
        return {"late_sal": "1", "ud_layers": "1"}.get(name, "")
    if name == "ud_layers" and row["ud_n"] == 0:
        return "too few to count by"
    if name == "ud_layers" and row["zeros"]:
        return f"0 in {row['zeros']} of {row['ud_n']}"
    value, low, high = (_short(_written(row[f"{name}{end}"])) for end in ("", "_low", "_high"))
    if pd.isna(row[f"{name}_low"]):
        n = row["ud_n"] if name == "ud_layers" else row["n"]
        return f"{value}, {'one seed' if n == 1 else f'equal in {n}'}"
    few = f", n = {row['ud_n']}" if name == "ud_layers" and row["ud_n"] < row["n"] else ""
    return f"{value} [{low}, {high}]{few}"


MOST = 100  # a ratio beyond, or below one over it, is shown as just that


def _short(value: float) -> str:
    if abs(value) > MOST:
        return f">{MOST}"
    return stats.fixed(value)


def _written(value: float) -> float:
    """A number as the table has it, four digits: rounded from another one, a text could differ from it in the last."""
    return float(f"{value:.4g}")


def listing(table: pd.DataFrame) -> str:
    """Markdown: every claim with its verdict, the seeds that decided it, and what was measured."""
    seen = "seen" in table  # the verdict is to come
    rows = [f"| claim | | {'these seeds' if seen else 'verdict'} | seeds | measured |", "|---|---|---|---|---|"]
    for row in table.itertuples():
        part, verdict = f" ({row.part})" if row.part else "", row.seen if seen else f"**{row.verdict}**"
        rows.append(f"| {row.claim}{part} | {row.text} | {verdict} | {row.seeds} | {row.measured} |")
    return "\n".join(rows)
