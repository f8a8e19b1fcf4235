"""Finished work in a folder: a JSON file a record, named by a hash of all it depends on, with a checksum of itself.

Arrays of a record (`ARRAYS`) lie beside it in a safetensors file, whose digest the record holds.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..base import records
from ..base.errors import InputError, Record
from ..data import formats
from ..nets import device

MORE = ("pillow", "scipy", "torchjd")  # packages that numbers depend on, beside those that every record names
ARRAYS = "arrays"  # of a record: arrays by name


def machine() -> list[Any]:
    """What numbers depend on beside code: device, precision, a GPU's model, versions (the JPEG coder's, too)."""
    return [device.machine(device.device()), *_packages()]


@cache
def _packages() -> tuple[dict[str, str], dict[str, str | None]]:
    return records.versions(), {name: _version(name) for name in MORE}


def _version(name: str) -> str | None:
    """None: not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def name(*parts: Any) -> str:
    """16 hex digits of what a record depends on: anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def once(path: Path | None, make: Callable[[], Record]) -> Record:
    """The record kept at `path`, or the one that `make` returns, kept at once; without a path nothing is kept.

    Either is as a file gives it back, keys in order, so that no table depends on which it was. A file that cannot be
    read, was changed, or comes from another kind of device or other versions is made again. Raises ValueError for NaN
    or infinity in it.
    """
    if path is not None and (found := load(path)) is not None:
        return found
    made = make()
    arrays = made.pop(ARRAYS, {})
    record = json.loads(json.dumps(records.rounded(made), sort_keys=True, allow_nan=False))
    if path is not None:
        save(path, record, arrays)
    return record | ({ARRAYS: arrays} if arrays else {})


def save(path: Path, record: Record, arrays: dict[str, np.ndarray]) -> None:
    """Write a rounded record and its arrays, the arrays first: a record that is there is whole."""
    if arrays:
        formats.write(arrays, _beside(path), "safetensors")
        record = record | {ARRAYS: _digest(arrays)}
    records.save(sealed(record | {"made_on": machine()}), path)


def load(path: Path) -> Record | None:
    """A finished record; None if there is none, it cannot be read, was changed, or another machine made it."""
    if not path.exists():
        return None
    try:
        found = records.load(path)
        if found.pop("seal", None) != _seal(found):
            raise InputError("not as it was written")
        if found.pop("made_on") != json.loads(json.dumps(machine())):
            return None
        return found | ({ARRAYS: _arrays(path, found[ARRAYS])} if ARRAYS in found else {})
    except (InputError, KeyError, TypeError) as error:
        records.note(f"{path}: {records.reason(error)}; it is made again")
        return None


def _beside(path: Path) -> Path:
    return path.with_suffix(".safetensors")


def _arrays(path: Path, digest: str) -> dict[str, np.ndarray]:
    if not _beside(path).exists():
        raise InputError("its arrays are missing")
    arrays = formats.FORMATS["safetensors"].read(_beside(path))
    if _digest(arrays) != digest:
        raise InputError("its arrays are not as they were written")
    return arrays


def _digest(arrays: dict[str, np.ndarray]) -> str:
    return records.digest(*(arrays[key] for key in sorted(arrays)))


def sealed(record: Record) -> Record:
    """A rounded record with a checksum of itself, so that one with a changed digit is not taken for a result."""
    return record | {"seal": _seal(record)}


def _seal(record: Record) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
