"""One poison made and measured, and one victim trained on it."""

import numpy as np

from ..base import records
from ..base.errors import Record
from ..data import pixels
from ..data.split import Split, classes
from ..nets import classifiers
from ..nets.device import device
from ..poisons import making
from ..poisons.target import counting
from ..training import defenses, metrics, victim
from .description import Images


def poisoned(chosen: Images, clean: Split) -> Split:
    """A clean split poisoned as `chosen` says, made now."""
    return making.make(
        chosen.method,
        clean,
        eps=chosen.eps,
        seed=chosen.poison_seed,
        device=device(),
        target=chosen.target,
        recipe=chosen.poison_recipe,
    )


def made(chosen: Images, clean: Split) -> Record:
    """The poison as a record: passes through surrogates, sizes, separability, spectrum; images among its arrays."""
    with counting() as passes:
        poison = poisoned(chosen, clean)
    records.note(f"made {chosen.dataset} {chosen.method}: {passes.images / len(clean):.0f} passes an image")
    delta = pixels.to_float(poison.images) - pixels.to_float(clean.images)
    return {
        "passes": passes.images,
        "sizes": pixels.measure(clean.images, poison.images),
        "separability": metrics.linear_separability(delta, clean.targets[chosen.target], seed=0),
        "spectrum": records.packed(amplitude(delta.numpy())),
        "arrays": {"images": poison.images.numpy()},
    }


def amplitude(delta: np.ndarray) -> np.ndarray:
    """Mean amplitude of the Fourier transform of float[n,c,h,w], the centre being 0 cycles: float32[h,w]."""
    parts = [np.abs(np.fft.fft2(delta[i : i + 100])).mean(1).sum(0) for i in range(0, len(delta), 100)]
    return np.fft.fftshift(sum(parts) / len(delta)).astype(np.float32)


def trained(architecture: str, recipe: victim.Recipe, poison: Split, test: Split, chosen: Images, seed: int) -> Record:
    """What happened to one victim: `victim.History` as a record."""
    shape = {"channels": poison.images.shape[1], "classes": classes(poison, test), "size": poison.images.shape[-1]}
    history = victim.fit(
        classifiers.make(architecture, seed=seed, **shape),
        poison,
        test,
        recipe=recipe,
        defense=defenses.make("none"),
        seed=seed,
        device=device(),
        target=chosen.target,
    )
    final = f"{recipe.epochs} epochs, test accuracy {history.test_accuracy[-1]:.3f}"
    records.note(f"trained {chosen.dataset} {chosen.method} {architecture} none seed {seed}: {final}")
    return history.as_dict()
