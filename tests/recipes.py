"""`make recipes`: each reduced recipe beside the published one, once, on 500 images -> results/bench/recipes.csv.

Published recipes use ResNet-18, which two cores cannot carry; here they run on the reduced recipe's network and batch
size, with the published numbers of epochs, visits, steps, restarts and checkpoints (NTGA: with its own kernel). A row
that is in the file with the same settings is not computed again; noise at the same strength, the baseline, always is.
"""

import sys
from dataclasses import replace

import joblib
import pandas as pd
import torch

from tests.imports import ROOT
from ul import data, poisons
from ul.base import records, stats
from ul.base.names import DATASETS, METHODS
from ul.nets import classifiers
from ul.training import defenses, victim

IMAGES, SEEDS = 500, 3
PATH = ROOT / "results" / "bench" / "recipes.csv"
# What the published recipe takes from the reduced one: what two cores cannot carry.
KEPT = {"architecture", "widths", "batch_size"}  # of equal batches, so that steps compare


def accuracies(name: str, recipe: str) -> dict:
    """Passes an image, and final clean test accuracies of the victims of one poison."""
    torch.set_num_threads(1)
    source = DATASETS["rooms"]
    wanted = dict(root=ROOT / "data", size=source.size, targets=(source.target,))
    clean = data.load("rooms", "train", limit=IMAGES, **wanted)
    test = data.load("rooms", "test", **wanted)
    settings = poisons.recipes(name)
    options = {k: v for k, v in vars(settings["cpu"]).items() if k in KEPT} if settings.get("cpu") else {}
    with poisons.counting() as passes:
        poisoned = poisons.make(name, clean, seed=0, device="cpu", recipe=recipe, **options)
    found = []
    for seed in range(SEEDS):
        model = classifiers.make("resnet8", channels=3, classes=source.classes, size=source.size, seed=seed)
        history = victim.fit(
            model, poisoned, test, recipe=replace(victim.RECIPES["resnet8"], epochs=20), seed=seed, device="cpu",
            defense=defenses.make("none"), target=source.target,
        )  # fmt: skip
        found.append(history.test_accuracy[-1])
    return {"passes": passes.images / len(clean), "accuracy": found}


def row(name: str) -> dict:
    """Both recipes of one method and their paired difference over the victims' seeds."""
    cpu, published = (accuracies(name, recipe) for recipe in ("cpu", "published"))
    gap = stats.paired(cpu["accuracy"], published["accuracy"])
    out = {"method": name, "settings": settings_of(name), "images": IMAGES, "n": SEEDS}
    for label, found in (("cpu", cpu), ("published", published)):
        out |= {f"passes_{label}": found["passes"], f"accuracy_{label}": sum(found["accuracy"]) / SEEDS}
    return out | {"difference": gap.estimate, "difference_low": gap.low, "difference_high": gap.high}


def settings_of(name: str) -> str:
    """Both recipes in words, to see whether a row is of these settings."""
    return " | ".join(repr(poisons.recipes(name)[recipe]) for recipe in ("cpu", "published"))


def write(table: pd.DataFrame) -> None:
    records.write_text(PATH, table.round(4).astype({"images": int, "n": int}).to_csv(index=False))


def main() -> None:
    done = pd.read_csv(PATH) if PATH.exists() else pd.DataFrame({"method": [], "settings": []})
    with_recipes = [name for name, method in METHODS.items() if method.recipes]
    done = done.loc[[settings_of(name) == text for name, text in zip(done["method"], done["settings"], strict=True)]]
    wanted = [name for name in sys.argv[1:] or with_recipes if name not in set(done["method"])]
    noise = sum(accuracies("noise", "published")["accuracy"]) / SEEDS  # what so few images teach at all
    if not wanted:
        write(done.assign(accuracy_noise=noise))
    parallel = joblib.Parallel(n_jobs=2, return_as="generator_unordered")
    for found in parallel(joblib.delayed(row)(name) for name in wanted):
        done = pd.concat([done, pd.DataFrame([found])], ignore_index=True).sort_values("method")
        write(done.assign(accuracy_noise=noise))
        print(f"{found['method']}: cpu {found['accuracy_cpu']:.3f}, published {found['accuracy_published']:.3f}")


if __name__ == "__main__":
    from tests import recipes  # workers import what they call by this name

    recipes.main()
