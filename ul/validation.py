"""What UD measures: curves along a known truth, and how much its ranking of methods depends on how SAL is probed."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from scipy import stats as scipy_stats

from . import benchmark, data, graph, metrics, sal, scores, stats, tables, ud
from .benchmark import CLEAN, Cell, Sal
from .config import InputError, Record, at_least, choose
from .public import DEPARTURES

AXES = ("share", "label_noise", "eps")  # of a cell: what a ground truth varies


@dataclass(frozen=True)
class Choice:
    """One way from probes to UD. way: a name under a record's `also` (None: its own SAL); window: of probed epochs."""

    way: str | None = None
    rule: str = "kmeans"
    first: int = 0
    unit: str = "layers"


def methods_of(cell: Cell, methods: Sequence[str], seeds: int, folder: str | None) -> list[Cell]:
    """`cell` for clean and each method and each seed from 0; poisons from <folder>/<data set>-<method>.npz if given."""
    if not methods:
        raise InputError("methods is empty; name the poisons whose ranking is looked at")
    found = []
    for method in (CLEAN, *methods):
        poison = f"{folder}/{cell.dataset}-{method}.npz" if folder and method != CLEAN else None
        found += [replace(cell, method=method, poison=poison, seed=seed) for seed in range(seeds)]
    return found


def ways(base: Sal, epsilons: Sequence[float], images: Sequence[int]) -> dict[str, Sal]:
    """`base` with one setting changed at a time; the public code's departures are among them."""
    found = {f"ε = {e:g}": replace(base, epsilon=e) for e in epsilons if e != base.epsilon}
    counts = [at_least(n, 1, "images to probe on") for n in images]
    found |= {f"{n} images": replace(base, images=n) for n in counts if n != base.images}
    found |= {f"{n} steps": replace(base, steps=n) for n in (1, 3)}
    found |= {f"estimator {name}": replace(base, estimator=name) for name in ("gradient", "taylor")}
    found |= {"norm linf": replace(base, norm="linf"), "other images": replace(base, draw=1)}
    found |= {"clean images": replace(base, part="clean"), "test images": replace(base, part="test")}
    return found


def departures(base: Sal, names: Iterable[str] | None = None) -> dict[str, Sal]:
    """The public code's departures from the definition, those named (None: each) one by one, and all together."""
    names = DEPARTURES if names is None else [choose(name, DEPARTURES, "departure") for name in names]
    single = {f"public: {name}": replace(base, departures=(name,)) for name in names}
    return single | {"public: all": replace(base, departures=tuple(DEPARTURES))}


