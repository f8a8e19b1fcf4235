"""How UD and SAL change along an axis: what defenses add, which architectures have more, SAL from epoch to epoch."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ..base import stats
from ..base.errors import Record
from ..base.names import CLEAN, NETWORKS
from . import benchmark, run_records

TRANSFORMERS = tuple(name for name, network in NETWORKS.items() if network.transformer)
POOLED = "all"


def with_bases(settings: Iterable[str]) -> list[str]:
    """Names of settings (`<data set>-<what differs>`) with the plain settings that they are compared with in front."""
    settings = list(settings)
    return list(dict.fromkeys([*(name.partition("-")[0] for name in settings), *settings]))


def logs(frame: pd.DataFrame) -> pd.Series:
    """log UD (layers) of every run by BLOCK, method and seed; nan where there is none, or it is 0."""
    values = np.log(frame["ud_layers"].where(frame["ud_layers"] > 0))
    return pd.Series(values.to_numpy(), index=pd.MultiIndex.from_frame(frame[[*run_records.BLOCK, "method", "seed"]]))


GAINS = ["dataset", "architecture", "defense", "methods", "n", "seeds", "gain", "gain_low", "gain_high"]
GAINS += ["noise_ud", "on_clean", "jpeg_more", "jpeg_more_low", "jpeg_more_high", "p_holm"]


def defense_gains(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a defense: gain, by how much it raises log UD of poisons beyond what it does to clean images.

    dataset, architecture, defense, methods (how many poisons with a UD above 0 both ways), n and seeds (those that all
    of them have), gain: the mean over them of log UD under the defense less that without one after as many epochs, less
    the same of the clean runs (on_clean, their mean), with its t-interval over seeds, p_holm; jpeg_more: jpeg's gain
    minus this defense's over the poisons of both, paired by seed (nan for jpeg); noise_ud: `benchmark.noise_ud` without
    a defense. Ends are nan for one seed. Empty if no poison was run both ways.
    """
    wide = logs(frame).unstack("defense")
    if set(wide.columns) <= {"none"} or "none" not in wide:
        return pd.DataFrame(columns=GAINS)
    gains = wide.drop(columns="none").sub(wide["none"], axis=0)
    gains = gains.groupby(["dataset", "architecture", "method", "seed"]).mean()  # defenses may need other epochs
    bare = frame[frame["defense"] == "none"].set_index(["dataset", "architecture"]).sort_index()
    rows = [
        row | {"noise_ud": benchmark.noise_ud(bare.loc[place])}
        for place, part in gains.groupby(["dataset", "architecture"])
        for row in _gains(place, part)
    ]
    found = pd.DataFrame(rows, columns=[*GAINS[:-1], "p"])
    found["p_holm"] = stats.holm(found.pop("p"))
    return found


