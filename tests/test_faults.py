"""Full disks, kills and two runs at once: one line, nothing half written, what was there stays."""

import ast
import errno
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from tests import imports
from tests.readers import CLEAN, NOTEBOOK, RUN
from tests.test_fetch import TOP, cifar, server, tar_of  # noqa: F401
from tests.test_notebooks import written
from ul import data
from ul.base import records
from ul.base.errors import InputError
from ul.data import fetch, mnist
from ul.figures import style
from ul.pipeline import commands, notebooks, readme
from ul.studies import executor, paths, store
from ul.tables import table_files

FRAME = pd.DataFrame({"dataset": ["rooms"] * 90, "method": [f"m{i}" for i in range(90)], "test_accuracy": 0.5,
                      "ud_layers": 1.0, "ud_weights": 1.0, "ud_pooled": 1.0, "late_sal": 1.0})  # fmt: skip
PLACE = "<!-- claims: written by the pipeline -->\nold\n<!-- end of claims -->\n"
# Writer -> the file or folder that it makes, and how.
WRITERS = {
    "record": ("a.json", lambda path: records.save({"a": list(range(999))}, path)),
    "study": ("a.json", lambda path: records.study(lambda: {"runs": [RUN] * 9}, record=str(path))),
    "kept run": ("a.json", lambda path: store.save(path, RUN, {})),
    "kept run with arrays": ("a.json", lambda path: store.save(path, RUN, {"weights": np.zeros(900)})),
    "table": ("a.csv", lambda path: table_files.write(FRAME, path.with_suffix(""))),
    "metrics": ("metrics.json", lambda path: table_files.write_metrics(FRAME, path)),
    "figure": ("a.svg", lambda path: style.save(Figure(), path.with_suffix(""))),
    "npz": ("p.npz", lambda path: data.export(CLEAN, path)),
    "safetensors": ("p.safetensors", lambda path: data.export(CLEAN, path)),
    "IDX": ("a-idx1-ubyte", lambda path: mnist.write_idx(np.zeros(9000, np.uint8), path)),
    "notebook": ("a.ipynb", lambda path: notebooks.write(NOTEBOOK, path)),
    "paths": ("p.safetensors", lambda path: paths.save({"a": path_of_three()}, path)),
    "README": ("README.md", lambda path: readme.update(path, claims="new " * 2000)),
    "png": ("p", lambda path: data.export(CLEAN, path)),
}


def path_of_three() -> paths.Path:
    import torch

    return paths.Path([0, 1, 2], torch.zeros(3, 500))


# ---- Full disks ----------------------------------------------------------------------------------------------------


@contextmanager
def limited():
    """No file may grow beyond a few bytes: what a quota or a full disk does to every writer, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small(tmp_path):
    """A file system of 256 kB; tests are skipped where it cannot be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> None:
    """Write until nothing more goes in."""
    with (place / "filler").open("wb", buffering=0) as f, pytest.raises(OSError, match="No space left"):
        while True:
            f.write(bytes(512))


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def fails(write, path: Path, code: int) -> None:
    """`write` ends in one line that names the file and leaves everything as it was."""
    before = contents(path.parent)
    with pytest.raises(OSError) as caught:
        write(path)
    assert caught.value.errno == code
    assert str(path.with_suffix("")) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert contents(path.parent) == before


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_what_was_there(small, kind, old):
    name, write = WRITERS[kind]
    if kind == "README" or (old and kind != "png"):
        (small / name).write_text(PLACE)
    fill(small)
    fails(write, small / name, errno.ENOSPC)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_limit_on_files_leaves_what_was_there(tmp_path, kind):
    name, write = WRITERS[kind]
    if kind != "png":
        (tmp_path / name).write_text(PLACE)
    with limited():
        fails(write, tmp_path / name, errno.EFBIG)


def test_a_run_that_cannot_be_kept_is_reported(tmp_path):
    with limited():
        job = executor.Job("a run", lambda: dict(RUN), ())
        failure = executor._finish(job, tmp_path / "kept" / "a.json", store.machine(), None)
    assert isinstance(failure, executor.Failure) and failure.name == "a run"
    assert re.search(r"File too large: '.*/kept/a\.json'", str(failure)) and len(str(failure).splitlines()) == 1
    assert contents(tmp_path) == {"kept": None}


@pytest.mark.parametrize("command", [("nb-clean", "notebooks", "{}/nb")])
def test_commands_end_in_one_line(tmp_path, monkeypatch, command):
    monkeypatch.chdir(imports.ROOT)
    monkeypatch.setattr(sys, "argv", ["ul", *(word.format(tmp_path) for word in command)])
    with limited(), pytest.raises(SystemExit) as stop:
        commands.main()
    assert re.fullmatch(r"error: \[Errno 27\] File too large: '.*/nb/00_data\.ipynb'", stop.value.code)
    assert contents(tmp_path) == {"nb": None}


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False])
def test_a_notebook_run_on_a_full_disk_ends_in_one_line(small, tmp_path, monkeypatch, inside):
    """Whether it is a cell that cannot write its result, or the executed copy that does not fit."""
    (small / "old.ipynb").write_text("old")
    fill(small)
    cell = f"from ul.base import records\nrecords.save({{'a': list(range(999))}}, {str(small / 'a.json')!r})"
    source = written(tmp_path / "a.ipynb", "n = 1", cell if inside else "'x' * 9000")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(imports.ROOT))
    monkeypatch.setattr(sys, "argv", ["ul", "nb-run", source, str(small / "old.ipynb")])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    assert "No space left on device" in stop.value.code and len(stop.value.code.splitlines()) == 1
    assert sorted(os.listdir(small)) == ["filler", "old.ipynb"] and (small / "old.ipynb").read_text() == "old"


