"""How UD and SAL change along an axis: what defenses add, which architectures have more, SAL from epoch to epoch."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from ..base import stats
from ..base.errors import Record
from ..base.names import CLEAN, NETWORKS, NOISE
from . import benchmark

TRANSFORMERS = tuple(name for name, network in NETWORKS.items() if network.transformer)
POOLED = "all"
TINY = 1e-9  # nats; a layer may have no SAL at all


def with_bases(settings: Iterable[str]) -> list[str]:
    """Names of settings (`<data set>-<what differs>`) with the plain settings that they are compared with in front."""
    settings = list(settings)
    return list(dict.fromkeys([*(name.partition("-")[0] for name in settings), *settings]))


def poisons(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of poisons: neither clean nor a kind of noise."""
    return frame[~frame["method"].str.startswith((CLEAN, NOISE))]


def logs(frame: pd.DataFrame) -> pd.Series:
    """log UD (layers) of every poison's runs by BLOCK, method and seed; zeros are raised to their floors."""
    part = poisons(frame)
    values = np.log(benchmark.raised(part, "ud_layers"))
    return pd.Series(values.to_numpy(), index=pd.MultiIndex.from_frame(part[[*benchmark.BLOCK, "method", "seed"]]))


GAINS = ["dataset", "architecture", "defense", "methods", "n", "gain", "gain_low", "gain_high"]
GAINS += ["jpeg_more", "jpeg_more_low", "jpeg_more_high", "p_holm"]


def defense_gains(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a defense: gain, by how much it raises log UD on average over the poisons run with and without it.

    dataset, architecture, defense, methods (how many), n (seeds that all of them have), gain over runs of as many
    epochs without a defense, with its t-interval over seeds, p_holm; jpeg_more: jpeg's gain minus this defense's over
    the poisons of both, paired by seed (nan for jpeg). Ends are nan for one seed. Empty if no poison was run both ways.
    """
    wide = logs(frame).unstack("defense")
    if set(wide.columns) <= {"none"} or "none" not in wide:
        return pd.DataFrame(columns=GAINS)
    gains = wide.drop(columns="none").sub(wide["none"], axis=0)
    gains = gains.groupby(["dataset", "architecture", "method", "seed"]).mean()  # defenses may need other epochs
    rows = [row for place, part in gains.groupby(["dataset", "architecture"]) for row in _gains(place, part)]
    found = pd.DataFrame(rows, columns=[*GAINS[:-1], "p"])
    found["p_holm"] = stats.holm(found.pop("p"))
    return found


def _gains(place: tuple[Any, ...], part: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for defense in part.columns[part.notna().any()]:
        own = by_seed(part[[defense]])
        interval = stats.student(own[defense])
        row = dict(zip(("dataset", "architecture"), place, strict=True)) | {"defense": defense}
        row |= {"methods": part[defense].dropna().index.unique("method").size, "n": interval.n}
        row |= interval.columns("gain") | {"p": stats.p_value(own[defense])}
        if defense != "jpeg" and "jpeg" in part and len(both := by_seed(part[["jpeg", defense]])):
            row |= stats.paired(both["jpeg"], both[defense]).columns("jpeg_more")
        rows.append(row)
    return rows


def by_seed(values: pd.DataFrame) -> pd.DataFrame:
    """Mean over the methods that have all columns, of the seeds that all of those methods have; one row a seed."""
    wide = values.dropna().unstack("method").dropna()
    return wide.T.groupby(level=0, sort=False).mean().T


def stronger(frame: pd.DataFrame) -> pd.DataFrame:
    """Transformers beside CNNs: log UD of the transformer minus the largest of the CNNs', one row a method.

    dataset, transformer, method (POOLED: the mean over all of them), n (seeds that all have), more with its t-interval,
    p_holm over the single methods. The largest is taken seed by seed, which with several CNNs leans to their side;
    zeros are raised to the largest floor of the seed's compared networks. Empty without runs of both kinds.
    """
    rows = []
    floor = benchmark.FLOORS["ud_layers"]
    for dataset, part in frame[(frame["defense"] == "none") & (frame["architecture"] != "linear")].groupby("dataset"):
        part = part.assign(**{floor: part.groupby(["method", "seed"])[floor].transform("max")})
        wide = logs(part).groupby(level=["architecture", "method", "seed"]).mean().unstack("architecture")
        cnns = [name for name in wide if name not in TRANSFORMERS]
        for name in wide.columns.intersection(TRANSFORMERS) if cnns else []:
            both = wide[[name, *cnns]].dropna()
            more = (both[name] - both[cnns].max(axis=1)).rename("more")
            rows += [{"dataset": dataset, "transformer": name} | row for row in _more(more)] if len(more) else []
    return pd.DataFrame(rows)


def sal_by_epoch(runs: list[Record]) -> pd.DataFrame:
    """SAL over the clean twin's, geometric mean over layers, by method and probed epoch, with intervals over seeds.

    runs: of one block. dataset, method, epoch, n, sal_ratio with its ends.
    """
    clean = {run["config"]["seed"]: run for run in benchmark.of(runs, method=CLEAN)}
    rows = []
    for run in (r for r in runs if r["config"]["method"] != CLEAN):
        config = run["config"]
        logs = [np.log(benchmark.sal_matrix(r) + TINY).mean(1) for r in (run, clean[config["seed"]])]
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


def _more(part: pd.Series) -> list[dict[str, Any]]:
    single = {method: values for method, values in part.groupby("method")}
    adjusted = stats.holm([stats.p_value(values) for values in single.values()])
    rows = []
    named = {**single, POOLED: by_seed(part.to_frame())["more"]}
    for (method, values), p in zip(named.items(), [*adjusted, float("nan")], strict=True):
        interval = stats.student(values)
        rows.append({"method": method, "n": interval.n} | interval.columns("more") | {"p_holm": p})
    return rows
