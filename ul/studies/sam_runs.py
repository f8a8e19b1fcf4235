"""One network trained by SGD or by SAM, and how flat its minimum is."""

from dataclasses import replace

from torch.nn import functional as F

from ..base.errors import Record
from ..nets.device import device
from ..sharpness import sal, scores
from ..training import defenses, metrics, victim
from . import paths
from .paths import PathSets, Run
from .victims import sal_subset


def measured(run: Run, own: PathSets, clean: PathSets, radius: float) -> Record:
    """One row of `flatness.measure`."""
    where, target = device(), run.images.target
    model = paths.network(run, own)
    victim.fit(
        model,
        paths.drawn(run, own.own),
        None,
        recipe=replace(run.recipe, sam=radius),
        defense=defenses.make("none"),
        seed=run.seed,
        device=where,
        target=target,
    )
    row: Record = {"method": run.images.method, "seed": run.seed, "sam": radius}
    row["test_accuracy"] = metrics.accuracy(model, *scores.on(own.test, target, where))
    parts = {"own": paths.drawn(run, own.own), "clean": paths.drawn(run, clean.own)}
    looked = {name: scores.on(sal_subset(split, run.looked), target, where) for name, split in parts.items()}
    for name, (x, y) in looked.items():
        row[f"loss_{name}"] = F.cross_entropy(metrics.logits(model, x), y).item()
        row[f"sharpness_{name}"] = scores.sharpness(model, x, y)
        row[f"curvature_{name}"] = scores.top_curvature(model, x, y)
    values = sal.per_layer(model, *looked["own"], least=0.0)["sal"].to_numpy()
    return row | {"sal": float(values.mean()), "layers": values.tolist()}
