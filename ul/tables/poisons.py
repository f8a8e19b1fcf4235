"""What each poison is and does, and what a defense does to it: from the poisons' records and the victims' runs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..base import records, stats
from ..base.errors import InputError, Record, located
from ..base.names import CLEAN, NOISE
from . import benchmark, published, run_records, table_files

CPU = "cpu"
TRIED_ON = "rooms"  # what `make recipes` trains on


def load(folder: Path | str, wanted: Iterable[tuple[str, str]]) -> list[Record]:
    """What the records `<folder>/poison-*.json` tell of these poisons, each (data set, method), in order.

    Raises InputError if one is missing, or a file is no record of poisons.
    """
    found: dict[tuple[str, str], Record] = {}
    for path in sorted(located(folder).glob("poison-*.json")):
        try:
            found |= {(poison["dataset"], poison["method"]): poison for poison in records.load(path)["poisons"]}
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: no record of poisons ({records.reason(error)}); run `dvc repro` again") from None
    if missing := [name for name in wanted if name not in found]:
        raise InputError(f"{folder}: no record of {' '.join(missing[0])}; run `dvc repro` first")
    return [found[name] for name in wanted]


def table(poisons: list[Record], frame: pd.DataFrame) -> pd.DataFrame:
    """One row a data set and method.

    dataset, method, recipe; draws: so many, over which what follows is the mean, or of linf, l2 and l0 the largest;
    passes_per_image: forward and backward passes of surrogates; linf, l2, l2_mean (range 0 to 1) and l0 (pixels) after
    rounding to uint8; separability (held-out accuracy of a linear model on perturbations); n victims; their
    test_accuracy, minus_clean and minus_noise (paired by seed) with 95 % intervals and p_holm of the difference to
    noise; published (CIFAR-10, ResNet-18; not for reduced recipes or other strengths) and how many of the other such
    methods it is ordered alike with: data and network differ, so only the order can agree.

    frame: rows of `benchmark.benchmark`; its runs without a defense count.
    """
    frame = frame[frame["defense"] == "none"]
    rows = [_row(poison, frame[frame["dataset"] == poison["dataset"]]) for poison in poisons]
    found = [_completed(part) for _, part in pd.DataFrame(rows).groupby("dataset", sort=False)]
    return pd.concat(found, ignore_index=True)


def _row(poison: Record, frame: pd.DataFrame) -> Record:
    method = poison["method"]
    row = {name: poison[name] for name in ("dataset", "method", "recipe", "eps")} | {"draws": len(poison["draws"])}
    row |= drawn(poison["draws"])
    accuracy = stats.share(frame.loc[frame["method"] == method, "test_accuracy"])
    row |= {"n": accuracy.n} | accuracy.columns("test_accuracy")
    for base in (CLEAN, NOISE):
        row |= benchmark.compare(frame, method, "test_accuracy", against=base).columns(f"minus_{base}")
    by_seed = frame.pivot(index="seed", columns="method", values="test_accuracy")
    less = by_seed[method] - by_seed[NOISE]
    return row | {"p_noise": float("nan") if benchmark.is_baseline(method) else stats.p_value(less)}


SIZES = ("linf", "l2", "l2_mean", "l0")
MEANS = ("l2_mean", "passes_per_image", "separability")  # over draws; of the others the largest


def drawn(draws: Sequence[Record]) -> dict[str, float]:
    """passes_per_image, SIZES and separability of a poison over its draws."""
    rows = pd.DataFrame([{**draw, **draw["sizes"]} for draw in draws])
    return {
        name: float(rows[name].mean() if name in MEANS else rows[name].max())
        for name in ("passes_per_image", *SIZES, "separability")
    }


def _completed(part: pd.DataFrame) -> pd.DataFrame:
    """Holm over one data set's methods, published values and agreement of order."""
    part = part.assign(p_holm=stats.holm(part["p_noise"]))
    comparable = (part["recipe"] != CPU) & ((part["eps"] - published.EPS).abs() < 1e-4)
    whole = part[comparable].set_index("method")["test_accuracy"].to_dict()
    part["published"] = [published.CIFAR10.get(m) if m in whole else None for m in part["method"]]
    alike = published.agreeing(whole)
    part["ordered_alike"] = [alike.get(m, "") for m in part["method"]]
    return part.drop(columns="p_noise").astype({"published": float})


