"""Records and figures on disk: whole or not at all, the same bytes for the same content."""

import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from ul import figures, records
from ul.config import InputError

# ---- records -----------------------------------------------------------------------------------------------------


def test_records_come_back(tmp_path):
    record = {"config": {"method": "em", "seed": 0, "out": None}, "accuracy": 0.5, "sal": [[1e-9, 2.0], [0.25, 3e8]]}
    assert records.load(records.save(record, tmp_path / "deep" / "er" / "a.json")) == record


def test_order_of_keys_does_not_show(tmp_path):
    first = records.save({"a": 1, "b": {"x": 1, "y": 2}}, tmp_path / "1.json").read_bytes()
    assert first == records.save({"b": {"y": 2, "x": 1}, "a": 1}, tmp_path / "2.json").read_bytes()
    assert first.endswith(b"}\n")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [lambda x: {"a": x}, lambda x: {"a": [1.0, {"b": (x,)}]}])
def test_numbers_that_are_none_are_refused(tmp_path, bad, wrap):
    with pytest.raises(ValueError, match="JSON"):
        records.save(wrap(bad), tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "kept"),
    [(1 / 3, 0.333333), (2e-12 / 3, 6.66667e-13), (123456789.0, 123457000.0), (-0.12345678, -0.123457), (7, 7),
     (123456789, 123456789), (np.float64(1 / 3), 0.333333), (True, True), ((0.1 + 0.2,), [0.3]), ("0.1234567",) * 2],
)  # fmt: skip
def test_floats_keep_six_digits(value, kept):
    assert records.rounded({"x": value}) == {"x": kept}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.json is missing; run"),
        ("{", "not a JSON record"),
        ("", "not a JSON record"),
        ("\xff", "a JSON record"),
    ],
)
def test_unreadable_records_name_the_mend(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=f"{message}.*dvc repro"):
        records.load(tmp_path / "a.json")


