"""Unlearnable distance: learnable threshold, count of learnable parameters, distance of a run from its clean twin.

Ye, Su, Qian 2025 (arXiv 2509.08058), section 4; the definitions of this artifact are in the README.
All arrays are SAL values float[epochs, layers]: one row a probed epoch, one column a layer.
"""

from collections.abc import Callable
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike


class Uncountable(ValueError):
    """A choice of threshold leaves nothing to count by: no layer of the clean run above it, or no threshold at all."""


def _checked(sal: ArrayLike, what: str) -> np.ndarray:
    values = np.asarray(sal, dtype=float)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{what}: SAL must be [epochs, layers] and not empty, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{what}: SAL holds NaN or infinity; the run diverged: train it with a lower learning rate")
    return values


def means(values: ArrayLike, k: int = 2) -> list[float]:
    """The k-means centres of float[n] numbers in rising order, exactly: the best of all splits of the sorted values.

    Equal values give equal centres. Raises ValueError for fewer than k values.
    """
    v = np.sort(np.asarray(values, dtype=float))
    if len(v) < k:
        raise ValueError(f"k-means with k = {k} needs {k} layers or more, got {len(v)}")
    splits = [np.split(v, cuts) for cuts in combinations(range(1, len(v)), k - 1)]
    best = min(splits, key=lambda parts: sum(np.var(part) * len(part) for part in parts))
    return [float(part.mean()) for part in best]


def _upper_middle(values: np.ndarray, *, k: int) -> float:
    """The midpoint of the two largest k-means centres."""
    return float(np.mean(means(values, k)[-2:]))


def _otsu(values: np.ndarray) -> float:
    """The middle of the gap between k-means' two groups, whose split is the one of Otsu (1979)."""
    centres, v = means(values), np.sort(values)
    low = np.abs(v - centres[0]) <= np.abs(v - centres[1])
    return float((v[low].max() + v[~low].min()) / 2) if not low.all() else float(v.max())


def _mixture(values: np.ndarray) -> float:
    """Where two Gaussians fitted to the values are equally likely, between their means.

    Raises Uncountable if they cross nowhere between.
    """
    from sklearn.mixture import GaussianMixture

    fitted = GaussianMixture(2, random_state=0, n_init=5).fit(values[:, None])
    low, high = np.argsort(fitted.means_[:, 0])
    grid = np.linspace(fitted.means_[low, 0], fitted.means_[high, 0], 2001)
    above = fitted.predict_proba(grid[:, None])[:, high] > 0.5
    if above.all() or not above.any():
        raise Uncountable("the two Gaussians of the rule gmm do not cross between their means; use another rule")
    return float(grid[above.argmax()])


# float[layers] of one epoch -> the value above which a layer counts as learnable.
RULES: dict[str, Callable[[np.ndarray], float]] = {
    "kmeans": partial(_upper_middle, k=2),
    "kmeans3": partial(_upper_middle, k=3),
    "otsu": _otsu,
    "gmm": _mixture,
    "p50": partial(np.percentile, q=50),
    "p75": partial(np.percentile, q=75),
}


def threshold(clean: ArrayLike, rule: str = "kmeans") -> float:
    """Learnable threshold: `rule` over the layers of each probed epoch, mean over epochs.

    clean: float[epochs, layers], SAL of the clean run. rule: "kmeans" (the paper's: midpoint of the two centres),
    "kmeans3" (of the upper two of three), "otsu", "gmm", or a percentile over layers ("p50", "p75"). Raises ValueError
    for NaN, infinity, a single layer or an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"unknown threshold rule {rule!r}; choose from {', '.join(RULES)}")
    return float(np.mean([RULES[rule](row) for row in _checked(clean, "clean run")]))


def learnable(sal: ArrayLike, beta: float, *, weights: ArrayLike | None = None) -> np.ndarray:
    """#LP(t), float[epochs]: layers with SAL above beta; with `weights` [layers] each layer counts its weights."""
    values = _checked(sal, "run")
    unit = np.ones(values.shape[1]) if weights is None else np.asarray(weights, dtype=float)
    if unit.shape != (values.shape[1],):
        raise ValueError(f"{len(unit)} weight counts for {values.shape[1]} layers; give one a layer")
    return (values > beta) @ unit


def distance(
    run: ArrayLike,
    clean: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    beta: float | None = None,
    rule: str = "kmeans",
    window: slice = slice(None),
) -> float:
    """UD = mean #LP of `run` over mean #LP of its clean twin; beta defaults to the clean run's threshold by `rule`.

    window: which probed epochs count, for beta as well (default: all of them). 0: truly unlearnable, 1: as learnable
    as clean, > 1: not unlearnable but adversarial. Raises ValueError for runs of different shape, NaN or an empty
    window, Uncountable for a clean run without a learnable layer.
    """
    run, clean = _checked(run, "run"), _checked(clean, "clean run")
    if run.shape != clean.shape:
        raise ValueError(f"run is [epochs, layers] {run.shape}, clean {clean.shape}; probe the same epochs and layers")
    beta, base = _base(clean[window], weights=weights, beta=beta, rule=rule)
    return float(learnable(run[window], beta, weights=weights).sum() / base)


FEWEST = 0.2  # of a clean run's layers and epochs must count as learnable: by fewer, UD is a ratio of accidents


def counts(
    run: ArrayLike,
    clean: ArrayLike,
    *,
    beta: float | None = None,
    rule: str = "kmeans",
    window: slice = slice(None),
) -> tuple[int, int, int]:
    """(learnable layers of `run`, of its clean twin, of all that there are), each summed over the probed epochs.

    Options and errors as for `distance`. UD in layers is the first over the second; it says nothing where the second is
    less than FEWEST of the third.
    """
    run, clean = _checked(run, "run")[window], _checked(clean, "clean run")[window]
    beta = threshold(clean, rule) if beta is None else beta
    own, base = (int(learnable(sal, beta).sum()) for sal in (run, clean))
    return own, base, clean.size


def countable(base: float, possible: float) -> bool:
    """Whether so many learnable layers of so many are enough to count by."""
    return base >= FEWEST * possible


def floor(
    clean: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    beta: float | None = None,
    rule: str = "kmeans",
    window: slice = slice(None),
) -> float:
    """What UD = 0 counts as on a log scale: half a layer of mean size at one probed epoch, over the clean twin's count.

    Options and errors as for `distance`. This artifact's choice; the paper takes no logarithm.
    """
    kept = _checked(clean, "clean run")[window]
    _, base = _base(kept, weights=weights, beta=beta, rule=rule)
    return float(0.5 * (1.0 if weights is None else np.mean(np.asarray(weights, dtype=float))) / base)


def _base(clean: np.ndarray, *, weights: ArrayLike | None, beta: float | None, rule: str) -> tuple[float, float]:
    """(beta, #LP of the clean run summed over its epochs). Raises as `distance`."""
    if len(clean) == 0:
        raise ValueError("no probed epoch lies in the window; probe more epochs or widen it")
    beta = threshold(clean, rule) if beta is None else beta
    base = learnable(clean, beta, weights=weights).sum()
    if base == 0:
        raise Uncountable(f"no layer of the clean run lies above beta = {beta:.3g}; train the clean run longer")
    return beta, float(base)
