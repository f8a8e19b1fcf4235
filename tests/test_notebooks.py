"""Notebooks as stages: what cleaning keeps, which parameters pass, what a run leaves behind; and the command line."""

import json
import os
import re
from functools import partial

import nbformat
import pytest

from tests.conftest import planted_rooms, ul
from ul.base import arithmetic
from ul.base.errors import InputError
from ul.pipeline import commands, notebooks
from ul.render import renderer

PROGRESS = """from ul.base.records import note, progress
squares = [i * i for i in progress(range(n), 'squares', n)]
squares"""


def notebook(*sources: str, tags: str | None = "parameters"):
    """Code cells, the first tagged, after one line of text; ids, counters and outputs as an editor leaves them."""
    cells = [nbformat.v4.new_markdown_cell("# Squares", metadata={"tags": ["title"], "editable": True})]
    for count, source in enumerate(sources, 7):
        output = nbformat.v4.new_output("stream", name="stdout", text="old\n")
        cells.append(nbformat.v4.new_code_cell(source, execution_count=count, outputs=[output], metadata={"x": 1}))
    if tags:
        cells[1].metadata["tags"] = [tags]
    metadata = {"kernelspec": {"name": "mine", "display_name": "Mine"}, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def written(path, *sources: str) -> str:
    nbformat.write(notebooks.cleaned(notebook(*sources)), path)
    return str(path)


# ---- cleaned sources ---------------------------------------------------------------------------------------------


def test_cleaning_keeps_code_text_and_tags_only():
    first, second = (notebooks.cleaned(notebook("n = 1", "n + 1")) for _ in range(2))
    assert first == second  # random ids are gone
    assert [c.source for c in first.cells] == ["# Squares", "n = 1", "n + 1"]
    assert [dict(c.metadata) for c in first.cells] == [{"tags": ["title"]}, {"tags": ["parameters"]}, {}]
    assert all(c.outputs == [] and c.execution_count is None for c in first.cells[1:])
    assert first.metadata.kernelspec.name == "python3" and "language_info" not in first.metadata


def executed(number: int):
    """The same run as papermill would leave it, but for what changes from run to run."""
    book = notebook("n = 1", "n = 2", "n", tags="injected-parameters")
    book.metadata.papermill = {"start_time": number, "end_time": number, "duration": number, "output_path": f"{number}"}
    book.metadata.papermill.update(parameters={"n": 2})
    book.metadata[notebooks.CLOSURE] = {"closure": {"ul/base/ud.py": f"{number:016x}"}}
    text = f"<object at 0x7f00000{number:05x}>"
    for i, cell in enumerate(book.cells):
        cell.metadata.papermill = {"status": "completed", "duration": number}
        cell.metadata.execution = {"iopub.execute_input": str(number)}
        cell.id = f"c{i}"
    book.cells[1].id = f"random-{number}"
    warning = f"/tmp/ipykernel_{number}/1234.py:1: Warning at 0x{number:012x}\n"
    book.cells[2].outputs = [nbformat.v4.new_output("stream", name="stderr", text=warning)]
    book.cells[3].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": text, "image/png": "iVBO"})]
    return book


def test_stable_copies_do_not_depend_on_the_run():
    assert executed(11) != executed(22)
    first, second = (nbformat.writes(notebooks.stable(executed(number))) for number in (11, 22))
    assert first == second and "closure" not in first
    for kept in ("injected-parameters", '"n": 2', "iVBO", "Warning", "1234.py"):
        assert kept in first


# ---- parameters --------------------------------------------------------------------------------------------------


def test_defaults_are_the_literals_of_the_tagged_cell():
    source = "method = 'em'  # a name\nepochs: int = 30\nlr = -1e-3\nout = None\nflags: list = [1, 'a']"
    found = notebooks.defaults(notebook(source, "other = 1"))
    assert found == {"method": "em", "epochs": 30, "lr": -0.001, "out": None, "flags": [1, "a"]}


@pytest.mark.parametrize("source", ["n = len('abc')", "n = ", "n: int", "x.y = 1"])
def test_defaults_that_are_no_literals(source):
    with pytest.raises(notebooks.NotebookError, match="name = literal"):
        notebooks.defaults(notebook(source))


@pytest.mark.parametrize("tags", [None, "other"])
def test_notebooks_need_a_parameters_cell(tags):
    with pytest.raises(notebooks.NotebookError, match="one cell tagged `parameters`, this one has 0"):
        notebooks.defaults(notebook("n = 1", tags=tags))


KNOWN = {"n": "int", "rate": "float", "name": "str", "out": notebooks.ANY, "flag": "bool", "many": "list[int]"}


def test_types_are_the_annotations_and_else_the_defaults():
    source = "n = 3\nrate: float = 1\nout = None\nwho: list[str] = []\nmaybe: 'int or None' = None\nany = []"
    found = notebooks.kinds(notebook(source))
    assert found == {
        "n": "int", "rate": "float", "out": notebooks.ANY, "who": "list[str]", "maybe": "int or None", "any": "list",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [("n", 4), ("rate", 2), ("rate", 0.25), ("name", "no"), ("out", None), ("out", "x"), ("out", 3), ("flag", True),
     ("many", [])],
)  # fmt: skip
def test_parameters_of_the_right_type_pass(name, value):
    assert notebooks.checked({name: value}, KNOWN, "x.ipynb") == {name: value}


def test_whole_numbers_become_floats_where_the_default_is_one():
    assert type(notebooks.checked({"rate": 2}, KNOWN, "x.ipynb")["rate"]) is float


@pytest.mark.parametrize(
    ("name", "value"),
    [("name", 1), ("n", "1.5"), ("n", 1.5), ("n", True), ("rate", True), ("rate", "1e-3"), ("flag", 1), ("n", None),
     ("flag", "false"), ("out", [1]), ("many", "1"), ("many", ["1"])],
)  # fmt: skip
def test_parameters_of_another_type_are_refused(name, value):
    line = f"x.ipynb: parameter {name} must be {re.escape(KNOWN[name])}, .*{re.escape(repr(value))}"
    with pytest.raises(notebooks.NotebookError, match=line):
        notebooks.checked({name: value}, KNOWN, "x.ipynb")


def test_unknown_parameters_list_the_known_ones():
    with pytest.raises(
        notebooks.NotebookError, match="unknown parameter epoch, lr; there are flag, many, n, name, out, rate"
    ):
        notebooks.checked({"lr": 1, "n": 1, "epoch": 1}, KNOWN, "x.ipynb")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1e-05", 1e-5), ("no", "no"), ("on", "on"), ("true", True), ("null", None), ("[1, 2]", [1, 2]),
     ("'7'", "7"), ("7", 7), ("em", "em")],
)  # fmt: skip
def test_values_are_read_as_yaml_1_2(tmp_path, text, value):
    (tmp_path / "params.yaml").write_text(f"sal: {{rooms: {{x: {text}}}}}\n")
    from_file = notebooks.parameters_from([f"{tmp_path}/params.yaml:sal.rooms"], [])
    from_pair = notebooks.parameters_from([], [("x", text)])
    assert from_file == from_pair == {"x": value}
    assert type(from_file["x"]) is type(from_pair["x"]) is type(value)