def _gains(place: tuple[Any, ...], part: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    named = part.index.get_level_values("method")
    clean = part[named == CLEAN].droplevel("method")
    mine = part[~named.map(benchmark.is_baseline)]
    net = mine.sub(clean.reindex(mine.index.droplevel("method")).to_numpy())
    for defense in part.columns:
        own = by_seed(net[[defense]])
        if own.empty:
            continue
        interval = stats.student(own[defense])
        row = dict(zip(("dataset", "architecture"), place, strict=True)) | {"defense": defense}
        row |= {"methods": net[[defense]].dropna().index.unique("method").size, "n": interval.n}
        row |= interval.columns("gain") | {"on_clean": clean[defense].mean(), "p": stats.p_value(own[defense])}
        if defense != "jpeg" and "jpeg" in part and len(both := by_seed(net[["jpeg", defense]])):
            row |= stats.paired(both["jpeg"], both[defense]).columns("jpeg_more")
        rows.append(row | {"seeds": benchmark.span(own.index.get_level_values("seed"))})
    return rows


def by_seed(values: pd.DataFrame) -> pd.DataFrame:
    """Mean over the methods that have all columns, of the seeds that all of those methods have; one row a seed."""
    wide = values.dropna().unstack("method").dropna()
    return wide.T.groupby(level=0, sort=False).mean().T


def stronger(frame: pd.DataFrame) -> pd.DataFrame:
    """Transformers beside CNNs: log UD of the transformer minus the largest of the CNNs', one row a poison.

    dataset, transformer, method (POOLED: the mean over all of them), n (seeds that all have), more with its t-interval,
    p_holm over the single methods; noise_ud: the transformer's; clean, clean_cnn: test accuracy of the transformer and
    of the best CNN, both trained on clean images. The largest is taken seed by seed, which with several CNNs leans to
    their side; runs with a UD of 0 or none are left out. Empty without runs of both kinds.
    """
    rows = []
    for dataset, part in frame[(frame["defense"] == "none") & (frame["architecture"] != "linear")].groupby("dataset"):
        wide = (
            logs(benchmark.poisons(part))
            .groupby(level=["architecture", "method", "seed"])
            .mean()
            .unstack("architecture")
        )
        clean = part[part["method"] == CLEAN].groupby("architecture")["test_accuracy"].mean()
        cnns = [name for name in wide if name not in TRANSFORMERS]
        for name in wide.columns.intersection(TRANSFORMERS) if cnns else []:
            both = wide[[name, *cnns]].dropna()
            more = (both[name] - both[cnns].max(axis=1)).rename("more")
            place = {"dataset": dataset, "transformer": name}
            place |= {"clean": clean[name], "clean_cnn": clean[cnns].max()}
            place |= {"noise_ud": benchmark.noise_ud(part[part["architecture"] == name])}
            place |= {"seeds": benchmark.span(both.index.unique("seed"))}
            rows += [place | row for row in _more(more)] if len(more) else []
    return pd.DataFrame(rows)


def sal_by_epoch(runs: list[Record]) -> pd.DataFrame:
    """SAL over the clean twin's, geometric mean over layers, by method and probed epoch, with intervals over seeds.

    runs: of one block. dataset, method, epoch, n, sal_ratio with its ends.
    """
    clean = {run["config"]["seed"]: run for run in run_records.of(runs, method=CLEAN)}
    rows = []
    for run in (r for r in runs if r["config"]["method"] != CLEAN):
        config = run["config"]
        logs = [np.log(run_records.sal_matrix(r) + benchmark.TINY).mean(1) for r in (run, clean[config["seed"]])]
        place = {"dataset": config["dataset"], "method": config["method"]}
        epochs = [probe["epoch"] for probe in run["sal"]]
        rows += [place | {"epoch": e, "ratio": v} for e, v in zip(epochs, np.exp(logs[0] - logs[1]), strict=True)]
    found = pd.DataFrame(rows).groupby(["dataset", "method", "epoch"], sort=False)["ratio"]
    intervals = {key: stats.paired(part, np.ones(len(part)), log=True) for key, part in found}
    return pd.DataFrame(
        [
            dict(zip(("dataset", "method", "epoch"), key, strict=True)) | {"n": i.n} | i.columns("sal_ratio")
            for key, i in intervals.items()
        ]
    )


EQUAL = 1.25  # the larger of two training losses over the smaller, at most
EQUAL_LOSS = ["dataset", "architecture", "defense", "epochs", "method", "n", "seeds", "train_loss", "clean_epochs"]
EQUAL_LOSS += ["clean_loss", "sal_ratio", "sal_ratio_low", "sal_ratio_high"]


def at_equal_loss(runs: list[Record]) -> pd.DataFrame:
    """SAL of each poison and of noise over that of clean images fitted as closely: is low SAL more than a low loss?

    Both at the end of training. A run is compared with the clean run of its data set, architecture, defense and seed
    whose training loss is nearest to its own, of all lengths of training among `runs`, where the two losses are equal
    within the factor EQUAL. One row a block and method: n (of so many `seeds` that is so), train_loss and clean_loss
    (nats, geometric means over all seeds), clean_epochs (of the nearest clean runs), sal_ratio: geometric mean over
    layers and these n seeds, with its interval; nan where n is 0. Empty without clean runs.
    """
    clean: dict[tuple[Any, ...], list[Record]] = {}
    for run in run_records.of(runs, method=CLEAN):
        clean.setdefault(_but_length(run), []).append(run)
    rows = []
    for run in runs:
        candidates = clean.get(_but_length(run), [])
        if run["config"]["method"] == CLEAN or not candidates:
            continue
        nearest = min(candidates, key=lambda twin: abs(_end_loss(twin) - _end_loss(run)))
        epochs = nearest["config"]["recipe"]["epochs"]
        logs = [np.log(run_records.sal_matrix(r)[-1] + benchmark.TINY).mean() for r in (run, nearest)]
        rows.append([*run_records.key(run)[:5], _end_loss(run), epochs, _end_loss(nearest), logs[0] - logs[1]])
    found = pd.DataFrame(rows, columns=[*EQUAL_LOSS[:5], "train_loss", "clean_epochs", "clean_loss", "ratio"])
    return pd.DataFrame(
        [_at_equal_loss(place, part) for place, part in found.groupby(EQUAL_LOSS[:5], sort=False)], columns=EQUAL_LOSS
    )


def _at_equal_loss(place: tuple[Any, ...], part: pd.DataFrame) -> dict[str, Any]:
    equal = (part["clean_loss"] - part["train_loss"]).abs() <= np.log(EQUAL)
    interval = benchmark.of_ratios(np.exp(part.loc[equal, "ratio"]))
    row = dict(zip(EQUAL_LOSS[:5], place, strict=True)) | {"n": interval.n, "seeds": len(part)}
    row |= {name: float(np.exp(part[name].mean())) for name in ("train_loss", "clean_loss")}
    return row | {"clean_epochs": benchmark.span(part["clean_epochs"])} | interval.columns("sal_ratio")


def _but_length(run: Record) -> tuple[Any, ...]:
    dataset, architecture, defense, _, _, seed = run_records.key(run)
    return dataset, architecture, defense, seed


def _end_loss(run: Record) -> float:
    """The logarithm of the training loss of the last epoch."""
    return _loss_at(run, len(run["history"]["train_loss"]))


def along_training(runs: list[Record]) -> pd.DataFrame:
    """SAL beside the training loss of the epoch before each probe: dataset, method, epoch, n, train_loss, sal.

    runs: of one block. Both in nats, geometric means over n seeds, SAL also over layers. A method whose points lie
    below those of clean images at the same loss is flatter there than its loss alone would make it.
    """
    rows = [
        [run["config"]["dataset"], run["config"]["method"], probe["epoch"], _loss_at(run, probe["epoch"]), log]
        for run in runs
        for probe, log in zip(run["sal"], np.log(run_records.sal_matrix(run) + benchmark.TINY).mean(1), strict=True)
    ]
    found = pd.DataFrame(rows, columns=["dataset", "method", "epoch", "train_loss", "sal"])
    groups = found.groupby(["dataset", "method", "epoch"], sort=False)
    means = np.exp(groups[["train_loss", "sal"]].mean())
    return means.assign(n=groups.size()).reset_index()[["dataset", "method", "epoch", "n", "train_loss", "sal"]]


def _loss_at(run: Record, epoch: int) -> float:
    """The logarithm of the training loss of this epoch, counted from 1."""
    return float(np.log(run["history"]["train_loss"][epoch - 1] + benchmark.TINY))


def by_length(runs: list[Record]) -> pd.DataFrame:
    """`benchmark.by_method` of settings that differ in epochs alone: the methods that all lengths of a data set have.

    runs: of one architecture and defense for each data set. Data sets of one length are left out; lengths from short to
    long.
    """
    found = benchmark.by_method(benchmark.benchmark(runs))
    parts = []
    for _, part in found.groupby("dataset", sort=False):
        lengths = part["epochs"].nunique()
        everywhere = part.groupby("method")["epochs"].transform("nunique") == lengths
        parts += [part[everywhere].sort_values("epochs", kind="stable")] if lengths > 1 else []
    return pd.concat(parts, ignore_index=True) if parts else found.iloc[:0]


def _more(part: pd.Series) -> list[dict[str, Any]]:
    single = {method: values for method, values in part.groupby("method")}
    adjusted = stats.holm([stats.p_value(values) for values in single.values()])
    rows = []
    named = {**single, POOLED: by_seed(part.to_frame())["more"]}
    for (method, values), p in zip(named.items(), [*adjusted, float("nan")], strict=True):
        interval = stats.student(values)
        rows.append({"method": method, "n": interval.n} | interval.columns("more") | {"p_holm": p})
    return rows
