"""Figures of the cross-task study."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..base import records, stats
from ..base.errors import Record
from ..base.names import TASKS
from ..tables import study_claims
from .charts import abreast, show
from .style import colour

BANDS = {"clean": ("#c9b400", "clean"), "noise": ("#999999", "noise")}
RANGES = {  # of the cosines that `pairs` shows: lowest value, colours, in words
    "sal": (0, "viridis", "cosine of SAL"),
    "gradient": (-1, "RdBu_r", "cosine of gradients"),
}
LIMITS = (-0.75, 1.5)  # of protections shown; wider intervals are cut


def headline(frame: pd.DataFrame, regime: str, names: Sequence[str]) -> Figure:
    """A panel a task, a row a method: mean over seeds with its interval, clean and noise as bands.

    frame: `tables.cross_task.scores`. The dashed line is what the best constant predictor reaches.
    """
    part = frame[frame["regime"] == regime]
    methods = [m for m in part["method"].unique() if m not in BANDS]
    figure, axes = abreast(len(names), 5, (1.75, 0.24 * len(methods) + 1), labels=(0.8, 0.3))
    for ax, task in zip(axes.flat, names, strict=False):
        _bands(ax, part, task)
        nothing = frame[(frame["method"] == "uninformed") & (frame["task"] == task)]["value"].mean()
        ax.axvline(nothing, color="#000000", linestyle="--", linewidth=0.8, label="no image seen")
        for place, method in enumerate(methods):
            found = _interval(part, method, task)
            span = np.nan_to_num([[found.estimate - found.low], [found.high - found.estimate]])
            ax.errorbar(found.estimate, place, xerr=span, fmt="o", color=colour(method), capsize=2, markersize=4)
        better = "→" if TASKS[task].higher else "←"
        ax.set(title=task, xlabel=f"{TASKS[task].metric}\n({TASKS[task].unit}; better {better})")
        ax.set(yticks=range(len(methods)), yticklabels=methods)
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3, loc="outside upper center")
    return figure


def _interval(part: pd.DataFrame, method: str, task: str) -> stats.Interval:
    kind = stats.share if TASKS[task].unit == "share" else stats.student
    return kind(part[(part["method"] == method) & (part["task"] == task)]["value"])


def _bands(ax: Axes, part: pd.DataFrame, task: str) -> None:
    for method, (paint, label) in BANDS.items():
        if method in set(part["method"]):
            found = _interval(part, method, task)
            if np.isfinite(found.low):
                ax.axvspan(found.low, found.high, color=paint, alpha=0.2, linewidth=0, label=f"{label} (95 %)")
            ax.axvline(found.estimate, color=paint, linewidth=1)


def shares(ax: Axes, table: pd.DataFrame, names: Sequence[str]) -> Axes:
    """Protection by task (one group each) with intervals, a colour a method; the rule's bounds .2 and .5 as lines.

    table: one regime of `tables.cross_task.protection`.
    """
    methods = list(table["method"].unique())
    shifts = np.linspace(-0.3, 0.3, len(methods)) if len(methods) > 1 else [0]
    for shift, method in zip(shifts, methods, strict=True):
        part = table[table["method"] == method].set_index("task").reindex(names)
        spans = np.nan_to_num(
            np.abs([part["protection"] - part["protection_low"], part["protection_high"] - part["protection"]])
        )
        places = np.arange(len(names)) + shift
        ax.errorbar(
            places, part["protection"], yerr=spans, fmt="o", color=colour(method), label=method, capsize=2, markersize=4
        )
    for bound in (study_claims.LEFT, study_claims.TAKEN):
        ax.axhline(bound, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
    ax.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    ax.set(xticks=range(len(names)), ylim=LIMITS, xlim=(-0.5, len(names) - 0.5))
    ax.set_xticklabels(names, rotation=30, ha="right", rotation_mode="anchor")
    return ax


def panels(rows: Mapping[str, Mapping[str, np.ndarray]], *, cell: float = 0.85) -> Figure:
    """Pictures [c,h,w] or [h,w] by row and column name, on a common scale within a row of one channel.

    cell: inches a picture; less where many stand abreast.
    """
    columns = list(next(iter(rows.values())))
    cell = min(cell, 9 / len(columns))
    upright = len(columns) > 10  # titles that would lie on each other
    titles = 0.08 * max(map(len, columns)) if upright else 0.3
    size = (cell * len(columns) + 1.0, cell * len(rows) + titles)
    figure, axes = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        flat = np.concatenate([np.ravel(p) for p in pictures.values() if p.ndim == 2] or cast(Any, [[0, 1]]))
        limits = {"vmin": flat.min(), "vmax": flat.max()}
        for ax, (column, picture) in zip(line, pictures.items(), strict=True):
            show(ax, picture, column if ax in axes[0] else "", **limits)
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center")
    for ax in axes[0]:
        ax.title.set_rotation(90 if upright else 0)
    return figure


def pairs(tables: Mapping[str, pd.DataFrame], column: str, names: Sequence[str]) -> Figure:
    """A matrix of task pairs for each condition: `column` (sal or gradient) of `tables.cross_task.alike`.

    Columns have the order of the rows; they are named below the first matrix of the last row only.
    """
    lowest, colours, words = RANGES[column]
    figure, axes = abreast(len(tables), 6, (0.9 + 0.12 * len(names), 0.5 + 0.14 * len(names)), labels=(1.4, 1.2))
    for ax, (method, table) in zip(axes.flat, tables.items(), strict=False):
        grid = np.eye(len(names))
        for _, row in table.iterrows():
            i, j = names.index(row["task"]), names.index(row["other"])
            grid[i, j] = grid[j, i] = row[column]
        picture = ax.imshow(grid, vmin=lowest, vmax=1, cmap=colours)
        ax.set(title=method, xticks=range(len(names)), yticks=range(len(names)), yticklabels=names)
        ax.set_xticklabels(names if ax is axes[-1, 0] else [], rotation=90)
    figure.colorbar(picture, ax=axes, label=words, aspect=20 * len(axes))
    return figure


def predictions(
    runs: Sequence[Record], views: Record, names: Sequence[str], *, count: int
) -> dict[str, dict[str, np.ndarray]]:
    """Rows for `panels`: each task and view with the image, the label and every condition's outputs.

    runs: records with `views` (seed 0); views: images and labels, packed (both of `studies.cross_task.study`); names:
    of dense tasks; count: how many views. Boundaries are shown as probabilities, depth in metres, normals as colours.
    """
    found = {run["config"]["method"]: _unpacked(run["views"]) for run in runs if "views" in run}
    images, labels = records.unpacked(views["images"]), _unpacked(views["labels"])
    rows = {}
    for view in range(count):
        for task in names:
            picture = images[view] / 255
            truth = labels[task][view : view + 1, :-1]
            outputs = {method: own[task][view : view + 1] for method, own in found.items()}
            pictures = {method: SHOWN.get(task, _plain)(array) for method, array in outputs.items()}
            label = truth[0, 0] if task in LOGITS else SHOWN.get(task, _plain)(truth)
            rows[f"{task} {view + 1}"] = {"image": picture, "label": label} | pictures
    return rows


def _unpacked(found: Record) -> dict[str, np.ndarray]:
    """float32 arrays by task."""
    return {task: records.unpacked(values).astype(np.float32) for task, values in found.items()}


def _plain(outputs: np.ndarray) -> np.ndarray:
    """One channel as it is; three as colours from the lowest to the highest value."""
    if outputs.shape[1] != 3:
        return outputs[0, 0]
    return (outputs[0] - outputs[0].min()) / max(np.ptp(outputs[0]), 1e-6)


def _probability(outputs: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-outputs[0, 0]))


def _metres(outputs: np.ndarray) -> np.ndarray:
    return np.exp(outputs[0, 0])


def _colours(outputs: np.ndarray) -> np.ndarray:
    return outputs[0] / np.maximum(np.linalg.norm(outputs[0], axis=0), 1e-6) / 2 + 0.5


def _most_likely(outputs: np.ndarray) -> np.ndarray:
    return outputs[0].argmax(0).astype(float)


LOGITS = ("segment_unsup2d", "segment_semantic")  # whose labels are not in the outputs' form
SHOWN = {
    "segment_unsup2d": _probability, "segment_semantic": _most_likely, "depth_euclidean": _metres, "normal": _colours,
}  # fmt: skip
