"""Tables from records: UD and accuracy a run, intervals a condition, rank correlation; written as csv, md and tex."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from ..base import records, stats, ud
from ..base.errors import InputError, Record, existing, located
from ..base.names import CLEAN, NOISE
from . import published

BLOCK = ["dataset", "architecture", "defense", "epochs"]
UNITS = ("ud_layers", "ud_weights", "ud_own")
FLOORS = {unit: f"{unit}_floor" for unit in UNITS}
TESTED = {"ud_layers": "p_holm", "ud_weights": "p_holm_weights"}
FIRST, AGAIN = "run `dvc repro` first", "run `dvc repro` again"
FEWEST_METHODS = 6  # a rank correlation over fewer methods decides nothing


def load(folder: Path | str, settings: list[str]) -> list[Record]:
    """All runs of the named settings, `<folder>/<setting>.json` each, in order, a run that two of them hold once.

    Raises InputError if a file lacks or holds no runs, or if two files hold different runs of one key.
    """
    found: dict[tuple[Any, ...], Record] = {}
    for name in settings:
        for own, run in _runs(located(folder) / f"{name}.json"):
            if found.setdefault(own, run) != run:
                what = " ".join(map(str, own))
                mend = f"give them equal settings, or {AGAIN}"
                raise InputError(f"{name}.json: {what} differs from another setting's; {mend}")
    return list(found.values())


def _runs(path: Path) -> list[tuple[tuple[Any, ...], Record]]:
    try:
        found = [(key(run), run) for run in records.load(path)["runs"]]
        dict(found)  # every key can be looked up
        return found
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: no runs of a setting ({type(error).__name__}: {error}); {AGAIN}") from None


def of(runs: list[Record], **wanted: object) -> list[Record]:
    """The runs whose configuration has these values, for example method="lsp", defense="none"."""
    return [run for run in runs if all(run["config"][name] == value for name, value in wanted.items())]


def by_name(runs: list[Record]) -> dict[str, list[Record]]:
    """The runs of each method, methods as they come first."""
    return {m: of(runs, method=m) for m in dict.fromkeys(run["config"]["method"] for run in runs)}


def sal_matrix(run: Record, value: str = "sal") -> np.ndarray:
    """SAL of a run, float[epochs, layers] in nats (`value`: sal, s_max or s_min)."""
    return np.array([probe[value] for probe in run["sal"]], dtype=float)


def trajectories(runs: list[Record]) -> pd.DataFrame:
    """SAL along training, one row a run, probed epoch and layer.

    method, seed, epoch, layer, sal, s_max, s_min, error (standard error over images) in nats, radius, weights.
    """
    parts = [
        pd.DataFrame(probe).assign(method=run["config"]["method"], seed=run["config"]["seed"])
        for run in runs
        for probe in run["sal"]
    ]
    return pd.concat(parts, ignore_index=True).set_index(["method", "seed", "epoch", "layer"]).reset_index()


def layer_weights(run: Record) -> np.ndarray:
    """Weights of each probed layer, int[layers]."""
    return np.array(run["sal"][0]["weights"])


def threshold(clean: list[Record]) -> float:
    """Learnable threshold of the clean runs, mean over seeds (for figures; UD uses each seed's own)."""
    return float(np.mean([ud.threshold(sal_matrix(run)) for run in clean]))


def key(run: Record) -> tuple[Any, ...]:
    """(dataset, architecture, defense, epochs, method, seed) of a run."""
    config = run["config"]
    named = [config[name] for name in ("dataset", "architecture", "defense")]
    return (*named, config["recipe"]["epochs"], config["method"], config["seed"])


def benchmark(runs: list[Record]) -> pd.DataFrame:
    """One row a run: BLOCK, method, seed, test_accuracy (0..1), ud_layers, ud_weights, ud_own, FLOORS, comparable.

    UD is against the clean run of the same data, architecture, epochs and seed without a defense; ud_own, in layers,
    against the clean run under the same defense (nan without one); FLOORS: `ud.floor` of each; comparable: by
    `published.comparable`. Raises ValueError if the clean run without a defense is missing.
    """
    clean = {key(run): run for run in runs if run["config"]["method"] == CLEAN}
    rows = []
    for run in runs:
        dataset, architecture, defense, epochs, _, seed = key(run)
        twin, own = (clean.get((dataset, architecture, d, epochs, CLEAN, seed)) for d in ("none", defense))
        if twin is None:
            place = f"{dataset}, {architecture}, {epochs} epochs, seed {seed}"
            raise ValueError(f"no clean run of {place}; train it for UD to have a base")
        whole = published.comparable(run["config"])
        rows.append([*key(run), run["history"]["test_accuracy"][-1], *_distances(run, twin, own), whole])
    columns = [*BLOCK, "method", "seed", "test_accuracy", *UNITS, *FLOORS.values(), "comparable"]
    return pd.DataFrame(rows, columns=columns)


def _distances(run: Record, twin: Record, own: Record | None) -> list[float]:
    """The values of UNITS, then those of FLOORS."""
    sal, weights = sal_matrix(run), layer_weights(twin)
    bases: list[tuple[Record | None, Any]] = [(twin, None), (twin, weights), (own, None)]
    found = [
        (ud.distance(sal, sal_matrix(base), weights=w), ud.floor(sal_matrix(base), weights=w))
        if base is not None
        else (float("nan"),) * 2
        for base, w in bases
    ]
    return [value for values in zip(*found, strict=True) for value in values]


def raised(frame: pd.DataFrame, unit: str) -> pd.Series:
    """UD in one of UNITS, zeros raised to their floor, for logarithms."""
    return cast(pd.Series, np.maximum(frame[unit], frame[FLOORS[unit]]))


def compare(frame: pd.DataFrame, method: str, column: str, *, against: str = NOISE, **options: Any) -> stats.Interval:
    """Paired interval of one method's column minus another's, in one block of the benchmark.

    With log=True, for UD: of one over the other, zeros raised to their floors.
    """
    values = raised(frame, column) if options.get("log") else frame[column]
    by_seed = frame.assign(value=values).pivot(index="seed", columns="method", values="value")
    if missing := {method, against} - set(by_seed.columns):
        raise InputError(f"no run of {', '.join(sorted(missing))} to compare with; add it to the grid")
    return stats.paired(by_seed[method], by_seed[against], **options)


def by_method(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a block and method: mean accuracy, its paired difference to noise, geometric mean UD, intervals and n.

    Zeros of UD are raised to their floors. p_holm, and p_holm_weights for UD in weights: two-sided t-test of log UD
    against 0 (UD = 1), Holm over the methods. published_accuracy and published_ud: what others report for the very
    condition, nan where nobody does.
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


def _summary(part: pd.DataFrame, method: str) -> Record:
    own = part[part["method"] == method]
    accuracy = stats.student(own["test_accuracy"])
    out = {"n": accuracy.n} | accuracy.columns("test_accuracy")
    if NOISE in set(part["method"]):
        out |= compare(part, method, "test_accuracy").columns("accuracy_minus_noise")
    for unit in UNITS:
        ratios = raised(own, unit)  # the division by the clean twin is done
        if ratios.notna().all():
            out |= stats.paired(ratios, np.ones(len(ratios)), log=True).columns(unit)
    for unit in TESTED:
        out[f"p_{unit}"] = float("nan") if method == CLEAN else stats.p_value(np.log(raised(own, unit)))
    return out


def rank_correlation(frame: pd.DataFrame, unit: str = "ud_layers") -> Record:
    """Spearman's rho of UD with test accuracy over methods (clean left out: its UD is 1 by definition), one block.

    rho per seed with its t-interval over the seeds that have an order (None below three methods); p: exact permutation
    over methods of the seed means.
    """
    part = frame[frame["method"] != CLEAN]
    if part["method"].nunique() < 3:
        return {"interval": None, "rho_of_means": np.nan, "p": 1.0, "methods": part["method"].nunique()}
    per_seed = [stats.rank_correlation(g[unit], g["test_accuracy"])[0] for _, g in part.groupby("seed")]
    means = part.groupby("method")[[unit, "test_accuracy"]].mean()
    rho, p = stats.rank_correlation(means[unit], means["test_accuracy"])
    finite = [r for r in per_seed if np.isfinite(r)]
    interval = stats.student(finite).within(-1, 1) if finite else None
    return {"interval": interval, "rho_of_means": rho, "p": p, "methods": len(means)}


def ranks(frame: pd.DataFrame) -> pd.DataFrame:
    """`rank_correlation` of every block and unit as rows; with several blocks also of all conditions together."""
    parts = [(block, part) for block, part in frame.groupby(BLOCK, sort=False)]
    if len(parts) > 1:
        parts.append((("all",) * len(BLOCK), _together(frame)))
    return pd.DataFrame([_rank_row(block, part, unit) for block, part in parts for unit in UNITS[:2]])


def _together(frame: pd.DataFrame) -> pd.DataFrame:
    """All blocks as one, each condition a method of its own; the seeds that all conditions have.

    Accuracy and UD become ranks within their block and seed: what differs between data sets or networks is no order of
    methods.
    """
    names = frame[[*BLOCK, "method"]].astype(str).agg(" ".join, axis=1)
    counts = names.groupby(frame["seed"]).nunique()
    shared = frame["seed"].isin(counts[counts == names.nunique()].index)
    kept = frame.assign(method=names)[shared & (frame["method"] != CLEAN)]
    ranked = ["test_accuracy", *UNITS[:2]]
    return kept.assign(**kept.groupby([*BLOCK, "seed"])[ranked].rank(pct=True))


def _rank_row(block: tuple[Any, ...], part: pd.DataFrame, unit: str) -> Record:
    found = rank_correlation(part, unit)
    row = dict(zip(BLOCK, block, strict=True)) | {"unit": unit, "methods": found["methods"]}
    interval = found["interval"]
    row |= interval.columns("rho") | {"seeds": interval.n} if interval else {}
    return row | {"rho_of_means": found["rho_of_means"], "p_exact": found["p"]}


def over_seeds(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One row a group of `keys`: n, mean and t-interval of every other column over its rows; nan where one is nan."""
    found = []
    for key, part in frame.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True)) | {"n": len(part)}
        for column in part.columns.drop(keys):
            row |= stats.student_or_nan(part[column]).columns(column)
        found.append(row)
    return pd.DataFrame(found)


def write(frame: pd.DataFrame, stem: Path | str, *, digits: int = 4) -> None:
    """`<stem>.csv`, `.md` and `.tex`, numbers of `digits` significant digits, lines ending in a newline."""
    short = frame.map(lambda v: float(f"{v:.{digits}g}") + 0.0 if isinstance(v, float) else v)
    stem = Path(stem)
    records.write_text(stem.with_suffix(".csv"), short.to_csv(index=False, lineterminator="\n"))
    records.write_text(stem.with_suffix(".md"), short.to_markdown(index=False) + "\n")
    records.write_text(stem.with_suffix(".tex"), short.to_latex(index=False, escape=True))


def write_metrics(summary: pd.DataFrame, path: Path | str) -> None:
    """dataset.method.{test_accuracy, ud_layers, ud_weights} as JSON, for `dvc metrics show` and `dvc metrics diff`."""
    columns = ["test_accuracy", "ud_layers", "ud_weights"]
    found = {d: part.set_index("method")[columns].T.to_dict() for d, part in summary.groupby("dataset", sort=False)}
    records.save(found, path)


NEEDED = ("test_accuracy", "ud_layers")
TOLERANCES = {"test_accuracy": 0.05, "accuracy_minus_noise": 0.05, "ud_layers": 0.25, "ud_weights": 0.25}


def differences(a: Path | str, b: Path | str) -> list[str]:
    """How `ud_by_data.csv` of two result folders differs beyond TOLERANCES (absolute), one line each; none: they agree.

    Between machines sums round differently and runs drift apart, so only means over seeds are compared.
    Raises InputError if a table is missing or damaged.
    """
    name = Path("tables") / "benchmark" / "ud_by_data.csv"
    old, new = (_indexed(Path(folder) / name) for folder in (a, b))
    if list(old.index) != list(new.index):
        return [f"conditions differ: {sorted(set(old.index) ^ set(new.index), key=str)}"]
    shared = [c for c in TOLERANCES if c in old and c in new]
    gaps = [(row, c, old.at[row, c], new.at[row, c]) for row in old.index for c in shared]
    return [f"{' '.join(map(str, row))} {c}: {x} and {y}" for row, c, x, y in gaps if _apart(x, y, TOLERANCES[c])]


def _apart(x: float, y: float, most: float) -> bool:
    return not (abs(x - y) <= most or (np.isnan(x) and np.isnan(y)))


def _indexed(path: Path) -> pd.DataFrame:
    keys, mend = [*BLOCK, "method"], f"{FIRST}, or name another folder"
    found = read(path, [*keys, *NEEDED], mend=mend).set_index(keys)
    measured = found[[c for c in TOLERANCES if c in found]]
    if not found.index.is_unique or any(not pd.api.types.is_numeric_dtype(kind) for kind in measured.dtypes):
        raise InputError(f"{path}: a condition comes twice, or a measure is no number; {mend}")
    return found


def read(path: Path | str, columns: Sequence[str] = (), *, mend: str = FIRST) -> pd.DataFrame:
    """A table (.csv). Raises InputError, with the mend, if it is missing, not a table, or lacks one of the columns."""
    existing(path, mend)
    try:
        found = pd.read_csv(path)
    except Exception as error:  # damaged files raise many types
        raise InputError(f"{path}: not a table ({type(error).__name__}); {mend}") from None
    if missing := set(columns) - set(found):
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}; {mend}")
    return found
