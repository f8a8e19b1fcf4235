"""The paper's claims, rules fixed on 2026-11-28 before the seeds that decide them, and verdicts measured by them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..base import stats
from ..base.errors import InputError, Record, existing, located
from ..base.names import NOISE
from ..base.stats import Interval, fixed
from . import benchmark, comparisons

HOLDS, FAILS, UNDECIDED, NOT_TESTED = "holds", "does not hold", "undecided", "not tested"
LEVEL = 0.05  # of Holm's correction


@dataclass(frozen=True)
class Claim:
    """One row: what the paper says (our words), where, and the rule that decides."""

    text: str
    source: str
    rule: str


CLAIMS: dict[str, Claim] = {
    "C1": Claim(
        "UEs that break the task they were made for leave other tasks learnable", "paper, figure 1",
        "within one regime (each task its own network; or one joint network), beyond noise: protection >= .5 on the "
        "own task and <= .2 on >= 2 others, for >= 3 methods; on views semantic segmentation or depth among these",
    ),
    "C2": Claim(
        "clean and poisoned runs of a simple model converge differently; only a part of the parameters takes another "
        "path", "paper, section 3",
        "ends of clean and poisoned runs lie farther apart than those of two clean runs; share of differing weights "
        "(FDR .05) above the null and < 50 %, in networks of >= 1,000 weights",
    ),
    "C3": Claim(
        "SAL is lower under UEs and not under TAP", "paper, section 4",
        "late SAL over noise's < 1 for em, lsp, ops, ar; >= 1/1.25 for tap",
    ),
    "C4": Claim("UD orders methods as test accuracy does", "paper, section 5", "Spearman rho > .5, >= 5 methods"),
    "C5": Claim(
        "UD(TAP) > 1 > UD of true UEs", "paper, table 1",
        "each interval excludes 1: em, ops, ar, lsp below; tap above",
    ),
    "C6": Claim(
        "defenses raise UD, JPEG most", "paper, table 2",
        "mean gain of log UD, net of the defense's own effect on clean, > 0 for each; jpeg's above every other's",
    ),
    "C7": Claim(
        "stronger architectures have higher UD", "paper, table 3",
        "of a transformer with the higher clean accuracy: log UD less the largest of the CNNs' > 0 in >= half the "
        "methods, pooled interval > 0",
    ),
    "C8": Claim(
        "what a poison takes from a network it does not take from its encoder", "ours; seen on seed 0 of CIFAR-10",
        "joint network: protection of the own task >= .5, and a new head fitted to clean data on its frozen encoder "
        "leaves <= .5, for >= 3 methods",
    ),
}  # fmt: skip
COLUMNS = ["claim", "part", "text", "source", "rule", "measured", "interval", "n", "seeds", "verdict"]
ALONE, TOGETHER = "each task its own network", "one joint network"
REGIMES = {ALONE: "single", TOGETHER: "multi"}


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


def verdicts(
    frame: pd.DataFrame,
    protection: pd.DataFrame | None = None,
    paths: pd.DataFrame | None = None,
    defended: pd.DataFrame | None = None,
    compared: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Rows COLUMNS for one block of the benchmark; a claim with several parts has a row each.

    Only poisons that protect there count, and C3 to C5 are tested where networks are trained to fit. protection:
    `cross_task.protection`, if the cross-task study was run; paths: `convergence.evidence` of all convergence studies,
    if any was run; defended: `comparisons.defense_gains`; compared: `comparisons.stronger`.
    """
    summary = benchmark.by_method(frame).set_index("method")
    unfit = _unfit(summary)
    untested = {"measured": "", "interval": "", "n": 0, "seeds": "", "verdict": NOT_TESTED}
    parts: list[tuple[str, str, Record]] = [
        *(
            ("C1", part, untested if protection is None else _crossed(protection, name))
            for part, name in REGIMES.items()
        ),
        ("C2", "", untested if paths is None else _parted(paths)),
        ("C3", "", _late(summary, frame) | unfit),
        *(("C4", unit.removeprefix("ud_"), _ranked(summary, frame, unit) | unfit) for unit in benchmark.RANKED),
        ("C5", "", _around_one(summary, frame) | unfit),
        ("C6", "", untested if defended is None or defended.empty else _defended(defended)),
        ("C7", "", untested if compared is None or compared.empty else _stronger(compared)),
        ("C8", "", untested if protection is None else _regained(protection)),
    ]
    rows = [{"claim": name, "part": part} | vars(CLAIMS[name]) | untested | found for name, part, found in parts]
    return pd.DataFrame(rows)[COLUMNS]


