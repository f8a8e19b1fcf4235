"""The convergence study: clean and poisoned runs from the same start in the same batch order, and interventions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..base import records
from ..base.errors import InputError, Record, at_least, choose, within
from ..base.names import CLEAN, MOVED
from ..base.parameters import lowest
from . import conditions, differing, executor, flatness, images, landscapes, paths
from .description import depends, of_files
from .executor import Job
from .paths import Features, PathSets, Run

COUNTS = ("epochs", "points", "features", "looked", "grid", "surface_images", "flat_seeds")
BITES = 0.05  # a poison that takes less of the accuracy leaves no gap to recover
BETWEEN = np.linspace(-0.25, 1.25, 25)  # on the line from the clean (0) to the poisoned end (1)
CURVE = 201  # points of a Lorenz curve that are kept

Given = Mapping[str, PathSets]  # by method
Sets = Mapping[tuple[str, int], Mapping[str, np.ndarray]]  # of parameters, bool[p], by (method, seed) and name


def planned(config: Mapping[str, Any]) -> list[Run]:
    """The runs of all methods and seeds from a notebook's parameters, clean first. Raises InputError."""
    bounds = lowest("03_convergence")
    if config["seeds"] < bounds["seeds"]:
        raise InputError(f"seeds is {config['seeds']}; a spread over clean runs needs {bounds['seeds']} or more")
    methods = config["methods"]
    if isinstance(methods, str) or not methods or CLEAN in methods:
        raise InputError(f"methods is {methods!r}; give a list of poisons, clean is always there")
    for name in COUNTS:
        at_least(config[name], bounds[name], name)
    if within(config["share"], "share") == 0:
        raise InputError("share is 0; every run needs images")
    if twice := [m for m in methods if list(methods).count(m) > 1]:
        raise InputError(f"{twice[0]} comes twice in methods; name it once")
    own = {name: config[name] for name in ("start", "features", "points", "looked")} | {"drawn": config["share"]}
    found = []
    for method in (CLEAN, *methods):
        usual = {"defense": "none", "share": 1.0, "label_noise": 0.0, "sal_images": config["looked"], "poison": None}
        for run in conditions.one({**config, **usual, "method": method}):
            recipe = run.recipe
            if run.architecture == "linear":  # principal components of crops and mirrors would be others
                recipe = replace(recipe, pad=0, flip=False)
            poisoned = images.draw(run.images, method, 0, config["poisons"])  # weights are compared one by one
            found.append(Run(poisoned, run.architecture, recipe, run.seed, run.probes, **own))
    return found


def among(names: Sequence[str], choices: Sequence[str], what: str) -> list[str]:
    """The names, if all are among the choices. Raises InputError that lists these."""
    for name in names:
        choose(name, set(choices), f"name in {what}")
    return list(names)


def sets(chosen: Sequence[Run]) -> dict[str, PathSets]:
    """What the runs of a study train on, by method; a linear network's components are those of all methods' images.

    With the clean images' components alone most of a perturbation would be projected away.
    """
    first = {run.images.method: run.images for run in chosen}
    _, test = images.splits(chosen[0].images)
    own = {method: images.poisoned(of) for method, of in first.items()}
    features = None
    if chosen[0].architecture == "linear":
        features = Features(torch.cat([split.images for split in own.values()]), chosen[0].features)
    return {method: PathSets(split, test, features) for method, split in own.items()}


# ---- Runs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Followed:
    """A finished run: its record, and its weights at the recorded steps, float32[t,p]."""

    record: Record
    weights: np.ndarray

    @property
    def method(self) -> str:
        return self.record["config"]["method"]

    @property
    def seed(self) -> int:
        return self.record["config"]["seed"]

    @property
    def accuracy(self) -> float:
        """On clean test images, 0..1."""
        return self.record["epochs"][-1]["test_accuracy"]

    @property
    def path(self) -> paths.Path:
        return paths.Path(self.record["path"]["steps"], torch.from_numpy(self.weights))


def run_all(
    chosen: Sequence[Run], given: Given, keep: Sequence[np.ndarray] | None = None, **options: Any
) -> list[Followed]:
    """All runs in order. keep: for each the parameters, bool[p], that stay at their start; options: the executor's."""
    masks = [None] * len(chosen) if keep is None else keep
    work = [_followed(run, given, mask) for run, mask in zip(chosen, masks, strict=True)]
    found = executor.run_all(work, f"{chosen[0].images.dataset} paths", len(work), **options)
    of_files(found, chosen)
    return [Followed(record, record.pop("arrays")["weights"]) for record in found]


def _followed(run: Run, given: Given, mask: np.ndarray | None) -> Job:
    own = given[run.images.method]
    held = None if mask is None else records.digest(mask)
    return Job(str(run), partial(paths.follow, run, own, mask), (depends(run), own.digests(), held))


