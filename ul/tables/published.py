"""Published values that ours are set beside: accuracies on clean test images of CIFAR-10 in shares of 1, and UD."""

from itertools import combinations
from typing import Any

import pandas as pd

from ..base.errors import Record
from ..base.names import CLEAN, METHODS
from ..base.stats import fixed

# Leaderboard of APBench (column Standard); SEP at 8/255 from the table of image shortcut squeezing (ISS).
# Sources differ by ten points and more: compare orders, not values.
EPS = 8 / 255
CIFAR10: dict[str, float] = {
    "dc": 0.1519,
    "em": 0.2078,
    "rem": 0.1747,
    "hypo": 0.7038,
    "ntga": 0.2276,
    "tap": 0.0627,
    "lsp": 0.1306,
    "ar": 0.1174,
    "ops": 0.1469,
    "sep": 0.0385,
}


# The same page's other columns that have a defense of ours.
DEFENDED: dict[str, dict[str, float]] = {
    "cutout": {
        "dc": 0.1994, "em": 0.1879, "rem": 0.2196, "hypo": 0.6904, "ntga": 0.1378, "tap": 0.0988, "lsp": 0.1496,
        "ar": 0.1095, "ops": 0.5298,
    },
    "cutmix": {
        "dc": 0.1791, "em": 0.2228, "rem": 0.2622, "hypo": 0.6712, "ntga": 0.1291, "tap": 0.1421, "lsp": 0.1769,
        "ar": 0.1260, "ops": 0.6472,
    },
    "mixup": {
        "dc": 0.2507, "em": 0.3114, "rem": 0.4307, "hypo": 0.7425, "ntga": 0.2059, "tap": 0.1546, "lsp": 0.1877,
        "ar": 0.1415, "ops": 0.4927,
    },
    "bdr": {
        "dc": 0.6773, "em": 0.3794, "rem": 0.5860, "hypo": 0.7482, "ntga": 0.5932, "tap": 0.7075, "lsp": 0.5386,
        "ar": 0.3614, "ops": 0.3732,
    },
    "gray": {
        "dc": 0.8555, "em": 0.9203, "rem": 0.9227, "hypo": 0.6335, "ntga": 0.7041, "tap": 0.1101, "lsp": 0.6470,
        "ar": 0.3517, "ops": 0.1988,
    },
    "jpeg": {
        "dc": 0.8357, "em": 0.8072, "rem": 0.8544, "hypo": 0.8521, "ntga": 0.6872, "tap": 0.8408, "lsp": 0.8014,
        "ar": 0.8475, "ops": 0.7848,
    },
    "ueraser_max": {
        "dc": 0.9217, "em": 0.9361, "rem": 0.9243, "hypo": 0.8844, "ntga": 0.8678, "tap": 0.7905, "lsp": 0.9283,
        "ar": 0.9012, "ops": 0.7799,
    },
    "at": {
        "dc": 0.7685, "em": 0.8251, "rem": 0.7746, "hypo": 0.8149, "ntga": 0.6970, "tap": 0.7992, "lsp": 0.8138,
        "ar": 0.8115, "ops": 0.1495,
    },
}  # fmt: skip
# Ye, Su, Qian 2025: the two values that its text states.
UD: dict[tuple[str, str, str, str], float] = {
    ("cifar10", "resnet18", "none", "em"): 0.139,
    ("cifar10", "vit_small", "none", "tap"): 1.639,
}


def _reduced(method: str) -> bool:
    """Whether a method has a surrogate, whose recipe may be reduced."""
    return method not in METHODS or METHODS[method].recipes is not None


def comparable(config: dict[str, Any]) -> bool:
    """Whether a run's poison is the published one: on all images, true labels, usual strength, no reduced recipe."""
    whole = config["poison_recipe"] == "published" or not _reduced(config["method"])
    whole = whole and config["limit"] is None and config["share"] == 1 and config["label_noise"] == 0
    return whole and abs(config["eps"] - EPS) < 1e-4


def values(dataset: str, architecture: str, defense: str, method: str, *, comparable: bool = True) -> dict[str, float]:
    """published_accuracy (0..1) and published_ud of exactly this condition; nan where there is none."""
    if not comparable:
        return {"published_accuracy": float("nan"), "published_ud": float("nan")}
    table = {"none": CIFAR10, **DEFENDED}.get(defense, {}) if (dataset, architecture) == ("cifar10", "resnet18") else {}
    ud = UD.get((dataset, architecture, defense, method), float("nan"))
    return {"published_accuracy": table.get(method, float("nan")), "published_ud": ud}


def agreeing(measured: dict[str, float]) -> dict[str, str]:
    """For each method with a published value: "k/m", how many of the m other such methods it is ordered with alike.

    measured: accuracy by method, of published recipes only. Methods without a published value are left out.
    """
    names = [name for name in measured if name in CIFAR10]
    alike = dict.fromkeys(names, 0)
    for a, b in combinations(names, 2):
        same = (measured[a] - measured[b]) * (CIFAR10[a] - CIFAR10[b]) > 0
        alike[a] += same
        alike[b] += same
    return {name: f"{alike[name]}/{len(names) - 1}" for name in names} if len(names) > 1 else {}


# ---- The paper and its public code ---------------------------------------------------------------------------------

HEADLINE = ("cifar10", "resnet18")
UNTOLD = "not known here"
# What the paper says, and what its public code (its state of 2025) does, by what is compared; the last column is ours.
SETUPS = {
    "training images": ("50,000, the data set", "49,920 a pass: the last, smaller batch is dropped"),
    "test images": ("10,000", "10,000"),
    "epochs, batch": (UNTOLD, "50, 256"),
    "learning rate": (UNTOLD, "0.1 all along: its milestones lie beyond the last epoch"),
    "seeds": (UNTOLD, "one (0), of network and batches"),
    "poison": (UNTOLD, "files that each method's own code wrote"),
    "SAL measured on": (UNTOLD, "the training set, cropped and flipped anew in every pass"),
    "SAL's search": ("largest and smallest loss in the ball", "10 passes each way, projected once a pass, lr 0.1"),
    "SAL's reference": ("the loss", "the epoch's running loss in training mode"),
    "SAL's epochs": (UNTOLD, "all"),
    "UD of em": (str(UD["cifar10", "resnet18", "none", "em"]), ""),
    "UD of tap": (f"{UD['cifar10', 'vit_small', 'none', 'tap']} (ViT)", ""),
}


def beside(runs: list[Record], summary: pd.DataFrame) -> pd.DataFrame:
    """What the headline's runs here share with the paper and its public code: what, paper, public code, here.

    runs: of one block; summary: rows of `benchmark.by_method`. Accuracies beside the field's are in `values`, for the
    published recipes alone. Empty for other data, networks or defenses.
    """
    columns = ["what", "paper", "public code", "here"]
    config: Record = runs[0]["config"] if runs else {"dataset": None, "architecture": None, "defense": None}
    if (config["dataset"], config["architecture"]) != HEADLINE or config["defense"] != "none":
        return pd.DataFrame(columns=columns)
    recipe, sal, known = config["recipe"], config["sal"], summary.set_index("method")
    seeds = sorted({run["config"]["seed"] for run in runs})
    draws = {run["config"]["poison_seed"] for run in runs if run["config"]["method"] != CLEAN}
    here = {
        "training images": f"{runs[0]['data']['train_images']:,}",
        "test images": f"{runs[0]['data']['test_images']:,}",
        "epochs, batch": f"{recipe['epochs']}, {recipe['batch_size']}",
        "learning rate": f"{recipe['lr']:g} after warm-up ({recipe['warmup']:g} of the steps), then cosine to 0",
        "seeds": f"{len(seeds)} ({seeds[0]} to {seeds[-1]})",
        "poison": f"made here, recipe {config['poison_recipe']}, {len(draws)} draw{'s' * (len(draws) > 1)}",
        "SAL measured on": f"{sal['images']} fixed images of the run's own training set, as they are",
        "SAL's search": f"at most {sal['steps']} steps each way, each projected",
        "SAL's reference": "the same images in eval mode",
        "SAL's epochs": ", ".join(map(str, config["probes"])),
        **{f"UD of {method}": _ud(known, method) for method in ("em", "tap")},
    }
    return pd.DataFrame([[what, *SETUPS[what], here[what]] for what in SETUPS], columns=columns)


def _ud(known: pd.DataFrame, method: str) -> str:
    if method not in known.index or not known.loc[method, "ud_layers"] >= 0:
        return "none"
    value, low, high = (fixed(known.loc[method, f"ud_layers{end}"]) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"
