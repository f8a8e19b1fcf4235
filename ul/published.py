"""Published accuracies that ours are set beside: CIFAR-10, ResNet-18, clean test images, no defense, in shares of 1."""

from itertools import combinations

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
