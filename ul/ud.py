"""Unlearnable distance: learnable threshold, count of learnable parameters, distance of a run from its clean twin.

Ye, Su, Qian 2025 (arXiv 2509.08058), section 4; the definitions of this artifact are in the README.
All arrays are SAL values float[epochs, layers]: one row a probed epoch, one column a layer.
"""

import numpy as np
from numpy.typing import ArrayLike


def _checked(sal: ArrayLike, what: str) -> np.ndarray:
    values = np.asarray(sal, dtype=float)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{what}: SAL must be [epochs, layers] and not empty, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{what}: SAL holds NaN or infinity; the run diverged: train it with a lower learning rate")
    return values


def two_means(values: ArrayLike) -> tuple[float, float]:
    """The two k-means centres (k = 2) of float[n] numbers, exactly: the best of all splits of the sorted values.

    Equal values give two equal centres.
    """
    v = np.sort(np.asarray(values, dtype=float))
    if len(v) < 2:
        raise ValueError(f"k-means with k = 2 needs two layers or more, got {len(v)}")
    splits = [(np.var(v[:i]) * i + np.var(v[i:]) * (len(v) - i), i) for i in range(1, len(v))]
    _, cut = min(splits)
    return float(v[:cut].mean()), float(v[cut:].mean())


def threshold(clean: ArrayLike) -> float:
    """Learnable threshold: per probed epoch the midpoint of the two k-means centres over layers, mean over epochs.

    clean: float[epochs, layers], SAL of the clean run. Raises ValueError for NaN, infinity or a single layer.
    """
    return float(np.mean([sum(two_means(row)) / 2 for row in _checked(clean, "clean run")]))


def learnable(sal: ArrayLike, beta: float, *, weights: ArrayLike | None = None) -> np.ndarray:
    """#LP(t), float[epochs]: layers with SAL above beta; with `weights` [layers] each layer counts its weights."""
    values = _checked(sal, "run")
    unit = np.ones(values.shape[1]) if weights is None else np.asarray(weights, dtype=float)
    if unit.shape != (values.shape[1],):
        raise ValueError(f"{len(unit)} weight counts for {values.shape[1]} layers; give one a layer")
    return (values > beta) @ unit


def distance(run: ArrayLike, clean: ArrayLike, *, weights: ArrayLike | None = None, beta: float | None = None) -> float:
    """UD = mean #LP of `run` over mean #LP of its clean twin; beta defaults to the clean run's threshold.

    0: truly unlearnable, 1: as learnable as clean, > 1: not unlearnable but adversarial. Raises ValueError for runs of
    different shape, NaN, or a clean run without a learnable layer.
    """
    run, clean = _checked(run, "run"), _checked(clean, "clean run")
    if run.shape != clean.shape:
        raise ValueError(f"run is [epochs, layers] {run.shape}, clean {clean.shape}; probe the same epochs and layers")
    beta = threshold(clean) if beta is None else beta
    base = learnable(clean, beta, weights=weights).mean()
    if base == 0:
        raise ValueError(f"no layer of the clean run lies above beta = {beta:.3g}; train the clean run longer")
    return float(learnable(run, beta, weights=weights).mean() / base)
