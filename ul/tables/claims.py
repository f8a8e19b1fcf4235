"""The paper's claims, rules whose bounds were fixed before the results, and verdicts measured by them."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..base.errors import InputError, Record, existing, located
from ..base.names import CLEAN, NOISE
from ..base.stats import Interval, fixed
from . import benchmark, comparisons

HOLDS, FAILS, UNDECIDED, NOT_TESTED = "holds", "does not hold", "undecided", "not tested"


@dataclass(frozen=True)
class Claim:
    """One row: what the paper says (our words), where, and the rule that decides."""

    text: str
    source: str
    rule: str


CLAIMS: dict[str, Claim] = {
    "C1": Claim(
        "UEs that break the task they were made for leave other Taskonomy tasks learnable", "paper, figure 1",
        "protection >= .5 on the own task (a network of its own) and <= .2 on >= 2 dense tasks (trained together), for "
        ">= 3 methods",
    ),
    "C2": Claim(
        "clean and poisoned runs converge differently; only a part of the parameters takes another path",
        "paper, section 3",
        "share of differing weights (FDR .05) above the clean null, < 50 %; transplanted they recover >= half the gap; "
        "for every poison that takes .05 of a linear network's or LeNet-5's accuracy, where all seeds see all images",
    ),
    "C3": Claim(
        "SAL is lower under UEs and not under TAP", "paper, section 4",
        "lambda(poison)/lambda(noise) < 1 for em, ops, ar; >= 1 for tap",
    ),
    "C4": Claim("UD orders methods as test accuracy does", "paper, section 5", "Spearman rho > .5, >= 6 methods"),
    "C5": Claim(
        "UD(TAP) > 1 > UD of true UEs", "paper, table 1",
        "each interval excludes 1: em, ops, ar, lsp below; tap above",
    ),
    "C6": Claim("defenses raise UD, JPEG most", "paper, table 2", "jpeg's mean gain > 0 and above every other defense"),
    "C7": Claim(
        "stronger architectures have higher UD", "paper, table 3",
        "UD(vit) - max UD(CNN) > 0 in >= half the methods, pooled interval > 0",
    ),
}  # fmt: skip


def side(interval: Interval, bound: float, *, above: bool) -> str:
    """HOLDS if the interval lies on the claimed side of `bound`, FAILS if wholly on the other, else UNDECIDED."""
    if above:
        return HOLDS if interval.low > bound else FAILS if interval.high < bound else UNDECIDED
    return HOLDS if interval.high < bound else FAILS if interval.low > bound else UNDECIDED


def all_of(verdicts: dict[str, str], wanted: list[str]) -> str:
    """One verdict for a rule over methods: one failure decides; a method without a run leaves it not tested."""
    if FAILS in verdicts.values():
        return FAILS
    if set(wanted) - set(verdicts):
        return NOT_TESTED
    return UNDECIDED if UNDECIDED in verdicts.values() else HOLDS


def verdicts(
    frame: pd.DataFrame,
    protection: pd.DataFrame | None = None,
    paths: pd.DataFrame | None = None,
    defended: pd.DataFrame | None = None,
    compared: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Rows claim, text, source, rule, measured, interval, n, verdict for one block of the benchmark.

    protection: `cross_task.protection`, if the cross-task study was run; paths: `convergence.evidence` of all
    convergence studies, if any was run; defended: `comparisons.defense_gains`; compared: `comparisons.stronger`.
    """
    measured = {
        **({} if protection is None else {"C1": _crossed(protection)}),
        **({} if paths is None else {"C2": _parted(paths)}),
        "C3": _per_method(frame, ["em", "ops", "ar"], ["tap"], against=NOISE),
        "C4": _ranks(frame),
        "C5": _per_method(frame, ["em", "ops", "ar", "lsp"], ["tap"], against=CLEAN),
        **({} if defended is None or defended.empty else {"C6": _defended(defended)}),
        **({} if compared is None or compared.empty else {"C7": _stronger(compared)}),
    }
    empty = {"measured": "", "interval": "", "n": 0, "verdict": NOT_TESTED}
    rows = [
        {"claim": name, "text": c.text, "source": c.source, "rule": c.rule} | measured.get(name, empty)
        for name, c in CLAIMS.items()
    ]
    return pd.DataFrame(rows)


