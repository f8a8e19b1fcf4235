"""One poison on one data set: made, measured, and a few victims trained on it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..base import records
from ..base.budgets import strength
from ..base.errors import Record, at_least, choose, probe_epochs
from ..base.names import DATASETS, METHODS, NETWORKS, RECIPES
from ..data.checks import budget
from ..data.poison_files import export
from ..data.sources import load
from ..data.split import Split
from ..nets.device import device
from ..poisons import making
from ..training import victim
from . import executor
from .description import Images, depends
from .executor import Job
from .poison_runs import made, trained

SHOWN = 9  # images, one a class


def study(config: Mapping[str, Any], *, out: str | None = None, **options: Any) -> Record:
    """The poison's record: what notebook 01 draws from. Raises InputError.

    config: the notebook's parameters; out: file for the poisoned images; options: of `executor.run_all`. Keys: settings
    and digests; `sizes` in every norm, `norm` and `limit` (the one that its paper limits, and how far); `separability`
    (held-out accuracy of a linear model on the perturbations); `pictures` (clean and poisoned, uint8[k,c,h,w], packed);
    `spectrum` (float32[h,w], packed); `victims` (a history each).
    """
    images, recipe = _wanted(config)
    name, source = images.method, DATASETS[images.dataset]
    wanted: dict[str, Any] = {"size": images.size, "targets": METHODS[name].wanted(images.target)}
    clean = load(images.dataset, "train", root=images.root, limit=images.limit, **wanted)
    held = images.limit and max(1, images.limit // 2)
    test = load(images.dataset, "test", root=images.root, limit=held, **wanted)
    poison, found = _poison(images, clean, options)
    if out is not None:
        export(poison, out)
    labels = clean.targets[source.target]
    seen = torch.tensor([int((labels == c).nonzero()[0]) for c in labels.unique()[:SHOWN]])
    used = images.poison_recipe if METHODS[name].recipes else "as published"
    shape = {"name": clean.name, "count": len(clean), "shape": list(clean.images.shape[1:])}
    return {
        **{"dataset": images.dataset, "method": name, "recipe": used, "eps": images.eps, "seed": images.poison_seed},
        **{"data": clean.digest(), "poison": poison.digest(), "images": shape, "classes": len(labels.unique())},
        **{"passes_per_image": found["passes"] / len(clean), "sizes": found["sizes"]},
        **{"norm": METHODS[name].norm, "limit": budget(name, images.eps, clean)},
        "separability": found["separability"],
        "pictures": {"clean": _packed(clean, seen), "poisoned": _packed(poison, seen)},
        "spectrum": found["spectrum"],
        **{"architecture": config["architecture"], "versions": records.versions(), "device": device().type},
        "victims": _victims(images, recipe, poison, test, config, options),
    }


def _wanted(config: Mapping[str, Any]) -> tuple[Images, victim.Recipe]:
    source = DATASETS[choose(config["dataset"], DATASETS, "data set")]
    base = victim.RECIPES[choose(config["architecture"], NETWORKS, "architecture")]
    probe_epochs(config["epochs"], 1)
    at_least(config["victims"], 0, "victims")
    images = Images(
        dataset=config["dataset"],
        root=config["root"],
        limit=config["limit"],
        size=source.size,
        target=source.target,
        method=choose(config["method"], METHODS, "method"),
        poison=None,
        poison_recipe=choose(config["recipe"], RECIPES, "recipe"),
        poison_seed=at_least(config["seed"], 0, "seed"),
        eps=strength(source.eps if config["eps"] is None else config["eps"]),
    )
    return images, replace(base, epochs=config["epochs"], flip=base.flip and source.flip)


def _packed(split: Split, rows: torch.Tensor) -> Record:
    return records.packed(split.images[rows].numpy())


# ---- The poison ----------------------------------------------------------------------------------------------------


def _poison(images: Images, clean: Split, options: Mapping[str, Any]) -> tuple[Split, Record]:
    """(poisoned images, `made`'s record); kept, as every other finished work is."""
    method = images.method
    name = f"poison {images.dataset} {method}"
    job = Job(name, partial(made, images, clean), (depends(images), clean.digest()), (making.maker(method),))
    found = executor.run_all([job], name, 1, **options)[0]
    return replace(clean, images=torch.from_numpy(found["arrays"]["images"])), found


# ---- Its victims ---------------------------------------------------------------------------------------------------


def _victims(
    images: Images,
    recipe: victim.Recipe,
    poison: Split,
    test: Split,
    config: Mapping[str, Any],
    options: Mapping[str, Any],
) -> list[Record]:
    architecture, label = config["architecture"], f"victims {images.dataset} {images.method}"
    what = depends(images), architecture, vars(recipe), poison.digest(), test.digest()
    work = [
        Job(f"{label} {seed}", partial(trained, architecture, recipe, poison, test, images, seed), (*what, seed))
        for seed in range(config["victims"])
    ]
    return executor.run_all(work, label, len(work), **options) if work else []
