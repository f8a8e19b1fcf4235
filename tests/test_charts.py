"""Figures: the same bytes on every run, one style, and what each chart shows."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from ul.figures import charts, style
from ul.studies import poison_runs

DRAW = """
import sys, numpy as np
from matplotlib import pyplot as plt
from ul.figures import charts, style
style.use_style()
figure, ax = plt.subplots()
charts.curves(ax, {"em": np.array([[1.0, 2.0], [2.0, 4.0]])}, ylabel="loss")
style.save(figure, sys.argv[1])
"""


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_saved_figures_are_the_same_bytes_in_every_process(tmp_path):
    for name in "ab":
        subprocess.run([sys.executable, "-c", DRAW, tmp_path / name], check=True, env={"MPLBACKEND": "agg"})
    for kind in ("svg", "png"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    svg = (tmp_path / "a.svg").read_text()
    assert "<dc:date>" not in svg and "em (n=2)" in svg  # text stays text
    with Image.open(tmp_path / "a.png") as image:
        assert image.size > (300, 200) and "Software" not in image.info


def test_nothing_is_saved_without_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    style.save(plt.figure(), None)
    assert list(tmp_path.iterdir()) == []


def test_style_ends_with_its_block():
    before = plt.rcParams["font.size"]
    with style.style():
        assert plt.rcParams["font.size"] == style.STYLE["font.size"] != before
    assert plt.rcParams["font.size"] == before


def test_methods_keep_their_own_colours():
    assert len(set(style.COLOURS.values())) == len(style.COLOURS)
    assert style.colour("em") == style.COLOURS["em"]
    assert style.colour("unheard of") not in style.COLOURS.values()


def test_notebooks_show_figures_as_they_are_saved():
    from matplotlib_inline.config import InlineBackend

    style.use_style()
    assert InlineBackend.instance().print_figure_kwargs == {"bbox_inches": None}


def test_gallery_has_a_named_row_for_each_entry():
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)
    figure = charts.gallery({"clean": images, "em": 255 - images, "grey": images[:, :1]})
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["clean", "em", "grey"]
    shown = figure.axes[0].images[0].get_array()  # three images of 4 x 4, one white column between them
    assert shown.shape == (4, 14, 3) and (shown[:, [4, 9]] == 255).all()
    assert np.array_equal(shown[:, 5:9], images[1].transpose(1, 2, 0))
    assert figure.axes[2].images[0].get_array().shape == (4, 14)


def test_heat_maps_show_layers_epochs_and_the_threshold():
    sal = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])  # two epochs, three layers
    figure = charts.heat_maps({"clean": sal, "em": sal / 100}, ["a", "b", "c"], [1, 30], beta=0.35)
    left, right, bar = figure.axes
    assert [ax.get_title() for ax in (left, right)] == ["clean", "em"]
    assert [t.get_text() for t in left.get_yticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in right.get_xticklabels()] == ["1", "30"]
    assert left.get_xlabel() == "epoch" and "nats" in bar.get_ylabel()
    assert left.yaxis_inverted()
    assert np.array_equal(left.collections[0].get_array(), sal.T)
    high = left.lines[0].get_xydata() - 0.5  # (epoch, layer) above the threshold
    assert sorted(map(tuple, high)) == [(1, 0), (1, 1), (1, 2)]
    assert len(right.lines[0].get_xydata()) == 0


def test_heat_maps_without_a_threshold_mark_nothing():
    figure = charts.heat_maps({"clean": np.array([[0.1, 0.2]])}, ["a", "b"], [1], beta=None)
    assert len(figure.axes[0].lines[0].get_xydata()) == 0


def frame() -> pd.DataFrame:
    rows = [("em", 5, 0.1, 0.05, 0.2), ("tap", 3, 1.6, 1.2, 2.0), ("lsp", 1, 0.4, np.nan, np.nan)]
    return pd.DataFrame(rows, columns=["method", "n", "ud", "ud_low", "ud_high"])


def test_intervals_draw_first_rows_on_top_with_their_n():
    _, ax = plt.subplots()
    assert charts.intervals(ax, frame(), "ud", label="UD", ratio=True) is ax
    assert [t.get_text() for t in ax.get_yticklabels()] == ["lsp (n=1)", "tap (n=3)", "em (n=5)"]
    assert ax.get_xlabel() == "UD"
    points = [container.lines[0].get_xydata()[0].tolist() for container in ax.containers]
    assert points == [[0.4, 0], [1.6, 1], [0.1, 2]]
    ends = ax.containers[1].lines[2][0].get_segments()[0][:, 0]
    assert ends == pytest.approx([1.2, 2.0])


def test_what_is_not_known_is_a_word_inside_the_axes():
    _, ax = plt.subplots()
    rows = frame().assign(ud=[0.1, np.nan, np.nan])
    charts.intervals(ax, rows, "ud", label="UD", ratio=True, unknown="nothing to compare with")
    assert {text.get_text() for text in ax.texts} == {"nothing to compare with"} and len(ax.containers) == 1
    low, high = ax.get_ylim()
    assert all(low < text.get_position()[1] < high for text in ax.texts) and len(ax.texts) == 2


def test_a_mean_of_some_zeros_says_so():
    _, ax = plt.subplots()
    charts.intervals(ax, frame().assign(zeros=[2, 0, 0]), "ud", label="UD", ratio=True, zeros="zeros")
    assert [text.get_text() for text in ax.texts] == ["2 zeros in it"]
    assert tuple(ax.texts[0].xy) == (0.1, 2)


def test_curves_show_mean_and_range():
    _, ax = plt.subplots()
    values = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]])
    assert charts.curves(ax, {"em": values, "clean": values[0]}, ylabel="accuracy") is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "accuracy")
    assert ax.lines[0].get_xydata().tolist() == [[1, 2], [2, 2], [3, 5]]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["em (n=2)", "clean (n=1)"]
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == (1, 7)


def test_scatter_has_a_point_a_run_and_names_the_methods():
    _, ax = plt.subplots()
    points = pd.DataFrame({
        "method": ["em", "em", "em", "tap"], "ud": [0.1, 0.3, 0.5, 1.5], "accuracy": [0.2, 0.4, 0.2, 0.1],
    })  # fmt: skip
    assert charts.scatter(ax, points, x="ud", y="accuracy", labels=("UD", "test accuracy")) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("UD", "test accuracy")
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert drawn == {"em": [[0.1, 0.2], [0.3, 0.4], [0.5, 0.2]], "tap": [[1.5, 0.1]]}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["em", "tap"]
    assert ax.lines[0].get_marker() != ax.lines[1].get_marker()


def test_spectrum_finds_a_planted_wave():
    _, ax = plt.subplots()
    wave = np.cos(2 * np.pi * 3 * np.arange(16) / 16)  # three cycles across
    charts.spectrum(ax, poison_runs.amplitude(np.broadcast_to(wave, (2, 3, 16, 16))), name="em")
    picture = ax.images[0]
    row, column = np.unravel_index(np.argmax(picture.get_array()), (16, 16))
    assert row == 8 and abs(column - 8) == 3
    assert "cycles" in ax.get_xlabel() and "em" in ax.get_title()


def test_rankings_have_a_row_a_choice():
    values = pd.DataFrame({"em": [0.1, -0.5], "ar": [0.2, np.nan]}, index=["default", "other"])
    table = pd.DataFrame({"tau": [1.0, 0.2], "tau_low": [np.nan, -3.0], "tau_high": [np.nan, 3.4]}, index=values.index)
    table = table.join(table.add_prefix("accuracy_"))
    left, right = charts.rankings(values, table).axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["default", "other"] and left.yaxis_inverted()
    assert right.get_xlim() == (-1.05, 1.05)
    nowhere = charts.rankings(values.assign(ar=np.nan), table)
    assert [t.get_text() for t in nowhere.legends[0].get_texts()][:2] == ["em", "ar: no UD"]


def test_ratios_are_geometric_means_by_epoch_and_by_layer():
    logs = np.log(np.array([[1.0, 4.0], [2.0, 8.0], [0.5, 2.0]]))  # three epochs, two layers
    left, right = charts.profiles({"em": logs}, [1, 5, 9], ["a", "b"], label="rooms: SAL / clean SAL").axes
    assert left.lines[0].get_ydata() == pytest.approx([2, 4, 1]) and right.lines[0].get_ydata() == pytest.approx([1, 4])
    assert [ax.get_xlabel() for ax in (left, right)] == ["epoch", "layer"] and left.get_yscale() == "log"
    assert [t.get_text() for t in right.get_xticklabels()] == ["a", "b"] and left.get_ylabel().startswith("rooms")


def test_measures_along_an_axis_are_points_and_the_line_of_their_means():
    rows = [("share", 0.0, 1.0, 3.0), ("share", 0.0, 2.0, 5.0), ("share", 1.0, 7.0, 9.0), ("eps", 4.0, 0.0, 0.0)]
    curves = pd.DataFrame(rows, columns=["axis", "value", "accuracy", "ud"])
    names = {"share": "share poisoned", "eps": "strength"}
    axes = charts.along(curves, names, {"accuracy": "test accuracy", "ud": "UD"}).axes
    points, means = (line.get_xydata().tolist() for line in axes[0].lines)
    assert points == [[0, 1], [0, 2], [1, 7]] and means == [[0, 1.5], [1, 7]]
    assert axes[2].lines[1].get_xydata().tolist() == [[0, 4], [1, 9]]
    assert [ax.get_ylabel() for ax in axes] == ["test accuracy", "", "UD", ""] and axes[1].get_xlabel() == "strength"


@pytest.mark.parametrize("count", [1, 3, 4])
def test_spectra_are_named_and_no_empty_frame_is_left(count):
    figure = charts.spectra({f"m{i}": np.eye(8) for i in range(count)})
    shown = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in shown] == [f"m{i}: spectrum" for i in range(count)]
    assert all(not ax.axison for ax in figure.axes if not ax.get_title() and not ax.get_ylabel())
