"""Runs out of records: found by what they were, and their SAL as arrays and tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..base import records, ud
from ..base.errors import InputError, Record, located

AGAIN = "run `dvc repro` again"

BLOCK = ["dataset", "architecture", "defense", "epochs"]


def load(folder: Path | str, settings: list[str]) -> list[Record]:
    """All runs of the named settings, `<folder>/<setting>.json` each, in order, a run that two of them hold once.

    Raises InputError if a file lacks or holds no runs, or if two files hold different runs of one key.
    """
    found: dict[tuple[Any, ...], Record] = {}
    for name in settings:
        for own, run in _runs(located(folder) / f"{name}.json"):
            if found.setdefault(own, run) != run:
                what = " ".join(map(str, own))
                mend = f"give them equal settings, or {AGAIN}"
                raise InputError(f"{name}.json: {what} differs from another setting's; {mend}")
    return list(found.values())


def _runs(path: Path) -> list[tuple[tuple[Any, ...], Record]]:
    try:
        found = [(key(run), run) for run in records.load(path)["runs"]]
        dict(found)  # every key can be looked up
        return found
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: no runs of a setting ({type(error).__name__}: {error}); {AGAIN}") from None


def of(runs: list[Record], **wanted: object) -> list[Record]:
    """The runs whose configuration has these values, for example method="lsp", defense="none"."""
    return [run for run in runs if all(run["config"][name] == value for name, value in wanted.items())]


def by_name(runs: list[Record]) -> dict[str, list[Record]]:
    """The runs of each method, methods as they come first."""
    return {m: of(runs, method=m) for m in dict.fromkeys(run["config"]["method"] for run in runs)}


def sal_matrix(run: Record, value: str = "sal") -> np.ndarray:
    """SAL of a run, float[epochs, layers] in nats (`value`: sal, s_max or s_min)."""
    return np.array([probe[value] for probe in run["sal"]], dtype=float)


def trajectories(runs: list[Record]) -> pd.DataFrame:
    """SAL along training, one row a run, probed epoch and layer.

    method, seed, epoch, layer, sal, s_max, s_min, error (standard error over images) in nats, radius, weights.
    """
    parts = [
        pd.DataFrame(probe).assign(method=run["config"]["method"], seed=run["config"]["seed"])
        for run in runs
        for probe in run["sal"]
    ]
    return pd.concat(parts, ignore_index=True).set_index(["method", "seed", "epoch", "layer"]).reset_index()


def layer_weights(run: Record) -> np.ndarray:
    """Weights of each probed layer, int[layers]."""
    return np.array(run["sal"][0]["weights"])


def threshold(clean: list[Record]) -> float:
    """Learnable threshold of the clean runs, mean over seeds (for figures; UD uses each seed's own)."""
    return float(np.mean([ud.threshold(sal_matrix(run)) for run in clean]))


def key(run: Record) -> tuple[Any, ...]:
    """(dataset, architecture, defense, epochs, method, seed) of a run."""
    config = run["config"]
    named = [config[name] for name in ("dataset", "architecture", "defense")]
    return (*named, config["recipe"]["epochs"], config["method"], config["seed"])
