"""Result records: JSON with whole configuration, written atomically; progress lines beside them."""

import base64
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .errors import InputError, Record, located

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("torch", "numpy", "scikit-learn", "pandas", "kornia")
PROGRESS = "UL_PROGRESS"

T = TypeVar("T")


def rounded(value: Any, digits: int = 6) -> Any:
    """`value` with every float in it cut to `digits` significant digits, so that text stays short and stable."""
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v, digits) for v in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{digits}g}")
    return value


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Write under a temporary name in the same folder, then rename: a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say where
        raise
    finally:
        part.unlink(missing_ok=True)
    return path


def write_text(path: Path | str, content: str) -> Path:
    """`write_bytes` for UTF-8 text with Unix line ends."""
    return write_bytes(path, content.encode())


def save(record: Record, path: Path | str) -> Path:
    """Write a record as JSON (sorted keys, floats of 6 digits). Raises ValueError for NaN or infinity."""
    return write_text(path, json.dumps(rounded(record), indent=1, sort_keys=True, allow_nan=False) + "\n")


def study(make: Callable[[], Record], *, record: str | None = None, recorded: str | None = None) -> Record:
    """A study's record, as its file holds it: read from `recorded`, or made, and written to `record` if that is given.

    Figures, tables and sentences are made from it alone, so that none of them depends on which it was.
    """
    if recorded is not None:
        return load(located(recorded))
    found = json.loads(json.dumps(rounded(make()), sort_keys=True, allow_nan=False))
    if record is not None:
        save(found, record)
    return cast(Record, found)


def load(path: Path | str) -> Record:
    """Read one record. Raises InputError if the file is missing or not a JSON object."""
    try:
        found = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run `dvc repro` first") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON record ({error}); run `dvc repro` again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON record ({type(found).__name__}); run `dvc repro` again")
    return found


def packed(array: "np.ndarray") -> Record:
    """An array as JSON can hold it: dtype, shape, and its bytes as base64 text on one line."""
    import numpy as np

    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "base64": content}


def unpacked(found: Record) -> "np.ndarray":
    """The array that `packed` wrote. Raises InputError if it is no such thing."""
    import numpy as np

    try:
        raw = base64.b64decode(found["base64"], validate=True)
        return np.frombuffer(raw, found["dtype"]).reshape(found["shape"])
    except (KeyError, TypeError, ValueError, SyntaxError) as error:  # numpy parses what a dtype says
        raise InputError(f"no packed array ({reason(error)}); run `dvc repro` again") from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def digest(*arrays: "np.ndarray") -> str:
    """First 16 hex digits of the SHA-256 over the bytes of numpy arrays, their shapes and dtypes."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


def reason(error: BaseException) -> str:
    """An error's type and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def note(line: str) -> None:
    """Append a line to the progress file of this run; without one (interactive use) do nothing."""
    if path := os.environ.get(PROGRESS):
        with open(path, "a") as f:
            f.write(line + "\n")


def progress(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Iterate with a tqdm bar in interactive use, with lines in the progress file under the runner."""
    if os.environ.get(PROGRESS):
        yield from _noted(items, label, total)
        return
    from tqdm import tqdm

    yield from tqdm(items, desc=label, total=total, file=sys.stderr)


def _noted(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    every, start = max(1, total // 10), time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if done % every == 0 or done == total:
            left = (time.monotonic() - start) / done * (total - done)
            note(f"{label}: {done}/{total}" + (f", about {left:.0f} s left" if left else ""))
