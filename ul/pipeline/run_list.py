"""What was run where: every setting of every profile, with device, seeds done and open, as one page."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..base import records
from ..base.errors import InputError, Record
from ..base.names import CLEAN
from ..tables.benchmark import span
from . import notebooks

COLUMNS = ["profile", "record", "data", "network", "defense", "epochs", "methods", "seeds done", "seeds open"]
COLUMNS += ["poison draws", "device", "torch", "code"]
IMPORTED = {"cifar10/exploratory": ("NVIDIA H200", "01fa769, one line changed")}  # by another state of the code
TODAY = "as committed"
HEADLINES = ("laptop", "cifar10/exploratory", "cifar10")  # first of all
INTRODUCTION = """# What was run where

One row a setting or study; `python -m ul readme --runs results/runs.md` writes this page from the records and the
profiles' parameters. *Seeds open*: named in the profile, not in a record. *Poison draws*: seeds that drew the poisons.
*Code*: the state that made the numbers; "as committed" is what the profile's `dvc.lock` ties to the code beside it.
Smoke is no result.
"""


def page(root: Path) -> str:
    """Markdown: INTRODUCTION and a table of COLUMNS for the repository at `root`."""
    rows = pd.DataFrame(_rows(root), columns=COLUMNS)
    order = {name: i for i, name in enumerate(HEADLINES)}
    rows = rows.sort_values("profile", key=lambda p: p.map(lambda name: order.get(name, len(order))), kind="stable")
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows.itertuples(index=False)]
    return f"{INTRODUCTION}\n" + "\n".join(lines) + "\n"


def _rows(root: Path) -> Iterator[list[Any]]:
    profiles = {path.parent.name: path for path in sorted(root.glob("profiles/*/params.yaml"))}
    for name, path in {"laptop": root / "params.yaml", **profiles}.items():
        if name == "smoke":
            continue
        planned = notebooks.parameters_from([f"{path}:settings"], [])
        for setting, row in planned.items():
            yield _row(name, setting, _runs(root / f"results/{name}/records/{setting}.json"), row["with"])
        for row in notebooks.parameters_from([f"{path}:cross_tasks"], []).values():
            own = row["with"]
            yield _row(name, own["name"], _runs(root / f"results/{name}/studies/{own['name']}.json"), own)
    for name in IMPORTED:
        for path in sorted((root / "results" / name).glob("*/*.json")):
            if path.parent.name in ("records", "studies") and not path.name.startswith("poison-"):
                yield _row(name, path.stem, _runs(path), {})


def _runs(path: Path) -> list[Record]:
    try:
        return list(records.load(path)["runs"]) if path.exists() else []
    except (KeyError, TypeError):
        raise InputError(f"{path}: no runs of a study; run `dvc repro` again") from None


def _row(profile: str, what: str, runs: list[Record], planned: Mapping[str, Any]) -> list[Any]:
    """One row of COLUMNS; from the parameters what no record tells."""
    first = planned.get("first_seed", 0)
    wanted = range(first, first + planned.get("seeds", 0))
    if not runs:
        network = planned.get("architecture", planned.get("encoder", "resnet8"))
        methods = planned.get("methods") or [planned["method"], *planned.get("others", [])]
        told = [network, planned.get("defense", "none"), planned["epochs"], ", ".join(methods), "", span(wanted)]
        return [profile, what, _data(planned), *told, "", "not run yet", "", ""]
    configs, machines = [run["config"] for run in runs], [run["machine"] for run in runs]
    done = set.intersection(*(set(c["seed"] for c in configs if c["method"] == m) for m in _methods(configs)))
    some = {c["seed"] for c in configs} - done
    ends = [_network(configs[0]), configs[-1].get("defense", "none"), configs[0]["recipe"]["epochs"]]
    ends += [", ".join(_methods(configs)), span(done) + (f" (of some: {span(some)})" if some else "")]
    draws = span({c.get("poison_seed", 0) for c in configs if c["method"] != CLEAN})
    gpu, code = IMPORTED.get(profile, (None, TODAY))
    devices = gpu or ", ".join(dict.fromkeys(str(m.get("gpu", m["device"])) for m in machines))
    torch = ", ".join(dict.fromkeys(run["versions"]["torch"] for run in runs))
    left = span(set(wanted) - done)
    return [profile, what, _data(configs[0]), *ends, left, draws, devices, torch, code]


def _methods(configs: list[Record]) -> list[str]:
    return list(dict.fromkeys(config["method"] for config in configs))


def _network(config: Mapping[str, Any]) -> str:
    return config.get("architecture") or config["encoder"]


def _data(config: Mapping[str, Any]) -> str:
    limit = config.get("limit")
    return f"{config.get('dataset', 'rooms')}{f', {limit:,} images' if limit else ''}"
