"""The plane as something to play with in Jupyter: an epoch slider and a choice of conditions."""

from collections.abc import Mapping

import numpy as np
from matplotlib import pyplot as plt

from . import convergence_figures


def plane(surfaces: Mapping[str, np.ndarray], xs: np.ndarray, ys: np.ndarray, paths: Mapping[str, np.ndarray]):
    """An ipywidgets box: which objective's surface [y,x], which paths [t,2], and how many of their points.

    Needs a running notebook; the executed copies of the pipeline show a still figure instead.
    """
    import ipywidgets as widgets

    steps = max(len(points) for points in paths.values())
    objective = widgets.Dropdown(options=list(surfaces), description="loss of")
    shown = widgets.SelectMultiple(options=list(paths), value=tuple(paths), description="paths")
    until = widgets.IntSlider(value=steps, min=1, max=steps, description="points")
    picture = widgets.interactive_output(
        lambda objective, shown, until: draw(surfaces[objective], xs, ys, {n: paths[n][:until] for n in shown}),
        {"objective": objective, "shown": shown, "until": until},
    )
    return widgets.VBox([widgets.HBox([objective, shown, until]), picture])


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
