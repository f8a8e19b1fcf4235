"""Whether UD orders poisons as test accuracy does: rank correlations of a block, and of all blocks together."""

from typing import Any

import numpy as np
import pandas as pd

from ..base import stats
from ..base.errors import Record
from .benchmark import poisons
from .run_records import BLOCK

RANKED = ("ud_layers", "ud_weights")
FEWEST_METHODS = 5  # a rank correlation over fewer methods decides nothing


def rank_correlation(frame: pd.DataFrame, unit: str = "ud_layers") -> Record:
    """Spearman's rho of UD with test accuracy over the poisons of one block: neither clean images nor noise is one.

    Of the seeds in which every poison has a UD. rho per seed with its interval on Fisher's z scale over the seeds that
    have an order (None below three methods or without such a seed); p: exact permutation over methods of the seed
    means.
    """
    part = poisons(frame)
    known = part.groupby("seed")[unit].transform(lambda values: values.notna().all())
    part = part[known.astype(bool)]
    none = {"interval": None, "rho_of_means": np.nan, "p": np.nan, "methods": part["method"].nunique()}
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
