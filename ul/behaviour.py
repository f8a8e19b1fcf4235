"""What each poison is and does: one row a method, from the poisons' records and the victims' accuracies."""

import pandas as pd

from . import published, records, stats, tables
from .config import located

CPU = "cpu"


def load(folder, conditions: list[str]) -> list[dict]:
    """The poison records `<folder>/poison-<condition>.json`. Raises InputError if one is missing."""
    return [records.load(located(folder) / f"poison-{name}.json") for name in conditions]


def table(poisons: list[dict], frame: pd.DataFrame) -> pd.DataFrame:
    """One row a data set and method.

    dataset, method, recipe; passes_per_image: forward and backward passes of surrogates; linf, l2, l2_mean (range 0 to
    1) and l0 (pixels) after rounding to uint8; separability (held-out accuracy of a linear model on perturbations); n
    victims; their test_accuracy, minus_clean and minus_noise (paired by seed) with 95 % intervals and p_holm of the
    difference to noise; published (CIFAR-10, ResNet-18; not for reduced recipes or other strengths) and how many of the
    other such methods it is ordered alike with: data and network differ, so only the order can agree.

    frame: rows of `tables.benchmark`; its runs without a defense count.
    """
    frame = frame[frame["defense"] == "none"]
    rows = [_row(poison, frame[frame["dataset"] == poison["dataset"]]) for poison in poisons]
    found = [_completed(part) for _, part in pd.DataFrame(rows).groupby("dataset", sort=False)]
    return pd.concat(found, ignore_index=True)


def _row(poison: dict, frame: pd.DataFrame) -> dict:
    method = poison["method"]
    row = {name: poison[name] for name in ("dataset", "method", "recipe", "eps", "passes_per_image")}
    row |= {name: poison["sizes"][name] for name in ("linf", "l2", "l2_mean", "l0")}
    row["separability"] = poison["separability"]
    accuracy = stats.student(frame.loc[frame["method"] == method, "test_accuracy"])
    row |= {"n": accuracy.n} | accuracy.columns("test_accuracy")
    for base in (tables.CLEAN, tables.NOISE):
        row |= tables.compare(frame, method, "test_accuracy", against=base).columns(f"minus_{base}")
    by_seed = frame.pivot(index="seed", columns="method", values="test_accuracy")
    return row | {"p_noise": stats.p_value(by_seed[method] - by_seed[tables.NOISE])}


def _completed(part: pd.DataFrame) -> pd.DataFrame:
    """Holm over one data set's methods, published values and agreement of order."""
    part = part.copy()
    tested = part["p_noise"].dropna()
    part["p_holm"] = pd.Series(stats.holm(tested), index=tested.index)
    comparable = (part["recipe"] != CPU) & ((part["eps"] - published.EPS).abs() < 1e-4)
    whole = part[comparable].set_index("method")["test_accuracy"].to_dict()
    part["published"] = [published.CIFAR10.get(m) if m in whole else None for m in part["method"]]
    alike = published.agreeing(whole)
    part["ordered_alike"] = [alike.get(m, "") for m in part["method"]]
    return part.drop(columns="p_noise").astype({"published": float})
