"""The whole smoke profile again: the same bytes elsewhere, and what other thread counts change (`make test-long`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import ROOT
from tests.test_pipeline import SMOKE, cloned, contents, dvc, environment
from ul.tables import table_files

pytestmark = pytest.mark.long
# Every place that fixes one thread a process, and how it reads for two; a clone is changed, never the package.
PINS = {
    "ul/base/arithmetic.py": ('THREADS = {name: "1" for', 'THREADS = {name: "2" for'),
    "ul/nets/device.py": ("torch.set_num_threads(1 if", "torch.set_num_threads(2 if"),
}
ASKED = """
import torch
from ul.nets.device import one_thread
from ul.base.arithmetic import THREADS
with one_thread("cpu"):
    print(torch.get_num_threads(), THREADS)
"""


def computed(clone: Path, *targets: str) -> Path:
    """Everything that the targets need is made anew: no kept runs, no outputs of before."""
    for kind in ("results", "build"):
        subprocess.run(["rm", "-rf", clone / kind / "smoke"], check=True)
    done = dvc(clone, "repro", "-f", *(targets or (SMOKE,)))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return clone / "results" / "smoke"


@pytest.fixture(scope="module")
def clones(tmp_path_factory) -> list[Path]:
    """All made at once: of one state, whatever is edited while they run."""
    return [cloned(tmp_path_factory.mktemp(name) / "clone") for name in ("one", "a-longer-name-elsewhere", "threads")]


@pytest.fixture(scope="module")
def first(clones) -> Path:
    return computed(clones[0])


def asked(clone: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=clone, env=environment(clone), capture_output=True, text=True)


def test_a_rerun_in_another_folder_gives_the_same_bytes(first, clones):
    again = computed(clones[1])
    one, other = contents(first), contents(again)
    assert len(one) > 30 and {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)} == set()
    locks = [results.parents[1] / "profiles" / "smoke" / "dvc.lock" for results in (first, again)]
    assert locks[0].read_bytes() == locks[1].read_bytes()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_threads_leave_accuracies_within_tolerance_and_compare_names_the_rest(first, clones):
    """Two threads sum in another order: other bytes, as on another machine.

    UD of the smoke profile (two epochs, two seeds, 16 images) does not hold its tolerance of 0.25 through that: when
    this test was written 2 of 16 means differed by more, by 0.25 and 0.27. What must hold: accuracies agree, and
    `python -m ul compare` says in one line which conditions do not.
    """
    clone = clones[2]
    for name, (one, two) in PINS.items():
        source = (clone / name).read_text()
        assert source.count(one) == 1, f"{name} fixes threads in another way now"
        (clone / name).write_text(source.replace(one, two))
    assert asked(clone, "-c", ASKED).stdout.startswith("2 {'OMP_NUM_THREADS': '2'")
    again = computed(clone, f"{SMOKE}:benchmark")
    agreed(first, again)


def agreed(first: Path, again: Path) -> None:
    found = table_files.differences(first, again)
    told = asked(ROOT, "-m", "ul", "compare", str(first), str(again))
    line = told.stdout + told.stderr
    print(line)
    assert told.returncode == bool(found) and len(line.splitlines()) == 1 and all(each in line for each in found)
    assert all(" ud_" in each for each in found), line
