"""Claims about other tasks, paths of training, defenses and networks: what their studies' tables say of each."""

from typing import Any

import numpy as np
import pandas as pd

from ..base.errors import InputError, Record, existing, located
from ..base.stats import fixed
from . import benchmark, comparisons, table_files
from .rules import (
    FAILS,
    HOLDS,
    NOT_TESTED,
    UNDECIDED,
    Side,
    all_of,
    every_part,
    interval_of,
    judged,
    several,
    shows_none,
    side,
    span_of,
)

ALONE, TOGETHER = "each task its own network", "one joint network"
REGIMES = {ALONE: "single", TOGETHER: "multi"}


# ---- Other tasks ---------------------------------------------------------------------------------------------------

TAKEN, LEFT = 0.5, 0.2  # C1: of the own task's gap at least, of another's at most
FEWEST_TASKS = 2
SEEN = ("segment_semantic", "depth_euclidean")  # on views one of these must be left
VIEW_TARGETS = ("class_object", "class_scene")


def _own(protection: pd.DataFrame, regime: str) -> pd.DataFrame:
    """The rows of the attacked task in one regime, poisons alone, by method."""
    own = protection[protection["own"] & (protection["regime"] == regime)]
    return benchmark.poisons(own).set_index("method")


def crossed(protection: pd.DataFrame, regime: str) -> Record:
    """C1: how many poisons take their own task and leave others, both beyond noise and in one regime."""
    own = _own(protection, regime)
    others = protection[~protection["own"] & (protection["regime"] == regime)].set_index("method")
    counted = [m for m in own.index if not np.isnan(own.loc[m, "beyond_noise"])]
    taken = {m: side(interval_of(own.loc[m], "beyond_noise"), TAKEN, above=True) for m in counted}
    found = {
        m: _spared(taken[m], own.loc[m, "task"], others.loc[[m]] if m in others.index else others[:0]) for m in taken
    }
    tested = {m: verdict for m, verdict in found.items() if taken[m] != FAILS and verdict != NOT_TESTED}
    kind = "" if own.empty else "views: " if own["task"].iloc[0] in VIEW_TARGETS else "other labels derived: "
    return {
        "measured": kind + "; ".join(_both(m, own, others, _told(taken[m], found[m])) for m in counted),
        "interval": "; ".join(f"{m} own {span_of(own.loc[m], 'beyond_noise')}" for m in counted),
        **_of_study(protection),
        "verdict": several(tested),
    }


def _both(method: str, own: pd.DataFrame, others: pd.DataFrame, verdict: str) -> str:
    listed = others.loc[[method]] if method in others.index else others[:0]
    left = ", ".join(f"{row.task} {fixed(row.beyond_noise)}" for row in listed.itertuples())
    return f"{method} own {fixed(own.beyond_noise[method])}, {left or 'no other task'} ({verdict})"


def _told(taken: str, verdict: str) -> str:
    """What is said of one poison: a rule about poisons that take their task is not about one that does not."""
    return "not taken here" if taken == FAILS else verdict


def _spared(taken: str, target: str, others: pd.DataFrame) -> str:
    """One poison's verdict: its own task taken, and enough others left, of those that clean training learns."""
    others = others[others["beyond_noise"].notna()].set_index("task")
    seen = [task for task in SEEN if task in others.index]
    if len(others) < FEWEST_TASKS or (target in VIEW_TARGETS and not seen):
        return NOT_TESTED
    left, kept = others["beyond_noise_high"] < LEFT, others["beyond_noise_low"] > LEFT
    enough, possible = left.sum() >= FEWEST_TASKS, (~kept).sum() >= FEWEST_TASKS
    if target in VIEW_TARGETS:
        enough, possible = enough and left[seen].any(), possible and (~kept)[seen].any()
    rest = HOLDS if enough else UNDECIDED if possible else FAILS
    return every_part(taken, rest)


def regained(protection: pd.DataFrame) -> Record:
    """C8: the joint network's own task is taken, and a new head on its frozen encoder has it back."""
    joint, headed = (_own(protection, regime) for regime in ("multi", "transfer"))
    methods = [m for m in joint.index.intersection(headed.index) if not joint.loc[m].isna()["protection"]]
    taken = {m: side(interval_of(joint.loc[m], "protection"), TAKEN, above=True) for m in methods}
    back = {m: side(interval_of(headed.loc[m], "protection"), TAKEN, above=False) for m in methods}
    found = {m: every_part(taken[m], back[m]) for m in methods}
    return {
        "measured": "; ".join(
            f"{m} {fixed(joint.protection[m])}, new head {fixed(headed.protection[m])} ({_told(taken[m], found[m])})"
            for m in methods
        ),
        "interval": "; ".join(
            f"{m} {span_of(joint.loc[m], 'protection')}, {span_of(headed.loc[m], 'protection')}" for m in methods
        ),
        **_of_study(protection),
        "verdict": several({m: verdict for m, verdict in found.items() if taken[m] != FAILS}),
    }


def _of_study(table: pd.DataFrame) -> Record:
    """n and seeds of a study's table."""
    if table.empty:
        return {"n": 0, "seeds": ""}
    return {"n": int(table["n"].min()), "seeds": str(table["seeds"].iloc[0])}


# ---- Paths ---------------------------------------------------------------------------------------------------------