def countings(probed: int) -> dict[str, Choice]:
    """The default and every other way to count learnable layers from the same probes: rules, windows, the unit."""
    found = {"default": Choice()} | {f"rule {name}": Choice(rule=name) for name in ud.RULES if name != "kmeans"}
    windows = {"late half": probed // 2, "last epoch": probed - 1}
    return found | {name: Choice(first=first) for name, first in windows.items()} | {"weights": Choice(unit="weights")}


def probings(named: Iterable[str]) -> dict[str, Choice]:
    """The default and every other way to probe."""
    return {"default": Choice()} | {name: Choice(way=name) for name in named}


def varied(cell: Cell, axis: str, values: Sequence[Any], seeds: int) -> list[Cell]:
    """`cell` at each value of one of AXES and each seed from 0."""
    return [replace(cell, **{axis: value}, seed=seed) for value in values for seed in range(seeds)]


def probes(run: Record, way: str | None) -> list[Record]:
    """A run's SAL by epoch: its own, or one of `also`."""
    return run["sal"] if way is None else run["also"][way]["sal"]


def distance(run: Record, twin: Record, choice: Choice = Choice()) -> float:
    """UD of a run against its clean twin by one choice."""
    return ud.distance(_sal(run, choice), _sal(twin, choice), **_options(twin, choice))


def _sal(run: Record, choice: Choice) -> np.ndarray:
    return np.array([p["sal"] for p in probes(run, choice.way)], dtype=float)


def _options(twin: Record, choice: Choice) -> dict[str, Any]:
    weights = tables.layer_weights(twin) if choice.unit == "weights" else None
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
    """Kendall's tau of a column with the axis' value, per seed, with its t-interval over seeds.

    A constant column has no order; it counts as 0.
    """
    return _over_seeds([tau(part["value"], part[column]) for _, part in frame.groupby("seed")])


def _over_seeds(taus: Sequence[float]) -> stats.Interval:
    """A t-interval, cut to where a correlation can lie."""
    return stats.student(taus).within(-1, 1)


def tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b; 0 where either has no order: constant, or a value missing."""
    ordered = all(np.isfinite(v).all() and np.ptp(v) > 0 for v in (np.asarray(a, float), np.asarray(b, float)))
    return float(scipy_stats.kendalltau(a, b)[0]) if ordered else 0.0


def by_choice(runs: list[Record], choices: Mapping[str, Choice]) -> pd.DataFrame:
    """log UD of every poisoned run by every choice: choice, method, seed, log_ud, test_accuracy (0..1).

    Zeros are raised to `ud.floor`; NaN where a choice leaves the clean run without a learnable layer.
    """
    clean, rows = twins(runs), []
    for name, choice in choices.items():
        for run in runs:
            method, seed = run["config"]["method"], run["config"]["seed"]
            if method != CLEAN:
                rows.append([name, method, seed, _log(run, clean[seed], choice), run["history"]["test_accuracy"][-1]])
    return pd.DataFrame(rows, columns=["choice", "method", "seed", "log_ud", "test_accuracy"])


def _log(run: Record, twin: Record, choice: Choice) -> float:
    try:
        return float(np.log(max(distance(run, twin, choice), ud.floor(_sal(twin, choice), **_options(twin, choice)))))
    except ud.Uncountable:
        return float("nan")


def steadiness(frame: pd.DataFrame, default: str) -> pd.DataFrame:
    """How alike each choice ranks the methods with the default, and with test accuracy; index: choice.

    tau and accuracy_tau: Kendall's tau per seed with t-intervals over the n seeds; tau_of_means: of log UD's mean over
    seeds with the default's. A choice that does not tell methods apart, or gives one of them no UD, counts as 0. First
    row, the yardstick: two seeds by the default (mean over the n pairs, which share seeds and so have no interval).
    """
    wide = frame.pivot(index=["choice", "seed"], columns="method", values="log_ud")
    accuracy = frame.pivot_table(index="seed", columns="method", values="test_accuracy")
    base, rows = wide.loc[default], {}
    pairs = [tau(base.loc[a], base.loc[b]) for a, b in combinations(base.index, 2)]
    if pairs:
        rows["another seed"] = {"tau": np.mean(pairs), "n": len(pairs)}
    for name in frame["choice"].unique():
        own = wide.loc[name]
        rows[name] = {"n": len(own), "tau_of_means": tau(own.mean(), base.mean())}
        for column, other in (("tau", base), ("accuracy_tau", accuracy)):
            rows[name] |= _over_seeds([tau(own.loc[s], other.loc[s]) for s in own.index]).columns(column)
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("choice")


# ---- Other scores --------------------------------------------------------------------------------------------------

NOISE, REACH, FEW = 0.05, 0.05, 50  # shares of the weights' rms and length; images


def scores_of(cell: Cell, model: torch.nn.Module, images: data.Split, *, draws: int = 100) -> dict[str, float]:
    """What else could stand for unlearnability, of one trained network; accuracies on clean test images, 0..1.

    gradient_norm and hessian_trace of the loss on the images that SAL uses; certified: the median test accuracy under
    weight noise over `draws`, and certified_bound for weights within one standard deviation of it (L2); recovered:
    test accuracy after FEW clean images have moved the weights by at most REACH of their length; separability:
    held-out accuracy of a linear model on the perturbations.
    """
    rng, (clean, test) = torch.Generator().manual_seed(cell.seed), benchmark.splits(cell)
    where = next(model.parameters()).device
    held = scores.on(test, cell.target, where)
    chosen = scores.on(benchmark.sal_subset(images, cell.sal.images), cell.target, where)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    sigma = NOISE * weights.square().mean().sqrt().item()
    certificate = scores.certified(
        model, lambda m: metrics.accuracy(m, *held), sigma=sigma, radius=sigma, draws=draws, rng=rng
    )
    found = {"gradient_norm": scores.gradient_norm(model, *chosen)}
    found["hessian_trace"] = float(np.mean(scores.hessian_trace(model, *chosen, draws=10, rng=rng)))
    found |= {"certified": certificate.score, "certified_bound": certificate.bound}
    with scores.restored(model):
        few = scores.on(benchmark.sal_subset(clean, FEW, draw=2), cell.target, where)
        scores.recover(model, *few, radius=REACH * weights.norm().item())
        found["recovered"] = metrics.accuracy(model, *held)
    delta = (images.images.float() - clean.images.float()) / 255
    found["separability"] = metrics.linear_separability(delta, clean.targets[cell.target], seed=0)
    return found


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


# ---- The same function with other weights ---------------------------------------------------------------------------


def rescaled(model: torch.nn.Module, images: torch.Tensor, factor: float) -> None:
    """Every convolution before a batch norm times `factor`, and the norm's statistics with it: the same function.

    In place, for eval mode; images: one or more that the model takes. Raises InputError if there is no such pair.
    """
    traced = graph.traced(model.eval(), images)
    pairs = graph.normalised(traced) if traced is not None else []
    if not pairs:
        raise InputError("no convolution before a batch norm was found; rescaling needs one")
    with torch.no_grad():
        for conv, norm in pairs:
            conv.weight.mul_(factor)
            cast(torch.Tensor, norm.running_mean).mul_(factor)
            # Every norm of our networks tracks statistics.
            norm.running_var.copy_((norm.running_var + norm.eps) * factor**2 - norm.eps)  # type: ignore[union-attr, operator, arg-type]


def rescaled_sal(cell: Cell, factors: Sequence[float]) -> pd.DataFrame:
    """SAL of a trained network whose weights are rescaled, over its SAL before: factor, layer, ratio.

    Trains the cell's victim; epsilon is relative, so that the ratio is 1 up to the search's tolerance.
    """
    model, images, targets = trained(cell)
    before = sal.per_layer(model, images, targets)["sal"]
    parts = []
    for factor in factors:
        other = copy.deepcopy(model)
        rescaled(other, images[:1], factor)
        frame = sal.per_layer(other, images, targets)
        parts.append(pd.DataFrame({"factor": factor, "layer": frame["layer"], "ratio": frame["sal"] / before}))
    return pd.concat(parts, ignore_index=True)


def trained(cell: Cell) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """The cell's victim after its training, and the images and targets that its SAL is measured on."""
    kept: dict[str, Any] = {}
    benchmark.run(
        replace(cell, probes=()), at_end=lambda _, model, images: kept.update(model=model, images=images) or {}
    )
    model = kept["model"]
    chosen = benchmark.sal_subset(kept["images"], cell.sal.images)
    return model, *scores.on(chosen, cell.target, next(model.parameters()).device)


def agreement(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Kendall's tau of each column with test accuracy over methods, per seed with its t-interval: score, tau, n."""
    rows = []
    for column in columns:
        found = _over_seeds([tau(g[column], g["test_accuracy"]) for _, g in frame.groupby("seed")])
        rows.append({"score": column} | found.columns("tau") | {"n": found.n})
    return pd.DataFrame(rows)