def first_of(runs: Sequence[Followed]) -> dict[str, Followed]:
    """The run of seed 0 by method."""
    return {run.method: run for run in reversed(runs)}


# ---- Which parameters ----------------------------------------------------------------------------------------------


def masks(runs: Sequence[Followed]) -> dict[tuple[str, int], np.ndarray]:
    """bool[p] by (method, seed): parameters whose path leaves what the clean runs of the other seeds do.

    A clean run is held against the clean runs of the other seeds as well: that is the null.
    """
    return {(run.method, run.seed): differing.differing(run.weights, others) for run, others in _others(runs)}


def _others(runs: Sequence[Followed]) -> Iterator[tuple[Followed, np.ndarray]]:
    """Every run with the clean paths of the other seeds, float[r,t,p]."""
    clean = {run.seed: run.weights for run in runs if run.method == CLEAN}
    for run in runs:
        yield run, np.stack([path for seed, path in clean.items() if seed != run.seed])


def distances(runs: Sequence[Followed]) -> dict[tuple[str, int], np.ndarray]:
    """float[p] by (method, seed): `differing.gaps` to the clean run of that seed; of clean runs, to the next seed's."""
    beside = _beside(runs)
    return {(run.method, run.seed): differing.gaps(run.weights, beside[run.method, run.seed]) for run in runs}


def _beside(runs: Sequence[Followed]) -> dict[tuple[str, int], np.ndarray]:
    """Which clean path a run is held against: its seed's; a clean run against the next seed's."""
    clean = {run.seed: run.weights for run in runs if run.method == CLEAN}
    seeds = list(clean)
    after = dict(zip(seeds, seeds[1:] + seeds[:1], strict=True))
    return {(run.method, run.seed): clean[after[run.seed] if run.method == CLEAN else run.seed] for run in runs}


def differences(
    runs: Sequence[Followed], found: Mapping[tuple[str, int], np.ndarray], owners: np.ndarray
) -> list[Record]:
    """A row a run of what its path and the clean ones have between them. found: `masks`; owners: `paths.owners`.

    share: of each layer's parameters ("all": the network's) that differ; possible: the share that may; end: Euclidean
    distance of the end from the end of the clean run of the seed (of a clean run: of the next seed's); gini, top and
    lorenz (CURVE points): how unevenly the `distances` are spread, top being what the tenth of the parameters that
    differ most holds of the squared distance.
    """
    beside = _beside(runs)
    layers = {"all": np.ones(len(owners), dtype=bool)} | {x: owners == x for x in dict.fromkeys(owners)}
    away, rows = distances(runs), []
    for run, others in _others(runs):
        key = run.method, run.seed
        row: Record = {"method": run.method, "seed": run.seed, "possible": differing.possible(run.weights, others)}
        row["share"] = {str(layer): float(found[key][at].mean()) for layer, at in layers.items()}
        row |= {"end": float(np.linalg.norm(run.weights[-1] - beside[key][-1]))}
        row |= {"gini": differing.gini(away[key]), "top": differing.top(away[key])}
        rows.append(row | {"lorenz": differing.lorenz(away[key], CURVE).tolist()})
    return rows


def biting(runs: Sequence[Followed]) -> list[str]:
    """The methods that take BITES of the clean test accuracy or more, in the mean over seeds."""
    methods = list(dict.fromkeys(run.method for run in runs))
    means = {method: np.mean([run.accuracy for run in runs if run.method == method]) for method in methods}
    return [method for method in methods if means[CLEAN] - means[method] >= BITES]


# ---- Interventions -------------------------------------------------------------------------------------------------


