"""The queue of a profile: its order, its deadline, its pack that goes on elsewhere; the CPU stands in for the card."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from tests.imports import ROOT
from ul.base.errors import InputError
from ul.pipeline import notebooks, queue
from ul.studies import conditions, executor, several_tasks, victims

PROFILE = """
poisons:
  mnist: {with: {dataset: mnist, root: ROOT, limit: 80, method: noise, others: [lsp], first_seed: 3, seeds: 2,
    architecture: lenet5, epochs: 1}}
settings:
  mnist: {with: {dataset: mnist, root: ROOT, limit: 80, method: noise, others: [lsp], architecture: lenet5, epochs: 1,
    first_seed: 3, seeds: 2, probe_epochs: 1, sal_images: 8}}
  mnist-cutout: {with: {dataset: mnist, root: ROOT, limit: 80, method: lsp, architecture: lenet5, defense: cutout,
    epochs: 1, first_seed: 3, seeds: 1, probe_epochs: 1, sal_images: 8}}
grid: {settings: [mnist], defended: [mnist-cutout], architectures: []}
cross_tasks:
  mnist: {with: {name: cross_task, dataset: mnist, root: ROOT, limit: 80, methods: [lsp], first_seed: 3, seeds: 1,
    tasks: [label, edge_texture], transfer: false, epochs: 1, probe_epochs: 1, sal_images: 4, balance_methods: []}}
