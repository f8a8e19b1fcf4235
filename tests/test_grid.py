"""Many runs: the same records wherever they run, finished ones survive whatever stops the rest, failures are named."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from tests.imports import ROOT
from tests.test_benchmark import SETTINGS
from ul import benchmark, grid, kept, records, validation
from ul.config import InputError

TINY = SETTINGS | {"root": str(ROOT / "data"), "epochs": 1, "probe_epochs": 1, "limit": 32}


def cells(methods=("noise",), **changes):
    return grid.conditions(TINY | changes, methods)


def text(found) -> str:
    return json.dumps(found, sort_keys=True)


@pytest.fixture(scope="module")
def serial():
    return grid.run_all(cells(), jobs=1)


# ---- Which cells ---------------------------------------------------------------------------------------------------


def test_conditions_hold_both_kinds_of_twins_once():
    found = [(c.method, c.defense, c.seed) for c in cells(["lsp", "noise"], defense="jpeg")]
    wanted = [("clean", "none"), ("clean", "jpeg"), ("lsp", "jpeg"), ("noise", "jpeg")]
    assert found == [(m, d, s) for m, d in wanted for s in range(2)]
    assert len(cells(["clean", "lsp"])) == 4, "without a defense the twins are one"
    assert {c.method for c in grid.conditions(TINY, ["lsp"], baseline=False)} == {"lsp"}


def test_poisons_are_read_from_a_folder():
    found = grid.conditions(TINY, ["lsp", "em"], poisons="there")
    files = {c.method: c.poison for c in found}
    assert files == {"clean": None, "lsp": "there/rooms-lsp.npz", "em": "there/rooms-em.npz"}


@pytest.mark.parametrize(
    "methods, options, changes, message",
    [
        (["lsp", "lsp"], {}, {}, "lsp comes twice among the methods"),
        (["lsp"], {"poisons": "there"}, {"poison": "mine.npz"}, "poison is mine.npz: one file is one method"),
        (["lsp", "em"], {}, {"poison": "mine.npz"}, "poison is mine.npz: one file is one method"),
        (["clean"], {}, {"poison": "mine.npz"}, "poison is mine.npz, but method is clean"),
    ],
)
def test_contradictory_conditions_are_refused(methods, options, changes, message):
    with pytest.raises(InputError, match=message):
        grid.conditions(TINY | changes, methods, **options)


def test_a_users_file_is_a_method_of_its_own():
    found = grid.conditions(TINY | {"poison": "mine.npz"}, ["lsp"])
    assert [(c.method, c.poison) for c in found] == [("clean", None)] * 2 + [("own", "mine.npz")] * 2


# ---- Finished cells ------------------------------------------------------------------------------------------------


def test_finished_runs_are_read_and_not_trained(tmp_path, serial, monkeypatch):
    first = grid.run_all(cells(), jobs=1, store=tmp_path)
    assert text(first) == text(serial) and len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(benchmark, "run", None)
    assert text(grid.run_all(cells(), jobs=1, store=tmp_path)) == text(serial)


def test_a_damaged_record_is_made_again(tmp_path, serial):
    grid.run_all(cells(), jobs=1, store=tmp_path)
    for n, file in enumerate(sorted(tmp_path.iterdir())):
        file.write_bytes(file.read_bytes()[: 50 * n])
    assert text(grid.run_all(cells(), jobs=1, store=tmp_path)) == text(serial)
    assert all(records.load(file) for file in tmp_path.iterdir())


def test_a_record_with_another_number_is_made_again(tmp_path, serial):
    """Damage that leaves a record readable: the checksum inside it tells."""
    grid.run_all(cells(), jobs=1, store=tmp_path)
    for file in tmp_path.iterdir():
        content = file.read_text()
        file.write_text(content.replace('"test_accuracy": [\n   0.', '"test_accuracy": [\n   1.'))
        assert file.read_text() != content
    assert text(grid.run_all(cells(), jobs=1, store=tmp_path)) == text(serial)


def elsewhere(cell, model, images):
    return {}


def test_scores_at_the_end_are_kept(tmp_path, monkeypatch):
    scored = partial(validation.scores_of, draws=2)
    first = grid.run_all(cells()[:1], jobs=1, store=tmp_path, at_end=scored)
    assert {"certified", "recovered"} < first[0]["scores"].keys()
    grid.run_all(cells()[:1], jobs=1, store=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # without scores it is another record
    monkeypatch.setattr(benchmark, "run", None)
    assert text(grid.run_all(cells()[:1], jobs=1, store=tmp_path, at_end=scored)) == text(first)


@pytest.mark.parametrize("at_end", [elsewhere, partial(elsewhere), lambda *_: {}])
def test_scores_of_code_that_no_hash_covers_are_not_kept(tmp_path, at_end):
    """An edit of it would not be seen."""
    with pytest.raises(ValueError, match=r"tests\.test_grid\.\S+ is no function of scores or validation"):
        grid.run_all(cells()[:1], jobs=1, store=tmp_path, at_end=at_end)
    assert not list(tmp_path.iterdir())


def test_whatever_changes_numbers_changes_the_identity(monkeypatch):
    cell = cells()[-1]
    images = benchmark.poisoned(cell)
    base = grid.identity(cell, images, {})
    others = [replace(cell, seed=7), replace(cell, probes=(2,)), replace(cell, defense="jpeg"), replace(cell, eps=0.1)]
    others += [replace(cell, recipe=replace(cell.recipe, lr=0.3)), replace(cell, sal=replace(cell.sal, steps=3))]
    found = [grid.identity(c, images, {}) for c in others]
    found += [grid.identity(cell, benchmark.poisoned(cells()[0]), {}), grid.identity(cell, images, {"a": cell.sal})]
    scored = validation.scores_of
    found += [grid.identity(cell, images, {}, e) for e in (scored, partial(scored, draws=2), partial(scored, 2))]
    for name, value in (("code", "other code"), ("machine", ["cuda", {}, ""])):
        with monkeypatch.context() as patch:
            patch.setattr(kept, name, lambda *_, value=value: value)
            found.append(grid.identity(cell, images, {}))
    with monkeypatch.context() as patch:
        clean, test = benchmark.splits(cell)
        patch.setattr(benchmark, "splits", lambda _: (clean, test.take(torch.arange(5))))
        found.append(grid.identity(cell, images, {}))
    assert len({base, *found}) == len(found) + 1


def test_the_same_images_from_a_file_are_the_same_run():
    cell = cells()[-1]
    images = benchmark.poisoned(cell)
    assert grid.identity(replace(cell, poison="mine.npz"), images, {}) == grid.identity(cell, images, {})


def test_a_record_of_another_machine_is_made_again(tmp_path, serial):
    grid.run_all(cells(), jobs=1, store=tmp_path)
    for file in tmp_path.iterdir():
        record = records.load(file)
        del record["seal"]
        other = record | {"versions": record["versions"] | {"torch": "1.0"}, "history": {}}
        records.save(kept.sealed(other), file)
    assert text(grid.run_all(cells(), jobs=1, store=tmp_path)) == text(serial)


def test_failures_are_named_and_the_others_finished(tmp_path, monkeypatch):
    real = benchmark.run

    def failing(cell, *args, **options):
        if (cell.method, cell.seed) == ("noise", 0):
            raise RuntimeError("no\nluck")
        return real(cell, *args, **options)

    monkeypatch.setattr(benchmark, "run", failing)
    message = r"1 of 4 runs failed: rooms noise resnet8 none seed 0: RuntimeError: no luck"
    with pytest.raises(InputError, match=message):
        grid.run_all(cells(), jobs=1, store=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(InputError, match=message) as caught:  # kept even if nobody asked for it
        grid.run_all(cells(), jobs=1)
    folder = Path(str(caught.value).rpartition("kept in ")[2].rstrip(")"))
    assert len(list(folder.iterdir())) == 3
    shutil.rmtree(folder)
    monkeypatch.setattr(benchmark, "run", real)
    assert len(grid.run_all(cells(), jobs=1, store=tmp_path)) == 4


def test_a_poison_that_cannot_be_made_stops_its_own_runs_only(tmp_path):
    chosen = grid.conditions(TINY, ["lsp"], poisons=str(tmp_path))
    with pytest.raises(InputError, match=r"2 of 4 runs failed: .*rooms-lsp\.npz is missing"):
        grid.run_all(chosen, jobs=1, store=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="unknown backend 'slurm'; choose from dask, processes, ray"):
        grid.run_all(cells(), backend="slurm")


# ---- Where they run ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend, package", [("processes", None), ("dask", "distributed"), ("ray", "ray")])
def test_every_backend_gives_the_serial_records(backend, package, serial, tmp_path):
    if package:
        pytest.importorskip(package, reason="the extra `cluster` is not installed")
    found = grid.run_all(cells(), jobs=2, backend=backend, store=tmp_path / "kept")
    assert text(found) == text(serial) and len(list((tmp_path / "kept").iterdir())) == 4


SCRIPT = """
import sys
from tests.test_grid import cells
from ul import grid
if __name__ == "__main__":
    grid.run_all(cells(seeds=4), jobs=2, backend=sys.argv[1], store=sys.argv[2])