def _per_method(frame: pd.DataFrame, below: list[str], above: list[str], *, against: str) -> Record:
    have = [m for m in below + above if m in set(frame["method"])]
    found = {m: benchmark.compare(frame, m, "ud_layers", against=against, log=True) for m in have}
    sides = {m: side(found[m], 1, above=m in above) for m in have}
    missing = [m for m in below + above if m not in have]
    return {
        "measured": "; ".join(f"{m} {found[m].estimate:.3f} ({sides[m]})" for m in have)
        + (f"; no run of {', '.join(missing)} yet" if missing else ""),
        "interval": "; ".join(f"{m} [{found[m].low:.3f}, {found[m].high:.3f}]" for m in have),
        "n": min((found[m].n for m in have), default=0),
        "verdict": all_of(sides, below + above),
    }


def _ranks(frame: pd.DataFrame) -> Record:
    found = benchmark.rank_correlation(frame)
    interval = found["interval"]
    if interval is None:
        why = "UD does not vary" if found["methods"] > 2 else f"{found['methods']} methods have no order to speak of"
        return {"measured": why, "interval": "", "n": 0, "verdict": UNDECIDED}
    enough = found["methods"] >= benchmark.FEWEST_METHODS
    return {
        "measured": f"rho {interval.estimate:.3f} over {found['methods']} methods; exact p of means {found['p']:.3f}",
        "interval": f"[{interval.low:.3f}, {interval.high:.3f}]",
        "n": interval.n,
        "verdict": side(interval, 0.5, above=True) if enough else UNDECIDED,
    }


TAKEN, LEFT = 0.5, 0.2  # C1: of the own task's gap at least, of another's at most
FEWEST_TASKS, FEWEST_POISONS = 2, 3


def _crossed(protection: pd.DataFrame) -> Record:
    """C1: how many poisons take their own task from a network of its own, and leave dense ones trained together."""
    own = protection[protection["own"] & (protection["regime"] == "single")].set_index("method")
    joint = protection[protection["regime"] == "multi"]
    dense = joint[joint["dense"]]
    methods = [m for m in own.index if not m.startswith(NOISE)]
    found = {m: _spared(own.loc[m], dense[dense["method"] == m]) for m in methods}
    open_, holding = (list(found.values()).count(kind) for kind in (UNDECIDED, HOLDS))
    verdict = HOLDS if holding >= FEWEST_POISONS else UNDECIDED if holding + open_ >= FEWEST_POISONS else FAILS
    return {
        "measured": "; ".join(
            f"{m} own {fixed(own.protection[m])} alone, jointly {_named(joint[joint['method'] == m])} ({found[m]})"
            for m in methods
        ),
        "interval": "; ".join(f"{m} own {_span(own.loc[m], 'protection')}" for m in methods),
        "n": int(protection["n"].min()),
        "verdict": verdict if len(found) - list(found.values()).count(NOT_TESTED) >= FEWEST_POISONS else NOT_TESTED,
    }


def _named(tasks: pd.DataFrame) -> str:
    listed = tasks[tasks["own"] | tasks["dense"]]
    return ", ".join(f"{row.task} {fixed(row.protection)}" for row in listed.itertuples())


def _span(row: pd.Series, name: str) -> str:
    return f"[{fixed(row[f'{name}_low'])}, {fixed(row[f'{name}_high'])}]"


def _spared(own: pd.Series, dense: pd.DataFrame) -> str:
    """One poison's verdict: its own task taken, and two dense tasks left, of those that clean training learns."""
    dense = dense[dense["protection"].notna()]
    if len(dense) < FEWEST_TASKS or math.isnan(own.protection):
        return NOT_TESTED
    taken = side(_interval(own, "protection"), TAKEN, above=True)
    left, kept = (dense["protection_high"] < LEFT).sum(), (dense["protection_low"] > LEFT).sum()
    enough = HOLDS if left >= FEWEST_TASKS else FAILS if len(dense) - kept < FEWEST_TASKS else UNDECIDED
    return all_of({"taken": taken, "left": enough}, ["taken", "left"])


SIMPLE = ("linear", "lenet5")  # C2's models
PART, REGAINED = 0.5, 0.5  # C2: of the parameters at most, of the accuracy gap at least


