"""Tables of the convergence study: epochs, when runs converge, which parameters differ, and what moving them does.

`found` is the study's record (`ul.studies.convergence.study`) throughout.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..base import records, stats
from ..base.errors import Record
from ..base.names import CLEAN
from . import benchmark

EPOCHS = ["method", "seed", "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]
EPOCHS += ["gradient_norm", "distance", "curvature"]
FLAT = ["method", "seed", "sam", "test_accuracy"]
FLAT += [f"{what}_{part}" for part in ("own", "clean") for what in ("loss", "sharpness", "curvature")] + ["sal", "ud"]
SHARES = ("accuracy_then", "accuracy_end", "walked_after")  # among the moments
DONE = 0.9  # share of the fall of the training loss after which a run counts as converged


def epochs(found: Record) -> pd.DataFrame:
    """One row a run and epoch (0: the start): losses in nats, accuracies 0..1, gradient norm, distance, curvature."""
    rows = [_named(run) | row for run in found["runs"] for row in run["epochs"]]
    return pd.DataFrame(rows).reindex(columns=EPOCHS)


def _named(run: Record) -> Record:
    return {"method": run["config"]["method"], "seed": run["config"]["seed"]}


def moments(found: Record) -> pd.DataFrame:
    """When runs converge and what happens afterwards: a row a method, t-intervals over n seeds.

    converged: the first epoch at which the loss of the run's own training images has fallen by DONE of what it falls in
    all, from the first epoch to the lowest; accuracy_then and accuracy_end: clean test accuracy there and at the end;
    later: their difference; walked_after: share of the path's length that is still to come.
    """
    rows = []
    for run in found["runs"]:
        table = pd.DataFrame(run["epochs"]).set_index("epoch")
        losses = table["train_loss"].dropna()
        fallen = (losses.iloc[0] - losses) / max(losses.iloc[0] - losses.min(), 1e-12)
        when = int(fallen.index[fallen >= DONE][0]) if losses.iloc[0] > losses.min() else int(table.index[-1])
        then, end = table["test_accuracy"][when], table["test_accuracy"].iloc[-1]
        row = {"converged": when, "accuracy_then": then, "accuracy_end": end, "later": end - then}
        row |= {"walked_after": _walked_after(run["path"], when / table.index[-1])}
        rows.append({"method": run["config"]["method"]} | row)
    return benchmark.over_seeds(pd.DataFrame(rows), ["method"], SHARES)


def _walked_after(path: Record, share: float) -> float:
    """The share of the path's length that lies after this share of its steps."""
    lengths = np.array(path["lengths"])
    later = np.array(path["steps"][1:]) > share * path["steps"][-1]
    return float(lengths[later].sum() / max(lengths.sum(), 1e-30))


# ---- Which parameters ----------------------------------------------------------------------------------------------


def shares(found: Record) -> pd.DataFrame:
    """The share of parameters that differ: a row a method and layer ("all": the network), t-intervals over n seeds.

    weights: parameters of the layer; beyond: the share less the clean run's of the same seed.
    """
    null = {row["seed"]: row["share"] for row in found["differences"] if row["method"] == CLEAN}
    rows = [
        {"method": row["method"], "layer": layer, "weights": weights, "share": row["share"][layer]}
        | {"beyond": row["share"][layer] - null[row["seed"]][layer]}
        for row in found["differences"]
        for layer, weights in found["layers"]
    ]
    return benchmark.over_seeds(pd.DataFrame(rows), ["method", "layer", "weights"], ["share"])


def possible(found: Record) -> pd.DataFrame:
    """The share that may differ, found or not, of every condition, with t-intervals over seeds: method, n, possible."""
    return _over_seeds(found["differences"], ["method", "possible"])


def concentration(found: Record) -> pd.DataFrame:
    """How unevenly the distance to the clean run is spread over parameters: method, n, gini and top with intervals.

    Distances are root mean squares over the path's points; a poisoned run's is to the clean run of its seed, a clean
    run's to that of the next seed. top: what the tenth of the parameters that differ most holds of the squared
    distance.
    """
    return _over_seeds(found["differences"], ["method", "gini", "top"])


def ends(found: Record) -> pd.DataFrame:
    """How far poisoned runs end from the clean run of their seed, over what two clean runs end apart, seed by seed.

    Rows method, n, seeds, ends: geometric mean ratio with its interval. Runs of one seed share their batches, two clean
    runs do not, so that 1 already says that the poison moves the end as far as another order does.
    """
    rows = {(row["method"], row["seed"]): row["end"] for row in found["differences"]}
    seeds = [seed for method, seed in rows if method == CLEAN]
    out = []
    for name in dict.fromkeys(method for method, _ in rows if method != CLEAN):
        values = [rows[name, seed] / rows[CLEAN, seed] for seed in seeds]
        named = {"method": name, "n": len(values), "seeds": benchmark.span(seeds)}
        out.append(named | stats.ratios(values).columns("ends"))
    return pd.DataFrame(out)


def _over_seeds(rows: Iterable[Record], columns: Sequence[str]) -> pd.DataFrame:
    """All columns but method are shares."""
    table = pd.DataFrame([{c: row[c] for c in columns} for row in rows])
    return benchmark.over_seeds(table, ["method"], columns)


