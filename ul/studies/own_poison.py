"""A data owner's own poison: victims with and without defenses, noise of its size, and networks of other tasks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..base import records
from ..base.errors import Record
from ..base.names import CLEAN, DATASETS, NOISE
from ..data import checks, pixels
from . import conditions, cross_task, images
from .conditions import drawn, of

SHOWN = 9  # images
EXAMPLE = "lsp"  # the method that stands for the owner's where no file is given


def study(config: Mapping[str, Any], **options: Any) -> Record:
    """All that notebook 08 draws from. Raises InputError.

    config: the notebook's parameters; options: of `executor.run_all`. Keys: `method` (what the owner's images are
    called), `report` (lines of `checks.report`; none without a file), `images` (counts), `sizes`, `pictures` (clean and
    changed, packed), `runs` (victims, clean ones and noise of the same size among them), `tasks` (networks of several
    tasks), `target` (of the poison), `guess` (accuracy of the best answer that sees no image).
    """
    usual = {"eps": None, "recipe": "cpu", "share": 1.0, "label_noise": 0.0}
    ways = ["none", *(name for name in config["defenses"] if name != "none")]
    chosen = [run for way in ways for run in conditions.several({**config, **usual, "defense": way}, [EXAMPLE])]
    several = cross_task.planned(_several(config))
    example = chosen[-1].images
    (clean, test), changed = images.splits(example), images.poisoned(example)
    path = config["poison"]
    report = checks.report(clean, changed, path, example.eps) if path is not None else []
    sizes = pixels.measure(clean.images, changed.images)
    # Uniform in [-e, e] has the mean square e^2 / 3.
    strength = min(1.0, sizes["l2_mean"] * (3 / clean.images[0].numel()) ** 0.5)
    bare = [run for run in chosen if run.images.method == example.method and run.defense == "none"]
    noise = [of(drawn(run, NOISE), eps=strength) for run in bare]
    together = [replace(run, single=(), probes=()) for run in several]
    pictures = {CLEAN: clean.images[:SHOWN], "changed": changed.images[:SHOWN]}
    return {
        "method": example.method,
        "report": report,
        "images": {"name": clean.name, "train": len(clean), "test": len(test)},
        "sizes": sizes,
        "pictures": {name: records.packed(values.numpy()) for name, values in pictures.items()},
        "runs": conditions.run_all(list(dict.fromkeys([*chosen, *noise])), **options),
        "tasks": cross_task.run_all(together, **options),
        "target": example.target,
        "guess": float(test.targets[example.target].bincount().max()) / len(test),
    }


def _several(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the cross-task study is asked for."""
    named, path = config["tasks"], config["poison"]
    target = DATASETS[config["dataset"]].target
    own = {
        "tasks": list(dict.fromkeys([target, *named])) if named else [],
        "methods": [] if path else [EXAMPLE],
        "epochs": config["task_epochs"],
    }
    usual: dict[str, Any] = {
        "size": None, "rare": "drop", "single": [], "transfer": False, "poisons": None, "target": None, "eps": None,
        "recipe": "cpu", "weighting": "equal", "batch_size": 16, "lr": 0.01, "probe_epochs": 1, "sal_images": 16,
    }  # fmt: skip
    return {**config, **own, **usual}
