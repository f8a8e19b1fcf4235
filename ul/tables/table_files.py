"""Tables on disk: written as csv, md and tex, read again, and compared between two folders of results."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..base import records
from ..base.errors import InputError, existing
from .run_records import BLOCK

FIRST = "run `dvc repro` first"


def write(frame: pd.DataFrame, stem: Path | str, *, digits: int = 4) -> None:
    """`<stem>.csv`, `.md` and `.tex`, numbers of `digits` significant digits, lines ending in a newline."""
    short = frame.map(lambda v: float(f"{v:.{digits}g}") + 0.0 if isinstance(v, float) else v)
    stem = Path(stem)
    records.write_text(stem.with_suffix(".csv"), short.to_csv(index=False, lineterminator="\n"))
    records.write_text(stem.with_suffix(".md"), short.to_markdown(index=False) + "\n")
    records.write_text(stem.with_suffix(".tex"), short.to_latex(index=False, escape=True))


def write_metrics(summary: pd.DataFrame, path: Path | str) -> None:
    """dataset.method.measure as JSON, those that are known, for `dvc metrics show` and `dvc metrics diff`."""
    columns = ["test_accuracy", "ud_layers", "ud_weights", "ud_pooled", "late_sal"]
    known = {d: part.set_index("method")[columns] for d, part in summary.groupby("dataset", sort=False)}
    found = {d: {m: row.dropna().to_dict() for m, row in part.iterrows()} for d, part in known.items()}
    records.save(found, path)


NEEDED = ("test_accuracy", "ud_layers")
TOLERANCES = {"test_accuracy": 0.05, "accuracy_minus_noise": 0.05, "ud_layers": 0.25, "ud_weights": 0.25}


def differences(a: Path | str, b: Path | str) -> list[str]:
    """How `ud_by_data.csv` of two result folders differs beyond TOLERANCES (absolute), one line each; none: they agree.

    Between machines sums round differently and runs drift apart, so only means over seeds are compared.
    Raises InputError if a table is missing or damaged.
    """
    name = Path("tables") / "benchmark" / "ud_by_data.csv"
    old, new = (_indexed(Path(folder) / name) for folder in (a, b))
    if list(old.index) != list(new.index):
        return [f"conditions differ: {sorted(set(old.index) ^ set(new.index), key=str)}"]
    shared = [c for c in TOLERANCES if c in old and c in new]
    gaps = [(row, c, old.at[row, c], new.at[row, c]) for row in old.index for c in shared]
    return [f"{' '.join(map(str, row))} {c}: {x} and {y}" for row, c, x, y in gaps if _apart(x, y, TOLERANCES[c])]


def _apart(x: float, y: float, most: float) -> bool:
    return not (abs(x - y) <= most or (np.isnan(x) and np.isnan(y)))


def _indexed(path: Path) -> pd.DataFrame:
    keys, mend = [*BLOCK, "method"], f"{FIRST}, or name another folder"
    found = read(path, [*keys, *NEEDED], mend=mend).set_index(keys)
    measured = found[[c for c in TOLERANCES if c in found]]
    if not found.index.is_unique or any(not pd.api.types.is_numeric_dtype(kind) for kind in measured.dtypes):
        raise InputError(f"{path}: a condition comes twice, or a measure is no number; {mend}")
    return found


def read(path: Path | str, columns: Sequence[str] = (), *, mend: str = FIRST) -> pd.DataFrame:
    """A table (.csv). Raises InputError, with the mend, if it is missing, not a table, or lacks one of the columns."""
    existing(path, mend)
    try:
        found = pd.read_csv(path)
    except Exception as error:  # damaged files raise many types
        raise InputError(f"{path}: not a table ({type(error).__name__}); {mend}") from None
    if missing := set(columns) - set(found):
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}; {mend}")
    return found
