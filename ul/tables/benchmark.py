"""Tables from records: UD and accuracy a run, intervals a condition, rank correlation; written as csv, md and tex."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from ..base import records, stats, ud
from ..base.errors import InputError, Record, existing, located
from ..base.names import CLEAN, NOISE
from . import published

BLOCK = ["dataset", "architecture", "defense", "epochs"]
UNITS = ("ud_layers", "ud_weights", "ud_own", "ud_pooled")
RANKED = ("ud_layers", "ud_weights")
LATE = ("late_sal", "late_sal_weights")
TESTED = {"ud_layers": "p_holm", "ud_weights": "p_holm_weights"}
MEASURED = ("test_accuracy", "train_accuracy", "train_loss", "loss_area", *UNITS)
MEASURED += ("learnable", "clean_learnable", "possible", *LATE, "comparable")
FIRST, AGAIN = "run `dvc repro` first", "run `dvc repro` again"
FEWEST_METHODS = 5  # a rank correlation over fewer methods decides nothing


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


def distance(sal: np.ndarray, clean: np.ndarray, **options: Any) -> float:
    """UD; nan where the clean run counts too few layers."""
    _, base, possible = ud.counts(sal, clean)
    return ud.distance(sal, clean, **options) if ud.countable(base, possible) else float("nan")


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
    """`stats.ratios` of those that are known."""
    known = values.dropna()
    return stats.ratios(known) if len(known) else stats.Interval(*[float("nan")] * 3, n=0)  # type: ignore[misc, arg-type]


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
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def noise_ud(frame: pd.DataFrame, unit: str = "ud_layers") -> float:
    """UD of noise in one block, geometric mean over seeds; nan where there is none."""
    return of_ratios(frame.loc[frame["method"] == NOISE, unit]).estimate


def fitted(summary: pd.DataFrame) -> bool:
    """Whether a setting is trained to fit: clean images, noise and every poison (rows of `by_method` of one block)."""
    return bool(summary["fits"].all())


def rank_correlation(frame: pd.DataFrame, unit: str = "ud_layers") -> Record:
    """Spearman's rho of UD with test accuracy over the poisons of one block: neither clean images nor noise is one.

    Of the seeds in which every poison has a UD. rho per seed with its interval on Fisher's z scale over the seeds that
    have an order (None below three methods or without such a seed); p: exact permutation over methods of the seed
    means.
    """
    part = poisons(frame)
    known = part.groupby("seed")[unit].transform(lambda values: values.notna().all())
    part = part[known.astype(bool)]
    none = {"interval": None, "rho_of_means": np.nan, "p": 1.0, "methods": part["method"].nunique()}
    if part["method"].nunique() < 3:
        return none
    per_seed = [stats.rank_correlation(g[unit], g["test_accuracy"])[0] for _, g in part.groupby("seed")]
    means = part.groupby("method")[[unit, "test_accuracy"]].mean()
    rho, p = stats.rank_correlation(means[unit], means["test_accuracy"])
    finite = [r for r in per_seed if np.isfinite(r)]
    interval = stats.correlations(finite, len(means)) if finite else None
    return none | {"interval": interval, "rho_of_means": rho, "p": p}


def ranks(frame: pd.DataFrame) -> pd.DataFrame:
    """`rank_correlation` of every block and unit as rows; with several blocks also of all conditions together."""
    parts = [(block, part) for block, part in frame.groupby(BLOCK, sort=False)]
    if len(parts) > 1:
        parts.append((("all",) * len(BLOCK), _together(frame)))
    return pd.DataFrame([_rank_row(block, part, unit) for block, part in parts for unit in RANKED])


def _together(frame: pd.DataFrame) -> pd.DataFrame:
    """All blocks as one, each condition a method of its own; the seeds that all conditions have.

    Accuracy and UD become ranks within their block and seed: what differs between data sets or networks is no order of
    methods.
    """
    frame = poisons(frame)
    names = frame[["method", *BLOCK]].astype(str).agg(" ".join, axis=1)
    counts = names.groupby(frame["seed"]).nunique()
    shared = frame["seed"].isin(counts[counts == names.nunique()].index)
    kept = frame.assign(method=names)[shared]
    ranked = ["test_accuracy", *RANKED]
    return kept.assign(**kept.groupby([*BLOCK, "seed"])[ranked].rank(pct=True))


def _rank_row(block: tuple[Any, ...], part: pd.DataFrame, unit: str) -> Record:
    found = rank_correlation(part, unit)
    row = dict(zip(BLOCK, block, strict=True)) | {"unit": unit, "methods": found["methods"]}
    interval = found["interval"]
    row |= interval.columns("rho") | {"seeds": interval.n} if interval else {}
    return row | {"rho_of_means": found["rho_of_means"], "p_exact": found["p"]}


def over_seeds(frame: pd.DataFrame, keys: list[str], shares: Iterable[str] = ()) -> pd.DataFrame:
    """One row a group of `keys`: n, mean and t-interval of every other column over its rows; nan where one is nan.

    shares: columns in 0..1, whose intervals are on the logit scale.
    """
    found = []
    for key, part in frame.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True)) | {"n": len(part)}
        for column in part.columns.drop(keys):
            kind = stats.share if column in shares else stats.student
            row |= stats.known(part[column], kind).columns(column)
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
    """dataset.method.measure as JSON, those that are known, for `dvc metrics show` and `dvc metrics diff`."""
    columns = ["test_accuracy", "ud_layers", "ud_weights", "ud_pooled", "late_sal"]
    known = {d: part.set_index("method")[columns] for d, part in summary.groupby("dataset", sort=False)}
    found = {d: {m: row.dropna().to_dict() for m, row in part.iterrows()} for d, part in known.items()}
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
