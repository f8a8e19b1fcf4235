"""The paper's claims, rules fixed on 2026-11-28 before the seeds that decide them, and verdicts measured by them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..base.errors import Record
from ..base.names import NOISE
from ..base.stats import fixed
from . import benchmark, rank_correlations, study_claims
from .rules import MARGIN, NOT_RUN, NOT_TESTED, UNDECIDED, all_of, interval_of, judged, shows_none, side, span_of


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
    untested = {"measured": "not run in this profile", "interval": "", "n": 0, "seeds": "", "verdict": NOT_TESTED}
    parts: list[tuple[str, str, Record]] = [
        *(
            ("C1", part, untested if protection is None else study_claims.crossed(protection, name))
            for part, name in study_claims.REGIMES.items()
        ),
        ("C2", "", untested if paths is None else study_claims.parted(paths)),
        ("C3", "", _late(summary, frame) | unfit),
        *(("C4", unit.removeprefix("ud_"), _ranked(summary, frame, unit) | unfit) for unit in rank_correlations.RANKED),
        ("C5", "", _around_one(summary, frame) | unfit),
        ("C6", "", untested if defended is None or defended.empty else study_claims.defended(defended)),
        ("C7", "", untested if compared is None or compared.empty else study_claims.stronger(compared)),
        ("C8", "", untested if protection is None else study_claims.regained(protection)),
    ]
    rows = [{"claim": name, "part": part} | vars(CLAIMS[name]) | untested | found for name, part, found in parts]
    return pd.DataFrame(rows)[COLUMNS]


def undecided_by(table: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` of runs that the rules were made from: they decide nothing, and what they would say is `seen`."""
    return table.assign(seen=table["verdict"], verdict=NOT_RUN)


# ---- The main setting ----------------------------------------------------------------------------------------------

TRUE_UES = ["em", "lsp", "ops", "ar"]
ADVERSARIAL = ["tap"]
LATE = "late_sal"


def _each(summary: pd.DataFrame, frame: pd.DataFrame, name: str, bounds: Mapping[str, float]) -> Record:
    """TRUE_UES below their bound and ADVERSARIAL above theirs, of those that protect and have an interval."""
    wanted = [*TRUE_UES, *ADVERSARIAL]
    have = [m for m in wanted if m in summary.index and summary.loc[m, "protects"] and summary.loc[m, name] >= 0]
    found = {m: interval_of(summary.loc[m], name) for m in have}
    sides = {m: judged(found[m], bounds[m], above=m in ADVERSARIAL, log=True) for m in have}
    idle = [m for m in wanted if m in summary.index and m not in have]
    missing = [m for m in wanted if m not in summary.index]
    notes = [f"{m} {fixed(found[m].estimate)} ({sides[m].verdict})" for m in have]
    notes += [f"not counted here: {', '.join(idle)}"] * bool(idle) + [f"no run of {', '.join(missing)} yet"] * bool(
        missing
    )
    return {
        "measured": "; ".join(notes),
        "interval": "; ".join(f"{m} {span_of(summary.loc[m], name)}" for m in have),
        "n": min((found[m].n for m in have), default=0),
        "seeds": benchmark.span(frame.loc[frame[name].notna(), "seed"]),
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
    return found | shows_none(float(summary["ud_layers"].get(NOISE, np.nan)))


def _ranked(summary: pd.DataFrame, frame: pd.DataFrame, unit: str) -> Record:
    part = frame[frame["method"].isin(summary.index[summary["protects"].astype(bool)])]
    found = rank_correlations.rank_correlation(part, unit)
    interval, methods = found["interval"], found["methods"]
    named: Record = {"seeds": benchmark.span(frame.loc[frame[unit].notna(), "seed"])}
    unshown = shows_none(float(summary[unit].get(NOISE, np.nan)))
    if interval is None:
        why = "UD does not vary" if methods > 2 else f"{methods} methods have no order to speak of"
        return named | {"measured": why, "verdict": UNDECIDED} | unshown
    enough = methods >= rank_correlations.FEWEST_METHODS
    measured = f"rho {fixed(interval.estimate)} over {methods} methods; of their means {fixed(found['rho_of_means'])}"
    named |= {"measured": f"{measured}, exact p {fixed(found['p'], 3)}", "n": interval.n}
    named |= {"interval": f"[{fixed(interval.low)}, {fixed(interval.high)}]"}
    return named | {"verdict": side(interval, 0.5, above=True) if enough else UNDECIDED} | unshown