def test_pairs_override_sections_and_later_sections_earlier_ones(tmp_path):
    (tmp_path / "p.yaml").write_text("a: {x: 1, y: 1, z: 1}\nb: {y: 2, z: 2}\n")
    found = notebooks.parameters_from([f"{tmp_path}/p.yaml:a", f"{tmp_path}/p.yaml:b"], [("z", "3")])
    assert found == {"x": 1, "y": 2, "z": 3}


@pytest.mark.parametrize("key", ["nothing", "a.nothing", "a.x.deep", "a.x", "empty", "word", "list"])
def test_sections_that_hold_no_parameters(tmp_path, key):
    (tmp_path / "p.yaml").write_text("a: {x: 1}\nempty:\nword: abc\nlist: [1]\n")
    with pytest.raises(notebooks.NotebookError, match=f"p.yaml:{key}: no section"):
        notebooks.parameters_from([f"{tmp_path}/p.yaml:{key}"], [])


def test_damaged_yaml_is_one_line(tmp_path):
    (tmp_path / "p.yaml").write_text("a: [1\nb: }\n")
    with pytest.raises(notebooks.NotebookError) as caught:
        notebooks.parameters_from([f"{tmp_path}/p.yaml:a"], [])
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(notebooks.NotebookError, match=r"-p x: .* is not YAML"):
        notebooks.parameters_from([], [("x", "[1")])


def test_missing_profile(tmp_path):
    with pytest.raises(notebooks.NotebookError, match=r"gpu/params.yaml is missing: unknown profile"):
        notebooks.parameters_from([f"{tmp_path}/gpu/params.yaml:sal"], [])


