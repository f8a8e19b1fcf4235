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

import joblib
import numpy as np
import psutil
import pytest
import torch

from tests.imports import ROOT
from tests.test_victims import MACHINE, SETTINGS
from ul.base import closure, records
from ul.base.errors import InputError
from ul.studies import conditions, executor, images, processes, rival_scores, store, victims
from ul.studies.conditions import of
from ul.studies.executor import Failure, Job

TINY = SETTINGS | {"root": str(ROOT / "data"), "epochs": 1, "probe_epochs": 1, "limit": 32}


def runs(methods=("noise",), **changes):
    return conditions.several(TINY | changes, methods)


def text(found) -> str:
    return json.dumps(found, sort_keys=True)


@pytest.fixture(scope="module")
def serial():
    return conditions.run_all(runs(), jobs=1)


# ---- Which runs ----------------------------------------------------------------------------------------------------


def test_conditions_hold_both_kinds_of_twins_once():
    found = [(run.images.method, run.defense, run.seed) for run in runs(["lsp", "noise"], defense="jpeg")]
    wanted = [("clean", "none"), ("clean", "jpeg"), ("lsp", "jpeg"), ("noise", "jpeg")]
    assert found == [(m, d, s) for m, d in wanted for s in range(2)]
    assert len(runs(["clean", "lsp"])) == 4, "without a defense the twins are one"
    assert {run.images.method for run in conditions.several(TINY, ["lsp"], baseline=False)} == {"lsp"}


def test_a_seed_draws_the_poison_too():
    """Clean runs and a user's file have no draw, so that they are one run whatever stands beside them."""
    found = conditions.several(TINY, ["lsp"]) + conditions.several(TINY | {"poison": "mine.npz"}, ["lsp"])
    draws = {(run.images.method, run.seed): run.images.poison_seed for run in found}
    assert draws == {(m, s): s * (m == "lsp") for m in ("clean", "lsp", "own") for s in range(2)}


def laid(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return str(folder)


def test_seeds_count_from_the_first_one():
    found = conditions.several(SETTINGS | {"first_seed": 3}, ["noise"], baseline=False)
    assert [(run.seed, run.images.poison_seed) for run in found] == [(3, 3), (4, 4)]
    assert found[:1] == conditions.several(SETTINGS | {"seeds": 4}, ["noise"], baseline=False)[3:], "the same run"


def test_poisons_are_read_from_a_folder(tmp_path):
    folder = laid(tmp_path, "rooms-lsp-0.npz", "rooms-lsp-1.npz", "deep/rooms-em-0.npz", "deep/rooms-em-1.npz")
    found = conditions.several(TINY, ["lsp", "em"], poisons=folder)
    files = [(run.images.method, run.seed, run.images.poison) for run in found[2:]]
    wanted = [("lsp", s, f"{folder}/rooms-lsp-{s}.npz") for s in range(2)]
    assert files == wanted + [("em", s, f"{folder}/deep/rooms-em-{s}.npz") for s in range(2)]
    assert {run.images.poison for run in found[:2]} == {None}


@pytest.mark.parametrize("names", [(), ("rooms-lsp-1.npz",), ("rooms-lsp-0.npz", "deep/rooms-lsp-0.npz")])
def test_a_poison_that_is_not_there_once_is_told_before_anything_runs(tmp_path, names):
    with pytest.raises(InputError, match=r"holds [02] files rooms-lsp-0\.npz; make it with 01_poison"):
        conditions.several(TINY, ["lsp"], poisons=laid(tmp_path, *names))


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
        conditions.several(TINY | changes, methods, **options)


def test_a_users_file_is_a_method_of_its_own():
    found = conditions.several(TINY | {"poison": "mine.npz"}, ["lsp"])
    wanted = [("clean", None)] * 2 + [("own", "mine.npz")] * 2
    assert [(run.images.method, run.images.poison) for run in found] == wanted


def test_what_makes_the_images_is_all_that_a_poison_depends_on(monkeypatch):
    """Runs that differ in anything else share the poison, without a list of what that is."""
    made = []
    real = images.of_method
    monkeypatch.setattr(images, "of_method", lambda *given: made.append(given) or real(*given))
    images._whole.cache_clear()
    run = runs(["lsp"])[-1]
    for other in (run, replace(run, seed=7, defense="jpeg", probes=(), architecture="lenet5")):
        images.poisoned(other.images)
        images.poisoned(of(other, share=0.5, label_noise=0.5).images)
    assert len(made) == 1
    images.poisoned(of(run, eps=0.5).images)
    images.poisoned(of(run, poison_seed=2).images)
    assert len(made) == 3


# ---- Finished runs -------------------------------------------------------------------------------------------------


def test_finished_runs_are_read_and_not_trained(tmp_path, serial, monkeypatch):
    first = conditions.run_all(runs(), jobs=1, folder=tmp_path)
    assert text(first) == text(serial) and len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(victims, "fit", None)
    assert text(conditions.run_all(runs(), jobs=1, folder=tmp_path)) == text(serial)


def test_a_damaged_record_is_made_again(tmp_path, serial):
    conditions.run_all(runs(), jobs=1, folder=tmp_path)
    for n, file in enumerate(sorted(tmp_path.iterdir())):
        file.write_bytes(file.read_bytes()[: 50 * n])
    assert text(conditions.run_all(runs(), jobs=1, folder=tmp_path)) == text(serial)
    assert all(records.load(file) for file in tmp_path.iterdir())


def test_a_record_with_another_number_is_made_again(tmp_path, serial):
    """Damage that leaves a record readable: the checksum inside it tells."""
    conditions.run_all(runs(), jobs=1, folder=tmp_path)
    for file in tmp_path.iterdir():
        content = file.read_text()
        file.write_text(content.replace('"test_accuracy": [\n   0.', '"test_accuracy": [\n   1.'))
        assert file.read_text() != content
    assert text(conditions.run_all(runs(), jobs=1, folder=tmp_path)) == text(serial)


ARRAYS = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3)}


def arrayed() -> dict:
    return {"a": 1 / 3, "arrays": dict(ARRAYS)}


def same(found: dict) -> bool:
    return found["a"] == 0.333333 and np.array_equal(found["arrays"]["weights"], ARRAYS["weights"])


def test_arrays_lie_beside_their_record_and_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "a.json"
    assert same(store.once(path, arrayed)) and sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors"]
    assert same(store.once(path, lambda: pytest.fail("it was made again")))
    assert same(store.once(None, arrayed))


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_arrays_are_made_again(tmp_path, damage):
    path, beside = tmp_path / "a.json", tmp_path / "a.safetensors"
    store.once(path, arrayed)
    whole = beside.read_bytes()
    if damage == "gone":
        beside.unlink()
    else:
        beside.write_bytes(whole[:-4] if damage == "cut" else whole[:-4] + b"\1\2\3\4")
    assert store.load(path) is None
    assert same(store.once(path, arrayed)) and beside.read_bytes() == whole


def elsewhere(run, model, given):
    return {}


def test_scores_at_the_end_are_kept(tmp_path, monkeypatch):
    scored = partial(rival_scores.scores_of, draws=2)
    first = conditions.run_all(runs()[:1], jobs=1, folder=tmp_path, at_end=scored)
    assert {"certified", "recovered"} < first[0]["scores"].keys()
    conditions.run_all(runs()[:1], jobs=1, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # without scores it is another record
    monkeypatch.setattr(victims, "fit", None)
    assert text(conditions.run_all(runs()[:1], jobs=1, folder=tmp_path, at_end=scored)) == text(first)


@pytest.mark.parametrize("at_end", [elsewhere, partial(elsewhere), lambda *_: {}])
def test_scores_of_code_that_no_hash_covers_are_not_kept(tmp_path, at_end):
    """An edit of it would not be seen."""
    with pytest.raises(ValueError, match=r"tests\.test_executor\.\S+ is no function of ul"):
        conditions.run_all(runs()[:1], jobs=1, folder=tmp_path, at_end=at_end)
    assert not list(tmp_path.iterdir())
    assert conditions.run_all(runs()[:1], jobs=1, at_end=at_end)[0]["scores"] == {}, "nor is anything asked to be"


def identity(run, *, given=None, also=None, at_end=None) -> str:
    return conditions.job(run, given or images.sets(run.images), also or {}, at_end).identity


def test_whatever_changes_numbers_changes_the_identity(monkeypatch):
    run = runs()[-1]
    given = images.sets(run.images)
    base = identity(run)
    others = [replace(run, seed=7), replace(run, probes=(2,)), replace(run, defense="jpeg"), of(run, eps=0.1)]
    others += [replace(run, recipe=replace(run.recipe, lr=0.3)), replace(run, sal=replace(run.sal, steps=3))]
    found = [identity(other, given=given) for other in others]
    found += [identity(run, given=images.sets(runs()[0].images)), identity(run, also={"a": run.sal})]
    scored = rival_scores.scores_of
    found += [identity(run, at_end=e) for e in (scored, partial(scored, draws=2), partial(scored, draws=3))]
    for module, name, value in ((closure, "of_functions", "other code"), (store, "machine", ["cuda", {}, ""])):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_, value=value: value)
            found.append(identity(run))
    fewer = replace(given, test=given.test.take(torch.arange(5)))
    found.append(identity(run, given=fewer))
    assert len({base, *found}) == len(found) + 1


