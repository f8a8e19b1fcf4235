"""The smoke pipeline in a temporary clone: it runs, leaves git clean, survives a kill, and repeats its bytes."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.imports import ROOT

SMOKE = "profiles/smoke/dvc.yaml"
STAGES = {
    "sal@rooms": "04_sal-rooms",
    "cross_task@rooms": "02_cross_task",
    "convergence@lenet5-rooms": "03_convergence-lenet5-rooms",
}
pytestmark = pytest.mark.slow


def dvc(clone: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments), cwd=clone, env=environment(clone), text=True, capture_output=True, **options
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dvc", *arguments]


def environment(clone: Path) -> dict[str, str]:
    """Stages run `python -m ul` of the clone, with this interpreter."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PYTHONPATH": str(clone), "PATH": path}


def git(clone: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=clone, text=True, capture_output=True, check=True).stdout


def contents(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return cloned(tmp_path_factory.mktemp("smoke") / "clone")


def cloned(target: Path) -> Path:
    """What is committed and what is changed in the working tree, as a repository of its own with its data."""
    names = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_symlink() or (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    git(target, "init", "-q")
    git(target, "add", "-A")
    git(target, "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "copy")
    pulled = dvc(target, "pull", "-q", "data.dvc")
    assert pulled.returncode == 0, pulled.stderr
    return target


@pytest.fixture(scope="module")
def ran(clone) -> Path:
    done = dvc(clone, "repro", "-f", SMOKE)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return clone


def trained_in(clone: Path, stem: str) -> set[str]:
    """Which runs the logs of one notebook name, without what they came to."""
    logs = [log for log in (clone / "logs").glob("*.log") if stem in log.name]
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return {line.partition(":")[0] for line in lines if line.startswith("trained ")}


def test_smoke_trains_every_run_and_is_up_to_date_afterwards(ran):
    trained = {stem: trained_in(ran, stem) for stem in ("01_poison", "04_sal", "06_validation")}
    assert len(trained["01_poison"]) == 3 and trained["06_validation"]  # a victim of each method
    # Bare, jpeg and transformer, two seeds each; the twins of jpeg are those of bare.
    assert len(trained["04_sal"]) == (4 + 2 + 2) * 2, trained
    again = dvc(ran, "repro", SMOKE)
    assert again.returncode == 0 and "up to date" in again.stdout
    assert dvc(ran, "status", SMOKE, "data.dvc").stdout.strip() == "Data and pipelines are up to date."


FIGURES = "ul/figures/style.py"


@pytest.fixture
def as_before(ran, tmp_path):
    """Results, cleaned notebooks and the lock are put back after a test that draws them in another colour."""
    places = ["results/smoke", "build/smoke/nb", "profiles/smoke/dvc.lock"]
    for place in places:
        copied(ran / place, tmp_path / place)
    yield
    for place in places:
        copied(tmp_path / place, ran / place)


def copied(source: Path, target: Path) -> None:
    """The file or folder, in the place of what was there."""
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)


def test_what_draws_is_edited_and_nothing_is_trained(ran, as_before):
    """A comment runs `clean` alone; a colour draws, from kept runs; a chair of the renderer does nothing."""
    for log in (ran / "logs").glob("*.log"):
        log.unlink()
    with (
        edited(ran / "ul/sharpness/sal.py", "class _Layer:", "class _Layer:  # one of many"),
        edited(ran / "ul/render/furniture.py", "def box(", "EDITED = 1\n\n\ndef box("),
    ):
        dry = dvc(ran, "repro", "--dry", SMOKE).stdout
        assert re.findall(r"Running stage '.*?:([^']+)'", dry) == ["clean"]
        done = dvc(ran, "repro", SMOKE)
        assert done.returncode == 0 and re.findall(r"Running stage '.*?:([^']+)'", done.stdout) == ["clean"]
        assert "nothing changed" in done.stdout
    with edited(ran / FIGURES, '"noise": "#999999"', '"noise": "#aaaaaa"'):
        done = dvc(ran, "repro", *(f"{SMOKE}:{stage}" for stage in STAGES))  # a study of each kind, and their poisons
        assert done.returncode == 0 and f"04_sal.ipynb: {FIGURES}" in done.stdout, done.stderr[-2000:]
        assert not trained_in(ran, ""), "something was trained for a colour"
        assert git(ran, "status", "--porcelain", "results/smoke/figures").strip()


@contextmanager
def edited(path: Path, old: str, new: str):
    before = path.read_text()
    assert before.count(old) == 1, (path, old)
    path.write_text(before.replace(old, new))
    yield
    path.write_text(before)


def test_every_notebook_is_redrawn_from_its_record_to_the_same_bytes(ran):
    """`make figures`, where nothing but what is committed is there."""
    before = contents(ran / "results" / "smoke")
    shutil.move(ran / "build" / "smoke" / "runs", ran / "elsewhere")
    drawn = subprocess.run(
        [sys.executable, "-m", "ul", "redraw", SMOKE], cwd=ran, env=environment(ran), text=True, capture_output=True
    )
    shutil.move(ran / "elsewhere", ran / "build" / "smoke" / "runs")
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr
    assert contents(ran / "results" / "smoke") == before
    assert dvc(ran, "status", SMOKE).stdout.strip() == "Data and pipelines are up to date."


def test_committed_smoke_results_are_those_of_this_code(ran):
    """Files, configurations and clean data; numbers may differ between kinds of processors."""
    committed = set(git(ROOT, "ls-files", "results/smoke").split())
    assert {f"results/smoke/{name}" for name in contents(ran / "results" / "smoke")} == committed
    for record in (ROOT / "results" / "smoke" / "records").glob("*.json"):
        old, new = (json.loads(p.read_text()) for p in (record, ran / record.relative_to(ROOT)))
        if record.name.startswith("poison-"):
            same = ("dataset", "eps", "data", "architecture")
            assert {k: old[k] for k in same} == {k: new[k] for k in same}
            drawn = [[(p["method"], d["seed"]) for p in one["poisons"] for d in p["draws"]] for one in (old, new)]
            assert drawn[0] == drawn[1]
            continue
        old, new = old["runs"], new["runs"]
        assert [run["config"] for run in old] == [run["config"] for run in new], record.name
        assert [run["data"]["test"] for run in old] == [run["data"]["test"] for run in new]


@pytest.fixture
def put_aside(ran):
    """The kept runs of all stages come back after a test that removes them: the next one compares with them."""
    kept, aside = ran / "build" / "smoke" / "runs", ran / "elsewhere"
    shutil.copytree(kept, aside)
    yield kept
    shutil.copytree(aside, kept, dirs_exist_ok=True)
    shutil.rmtree(aside)


# One executor serves them all, and is killed in its own tests; whole stages of the others are in `make test-long`.
KILLED = [stage if stage.startswith("sal") else pytest.param(stage, marks=pytest.mark.long) for stage in STAGES]


@pytest.mark.parametrize("stage", KILLED)
def test_a_killed_stage_leaves_nothing_half_written_goes_on_and_ends_in_the_same_bytes(ran, put_aside, stage):
    """`sal` twice at any moment; the others once, as soon as something is finished, which is then read."""
    before = contents(ran / "results" / "smoke") | contents(ran / "build" / "smoke")
    kept, log = put_aside, ran / "logs" / f"results-smoke-notebooks-{STAGES[stage]}.log"
    shutil.rmtree(kept)
    moments = random.Random(0)
    for moment in [moments.uniform(3, 12) for _ in range(2)] if stage.startswith("sal") else [None]:
        log.unlink(missing_ok=True)
        killed(ran, stage, log, after=moment)
        after = contents(ran / "results" / "smoke") | contents(ran / "build" / "smoke")
        assert set(after) < set(before) and all(before[name] == digest for name, digest in after.items())
    finished = {path: path.stat().st_mtime_ns for path in kept.glob("*.json")}
    assert finished or stage.startswith("sal")
    rerun = dvc(ran, "repro", SMOKE)
    assert rerun.returncode == 0, rerun.stderr[-3000:]
    found = contents(ran / "results" / "smoke") | contents(ran / "build" / "smoke")
    assert found == {name: digest for name, digest in before.items() if name in found or "/runs/" not in f"/{name}"}
    assert finished == {path: path.stat().st_mtime_ns for path in finished}, "it was made again"


def killed(clone: Path, stage: str, log: Path, *, after: float | None) -> None:
    """Start the stage and kill it, so many seconds after its log appears, or once it has kept something."""
    process = subprocess.Popen(
        command("repro", "-f", "-s", f"{SMOKE}:{stage}"), cwd=clone, env=environment(clone), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not log.exists():
        assert process.poll() is None
        time.sleep(0.2)
    if after is not None:
        time.sleep(after)
    while after is None and not any((clone / "build" / "smoke" / "runs").glob("*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.long
def test_stage_commands_run_beside_one_another_without_dvc_and_are_committed(ran):
    """The README's recipe for a job array."""
    before, names = contents(ran / "results" / "smoke"), ["rooms-jpeg", "rooms-vit_tiny"]
    stages = [f"{SMOKE}:sal@{name}" for name in names]
    dry = [dvc(ran, "repro", "-s", "-f", "--dry", stage).stdout for stage in stages]
    commands = [next(line[2:] for line in text.splitlines() if line.startswith("> ")) for text in dry]
    for name in names:
        (ran / "results" / "smoke" / "records" / f"{name}.json").unlink()
    started = [
        subprocess.Popen(c, shell=True, cwd=ran, env=environment(ran), stderr=subprocess.DEVNULL) for c in commands
    ]
    assert [process.wait(300) for process in started] == [0, 0]
    assert dvc(ran, "commit", "-f", *stages).returncode == 0
    assert contents(ran / "results" / "smoke") == before
    assert dvc(ran, "status", SMOKE).stdout.strip() == "Data and pipelines are up to date."


def test_plain_papermill_works_and_writes_only_its_output(ran, tmp_path):
    arguments = ["-p", "method", "lsp", "-p", "seeds", "1", "-p", "epochs", "1", "-p", "limit", "100"]
    out = tmp_path / "out.ipynb"
    before = git(ran, "status", "--porcelain")
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "notebooks/04_sal.ipynb", str(out), *arguments], cwd=ran,
        env=environment(ran), text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ud_layers" in out.read_text()
    assert git(ran, "status", "--porcelain") == before


def test_dvc_reports_a_wrong_parameter_before_anything_runs(ran):
    params = ran / "profiles" / "smoke" / "params.yaml"
    good = params.read_text()
    params.write_text(good.replace("probe_epochs: 2", "probe_epoch: 2", 1))
    try:
        failed = dvc(ran, "repro", SMOKE)
    finally:
        params.write_text(good)
    assert failed.returncode != 0
    assert "unknown parameter probe_epoch" in failed.stderr
    assert "Traceback" not in failed.stderr
