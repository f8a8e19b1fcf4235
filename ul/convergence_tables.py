"""Tables of the convergence study: epochs, when runs converge, which parameters differ, and what moving them does."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from . import convergence, critical, tables
from .benchmark import CLEAN
from .convergence import Cell, Chosen, Run, Sets

BITES = 0.05  # a poison that takes less of the accuracy leaves no gap to recover
DONE = 0.9  # share of the fall of the training loss after which a run counts as converged


def epochs(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run and epoch (0: the start): losses in nats, accuracies 0..1, gradient norm, distance, curvature."""
    rows = [{"method": r.method, "seed": r.seed} | row for r in runs for row in r.record["epochs"]]
    return pd.DataFrame(rows)


def moments(runs: Sequence[Run]) -> pd.DataFrame:
    """When runs converge and what happens afterwards: a row a method, t-intervals over n seeds.

    converged: the first epoch at which the loss of the run's own training images has fallen by DONE of what it falls in
    all, from the first epoch to the lowest; accuracy_then and accuracy_end: clean test accuracy there and at the end;
    later: their difference; walked_after: share of the path's length that is still to come.
    """
    rows = []
    for run in runs:
        table = pd.DataFrame(run.record["epochs"]).set_index("epoch")
        losses = table["train_loss"].dropna()
        fallen = (losses.iloc[0] - losses) / max(losses.iloc[0] - losses.min(), 1e-12)
        when = int(fallen.index[fallen >= DONE][0]) if losses.iloc[0] > losses.min() else int(table.index[-1])
        then, end = table["test_accuracy"][when], table["test_accuracy"].iloc[-1]
        row = {"converged": when, "accuracy_then": then, "accuracy_end": end, "later": end - then}
        rows.append({"method": run.method} | row | {"walked_after": _walked_after(run, when / table.index[-1])})
    return tables.over_seeds(pd.DataFrame(rows), ["method"])


def _walked_after(run: Run, share: float) -> float:
    """The share of the path's length that lies after this share of its steps."""
    lengths = run.path.weights.diff(dim=0).norm(dim=1).numpy()
    later = np.array(run.path.steps[1:]) > share * run.path.steps[-1]
    return float(lengths[later].sum() / max(lengths.sum(), 1e-30))


# ---- Which parameters ----------------------------------------------------------------------------------------------


def masks(runs: Sequence[Run]) -> dict[tuple[str, int], np.ndarray]:
    """bool[p] by (method, seed): parameters whose path leaves what the clean runs of the other seeds do.

    A clean run is held against the clean runs of the other seeds as well: that is the null.
    """
    return {(r.method, r.seed): critical.differing(r.path.weights.numpy(), others) for r, others in _others(runs)}


def _others(runs: Sequence[Run]) -> Iterator[tuple[Run, np.ndarray]]:
    """Every run with the clean paths of the other seeds, float[r,t,p]."""
    clean = {run.seed: run.path.weights.numpy() for run in runs if run.method == CLEAN}
    for run in runs:
        yield run, np.stack([path for seed, path in clean.items() if seed != run.seed])


def possible(runs: Sequence[Run]) -> pd.DataFrame:
    """`critical.possible` of every condition, with t-intervals over seeds: method, n, possible."""
    rows = [
        {"method": r.method, "possible": critical.possible(r.path.weights.numpy(), others)}
        for r, others in _others(runs)
    ]
    return tables.over_seeds(pd.DataFrame(rows), ["method"])


def shares(found: Mapping[tuple[str, int], np.ndarray], owners: np.ndarray) -> pd.DataFrame:
    """The share of parameters that differ: a row a method and layer ("all": the network), t-intervals over n seeds.

    weights: parameters of the layer; beyond: the share less the clean run's of the same seed.
    """
    layers = {"all": np.ones(len(owners), dtype=bool)} | {x: owners == x for x in dict.fromkeys(owners)}
    rows = []
    for (method, seed), mask in found.items():
        for layer, at in layers.items():
            share, null = mask[at].mean(), found[CLEAN, seed][at].mean()
            row = {"method": method, "layer": str(layer), "weights": int(at.sum())}
            rows.append(row | {"share": share, "beyond": share - null})
    return tables.over_seeds(pd.DataFrame(rows), ["method", "layer", "weights"])


def concentration(runs: Sequence[Run]) -> pd.DataFrame:
    """How unevenly the distance to the clean run is spread over parameters: method, n, gini and top with intervals.

    Distances are root mean squares over the path's points; a poisoned run's is to the clean run of its seed, a clean
    run's to that of the next seed. top: what the tenth of the parameters that differ most holds of the squared
    distance.
    """
    rows = [{"method": m, "gini": critical.gini(gap), "top": _top(gap)} for (m, _), gap in distances(runs).items()]
    return tables.over_seeds(pd.DataFrame(rows), ["method"])


