"""Tables of the cross-task study: scores, protection by task, Δ_m, and what SAL and gradients say about task pairs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd

from ..base import stats
from ..base.errors import InputError, Record
from ..base.names import CLEAN, NOISE, TASKS
from . import benchmark

UNINFORMED, JOINT = "uninformed", "joint"
COLUMNS = ["dataset", "backbone", "regime", "method", "task", "seed", "metric", "value"]


def scores(runs: Sequence[Record]) -> pd.DataFrame:
    """One row a score: COLUMNS, the metric's value in its own unit.

    Regime "none" has the method "uninformed": the best constant predictor of the training labels, for every seed.
    """
    rows = []
    for run in runs:
        config = run["config"]
        where = {"dataset": config["dataset"], "backbone": config["encoder"], "seed": config["seed"]}
        found = [(s["regime"], config["method"], s["task"], s["value"]) for s in run["scores"]]
        if config["method"] == CLEAN:
            found += [("none", UNINFORMED, task, value) for task, value in run["uninformed"].items()]
        rows += [where | {"regime": r, "method": m, "task": t, "value": v} for r, m, t, v in found]
    frame = pd.DataFrame(rows)
    frame["metric"] = [f"{TASKS[t].metric} ({TASKS[t].unit})" for t in frame["task"]]
    return frame[COLUMNS]


def protection(frame: pd.DataFrame, target: str) -> pd.DataFrame:
    """What a poison takes: one row a regime, method and task, with t-intervals over seeds and n.

    protection: the share of the gap between clean training and knowing no image that the poison removes, per seed
    (clean - poison) / (clean - uninformed): 0 protects nothing, 1 leaves nothing. nan where clean training is not
    better than knowing nothing. seeds: which; value: the metric itself; p: two-sided t-test of the protection against
    0, p_holm over the poisons and tasks of a regime. beyond_noise: protection less that of noise, paired by seed. own:
    the task is the poison's target; dense: it has an answer for every pixel. Raises InputError without clean runs.
    """
    rows = []
    kept = {}
    for regime, method, task, seeds, own, clean, nothing in _paired(frame):
        gap = clean - nothing
        row = {"regime": regime, "method": method, "task": task, "own": task == target}
        row |= {"seeds": benchmark.span(seeds)}
        row |= {"dense": TASKS[task].dense, "n": len(own)}
        row |= (stats.share if TASKS[task].unit == "share" else stats.student)(own).columns("value")
        learnt = np.sign(gap) == (1 if TASKS[task].higher else -1)
        shares = (clean - own) / gap if learnt.all() else np.full(len(own), np.nan)
        kept[regime, method, task] = shares
        row |= stats.known(shares).columns("protection") | {"p": stats.p_value(shares)}
        rows.append(row)
    for row in rows:
        row |= stats.known(_beyond(kept, row)).columns("beyond_noise")
    found = pd.DataFrame(rows)
    found["p"] = found["p"].where(~found["method"].map(benchmark.is_baseline))
    found["p_holm"] = found.groupby("regime")["p"].transform(stats.holm)
    return found


def balance(runs: Sequence[Record], target: str) -> pd.DataFrame:
    """`protection` of joint networks for each way to balance the losses: its columns, `weighting` before them."""
    groups: dict[str, list[Record]] = {}
    for run in runs:
        groups.setdefault(weighted(run["config"]["recipe"]), []).append(run)
    parts = []
    for name, part in groups.items():
        table = protection(scores(part), target)
        parts.append(table[table["regime"] == "multi"].assign(weighting=name))
    found = pd.concat(parts, ignore_index=True).drop(columns="regime")
    return found[["weighting", *found.columns.drop("weighting")]]


def weighted(recipe: Mapping[str, Any]) -> str:
    """A recipe's weighting and single tasks' weights in words: "equal", "equal, class_object x 10"."""
    return ", ".join([recipe["weighting"], *(f"{task} x {weight:g}" for task, weight in recipe["weights"])])


def _beyond(shares: Mapping[tuple[str, str, str], np.ndarray], row: Mapping[str, Any]) -> np.ndarray:
    """A poison's protections less those of noise, seed by seed; nan without noise over the same seeds."""
    own, noise = (shares.get((row["regime"], method, row["task"])) for method in (row["method"], NOISE))
    return (
        own - noise
        if noise is not None and len(noise) == len(cast(np.ndarray, own))
        else np.full(len(cast(np.ndarray, own)), np.nan)
    )