def test_downloads_go_on_once_there_is_room(small, cifar, server):  # noqa: F811
    cifar(tar_of({f"{TOP}/a.bin": random.Random(0).randbytes(300_000)}))
    with pytest.raises(InputError, match=r"No space left on device; run the same command again") as caught:
        fetch.fetch("cifar10", small)
    assert len(str(caught.value).splitlines()) == 1 and os.listdir(small) == [".fetch"]
    subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
    assert fetch.fetch("cifar10", small) == small / TOP
    assert server.asked[0] is None and server.asked[1].startswith("bytes=") and os.listdir(small) == [TOP]


def test_archives_that_do_not_fit_are_kept_and_not_called_damaged(small, cifar, server):  # noqa: F811
    cifar(tar_of({f"{TOP}/a.bin": bytes(900_000)}))
    with pytest.raises(OSError, match="No space left on device"):
        fetch.fetch("cifar10", small)
    assert contents(small).keys() == {".fetch", ".fetch/cifar10", ".fetch/cifar10/cifar.tar.gz"}
    subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
    assert fetch.fetch("cifar10", small) == small / TOP and len(server.asked) == 1


# What writes files itself; all else in `ul` goes through them. (A report is swapped in when it is whole.)
LEAVES = {
    "base.records.write_bytes", "base.records.note", "pipeline.notebooks.run", "pipeline.notebooks._shown",
    "pipeline.pages._copy_raw", "pipeline.site._static", "data.formats._write_folder", "data.fetch.fetch",
    "data.fetch.download", "data.fetch._continue", "data.fetch._gathered", "render.renderer._write",
    "render.renderer.render",
}  # fmt: skip
WRITING = re.compile(
    r"^(open|os\.replace|shutil\.copy\w*|np\.save|nbformat\.write)$|(part|log)\.(open|write_\w+|rename)$"
)


def test_no_writer_is_forgotten():
    found = set()
    for module in imports.modules():
        for node in ast.walk(ast.parse(imports.module_file(module).read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                WRITING.search(ast.unparse(call.func)) for call in ast.walk(node) if isinstance(call, ast.Call)
            ):
                found.add(f"{module}.{node.name}")
    assert found - {"pipeline.notebooks._tail", "pipeline.notebooks._alone"} == LEAVES


# ---- Kills ---------------------------------------------------------------------------------------------------------


def killed(action, seconds: float) -> None:
    """Run `action` in a process of its own and kill it."""
    child = os.fork()
    if not child:
        try:
            action()
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "png"])
def test_a_kill_leaves_whole_files(tmp_path, kind):
    """The old one or the new one under the final name; beside it a hidden part at most, which git ignores."""
    name, write = WRITERS[kind]
    path, whole = tmp_path / name, []
    (tmp_path / name).write_text(PLACE)
    write(path)
    whole += [PLACE.encode(), path.read_bytes()]

    def forever():
        while True:
            records.write_bytes(path, whole[0])
            write(path)

    for seed in range(3):
        killed(forever, random.Random(seed).uniform(0.01, 0.1))
        assert path.read_bytes() in whole
    others = {p.name for p in tmp_path.iterdir() if p.stem != path.stem}
    assert all(re.fullmatch(r"\..*\.\d+\.part", other) for other in others)


def test_a_kill_leaves_whole_folders(tmp_path):
    def forever():
        for number in range(10**6):
            data.export(CLEAN, tmp_path / f"p{number}")

    killed(forever, 0.3)
    made = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert made and all(len(data.read_poison(path, CLEAN)) == len(CLEAN) for path in made)


# ---- Two runs at once ----------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from tests.test_executor import runs
from ul.studies import conditions
print(json.dumps(conditions.run_all(runs(), jobs=1, folder=sys.argv[1]), sort_keys=True))
"""


def started(cwd: Path, *words: str) -> subprocess.Popen:
    where = os.environ | {"PYTHONPATH": str(imports.ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], cwd=cwd, env=where, start_new_session=True, **pipes)


@pytest.mark.slow
def test_two_grids_share_a_folder_of_kept_runs(tmp_path):
    both = [started(imports.ROOT, "-c", SCRIPT, str(tmp_path / "kept")) for _ in range(2)]
    one, other = (process.communicate(timeout=300)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0] and one == other and len(one) > 1000
    assert len(list((tmp_path / "kept").glob("*.json"))) == len(list((tmp_path / "kept").iterdir())) == 4


@pytest.mark.slow
def test_a_second_run_of_one_notebook_is_refused_until_the_first_ends_or_is_killed(tmp_path):
    source = written(tmp_path / "a.ipynb", "n = 1", "import time\ntime.sleep(60 * n)\nopen('done', 'w').close()")
    words = ("-m", "ul", "nb-run", source, "out.ipynb")
    first = started(tmp_path, *words)
    while not (tmp_path / "logs" / "out.log").exists():
        assert first.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    second = started(tmp_path, *words)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1 and first.poll() is None
    assert errors == "error: out.ipynb: another run is making it; wait for that one (its log: logs/out.log)\n"
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    third = started(tmp_path, *words, "-p", "n", "0")
    assert third.communicate(timeout=60) and third.returncode == 0 and (tmp_path / "out.ipynb").exists()
