"""Figures of the convergence study; they take arrays and tables and compute nothing that a table holds."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from ..base.stats import FDR
from .style import COLOURS, MARKERS, colour

PANELS = {  # column of `tables.convergence.epochs`: axis label, logarithmic
    "train_loss": ("training loss, own images (nats)", True),
    "test_loss": ("test loss, clean images (nats)", False),
    "test_accuracy": ("test accuracy, clean images", False),
    "gradient_norm": ("gradient norm (nats per unit)", True),
    "distance": ("distance from the start", False),
    "curvature": ("top Hessian eigenvalue (nats)", True),
}
LINES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1, 1, 1)), (0, (5, 3)), (0, (1, 2)), (0, (8, 2)))


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, line and marker of each condition, the same in every figure: told apart without colour as well."""
    known = list(COLOURS)
    places = {name: known.index(name) if name in known else len(known) + i for i, name in enumerate(names)}
    return {
        name: {"color": colour(name), "linestyle": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)]}
        for name, i in places.items()
    }


def epochs(frame: pd.DataFrame) -> Figure:
    """A panel a quantity over epochs: mean over seeds with the range as a band. frame: `tables.convergence.epochs`."""
    looks = styles(frame["method"].unique())
    figure, axes = plt.subplots(2, 3, figsize=(8.5, 4.6))
    for ax, (column, (label, logarithmic)) in zip(axes.flat, PANELS.items(), strict=True):
        for method, part in frame.dropna(subset=[column]).groupby("method", sort=False):
            values = part.groupby("epoch")[column].agg(["mean", "min", "max"])
            ax.plot(values.index, values["mean"], label=method, markersize=3, **looks[method])
            ax.fill_between(values.index, values["min"], values["max"], color=colour(method), alpha=0.15, linewidth=0)
        ax.set(xlabel="epoch", ylabel=label, yscale="log" if logarithmic else "linear")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=8, loc="outside upper center")
    return figure


def terrain(
    ax: Axes, loss: np.ndarray, xs: np.ndarray, ys: np.ndarray, *, norm: matplotlib.colors.Normalize | None = None
) -> QuadContourSet:
    """Filled contours of a loss surface [y,x] (nats), logarithmic; gives what a colour bar needs."""
    norm = norm or matplotlib.colors.LogNorm(max(loss.min(), 1e-4), loss.max())
    levels = np.geomspace(cast(float, norm.vmin), cast(float, norm.vmax), 16)
    picture = ax.contourf(xs, ys, np.clip(loss, norm.vmin, norm.vmax), levels=levels, norm=norm, cmap="viridis")
    ax.contour(xs, ys, loss, levels=levels[::3], colors="white", linewidths=0.4)
    return picture


def walk(ax: Axes, points: np.ndarray, name: str, look: Mapping[str, Any]) -> Axes:
    """A path [t,2] on a plane; the end is marked large."""
    ax.plot(*points.T, label=name, markersize=2.5, linewidth=1.2, markeredgecolor="white", markeredgewidth=0.3, **look)
    ax.plot(*points[-1], marker=look["marker"], color=look["color"], markersize=7, markeredgecolor="white")
    return ax


def plane(
    surfaces: Mapping[str, np.ndarray],
    xs: np.ndarray,
    ys: np.ndarray,
    paths: Mapping[str, np.ndarray],
    labels: tuple[str, str],
) -> Figure:
    """Several objectives' surfaces [y,x] on one plane, side by side on a common scale, every path [t,2] on each."""
    values = np.concatenate([s.ravel() for s in surfaces.values()])
    norm = matplotlib.colors.LogNorm(max(values.min(), 1e-4), values.max())
    looks = styles(list(paths))
    figure, axes = plt.subplots(1, len(surfaces), figsize=(3.4 * len(surfaces) + 0.9, 3), sharey=True, squeeze=False)
    for ax, (name, loss) in zip(axes[0], surfaces.items(), strict=True):
        picture = terrain(ax, loss, xs, ys, norm=norm)
        for method, points in paths.items():
            walk(ax, points, method, looks[method])
        ax.set(title=name, xlabel=labels[0])
        ax.locator_params(nbins=5)
    axes[0, 0].set_ylabel(labels[1])
    bar = figure.colorbar(
        picture,
        ax=axes,
        label="loss (nats)",
        format="%.2g",
        ticks=np.geomspace(cast(float, norm.vmin), cast(float, norm.vmax), 6),
    )
    bar.ax.minorticks_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=8, loc="outside upper center")
    return figure