@pytest.mark.parametrize("existing", [b"old", None])
def test_interrupted_writes_leave_what_was_there(tmp_path, monkeypatch, existing):
    path = tmp_path / "a.json"
    if existing:
        path.write_bytes(existing)
    seen = []

    def fail(source, target):
        seen.append(source.read_bytes())
        raise KeyboardInterrupt

    monkeypatch.setattr(records.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        records.save({"a": 1}, path)
    assert json.loads(seen[0]) == {"a": 1}  # whole before it takes its name
    assert [p.name for p in tmp_path.iterdir()] == (["a.json"] if existing else [])
    assert not existing or path.read_bytes() == existing


def test_digest_depends_on_values_shapes_and_types():
    base = np.arange(6, dtype=np.int64)
    bytes_of = b"".join(n.to_bytes(8, "little") for n in range(6))
    assert records.digest(base) == hashlib.sha256(b"int64(6,)" + bytes_of).hexdigest()[:16]
    others = [base[::-1].copy(), base.reshape(2, 3), base.astype(np.int32), base[:5]]
    assert len({records.digest(x) for x in [base, *others]}) == 5
    assert records.digest(base, base + 1) != records.digest(base + 1, base)
    assert records.digest(np.arange(12).reshape(3, 4).T) == records.digest(np.arange(12).reshape(3, 4).T.copy())


def test_versions_are_those_installed():
    found = records.versions()
    assert found["numpy"] == np.__version__ and found["pandas"] == pd.__version__
    assert found["python"] == sys.version.split()[0]


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("total", [1, 7, 25])
def test_progress_yields_every_item(tmp_path, monkeypatch, capsys, noted, total):
    monkeypatch.delenv(records.PROGRESS, raising=False)
    log = tmp_path / "log"
    if noted:
        monkeypatch.setenv(records.PROGRESS, str(log))
    assert list(records.progress((i * i for i in range(total)), "squares", total)) == [i * i for i in range(total)]
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = log.read_text().splitlines() if noted else []
    assert lines[-1:] == ([f"squares: {total}/{total}"] if noted else [])
    assert len(lines) <= 14
    assert ("squares" in shown.err) != noted


def test_notes_without_a_progress_file_go_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(records.PROGRESS, raising=False)
    monkeypatch.chdir(tmp_path)
    records.note("line")
    assert capsys.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


# ---- figures -----------------------------------------------------------------------------------------------------

DRAW = """
import sys, numpy as np
from matplotlib import pyplot as plt
from ul import figures
figures.use_style()
figure, ax = plt.subplots()
figures.curves(ax, {"em": np.array([[1.0, 2.0], [2.0, 4.0]])}, ylabel="loss")
figures.save(figure, sys.argv[1])
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
    figures.save(plt.figure(), None)
    assert list(tmp_path.iterdir()) == []


def test_style_ends_with_its_block():
    before = plt.rcParams["font.size"]
    with figures.style():
        assert plt.rcParams["font.size"] == figures.STYLE["font.size"] != before
    assert plt.rcParams["font.size"] == before


def test_methods_keep_their_own_colours():
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    assert figures.colour("em") == figures.COLOURS["em"]
    assert figures.colour("unheard of") not in figures.COLOURS.values()


def test_gallery_has_a_named_row_for_each_entry():
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)
    figure = figures.gallery({"clean": images, "em": 255 - images, "grey": images[:, :1]})
    assert len(figure.axes) == 9
    assert [ax.texts[0].get_text() for ax in figure.axes[::3]] == ["clean", "em", "grey"]
    assert np.array_equal(figure.axes[1].images[0].get_array(), images[1].transpose(1, 2, 0))


def test_heat_maps_show_layers_epochs_and_the_threshold():
    sal = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])  # two epochs, three layers
    figure = figures.heat_maps({"clean": sal, "em": sal / 100}, ["a", "b", "c"], [1, 30], beta=0.35)
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
    figure = figures.heat_maps({"clean": np.array([[0.1, 0.2]])}, ["a", "b"], [1], beta=None)
    assert len(figure.axes[0].lines[0].get_xydata()) == 0


def frame() -> pd.DataFrame:
    rows = [("em", 5, 0.1, 0.05, 0.2), ("tap", 3, 1.6, 1.2, 2.0), ("lsp", 1, 0.4, np.nan, np.nan)]
    return pd.DataFrame(rows, columns=["method", "n", "ud", "ud_low", "ud_high"])


def test_intervals_draw_first_rows_on_top_with_their_n():
    _, ax = plt.subplots()
    assert figures.intervals(ax, frame(), "ud", label="UD", ratio=True) is ax
    assert [t.get_text() for t in ax.get_yticklabels()] == ["lsp (n=1)", "tap (n=3)", "em (n=5)"]
    assert ax.get_xlabel() == "UD"
    points = [container.lines[0].get_xydata()[0].tolist() for container in ax.containers]
    assert points == [[0.4, 0], [1.6, 1], [0.1, 2]]
    ends = ax.containers[1].lines[2][0].get_segments()[0][:, 0]
    assert ends == pytest.approx([1.2, 2.0])


def test_curves_show_mean_and_range():
    _, ax = plt.subplots()
    values = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]])
    assert figures.curves(ax, {"em": values, "clean": values[0]}, ylabel="accuracy") is ax
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
    assert figures.scatter(ax, points, x="ud", y="accuracy", labels=("UD", "test accuracy")) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("UD", "test accuracy")
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert drawn == {"em": [[0.1, 0.2], [0.3, 0.4], [0.5, 0.2]], "tap": [[1.5, 0.1]]}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["em", "tap"]
    assert ax.lines[0].get_marker() != ax.lines[1].get_marker()


def test_spectrum_finds_a_planted_wave():
    _, ax = plt.subplots()
    wave = np.cos(2 * np.pi * 3 * np.arange(16) / 16)  # three cycles across
    figures.spectrum(ax, np.broadcast_to(wave, (2, 3, 16, 16)), name="em")
    picture = ax.images[0]
    row, column = np.unravel_index(np.argmax(picture.get_array()), (16, 16))
    assert row == 8 and abs(column - 8) == 3
    assert "cycles" in ax.get_xlabel() and "em" in ax.get_title()


def test_rankings_have_a_row_a_choice():
    values = pd.DataFrame({"em": [0.1, -0.5], "ar": [0.2, np.nan]}, index=["default", "other"])
    table = pd.DataFrame({"tau": [1.0, 0.2], "tau_low": [np.nan, -3.0], "tau_high": [np.nan, 3.4]}, index=values.index)
    table = table.join(table.add_prefix("accuracy_"))
    left, right = figures.rankings(values, table).axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["default", "other"] and left.yaxis_inverted()
    assert right.get_xlim() == (-1.05, 1.05)
