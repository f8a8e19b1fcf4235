"""The planes as something to play with in Jupyter: a slider through training and a choice of conditions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt

from ..tables.convergence import View
from . import convergence as convergence_figures

if TYPE_CHECKING:
    from ipywidgets import VBox


def planes(views: Mapping[str, View]) -> "VBox":
    """An ipywidgets box: which method's plane, which objective's surface, which paths, how many recorded points.

    views: by method. Needs a running notebook; the pipeline's executed copies show a still figure instead.
    """
    import ipywidgets as widgets

    first = next(iter(views.values()))
    steps = max(len(points) for view in views.values() for points in view.paths.values())
    method = widgets.Dropdown(options=list(views), description="method")
    objective = widgets.Dropdown(options=list(first.surfaces), description="loss of")
    shown = widgets.SelectMultiple(options=list(first.paths), value=tuple(first.paths), description="paths")
    until = widgets.IntSlider(value=steps, min=1, max=steps, description="points")

    def switch(change: dict[str, Any]) -> None:
        view = views[change["new"]]
        objective.options, shown.options, shown.value = list(view.surfaces), list(view.paths), tuple(view.paths)

    def show(method: str, objective: str, shown: tuple[str, ...], until: int) -> None:
        view = views[method]
        if objective in view.surfaces and set(shown) <= set(view.paths):  # not while `switch` is half done
            draw(view.surfaces[objective], view.xs, view.ys, {name: view.paths[name][:until] for name in shown})

    method.observe(switch, "value")
    controls = {"method": method, "objective": objective, "shown": shown, "until": until}
    return widgets.VBox([widgets.HBox(list(controls.values())), widgets.interactive_output(show, controls)])


def draw(loss: np.ndarray, xs: np.ndarray, ys: np.ndarray, paths: Mapping[str, np.ndarray]) -> None:
    """One surface with paths, shown."""
    figure, ax = plt.subplots(figsize=(4.5, 3.6))
    figure.colorbar(convergence_figures.terrain(ax, loss, xs, ys), ax=ax, label="loss (nats)", format="%.2g")
    looks = convergence_figures.styles(list(paths))
    for name, points in paths.items():
        convergence_figures.walk(ax, points, name, looks[name])
    if paths:
        ax.legend()
    plt.show()