# ---- runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """notebooks.run with its logs in tmp_path and the environment restored afterwards."""
    for name in notebooks.ENVIRONMENT | arithmetic.settings():
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def call(source: str, target: str, **parameters):
        notebooks.run(source, str(tmp_path / target), parameters, logs=tmp_path / "logs")

    return call


def test_a_run_is_byte_stable_and_keeps_progress_out(tmp_path, run, capfd):
    source = written(tmp_path / "s.ipynb", "n = 2", PROGRESS, "print(object())\nnote('a note')")
    run(source, "a.ipynb", n=4)
    run(source, "b.ipynb", n=4)
    text = (tmp_path / "a.ipynb").read_text()
    assert text == (tmp_path / "b.ipynb").read_text()
    assert "[0, 1, 4, 9]" in text and "<object object at 0x0>" in text
    outputs = json.dumps([c.get("outputs") for c in json.loads(text)["cells"]])
    lines = next((tmp_path / "logs").glob("*a.log")).read_text().splitlines()
    left = [f"squares: {i}/4, about 0 s left" for i in range(1, 4)]
    assert lines[:5] == [*left, "squares: 4/4", "a note"]
    assert "squares: 4/4" not in outputs and "a note" not in outputs
    assert "squares: 4/4" in capfd.readouterr().err  # the terminal sees it as well


FAILING = {
    "error": (
        "from ul.base.errors import InputError\nraise InputError('a.npz: bad; mend it')",
        "cell .*: .*bad; mend it",
    ),
    "exit": ("import sys\nsys.exit(0)", "stopped before its last cell"),
    "exit 3": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "killed": ("import os\nos._exit(9)", "kernel died"),
}


@pytest.mark.parametrize(("cell", "message"), FAILING.values(), ids=FAILING)
def test_failed_cells_leave_no_target(tmp_path, run, cell, message):
    source = written(tmp_path / "s.ipynb", "n = 2", cell, "print('after')")
    (tmp_path / "out").mkdir()
    with pytest.raises(notebooks.NotebookError, match=message) as caught:
        run(source, "out/a.ipynb")
    assert len(str(caught.value).splitlines()) == 1
    assert source in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("parameters", [{"m": 1}, {"n": "2"}])
def test_wrong_parameters_fail_before_anything_runs(tmp_path, run, parameters):
    source = written(tmp_path / "s.ipynb", "n = 2", f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(notebooks.NotebookError, match="parameter"):
        run(source, "a.ipynb", **parameters)
    assert {p.name for p in tmp_path.iterdir()} == {"s.ipynb"}


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is missing"), ("{", "not a notebook"), ("", "not a notebook")]
)
def test_sources_that_are_no_notebooks(tmp_path, run, content, message):
    if content is not None:
        (tmp_path / "s.ipynb").write_text(content)
    with pytest.raises(notebooks.NotebookError, match=message):
        run(str(tmp_path / "s.ipynb"), "a.ipynb")


# ---- drawn from a record -----------------------------------------------------------------------------------------

STUDY = "record: 'str or None' = None\nrecorded: 'str or None' = None\nn = 2"
DRAWN = """from pathlib import Path
from ul.base.records import study
def make():
    Path("made").open("a").write("once\\n")
    return {"third": n / 3}
study(make, record=record, recorded=recorded)"""
RECORDED = {"record": "str or None", "recorded": "str or None", "n": "int"}


def test_a_copy_drawn_from_a_record_has_the_bytes_of_the_one_that_ran(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = written(tmp_path / "s.ipynb", STUDY, DRAWN)
    parameters = {"n": 1, "record": "r.json"}
    run(source, "ran.ipynb", **parameters)
    stored = (tmp_path / "r.json").read_bytes()
    run(source, "drawn.ipynb", **notebooks.redrawn(parameters, notebooks.kinds_of(source)))
    assert (tmp_path / "drawn.ipynb").read_bytes() == (tmp_path / "ran.ipynb").read_bytes()
    assert (tmp_path / "made").read_text() == "once\n" and (tmp_path / "r.json").read_bytes() == stored
    text = (tmp_path / "ran.ipynb").read_text()
    assert "'third': 0.333333" in text, "as the file holds it"
    assert 'record = \\"r.json\\"' in text and 'recorded = \\"' not in text


def test_a_notebook_is_redrawn_from_the_record_that_it_would_write(tmp_path):
    (tmp_path / "r.json").write_text("{}")
    given = {"n": 1, "record": f"{tmp_path}/r.json"}
    assert notebooks.redrawn(given, RECORDED) == given | {"recorded": given["record"]}
    assert "recorded" not in given


def test_a_notebook_without_a_record_is_left_alone():
    assert notebooks.redrawn({"n": 1}, {"n": "int"}) == {"n": 1}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "record is not given, so there is nothing to draw from; name it with -p record FILE"),
        ({"record": None}, "record is not given"),
        ({"record": "nowhere/r.json"}, "nowhere/r.json is missing; restore it with git, or run `dvc repro`"),
        ({"record": 3}, "3 is missing"),
    ],
)
def test_nothing_to_draw_from_is_one_line(given, line):
    with pytest.raises(InputError, match=f"^{re.escape(line)}") as caught:
        notebooks.redrawn(given, RECORDED)
    assert len(str(caught.value).splitlines()) == 1