def sets_of(mask: np.ndarray, gap: np.ndarray, owners: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Sets of parameters to move, bool[p] each: the differing ones, as many others to compare with, and the rest.

    differing: `mask`; largest: as many with the largest `gap` at the end; random: as many of each layer, drawn; rest:
    all but the differing.
    """
    count = int(mask.sum())
    largest = np.zeros_like(mask)
    largest[np.argsort(-gap, kind="stable")[:count]] = True
    rng, random = np.random.default_rng(seed), np.zeros_like(mask)
    for layer in np.unique(owners):
        at = np.flatnonzero(owners == layer)
        random[rng.choice(at, int(mask[at].sum()), replace=False)] = True
    return dict(zip(MOVED, (mask, largest, random, ~mask), strict=True))


def held_sets(
    runs: Sequence[Followed], owners: np.ndarray, found: Mapping[tuple[str, int], np.ndarray]
) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """`sets_of` of every poisoned run, by (method, seed). found: `masks`."""
    clean = {run.seed: run.weights[-1] for run in runs if run.method == CLEAN}
    return {
        (r.method, r.seed): sets_of(found[r.method, r.seed], np.abs(r.weights[-1] - clean[r.seed]), owners, seed=r.seed)
        for r in runs
        if r.method != CLEAN
    }


def repeated(chosen: Sequence[Run], given: Given, moved: Sets, kind: str, **options: Any) -> list[Followed]:
    """The runs once more, with one kind (of MOVED) of their sets of parameters held at the start all along.

    moved: `held_sets`.
    """
    again = [replace(run, points=1, watched=False, probes=()) for run in chosen]
    keys = [(run.images.method, run.seed) for run in again]
    return run_all(again, given, [moved[key][kind] for key in keys], **options) if again else []


def transplants(
    chosen: Sequence[Run], given: Given, runs: Sequence[Followed], moved: Sets, **options: Any
) -> list[Record]:
    """Rows method, seed, do ("transplant"), moved (name of the set), weights (how many), accuracy (0..1).

    The clean run's end values of the chosen parameters are put into the poisoned network. With nothing moved it is the
    poisoned run itself, with everything the clean one; in between batch norms see both runs' images.
    """
    clean = {run.seed: run for run in runs if run.method == CLEAN}
    plan = {(run.images.method, run.seed): run for run in chosen}
    jobs, rows = [], []
    for run in (r for r in runs if r.method != CLEAN):
        key = run.method, run.seed
        named = {"method": run.method, "seed": run.seed, "do": "transplant"}
        rows.append(named | {"moved": "nothing", "weights": 0, "accuracy": run.accuracy})
        whole = {"moved": "everything", "weights": run.weights.shape[1], "accuracy": clean[run.seed].accuracy}
        rows.append(named | whole)
        for name, mask in moved[key].items():
            weights = np.where(mask, clean[run.seed].weights[-1], run.weights[-1])
            jobs.append(_transplanted(plan[key], given, weights))
            rows.append(named | {"moved": name, "weights": int(mask.sum()), "accuracy": None})
    found = iter(executor.run_all(jobs, f"{chosen[0].images.dataset} transplants", len(jobs), **options))
    return [row if row["accuracy"] is not None else row | next(found) for row in rows]


def _transplanted(run: Run, given: Given, weights: np.ndarray) -> Job:
    own, clean = given[run.images.method], given[CLEAN]
    make = partial(paths.transplanted, run, own, weights, [own.own, clean.own])
    return Job(f"transplant to {run}", make, (depends(run), own.digests(), clean.digests(), records.digest(weights)))


def interventions(
    chosen: Sequence[Run], given: Given, runs: Sequence[Followed], moved: Sets, freeze: Sequence[str], **options: Any
) -> list[Record]:
    """Rows of `transplants`, and "freeze" for runs that are `biting`, repeated with a set held at its start."""
    rows = transplants(chosen, given, runs, moved, **options)
    again = [run for run in chosen if run.images.method in biting(runs)]
    for kind in freeze:
        for run in repeated(again, given, moved, kind, **options):
            named = {"method": run.method, "seed": run.seed, "do": "freeze", "moved": kind}
            count = int(moved[run.method, run.seed][kind].sum())
            rows.append(named | {"weights": count, "accuracy": run.accuracy})
    return rows


# ---- All of it -----------------------------------------------------------------------------------------------------


def study(config: Mapping[str, Any], *, paths_out: str | None = None, **options: Any) -> Record:
    """The whole study: what notebook 03 draws from. Raises InputError.

    config: the notebook's parameters; paths_out: file for all paths (.safetensors); options: of `executor.run_all`.
    Keys: `runs` (records of all runs), `layers` (pairs of name and number of parameters, "all" first), `differences`,
    `biting`, `interventions`, `planes` and `random` (`surfaces.joint` and `surfaces.around` by method), `between` and
    `line` (`surfaces.between` by method, and where), `flat` (`flatness.measure`; empty if nothing is trained by SAM).
    """
    chosen = planned(config)
    shown = among(config["shown"], config["methods"], "shown")
    freeze = among(config["freeze"], MOVED, "freeze")
    flat = flatness.chosen(chosen, config["flat_methods"], config["flat_seeds"])
    given = sets(chosen)
    runs = run_all(chosen, given, **options)
    if paths_out is not None:
        paths.save({f"{run.method}-{run.seed}": run.path for run in runs}, paths_out)
    owners = paths.owners(paths.network(chosen[0], given[CLEAN]))
    found = masks(runs)
    moved = held_sets(runs, owners, found)
    size = {"grid": config["grid"], "images": config["surface_images"]}
    drawn = landscapes.study(chosen[0], given, first_of(runs), config["methods"], shown, BETWEEN, **size, **options)
    return {
        "runs": [run.record for run in runs],
        "layers": [["all", len(owners)], *([str(x), int((owners == x).sum())] for x in dict.fromkeys(owners))],
        "differences": differences(runs, found, owners),
        "biting": biting(runs),
        "interventions": interventions(chosen, given, runs, moved, freeze, **options),
        **drawn,
        "flat": flatness.measure(flat, given, **options) if flat else [],
    }