"""
STEPS = ["mnist, seed 3", "mnist, seed 4", "mnist-cutout, seed 3", "cross_task, seed 3"]


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "tiny" / "params.yaml"
    path.parent.mkdir()
    path.write_text(PROFILE.replace("ROOT", str(ROOT / "data")))
    return path


@pytest.fixture
def trained(monkeypatch):
    """Names of the runs that are trained here, as they begin."""
    names = []

    def counted(make):
        def run(chosen, *given, **options):
            names.append(str(chosen))
            return make(chosen, *given, **options)

        return run

    for module in (victims, several_tasks):
        monkeypatch.setattr(module, "run", counted(module.run))
    # The code that a run depends on is told from the function's module.
    monkeypatch.setattr(executor.closure, "of_functions", lambda functions, tables: "same")
    return names


def sat(profile, build, *, minutes=60.0, packed=None, longest=0.0):
    """One sitting, and the folder of its kept runs."""
    lines = [*queue.chunk(profile, minutes=minutes, longest=longest, packed=packed, jobs=1, build=build)]
    return lines, build / "runs"


def test_the_headline_comes_seed_by_seed_with_its_poisons_before_everything_else():
    parameters = notebooks.parameters_from([f"{ROOT / 'profiles/cifar10/params.yaml'}:"], [])
    names = [name for name, _ in queue.steps(parameters, poisons=ROOT, digests={})]
    plain = [what for seed in range(3, 13) for what in (f"poisons of cifar10, seed {seed}", f"cifar10, seed {seed}")]
    assert names[: len(plain)] == plain
    rest = [name for name in names[len(plain) :] if not name.startswith("poisons")]
    defended = [f"cifar10-{name}, seed {seed}" for seed in range(3, 8) for name in ("jpeg", "cutout")]
    assert rest == [*defended, *(f"cross_task, seed {seed}" for seed in range(3, 8))]


def test_what_the_queue_keeps_the_stages_read(profile, tmp_path, trained):
    lines, kept = sat(profile, tmp_path / "build")
    assert [line for line in lines if not line.startswith("poisons")] == [f"{step}: finished" for step in STEPS]
    assert len(trained) == len(set(trained)) == 6 + 2 + 2, "cutout's clean twin without a defense is there already"
    trained.clear()
    setting = notebooks.parameters_from([f"{profile}:settings.mnist.with"], [])
    own = notebooks.defaults(notebooks.read(ROOT / "notebooks" / "04_sal.ipynb")) | setting
    chosen = conditions.several(own, ["noise", "lsp"], poisons=str(tmp_path / "build" / "poisons"))
    assert len(conditions.run_all(chosen, folder=kept, jobs=1)) == 6 and trained == []


def test_nothing_is_begun_that_could_not_end_in_time(profile, tmp_path, trained):
    lines, _ = sat(profile, tmp_path / "build", minutes=1.0, longest=61.0)
    assert len(lines) == 1 and lines[0].startswith(
        "poisons of mnist, seed 3: stopped (poisons mnist: 2 of 2 runs are left"
    )
    assert trained == []


def test_a_pack_goes_on_elsewhere_where_the_deadline_cut_it_off(profile, tmp_path, trained, monkeypatch):
    pack, clock = tmp_path / "runs.tar.xz", time.time
    after = {"calls": 0}

    def late():
        """The deadline comes when four runs have been trained."""
        after["calls"] += 1
        return clock() + (7200 if len(trained) >= 4 else 0)

    monkeypatch.setattr(executor.time, "time", late)
    lines, _ = sat(profile, tmp_path / "here", packed=pack)
    assert lines[-1].startswith("mnist, seed 4: stopped (") and "2 of 3 runs are left" in lines[-1], after
    first = [*trained]
    trained.clear()
    monkeypatch.setattr(executor.time, "time", clock)
    lines, kept = sat(profile, tmp_path / "elsewhere", packed=pack)
    assert lines[-1] == "cross_task, seed 3: finished" and not set(first) & set(trained), "no run is trained twice"
    with tarfile.open(pack) as tar:
        names = set(tar.getnames())
    assert names == {
        "poisons.json",
        *(path.name for path in kept.glob("*.json") if not path.with_suffix(".safetensors").exists()),
    }


def test_a_poison_that_is_another_one_there_is_named(profile, tmp_path, trained):
    pack = tmp_path / "runs.tar.xz"
    queue.pack(tmp_path / "nothing", {"mnist-lsp-3.npz": "0123456789abcdef"}, pack)
    lines, _ = sat(profile, tmp_path / "build", packed=pack)
    assert "mnist-lsp-3.npz is " in lines[0] and "was 0123456789abcdef in the pack" in lines[0]
    assert not (tmp_path / "build" / "poisons" / "mnist" / "mnist-lsp-3.npz").exists()
    assert lines[1].startswith("mnist, seed 3: failed (") and "mnist, seed 4: finished" in lines


@pytest.mark.slow
def test_a_killed_sitting_loses_no_finished_run(profile, tmp_path):
    build = tmp_path / "build"
    words = ["-m", "ul", "queue", str(profile), "--build", str(build), "--longest", "0", "--jobs", "1"]
    started = subprocess.Popen([sys.executable, *words], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    while started.poll() is None and len([*(build / "runs").glob("*.json")]) < 4:
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGKILL)
    before = {path: path.read_bytes() for path in (build / "runs").glob("*.json")}
    assert started.wait() == -signal.SIGKILL and len(before) >= 4
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "cross_task, seed 3: finished", done.stderr
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_failed_step_is_named_and_the_command_says_so(profile, tmp_path):
    profile.write_text(profile.read_text().replace(str(ROOT / "data"), str(tmp_path / "nowhere")))
    words = ["-m", "ul", "queue", str(profile), "--build", str(tmp_path / "build"), "--longest", "0"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert "nowhere" in done.stderr and "Traceback" not in done.stdout + done.stderr


# ---- Packs ---------------------------------------------------------------------------------------------------------


def packed(path, **members):
    with tarfile.open(path, "w:xz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


RUN = "0123456789abcdef.json"


def test_a_pack_holds_runs_and_digests_and_leaves_what_is_there(tmp_path):
    kept, pack = tmp_path / "kept", tmp_path / "runs.tar.xz"
    kept.mkdir()
    (kept / RUN).write_text("{}")
    (kept / "fedcba9876543210.json").write_text("{}")
    (kept / "fedcba9876543210.safetensors").write_bytes(b"images of a poison")
    (kept / "notes.json").write_text("{}")
    assert queue.pack(kept, {"a.npz": "d"}, pack) == 1
    (kept / RUN).write_text("mine")
    assert queue.unpack(pack, kept) == {"a.npz": "d"} and (kept / RUN).read_text() == "mine"
    assert queue.unpack(pack, tmp_path / "new") == {"a.npz": "d"}
    assert [(path.name, path.read_text()) for path in (tmp_path / "new").iterdir()] == [(RUN, "{}")]


@pytest.mark.parametrize("members", [
    {"../" + RUN: b"{}", "poisons.json": b"{}"}, {"a.py": b"", "poisons.json": b"{}"}, {RUN: b"{}"},
    {"poisons.json": b"[]"}, {"poisons.json": b'{"a": 3}'}, {"poisons.json": b"{"},
])  # fmt: skip
def test_what_is_no_pack_is_refused_and_nothing_is_written(tmp_path, members):
    packed(tmp_path / "runs.tar.xz", **members)
    with pytest.raises(InputError, match=r"runs\.tar\.xz: no pack of runs \(.*\); pack it again, or remove it"):
        queue.unpack(tmp_path / "runs.tar.xz", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "runs.tar.xz", "w:xz") as tar:
        entry = tarfile.TarInfo(RUN)
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    with pytest.raises(InputError, match="is no kept run"):
        queue.unpack(tmp_path / "runs.tar.xz", tmp_path / "kept")


def test_a_pack_that_is_too_large_is_refused_and_the_old_one_stays(tmp_path, monkeypatch):
    kept, pack = tmp_path / "kept", tmp_path / "runs.tar.xz"
    queue.pack(kept, {}, pack)
    before = pack.read_bytes()
    monkeypatch.setattr(queue, "MOST", 100)
    with pytest.raises(InputError, match="bytes are more than 100; move kept runs away"):
        queue.pack(kept, {"a.npz": json.dumps(list(range(500)))}, pack)
    assert pack.read_bytes() == before
