"""Notebooks as pipeline stages: cleaned sources, typed parameters, byte-stable executed copies, written atomically."""

import ast
import os
import re
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
RUN_KEYS = ("start_time", "end_time", "duration", "input_path", "output_path", "environment_variables", "exception")
ADDRESS = re.compile(r"(?<= at )0x[0-9a-f]{6,}")
TEMPORARY = re.compile(r"/\S*/ipykernel_\d+/")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# One thread a process: the same sums in the same order on every machine (seeds run in parallel processes instead).
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
ENVIRONMENT = {"SOURCE_DATE_EPOCH": "0", "PYTHONHASHSEED": "0"} | THREADS


class NotebookError(Exception):
    """A notebook, its parameters or its run is at fault: one line for the terminal."""


def cleaned(notebook):
    """What a stage depends on: code, text and tags, without outputs, counters or editor metadata (changed in place)."""
    notebook.metadata = nbformat.from_dict(KERNEL)
    for i, cell in enumerate(notebook.cells):
        tags = cell.metadata.get("tags")
        cell["id"], cell.metadata = f"c{i:03d}", nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def stable(notebook):
    """An executed notebook without times, random ids, addresses and temporary names (changed in place)."""
    for key in RUN_KEYS:
        notebook.metadata.get("papermill", {}).pop(key, None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected"
        for output in cell.get("outputs", []):
            _mask(output)
    return notebook


def _mask(output) -> None:
    if "text" in output:
        output.text = TEMPORARY.sub("", ADDRESS.sub("0x0", output.text))
    for kind, text in output.get("data", {}).items():
        if isinstance(text, str) and kind.startswith("text/"):
            output.data[kind] = ADDRESS.sub("0x0", text)


def read(path: Path | str):
    """A notebook of format 4. Raises NotebookError if the file is missing or not one."""
    try:
        return nbformat.read(path, 4)
    except FileNotFoundError:
        raise NotebookError(f"{path} is missing; `ls notebooks` shows what there is") from None
    except Exception as error:  # nbformat raises many types for damaged JSON
        raise NotebookError(f"{path}: not a notebook ({type(error).__name__}); restore it with git") from None


def write(notebook, path: Path | str) -> None:
    """Write under a temporary name, then rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        nbformat.write(notebook, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def clean(source: str, target: str) -> None:
    """Write cleaned copies of a folder's notebooks into the folder `target`. Raises NotebookError if there are none."""
    paths = sorted(Path(source).glob("*.ipynb"))
    if not paths:
        raise NotebookError(f"{source}: no notebooks there; name the folder that holds them")
    for path in paths:
        write(cleaned(read(path)), Path(target) / path.name)


def defaults(notebook) -> dict[str, object]:
    """Names and default values in the cell tagged `parameters`; values must be literals."""
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(f"a notebook needs one cell tagged `parameters`, this one has {len(cells)}")
    try:
        nodes = [n for n in ast.parse(cells[0].source).body if isinstance(n, ast.Assign | ast.AnnAssign)]
        return {(n.targets[0] if isinstance(n, ast.Assign) else n.target).id: ast.literal_eval(n.value) for n in nodes}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise NotebookError(f"the cell tagged `parameters` needs lines `name = literal` ({error})") from None


def checked(parameters: dict, known: dict, where: str) -> dict:
    """`parameters` if each is known and of its default's type. Raises NotebookError that lists what is wrong.

    An int passes for a float; a default of None takes any single value; None passes where None is the default.
    """
    if unknown := sorted(set(parameters) - set(known)):
        raise NotebookError(f"{where}: unknown parameter {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    for name, value in parameters.items():
        if not _fits(value, known[name]):
            kind = type(known[name]).__name__
            raise NotebookError(f"{where}: parameter {name} must be {kind}, got {type(value).__name__} {value!r}")
    return {k: float(v) if type(known[k]) is float else v for k, v in parameters.items()}


def _fits(value, default) -> bool:
    if default is None:
        return value is None or isinstance(value, str | int | float | bool)
    if type(default) is float:
        return type(value) in (int, float)
    return type(value) is type(default)


def parameters_from(files: list[str], pairs: list[tuple[str, str]]) -> dict:
    """Sections `FILE:KEY.KEY` of YAML files, then NAME VALUE pairs, read with YAML 1.2 as DVC does."""
    from ruamel.yaml import YAML, YAMLError

    yaml = YAML(typ="safe", pure=True)
    found: dict = {}
    for spec in files:
        name, _, keys = spec.partition(":")
        try:
            section = yaml.load(Path(name))
            for key in filter(None, keys.split(".")):
                section = section[key]
            found.update(section)
        except FileNotFoundError:
            raise NotebookError(f"{name} is missing: unknown profile; `ls profiles` shows what there is") from None
        except (KeyError, TypeError, ValueError, YAMLError) as error:
            line = " ".join(f"{type(error).__name__}: {error}".split())
            raise NotebookError(f"{spec}: no section of parameters, or not YAML ({line})") from None
    for name, value in pairs:
        try:
            found[name] = yaml.load(value)
        except YAMLError:
            raise NotebookError(f"-p {name}: {value!r} is not YAML; quote it") from None
    return found


def run(source: str, target: str, parameters: dict, *, logs: Path = Path("logs")) -> None:
    """Execute a notebook with parameters and write its stable copy; the log of the run goes to `logs`.

    Raises NotebookError for wrong parameters before anything runs, and for a failed or stopped cell after it.
    """
    parameters = checked(parameters, defaults(read(source)), source)
    logs.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", Path(target).with_suffix("").as_posix()).strip("-")
    log, part = logs / f"{name}.log", logs / f"{name}.ipynb"
    start = time.monotonic()
    with _shown(log):
        _execute(source, part, parameters)
    write(stable(_finished(part, source)), target)
    part.unlink()
    with log.open("a") as f:
        f.write(f"{target}: {time.monotonic() - start:.1f} s\n")


def _execute(source: str, part: Path, parameters: dict) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError

    os.environ.update(ENVIRONMENT)
    os.environ.pop("MPLBACKEND", None)  # the kernel's inline backend puts figures into the notebook
    try:
        papermill.execute_notebook(
            source, str(part), parameters=parameters, kernel_name="python3", progress_bar=False, record_timing=False,
            coalesce_streams=True, extra_arguments=["--IPKernelApp.log_level=50"],
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        line = ANSI.sub("", f"{error.ename}: {error.evalue}").splitlines()[0]
        raise NotebookError(f"{source}: cell {error.exec_count}: {line} (whole story: {part})") from None
    except DeadKernelError:
        raise NotebookError(f"{source}: the kernel died (out of memory?); see {part}") from None


def _finished(part: Path, source: str):
    notebook = read(part)
    states = {c.metadata.get("papermill", {}).get("status") for c in notebook.cells}
    if "pending" in states:
        raise NotebookError(f"{source}: stopped before its last cell (sys.exit in a cell?); see {part}")
    return notebook


@contextmanager
def _shown(log: Path):
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
