"""`make bench`: what the main parts cost, against plain references in the same run, written to results/bench/.

Times are wall-clock seconds on one thread; only the ratio is meant to be compared between machines.
"""

import csv
import datetime
import platform
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.imports import ROOT
from ul import data, defenses, models, perturb, poisons, sal, train
from ul.sal import STRIDE

COLUMNS = ["date", "what", "unit", "seconds", "reference_seconds", "ratio", "machine"]


def seconds(action: Callable, *, times: int = 3) -> float:
    """Median of `times` runs."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[times // 2]


def plain_sal(model: nn.Module, images: Tensor, targets: Tensor, *, epsilon: float = 0.05, steps: int = 10) -> dict:
    """SAL by a plain loop: for every layer and direction a full pass a step, then the projection."""
    model.eval()
    out = {}
    for name in models.probed_layers(model):
        weight = model.get_submodule(name).weight
        start, radius = weight.detach().clone(), epsilon * weight.norm().item()
        base, best = F.cross_entropy(model(images), targets).item(), 0.0
        for sign in (1, -1):
            delta = torch.zeros_like(start)
            for _ in range(steps):
                weight.data = start + delta
                model.zero_grad()
                F.cross_entropy(model(images), targets).backward()
                delta = delta + sign * STRIDE * radius / steps * weight.grad / weight.grad.norm()
                delta = delta * min(1.0, radius / delta.norm().item())
                weight.data = start + delta
                with torch.no_grad():
                    best = max(best, sign * (F.cross_entropy(model(images), targets).item() - base))
            weight.data = start
        out[name] = best
    return out


def plain_augment(images: Tensor, *, pad: int, rng: torch.Generator) -> Tensor:
    """Crop and flip image by image."""
    padded, (h, w) = F.pad(images, (pad,) * 4), images.shape[-2:]
    out = []
    for image in padded:
        top, left = torch.randint(0, 2 * pad + 1, (2,), generator=rng).tolist()
        crop = image[:, top : top + h, left : left + w]
        out.append(crop.flip(2) if torch.rand((), generator=rng) < 0.5 else crop)
    return torch.stack(out)


def rows() -> list[list]:
    """Measured rows (what, unit, seconds, reference seconds or None)."""
    clean = data.load("rooms", "train", root=ROOT / "data", size=32, targets=("class_object",))
    labels = clean.targets["class_object"]
    model = models.make("resnet8", channels=3, classes=10, size=32, seed=0)
    x, y = perturb.to_float(clean.images[:128]), labels[:128]
    rng = torch.Generator().manual_seed(0)
    recipe = train.Recipe(epochs=1)
    settings = {"defense": defenses.make("none"), "seed": 0, "device": "cpu", "target": "class_object"}
    probe, plain_probe = seconds(lambda: sal.per_layer(model, x, y)), seconds(lambda: plain_sal(model, x, y))
    found = [
        ["SAL, resnet8, 128 images", "probe", probe, plain_probe],
        ["crop and flip", "1,120 images", seconds(lambda: train.augment(clean.images, pad=4, flip=True, rng=rng)),
         seconds(lambda: plain_augment(clean.images, pad=4, rng=rng))],
        ["training, resnet8", "epoch of 1,120 images",
         seconds(lambda: train.fit(model, clean, clean.take(torch.arange(280)), recipe=recipe, **settings)), None],
    ]  # fmt: skip
    for name in poisons.NAMES:
        cost = seconds(lambda name=name: poisons.make(name, clean, seed=0, device="cpu", recipe="cpu"), times=1)
        found.append([f"poison {name} (recipe cpu)", "1,120 images", cost, None])
    return found


def main() -> None:
    torch.set_num_threads(1)
    path = ROOT / "results" / "bench" / "cpu.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    today = datetime.date.today().isoformat()
    with path.open("w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(COLUMNS)
        for what, unit, ours, reference in rows():
            ratio = f"{reference / ours:.2f}" if reference else ""
            reference = f"{reference:.3f}" if reference else ""
            writer.writerow([today, what, unit, f"{ours:.3f}", reference, ratio, platform.machine()])
            print(f"{what}: {ours:.3f} s per {unit}" + (f", plain reference {reference} s, {ratio}x" if ratio else ""))


if __name__ == "__main__":
    main()
