"""Finished runs in a folder: a JSON file each, named by a hash of all it depends on, with a checksum of itself."""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import models, records
from .config import InputError, Record


@lru_cache
def code(names: tuple[str, ...]) -> str:
    """16 hex digits over these modules of this package."""
    total = hashlib.sha256()
    for module in names:
        total.update(Path(__file__).with_name(f"{module}.py").read_bytes())
    return total.hexdigest()[:16]


def machine() -> list[Any]:
    """What numbers depend on beside code: the kind of device and versions, that of the JPEG coder among them."""
    return [models.device().type, records.versions(), version("pillow")]


def name(*parts: Any) -> str:
    """16 hex digits of what a run depends on: anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def once(path: Path | None, poison: str | None, make: Callable[[], Record]) -> Record:
    """The record kept at `path`, or the one that `make` returns, kept at once; without a path nothing is kept.

    Either is as a file gives it back, keys in order, so that no table depends on which it was. poison: the run's file
    of poisoned images; a record says only that there was one. A file that cannot be read, was changed, or comes from
    another kind of device or other versions is made again.
    """
    if path is not None and (found := load(path, poison)) is not None:
        return found
    record = json.loads(json.dumps(records.rounded(make()), sort_keys=True))
    if path is not None:
        records.save(sealed(record), path)
    return record


def load(path: Path, poison: str | None) -> Record | None:
    """The record of a finished run; None if there is none, it cannot be read, or another machine's process made it."""
    if not path.exists():
        return None
    try:
        found = records.load(path)
        if found.pop("seal", None) != _seal(found):
            raise InputError("not as it was written")
        if [found["machine"]["device"], found["versions"]] != machine()[:2]:
            return None
        found["config"]["poison"] = poison is not None
        return found
    except (InputError, KeyError, TypeError) as error:
        records.note(f"{path}: {reason(error)}; it is trained again")
        return None


def sealed(record: Record) -> Record:
    """A rounded record with a checksum of itself, so that one with a changed digit is not taken for a result."""
    return record | {"seal": _seal(record)}


def _seal(record: Record) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def reason(error: Exception) -> str:
    """An error's type and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
