"""How a rule decides: where an interval lies, and one verdict of several."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..base import stats
from ..base.errors import Record
from ..base.stats import Interval, fixed

HOLDS, FAILS, UNDECIDED, NOT_TESTED = "holds", "does not hold", "undecided", "not tested"
NOT_RUN = "not run yet"  # the seeds that decide
LEVEL = 0.05  # of Holm's correction


@dataclass(frozen=True)
class Side:
    """Where an interval lies, and the two-sided p against the bound; nan where a rule has none."""

    verdict: str
    p: float = float("nan")


def side(interval: Interval, bound: float, *, above: bool) -> str:
    """HOLDS if the interval lies on the claimed side of `bound`, FAILS if wholly on the other, else UNDECIDED."""
    if above:
        return HOLDS if interval.low > bound else FAILS if interval.high < bound else UNDECIDED
    return HOLDS if interval.high < bound else FAILS if interval.low > bound else UNDECIDED


def judged(interval: Interval, bound: float, *, above: bool, log: bool = False) -> Side:
    """`side` with its p. log: the interval is of the log scale."""
    return Side(side(interval, bound, above=above), stats.p_against(interval, bound, log=log))


def all_of(sides: Mapping[str, Side], wanted: Iterable[str]) -> str:
    """One verdict for a rule over methods: HOLDS if it holds for each of the wanted ones.

    One that lies wholly on the other side decides against it if that survives Holm's correction over the methods
    (without a p it does not need to). A method without a run leaves it not tested.
    """
    p = stats.holm([found.p for found in sides.values()])
    lost = [bool(np.isnan(q) or q <= LEVEL) for q in p]
    if any(found.verdict == FAILS and sure for found, sure in zip(sides.values(), lost, strict=True)):
        return FAILS
    if set(wanted) - set(sides):
        return NOT_TESTED
    return HOLDS if all(found.verdict == HOLDS for found in sides.values()) else UNDECIDED


FEWEST_POISONS = 3


def several(found: Mapping[str, str]) -> str:
    """One verdict for a rule that FEWEST_POISONS methods must meet, of the verdicts of those that it is tested on."""
    holding, open_ = (list(found.values()).count(kind) for kind in (HOLDS, UNDECIDED))
    if len(found) < FEWEST_POISONS:
        return NOT_TESTED
    return HOLDS if holding >= FEWEST_POISONS else UNDECIDED if holding + open_ >= FEWEST_POISONS else FAILS


MARGIN = 1.25  # C3: so that equality can hold; and how far noise's UD may lie from 1 where UD shows anything


def shows_none(noise: float) -> Record:
    """Nothing, or that the setting shows no UD of anything: that of noise is not near 1, or there is none (nan)."""
    if 1 / MARGIN <= noise <= MARGIN:
        return {}
    why = "noise has no UD here" if np.isnan(noise) else f"noise has a UD of {fixed(noise)} here"
    return {"measured": f"{why}, so the setting shows none", "interval": "", "verdict": NOT_TESTED}


def every_part(*parts: str) -> str:
    """One verdict of a rule whose parts must all hold."""
    return FAILS if FAILS in parts else UNDECIDED if UNDECIDED in parts else HOLDS


def interval_of(row: pd.Series, name: str) -> Interval:
    """A column of a table and its interval; UD has an n of its own."""
    return Interval(
        row[name],
        row[f"{name}_low"],
        row[f"{name}_high"],
        int(row.get("ud_n", row["n"]) if name.startswith("ud_") else row["n"]),
    )


def span_of(row: pd.Series, name: str) -> str:
    """A column's interval as text."""
    return f"[{fixed(row[f'{name}_low'])}, {fixed(row[f'{name}_high'])}]"
