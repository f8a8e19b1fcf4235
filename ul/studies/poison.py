"""The poisons of one data set: drawn from several seeds, measured, and a few victims trained on them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..base import records
from ..base.errors import InputError, Record, at_least, choose, probe_epochs
from ..base.names import DATASETS, METHODS, NETWORKS
from ..data.checks import budget
from ..data.poison_files import export
from ..data.sources import load
from ..data.split import Split
from ..nets.device import device
from ..poisons import making
from ..training import victim
from . import executor
from .conditions import seeds_of
from .description import Images, depends
from .executor import Job
from .images import draw, file_name, of_config
from .poison_runs import made, trained

SHOWN = 9  # images, one a class


def study(config: Mapping[str, Any], methods: Sequence[str], *, out: str | None = None, **options: Any) -> Record:
    """The poisons' record: what notebook 01 draws from. Raises InputError.

    config: the notebook's parameters; methods: which; out: folder for the poisoned images, a file
    <dataset>-<method>-<seed>.npz each; options: of `executor.run_all`. Keys: settings and digests; `pictures` (of the
    clean images, uint8[k,c,h,w], packed); `poisons`, one a method: `norm` and `limit` (the norm that its paper limits,
    and how far), `pictures` and `spectrum` (float32[h,w]) of the first draw, packed, `draws` (`seed`, `digest`,
    `passes_per_image`, `sizes` in every norm, `separability`: held-out accuracy of a linear model on the
    perturbations), and `victims` (a history each, of the poison and the network drawn from one seed).
    """
    wanted, recipe = _wanted(config, methods)
    first = wanted[0]
    source = DATASETS[first.dataset]
    clean, test = _splits(first, methods)
    found = dict(zip(wanted, _poisons(wanted, clean, options), strict=True))
    if out is not None:
        for images, (poison, _) in found.items():
            export(poison, Path(out) / file_name(images.dataset, images.method, images.poison_seed))
    labels = clean.targets[source.target]
    seen = torch.tensor([int((labels == c).nonzero()[0]) for c in labels.unique()[:SHOWN]])
    histories = _victims(found, recipe, test, config, options)
    own = {method: {i: found[i] for i in wanted if i.method == method} for method in methods}
    return {
        **{"dataset": first.dataset, "eps": first.eps, "data": clean.digest(), "classes": len(labels.unique())},
        "images": {"name": clean.name, "count": len(clean), "shape": list(clean.images.shape[1:])},
        "pictures": _packed(clean, seen),
        "poisons": [_about(draws, clean, seen) | {"victims": histories[m]} for m, draws in own.items()],
        **{"architecture": config["architecture"], "versions": records.versions(), "device": device().type},
    }


def _wanted(config: Mapping[str, Any], methods: Sequence[str]) -> tuple[list[Images], victim.Recipe]:
    """Every draw of every method, and how victims are trained. Raises InputError."""
    source = DATASETS[choose(config["dataset"], DATASETS, "data set")]
    base = victim.RECIPES[choose(config["architecture"], NETWORKS, "architecture")]
    probe_epochs(config["epochs"], 1)
    seeds, victims = seeds_of(config), at_least(config["victims"], 0, "victims")
    if victims > len(seeds):
        raise InputError(f"victims is {victims}, but only {len(seeds)} poisons of a method are drawn; give more seeds")
    if twice := [m for m in methods if list(methods).count(m) > 1]:
        raise InputError(f"{twice[0]} comes twice among the methods; name it once")
    first = of_config(config)
    named = [choose(method, METHODS, "method") for method in methods]
    draws = [draw(first, method, seed, None) for method in named for seed in seeds]
    return draws, replace(base, epochs=config["epochs"], flip=base.flip and source.flip)


def _splits(images: Images, methods: Sequence[str]) -> tuple[Split, Split]:
    """(clean train, clean test), with all labels there are if one of the methods is made against all."""
    every = any(METHODS[method].tasks for method in methods)
    wanted: dict[str, Any] = {"size": images.size, "targets": None if every else (images.target,)}
    held = images.limit and max(1, images.limit // 2)
    parts = (("train", images.limit), ("test", held))
    train, test = (load(images.dataset, part, root=images.root, limit=count, **wanted) for part, count in parts)
    return train, test


def _about(draws: Mapping[Images, tuple[Split, Record]], clean: Split, seen: torch.Tensor) -> Record:
    """What is told of one method. draws: (poisoned images, `made`'s record) of each seed."""
    images = next(iter(draws))
    poison, found = draws[images]
    recipes = METHODS[images.method].recipes
    return {
        **{"dataset": images.dataset, "method": images.method, "eps": images.eps},
        "recipe": images.poison_recipe if recipes else "as published",
        **{"norm": METHODS[images.method].norm, "limit": budget(images.method, images.eps, clean)},
        **{"pictures": _packed(poison, seen), "spectrum": found["spectrum"]},
        "draws": [
            {
                **{"seed": drawn.poison_seed, "digest": own.digest(), "sizes": record["sizes"]},
                "passes_per_image": record["passes"] / len(clean),
                "separability": record["separability"],
            }
            for drawn, (own, record) in draws.items()
        ],
    }


def _packed(split: Split, rows: torch.Tensor) -> Record:
    return records.packed(split.images[rows].numpy())


# ---- The poisons ---------------------------------------------------------------------------------------------------


def _poisons(wanted: Sequence[Images], clean: Split, options: Mapping[str, Any]) -> list[tuple[Split, Record]]:
    """(poisoned images, `made`'s record) of each; kept, as every other finished work is."""
    digest = clean.digest()
    work = [Job(_name(i), partial(made, i, clean), (depends(i), digest), (making.maker(i.method),)) for i in wanted]
    found = executor.run_all(work, f"poisons {wanted[0].dataset}", len(work), **options)
    return [(replace(clean, images=torch.from_numpy(one["arrays"]["images"])), one) for one in found]


def _name(images: Images) -> str:
    return f"poison {images.dataset} {images.method} seed {images.poison_seed}"


# ---- Their victims -------------------------------------------------------------------------------------------------


def _victims(
    found: Mapping[Images, tuple[Split, Record]],
    recipe: victim.Recipe,
    test: Split,
    config: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, list[Record]]:
    """By method the histories of the victims of its first draws."""
    trained_on = seeds_of(config)[: config["victims"]]
    architecture, chosen = config["architecture"], [i for i in found if i.poison_seed in trained_on]
    work = []
    for images in chosen:
        poison, seed = found[images][0], images.poison_seed
        make = partial(trained, architecture, recipe, poison, test, images, seed)
        what = depends(images), architecture, vars(recipe), poison.digest(), test.digest(), seed
        work.append(Job(f"victim of {_name(images)}", make, what))
    dataset = config["dataset"]
    histories = executor.run_all(work, f"victims {dataset}", len(work), **options) if work else []
    by_method: dict[str, list[Record]] = {images.method: [] for images in found}
    for images, history in zip(chosen, histories, strict=True):
        by_method[images.method].append(history)
    return by_method