def distances(runs: Sequence[Run]) -> dict[tuple[str, int], np.ndarray]:
    """float[p] by (method, seed): `critical.gaps` to the clean run of that seed; of clean runs, to the next seed's."""
    clean = {run.seed: run.path.weights.numpy() for run in runs if run.method == CLEAN}
    seeds = list(clean)
    after = dict(zip(seeds, seeds[1:] + seeds[:1], strict=True))
    return {
        (r.method, r.seed): critical.gaps(r.path.weights.numpy(), clean[after[r.seed] if r.method == CLEAN else r.seed])
        for r in runs
    }


def _top(gap: np.ndarray, share: float = 0.1) -> float:
    curve = critical.lorenz(gap**2)
    return float(1 - curve[len(gap) - round(share * len(gap))])


def biting(runs: Sequence[Run]) -> list[str]:
    """The methods that take BITES of the clean test accuracy or more, in the mean over seeds."""
    frame = pd.DataFrame([{"method": run.method, "accuracy": run.accuracy} for run in runs])
    means = frame.groupby("method", sort=False)["accuracy"].mean()
    return [method for method in means.index if means[CLEAN] - means[method] >= BITES]


# ---- What moving them does -----------------------------------------------------------------------------------------


def held_sets(
    runs: Sequence[Run], owners: np.ndarray, found: Mapping[tuple[str, int], np.ndarray]
) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """`convergence.sets_of` of every poisoned run, by (method, seed). found: `masks`."""
    clean = {run.seed: run.path.weights[-1] for run in runs if run.method == CLEAN}
    return {
        (r.method, r.seed): convergence.sets_of(
            found[r.method, r.seed], (r.path.weights[-1] - clean[r.seed]).abs().numpy(), owners, seed=r.seed
        )
        for r in runs
        if r.method != CLEAN
    }


def interventions(
    runs: Sequence[Run], cells: Sequence[Cell], given: Mapping[str, Sets], chosen: Chosen,
    frozen: Mapping[str, Sequence[Run]],
) -> pd.DataFrame:  # fmt: skip
    """One row a poisoned run and intervention: `convergence.transplants`, and "freeze" for runs trained with held sets.

    Columns method, seed, do, moved, weights, accuracy (0..1) and recovered: what is gained over the poisoned run of the
    seed, over the mean gap of that method between poisoned and clean; nan for methods that are not `biting`. chosen:
    `held_sets`; frozen: runs by the name of the set held at its start.
    """
    cell_of = {(c.run.method, c.run.seed): c for c in cells}
    clean = {run.seed: run for run in runs if run.method == CLEAN}
    rows = []
    for run in (r for r in runs if r.method != CLEAN):
        key = run.method, run.seed
        own = convergence.transplants(cell_of[key], given, run, clean[run.seed], chosen[key])
        for name, part in frozen.items():
            held = [r.accuracy for r in part if (r.method, r.seed) == key]
            count = int(chosen[key][name].sum())
            own += [{"do": "freeze", "moved": name, "weights": count, "accuracy": value} for value in held]
        rows += [{"method": run.method, "seed": run.seed, "base": run.accuracy} | row for row in own]
    return _recovered(pd.DataFrame(rows), biting(runs))


def _recovered(table: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The table with `recovered` instead of `base`, the poisoned run's accuracy."""
    whole = table[table["moved"] == "everything"]
    gaps = (whole["accuracy"] - whole["base"]).groupby(whole["method"]).mean()
    gaps = gaps.where(gaps.index.isin(methods))
    return table.assign(recovered=(table["accuracy"] - table["base"]) / table["method"].map(gaps)).drop(columns="base")


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """`interventions` over seeds: method, do, moved, n; weights, accuracy and recovered with t-intervals."""
    return tables.over_seeds(table.drop(columns="seed"), ["method", "do", "moved"])


def evidence(
    study: str, cell: Cell, share: pd.DataFrame, maybe: pd.DataFrame, effect: pd.DataFrame
) -> pd.DataFrame:  # fmt: skip
    """What claim C2 is judged by: a row a poison with share, beyond, possible, gap and recovered, with intervals.

    study: its name; cell: any of it; drawn: the share of the images that a seed sees; possible: `possible`; gap:
    accuracy that the poison takes; recovered: by transplanting the differing parameters.
    """
    named = {"study": study, "dataset": cell.run.dataset, "architecture": cell.run.architecture, "drawn": cell.share}
    whole = share[(share["layer"] == "all") & (share["method"] != CLEAN)].set_index("method")
    part, maybe = effect[effect["do"] == "transplant"].set_index(["moved", "method"]), maybe.set_index("method")
    rows = []
    for method, row in whole.iterrows():
        moved = part.loc["differing", method]
        out = named | {"method": method} | row.drop("layer").to_dict() | maybe.loc[method].drop("n").to_dict()
        out["gap"] = part.loc["everything", method]["accuracy"] - part.loc["nothing", method]["accuracy"]
        rows.append(out | {c: moved[c] for c in ("recovered", "recovered_low", "recovered_high")})
    return pd.DataFrame(rows)
