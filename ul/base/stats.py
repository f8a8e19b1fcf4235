"""Intervals and rank correlation for few seeds."""

from dataclasses import dataclass, replace
from itertools import permutations
from math import factorial

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

FDR = 0.05  # false-discovery rate at which weights count as differing (ul.studies.differing)


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; `n` paired values made it. low = high = nan where n < 2 says nothing."""

    estimate: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}"

    def within(self, low: float, high: float) -> "Interval":
        """The same, its ends cut to what the quantity can be: a t-interval of few seeds may reach beyond."""
        return replace(self, low=max(self.low, low), high=min(self.high, high)) if self.n > 1 else self

    def columns(self, name: str) -> dict[str, float]:
        """`name`, `name_low` and `name_high`: the interval as columns of a table."""
        return {name: self.estimate, f"{name}_low": self.low, f"{name}_high": self.high}


def student(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of float[n] with its Student-t interval. Raises ValueError for no value or a value that is not finite."""
    v = np.asarray(values, dtype=float)
    if v.ndim != 1 or v.size == 0 or not np.isfinite(v).all():
        raise ValueError(f"an interval needs finite numbers, one a seed; got {v}")
    if len(v) < 2:
        return Interval(float(v[0]), float("nan"), float("nan"), 1, level)
    half = scipy_stats.t.ppf((1 + level) / 2, len(v) - 1) * scipy_stats.sem(v)
    return Interval(float(v.mean()), float(v.mean() - half), float(v.mean() + half), len(v), level)


def student_or_nan(values: ArrayLike) -> Interval:
    """`student`, or nan throughout where a value is not finite."""
    v = np.asarray(values, dtype=float)
    # They are three, which a list cannot tell mypy.
    return student(v) if np.isfinite(v).all() else Interval(*[float("nan")] * 3, n=len(v))  # type: ignore[misc, arg-type]


def paired(a: ArrayLike, b: ArrayLike, *, log: bool = False, level: float = 0.95) -> Interval:
    """Student-t interval of a - b over seeds (values in the same order); with `log` of the ratio a / b.

    log: the geometric mean ratio. Raises ValueError for unequal lengths and, with log, for values <= 0.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"paired values must come from the same seeds: {a.shape} and {b.shape}")
    if not log:
        return student(a - b, level=level)
    if (a <= 0).any() or (b <= 0).any():
        raise ValueError("a ratio on the log scale needs values above 0; raise zeros to a floor first")
    t = student(np.log(a / b), level=level)
    return Interval(float(np.exp(t.estimate)), float(np.exp(t.low)), float(np.exp(t.high)), t.n, level)


def fixed(value: float, digits: int = 2) -> str:
    """A number with so many decimals, and never as -0.00."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def p_value(values: ArrayLike) -> float:
    """Two-sided one-sample t-test of float[n] against 0; nan for fewer than two values or values without spread."""
    v = np.asarray(values, dtype=float)
    return float(scipy_stats.ttest_1samp(v, 0).pvalue) if len(v) > 1 and np.ptp(v) else float("nan")


def rank_correlation(x: ArrayLike, y: ArrayLike, *, reps: int = 20_000, seed: int = 0) -> tuple[float, float]:
    """Spearman's rho of two float[n] and its two-sided permutation p: exact up to n = 8, above by `reps` shuffles.

    Raises ValueError below n = 3. A constant x or y has no order: rho is nan, p is 1.
    """
    rx, ry = (scipy_stats.rankdata(v) for v in (x, y))
    if len(rx) != len(ry) or len(rx) < 3:
        raise ValueError(f"a rank correlation needs three pairs or more, got {len(rx)} and {len(ry)}")
    if np.ptp(rx) == 0 or np.ptp(ry) == 0:
        return float("nan"), 1.0
    cx, cy = rx - rx.mean(), ry - ry.mean()
    scale = np.sqrt((cx @ cx) * (cy @ cy))
    rhos = _orders(cy, reps, seed) @ cx / scale
    rho = float(cx @ cy / scale)
    extreme = (np.abs(rhos) >= abs(rho) - 1e-12).sum()
    exact = factorial(len(cx)) == len(rhos)
    return rho, float(extreme / len(rhos) if exact else (extreme + 1) / (len(rhos) + 1))


def _orders(values: np.ndarray, reps: int, seed: int) -> np.ndarray:
    if len(values) <= 8:
        return np.array(list(permutations(values)))
    return np.random.default_rng(seed).permuted(np.tile(values, (reps, 1)), axis=1)


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's step-down adjusted p values, in the order given (Holm 1979); nan is no test and stays nan."""
    p = np.asarray(p, dtype=float)
    tests = np.isfinite(p).sum()
    order = np.argsort(p)[:tests]  # nan is last
    steps = np.maximum.accumulate((tests - np.arange(tests)) * p[order])
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted
