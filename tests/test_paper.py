"""Every stage of the profiles for GPUs on real images: their own parameters but for sizes, which are tiny."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from tests.conftest import real_views
from tests.test_pipeline import cloned, dvc, environment
from ul.base.names import DATASETS
from ul.tables.rules import FAILS, HOLDS, NOT_TESTED, UNDECIDED

PAPER = "profiles/paper/dvc.yaml"
pytestmark = pytest.mark.long  # an hour or more: ResNet-18 and -50 with SAL on two cores
YAML_ = YAML(typ="safe", pure=True)
KEPT = ("noise", "lsp", "ops")  # of the methods; a plain setting needs three for its ranks
LACKING = ("normal", "reshading")  # the real views that have depth come without normals, of which shading is made
LIMITS = {"cifar10": 200, "cifar100": 100, "taskonomy": 12, "mnist": 64}
FEW = {"epochs": 1, "seeds": 1, "probe_epochs": 1, "sal_images": 2, "victims": 1}


def smaller(settings: dict, kept: tuple[str, ...] = KEPT, **more) -> dict:
    """The same parameters with few images, epochs, seeds and methods, and reduced recipes."""
    found = settings | {k: v for k, v in (FEW | more).items() if k in settings}
    found |= {k: "cpu" for k in ("recipe",) if k in settings}
    for name in ("methods", "others", "shown", "balance_methods", "flat_methods"):
        if name in settings:
            found[name] = [m for m in settings[name] if m in kept]
    return found | ({"limit": LIMITS[settings["dataset"]]} if "dataset" in settings else {})


def tiny(params: dict) -> dict:
    for row in params["poisons"].values():
        row["with"] = smaller(row["with"]) | {"architecture": "resnet8"}
    for row in params["settings"].values():
        first = row["with"]["method"]
        row["with"] = smaller(row["with"])
        plain = row["with"].get("defense", "none") == "none" and row["with"]["architecture"] == "resnet18"
        if not plain or first not in KEPT:
            others = [m for m in row["with"]["others"] if m != "lsp"] if plain else []
            row["with"] |= {"method": "lsp", "others": others}
    for row in params["cross_tasks"].values():
        # SAL of every task takes minutes a network.
        few = smaller(row["with"], KEPT[:2], seeds=2, batch_size=8) | {"limit": LIMITS[row["with"]["dataset"]]}
        few |= {"seeds": min(few["seeds"], params["poisons"][few["dataset"]]["with"]["seeds"])}
        names = few.get("tasks") or DATASETS[few["dataset"]].tasks
        row["with"] = few | {"tasks": [task for task in names if task not in LACKING]}
    for row in params["convergences"].values():
        few = smaller(row["with"], epochs=2, seeds=3, flat_seeds=1)
        row["with"] = few | {"grid": 3, "looked": 2, "surface_images": 8}
    study = smaller(params["validation"]["with"], seeds=1, sal_images=40)  # a full batch of the public code
    study |= {"departed": ["late_projection"], "draws": 2, "shares": [0, 1], "label_noises": [0, 1], "levels": [8, 16]}
    params["validation"]["with"] = study | {"epsilons": [0.2], "architecture": "resnet8"}
    own = smaller(params["my_poison"]["with"], seeds=2, task_epochs=1)
    params["my_poison"]["with"] = own | {"encoder": "resnet8", "architecture": "resnet8", "defenses": ["jpeg"]}
    return params


def repeated(shared_data: Path, clone: Path, profile: str) -> Path:
    """A clone in which the stages of a profile were run at tiny sizes."""
    root = clone / "build" / "data"
    subprocess.run([sys.executable, shared_data / "unpack.py", root, "--limit", "600"], check=True)
    if profile == "paper":
        real_views(shared_data, root.with_name("views"))
        shutil.rmtree(root / "taskonomy", ignore_errors=True)
        shutil.move(root.with_name("views") / "taskonomy", root / "taskonomy")
        photographs_as_cifar100(root)
    path = clone / "profiles" / profile / "params.yaml"
    path.write_text(json.dumps(tiny(YAML_.load(path))))  # JSON is YAML
    done = dvc(clone, "repro", f"profiles/{profile}/dvc.yaml")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return clone


@pytest.fixture(scope="module")
def paper(shared_data, tmp_path_factory) -> Path:
    return repeated(shared_data, cloned(tmp_path_factory.mktemp("paper") / "clone"), "paper")


def photographs_as_cifar100(root: Path) -> None:
    """CIFAR-10's photographs in CIFAR-100's layout: a coarse label, then a fine one."""
    (root / "cifar-100-binary").mkdir()
    for source, target in (("data_batch_1", "train"), ("test_batch", "test")):
        rows = np.fromfile(root / "cifar-10-batches-bin" / f"{source}.bin", np.uint8).reshape(-1, 3073)
        np.insert(rows, 0, 0, axis=1).tofile(root / "cifar-100-binary" / f"{target}.bin")


def test_every_stage_of_paper_runs_on_real_images(paper):
    params = YAML_.load(paper / "profiles" / "paper" / "params.yaml")
    results = paper / "results" / "paper"
    for name, row in params["settings"].items():
        runs = json.loads((results / "records" / f"{name}.json").read_text())["runs"]
        assert {run["config"]["architecture"] for run in runs} == {row["with"]["architecture"]}
        assert row["with"].get("defense", "none") in {run["config"]["defense"] for run in runs}
    by_data = pd.read_csv(results / "tables" / "benchmark" / "ud_by_data.csv")
    assert set(by_data["dataset"]) == {"cifar10", "cifar100", "taskonomy"}
    assert "published_accuracy" not in by_data.dropna(axis=1, how="all"), "a limit makes it another experiment"
    assert set(pd.read_csv(results / "tables" / "benchmark" / "defense_gains.csv")["defense"]) == {
        "jpeg", "cutout", "mixup", "at", "ueraser",
    }  # fmt: skip
    claims = pd.read_csv(results / "tables" / "claims" / "claims.csv").set_index("claim")
    assert set(claims["verdict"]) <= {HOLDS, FAILS, UNDECIDED, NOT_TESTED} and claims.loc["C7", "n"] == 1
    assert dvc(paper, "status", PAPER).stdout.strip() == "Data and pipelines are up to date."


def test_every_stage_of_the_headline_runs_on_real_images(shared_data, tmp_path):
    """One seed, the first that decides, with its own poison; the queue then finds everything kept."""
    clone = repeated(shared_data, cloned(tmp_path / "clone"), "cifar10")
    results = clone / "results" / "cifar10"
    for name in ("cifar10", "cifar10-jpeg", "cifar10-cutout"):
        runs = json.loads((results / "records" / f"{name}.json").read_text())["runs"]
        assert {run["config"]["seed"] for run in runs} == {3}
        assert {run["config"]["poison_seed"] for run in runs if run["config"]["method"] != "clean"} == {3}
    claims = pd.read_csv(results / "tables" / "claims" / "claims.csv").set_index("claim")
    assert set(claims["verdict"]) <= {HOLDS, FAILS, UNDECIDED, NOT_TESTED}
    assert "cifar10_headline" in (results / "findings.md").read_text()
    words = [sys.executable, "-m", "ul", "queue", "profiles/cifar10/params.yaml", "--minutes", "60"]
    queued = subprocess.run(words, cwd=clone, env=environment(clone), capture_output=True, text=True)
    assert queued.returncode == 0 and ": stopped" not in queued.stdout, queued.stderr[-2000:]
    again = dvc(clone, "status", "profiles/cifar10/dvc.yaml").stdout.strip()
    assert again == "Data and pipelines are up to date."
