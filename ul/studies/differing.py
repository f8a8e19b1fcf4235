"""Which parameters take another path than they do in clean training, beyond what batch order alone does."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from ..base.stats import FDR

BLOCK = 2**16  # parameters that are worked on at once

Runs = np.ndarray | Sequence[ArrayLike]  # float[r,t,p]: r paths


def excess(path: ArrayLike, others: Runs) -> np.ndarray:
    """How far float[t,p] runs from the mean of float[r,t,p], squared, over what one more of the r runs would: float[p].

    Both squares are means over the t points; the others' variance counts (1 + 1/r) times, as for a prediction. 0 for a
    parameter that the other runs do not move: they say nothing about its spread. Raises ValueError for r < 2.
    """
    own, others = np.asarray(path), np.asarray(others)
    if len(others) < 2:
        raise ValueError(f"a spread needs two other runs or more, got {len(others)}")
    blocks = [slice(i, i + BLOCK) for i in range(0, own.shape[-1], BLOCK)]
    return np.concatenate([_excess(own[:, b].astype(float), others[:, :, b].astype(float)) for b in blocks])


def _excess(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    away = ((own - others.mean(0)) ** 2).mean(0)
    usual = others.var(0, ddof=1).mean(0) * (1 + 1 / len(others))
    return np.divide(away, usual, out=np.zeros_like(away), where=usual > 0)


def p_values(path: ArrayLike, others: Runs) -> np.ndarray:
    """float[p]: F test of `excess` with 1 and r - 1 degrees of freedom.

    Exact if a path is one normal number, conservative if its points vary independently.
    """
    return scipy_stats.f.sf(excess(path, others), 1, len(others) - 1)


def differing(path: ArrayLike, others: Runs, *, level: float = FDR) -> np.ndarray:
    """bool[p]: parameters whose path differs from the others', by Benjamini and Hochberg's procedure (1995) at `level`.

    Weights of a network move together, so that a run without any difference has many discoveries at times: compare
    with clean runs.
    """
    return scipy_stats.false_discovery_control(p_values(path, others)) <= level


def possible(path: ArrayLike, others: Runs) -> float:
    """The share of parameters that may differ, found or not: 1 - 2 P(p > .5), at least 0 (Storey 2002, lambda = .5)."""
    return max(0.0, 1 - 2 * float((p_values(path, others) > 0.5).mean()))


def gaps(path: ArrayLike, other: ArrayLike) -> np.ndarray:
    """Root mean square distance of two paths float[t,p] over their points: float[p]."""
    return np.sqrt(((np.asarray(path, dtype=float) - np.asarray(other, dtype=float)) ** 2).mean(0))


def lorenz(values: ArrayLike, points: int | None = None) -> np.ndarray:
    """Lorenz curve of float[n] >= 0: float[n+1], the share of the total that the k smallest hold, k = 0..n.

    points: only as many of them, evenly spaced in k.
    """
    v = np.sort(np.asarray(values, dtype=float))
    curve = np.concatenate([[0.0], np.cumsum(v)]) / max(v.sum(), np.finfo(float).tiny)
    return curve if points is None else curve[np.linspace(0, len(v), points).round().astype(int)]


def top(values: ArrayLike, share: float = 0.1) -> float:
    """What the largest `share` of float[n] >= 0 holds of the sum of squares."""
    v = np.asarray(values, dtype=float)
    return float(1 - lorenz(v**2)[len(v) - round(share * len(v))])


def gini(values: ArrayLike) -> float:
    """Gini coefficient of float[n] >= 0: 0 if all are equal, (n-1)/n if one holds everything."""
    curve = lorenz(values)
    return float(1 - (curve[1:] + curve[:-1]).mean())
