"""`make bench`: what the main parts cost, against plain references in the same run, written to results/bench/.

Times are wall-clock seconds on one thread; only the ratio is meant to be compared between machines. An argument
names the group to measure (main, training, arithmetic, poisons, tasks, surfaces); the other rows stay.
"""

import datetime
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from tests import plain
from tests.imports import ROOT
from ul import data, poisons
from ul.base import arithmetic
from ul.base.names import METHODS, VIEWS
from ul.data import pixels
from ul.nets import classifiers
from ul.nets.device import device
from ul.poisons import autoregressive, onepixel, target
from ul.sharpness import sal
from ul.studies.surfaces import random_plane, surface
from ul.tasks import labels
from ul.training import defenses, multitask, victim

COLUMNS = ["date", "what", "unit", "seconds", "reference_seconds", "ratio", "machine"]


def seconds(action: Callable, *, times: int = 3) -> float:
    """Median of `times` runs."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[times // 2]


def main_parts() -> list[list]:
    clean = data.load("rooms", "train", root=ROOT / "data", size=32, targets=("class_object",))
    classes = clean.targets["class_object"]
    model = classifiers.make("resnet8", channels=3, classes=10, size=32, seed=0)
    x, y = pixels.to_float(clean.images[:128]), classes[:128]
    rng = torch.Generator().manual_seed(0)
    recipe = victim.Recipe(epochs=1)
    settings = {"defense": defenses.make("none"), "seed": 0, "device": "cpu", "target": "class_object"}
    probe, plain_probe = seconds(lambda: sal.per_layer(model, x, y)), seconds(lambda: plain.plain_sal(model, x, y))
    found = [
        ["SAL, resnet8, 128 images", "probe", probe, plain_probe],
        ["crop and flip", "1,120 images", seconds(lambda: victim.augment(clean.images, pad=4, flip=True, rng=rng)),
         seconds(lambda: plain.plain_augment(clean.images, pad=4, rng=rng))],
        ["training, resnet8", "epoch of 1,120 images",
         seconds(lambda: victim.fit(model, clean, clean.take(torch.arange(280)), recipe=recipe, **settings)), None],
    ]  # fmt: skip
    return found + handcrafted(clean)


def training() -> list[list]:
    """An epoch beside its bare passes, beside a data loader and beside the machine's matrix products; SAL's share."""
    where = device()
    name, count = ("resnet18", 10_000) if where.type == "cuda" else ("resnet8", 1120)
    clean = data.load("rooms", "train", root=ROOT / "data", size=32, targets=("class_object",))
    clean = clean.take(torch.arange(count) % len(clean))
    model = classifiers.make(name, channels=3, classes=10, size=32, seed=0).to(where, memory_format=torch.channels_last)
    classes, size = clean.targets["class_object"], victim.RECIPES[name].batch_size
    x = pixels.to_float(clean.images.to(where)).contiguous(memory_format=torch.channels_last)
    y = classes.to(where)
    settings = {"defense": defenses.make("none"), "seed": 0, "device": where, "target": "class_object"}
    recipe = replace(victim.RECIPES[name], epochs=1)
    ours = seconds(lambda: waited(victim.fit, model, clean, None, recipe=recipe, **settings))
    bare = seconds(lambda: waited(plain.plain_training, model.train(), x, y, batch_size=size))
    loader = seconds(
        lambda: waited(plain.plain_loader, model, clean.images, classes, batch_size=size, device=where), times=1
    )
    probe = seconds(lambda: waited(sal.per_layer, model, x[:128], y[:128], batch_size=64))
    unit = f"epoch of {count:,} images"
    return [
        [f"training, {name}, beside bare forward, backward and step", unit, ours, bare],
        [f"training, {name}, beside a data loader with crops image by image", unit, ours, loader],
        [
            f"training, {name}, beside matrix products of as many operations",
            unit,
            ours,
            products(model, x[:32]) * count,
        ],
        [f"five SAL probes, {name}, 128 images, beside 20 epochs that they observe", "run", 5 * probe, 20 * ours],
    ]


def waited(action: Callable, *args, **options) -> None:
    """Call, and wait for the device."""
    action(*args, **options)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def products(model: nn.Module, x: torch.Tensor) -> float:
    """Seconds that large float32 matrix products need for the operations of one image's forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    a = torch.rand(2048, 2048, device=x.device)
    return seconds(lambda: waited(torch.mm, a, a)) * counter.get_total_flops() / len(x) / (2 * 2048**3)


EPOCH = """
import os, sys, time
if sys.argv[1] == "fixed":
    import tests
import torch
from tests.bench import an_epoch
torch.set_num_threads(1)
an_epoch()
start = time.perf_counter()
an_epoch()
print(time.perf_counter() - start)
"""


def an_epoch() -> None:
    """ResNet-8 on the training images of rooms."""
    clean = data.load("rooms", "train", root=ROOT / "data", size=32, targets=("class_object",))
    model = classifiers.make("resnet8", channels=3, classes=10, size=32, seed=0)
    settings = {"defense": defenses.make("none"), "seed": 0, "device": "cpu", "target": "class_object"}
    victim.fit(model, clean, None, recipe=victim.Recipe(epochs=1), **settings)


def one_arithmetic() -> list[list]:
    """What it costs to be the same on every processor: an epoch with and without, in processes of their own."""
    taken = {how: sorted(_alone(how) for _ in range(3))[1] for how in ("fixed", "free")}
    what = "one arithmetic, resnet8, beside what the processor has"
    return [[what, "epoch of 1,120 images", taken["fixed"], taken["free"]]]


