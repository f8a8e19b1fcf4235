"""What was measured of one's own poison, as answers in plain words, each with its number, its interval and n."""

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ..base import stats
from ..base.errors import InputError, located
from ..base.names import CLEAN
from ..base.stats import Interval
from . import run_records, table_files
from .study_claims import LEFT, TAKEN

MEND = "run `dvc repro`, or give None"
COLUMNS = ["question", "verdict", "share", "share_low", "share_high", "n"]


def verdict(share: Interval) -> str:
    """In words, which share of what clean images teach a poison takes: by its whole interval, not by its mean."""
    if math.isnan(share.estimate):
        return "not tested"  # clean images teach it no better than a guess
    if share.n < 2:
        return "cannot be told from one run"
    if share.low >= TAKEN:
        return "protected"
    if share.high <= LEFT:
        return "not protected"
    return "protected in part" if share.low > LEFT and share.high < TAKEN else "undecided"


def _row(question: str, share: Interval) -> dict[str, str | float]:
    return {"question": question, "verdict": verdict(share)} | share.columns("share") | {"n": share.n}


def about_classes(frame: pd.DataFrame, method: str, guess: float) -> pd.DataFrame:
    """COLUMNS: what the poison takes from a classifier without a defense, and what is left of it under each.

    frame: rows of `benchmark.benchmark` with clean runs under the same defenses. guess: accuracy (0..1) of the best
    answer that sees no image. share: (clean - poisoned) / (clean - guess), paired by seed; nan where a clean run is not
    better than the guess.
    """
    rows = []
    for defense in frame["defense"].unique():
        wide = frame[frame["defense"] == defense].pivot(index="seed", columns="method", values="test_accuracy")
        gap = wide[CLEAN] - guess
        if method in wide:
            how = "" if defense == "none" else f", if the trainer uses {defense}"
            share = (wide[CLEAN] - wide[method]) / (gap if (gap > 0).all() else float("nan"))
            rows.append(_row(f"the classes{how}", stats.known(share)))
    return pd.DataFrame(rows, columns=COLUMNS)


def about_tasks(protection: pd.DataFrame, method: str) -> pd.DataFrame:
    """COLUMNS for the other tasks, trained together. protection: rows of `cross_task.protection`."""
    part = protection[(protection["method"] == method) & (protection["regime"] == "multi") & ~protection["own"]]
    ends = ["protection", "protection_low", "protection_high", "n"]
    shares = {row.task: Interval(*(getattr(row, end) for end in ends)) for row in part.itertuples()}
    return pd.DataFrame([_row(task, share) for task, share in shares.items()], columns=COLUMNS)


def sentences(answers: pd.DataFrame) -> Iterator[str]:
    """One line an answer: what, the verdict, how much of what clean images teach is gone, and how sure that is."""
    for row in answers.itertuples():
        if math.isnan(row.share):
            yield f"{row.question}: NOT TESTED (networks do not learn it from clean images either)"
            continue
        share, low, high = (f"{stats.fixed(100 * v, 0)}%" for v in (row.share, row.share_low, row.share_high))
        span = "" if row.n < 2 else f" [{low}, {high}]"
        gone = f"{share}{span} of what clean images teach is gone, n={row.n}"
        yield f"{row.question}: {row.verdict.upper()} ({gone})"


def distance(row: pd.Series) -> str:
    """UD in words, from a row of `benchmark.by_method`: below, above or not told from that of clean images, 1."""
    low, high, n = row["ud_layers_low"], row["ud_layers_high"], int(row["ud_n"])
    if n == 0:
        return f"no UD: the clean runs have too few learnable layers to count by (learnable layers {row['counts']})"
    if row["zeros"]:
        return f"UD is 0 in {row['zeros']} of {n} runs: no layer counts as learnable there"
    if n < 2:
        return f"UD {stats.fixed(row['ud_layers'])}, n=1: cannot be told from one run"
    side = "below" if high < 1 else "above" if low > 1 else "not told from"
    value, ends = stats.fixed(row["ud_layers"]), f"[{stats.fixed(low)}, {stats.fixed(high)}]"
    return f"UD {value} {ends}, n={n}: {side} the 1 of clean images"


def beside(summary: pd.DataFrame, path: Path | str | None) -> pd.DataFrame:
    """The methods measured here and those of a benchmark's table, from the strongest poison to the weakest.

    summary: rows of `benchmark.by_method`. path: a table written from such rows; its rows of the same BLOCK count;
    None: no table. Numbers compare where both were trained on as many images. Raises InputError if the file is no such
    table.
    """
    shown = [*run_records.BLOCK, "method", "n", "test_accuracy", "ud_layers", "ud_layers_low", "ud_layers_high"]
    parts = [summary.assign(measured="here")]
    if path is not None:
        known = table_files.read(located(path), shown, mend=MEND)
        try:
            parts.append(known.merge(summary[run_records.BLOCK].drop_duplicates()).assign(measured="in the table"))
        except ValueError as error:  # text where numbers belong
            raise InputError(f"{path}: no table of a benchmark ({error}); {MEND}") from None
    found = pd.concat(parts).sort_values("test_accuracy", kind="stable")[["measured", *shown]]
    return found.assign(place=range(1, len(found) + 1)).set_index("place")


def remark(placed: pd.DataFrame, path: Path | str | None) -> str:
    """What to know of a table of `beside`: that no row of the file is of its setting; otherwise nothing."""
    if path is None or "in the table" in set(placed["measured"]):
        return ""
    return f"{path} has no method of this setting; data, network, defense and epochs must be those of its rows"
