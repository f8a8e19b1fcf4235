"""What the benchmark runs: the runs of one condition or of several, from a notebook's parameters, and their records."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..base import records
from ..base.errors import InputError, Record, at_least, choose, probe_epochs
from ..base.names import CLEAN, DATASETS, DEFENSES, METHODS, NETWORKS, OWN
from ..data import pixels
from ..training.victim import RECIPES
from . import executor, images, victims
from .description import Images, Sets, depends, of_files
from .executor import Failure, Job
from .victims import AtEnd, Run, Sal


def one(config: Mapping[str, Any]) -> list[Run]:
    """The runs of one condition from a notebook's parameters. Raises InputError for wrong values.

    Of `seeds` seeds, from `first_seed` on (0 where it is not named). A seed draws the poison as well, but one that is
    given as a file.
    """
    source = DATASETS[choose(config["dataset"], DATASETS, "data set")]
    choose(config["method"], [CLEAN, *METHODS], "method")
    choose(config["defense"], DEFENSES, "defense")
    base = RECIPES[choose(config["architecture"], NETWORKS, "architecture")]
    recipe = replace(base, epochs=config["epochs"], flip=base.flip and source.flip)
    probes = probe_epochs(config["epochs"], config["probe_epochs"])
    named = {name: config[name] for name in ("method", "poison", "share", "label_noise")}
    first = Run(
        images=replace(images.of_config(config), **named),
        architecture=config["architecture"],
        defense=config["defense"],
        recipe=recipe,
        seed=0,
        probes=probes,
        sal=Sal(images=config["sal_images"]),
    )
    fixed = config["method"] == CLEAN or config["poison"] is not None
    return [of(replace(first, seed=seed), poison_seed=0 if fixed else seed) for seed in seeds_of(config)]


def seeds_of(config: Mapping[str, Any]) -> range:
    """The seeds of a notebook's parameters `seeds` and, where it has one, `first_seed`. Raises InputError."""
    first = at_least(config.get("first_seed", 0), 0, "first_seed")
    return range(first, first + at_least(config["seeds"], 1, "seeds"))


def several(
    config: Mapping[str, Any], methods: Sequence[str], *, poisons: str | None = None, baseline: bool = True
) -> list[Run]:
    """The runs of several methods in one setting, all seeds of one method after another, each run once.

    config: as for `one`; its method is not read. poisons: folder of poisons made before (`images.stored`), which are
    read instead of made; a file of the user's own (config["poison"]) is the method "own". baseline: the clean runs
    beside them, under the same defense and without one. Raises InputError.
    """
    if config["poison"] and CLEAN in methods:
        raise InputError(f"poison is {config['poison']}, but method is clean; name the method that it is closest to")
    if twice := [m for m in methods if list(methods).count(m) > 1]:
        raise InputError(f"{twice[0]} comes twice among the methods; name it once")
    if config["poison"] and (poisons or len(methods) > 1):
        raise InputError(f"poison is {config['poison']}: one file is one method; leave out poisons and the others")
    found: list[Run] = []
    for method in methods:
        runs = one({**config, "method": method})
        if config["poison"]:
            found += [of(run, method=OWN) for run in runs]
        else:
            found += [drawn(run, method, poisons) for run in runs]
    if baseline:
        clean = [on_clean(run) for run in found]
        found = [*clean_twin(found), *clean, *found]
    return list(dict.fromkeys(found))


def of(run: Run, **changes: Any) -> Run:
    """The same run on other images: `changes` of its `Images`."""
    return replace(run, images=replace(run.images, **changes))


def clean_twin(chosen: Sequence[Run]) -> list[Run]:
    """The same runs on clean images without a defense: what UD divides by."""
    return [replace(on_clean(run), defense="none") for run in chosen]


def on_clean(run: Run) -> Run:
    """The same run on clean images."""
    return drawn(run, CLEAN)


def drawn(run: Run, method: str, folder: str | None = None) -> Run:
    """The same run on images of another method, drawn from the run's seed; folder: see `images.draw`."""
    return replace(run, images=images.draw(run.images, method, run.seed, folder))


# ---- Running them --------------------------------------------------------------------------------------------------


def run_all(
    chosen: Sequence[Run],
    *,
    also: Mapping[str, Sal] = MappingProxyType({}),
    at_end: AtEnd | None = None,
    jobs: int | None = None,
    backend: str = "processes",
    address: str | None = None,
    folder: Path | str | None = None,
    until: float | None = None,
) -> list[Record]:
    """Records of all runs in order; a failed run does not stop the others.

    also, at_end: see `victims.run`; with a folder at_end is a function of `ul`, or a `partial` of one (ValueError
    otherwise). The rest: see `executor.run_all`. Raises InputError.
    """
    work = _work(chosen, dict(also), at_end)
    options: dict[str, Any] = {"jobs": jobs, "backend": backend, "address": address, "folder": folder, "until": until}
    found = executor.run_all(work, label(chosen), len(chosen), **options)
    of_files(found, chosen)
    return found


def _work(chosen: Sequence[Run], also: Mapping[str, Sal], at_end: AtEnd | None) -> Iterator[Job | Failure]:
    """Images are made once for runs that follow one another."""
    current: Images | None = None
    made: Sets | Exception = ValueError("no images yet")
    for run in chosen:
        if run.images != current:
            current = run.images
            try:
                made = images.sets(current)
            except Exception as error:  # a poison that cannot be made stops its own runs only
                made = error
        yield Failure(str(run), records.reason(made)) if isinstance(made, Exception) else job(run, made, also, at_end)


def job(run: Run, given: Sets, also: Mapping[str, Sal] = MappingProxyType({}), at_end: AtEnd | None = None) -> Job:
    """A run as a piece of work."""
    ways = {name: asdict(way) for name, way in also.items()}
    make = partial(victims.run, run, given, also=dict(also), at_end=at_end)
    return Job(str(run), make, (depends(run), given.digests(), ways), (at_end,) if at_end else ())


def label(chosen: Sequence[Run]) -> str:
    """What stands before the progress: data set, architecture and defenses of the runs."""
    named = [[run.images.dataset, run.architecture, run.defense] for run in chosen]
    return " ".join("/".join(dict.fromkeys(names)) for names in zip(*named, strict=True))


def study(
    config: Mapping[str, Any],
    methods: Sequence[str],
    *,
    poisons: str | None = None,
    baseline: bool = True,
    **options: Any,
) -> Record:
    """All runs of a setting and how far its poisons change the images: what notebook 04 draws from.

    config, methods, poisons, baseline: see `several`; options: of `run_all`. Keys: `runs`; `methods` and `probes` (the
    probed epochs); `images` (name and counts of the data); `sizes` (by poisoned method, `pixels.measure`).
    """
    chosen = several(config, methods, poisons=poisons, baseline=baseline)
    runs = run_all(chosen, **options)
    first = {run.images.method: run.images for run in reversed(chosen)}
    named = list(dict.fromkeys(run.images.method for run in chosen))
    clean, test = images.splits(chosen[0].images)
    measured = {m: pixels.measure(clean.images, images.poisoned(first[m]).images) for m in named if m != CLEAN}
    return {
        "runs": runs,
        "methods": named,
        "probes": list(chosen[0].probes),
        "images": {"name": clean.name, "train": len(clean), "test": len(test)},
        "sizes": measured,
    }
