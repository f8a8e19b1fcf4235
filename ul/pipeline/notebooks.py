"""Notebooks as pipeline stages: typed parameters, byte-stable executed copies, written atomically."""

import ast
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

from ..base import arithmetic, records
from ..base.errors import InputError, existing
from ..base.parameters import assigned, declared, refuse_unknown, refuse_wrong

CLOSURE = "ul"  # key of a cleaned notebook's metadata: path -> hash of the code that it depends on
RECORD, RECORDED = "record", "recorded"  # parameters: a study's record to write, or to draw from instead of running
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
RUN_KEYS = ("start_time", "end_time", "duration", "input_path", "output_path", "environment_variables", "exception")
ADDRESS = re.compile(r"(?<= at )0x[0-9a-f]{6,}")
TEMPORARY = re.compile(r"/\S*/ipykernel_\d+/")
ANY = "None or str or int or float or bool"  # a default of None without an annotation
ANSI = re.compile(r"\x1b\[[0-9;]*m")
ENVIRONMENT = {"SOURCE_DATE_EPOCH": "0", "PYTHONHASHSEED": "0"}


class NotebookError(Exception):
    """A notebook, its parameters or its run is at fault: one line for the terminal."""


def cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Code, text and tags, without outputs, counters or editor metadata (changed in place)."""
    notebook.metadata = nbformat.from_dict(KERNEL)
    for i, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell["id"], cell.metadata = f"c{i:03d}", nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def stable(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An executed notebook without times, random ids, addresses and temporary names (changed in place).

    Nor does it say what code it depended on, or that it was drawn from a record: what it shows is the same.
    """
    notebook.metadata.pop(CLOSURE, None)
    for key in RUN_KEYS:
        notebook.metadata.get("papermill", {}).pop(key, None)
    notebook.metadata.get("papermill", {}).get("parameters", {}).pop(RECORDED, None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected"
            lines = cell.source.splitlines()
            cell.source = "\n".join(line for line in lines if not line.startswith(f"{RECORDED} ="))
        for output in cell.get("outputs", []):
            _mask(output)
    return notebook


def _mask(output: nbformat.NotebookNode) -> None:
    if "text" in output:
        output.text = TEMPORARY.sub("", ADDRESS.sub("0x0", output.text))
    for kind, text in output.get("data", {}).items():
        if isinstance(text, str) and kind.startswith("text/"):
            output.data[kind] = ADDRESS.sub("0x0", text)


def read(path: Path | str) -> nbformat.NotebookNode:
    """A notebook of format 4. Raises NotebookError if the file is missing or not one."""
    try:
        found = nbformat.read(path, 4)
        nbformat.validate(found)  # reading alone only logs what is wrong
        return found
    except FileNotFoundError:
        raise NotebookError(f"{path} is missing; `ls notebooks` shows what there is") from None
    except Exception as error:  # nbformat raises many types for damaged JSON
        raise NotebookError(f"{path}: not a notebook ({type(error).__name__}); restore it with git") from None


def write(notebook: nbformat.NotebookNode, path: Path | str) -> None:
    """Write under a temporary name, then rename."""
    records.write_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def defaults(notebook: nbformat.NotebookNode) -> dict[str, object]:
    """Names and default values in the cell tagged `parameters`; values must be literals."""
    try:
        return {k: ast.literal_eval(v) for k, v in assigned(_tagged(notebook)).items()}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise NotebookError(f"the cell tagged `parameters` needs lines `name = literal` ({error})") from None


def kinds(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Names and types in the cell tagged `parameters`; where a line has no annotation, its default's type."""
    found = {name: type(value).__name__ for name, value in defaults(notebook).items()}
    return {name: ANY if kind == "NoneType" else kind for name, kind in found.items()} | declared(_tagged(notebook))


def kinds_of(path: str) -> dict[str, str]:
    """`kinds` of a file, which errors name."""
    try:
        return kinds(read(path))
    except NotebookError as error:
        raise NotebookError(str(error) if path in str(error) else f"{path}: {error}") from None


def _tagged(notebook: nbformat.NotebookNode) -> str:
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(f"a notebook needs one cell tagged `parameters`, this one has {len(cells)}")
    return cells[0].source


def checked(parameters: dict[str, Any], known: dict[str, str], where: str) -> dict[str, Any]:
    """`parameters` if each is known, of its type, and what a notebook of this name takes; whole numbers become floats.

    known: as `kinds` gives them. Raises NotebookError that names the parameter and lists what is allowed.
    """
    try:
        refuse_unknown(parameters, known)
        refuse_wrong(parameters, known, Path(where).stem)
    except InputError as error:
        raise NotebookError(f"{where}: {error}") from None
    return {k: float(v) if known[k] == "float" else v for k, v in parameters.items()}


def parameters_from(files: list[str], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Sections `FILE:KEY.KEY` of YAML files, then NAME VALUE pairs, read with YAML 1.2 as DVC does."""
    from ruamel.yaml import YAML, YAMLError

    yaml = YAML(typ="safe", pure=True)
    found: dict[str, Any] = {}
    for spec in files:
        name, _, keys = spec.partition(":")
        try:
            section = yaml.load(Path(name))
            for key in filter(None, keys.split(".")):
                section = section[key]
            found.update(section)
        except FileNotFoundError:
            raise NotebookError(f"{name} is missing: unknown profile; `ls profiles` shows what there is") from None
        except (KeyError, TypeError, ValueError, RecursionError, YAMLError) as error:
            line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise NotebookError(f"{spec}: no section of parameters, or not YAML ({line})") from None
    for name, value in pairs:
        try:
            found[name] = yaml.load(value)
        except YAMLError:
            raise NotebookError(f"-p {name}: {value!r} is not YAML; quote it") from None
    return found


def redrawn(parameters: dict[str, Any], known: dict[str, str]) -> dict[str, Any]:
    """The parameters that draw a notebook from the record that they would write; as they are where it writes none.

    known: as `kinds` gives them. Raises InputError if the record is missing.
    """
    if RECORDED not in known:
        return parameters
    if parameters.get(RECORD) is None:
        raise InputError(f"{RECORD} is not given, so there is nothing to draw from; name it with -p {RECORD} FILE")
    existing(str(parameters[RECORD]), "restore it with git, or run `dvc repro`")
    return parameters | {RECORDED: parameters[RECORD]}


def run(source: str, target: str, parameters: dict[str, Any], *, logs: Path = Path("logs")) -> None:
    """Execute a notebook with parameters and write its stable copy; the log of the run goes to `logs`.

    Raises NotebookError for wrong parameters and while another run makes the same target, before anything runs, and
    for a failed or stopped cell after it.
    """
    parameters = checked(parameters, kinds_of(source), source)
    logs.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", Path(target).with_suffix("").as_posix()).strip("-")
    log, part = logs / f"{name}.log", logs / f"{name}.ipynb"
    start = time.monotonic()
    with _alone(log, target):
        with _shown(log):
            _execute(source, part, parameters)
        write(stable(_finished(part, source)), target)
        part.unlink()
        with log.open("a") as f:
            f.write(f"{target}: {time.monotonic() - start:.1f} s\n")


def _execute(source: str, part: Path, parameters: dict[str, Any]) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError

    os.environ.update(ENVIRONMENT | arithmetic.settings())
    os.environ.pop("MPLBACKEND", None)  # the kernel's inline backend puts figures into the notebook
    try:
        papermill.execute_notebook(
            source,
            str(part),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=["--IPKernelApp.log_level=50"],
        )
    except papermill.PapermillExecutionError as error:
        line = ANSI.sub("", f"{error.ename}: {error.evalue}").splitlines()[0]
        raise NotebookError(f"{source}: cell {error.exec_count}: {line} (whole story: {part})") from None
    except DeadKernelError:
        raise NotebookError(f"{source}: the kernel died (out of memory?); see {part}") from None


def _finished(part: Path, source: str) -> nbformat.NotebookNode:
    notebook = read(part)
    states = {c.metadata.get("papermill", {}).get("status") for c in notebook.cells}
    if "pending" in states:
        raise NotebookError(f"{source}: stopped before its last cell (sys.exit in a cell?); see {part}")
    return notebook


@contextmanager
def _alone(log: Path, target: str) -> Iterator[None]:
    """Hold the log of a target while it is made; the system lets go of it however the run ends."""
    import fcntl  # not on Windows

    with log.open("a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotebookError(f"{target}: another run is making it; wait for that one (its log: {log})") from None
        yield


@contextmanager
def _shown(log: Path) -> Iterator[None]:
    """Name `log` as progress file to the kernel and copy its lines to the terminal while the block runs."""
    log.write_text("")
    os.environ["UL_PROGRESS"] = str(log.resolve())
    done = threading.Event()
    thread = threading.Thread(target=_tail, args=(log, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        del os.environ["UL_PROGRESS"]


def _tail(log: Path, done: threading.Event) -> None:
    with log.open() as f:
        while True:
            last = done.is_set()
            sys.stderr.write(f.read())
            sys.stderr.flush()
            if last:
                return
            done.wait(1)
