"""Intervals and rank correlation for few seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit, stdtr, stdtrit  # scipy.stats takes most of a second to load

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
    half = stdtrit(len(v) - 1, (1 + level) / 2) * _error(v)
    return Interval(float(v.mean()), float(v.mean() - half), float(v.mean() + half), len(v), level)


def _error(v: np.ndarray) -> float:
    """The standard error of the mean of float[n]."""
    return float(v.std(ddof=1) / np.sqrt(len(v)))


def known(values: ArrayLike, kind: Callable[[ArrayLike], Interval] = student) -> Interval:
    """The interval of one `kind`, or nan throughout where a value is not finite."""
    v = np.asarray(values, dtype=float)
    nan = float("nan")
    return kind(v) if np.isfinite(v).all() else Interval(nan, nan, nan, len(v))


def turned(interval: Interval, back: Callable[[float], float]) -> Interval:
    """An interval of another scale, each number taken `back` from it by a rising function."""
    estimate, low, high = (float(back(v)) for v in (interval.estimate, interval.low, interval.high))
    return Interval(estimate, low, high, interval.n, interval.level)


def share(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of float[n] shares (0..1) with a t-interval on the logit scale, so that it never leaves 0..1.

    The standard error of the mean p is carried over by the slope 1 / (p (1 - p)) (the delta method), so that single
    shares may be 0 or 1; where all of them are, the ends are nan. Raises ValueError as `student`, and outside 0..1.
    """
    plain = student(values, level=level)
    v = np.asarray(values, dtype=float)
    if (v < 0).any() or (v > 1).any():
        raise ValueError(f"shares lie from 0 to 1; got {v}")
    mean = plain.estimate
    if not 0 < mean < 1:
        return Interval(mean, float("nan"), float("nan"), plain.n, level)
    half = (plain.high - mean) / (mean * (1 - mean))
    low, high = (float(expit(logit(mean) + step)) for step in (-half, half))
    return Interval(mean, low, high, plain.n, level)


def ratios(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Geometric mean of float[n] ratios with a t-interval on the log scale.

    With a zero among them there is none: the mean itself, its ends nan, since what a zero counts as would decide it.
    Raises ValueError as `student`, and for a negative ratio.
    """
    v = np.asarray(values, dtype=float)
    if (v < 0).any():
        raise ValueError(f"ratios are 0 or above; got {v}")
    if v.size and (v == 0).any():
        return Interval(float(v.mean()), float("nan"), float("nan"), len(v), level)
    with np.errstate(invalid="ignore"):
        logs = np.log(v)
    return turned(student(logs, level=level), np.exp)


# What a perfect order of m counts as on Fisher's scale, where it is infinite: half a swap of neighbours away from one.
MOST: dict[str, Callable[[int], float]] = {
    "spearman": lambda m: 1 - 6 / (m * (m**2 - 1)),
    "kendall": lambda m: 1 - 2 / (m * (m - 1)),
}


def correlations(found: ArrayLike, pairs: int, *, kind: str = "spearman", level: float = 0.95) -> Interval:
    """Mean of float[n] rank correlations over so many pairs each, with a t-interval on Fisher's z scale.

    kind: a key of MOST, by which a perfect order enters the interval. Orders come in steps: the interval is widened to
    hold the mean, which is the plain one, and half a swap of neighbours on either side, so that equal seeds do not make
    it a point. Raises ValueError as `student`.
    """
    most, mean = MOST[kind](max(pairs, 2)), float(np.mean(np.asarray(found, dtype=float)))
    ends = turned(student(np.arctanh(np.clip(found, -most, most)), level=level), np.tanh)
    if ends.n < 2:
        return Interval(mean, ends.low, ends.high, ends.n, level)
    low, high = (float(np.clip(mean + step, -1, 1)) for step in (most - 1, 1 - most))
    return Interval(mean, min(ends.low, low), max(ends.high, high), ends.n, level)


def p_against(interval: Interval, bound: float, *, log: bool = False) -> float:
    """Two-sided p of the t-test that an interval belongs to, of its estimate against `bound`; nan without an interval.

    log: the interval is one of the log scale.
    """
    ends = np.array([interval.low, interval.estimate, interval.high, bound], dtype=float)
    low, estimate, high, against = np.log(ends) if log and (ends > 0).all() else ends
    if interval.n < 2 or not np.isfinite(ends).all() or not high > low:
        return float("nan")
    freedom = interval.n - 1
    error = (high - low) / 2 / stdtrit(freedom, (1 + interval.level) / 2)
    return float(2 * stdtr(freedom, -abs(estimate - against) / error))


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
        raise ValueError("a ratio on the log scale needs values above 0; a zero has none")
    return turned(student(np.log(a / b), level=level), np.exp)


def fixed(value: float, digits: int = 2) -> str:
    """A number with so many decimals, and never as -0.00."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def p_value(values: ArrayLike) -> float:
    """Two-sided one-sample t-test of float[n] against 0; nan for fewer than two values or values without spread."""
    v = np.asarray(values, dtype=float)
    return float(2 * stdtr(len(v) - 1, -abs(v.mean()) / _error(v))) if len(v) > 1 and np.ptp(v) else float("nan")


def rank_correlation(x: ArrayLike, y: ArrayLike, *, reps: int = 20_000, seed: int = 0) -> tuple[float, float]:
    """Spearman's rho of two float[n] and its two-sided permutation p: exact up to n = 8, above by `reps` shuffles.

    Raises ValueError below n = 3. A constant x or y has no order: rho is nan, p is 1.
    """
    rx, ry = (_ranks(v) for v in (x, y))
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


def _ranks(values: ArrayLike) -> np.ndarray:
    """Ranks of float[n] from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


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