def between(lines: Mapping[str, Mapping[str, np.ndarray]], shares: np.ndarray) -> Figure:
    """Straight lines from clean to poisoned ends: a panel a quantity, name -> method -> float[shares]."""
    figure, axes = plt.subplots(1, len(lines), figsize=(2.9 * len(lines), 2.6), squeeze=False)
    looks = styles(list(next(iter(lines.values()))))
    for ax, (label, by_method) in zip(axes[0], lines.items(), strict=True):
        for method, values in by_method.items():
            ax.plot(shares, values, label=method, markersize=3, **looks[method])
        ax.set(xlabel="clean end (0) to poisoned end (1)", ylabel=label)
        if label.startswith("loss"):  # networks between two ends may be thousands of times worse than the ends
            ax.set_yscale("log")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=8, loc="outside upper center")
    return figure


def inequality(ax: Axes, curves: Mapping[str, np.ndarray]) -> Axes:
    """Lorenz curves of parameters' distances, `tables.convergence.inequality`; the diagonal: all parameters alike."""
    looks = styles(list(curves))
    for method, curve in curves.items():
        look = looks[method] | {"markevery": 25}
        ax.plot(np.linspace(0, 1, len(curve)), curve, label=method, markersize=3, **look)
    ax.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8)
    ax.set(xlabel="share of parameters, smallest first", ylabel="share of all distance")
    return ax


def layers(ax: Axes, table: pd.DataFrame) -> Axes:
    """The share that differs by layer, with intervals. table: `tables.convergence.shares`."""
    names, methods = list(table["layer"].unique()), list(table["method"].unique())
    looks = styles(methods)
    for shift, method in zip(np.linspace(-0.3, 0.3, len(methods)), methods, strict=True):
        part = table[table["method"] == method].set_index("layer").loc[names]
        spans = np.nan_to_num(np.abs([part["share"] - part["share_low"], part["share_high"] - part["share"]]))
        look = {k: v for k, v in looks[method].items() if k != "linestyle"}
        ax.errorbar(
            np.arange(len(names)) + shift,
            part["share"],
            yerr=spans,
            linestyle="",
            capsize=2,
            markersize=4,
            label=method,
            **look,
        )
    ax.axhline(FDR, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
    ax.set(xticks=range(len(names)), xlabel="layer", ylabel="share of parameters that differ", ylim=(-0.03, 1.03))
    ax.set_xticklabels(names, rotation=30, ha="right", rotation_mode="anchor")
    return ax


def effects(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Recovered share of the accuracy gap by intervention, a panel a method. table: `tables.convergence.effects`."""
    shown = table[~table["moved"].isin(["nothing", "everything"])]
    figure, axes = plt.subplots(1, len(names), figsize=(2.3 * len(names) + 1.2, 2.6), sharey=True, squeeze=False)
    for ax, method in zip(axes[0], names, strict=True):
        part = shown[shown["method"] == method].iloc[::-1]
        places = np.arange(len(part))
        spans = np.nan_to_num(
            np.abs([part["recovered"] - part["recovered_low"], part["recovered_high"] - part["recovered"]])
        )
        ax.errorbar(part["recovered"], places, xerr=spans, fmt="o", color=colour(method), capsize=2, markersize=4)
        for bound in (0, 1):
            ax.axvline(bound, color="#bbbbbb", linewidth=0.8, zorder=0)
        ax.set(title=method, xlabel="share of the gap recovered", xlim=(-0.5, 1.5))
        ax.set(yticks=places, yticklabels=part["do"] + ": " + part["moved"])
    return figure
