"""Every stage that runs a notebook is drawn anew from its record, and what cannot be drawn is named."""

import os
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import ul
from tests.imports import ROOT
from ul.base.errors import InputError
from ul.pipeline import notebooks, redrawing

PIPELINES = ("dvc.yaml", *sorted(f"profiles/{p.name}/dvc.yaml" for p in (ROOT / "profiles").iterdir()))


def written(pipeline: Path) -> list[str]:
    """The source of each notebook run that the YAML and its parameters ask for, read without DVC."""
    yaml = YAML(typ="safe", pure=True)
    found = yaml.load(pipeline)
    (used,) = found.get("vars", ["params.yaml"])
    params = yaml.load(pipeline.parent / used) if isinstance(used, str) else used
    names: list[str] = []
    for stage in found["stages"].values():
        each = params[stage["foreach"].strip("${}")] if "foreach" in stage else [None]
        words = stage.get("do", stage)["cmd"].split()
        if words[3] == "nb-run":
            names += [Path(words[4]).name] * len(each)
    return names


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_stage_that_runs_a_notebook_is_drawn_once(monkeypatch, pipeline):
    monkeypatch.chdir(ROOT)
    found = [command for wave in redrawing.waves(Path(pipeline)) for command in wave]
    words = [command.split() for _, command in found]
    assert sorted(Path(w[4]).name for w in words) == sorted(written(Path(pipeline)))
    assert len({w[5] for w in words}) == len(words), "each makes a copy of its own"
    assert {folder.resolve() for folder, _ in found} == {ROOT}
    assert all(w[:4] == redrawing.RUN.split() and "$" not in " ".join(w) for w in words)


def test_stages_that_write_a_record_can_be_drawn_from_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = [command for wave in redrawing.waves(Path("dvc.yaml")) for _, command in wave]
    sources = {command: ROOT / "notebooks" / Path(command.split()[4]).name for command in commands}
    drawn = {command for command in commands if notebooks.RECORDED in notebooks.kinds_of(str(sources[command]))}
    assert drawn == {command for command in commands if f" -p {notebooks.RECORD} " in command} and drawn


def test_a_missing_pipeline_is_one_line(tmp_path):
    done = ul("redraw", "nowhere/dvc.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: nowhere/dvc.yaml is missing; `ls profiles` shows what there is\n"


FAKE = """#!{python}
import sys
open("ran", "a").write(" ".join(sys.argv[1:]) + "\\n")
if "bad" in sys.argv[5]:
    sys.exit("error: " + sys.argv[5] + " has no record")
if "silent" in sys.argv[5]:
    sys.exit(3)
"""


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """redraw of these notebooks with a `python` that only says what it was asked for: its calls."""
    (tmp_path / "python").write_text(FAKE.format(python=sys.executable))
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def call(*waves: list[str]) -> list[str]:
        text = redrawing.RUN + " nb/{0}.ipynb out/{0}.ipynb -p text 'a b'"
        found = [[(tmp_path, text.format(name)) for name in wave] for wave in waves]
        monkeypatch.setattr(redrawing, "waves", lambda _: found)
        try:
            redrawing.redraw(Path("dvc.yaml"), 1)
        finally:
            call.asked = (tmp_path / "ran").read_text().splitlines()
        return call.asked

    return call


def test_stages_that_read_what_others_write_come_after_them(monkeypatch):
    monkeypatch.chdir(ROOT)
    place = {}
    for i, wave in enumerate(redrawing.waves(Path("dvc.yaml"))):
        place |= {Path(command.split()[4]).name[:2]: i for _, command in wave}
    assert place["01"] < place["04"] < place["05"] < place["08"]
    assert place["07"] > max(place[name] for name in ("02", "03", "04")) and place["06"] > place["04"]


def test_commands_run_from_records_wave_by_wave(drawn, capsys):
    asked = drawn(["04_sal-a", "01_poison"], ["05_benchmark"])
    assert [line.split()[3] for line in asked] == ["nb/04_sal-a.ipynb", "nb/01_poison.ipynb", "nb/05_benchmark.ipynb"]
    assert all(line.startswith("-m ul nb-run ") and line.endswith("-p text a b --recorded") for line in asked)
    assert "out/04_sal-a.ipynb: drawn\n" in capsys.readouterr().out


def test_what_failed_is_named_and_the_rest_is_drawn(drawn, capsys):
    with pytest.raises(InputError, match=r"^2 notebooks were not drawn: out/bad\.ipynb, out/silent\.ipynb$"):
        drawn(["bad", "silent", "04_sal-a"], ["05_benchmark"])
    assert len(drawn.asked) == 4
    shown = capsys.readouterr().out
    assert "out/bad.ipynb: error: out/bad.ipynb has no record\n" in shown
    assert "out/silent.ipynb: exit status 3\n" in shown and "out/05_benchmark.ipynb: drawn\n" in shown