# ---- command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def main(tmp_path, monkeypatch):
    """The command line in this process: `main("info", …)` with tmp_path as working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        monkeypatch.setattr("sys.argv", ["ul", *map(str, args)])
        commands.main()

    return call


def test_info_counts_what_is_there(tmp_path, main, capsys):
    planted_rooms(tmp_path)
    main("info", "rooms", "--root", tmp_path)
    shown = capsys.readouterr().out
    for part in ("train", "val", "test"):
        assert f"{part}: 1 images (3, 8, 8)" in shown


def test_verify_prints_the_contents_of_whole_data(tmp_path, main, capsys):
    planted_rooms(tmp_path)
    main("verify", "rooms", "--root", tmp_path)
    assert (
        len(set(re.findall(r"1 images read, all files whole, contents ([0-9a-f]{16})", capsys.readouterr().out))) == 3
    )


def test_render_never_overwrites(tmp_path, main):
    (tmp_path / "mnist").mkdir()
    with pytest.raises(SystemExit, match=r"^error: .*mnist exists; remove it"):
        main("render", "mnist", "--root", tmp_path)
    assert list((tmp_path / "mnist").iterdir()) == []


def test_render_makes_rooms_and_shows_progress(tmp_path, main, monkeypatch, capsys):
    pytest.importorskip("embreex")
    monkeypatch.setattr(renderer, "BUILDINGS", {"train": renderer.BUILDINGS["train"][:1]})
    monkeypatch.setattr(renderer, "render", partial(renderer.render, views=2, size=8))
    main("render", "rooms", "--root", tmp_path)
    shown = capsys.readouterr()
    assert "2 images" in shown.out and "2 views" in shown.err
    assert len(list((tmp_path / "rooms" / "rgb").rglob("*.png"))) == 2


@pytest.mark.parametrize(
    ("command", "choice"), [(["dance"], "nb-run"), (["info", "imagenet"], "mnist"), ([], "command"), (["nb-run"], "-p")]
)
def test_unknown_commands_and_names_list_the_choices(main, command, choice, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(*command)
    assert stopped.value.code == 2
    assert choice in capsys.readouterr().err


def refused(done, *parts: str) -> None:
    """Exit status 1 and one line on stderr."""
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_verify_names_the_damaged_file(tmp_path):
    planted_rooms(tmp_path)
    path = next((tmp_path / "rooms" / "rgb").rglob("*.png"))
    path.write_bytes(path.read_bytes()[:60])
    refused(ul("verify", "rooms", "--root", tmp_path, cwd=tmp_path), str(path), "fetch the file again")


def test_nb_run_refuses_unknown_parameters(tmp_path):
    source = written(tmp_path / "s.ipynb", "n = 2", "n")
    refused(ul("nb-run", source, "a.ipynb", "-p", "m", "1", cwd=tmp_path), "unknown parameter m; there are n")
    assert {p.name for p in tmp_path.iterdir()} == {"s.ipynb"}


def test_nb_run_draws_from_the_record(tmp_path):
    source = written(tmp_path / "s.ipynb", STUDY, DRAWN)
    (tmp_path / "r.json").write_text('{"third": 7}')
    done = ul("nb-run", source, "a.ipynb", "-p", "record", "r.json", "--recorded", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "'third': 7" in (tmp_path / "a.ipynb").read_text() and not (tmp_path / "made").exists()


def test_nb_run_says_that_a_record_is_missing(tmp_path):
    source = written(tmp_path / "s.ipynb", STUDY, DRAWN)
    words = ("nb-run", source, "a.ipynb", "--recorded")
    refused(ul(*words, "-p", "record", "r.json", cwd=tmp_path), "r.json is missing; restore it with git")
    refused(ul(*words, cwd=tmp_path), "record is not given")
    assert {p.name for p in tmp_path.iterdir()} == {"s.ipynb"}
