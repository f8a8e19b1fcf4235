"""Digests of a little of everything, step by step: equal on two machines, so is every number of this repository.

`python -m tests.canary` writes `tests/canary.json`, on a machine whose results are committed; `test_canary` compares.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from ul import data, poisons, sal
from ul.base import arithmetic, records
from ul.data import pixels
from ul.nets import classifiers
from ul.nets.device import one_thread
from ul.training import defenses, victim

FILE = Path(__file__).with_suffix(".json")
STEPS = 6  # of each network
FEW = 5  # layers whose SAL is measured, evenly spread
SIDE = {"resnet18": 16, "resnet50": 16}  # pixels; others see 32
NETWORKS = ("linear", "lenet5", "resnet8", "senet8", "vit_tiny", "resnet18")


def processor() -> str:
    """Its name, and on Linux its kind: makers call several by one name."""
    kind = [f"{what} {found}" for what in ("cpu family", "model\t") if (found := arithmetic._said(what))]
    return ", ".join([arithmetic.processor(), *kind]).replace("\t", "")


def split(side: int = 32) -> data.Split:
    """Made-up images of four classes that a network can tell apart; its own seed, since networks start from 0."""
    rng, labels = torch.Generator().manual_seed(5), torch.arange(96) % 4
    patterns = torch.rand((4, 3, side, side), generator=rng)
    images = 0.5 * patterns[labels] + 0.5 * torch.rand((96, 3, side, side), generator=rng)
    return data.Split((255 * images).to(torch.uint8), {"label": labels}, "canary/train")


def digests() -> Iterator[tuple[str, str]]:
    """(what, digest), in the order in which things are computed."""
    with one_thread("cpu"):
        for name in NETWORKS:
            yield from _trained(name)
        yield from _surrogates()


def _trained(name: str) -> Iterator[tuple[str, str]]:
    """The weights of a network step by step, and its SAL."""
    side = SIDE.get(name, 32)
    images = split(side)
    model = classifiers.make(name, channels=3, classes=4, size=side, seed=0)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = pixels.to_float(images.images).contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for step in range(STEPS):
        rows = slice(16 * step, 16 * step + 16)
        loss = F.cross_entropy(model(x[rows]), images.targets["label"][rows])
        yield f"{name}, step {step + 1}, loss", f"{loss.item():.9g}"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield f"{name}, step {step + 1}, weights", _digest(classifiers.vector(model))
    names = classifiers.probed_layers(model)
    found = sal.per_layer(model, x[:16], images.targets["label"][:16], layers=names[:: -(-len(names) // FEW)])
    yield f"{name}, SAL", records.digest(found.drop(columns=["layer", "error"]).to_numpy(dtype=float))


def _surrogates() -> Iterator[tuple[str, str]]:
    """EM, and a victim of it with all of training's machinery."""
    clean = split()
    made = poisons.make("em", clean, seed=0, device="cpu", recipe="cpu", rounds=1)
    yield "em", made.digest()
    model = classifiers.make("resnet8", channels=3, classes=4, size=32, seed=0)
    recipe = victim.Recipe(epochs=2, batch_size=16)
    victim.fit(model, made, made, recipe=recipe, defense=defenses.make("jpeg"), seed=0, device="cpu")
    yield "victim of em under jpeg", _digest(classifiers.vector(model))


def _digest(values: torch.Tensor) -> str:
    return records.digest(values.detach().numpy())


def main() -> None:
    versions = {name: found for name, found in records.versions().items() if name != "python"}
    found = {"processor": processor(), "versions": versions, "digests": dict(digests())}
    records.write_text(FILE, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
