"""Figures that several notebooks use: functions take arrays and axes, return axes and save nothing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import MARKERS, colour

if TYPE_CHECKING:
    import pandas as pd

ABREAST = 8  # heat maps in a row, at most


def show(ax: Axes, image: np.ndarray, title: str = "", **options: Any) -> Axes:
    """An image [c,h,w] (c = 1 or 3) or [h,w] without axes."""
    image = np.asarray(image)
    if image.ndim == 3:
        image = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    ax.imshow(image, interpolation="nearest", **({"cmap": "gray"} if image.ndim == 2 else {}) | options)
    ax.set_title(title)
    ax.set_axis_off()
    return ax


def gallery(rows: dict[str, np.ndarray], *, cell: float = 0.75) -> Figure:
    """One row of images [n,c,h,w] in 0..255 for each name."""
    count = len(next(iter(rows.values())))
    figure, axes = plt.subplots(len(rows), figsize=(cell * count + 1.0, cell * len(rows) + 0.1), squeeze=False)
    for ax, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        show(ax, strip(images), vmin=0, vmax=255)
        ax.text(-0.02, 0.5, name, transform=ax.transAxes, ha="right", va="center")
    return figure


def strip(images: np.ndarray) -> np.ndarray:
    """Images [n,c,h,w] in 0..255 side by side as one [c,h,w], white between them: it is drawn faster than n."""
    gap = max(1, images.shape[-1] // 10)
    wide = np.pad(images, [(0, 0)] * 3 + [(0, gap)], constant_values=255)
    return np.concatenate(list(wide), axis=-1)[..., :-gap]


def heat_maps(
    maps: dict[str, np.ndarray], layers: Sequence[str], epochs: Sequence[int], *, beta: float | None
) -> Figure:
    """SAL [epochs, layers] (nats) of several conditions on one logarithmic scale.

    The learnable threshold `beta`, if given, is marked on the colour bar; white dots mark layers above it.
    """
    values = np.concatenate([m.ravel() for m in maps.values()])
    top = values.max() or 1.0  # all zero at epsilon = 0
    norm = matplotlib.colors.LogNorm(max(values[values > 0].min(initial=top) / 2, top * 1e-5), top, clip=True)
    rows = -(-len(maps) // ABREAST)
    columns = -(-len(maps) // rows)
    size = (1.35 * columns + 1.9, (0.2 * len(layers) + 1.0) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for ax, (name, sal) in zip(axes.flat, maps.items(), strict=False):
        picture = ax.pcolormesh(sal.T, norm=norm, edgecolors="white", linewidth=0.3)
        high, low = np.nonzero(sal > (np.inf if beta is None else beta))
        ax.plot(high + 0.5, low + 0.5, "o", color="white", markeredgecolor="black", markeredgewidth=0.4, markersize=3)
        ax.set(title=name, xticks=np.arange(len(epochs)) + 0.5, xticklabels=epochs, xlabel="epoch")
    for ax in axes.flat[len(maps) :]:
        ax.set_axis_off()
    axes[0, 0].set(yticks=np.arange(len(layers)) + 0.5, yticklabels=layers)
    axes[0, 0].invert_yaxis()
    bar = figure.colorbar(picture, ax=axes, label="SAL (nats), mean over seeds")
    if beta is not None:
        bar.ax.axhline(beta, color="white", linewidth=1.5)
        bar.ax.text(-0.4, beta, "β", ha="right", va="center")
    return figure


def intervals(
    ax: Axes,
    frame: "pd.DataFrame",
    column: str,
    *,
    label: str,
    ratio: bool = False,
    zeros: str | None = None,
    unknown: str = "too few layers",
) -> Axes:
    """One point with its 95 % interval for each row of a summary table (columns column, column_low, column_high).

    ratio: on a logarithmic axis with a line at 1, where a 0 is a word, and a value that is not known is `unknown`.
    zeros: a column that counts the zeros in a mean, which is said instead of an interval.
    """
    for place, (_, row) in enumerate(frame[::-1].iterrows()):
        if ratio and not row[column] > 0:
            word = "0" if row[column] == 0 else unknown
            ax.text(0.02, place, word, transform=ax.get_yaxis_transform(), va="center", color=colour(row["method"]))
            continue
        span = np.abs([[row[column] - row[f"{column}_low"]], [row[f"{column}_high"] - row[column]]])
        ax.errorbar(row[column], place, xerr=np.nan_to_num(span), fmt="o", color=colour(row["method"]), capsize=2)
        if zeros and row[zeros]:
            ax.annotate(
                f"{row[zeros]} zeros in it", (row[column], place), xytext=(5, 4), textcoords="offset points", fontsize=7
            )
    named = [f"{m} (n={n})" for m, n in zip(frame.method, frame.n, strict=True)]
    ax.set(yticks=range(len(frame)), yticklabels=named[::-1], ylim=(-0.5, len(frame) - 0.5))  # words move no limit
    if ratio:
        ax.axvline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
        ax.set_xscale("log")
    ax.set_xlabel(label)
    return ax


def scatter(ax: Axes, frame: "pd.DataFrame", *, x: str, y: str, labels: tuple[str, str]) -> Axes:
    """A point a run, coloured and marked by method."""
    for i, (method, part) in enumerate(frame.groupby("method", sort=False)):
        ax.plot(
            part[x], part[y], MARKERS[i % len(MARKERS)], color=colour(method), alpha=0.6, markersize=4, label=method
        )
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def bumps(ax: Axes, values: "pd.DataFrame", *, label: str) -> Axes:
    """How the order of methods changes from one column to the next: rank 1 has the largest value.

    values: DataFrame, a row a method, a column a place (a defense, an architecture); nan: no value there.
    """
    places, ranks = np.arange(values.shape[1]), values.rank(ascending=False)
    ends: dict[tuple[float, float], list[str]] = {}  # of lines, with the methods that end there
    for method, row in ranks.iterrows():
        known = row.notna().to_numpy()
        ax.plot(places[known], row[known], "o-", color=colour(method), markersize=5)
        ends.setdefault((places[known][-1], row[known].iloc[-1]), []).append(str(method))
    for end, tied in ends.items():
        ax.annotate(", ".join(tied), end, xytext=(6, -3), textcoords="offset points")
    ax.set(xticks=places, xticklabels=values.columns, yticks=np.arange(1, len(values) + 1), title=label)
    ax.set(ylabel="rank by UD (1: the largest)", xlim=(-0.2, places[-1] + 0.6))
    ax.invert_yaxis()
    return ax


def rankings(values: "pd.DataFrame", table: "pd.DataFrame") -> Figure:
    """How choices place methods: one row a choice, by name and in order.

    values: DataFrame with a column a method, nan where it has no UD. table: DataFrame with tau and accuracy_tau and
    their intervals.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 0.25 * len(values) + 1.2), sharey=True)
    places = np.arange(len(values))
    for method in values.columns:
        label = method if values[method].notna().any() else f"{method}: no UD"
        left.plot(values[method], places, "o", color=colour(method), label=label, markersize=4)
    left.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    left.set(xlabel="log UD, mean over seeds", yticks=places, yticklabels=values.index)
    shown = (("tau", "τ with the default's UD", "#000000", -0.15), ("accuracy_tau", "τ with accuracy", "#7f6a4f", 0.15))
    for column, name, paint, shift in shown:
        ends = table[[f"{column}_low", f"{column}_high"]].clip(-1, 1)
        spans = ends.sub(table[column], axis=0).abs().fillna(0).T.to_numpy()
        look = {"fmt": "s", "color": paint, "capsize": 2, "markersize": 3, "label": name}
        right.errorbar(table[column], places + shift, xerr=spans, **look)
    right.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    right.set(xlabel="Kendall's τ over methods", xlim=(-1.05, 1.05), xticks=(-1, -0.5, 0, 0.5, 1))
    right.invert_yaxis()
    figure.legend(ncols=6, loc="outside upper center")
    return figure