"""


def started(backend, kept, tmp_path) -> subprocess.Popen:
    """A run of eight cells in processes of its own, once two of them are finished."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), backend, str(kept)], cwd=ROOT, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while len(list(kept.glob("*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def completes(kept) -> None:
    """The same call again finishes what is left, and touches nothing that is there."""
    before = {file.name: file.stat().st_mtime_ns for file in kept.glob("*.json")}
    found = grid.run_all(cells(seeds=4), jobs=1, store=kept)
    assert text(found) == text(grid.run_all(cells(seeds=4), jobs=1))
    assert before.items() <= {file.name: file.stat().st_mtime_ns for file in kept.glob("*.json")}.items()


def busiest(process: subprocess.Popen) -> psutil.Process:
    """The worker that computes; beside Ray's own (called ray::TASK) there are servers that may be busy too."""
    below = psutil.Process(process.pid).children(recursive=True)
    workers = [p for p in below if " ".join(p.cmdline()).startswith("ray::")] or below
    return max(workers, key=lambda p: p.cpu_times().user)


LOST = {"processes": "TerminatedWorkerError", "ray": "ActorDiedError"}  # what the backend raises


@pytest.mark.slow
def test_a_killed_run_loses_no_finished_cell(tmp_path):
    process = started("processes", tmp_path / "kept", tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    completes(tmp_path / "kept")


@pytest.mark.slow
@pytest.mark.parametrize("backend, package", [("processes", None), ("dask", "distributed"), ("ray", "ray")])
def test_a_killed_worker_loses_no_finished_cell(backend, package, tmp_path):
    """Dask sends its cell to another worker; processes and Ray's actors end in one line that says what to do."""
    if package:
        pytest.importorskip(package, reason="the extra `cluster` is not installed")
    process = started(backend, tmp_path / "kept", tmp_path)
    busiest(process).kill()
    _, errors = process.communicate(timeout=300)
    if backend in LOST and process.returncode:
        assert f"a worker is lost ({LOST[backend]}" in errors and "finished runs are kept in" in errors
    else:
        assert process.returncode == 0, errors[-2000:]
    completes(tmp_path / "kept")


def test_progress_names_every_defense():
    chosen = [replace(benchmark.cells(SETTINGS)[0], defense=name) for name in ("none", "jpeg", "none")]
    assert grid._label(chosen) == "rooms resnet8 none/jpeg"
