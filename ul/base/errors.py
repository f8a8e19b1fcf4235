"""The error that a user's mistake ends in, and checks that raise it."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

Record = dict[str, Any]  # of a run, a poison or a claim: what is written as JSON
Number = TypeVar("Number", int, float)


class InputError(ValueError):
    """What a user gave cannot be used: one line that names the file or value and the mend."""

    def _render_traceback_(self) -> list[str]:
        """Notebooks show the line alone (IPython's hook for custom tracebacks)."""
        return [f"InputError: {self}"]


def choose(name: str, choices: Collection[str], what: str) -> str:
    """`name` if it is one of `choices`. Raises InputError that lists them."""
    if name not in choices:
        raise InputError(f"unknown {what} {name!r}; choose from {', '.join(sorted(choices))}")
    return name


def at_least(value: Number, low: float, what: str) -> Number:
    """`value` if it is not below `low`. Raises InputError that says so."""
    if not value >= low:
        raise InputError(f"{what} is {value}; it must be at least {low}")
    return value


def within(value: float, what: str) -> float:
    """`value` if it lies in [0, 1]. Raises InputError that says so."""
    if not 0 <= value <= 1:
        raise InputError(f"{what} is {value}; it is a share from 0 to 1")
    return value


def whole(value: int, what: str) -> int:
    """`value` if it is a whole number. Raises InputError that says so."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{what} is {value!r}; it must be a whole number")
    return value


def probe_epochs(epochs: int, count: int) -> tuple[int, ...]:
    """`count` epochs (1-based) spread evenly over a run, the last one among them; all of them if count >= epochs."""
    at_least(epochs, 1, "epochs")
    at_least(count, 1, "probe_epochs")
    count = min(count, epochs)
    return tuple(round((i + 1) * epochs / count) for i in range(count))


def existing(path: Path | str, mend: str) -> Path:
    """The path if something is there. Raises InputError that names it and the mend."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} is missing; {mend}")
    return path


def located(path: Path | str) -> Path:
    """A relative path from the current folder or, where nothing lies there, from the repository's root.

    Notebooks run in their own folder under Jupyter, in the root under papermill and DVC.
    """
    path, home = Path(path), Path(__file__).resolve().parents[2]
    return home / path if not path.exists() and (home / path).exists() else path
