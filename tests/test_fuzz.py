"""Every reader of files under random damage: it reads, or refuses in one line; no crash, no hang, no traces.

`make test` gives each reader a hundred damaged files, `make test-long` ten thousand.
"""

import ast
import os
import re
import resource
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from tests import imports
from tests.damage import damaged, plans
from tests.readers import READERS
from ul.base.errors import InputError
from ul.pipeline.notebooks import NotebookError

SECONDS = 20  # of the processor, for one file of a few kilobytes: other work beside must not count
WAITING = 300  # of the clock, for a reader that waits for something
TIMERS = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, WAITING)}
ROOM = 1 << 30  # bytes of memory beyond what is in use
COUNTS = [100, pytest.param(10_000, marks=pytest.mark.long)]


@contextmanager
def bounded():
    """No more than ROOM of new memory, and SECONDS or WAITING until an alarm."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {number: signal.signal(number, _late) for number in TIMERS}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    for timer, seconds in TIMERS.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in TIMERS.items():
            signal.setitimer(timer, 0)
            signal.signal(number, handlers[number])
        resource.setrlimit(resource.RLIMIT_AS, before)


def _late(*_):
    raise AssertionError(f"no answer within {SECONDS} s of the processor or {WAITING} s")


# ---- Nothing outside the folder ------------------------------------------------------------------------------------

WATCHED: list[Path] = []  # the folder that may be written, while a reader runs
SEEN: list[str] = []
# Event -> where its path and the folder that this counts from stand among what is reported.
PLACES = {"os.mkdir": (0, 2), "os.rename": (1, 3), "os.remove": (0, 1), "os.rmdir": (0, 1), "os.symlink": (1, 2),
          "os.link": (1, 3), "os.chmod": (0, 2), "os.chown": (0, 3), "os.utime": (0, 3)}  # fmt: skip
NEVER = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pickle.find_class")


def watch(event: str, given: tuple) -> None:
    """Python's own report of what is opened, moved and started: remember what leaves the watched folder."""
    if not WATCHED:
        return
    if event in NEVER:
        SEEN.append(f"{event} {given[:2]}")
    elif event == "open" and isinstance(given[0], str | bytes) and given[2] & (os.O_WRONLY | os.O_RDWR):
        _within(event, given[0])
    elif event in PLACES:
        path, folder = (given[place] for place in PLACES[event])
        _within(event, path, folder)


def _within(event: str, path, folder: int = -1) -> None:
    if isinstance(path, int):
        return
    base = os.getcwd() if folder == -1 else os.readlink(f"/proc/self/fd/{folder}")
    place = Path(os.path.realpath(os.path.join(base, os.fsdecode(path))))
    if not place.is_relative_to(WATCHED[0]) and "__pycache__" not in place.parts:
        SEEN.append(f"{event} {place}")


sys.addaudithook(watch)  # it cannot be removed, and does nothing while nothing is watched


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with its size and the time of its last change."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            state = os.lstat(os.path.join(place, name))
            found[os.path.join(place, name)] = (0, 0) if name in folders else (state.st_size, state.st_mtime_ns)
    return found


def planted(reader, box: Path, raw: bytes | None = None) -> dict[str, tuple[int, int]]:
    """The reader's files with `raw` (default: a whole one) as the one to read; what is in the folder then."""
    for name in reader.makes:
        shutil.rmtree(box / name, ignore_errors=True)
    for name, content in (*reader.beside, (reader.file, reader.mend(reader.wholes[0]) if raw is None else raw)):
        if name == reader.file or not (box / name).exists():
            (box / name).parent.mkdir(parents=True, exist_ok=True)
            (box / name).write_bytes(content)
    return contents(box)


def untouched(reader, box: Path, before: dict) -> None:
    """Nothing is there or has changed but what the reader may make, and no half file."""
    left, may = contents(box), tuple(str(box / name) for name in reader.makes)
    changed = {name for name, _ in left.items() ^ before.items()}
    assert not {name for name in changed if not (may and name.startswith(may))}
    assert not [name for name in left if name.endswith((".part", ".tmp"))]


# ---- The property --------------------------------------------------------------------------------------------------