# ---- The main setting ----------------------------------------------------------------------------------------------

TRUE_UES = ["em", "lsp", "ops", "ar"]
ADVERSARIAL = ["tap"]
MARGIN = 1.25  # C3: so that equality can hold; and how far noise's UD may lie from 1 where UD shows anything
LATE = "late_sal"


def _each(summary: pd.DataFrame, frame: pd.DataFrame, name: str, bounds: Mapping[str, float]) -> Record:
    """TRUE_UES below their bound and ADVERSARIAL above theirs, of those that protect and have an interval."""
    wanted = [*TRUE_UES, *ADVERSARIAL]
    have = [m for m in wanted if m in summary.index and summary.loc[m, "protects"] and summary.loc[m, name] >= 0]
    found = {m: _interval(summary.loc[m], name) for m in have}
    sides = {m: judged(found[m], bounds[m], above=m in ADVERSARIAL, log=True) for m in have}
    idle = [m for m in wanted if m in summary.index and m not in have]
    missing = [m for m in wanted if m not in summary.index]
    notes = [f"{m} {fixed(found[m].estimate)} ({sides[m].verdict})" for m in have]
    notes += [f"not counted here: {', '.join(idle)}"] * bool(idle) + [f"no run of {', '.join(missing)} yet"] * bool(
        missing
    )
    return {
        "measured": "; ".join(notes),
        "interval": "; ".join(f"{m} {_span(summary.loc[m], name)}" for m in have),
        "n": min((found[m].n for m in have), default=0),
        "seeds": benchmark.span(frame["seed"]),
        "verdict": all_of(sides, wanted),
    }


def _unfit(summary: pd.DataFrame) -> Record:
    """Nothing, or that the setting decides nothing: SAL and UD speak of what a network has learnt."""
    if benchmark.fitted(summary):
        return {}
    lowest = summary["train_accuracy"].idxmin()
    why = (
        f"networks are not trained to fit here (training accuracy {fixed(summary.train_accuracy[lowest])} on {lowest})"
    )
    return {"measured": why, "interval": "", "verdict": NOT_TESTED}


def _late(summary: pd.DataFrame, frame: pd.DataFrame) -> Record:
    return _each(summary, frame, LATE, dict.fromkeys(TRUE_UES, 1.0) | dict.fromkeys(ADVERSARIAL, 1 / MARGIN))


def _around_one(summary: pd.DataFrame, frame: pd.DataFrame) -> Record:
    found = _each(summary, frame, "ud_layers", dict.fromkeys([*TRUE_UES, *ADVERSARIAL], 1.0))
    return found | _unshown(float(summary["ud_layers"].get(NOISE, np.nan)))


def _unshown(noise: float) -> Record:
    """Nothing, or that the setting shows no UD of anything: that of noise is not near 1, or there is none (nan)."""
    if 1 / MARGIN <= noise <= MARGIN:
        return {}
    why = "noise has no UD here" if np.isnan(noise) else f"noise has a UD of {fixed(noise)} here"
    return {"measured": f"{why}, so the setting shows none", "interval": "", "verdict": NOT_TESTED}