def _paired(frame: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """(regime, method, task, seeds, values, clean's, uninformed's) of all conditions but clean, over the same seeds."""
    wide = frame.pivot(index="seed", columns=["regime", "method", "task"], values="value")
    for regime, method, task in wide.columns:
        if method in (CLEAN, UNINFORMED):
            continue
        if (regime, CLEAN, task) not in wide:
            raise InputError(f"no clean {regime} run of {task} to compare {method} with; add it to the study")
        columns = [(regime, method, task), (regime, CLEAN, task), ("none", UNINFORMED, task)]
        part = wide[columns].dropna()
        yield regime, method, task, part.index, *(part[c].to_numpy() for c in columns)


def delta_m(frame: pd.DataFrame) -> pd.DataFrame:
    """Δ_m: the mean over tasks of the relative change against clean training, in percent, per seed with its interval.

    Negative: worse; nan where clean training scores 0. The sign of a task whose metric is an error is turned
    (Vandenhende et al., TPAMI 2021, eq. 9).
    """
    changes: dict[tuple[str, str], list[np.ndarray]] = {}
    for regime, method, task, _, own, clean, _ in _paired(frame):
        sign = 1 if TASKS[task].higher else -1
        change = np.divide(own - clean, clean, out=np.full(len(own), np.nan), where=clean != 0)
        changes.setdefault((regime, method), []).append(100 * sign * change)
    return pd.DataFrame(
        [
            {"regime": r, "method": m, "n": len(parts[0])} | stats.known(np.mean(parts, 0)).columns("delta_m")
            for (r, m), parts in changes.items()
        ]
    )


# ---- Why -----------------------------------------------------------------------------------------------------------


def matrix(run: Record, task: str) -> np.ndarray:
    """SAL of the shared encoder for one task, float[epochs, layers], in units of the task's constant loss."""
    return np.array([probe["sal"][task] for probe in run["probes"]], dtype=float)


def unlearnable(runs: Sequence[Record]) -> pd.DataFrame:
    """UD of the shared encoder by task and for the joint loss: rows method, task, n, zeros, UD over seeds, text.

    n: the seeds whose clean run counts enough layers (`ud.countable`); zeros: in how many of them UD is 0, and then it
    has no interval.
    """
    clean = {run["config"]["seed"]: run for run in runs if run["config"]["method"] == CLEAN}
    rows = []
    for run in runs:
        config = run["config"]
        if config["method"] == CLEAN or not run["probes"]:
            continue
        for task in run["probes"][0]["sal"]:
            own, twin = matrix(run, task), matrix(clean[config["seed"]], task)
            rows.append({"method": config["method"], "task": task, "ud": benchmark.distance(own, twin)})
    found = []
    for (method, task), part in pd.DataFrame(rows).groupby(["method", "task"], sort=False):
        interval = benchmark.of_ratios(part["ud"])
        row = {"method": method, "task": task, "n": interval.n, "zeros": int((part["ud"] == 0).sum())}
        found.append(row | interval.columns("ud") | {"text": benchmark.in_brief(interval, row["zeros"])})
    return pd.DataFrame(found)


def alike(runs: Sequence[Record]) -> pd.DataFrame:
    """Task pairs at the last probe: cosine of their SAL vectors over layers and of their gradients.

    Rows method, task, other, n; sal and gradient with t-intervals over seeds.
    """
    rows = []
    for run in runs:
        last = run["probes"][-1]
        for pair in last["conflict"]:
            sal = _cosine(*(last["sal"][pair[name]] for name in ("task", "other")))
            named = {"method": run["config"]["method"], "task": pair["task"], "other": pair["other"]}
            rows.append(named | {"sal": sal, "gradient": pair["cosine"]})
    return benchmark.over_seeds(pd.DataFrame(rows), ["method", "task", "other"])


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    a, b = np.asarray(a), np.asarray(b)
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


def layers(runs: Sequence[Record]) -> pd.DataFrame:
    """SAL over the clean twin's at the last probe, geometric mean over seeds: rows method, task, layer, ratio."""
    clean = {run["config"]["seed"]: run["probes"][-1] for run in runs if run["config"]["method"] == CLEAN}
    rows = []
    for run in runs:
        last, config = run["probes"][-1], run["config"]
        for task, values in last["sal"].items():
            logs = np.log(np.maximum(values, 1e-9)) - np.log(np.maximum(clean[config["seed"]]["sal"][task], 1e-9))
            rows += [
                {"method": config["method"], "task": task, "layer": layer, "log": v}
                for layer, v in zip(last["layer"], logs, strict=True)
            ]
    found = pd.DataFrame(rows).groupby(["method", "task", "layer"], sort=False)["log"].mean()
    return np.exp(found).rename("ratio").reset_index()
