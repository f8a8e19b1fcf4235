"""Tables of the validation: curves along a known truth, and how much UD's ranking depends on how it is measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from ..base import stats, ud
from ..base.errors import Record
from ..base.names import CLEAN
from . import benchmark, run_records


@dataclass(frozen=True)
class Choice:
    """One way from probes to UD. way: a name under a record's `also` (None: its own SAL); window: of probed epochs."""

    way: str | None = None
    rule: str = "kmeans"
    first: int = 0
    unit: str = "layers"


def countings(probed: int) -> dict[str, Choice]:
    """The default and every other way to count learnable layers from the same probes: rules, windows, the unit."""
    found = {"default": Choice()} | {f"rule {name}": Choice(rule=name) for name in ud.RULES if name != "kmeans"}
    windows = {"late half": probed // 2, "last epoch": probed - 1}
    return found | {name: Choice(first=first) for name, first in windows.items()} | {"weights": Choice(unit="weights")}


def probings(named: Iterable[str]) -> dict[str, Choice]:
    """The default and every other way to probe."""
    return {"default": Choice()} | {name: Choice(way=name) for name in named}


def probes(run: Record, way: str | None) -> list[Record]:
    """A run's SAL by epoch: its own, or one of `also`."""
    return run["sal"] if way is None else run["also"][way]["sal"]


def distance(run: Record, twin: Record, choice: Choice = Choice()) -> float:
    """`benchmark.distance` of a run from its clean twin by one choice."""
    return benchmark.distance(_sal(run, choice), _sal(twin, choice), **_options(twin, choice))


def _sal(run: Record, choice: Choice) -> np.ndarray:
    return np.array([p["sal"] for p in probes(run, choice.way)], dtype=float)


def _options(twin: Record, choice: Choice) -> dict[str, Any]:
    weights = run_records.layer_weights(twin) if choice.unit == "weights" else None
    return {"weights": weights, "rule": choice.rule, "window": slice(choice.first, None)}


def twins(runs: Iterable[Record]) -> dict[int, Record]:
    """The clean runs among `runs` by seed: all images clean, all labels true."""
    plain = [r for r in runs if r["config"]["method"] == CLEAN or r["config"]["share"] == 0]
    return {r["config"]["seed"]: r for r in plain if r["config"]["label_noise"] == 0}


def curve(runs: list[Record], clean: Mapping[int, Record], axis: str) -> pd.DataFrame:
    """One row a run: value of the axis, seed, test_accuracy (0..1), ud_layers, ud_weights."""
    rows = []
    for run in runs:
        seed = run["config"]["seed"]
        units = {f"ud_{u}": distance(run, clean[seed], Choice(unit=u)) for u in ("layers", "weights")}
        accuracy = run["history"]["test_accuracy"][-1]
        rows.append({"value": run["config"][axis], "seed": seed, "test_accuracy": accuracy} | units)
    return pd.DataFrame(rows).assign(axis=axis)


def trend(frame: pd.DataFrame, column: str) -> stats.Interval:
    """Kendall's tau of a column with the axis' value, per seed, with its t-interval over the seeds that know it.

    A constant column has no order; it counts as 0.
    """
    taus = [tau(part["value"], part[column]) for _, part in frame.groupby("seed")]
    return _over_seeds(taus, frame["value"].nunique())


def _over_seeds(taus: Iterable[float], pairs: int) -> stats.Interval:
    """`stats.correlations` of the taus that are known; nan throughout where none is."""
    known, nan = [value for value in taus if not np.isnan(value)], float("nan")
    return stats.correlations(known, pairs, kind="kendall") if known else stats.Interval(nan, nan, nan, n=0)


def tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b; 0 where either has no order (constant), nan where a value is missing."""
    values = [np.asarray(v, float) for v in (a, b)]
    if not all(np.isfinite(v).all() for v in values):
        return float("nan")
    return float(scipy_stats.kendalltau(a, b)[0]) if all(np.ptp(v) > 0 for v in values) else 0.0


def by_choice(runs: list[Record], choices: Mapping[str, Choice]) -> pd.DataFrame:
    """log UD of every poisoned run by every choice: choice, method, seed, log_ud, test_accuracy (0..1).

    Zeros are raised to `ud.floor`; NaN where a choice leaves the clean run with too few learnable layers.
    """
    clean, rows = twins(runs), []
    for name, choice in choices.items():
        for run in runs:
            method, seed = run["config"]["method"], run["config"]["seed"]
            if method != CLEAN:
                rows.append([name, method, seed, _log(run, clean[seed], choice), run["history"]["test_accuracy"][-1]])
    return pd.DataFrame(rows, columns=["choice", "method", "seed", "log_ud", "test_accuracy"])


def _log(run: Record, twin: Record, choice: Choice) -> float:
    found = distance(run, twin, choice)
    if np.isnan(found):
        return found
    return float(np.log(max(found, ud.floor(_sal(twin, choice), **_options(twin, choice)))))


def steadiness(frame: pd.DataFrame, default: str) -> pd.DataFrame:
    """How alike each choice ranks the methods with the default, and with test accuracy; index: choice.

    tau and accuracy_tau: Kendall's tau per seed with t-intervals over the n seeds in which this choice and the default
    give every method a UD; tau_of_means: of log UD's mean over these with the default's. A choice that does not tell
    methods apart counts as 0. First row, the yardstick: two seeds by the default (mean over the n pairs, which share
    seeds and so have no interval).
    """
    wide = frame.pivot(index=["choice", "seed"], columns="method", values="log_ud")
    accuracy = frame.pivot_table(index="seed", columns="method", values="test_accuracy")
    base, rows = wide.loc[default].dropna(), {}
    pairs = [tau(base.loc[a], base.loc[b]) for a, b in combinations(base.index, 2)]
    if pairs:
        rows["another seed"] = {"tau": np.mean(pairs), "n": len(pairs)}
    for name in frame["choice"].unique():
        own = wide.loc[name].dropna()
        own = own.loc[own.index.intersection(base.index)]
        rows[name] = {"n": len(own), "tau_of_means": tau(own.mean(), base.loc[own.index].mean())}
        for column, other in (("tau", base), ("accuracy_tau", accuracy)):
            taus = [tau(own.loc[s], other.loc[s]) for s in own.index]
            rows[name] |= _over_seeds(taus, own.shape[1]).columns(column)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("choice")


def score_table(runs: list[Record]) -> pd.DataFrame:
    """One row a run: method, seed, test_accuracy, gap (training minus test accuracy), ud_layers and all `scores`."""
    clean, rows = twins(runs), []
    for run in runs:
        config, history = run["config"], run["history"]
        accuracy = history["test_accuracy"][-1]
        row = {"method": config["method"], "seed": config["seed"], "test_accuracy": accuracy}
        row |= {"gap": history["train_accuracy"][-1] - accuracy, "ud_layers": distance(run, clean[config["seed"]])}
        rows.append(row | run["scores"])
    return pd.DataFrame(rows)


def agreement(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Kendall's tau of each column with test accuracy over methods, per seed with its t-interval: score, tau, n.

    n: the seeds in which every method has this score.
    """
    rows = []
    for column in columns:
        taus = [tau(g[column], g["test_accuracy"]) for _, g in frame.groupby("seed")]
        found = _over_seeds(taus, frame["method"].nunique())
        rows.append({"score": column} | found.columns("tau") | {"n": found.n})
    return pd.DataFrame(rows)
