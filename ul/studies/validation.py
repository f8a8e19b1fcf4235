"""What UD measures: runs along a known truth, and the same networks probed in many ways."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..base.errors import InputError, Record, at_least, choose
from ..base.names import CLEAN, DEPARTURES
from . import conditions, executor, images
from .conditions import drawn, of
from .description import depends
from .executor import Job
from .rival_scores import rescaled_sal, scores_of
from .victims import Run, Sal

AXES = ("share", "label_noise", "eps")  # of a run's images: what a ground truth varies
FACTORS = (0.3, 1.0, 3.0)  # by which weights are rescaled


def methods_of(run: Run, methods: Sequence[str], seeds: int, folder: str | None) -> list[Run]:
    """`run` for clean and each method and each seed from 0, which draws the poison too; folder: as `images.draw`."""
    if not methods:
        raise InputError("methods is empty; name the poisons whose ranking is looked at")
    found = []
    for method in (CLEAN, *methods):
        found += [drawn(replace(run, seed=seed), method, folder) for seed in range(seeds)]
    return found


def ways(base: Sal, epsilons: Sequence[float], counts: Sequence[int]) -> dict[str, Sal]:
    """`base` with one setting changed at a time: radii, numbers of images, and all else that can be told."""
    found = {f"ε = {e:g}": replace(base, epsilon=e) for e in epsilons if e != base.epsilon}
    enough = [at_least(n, 1, "images to probe on") for n in counts]
    found |= {f"{n} images": replace(base, images=n) for n in enough if n != base.images}
    found |= {f"{n} steps": replace(base, steps=n) for n in (1, 3)}
    found |= {f"estimator {name}": replace(base, estimator=name) for name in ("gradient", "taylor")}
    found |= {"norm linf": replace(base, norm="linf"), "other images": replace(base, draw=1)}
    found |= {"clean images": replace(base, part="clean"), "test images": replace(base, part="test")}
    return found


def departures(base: Sal, names: Iterable[str] | None = None) -> dict[str, Sal]:
    """The public code's departures from the definition, those named (None: each) one by one, and all together."""
    names = DEPARTURES if names is None else [choose(name, DEPARTURES, "departure") for name in names]
    single = {f"public: {name}": replace(base, departures=(name,)) for name in names}
    return single | {"public: all": replace(base, departures=tuple(DEPARTURES))}


def varied(run: Run, axis: str, values: Sequence[Any], seeds: int) -> list[Run]:
    """`run` at each value of one of AXES and each seed from 0."""
    own = [drawn(replace(run, seed=seed), run.images.method) for seed in range(seeds)]
    return [of(seeded, **{axis: value}) for value in values for seeded in own]


def study(config: Mapping[str, Any], **options: Any) -> Record:
    """The whole study: what notebook 06 draws from. Raises InputError.

    config: the notebook's parameters; options: of `executor.run_all`. Keys: `runs` (of all methods, probed in the
    `ways` that are named, after the epochs `probes`), `varied` (runs by axis), `rescaled` (rows of `rescaled_sal`),
    `flat` (clean runs by SAM).
    """
    usual = {"poison": None, "defense": "none", "share": 1.0, "label_noise": 0.0}
    base = conditions.one({**config, **usual, "method": config["varied"], "seeds": 1})[0]
    seeds, count = config["seeds"], config["sal_images"]
    named = ways(base.sal, config["epsilons"], [count // 4, 4 * count]) | departures(base.sal, config["departed"])
    chosen = methods_of(base, config["methods"], seeds, config["poisons"])
    at_end = partial(scores_of, draws=config["draws"])
    clean = conditions.on_clean(base)
    levels = [level / 255 for level in config["levels"]]
    axes = {
        "share": varied(base, "share", config["shares"], seeds),
        "label_noise": varied(clean, "label_noise", config["label_noises"], seeds),
        "eps": varied(base, "eps", levels, seeds),
    }
    flat = [replace(clean, seed=s, recipe=replace(clean.recipe, sam=config["sam"])) for s in range(seeds)]
    return {
        "runs": conditions.run_all(chosen, also=named, at_end=at_end, **options),
        "ways": list(named),
        "probes": list(base.probes),
        "varied": {axis: conditions.run_all(runs, **options) for axis, runs in axes.items()},
        "rescaled": _rescaled(clean, **options),
        "flat": conditions.run_all(flat, **options),
    }


def _rescaled(run: Run, **options: Any) -> list[Record]:
    given = images.sets(run.images)
    job = Job(f"rescaled {run}", partial(rescaled_sal, run, given, FACTORS), (depends(run), given.digests(), FACTORS))
    return executor.run_all([job], "rescaled weights", 1, **options)[0]["rows"]
