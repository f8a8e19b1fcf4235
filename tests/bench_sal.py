"""The cost and fidelity of SAL's estimators, part of `make bench`: results/bench/sal_cpu.csv.

Each row is one estimator on one trained network. Seconds are wall-clock on one thread, two networks beside each other;
`ratio` is to the plain loop of tests/plain.py on the same images in the same run; fidelity is to `exact`, layer by
layer. `passes` are evaluations of the loss on all images, and `bound` the seconds that as many bare forward and
backward passes of the whole network would take. An argument names the cases to measure; other rows stay.
"""

import copy
import datetime
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import joblib
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from tests import plain
from tests.imports import ROOT
from ul import data, poisons
from ul.base import records
from ul.data import pixels
from ul.nets import classifiers
from ul.sharpness import sal
from ul.training import defenses, victim

PATH = ROOT / "results" / "bench" / "sal_cpu.csv"
BATCH = 64
GOOD = 0.95  # share of `exact` that a layer's SAL must reach
SETTINGS = {
    "gradient": {"estimator": "gradient"},
    "taylor": {"estimator": "taylor"},
    **{f"pgd, {n} steps": {"steps": n} for n in (1, 2, 3, 5, 10, 20)},
    "pgd, 10 steps, to 1 %": {"steps": 10, "tolerance": 0.01},
    "pgd, 20 steps, none left out": {"tolerance": 0.0},
    "pgd, 20 steps, bfloat16": {"precision": "bfloat16"},
}
DEFAULT = "pgd, 20 steps"


@dataclass(frozen=True)
class Case:
    """A network, how it is trained, after which epochs it is probed on how many images; every: which of its layers."""

    architecture: str
    method: str
    probed: tuple[tuple[int, int], ...]
    size: int = 32
    limit: int | None = None
    every: int = 1

    @property
    def epochs(self) -> int:
        return max(epoch for epoch, _ in self.probed)


# Two cores cannot carry more of `exact` on a ResNet-18: 32 images of 16x16, every fourth layer.
SMALL = {"size": 16, "limit": 500, "every": 4}
CASES = {f"{case.architecture} {case.method}": case for case in (
    Case("resnet8", "clean", ((4, 128), (60, 128))),
    Case("resnet8", "lsp", ((4, 128), (60, 128), (60, 512))),
    Case("resnet18", "clean", ((8, 32),), **SMALL),
    Case("resnet18", "lsp", ((8, 32),), **SMALL),
)}  # fmt: skip


def timed(action: Callable) -> tuple[float, object]:
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def trained(case: Case) -> tuple[dict[int, nn.Module], data.Split]:
    """The network after each probed epoch, and the images that it was trained on."""
    clean = data.load("rooms", "train", root=ROOT / "data", size=case.size, limit=case.limit, targets=("class_object",))
    split = clean if case.method == "clean" else poisons.make(case.method, clean, seed=0, device="cpu", recipe="cpu")
    model, kept = classifiers.make(case.architecture, channels=3, classes=10, size=case.size, seed=0), {}
    victim.fit(
        model, split, None, recipe=replace(victim.RECIPES[case.architecture], epochs=case.epochs), seed=0, device="cpu",
        defense=defenses.make("none"), target="class_object",
        on_epoch=lambda epoch, m: kept.update({epoch: copy.deepcopy(m)} if epoch in dict(case.probed) else {}),
    )  # fmt: skip
    return kept, split


class Counted:
    """Cross-entropy that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(outputs, targets)


def bare_pass(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Seconds of one forward and backward pass of all images through the whole network in eval mode."""
    weights = list(model.eval().parameters())

    def once():
        for part, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            torch.autograd.grad(F.cross_entropy(model(part), labels), weights)

    return min(timed(once)[0] for _ in range(3))


def rows_of(model: nn.Module, x: Tensor, y: Tensor, layers: list[str], names: dict) -> list[dict]:
    """Every estimator on one network and its images."""
    options = {"layers": layers, "batch_size": BATCH}
    exact_seconds, truth = timed(lambda: sal.per_layer(model, x, y, estimator="exact", **options))
    truth = truth.set_index("layer")["sal"]
    plain_seconds, _ = timed(lambda: plain.plain_sal(copy.deepcopy(model), x, y, layers=layers))
    bare, found = bare_pass(copy.deepcopy(model), x, y), []
    for name, settings in SETTINGS.items():
        loss = Counted()
        seconds, frame = timed(lambda loss=loss, chosen=settings: sal.per_layer(
            model, x, y, loss=loss, **options, **chosen
        ))  # fmt: skip
        share, passes = frame.set_index("layer")["sal"] / truth, loss.calls * min(BATCH, len(x)) / len(x)
        found.append(names | {
            "estimator": name, "seconds": seconds, "plain_seconds": plain_seconds, "exact_seconds": exact_seconds,
            "ratio": plain_seconds / seconds, "passes": passes, "bound": passes * bare,
            "good_layers": (share >= GOOD).mean(), "median": share.median(), "worst": share.min(),
            "worst_layer": share.idxmin(), "spearman": spearmanr(share * truth, truth)[0],
        })  # fmt: skip
    return found


def measured(case: Case) -> list[dict]:
    """All rows of one case."""
    torch.set_num_threads(1)
    stamp = {"date": datetime.date.today().isoformat(), "machine": platform.machine()}
    found, (kept, split) = [], trained(case)
    layers = classifiers.probed_layers(kept[case.epochs])[:: case.every]
    for epoch, count in case.probed:
        chosen = split.take(torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count])
        x = pixels.to_float(chosen.images).contiguous(memory_format=torch.channels_last)
        names = {"model": case.architecture, "data": case.method, "epoch": epoch, "images": count}
        found += rows_of(kept[epoch], x, chosen.targets["class_object"], layers, stamp | names)
        print(in_words([r for r in found if r["estimator"] == DEFAULT][-1]), flush=True)
    return found


def in_words(row: dict) -> str:
    return ("SAL, {model}, {data}, epoch {epoch}, {images} images: {ratio:.1f} times the plain loop, {good_layers:.0%} "
            "of layers reach .95 of exact, worst {worst:.2f} ({worst_layer})").format(**row)  # fmt: skip


def main() -> None:
    wanted = {name: CASES[name] for name in sys.argv[1:] or CASES}
    found = joblib.Parallel(n_jobs=2)(joblib.delayed(measured)(case) for case in wanted.values())
    frame = pd.DataFrame([row for rows in found for row in rows])
    if PATH.exists():
        old = pd.read_csv(PATH)
        frame = pd.concat([old[~(old["model"] + " " + old["data"]).isin(list(wanted))], frame], ignore_index=True)
    records.write_text(PATH, frame.to_csv(index=False, float_format="%.4g"))


if __name__ == "__main__":
    from tests import bench_sal  # workers import what they call by this name

    bench_sal.main()
