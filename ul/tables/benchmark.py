"""The benchmark's tables: UD and accuracy a run, intervals a condition, and which poisons count."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..base import stats, ud
from ..base.errors import InputError, Record
from ..base.names import CLEAN, NOISE
from . import published
from .run_records import BLOCK, key, layer_weights, sal_matrix

UNITS = ("ud_layers", "ud_weights", "ud_own", "ud_pooled")
LATE = ("late_sal", "late_sal_weights")
TESTED = {"ud_layers": "p_holm", "ud_weights": "p_holm_weights"}
MEASURED = ("test_accuracy", "train_accuracy", "train_loss", "loss_area", *UNITS)
MEASURED += ("learnable", "clean_learnable", "possible", *LATE, "comparable")


def benchmark(runs: list[Record]) -> pd.DataFrame:
    """One row a run: BLOCK, method, seed, accuracies, control, UNITS, counts, LATE, comparable.

    test_accuracy and train_accuracy (0..1) and train_loss (nats) at the end of training; loss_area: the mean training
    loss over epochs. UD is against the clean run of the same data, architecture, epochs and seed without a defense:
    ud_layers, ud_weights; ud_own, in layers, against the clean run under the same defense; ud_pooled, in layers, with
    threshold and count from the clean runs of all seeds together. Each is nan where there is no such clean run, or one
    that counts too few layers (`ud.countable`). learnable, clean_learnable, possible: the counts of ud_layers. LATE:
    `late_ratios` over noise of the same block and seed (nan without). comparable: by `published.comparable`. Raises
    ValueError if the clean run without a defense is missing.
    """
    clean = {key(run): run for run in runs if run["config"]["method"] == CLEAN}
    noise = {key(run): run for run in runs if run["config"]["method"] == NOISE}
    pooled = _pooled(clean)
    rows = []
    for run in runs:
        dataset, architecture, defense, epochs, _, seed = key(run)
        twin, own = (clean.get((dataset, architecture, d, epochs, CLEAN, seed)) for d in ("none", defense))
        if twin is None:
            place = f"{dataset}, {architecture}, {epochs} epochs, seed {seed}"
            raise ValueError(f"no clean run of {place}; train it for UD to have a base")
        row = dict(zip([*BLOCK, "method", "seed"], key(run), strict=True)) | _training(run["history"])
        row |= _distances(run, twin, own) | {"ud_pooled": _from_pool(run, *pooled[dataset, architecture, epochs])}
        quiet = noise.get((*key(run)[:4], NOISE, seed))
        row |= late_ratios(run, quiet) if quiet is not None else dict.fromkeys(LATE, float("nan"))
        rows.append(row | {"comparable": published.comparable(run["config"])})
    return pd.DataFrame(rows, columns=[*BLOCK, "method", "seed", *MEASURED])


def _training(history: Record) -> dict[str, float]:
    found = {name: history[name][-1] for name in ("test_accuracy", "train_accuracy", "train_loss")}
    return found | {"loss_area": float(np.mean(history["train_loss"]))}


def _distances(run: Record, twin: Record, own: Record | None) -> dict[str, float]:
    sal, clean, weights = sal_matrix(run), sal_matrix(twin), layer_weights(twin)
    learnable, base, possible = ud.counts(sal, clean)
    found: dict[str, float] = {"learnable": learnable, "clean_learnable": base, "possible": possible}
    found |= {"ud_layers": distance(sal, clean), "ud_weights": distance(sal, clean, weights=weights)}
    return found | {"ud_own": float("nan") if own is None else distance(sal, sal_matrix(own))}


def distance(sal: ArrayLike, clean: ArrayLike, *, weights: ArrayLike | None = None, **choice: Any) -> float:
    """UD; nan where the clean run counts too few layers (`ud.countable`), or where the rule finds no threshold.

    weights, choice: options of `ud.distance`.
    """
    try:
        _, base, possible = ud.counts(sal, clean, **choice)
    except ud.Uncountable:
        return float("nan")
    return ud.distance(sal, clean, weights=weights, **choice) if ud.countable(base, possible) else float("nan")


def _pooled(clean: dict[tuple[Any, ...], Record]) -> dict[tuple[str, str, int], tuple[float, float]]:
    """By data set, architecture and epochs: (threshold, mean learnable layers) of the clean runs of all seeds."""
    parts: dict[tuple[str, str, int], list[np.ndarray]] = {}
    for (dataset, architecture, defense, epochs, *_), run in clean.items():
        if defense == "none":
            parts.setdefault((dataset, architecture, epochs), []).append(sal_matrix(run))
    return {place: pooled_base(sals) for place, sals in parts.items()}


def pooled_base(sals: Sequence[np.ndarray]) -> tuple[float, float]:
    """(threshold, #LP summed over epochs) of clean runs float[epochs, layers], means over the runs; nan: too few."""
    beta = float(np.mean([ud.threshold(sal) for sal in sals]))
    base = float(np.mean([ud.learnable(sal, beta).sum() for sal in sals]))
    return beta, base if ud.countable(base, sals[0].size) else float("nan")


def _from_pool(run: Record, beta: float, base: float) -> float:
    return float(ud.learnable(sal_matrix(run), beta).sum() / base)


LATE_PROBES = 2  # of the probed epochs, counted from the last
TINY = 1e-9  # nats; a layer may have no SAL at all


def late_ratios(run: Record, noise: Record) -> dict[str, float]:
    """LATE: SAL of a run over that of noise with its seed, geometric mean over layers and the last two probed epochs.

    late_sal: each layer counts once; late_sal_weights: each counts its weights.
    """
    logs = np.log((sal_matrix(run) + TINY) / (sal_matrix(noise) + TINY))[-LATE_PROBES:].mean(0)
    return {
        "late_sal": float(np.exp(logs.mean())),
        "late_sal_weights": float(np.exp(np.average(logs, weights=layer_weights(run)))),
    }


def compare(frame: pd.DataFrame, method: str, column: str, *, against: str = NOISE, **options: Any) -> stats.Interval:
    """Paired interval of one method's column minus another's, in one block of the benchmark; with log=True of one over
    the other.
    """
    by_seed = frame.pivot(index="seed", columns="method", values=column)
    if missing := {method, against} - set(by_seed.columns):
        raise InputError(f"no run of {', '.join(sorted(missing))} to compare with; add it to the grid")
    return stats.paired(by_seed[method], by_seed[against], **options)


def by_method(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a block and method: means with intervals over n seeds.

    Accuracies on the logit scale, ratios on the log scale; accuracy_minus_noise: paired differences. UNITS: UD over the
    seeds whose clean twin counts enough layers, ud_n of them for ud_layers; zeros: in how many of these it is 0, and
    then there is no interval. counts: learnable layers over the clean twins', summed over the seeds, of so many.
    protects: the poison lowers accuracy by PROTECTS below noise, the interval excluding 0. fits: mean training accuracy
    of FITS or more (`fitted`). p_holm, and p_holm_weights for UD in weights: two-sided t-test of log UD against 0
    (UD = 1), Holm over the poisons. published_accuracy and published_ud: what others report for the very condition,
    nan where nobody does.
    """
    rows = [
        dict(zip(BLOCK, block, strict=True))
        | {"method": method}
        | _summary(part, method)
        | published.values(
            *cast(tuple[str, str, str], block[:3]),
            method,
            comparable=part.loc[part["method"] == method, "comparable"].all(),
        )
        for block, part in frame.groupby(BLOCK, sort=False)
        for method in part["method"].unique()
    ]
    found = pd.DataFrame(
        rows, columns=None if rows else [*BLOCK, "method", "n", "test_accuracy", *UNITS, *map("p_{}".format, TESTED)]
    )
    for unit, name in TESTED.items():
        found[name] = found.groupby(BLOCK)[f"p_{unit}"].transform(stats.holm)
    return found


PROTECTS = 0.2  # of accuracy on clean test images, below noise
FITS = {True: 0.93, False: 0.95}  # mean training accuracy at least: of clean images and noise, of poisons


def is_baseline(method: str) -> bool:
    """Whether it is no poison: clean images, or a kind of noise."""
    return method.startswith((CLEAN, NOISE))


def poisons(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of poisons: neither clean images nor a kind of noise."""
    return frame[np.array([not is_baseline(method) for method in frame["method"]], dtype=bool)]


def _summary(part: pd.DataFrame, method: str) -> Record:
    own = part[part["method"] == method]
    accuracy, trained = stats.share(own["test_accuracy"]), float(own["train_accuracy"].mean())
    out: Record = {"n": accuracy.n} | accuracy.columns("test_accuracy") | {"protects": False}
    if NOISE in set(part["method"]):
        less = compare(part, method, "test_accuracy")
        out |= less.columns("accuracy_minus_noise")
        out["protects"] = not is_baseline(method) and less.estimate <= -PROTECTS and less.high < 0
    out |= {name: float(own[name].mean()) for name in ("train_accuracy", "train_loss", "loss_area")}
    out["fits"] = trained >= FITS[is_baseline(method)]
    out |= _unlearnable(own)
    for name in LATE:
        out |= of_ratios(own[name]).columns(name)
    for unit in TESTED:
        out[f"p_{unit}"] = float("nan") if is_baseline(method) else stats.p_against(of_ratios(own[unit]), 1, log=True)
    return out


def _unlearnable(own: pd.DataFrame) -> Record:
    """UD of one method in all UNITS, and its counts."""
    counted = own["ud_layers"].dropna()
    out: Record = {"ud_n": len(counted), "zeros": int((counted == 0).sum())}
    counts = [int(own[name].sum()) for name in ("learnable", "clean_learnable", "possible")]
    out["counts"] = "{} over {}, of {}".format(*counts)
    for unit in UNITS:
        out |= of_ratios(own[unit]).columns(unit)
    return out


def of_ratios(values: pd.Series) -> stats.Interval:
    """`stats.ratios` of those that are known; where all are equal, as counts may make them, there is no interval."""
    known, nan = values.dropna(), float("nan")
    if len(known) == 0:
        return stats.Interval(nan, nan, nan, n=0)
    found = stats.ratios(known)
    return found if np.ptp(known) else replace(found, low=nan, high=nan)


def span(seeds: Iterable[int]) -> str:
    """Seeds in short: "0-4", "0, 3-7"."""
    parts: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def protecting(frame: pd.DataFrame) -> list[str]:
    """The poisons that protect (`by_method`) in every block without a defense that they are run in."""
    summary = by_method(frame[frame["defense"] == "none"])
    everywhere = summary.groupby("method", sort=False)["protects"].all()
    return [str(method) for method in everywhere.index[everywhere]]


def counted(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that claims are decided by: of clean images, of noise, and of the poisons that are `protecting`."""
    kept = protecting(frame)
    return frame[np.array([is_baseline(method) or method in kept for method in frame["method"]], dtype=bool)]


def in_brief(interval: stats.Interval, zeros: int) -> str:
    """UD with its interval as text, or why there is none."""
    if interval.n == 0:
        return "too few layers"
    if zeros:
        return f"0 in {zeros} of {interval.n}"
    if np.isnan(interval.low):
        return f"{interval.estimate:.2f} ({'one seed' if interval.n == 1 else f'equal in {interval.n}'})"
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def noise_ud(frame: pd.DataFrame, unit: str = "ud_layers") -> float:
    """UD of noise in one block, geometric mean over seeds; nan where there is none."""
    return of_ratios(frame.loc[frame["method"] == NOISE, unit]).estimate


def fitted(summary: pd.DataFrame) -> bool:
    """Whether a setting is trained to fit: clean images, noise and every poison (rows of `by_method` of one block)."""
    return bool(summary["fits"].all())


def over_seeds(frame: pd.DataFrame, keys: list[str], shares: Iterable[str] = ()) -> pd.DataFrame:
    """One row a group of `keys`: n, mean and t-interval of every other column over its rows; nan where one is nan.

    shares: columns in 0..1, whose intervals are on the logit scale.
    """
    found = []
    for place, part in frame.groupby(keys, sort=False):
        row = dict(zip(keys, place, strict=True)) | {"n": len(part)}
        for column in part.columns.drop(keys):
            kind = stats.share if column in shares else stats.student
            row |= stats.known(part[column], kind).columns(column)
        found.append(row)
    return pd.DataFrame(found)