def _parted(paths: pd.DataFrame) -> Record:
    """C2: every poison that takes accuracy from a simple model, whose seeds see all images; one failure decides."""
    chosen = paths[paths["architecture"].isin(SIMPLE) & (paths["drawn"] == 1) & paths["recovered"].notna()]
    chosen = chosen[~chosen["method"].str.startswith(NOISE)]
    found = {f"{row.study} {row.method}": (row, _partly(row)) for _, row in chosen.iterrows()}
    return {
        "measured": "; ".join(
            f"{name} {fixed(row.share)} of the weights, {fixed(row.recovered)} regained ({kind})"
            for name, (row, kind) in found.items()
        ),
        "interval": "; ".join(
            f"{name} {_span(row, 'share')}, {_span(row, 'recovered')}" for name, (row, _) in found.items()
        ),
        "n": int(chosen["n"].min()) if found else 0,
        "verdict": all_of({name: kind for name, (_, kind) in found.items()}, list(found)) if found else NOT_TESTED,
    }


def _partly(row: Any) -> str:
    """One poison's verdict: more weights than in the null differ, fewer than half do, and moving them regains half.

    What moving them does is no evidence unless there are more than in the null.
    """
    more = side(_interval(row, "beyond"), 0, above=True)
    if more != HOLDS:
        return more
    parts = {
        "part": side(_interval(row, "share"), PART, above=False),
        "moved": side(_interval(row, "recovered"), REGAINED, above=True),
    }
    return all_of(parts, list(parts))


def _interval(row: pd.Series, name: str) -> Interval:
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], int(row["n"]))


def _listed(rows: pd.DataFrame, label: str, name: str) -> Record:
    """The cells measured and interval for one value a row."""
    return {
        "measured": "; ".join(f"{row[label]} {fixed(row[name])}" for _, row in rows.iterrows()),
        "interval": "; ".join(f"{row[label]} {_span(row, name)}" for _, row in rows.iterrows()),
        "n": int(rows["n"].min()),
    }


JPEG = "jpeg"


def _first_of(table: pd.DataFrame, place: list[str]) -> pd.DataFrame:
    """The rows of the first place: a verdict is about one."""
    return table[(table[place] == table[place].iloc[0]).all(axis=1)]


def _defended(gains: pd.DataFrame) -> Record:
    """C6: JPEG's mean gain of UD lies above 0 and, paired by seed, above each other defense's."""
    gains = _first_of(gains, ["dataset", "architecture"])
    own, others = gains[gains["defense"] == JPEG], gains[gains["defense"] != JPEG]
    listed = _listed(gains, "defense", "gain")
    listed["measured"] = (
        f"{gains['dataset'].iloc[0]}, mean gain of log UD over {gains['methods'].iloc[0]} poisons: {listed['measured']}"
    )
    if own.empty or others.empty:
        return listed | {"verdict": NOT_TESTED}
    parts = {"gain": side(_interval(own.iloc[0], "gain"), 0, above=True)}
    parts |= {row["defense"]: side(_interval(row, "jpeg_more"), 0, above=True) for _, row in others.iterrows()}
    return listed | {"verdict": all_of(parts, list(parts))}


def _stronger(compared: pd.DataFrame) -> Record:
    """C7: log UD of the transformer minus the largest of the CNNs', pooled and method by method."""
    compared = _first_of(compared, ["dataset", "transformer"])
    pooled, single = (compared[(compared["method"] == comparisons.POOLED) == which] for which in (True, False))
    more = (single["more"] > 0).mean()
    verdict = side(_interval(pooled.iloc[0], "more"), 0, above=True)
    listed = _listed(compared, "method", "more")
    first = compared.iloc[0]
    what = f"{first['dataset']}, log UD of {first['transformer']} minus the largest of the CNNs'"
    listed["measured"] = f"{what}: {listed['measured']}"
    return listed | {"verdict": UNDECIDED if verdict == HOLDS and more < 0.5 else verdict}


def evidence(path: str) -> pd.DataFrame:
    """What the convergence studies say: the tables `evidence.csv` below a folder, one below the other.

    Raises InputError if there is none.
    """
    files = sorted(existing(located(path), benchmark.FIRST).rglob("evidence.csv"))
    if not files:
        raise InputError(f"{path} holds no evidence.csv; {benchmark.FIRST}")
    return pd.concat([benchmark.read(file) for file in files], ignore_index=True)