def test_the_same_images_from_a_file_are_the_same_run():
    run = runs()[-1]
    given = images.sets(run.images)
    assert identity(of(run, poison="mine.npz", root="elsewhere"), given=given) == identity(run, given=given)


def test_a_record_of_another_machine_is_made_again(tmp_path, serial):
    conditions.run_all(runs(), jobs=1, folder=tmp_path)
    for file in tmp_path.iterdir():
        record = records.load(file)
        del record["seal"]
        where, versions, coder = record["made_on"]
        other = record | {"made_on": [where, versions | {"torch": "1.0"}, coder], "history": {}}
        records.save(store.sealed(other), file)
    assert text(conditions.run_all(runs(), jobs=1, folder=tmp_path)) == text(serial)


def test_a_record_says_where_it_was_made_and_how_exactly(serial, monkeypatch):
    assert serial[0]["machine"] == MACHINE
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: "NVIDIA H200")
    from ul.nets import device

    found = device.machine(torch.device("cuda"))
    assert found["gpu"] == "NVIDIA H200" and found["precision"] == "bfloat16" and found["device"] == "cuda"


def test_a_worker_that_computes_otherwise_is_refused(tmp_path):
    """Another processor's instructions, other packages: its numbers would stand among those of this machine."""
    elsewhere = [{"device": "cpu", "instructions": "avx512"}, *store.machine()[1:]]
    failure = executor._finish(Job("a run", dict, ()), tmp_path / "a.json", elsewhere, None)
    assert isinstance(failure, Failure) and str(failure).startswith("a run: the worker computes otherwise")
    assert str(failure).endswith("`ul.base.arithmetic.settings()` in their environment") and not [*tmp_path.iterdir()]


# ---- Failures ------------------------------------------------------------------------------------------------------


