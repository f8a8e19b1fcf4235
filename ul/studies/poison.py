"""One poison on one data set: made, measured, and a few victims trained on it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..base import records
from ..base.budgets import strength
from ..base.errors import Record, at_least, choose, probe_epochs
from ..base.names import DATASETS, METHODS, NETWORKS, RECIPES
from ..data import pixels
from ..data.checks import budget
from ..data.poison_files import export
from ..data.sources import load
from ..data.split import Split, classes
from ..nets import classifiers
from ..nets.device import device, one_thread
from ..poisons import making
from ..poisons.target import counting
from ..training import defenses, metrics, victim
from . import executor
from .description import Images, depends
from .executor import Job

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


def amplitude(delta: np.ndarray) -> np.ndarray:
    """Mean amplitude of the Fourier transform of float[n,c,h,w], the centre being 0 cycles: float32[h,w]."""
    parts = [np.abs(np.fft.fft2(delta[i : i + 100])).mean(1).sum(0) for i in range(0, len(delta), 100)]
    return np.fft.fftshift(sum(parts) / len(delta)).astype(np.float32)


# ---- The poison ----------------------------------------------------------------------------------------------------


def _poison(images: Images, clean: Split, options: Mapping[str, Any]) -> tuple[Split, Record]:
    """(poisoned images, `made`'s record); kept, as every other finished work is."""
    method = images.method
    name = f"poison {images.dataset} {method}"
    job = Job(name, partial(made, images, clean), (depends(images), clean.digest()), (making.maker(method),))
    found = executor.run_all([job], name, 1, **options)[0]
    return replace(clean, images=torch.from_numpy(found["arrays"]["images"])), found


def made(images: Images, clean: Split) -> Record:
    """The poison as a record: passes through surrogates, sizes, separability, spectrum; images among its arrays."""
    with counting() as passes:
        poison = making.make(
            images.method,
            clean,
            eps=images.eps,
            seed=images.poison_seed,
            device=device(),
            target=images.target,
            recipe=images.poison_recipe,
        )
    records.note(f"made {images.dataset} {images.method}: {passes.images / len(clean):.0f} passes an image")
    delta = pixels.to_float(poison.images) - pixels.to_float(clean.images)
    return {
        "passes": passes.images,
        "sizes": pixels.measure(clean.images, poison.images),
        "separability": metrics.linear_separability(delta, clean.targets[images.target], seed=0),
        "spectrum": records.packed(amplitude(delta.numpy())),
        "arrays": {"images": poison.images.numpy()},
    }


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


def trained(architecture: str, recipe: victim.Recipe, poison: Split, test: Split, images: Images, seed: int) -> Record:
    """What happened to one victim: `victim.History` as a record."""
    where = device()
    shape = {"channels": poison.images.shape[1], "classes": classes(poison, test), "size": poison.images.shape[-1]}
    with one_thread(where):
        history = victim.fit(
            classifiers.make(architecture, seed=seed, **shape),
            poison,
            test,
            recipe=recipe,
            defense=defenses.make("none"),
            seed=seed,
            device=where,
            target=images.target,
        )
    final = f"{recipe.epochs} epochs, test accuracy {history.test_accuracy[-1]:.3f}"
    records.note(f"trained {images.dataset} {images.method} {architecture} none seed {seed}: {final}")
    return history.as_dict()