def inequality(found: Record) -> dict[str, np.ndarray]:
    """Lorenz curves of the distances by method, mean over seeds, at evenly spaced shares of the parameters."""
    curves: dict[str, list[list[float]]] = {}
    for row in found["differences"]:
        curves.setdefault(row["method"], []).append(row["lorenz"])
    return {method: np.mean(parts, 0) for method, parts in curves.items()}


# ---- What moving them does -----------------------------------------------------------------------------------------


def interventions(found: Record) -> pd.DataFrame:
    """One row a poisoned run and intervention: a transplant, or "freeze" for runs trained with held sets.

    Columns method, seed, do, moved, weights, accuracy (0..1) and recovered: what is gained over the poisoned run of the
    seed, over the mean gap of that method between poisoned and clean; nan for methods that are not `biting`.
    """
    table = pd.DataFrame(found["interventions"])
    table = table.sort_values(["method", "seed"], key=_in_order(table), kind="stable").reset_index(drop=True)
    base = table[table["moved"] == "nothing"].set_index(["method", "seed"])["accuracy"]
    whole = table[table["moved"] == "everything"].set_index(["method", "seed"])["accuracy"]
    gaps = (whole - base).groupby(level="method").mean()
    gaps = gaps.where(gaps.index.isin(found["biting"]))
    own = pd.MultiIndex.from_frame(table[["method", "seed"]])
    gained = table["accuracy"].to_numpy() - base.loc[own].to_numpy()
    return table.assign(recovered=gained / table["method"].map(gaps))


def _in_order(table: pd.DataFrame) -> Callable[[pd.Series], pd.Series]:
    """A sort key: methods as they come first, seeds by number."""
    places = {method: i for i, method in enumerate(table["method"].unique())}
    return lambda column: column.map(places) if column.name == "method" else column


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """`interventions` over seeds: method, do, moved, n; weights, accuracy and recovered with t-intervals."""
    return benchmark.over_seeds(table.drop(columns="seed"), ["method", "do", "moved"], ["accuracy"])


def evidence(study: str, found: Record, share: pd.DataFrame, maybe: pd.DataFrame, effect: pd.DataFrame) -> pd.DataFrame:
    """What claim C2 is judged by: a row a poison, with intervals.

    study: its name; ends: `ends`; drawn: the share of the images that a seed sees; possible: `possible`; gap: accuracy
    that the poison takes; recovered: by transplanting the differing parameters.
    """
    config = found["runs"][0]["config"]
    named = {"study": study} | {name: config[name] for name in ("dataset", "architecture", "drawn")}
    whole = share[(share["layer"] == "all") & (share["method"] != CLEAN)].set_index("method")
    apart = ends(found).set_index("method")
    part, maybe = effect[effect["do"] == "transplant"].set_index(["moved", "method"]), maybe.set_index("method")
    rows = []
    for method, row in whole.iterrows():
        moved = part.loc["differing", method]
        out = named | {"method": method} | row.drop("layer").to_dict() | maybe.loc[method].drop("n").to_dict()
        out |= apart.loc[method].drop("n").to_dict()
        out["gap"] = part.loc["everything", method]["accuracy"] - part.loc["nothing", method]["accuracy"]
        rows.append(out | {c: moved[c] for c in ("recovered", "recovered_low", "recovered_high")})
    return pd.DataFrame(rows)


# ---- Surfaces and flatness -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """surfaces: loss [y,x] in nats by objective; paths: [t,2] by condition; xs, ys: where, in units of the axes."""

    xs: np.ndarray
    ys: np.ndarray
    surfaces: dict[str, np.ndarray]
    paths: dict[str, np.ndarray]
    labels: tuple[str, str]  # the axes in words, with the shares of the paths' variance that they explain


def views(found: Mapping[str, Record], methods: Sequence[str]) -> dict[str, View]:
    """By method, from `planes` or `random` of the study's record."""
    return {method: _view(found[method]) for method in methods}


def _view(record: Record) -> View:
    surfaces = {name: records.unpacked(values) for name, values in record["surfaces"]}
    paths = {method: np.array(points) for method, points in record["paths"]}
    labels = ("random direction 1", "random direction 2")
    if record["explained"] is not None:
        first, second = record["explained"]
        labels = (f"component 1 ({first:.0%} of variance)", f"component 2 ({second:.0%} of variance)")
    return View(np.array(record["xs"]), np.array(record["ys"]), surfaces, paths, labels)


def flat(found: Record) -> pd.DataFrame:
    """`flatness.measure` over seeds: means with t-intervals, a row a method and radius of SAM.

    ud: in layers, at the last epoch, against the clean SGD run of the seed.
    """
    clean = {row["seed"]: row["layers"] for row in found["flat"] if row["method"] == CLEAN and row["sam"] == 0}
    rows = [row | {"ud": benchmark.distance([row["layers"]], [clean[row["seed"]]])} for row in found["flat"]]
    return benchmark.over_seeds(pd.DataFrame(rows)[FLAT].drop(columns="seed"), ["method", "sam"], ["test_accuracy"])