def test_failures_are_named_and_the_others_finished(tmp_path, monkeypatch):
    real = victims.fit

    def failing(run, *args, **options):
        if (run.images.method, run.seed) == ("noise", 0):
            raise RuntimeError("no\nluck")
        return real(run, *args, **options)

    monkeypatch.setattr(victims, "fit", failing)
    message = r"1 of 4 runs failed: rooms noise resnet8 none seed 0: RuntimeError: no luck"
    with pytest.raises(InputError, match=message):
        conditions.run_all(runs(), jobs=1, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(InputError, match=message) as caught:  # kept even if nobody asked for it
        conditions.run_all(runs(), jobs=1)
    folder = Path(str(caught.value).rpartition("kept in ")[2].rstrip(")"))
    assert len(list(folder.iterdir())) == 3
    shutil.rmtree(folder)
    monkeypatch.setattr(victims, "fit", real)
    assert len(conditions.run_all(runs(), jobs=1, folder=tmp_path)) == 4


def test_a_poison_that_cannot_be_read_stops_its_own_runs_only(tmp_path):
    chosen = conditions.several(TINY, ["lsp"], poisons=laid(tmp_path, "rooms-lsp-0.npz", "rooms-lsp-1.npz"))
    with pytest.raises(InputError, match=r"2 of 4 runs failed: .*rooms-lsp-0\.npz"):
        conditions.run_all(chosen, jobs=1, folder=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_an_unknown_backend_is_refused():
    with pytest.raises(InputError, match="unknown backend 'slurm'; choose from dask, processes, ray"):
        conditions.run_all(runs(), backend="slurm")


def test_work_that_cannot_begin_is_a_failure_among_the_others(tmp_path):
    work = [Job("fine", partial(records.versions), ()), Failure("bad", "no images")]
    with pytest.raises(InputError, match=r"1 of 2 runs failed: bad: no images"):
        executor.run_all(work, "mixed", 2, jobs=1, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


# ---- How many, and where -------------------------------------------------------------------------------------------


def test_a_users_jobs_hold_on_a_gpu_and_cores_are_those_that_may_be_used(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    assert [processes.how_many(9, jobs) for jobs in (None, 4, 20)] == [3, 4, 9]
    monkeypatch.setattr(processes, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(joblib, "cpu_count", lambda: 16)
    for gigabytes, wanted in ((139, 9), (40, 5), (11, 1), (4, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=gigabytes: (free * 2**30, 139 * 2**30))
        assert [processes.how_many(20, jobs) for jobs in (None, 4)] == [wanted, 4], gigabytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (139 * 2**30,) * 2)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    assert processes.how_many(20) == 3, "each needs a core"


@pytest.mark.slow
@pytest.mark.parametrize("backend, package", [("processes", None), ("dask", "distributed"), ("ray", "ray")])
def test_every_backend_gives_the_serial_records(backend, package, serial, tmp_path):
    if package:
        pytest.importorskip(package, reason="the extra `cluster` is not installed")
    found = conditions.run_all(runs(), jobs=2, backend=backend, folder=tmp_path / "kept")
    assert text(found) == text(serial) and len(list((tmp_path / "kept").iterdir())) == 4


SCRIPT = """
import sys
from tests.test_executor import runs
from ul.studies import conditions
if __name__ == "__main__":
    conditions.run_all(runs(seeds=4), jobs=2, backend=sys.argv[1], folder=sys.argv[2])
"""


def started(backend, kept, tmp_path) -> subprocess.Popen:
    """Eight runs in processes of their own, once two of them are finished."""
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


@pytest.fixture(scope="module")
def eight():
    return text(conditions.run_all(runs(seeds=4), jobs=1))


def completes(kept, eight) -> None:
    """The same call again finishes what is left, and touches nothing that is there."""
    before = {file.name: file.stat().st_mtime_ns for file in kept.glob("*.json")}
    found = conditions.run_all(runs(seeds=4), jobs=1, folder=kept)
    assert text(found) == eight
    assert before.items() <= {file.name: file.stat().st_mtime_ns for file in kept.glob("*.json")}.items()


def busiest(process: subprocess.Popen) -> psutil.Process:
    """The worker that computes; beside Ray's own (called ray::TASK) there are servers that may be busy too."""
    below = psutil.Process(process.pid).children(recursive=True)
    workers = [p for p in below if " ".join(p.cmdline()).startswith("ray::")] or below
    return max(workers, key=lambda p: p.cpu_times().user)


LOST = {"processes": "TerminatedWorkerError", "ray": "ActorDiedError"}  # what the backend raises


@pytest.mark.slow
def test_a_killed_study_loses_no_finished_run(tmp_path, eight):
    process = started("processes", tmp_path / "kept", tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    completes(tmp_path / "kept", eight)


LONG_RAY = pytest.param("ray", "ray", marks=pytest.mark.long)  # it starts for half a minute


@pytest.mark.slow
@pytest.mark.parametrize("backend, package", [("processes", None), ("dask", "distributed"), LONG_RAY])
def test_a_killed_worker_loses_no_finished_run(backend, package, tmp_path, eight):
    """Dask sends its run to another worker; processes and Ray's actors end in one line that says what to do."""
    if package:
        pytest.importorskip(package, reason="the extra `cluster` is not installed")
    process = started(backend, tmp_path / "kept", tmp_path)
    busiest(process).kill()
    _, errors = process.communicate(timeout=300)
    if backend in LOST and process.returncode:
        assert f"a worker is lost ({LOST[backend]}" in errors and "finished runs are kept in" in errors
    else:
        assert process.returncode == 0, errors[-2000:]
    completes(tmp_path / "kept", eight)


def test_progress_names_every_defense():
    chosen = [replace(conditions.one(SETTINGS)[0], defense=name) for name in ("none", "jpeg", "none")]
    assert conditions.label(chosen) == "rooms resnet8 none/jpeg"