def outcome(reader, box: Path) -> str:
    """ "read" or "refused"; anything else is a failure."""
    WATCHED.append(Path(os.path.realpath(box)))
    try:
        with bounded():
            reader.read(box)
        return "read"
    except (InputError, NotebookError) as error:
        message = str(error)
        assert len(message.splitlines()) == 1 and len(message) < 1000, message[:2000]
        assert str(box) in message or reader.file in message, message
        assert "MemoryError" not in message, f"it asked for more than {ROOM} bytes: {message}"
        return "refused"
    finally:
        WATCHED.clear()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(tmp_path, name, count):
    reader, box, outcomes = READERS[name], tmp_path / "box", []
    Image.init()

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(plan=plans())
    def attempt(plan):
        seed, mended, damage, luck = plan
        raw = damaged(reader.wholes[seed % len(reader.wholes)], damage, luck == 0)
        before = planted(reader, box, reader.mend(raw) if mended else raw)
        outcomes.append(outcome(reader, box))
        untouched(reader, box, before)

    SEEN.clear()
    attempt()
    assert not SEEN, SEEN[:5]
    assert [path.name for path in tmp_path.iterdir()] == ["box"]
    assert len(outcomes) >= count and {"refused"} <= set(outcomes)


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(tmp_path, name):
    reader = READERS[name]
    for whole in reader.wholes:
        before = planted(reader, tmp_path, reader.mend(whole))
        assert outcome(reader, tmp_path) == "read"
        untouched(reader, tmp_path, before)


# ---- No reader is forgotten ----------------------------------------------------------------------------------------

OPENING = re.compile(
    r"(^open|\.(open|read_text|read_bytes|read_csv|load|read|fromfile|imread|urlopen|extractall|glob|rglob|iterdir)"
    r"|^urlopen|^read\w*|^load)$"
)
# What opens or lists files besides, and why it is not in the table.
OTHERS = {
    **dict.fromkeys((f"pipeline.commands.{name}" for name in ("_verify", "_info", "_to_poison")), "calls data.load"),
    **dict.fromkeys(
        ("studies.images._clean", "studies.images._whole", "studies.poison._splits", "tasks.labels.load"),
        "calls data.load",
    ),
    **dict.fromkeys(("pipeline.commands._check_poison", "studies.images.of_method"), "calls data.read_poison"),
    **dict.fromkeys(("data.views.reader", "data.cifar.reader"), "its inner function read reads"),
    "data.views._taskonomy": "calls views.reader",
    "data.cifar.read": "calls cifar._cifar_records",
    "data.checks._labels": "calls formats.read on a file that data.read_poison has read",
    "studies.cross_task._clean": "calls labels.load",
    "training.defenses._through_jpeg": "opens what it wrote into memory",
    "base.closure._tree": "reads the package's own source",
    "base.arithmetic._said": "reads what Linux says of the processor",
    "pipeline.cleaning._ready": "calls notebooks.read",
    "pipeline.cleaning._written": "lists its own folder",
    **dict.fromkeys(("studies.store.once", "studies.executor._there"), "calls store.load"),
    "studies.images.stored": "looks for a file by its name",
    "data.fetch.download": "compares a checksum (test_fetch.py)",
    "data.fetch._continue": "the network (test_fetch.py)",
    "base.records.note": "appends a line to a log",
    "tables.in_words.beside": "calls table_files.read",
    **dict.fromkeys(("pipeline.run_list._rows", "pipeline.run_list._runs"), "calls records.load (test_run_list.py)"),
    "pipeline.queue.pack": "reads kept runs that it does not interpret",
    "pipeline.queue._complete": "calls notebooks.read",
    "pipeline.site.build": "looks for results/<profile> (test_site.py)",
    **dict.fromkeys(
        (
            f"pipeline.pages.{name}"
            for name in ("stage", "_api_pages", "_copy_raw", "_landing", "_names", "_table_pages")
        ),
        "the repository's own README, results and modules (test_site.py)",
    ),
    **dict.fromkeys(
        (f"pipeline.notebooks.{name}" for name in ("run", "_alone", "_tail")), "the log that it writes itself"
    ),
}


def opening() -> set[str]:
    """`module.function` of everything in `ul` that calls something that opens, lists or reads files."""
    found = set()
    for module in imports.modules():
        for node in ast.walk(ast.parse(imports.module_file(module).read_text())):
            if isinstance(node, ast.FunctionDef):
                calls = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
                if any(OPENING.search(call) for call in calls):
                    found.add(f"{module}.{node.name}")
    return found


def test_every_function_that_opens_files_is_in_the_table():
    listed = {function for reader in READERS.values() for function in reader.functions}
    assert opening() - listed == set(OTHERS)


@pytest.mark.parametrize("name", READERS)
def test_readers_reach_the_functions_that_the_table_names(tmp_path, name):
    reader, called = READERS[name], set()
    planted(reader, tmp_path)
    home = imports.ROOT / "ul"

    def note(frame, event, given):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(home):
            module = ".".join(path.relative_to(home).with_suffix("").parts)
            called.add(f"{module}.{frame.f_code.co_name}")

    sys.setprofile(note)
    try:
        reader.read(tmp_path)
    finally:
        sys.setprofile(None)
    assert set(reader.functions) <= called
