"""Budgets of poisons: (eps, values an image) -> largest size in the method's norm, before 8-bit rounding.

eps = 8/255 means the budget that the method's paper or public code uses.
"""


def linf(eps: float, dimension: int) -> float:
    """eps itself: the radius of L-infinity methods."""
    return eps


def lsp(eps: float, dimension: int) -> float:
    """LSP's Euclidean length, 3/4 eps sqrt(d): 6/255 sqrt(3072) = 1.304 at eps = 8/255 (public code)."""
    return 0.75 * eps * dimension**0.5


def ar(eps: float, dimension: int) -> float:
    """AR's Euclidean length: 1.0 at eps = 8/255 on 3x32x32 values, growing with the square root of the size."""
    return eps * 255 / 8 * (dimension / 3072) ** 0.5


def one_pixel(eps: float, dimension: int) -> float:
    """One changed pixel, by any amount."""
    return 1
