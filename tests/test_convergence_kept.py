"""Finished work of the convergence study: it is read, and not computed twice, whatever stopped or damaged it."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.imports import ROOT
from tests.test_convergence import CONFIG, counted, small_study
from ul.base.errors import InputError
from ul.studies import convergence, surfaces
from ul.training import metrics, victim


@pytest.fixture(scope="module")
def study() -> SimpleNamespace:
    return small_study()


def stops(at: int):
    def fails(number, *_, **__):
        if number == at:
            raise KeyboardInterrupt

    return fails


def bytes_of(runs) -> list[tuple[str, bytes]]:
    return [(json.dumps(run.record), run.weights.tobytes()) for run in runs]


def test_stopped_runs_go_on_where_they_were_and_end_in_the_same_bytes(study, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, victim, "fit", stops(3))
        convergence.run_all(study.chosen, study.given, jobs=1, folder=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.safetensors"))) == 2
    trained = counted(monkeypatch, victim, "fit")
    for times in (4, 4):
        found = convergence.run_all(study.chosen, study.given, jobs=1, folder=tmp_path)
        assert bytes_of(found) == bytes_of(study.runs) and len(trained) == times


def test_stopped_transplants_go_on_where_they_were(study, tmp_path, monkeypatch):
    places = np.arange(study.runs[0].weights.shape[1])
    sets = {("lsp", seed): {f"every {n}th": places % n == 0 for n in range(2, 6)} for seed in range(3)}
    given = study.chosen, study.given, study.runs, sets
    wanted = json.dumps(convergence.transplants(*given, jobs=1))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, metrics, "accuracy", stops(6))
        convergence.transplants(*given, jobs=1, folder=tmp_path)
    scored = counted(monkeypatch, metrics, "accuracy")
    for _ in range(2):
        assert json.dumps(convergence.transplants(*given, jobs=1, folder=tmp_path)) == wanted
        assert len(scored) == 3 * 4 - 5, "a row for each seed and set, five of them kept"


SCRIPT = """
import sys
from tests.test_convergence import CONFIG
from ul.studies import convergence
chosen = convergence.planned(CONFIG)
convergence.run_all(chosen, convergence.sets(chosen), jobs=1, folder=sys.argv[1])
"""


@pytest.mark.slow
def test_killed_runs_go_on_where_they_were_and_end_in_the_same_bytes(study, tmp_path):
    kept = tmp_path / "kept"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(kept)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + 300
    while len(list(kept.glob("*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = {file: file.stat().st_mtime_ns for file in kept.glob("*.json")}
    assert len(before) < 6
    found = convergence.run_all(study.chosen, study.given, jobs=1, folder=kept)
    assert bytes_of(found) == bytes_of(study.runs)
    assert before.items() <= {file: file.stat().st_mtime_ns for file in kept.glob("*.json")}.items()


@pytest.mark.parametrize("damage", ["cut", "gone", "another's"])
def test_weights_that_are_not_as_they_were_written_are_made_again(study, tmp_path, monkeypatch, damage):
    chosen = study.chosen[:2]
    convergence.run_all(chosen, study.given, jobs=1, folder=tmp_path)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    if damage == "gone":
        first.unlink()
    else:
        first.write_bytes(first.read_bytes()[:-100] if damage == "cut" else second.read_bytes())
    trained = counted(monkeypatch, victim, "fit")
    found = convergence.run_all(chosen, study.given, jobs=1, folder=tmp_path)
    assert bytes_of(found) == bytes_of(study.runs[:2]) and len(trained) == 1


def test_a_failing_run_is_named_and_the_others_are_finished(study, tmp_path, monkeypatch):
    poisoned = study.given["lsp"].own.digest()

    def fails(_, model, train, *__, seed, **___):
        if seed == 1 and train.digest() == poisoned:
            raise RuntimeError("no\nluck")

    with monkeypatch.context() as patch:
        counted(patch, victim, "fit", fails)
        with pytest.raises(InputError, match="1 of 6 runs failed: path mnist lsp lenet5 seed 1: RuntimeError: no luck"):
            convergence.run_all(study.chosen, study.given, jobs=1, folder=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 5
    trained = counted(monkeypatch, victim, "fit")
    assert bytes_of(convergence.run_all(study.chosen, study.given, jobs=1, folder=tmp_path)) == bytes_of(study.runs)
    assert len(trained) == 1


def test_held_weights_make_it_another_run(study, tmp_path):
    keep = [np.arange(study.runs[0].weights.shape[1]) % n == 0 for n in (2, 3)]
    for mask in (None, *keep):
        masks = None if mask is None else [mask]
        convergence.run_all(study.chosen[:1], study.given, masks, jobs=1, folder=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 3


@pytest.mark.slow
def test_the_whole_study_is_read_where_it_is_finished(tmp_path, monkeypatch):
    """Runs, transplants, held runs, surfaces and flatness: nothing is computed twice."""
    monkeypatch.setattr(convergence, "biting", lambda runs: ["lsp"])
    config, file = CONFIG | {"flat_methods": ["lsp"]}, tmp_path / "paths.safetensors"
    first = convergence.study(config, paths_out=str(file), jobs=1, folder=tmp_path / "kept")
    text, stored = json.dumps(first), file.read_bytes()
    assert len(first["runs"]) == 6 and len(first["interventions"]) == 3 * (6 + 1) and len(first["flat"]) == 4
    assert first["layers"][0][1] == sum(count for _, count in first["layers"][1:])
    assert [*first["planes"]] == [*first["random"]] == [*first["between"]] == ["lsp"]
    trained = counted(monkeypatch, victim, "fit")
    drawn, scored = counted(monkeypatch, surfaces, "surface"), counted(monkeypatch, metrics, "accuracy")
    again = convergence.study(config, paths_out=str(file), jobs=1, folder=tmp_path / "kept")
    assert json.dumps(again) == text and file.read_bytes() == stored
    assert not (trained or drawn or scored)