def _ranked(summary: pd.DataFrame, frame: pd.DataFrame, unit: str) -> Record:
    part = frame[frame["method"].isin(summary.index[summary["protects"].astype(bool)])]
    found = benchmark.rank_correlation(part, unit)
    interval, methods = found["interval"], found["methods"]
    named: Record = {"seeds": benchmark.span(frame["seed"])}
    unshown = _unshown(float(summary[unit].get(NOISE, np.nan)))
    if interval is None:
        why = "UD does not vary" if methods > 2 else f"{methods} methods have no order to speak of"
        return named | {"measured": why, "verdict": UNDECIDED} | unshown
    enough = methods >= benchmark.FEWEST_METHODS
    measured = f"rho {fixed(interval.estimate)} over {methods} methods; of their means {fixed(found['rho_of_means'])}"
    named |= {"measured": f"{measured}, exact p {fixed(found['p'], 3)}", "n": interval.n}
    named |= {"interval": f"[{fixed(interval.low)}, {fixed(interval.high)}]"}
    return named | {"verdict": side(interval, 0.5, above=True) if enough else UNDECIDED} | unshown


# ---- Other tasks ---------------------------------------------------------------------------------------------------

TAKEN, LEFT = 0.5, 0.2  # C1: of the own task's gap at least, of another's at most
FEWEST_TASKS = 2
SEEN = ("segment_semantic", "depth_euclidean")  # on views one of these must be left
VIEW_TARGETS = ("class_object", "class_scene")


def _own(protection: pd.DataFrame, regime: str) -> pd.DataFrame:
    """The rows of the attacked task in one regime, poisons alone, by method."""
    own = protection[protection["own"] & (protection["regime"] == regime)]
    return benchmark.poisons(own).set_index("method")