def curves(
    ax: Axes, lines: dict[str, np.ndarray], *, ylabel: str, epochs: Sequence[int] | None = None, band: bool = True
) -> Axes:
    """float[seeds, epochs] a method: mean over seeds, with the range as a band; epochs: from 1 unless told."""
    looks = ("-", "--", "-.", ":")  # lines that lie on each other stay visible
    for i, (name, values) in enumerate(lines.items()):
        values = np.atleast_2d(values)
        at = np.arange(1, values.shape[1] + 1) if epochs is None else epochs
        label, marker, line = f"{name} (n={len(values)})", "" if band else "o", looks[i % len(looks)]
        ax.plot(at, values.mean(0), color=colour(name), label=label, marker=marker, linestyle=line)
        if band:
            ax.fill_between(at, values.min(0), values.max(0), color=colour(name), alpha=0.2, linewidth=0)
    ax.set(xlabel="epoch", ylabel=ylabel)
    if epochs is not None:
        ax.set_xticks(epochs)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # above the axes: inside it would lie on some line
    return ax


def abreast(count: int, most: int, size: tuple[float, float], labels: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Axes[rows, columns] with one y axis for `count` pictures, at most `most` in a row; what is too many is hidden.

    Inches, width and height: `size` each, and `labels` beside and below them all.
    """
    rows = -(-count // most)
    columns = -(-count // rows)
    whole = (size[0] * columns + labels[0], size[1] * rows + labels[1])
    figure, axes = plt.subplots(rows, columns, figsize=whole, sharey=True, squeeze=False)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, axes


def spectra(amplitudes: dict[str, np.ndarray]) -> Figure:
    """`spectrum` of each, three in a row."""
    figure, axes = abreast(len(amplitudes), 3, (2.8, 2.3), labels=(0, 0))
    for ax, (name, amplitude) in zip(axes.flat, amplitudes.items(), strict=False):
        spectrum(ax, amplitude, name=name)
    return figure


def spectrum(ax: Axes, amplitude: np.ndarray, *, name: str) -> Axes:
    """Mean log10 amplitude [h,w] of the Fourier transform of `name`'s perturbation; the centre is 0 cycles."""
    h, w = amplitude.shape
    values = np.log10(amplitude + 1e-4)
    middle, half = (values.max() + values.min()) / 2, max(np.ptp(values) / 2, 0.05)  # a flat spectrum has no contrast
    left, low = -(w // 2) - 0.5, -(h // 2) - 0.5  # a point's picture lies around it
    extent = (left, left + w, low, low + h)
    picture = ax.imshow(values, origin="lower", extent=extent, vmin=middle - half, vmax=middle + half)
    ax.set(xlabel="cycles per image", ylabel="cycles per image", title=f"{name}: spectrum")
    plt.colorbar(picture, ax=ax, label="log10 amplitude")
    return ax


def profiles(logs: dict[str, np.ndarray], epochs: Sequence[int], layers: Sequence[str], *, label: str) -> Figure:
    """Ratios by epoch (geometric mean over layers) and by layer (over epochs), on one logarithmic scale around 1.

    logs: float[epochs, layers] a method, natural logarithms; label: of the ratio.
    """
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.4), sharey=True)
    for ax, what, ticks, over in zip(axes, ("epoch", "layer"), (epochs, layers), (1, 0), strict=True):
        for method, values in logs.items():
            ax.plot([str(t) for t in ticks], np.exp(values.mean(over)), "o-", color=colour(method), label=method)
        ax.axhline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
        ax.set_xlabel(what)
    axes[0].set_yscale("log", base=2)
    axes[0].yaxis.set_major_formatter("{x:.2g}")
    axes[0].set_ylabel(label)
    axes[1].tick_params(axis="x", rotation=90)
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def trails(ax: Axes, frame: "pd.DataFrame", *, x: str, y: str, labels: tuple[str, str]) -> Axes:
    """A line a method through its rows in order, on logarithmic axes, the last point the largest."""
    for i, (method, part) in enumerate(frame.groupby("method", sort=False)):
        look: dict[str, Any] = {"color": colour(method), "marker": MARKERS[i % len(MARKERS)]}
        ax.plot(part[x], part[y], "-", markersize=3, linewidth=1, label=method, **look)
        ax.plot(part[x].iloc[-1:], part[y].iloc[-1:], "", markersize=7, **look)
    ax.set(xscale="log", yscale="log", xlabel=labels[0], ylabel=labels[1])
    for axis in (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5), numticks=9))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    return ax


def along(curves: "pd.DataFrame", axes: dict[str, str], measures: dict[str, str]) -> Figure:
    """Measures along what is varied: a column an axis, a row a measure, a point a run and a line through the means.

    curves: columns axis, value, and those of `measures`; axes and measures: name -> its label.
    """
    figure, grid = plt.subplots(len(measures), len(axes), figsize=(2.5 * len(axes), 2 * len(measures)), sharey="row")
    for column, (axis, title) in zip(grid.T, axes.items(), strict=True):
        part = curves[curves["axis"] == axis]
        for ax, (measure, label) in zip(column, measures.items(), strict=True):
            means = part.groupby("value")[measure].mean()
            ax.plot(part["value"], part[measure], "o", alpha=0.4, color=colour(axis))
            ax.plot(means.index, means, "-", color=colour(axis))
            ax.set(xlabel=title, ylabel=label if ax in grid[:, 0] else "")
    return figure