def with_recipes(table: pd.DataFrame, path: Path | str) -> pd.DataFrame:
    """`table` with what `make recipes` found for its reduced recipes on rooms, nan elsewhere.

    noise_500, cpu_500 and published_500: victims' clean accuracy after noise and after either recipe on 500 images of
    rooms; cpu_minus_published with its paired interval. Raises InputError if the file is missing or no such table.
    """
    names = {"accuracy_noise": "noise_500", "accuracy_cpu": "cpu_500", "accuracy_published": "published_500"}
    names |= {"difference": "cpu_minus_published"}
    names |= {f"difference_{end}": f"cpu_minus_published_{end}" for end in ("low", "high")}
    mend = "run `make recipes`, or give None"
    found = table_files.read(located(path), ["method", *names], mend=mend).set_index("method")
    if not found.index.is_unique:
        raise InputError(f"{path}: a method comes twice; {mend}")
    reduced = table["method"].where((table["recipe"] == CPU) & (table["dataset"] == TRIED_ON))
    return table.assign(**{new: reduced.map(found[old]) for old, new in names.items()})


# ---- Defenses ------------------------------------------------------------------------------------------------------

GROUP = run_records.BLOCK


def defended(runs: list[Record]) -> pd.DataFrame:
    """One row a method and defense: how much of the protection a defense takes away.

    GROUP, method, n, then means over seeds with paired 95 % intervals: test_accuracy; gain: minus the same poison
    without a defense after as many epochs, with p_holm over the methods of one defense; protection: by how much the
    poison lowers accuracy without a defense; protection_left: the same under the defense (clean under it minus poison
    under it). Raises InputError if the undefended or the clean runs of the same epochs are not among `runs`.
    """
    finals = [[*run_records.key(run), run["history"]["test_accuracy"][-1]] for run in runs]
    frame = pd.DataFrame(finals, columns=[*GROUP, "method", "seed", "test_accuracy"])
    wide = frame.pivot(index="seed", columns=[*GROUP, "method"], values="test_accuracy")
    rows = [_defended(wide, name) for name in wide.columns if name[2] != "none"]
    if not rows:
        return pd.DataFrame(columns=[*GROUP, "method", "n", "test_accuracy"])
    found = pd.DataFrame(rows)
    found["p_holm"] = found.groupby(GROUP)["p"].transform(stats.holm)
    return found.drop(columns="p")


def _defended(wide: pd.DataFrame, name: tuple[Any, ...]) -> Record:
    *place, defense, epochs, method = name
    wanted = [(*place, d, epochs, m) for d in (defense, "none") for m in (method, CLEAN)]
    if missing := [w for w in wanted if w not in wide.columns]:
        dataset, architecture, defense, epochs, method = missing[0]
        what = f"{method} on {dataset}, {architecture}, defense {defense}, {epochs} epochs"
        raise InputError(f"no run of {what} to compare with; add it to the grid")
    both = wide[list(dict.fromkeys(wanted))].dropna()  # the seeds that all of them have
    own, clean, bare, bare_clean = (both[w] for w in wanted)
    accuracy, gain = stats.share(own), stats.paired(own, bare)
    row = dict(zip([*GROUP, "method"], name, strict=True)) | {"n": accuracy.n} | accuracy.columns("test_accuracy")
    row |= gain.columns("gain") | {"p": stats.p_value(own - bare)}
    row |= stats.paired(bare_clean, bare).columns("protection")
    return row | stats.paired(clean, own).columns("protection_left")