def _alone(how: str) -> float:
    """Seconds of an epoch in a new process; `import torch` first leaves the arithmetic free."""
    bare = {k: v for k, v in os.environ.items() if k not in {**arithmetic.INSTRUCTIONS, **arithmetic.NUMPY}}
    source = EPOCH if how == "fixed" else EPOCH.replace("import os", "import torch, os")
    done = subprocess.run(
        [sys.executable, "-c", source, how], cwd=ROOT, env=bare | arithmetic.THREADS, capture_output=True, text=True
    )
    return float(done.stdout)


def all_poisons() -> list[list]:
    clean = data.load("rooms", "train", root=ROOT / "data", size=32, targets=("class_object",))
    return [made(name, clean) for name, method in METHODS.items() if not method.tasks]


def several_tasks() -> list[list]:
    """An epoch of joint training beside a bare loop of the same network on fixed batches."""
    names = list(VIEWS)
    clean, _ = labels.load("rooms", names, root=str(ROOT / "data"), size=32, limit=None)
    recipe, found = multitask.Recipe(epochs=1), []
    for encoder in ("resnet8", "vit"):
        model = multitask.make(encoder, names, clean, seed=0)
        ours = seconds(lambda m=model: multitask.fit(m, clean, recipe=recipe, seed=0, device=torch.device("cpu")))
        bare = seconds(lambda m=model: plain.plain_tasks(m, clean.images, batch_size=recipe.batch_size))
        found.append([f"joint training of five tasks, {encoder}", f"epoch of {len(clean):,} images", ours, bare])
    return found


def surfaces() -> list[list]:
    """A 21x21 loss surface of LeNet-5 on 500 images beside setting weights and evaluating point by point."""
    digits = data.load("mnist", "train", root=ROOT / "data", limit=500)
    model = classifiers.make("lenet5", channels=1, classes=10, size=28, seed=0)
    plane, at = random_plane(model, rng=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 21)
    ours = seconds(lambda: surface(model, digits, plane, at, at))
    bare = seconds(lambda: plain.plain_surface(model, digits, plane, at, at))
    return [["loss surface 21x21, lenet5", "500 images", ours, bare]]


# Rows what, unit, seconds, reference seconds.
GROUPS = {
    "main": main_parts,
    "training": training,
    "arithmetic": one_arithmetic,
    "poisons": all_poisons,
    "tasks": several_tasks,
    "surfaces": surfaces,
}


def handcrafted(clean: data.Split) -> list[list]:
    """AR for one image and OPS for one class of 112 images, beside the plain loops."""
    classes, rng = clean.targets["class_object"], torch.Generator().manual_seed(0)
    filters = autoregressive.find_filters(10, (3, 32, 32), rng=rng)
    start = torch.randn((3, 36, 36), generator=rng, dtype=torch.float64)
    one = clean.images[classes == 0]
    whole = seconds(lambda: autoregressive.generate(filters[classes], (32, 32), rng=rng))
    return [
        ["AR noise, images of all classes at once", "image", whole / len(clean),
         seconds(lambda: plain.plain_ar(start, filters[0]), times=1)],
        ["OPS choice", f"class of {len(one)} images", seconds(lambda: onepixel.ops_choice(one, [])),
         seconds(lambda: plain.plain_ops(one), times=1)],
    ]  # fmt: skip


def made(name: str, clean: data.Split) -> list:
    """A poison by its cpu recipe; the reference is bare loops of as many passes, frozen and in training each."""
    recipe, few = poisons.recipes(name)["cpu"], clean.take(torch.arange(256))
    with poisons.counting() as passes, training_passes() as trained:
        cost = seconds(lambda: poisons.make(name, few, seed=0, device="cpu", recipe="cpu"), times=1)
    if not passes.images or name in ("dc", "tue"):  # a second network or views cost more than the passes counted
        return [f"poison {name} (recipe cpu)", "256 images", cost, None]
    model = classifiers.make(recipe.architecture, channels=3, classes=10, size=32, seed=0)
    images = (pixels.to_float(few.images), few.targets["class_object"])
    update = seconds(lambda: plain.plain_training(model.train(), *images, batch_size=recipe.batch_size))
    model.eval().requires_grad_(False)
    bare = seconds(lambda: plain.plain_passes(model, *images, batch_size=recipe.batch_size))
    reference = (bare * (passes.images - sum(trained)) + update * sum(trained)) / len(few)
    what = f"poison {name} (recipe cpu), {passes.images // len(few)} passes an image"
    return [what, "256 images", cost, reference]


@contextmanager
def training_passes() -> Iterator[list[int]]:
    """The sizes of all batches that go through counted networks in training mode inside."""
    sizes = []

    def note(module: nn.Module, inputs: tuple, output) -> None:
        if module.training and target._count in module._forward_hooks.values():
            sizes.append(len(output))

    handle = register_module_forward_hook(note)
    try:
        yield sizes
    finally:
        handle.remove()


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    path = ROOT / "results" / "bench" / "cpu.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [line(*row) for name in names or GROUPS for row in GROUPS[name]()]
    fresh = pd.DataFrame(found, columns=COLUMNS)
    kept = pd.read_csv(path, dtype=str) if names and path.exists() else fresh.iloc[:0]
    kept = kept[~kept["what"].isin(fresh["what"])]
    pd.concat([kept, fresh]).to_csv(path, index=False, lineterminator="\n")


def line(what: str, unit: str, ours: float, reference: float | None) -> list[str]:
    """The row of the table, printed as well."""
    ratio = f"{reference / ours:.2f}" if reference else ""
    bare = f"{reference:.3f}" if reference else ""
    print(f"{what}: {ours:.3f} s per {unit}" + (f", plain reference {bare} s, {ratio}x" if ratio else ""))
    return [datetime.date.today().isoformat(), what, unit, f"{ours:.3f}", bare, ratio, platform.machine()]


if __name__ == "__main__":
    main(sys.argv[1:])