SIMPLE = ("linear", "lenet5")  # C2's models
FEWEST_WEIGHTS = 1000
PART = 0.5  # C2: of the parameters at most


def parted(paths: pd.DataFrame) -> Record:
    """C2: every poison that takes accuracy from a simple model, whose seeds see all images."""
    chosen = paths[paths["architecture"].isin(SIMPLE) & (paths["drawn"] == 1) & (paths["gap"] >= benchmark.PROTECTS)]
    chosen = benchmark.poisons(chosen[chosen["weights"] >= FEWEST_WEIGHTS])
    found = {f"{row.study} {row.method}": (row, _partly(row)) for _, row in chosen.iterrows()}
    sides = {name: kind for name, (_, kind) in found.items()}
    return {
        "measured": "; ".join(
            f"{name} ends {fixed(row.ends)} times as far apart, {fixed(row.share)} of the weights ({kind.verdict})"
            for name, (row, kind) in found.items()
        ),
        "interval": "; ".join(
            f"{name} {span_of(row, 'ends')}, {span_of(row, 'share')}" for name, (row, _) in found.items()
        ),
        **_of_study(chosen),
        "verdict": all_of(sides, list(found)) if found else NOT_TESTED,
    }


def _partly(row: Any) -> Side:
    """One poison's verdict: its ends farther apart, more weights than in the null differ, and fewer than half do."""
    parts = [
        judged(interval_of(row, "ends"), 1, above=True, log=True),
        judged(interval_of(row, "beyond"), 0, above=True),
        Side(side(interval_of(row, "share"), PART, above=False)),
    ]
    verdict = every_part(*(part.verdict for part in parts))
    lost = [part.p for part in parts if part.verdict == FAILS]
    return Side(verdict, lost[0] if lost else float("nan"))


# ---- Defenses and networks -----------------------------------------------------------------------------------------


def _listed(rows: pd.DataFrame, label: str, name: str) -> Record:
    """The cells measured, interval and n for one value a row."""
    return {
        "measured": "; ".join(f"{row[label]} {fixed(row[name])}" for _, row in rows.iterrows()),
        "interval": "; ".join(f"{row[label]} {span_of(row, name)}" for _, row in rows.iterrows()),
        "n": int(rows["n"].min()),
        "seeds": str(rows["seeds"].iloc[0]),
    }


JPEG = "jpeg"


def _first_of(table: pd.DataFrame, place: list[str]) -> pd.DataFrame:
    """The rows of the first place: a verdict is about one."""
    return table[(table[place] == table[place].iloc[0]).all(axis=1)]


def defended(gains: pd.DataFrame) -> Record:
    """C6: every defense's net gain of UD lies above 0, and JPEG's, paired by seed, above each other's."""
    gains = _first_of(gains, ["dataset", "architecture"])
    own, others = gains[gains["defense"] == JPEG], gains[gains["defense"] != JPEG]
    listed = _listed(gains, "defense", "gain")
    what = f"{gains['dataset'].iloc[0]}, net gain of log UD over {gains['methods'].iloc[0]} poisons"
    listed["measured"] = f"{what}: {listed['measured']}"
    if own.empty or others.empty:
        return listed | {"verdict": NOT_TESTED}
    if unshown := shows_none(gains["noise_ud"].iloc[0]):
        return listed | unshown
    sides = {f"{row['defense']} gain": judged(interval_of(row, "gain"), 0, above=True) for _, row in gains.iterrows()}
    more = {row["defense"]: judged(interval_of(row, "jpeg_more"), 0, above=True) for _, row in others.iterrows()}
    return listed | {"verdict": all_of(sides | more, [*sides, *more])}


def stronger(compared: pd.DataFrame) -> Record:
    """C7: log UD of the transformer minus the largest of the CNNs', pooled and method by method."""
    compared = _first_of(compared, ["dataset", "transformer"])
    first = compared.iloc[0]
    listed = _listed(compared, "method", "more")
    place = f"{first['dataset']}, log UD of {first['transformer']} minus the largest of the CNNs'"
    listed["measured"] = f"{place}: {listed['measured']}"
    if not first["clean"] > first["clean_cnn"]:
        both = f"{fixed(first['clean'])} and {fixed(first['clean_cnn'])}"
        why = f"{first['transformer']} is the weaker network ({both} on clean images)"
        return listed | {"measured": f"{why}; {listed['measured']}", "verdict": NOT_TESTED}
    if unshown := shows_none(first["noise_ud"]):
        return listed | unshown
    pooled, single = (compared[(compared["method"] == comparisons.POOLED) == which] for which in (True, False))
    verdict = side(interval_of(pooled.iloc[0], "more"), 0, above=True)
    few = (single["more"] > 0).mean() < 0.5
    return listed | {"verdict": UNDECIDED if verdict == HOLDS and few else verdict}


def evidence(path: str) -> pd.DataFrame:
    """What the convergence studies say: the tables `evidence.csv` below a folder, one below the other.

    Raises InputError if there is none.
    """
    files = sorted(existing(located(path), table_files.FIRST).rglob("evidence.csv"))
    if not files:
        raise InputError(f"{path} holds no evidence.csv; {table_files.FIRST}")
    return pd.concat([table_files.read(file) for file in files], ignore_index=True)