def _crossed(protection: pd.DataFrame, regime: str) -> Record:
    """C1: how many poisons take their own task and leave others, both beyond noise and in one regime."""
    own = _own(protection, regime)
    others = protection[~protection["own"] & (protection["regime"] == regime)].set_index("method")
    counted = [m for m in own.index if not np.isnan(own.loc[m, "beyond_noise"])]
    taken = {m: side(_interval(own.loc[m], "beyond_noise"), TAKEN, above=True) for m in counted}
    found = {
        m: _spared(taken[m], own.loc[m, "task"], others.loc[[m]] if m in others.index else others[:0]) for m in taken
    }
    tested = {m: verdict for m, verdict in found.items() if taken[m] != FAILS and verdict != NOT_TESTED}
    kind = "" if own.empty else "views: " if own["task"].iloc[0] in VIEW_TARGETS else "other labels derived: "
    return {
        "measured": kind + "; ".join(_both(m, own, others, _told(taken[m], found[m])) for m in counted),
        "interval": "; ".join(f"{m} own {_span(own.loc[m], 'beyond_noise')}" for m in counted),
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
    return _and(taken, rest)


def _and(*parts: str) -> str:
    return FAILS if FAILS in parts else UNDECIDED if UNDECIDED in parts else HOLDS


def _regained(protection: pd.DataFrame) -> Record:
    """C8: the joint network's own task is taken, and a new head on its frozen encoder has it back."""
    joint, headed = (_own(protection, regime) for regime in ("multi", "transfer"))
    methods = [m for m in joint.index.intersection(headed.index) if not joint.loc[m].isna()["protection"]]
    taken = {m: side(_interval(joint.loc[m], "protection"), TAKEN, above=True) for m in methods}
    back = {m: side(_interval(headed.loc[m], "protection"), TAKEN, above=False) for m in methods}
    found = {m: _and(taken[m], back[m]) for m in methods}
    return {
        "measured": "; ".join(
            f"{m} {fixed(joint.protection[m])}, new head {fixed(headed.protection[m])} ({_told(taken[m], found[m])})"
            for m in methods
        ),
        "interval": "; ".join(
            f"{m} {_span(joint.loc[m], 'protection')}, {_span(headed.loc[m], 'protection')}" for m in methods
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


def _parted(paths: pd.DataFrame) -> Record:
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
            f"{name} {_span(row, 'ends')}, {_span(row, 'share')}" for name, (row, _) in found.items()
        ),
        **_of_study(chosen),
        "verdict": all_of(sides, list(found)) if found else NOT_TESTED,
    }


def _partly(row: Any) -> Side:
    """One poison's verdict: its ends farther apart, more weights than in the null differ, and fewer than half do."""
    parts = [
        judged(_interval(row, "ends"), 1, above=True, log=True),
        judged(_interval(row, "beyond"), 0, above=True),
        Side(side(_interval(row, "share"), PART, above=False)),
    ]
    verdict = _and(*(part.verdict for part in parts))
    lost = [part.p for part in parts if part.verdict == FAILS]
    return Side(verdict, lost[0] if lost else float("nan"))


def _interval(row: pd.Series, name: str) -> Interval:
    return Interval(
        row[name],
        row[f"{name}_low"],
        row[f"{name}_high"],
        int(row.get("ud_n", row["n"]) if name.startswith("ud_") else row["n"]),
    )


def _span(row: pd.Series, name: str) -> str:
    return f"[{fixed(row[f'{name}_low'])}, {fixed(row[f'{name}_high'])}]"


# ---- Defenses and networks -----------------------------------------------------------------------------------------


def _listed(rows: pd.DataFrame, label: str, name: str) -> Record:
    """The cells measured, interval and n for one value a row."""
    return {
        "measured": "; ".join(f"{row[label]} {fixed(row[name])}" for _, row in rows.iterrows()),
        "interval": "; ".join(f"{row[label]} {_span(row, name)}" for _, row in rows.iterrows()),
        "n": int(rows["n"].min()),
        "seeds": str(rows["seeds"].iloc[0]),
    }


JPEG = "jpeg"


def _first_of(table: pd.DataFrame, place: list[str]) -> pd.DataFrame:
    """The rows of the first place: a verdict is about one."""
    return table[(table[place] == table[place].iloc[0]).all(axis=1)]


def _defended(gains: pd.DataFrame) -> Record:
    """C6: every defense's net gain of UD lies above 0, and JPEG's, paired by seed, above each other's."""
    gains = _first_of(gains, ["dataset", "architecture"])
    own, others = gains[gains["defense"] == JPEG], gains[gains["defense"] != JPEG]
    listed = _listed(gains, "defense", "gain")
    what = f"{gains['dataset'].iloc[0]}, net gain of log UD over {gains['methods'].iloc[0]} poisons"
    listed["measured"] = f"{what}: {listed['measured']}"
    if own.empty or others.empty:
        return listed | {"verdict": NOT_TESTED}
    if unshown := _unshown(gains["noise_ud"].iloc[0]):
        return listed | unshown
    sides = {f"{row['defense']} gain": judged(_interval(row, "gain"), 0, above=True) for _, row in gains.iterrows()}
    more = {row["defense"]: judged(_interval(row, "jpeg_more"), 0, above=True) for _, row in others.iterrows()}
    return listed | {"verdict": all_of(sides | more, [*sides, *more])}


def _stronger(compared: pd.DataFrame) -> Record:
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
    if unshown := _unshown(first["noise_ud"]):
        return listed | unshown
    pooled, single = (compared[(compared["method"] == comparisons.POOLED) == which] for which in (True, False))
    verdict = side(_interval(pooled.iloc[0], "more"), 0, above=True)
    few = (single["more"] > 0).mean() < 0.5
    return listed | {"verdict": UNDECIDED if verdict == HOLDS and few else verdict}


def evidence(path: str) -> pd.DataFrame:
    """What the convergence studies say: the tables `evidence.csv` below a folder, one below the other.

    Raises InputError if there is none.
    """
    files = sorted(existing(located(path), benchmark.FIRST).rglob("evidence.csv"))
    if not files:
        raise InputError(f"{path} holds no evidence.csv; {benchmark.FIRST}")
    return pd.concat([benchmark.read(file) for file in files], ignore_index=True)
