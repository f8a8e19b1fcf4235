"""Strengths and budgets of poisons: (eps, values an image) -> largest size in the method's norm, before 8-bit rounding.

eps = 8/255 means the budget that the method's paper or public code uses.
"""

from .errors import InputError


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


def strength(eps: float | str) -> float:
    """`eps` as a number in (0, 1]; text may be a fraction: "8/255". Raises InputError that says how to give it."""
    if isinstance(eps, str):
        eps = _fraction(eps)
    if 1 < eps <= 255:
        raise InputError(f"eps is {eps}; it is a share of the range [0, 1]: for {eps:g} levels give {eps:g}/255")
    if not 0 < eps <= 1:
        raise InputError(f"eps is {eps}; it must be above 0 and at most 1 (8/255 is the published budget)")
    return eps


def _fraction(text: str) -> float:
    top, _, bottom = text.partition("/")
    try:
        return float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"eps is {text!r}; give a number or a fraction such as 8/255") from None
