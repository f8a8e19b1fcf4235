"""Furniture of `ul.render.renderer` as coloured, labelled triangles.

Metres, z up; each piece stands on the floor around the origin and its front looks along +y. Sizes are drawn from the
generator given. Paints are names that `ul.render.renderer` resolves: no piece has a colour of its own, so that a class
is its shape. Labels are Taskonomy's segment_semantic values (0 uncertain, 1 background, 2 to 17 objects).
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_BACKGROUND, _BOTTLE, _CHAIR, _COUCH, _PLANT, _BED, _TABLE, _TOILET, _TV = 1, 2, 3, 4, 5, 6, 7, 8, 9
_MICROWAVE, _OVEN, _SINK, _FRIDGE, _BOOK, _CLOCK, _VASE = 10, 11, 13, 14, 15, 16, 17


Vector = Sequence[float]  # x, y, z in metres


class Part(NamedTuple):
    """Triangles float[n,3,3] in metres, the name of their paint, their semantic value and their surface pattern."""

    triangles: np.ndarray
    paint: str
    label: int = _BACKGROUND
    pattern: str = "plain"


# ---------------------------------------------------------------- primitives


@functools.cache
def _unit_box() -> np.ndarray:
    from trimesh.creation import box as cube

    return np.asarray(cube((1, 1, 1)).triangles) + 0.5


def box(
    x0: float,
    x1: float,
    y0: float,
    y1: float,
    z0: float,
    z1: float,
    paint: str,
    label: int = _BACKGROUND,
    pattern: str = "plain",
) -> Part:
    low, high = np.array([x0, y0, z0]), np.array([x1, y1, z1])
    return Part(_unit_box() * (high - low) + low, paint, label, pattern)


def _lathe(
    profile: Sequence[tuple[float, float]],
    paint: str,
    label: int = _BACKGROUND,
    at: Vector = (0, 0, 0),
    stretch: float = 1.0,
    sections: int = 20,
) -> Part:
    """Surface of revolution of (radius, z) pairs about z, `stretch`ed along y."""
    from trimesh.creation import revolve

    triangles = np.asarray(revolve(profile, sections=sections).triangles)
    return Part(triangles * [1, stretch, 1] + at, paint, label)


def _pole(x: float, y: float, z0: float, z1: float, radius: float, paint: str, label: int = _BACKGROUND) -> Part:
    return _lathe([(0, z0), (radius, z0), (radius, z1), (0, z1)], paint, label, (x, y, 0), sections=8)


def _tilt(part: Part, angle: float, pivot: Vector) -> Part:
    """`part` rotated by `angle` (radians) about the x-parallel line through `pivot`."""
    c, s = np.cos(angle), np.sin(angle)
    return part._replace(triangles=(part.triangles - pivot) @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]]) + pivot)


def move(parts: list[Part], angle: float = 0.0, shift: Vector = (0, 0, 0)) -> list[Part]:
    """`parts` rotated by `angle` (radians) about z, then shifted."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    return [p._replace(triangles=p.triangles @ turn + shift) for p in parts]


def _posts(
    half_x: float, half_y: float, half_width: float, z0: float, z1: float, paint: str, label: int = _BACKGROUND
) -> list[Part]:
    """Four square posts at the corners (±half_x, ±half_y)."""
    corners = [(sx * half_x, sy * half_y) for sx in (-1, 1) for sy in (-1, 1)]
    r = half_width
    return [box(x - r, x + r, y - r, y + r, z0, z1, paint, label) for x, y in corners]


def bounds(parts: list[Part]) -> tuple[np.ndarray, np.ndarray]:
    points = np.concatenate([p.triangles.reshape(-1, 3) for p in parts])
    return points.min(0), points.max(0)


# ---------------------------------------------------------------- the ten objects: parts on the floor around the origin


def _bookcase(rng: np.random.Generator) -> list[Part]:
    w, d, h, n = rng.uniform(0.4, 0.55), 0.16, rng.uniform(1.4, 1.8), rng.integers(4, 6)
    parts = [box(-w, w, -d, -d + 0.03, 0, h, "second")]
    parts += [box(x - 0.025, x + 0.025, -d, d, 0, h, "main") for x in (-w, w)]
    parts += [box(-w, w, -d, d, z, z + 0.04, "main") for z in np.linspace(0.02, h - 0.04, n + 1)]
    for z in np.linspace(0.02, h - 0.04, n + 1)[:-1]:
        x = -w + 0.04
        while x < w - 0.12:
            width, tall = rng.uniform(0.04, 0.11), rng.uniform(0.55, 0.85) * h / n
            if rng.random() < 0.75:
                paint = rng.choice(["third", "second"])
                parts.append(box(x, x + width, -d + 0.03, d - 0.06, z + 0.04, z + tall, paint, _BOOK))
            x += width + 0.01
    return parts


def _dining_table(rng: np.random.Generator) -> list[Part]:
    w, d, h, leg = rng.uniform(0.55, 0.8), rng.uniform(0.35, 0.48), rng.uniform(0.7, 0.78), rng.uniform(0.03, 0.05)
    if rng.random() < 0.3:  # round, on a column
        foot = [(0, 0), (0.3, 0), (0.3, 0.04), (0.06, 0.08), (0.06, h - 0.05)]
        return [_lathe([*foot, (w * 0.85, h - 0.05), (w * 0.85, h), (0, h)], "main", _TABLE)]
    top = box(-w, w, -d, d, h - 0.05, h, "main", _TABLE)
    y, low = d - 0.07, h - 0.13
    rails = [box(0.06 - w, w - 0.06, e - 0.01, e + 0.01, low, h - 0.05, "second", _TABLE) for e in (-y, y)]
    return [top, *rails, *_posts(w - 0.08, d - 0.07, leg, 0, h - 0.05, "second", _TABLE)]


def _folding_chair(rng: np.random.Generator) -> list[Part]:
    w, d, seat, top = rng.uniform(0.2, 0.25), 0.21, rng.uniform(0.42, 0.48), rng.uniform(0.85, 1.0)
    parts = [box(-w, w, -d, d, seat - 0.04, seat, "main", _CHAIR)]
    parts += _posts(w - 0.03, d - 0.03, 0.02, 0, seat - 0.02, "second", _CHAIR)
    parts += [box(x - 0.02, x + 0.02, -d, -d + 0.04, seat, top - 0.01, "second", _CHAIR) for x in (-w + 0.02, w - 0.02)]
    slats = [(seat + 0.12, top)] if rng.random() < 0.4 else [(top - 0.12, top), (top - 0.3, top - 0.2)]
    return parts + [box(-w, w, -d - 0.01, -d + 0.03, z0, z1, "main", _CHAIR) for z0, z1 in slats]


def _four_poster(rng: np.random.Generator) -> list[Part]:
    w, d, h, top = rng.uniform(0.65, 0.85), rng.uniform(0.95, 1.05), rng.uniform(0.45, 0.55), rng.uniform(1.6, 1.95)
    parts = [
        box(-w, w, -d, d, 0.18, h - 0.14, "second", _BED),
        box(-w + 0.03, w - 0.03, -d, d - 0.02, h - 0.14, h, "main", _BED),
    ]
    parts += _posts(w, d, 0.045, 0, top, "second", _BED)
    parts += [box(-w, w, y - 0.03, y + 0.03, top - 0.07, top, "second", _BED) for y in (-d, d)]
    parts += [box(x - 0.03, x + 0.03, -d, d, top - 0.07, top, "second", _BED) for x in (-w, w)]
    parts += [box(-w, w, -d - 0.02, -d + 0.03, 0.3, rng.uniform(0.9, 1.1), "second", _BED)]
    return parts + [box(x - 0.27, x + 0.27, -d + 0.08, -d + 0.45, h, h + 0.12, "third", _BED) for x in (-w / 2, w / 2)]


def _leaf(length: float, width: float, lift: float, angle: float, foot: float, paint: str) -> Part:
    """A bent blade of two quads from (0, 0, foot), rising at `lift` radians and drooping half-way."""
    rise, out = length * np.sin(lift) / 2, length * np.cos(lift) / 2
    a, b, c = np.array([0, 0, foot]), np.array([0, out, foot + rise * 1.4]), np.array([0, out * 2, foot + rise * 1.2])
    side = np.array([width / 2, 0, 0])
    blade = Part(np.array([[a, b - side, b + side], [c, b - side, b + side]]), paint, _PLANT)
    return move([blade], angle)[0]


def _pot_plant(rng: np.random.Generator) -> list[Part]:
    r, h, n = rng.uniform(0.14, 0.2), rng.uniform(0.25, 0.35), rng.integers(16, 24)
    rim = [(r, h), (r * 1.08, h), (r * 1.08, h - 0.04), (0, h - 0.05)]
    pot = _lathe([(0, 0), (r * rng.uniform(0.6, 0.8), 0), *rim], "second", _PLANT)
    blades = zip(rng.uniform(0.55, 0.8, n), rng.uniform(0.1, 0.17, n), rng.uniform(0.5, 1.45, n), strict=True)
    return [pot, *(_leaf(*blade, 2.4 * i, h - 0.06, "main") for i, blade in enumerate(blades))]


def _refrigerator(rng: np.random.Generator) -> list[Part]:
    w, d, h = rng.uniform(0.33, 0.42), rng.uniform(0.3, 0.36), rng.uniform(1.55, 1.85)
    split = h * rng.choice([0.35, 0.62, 0.7])
    side = rng.choice([-1, 1]) * (w - 0.06)
    parts = [
        box(-w, w, -d, d - 0.05, 0.04, h, "main", _FRIDGE),
        box(-w + 0.02, w - 0.02, d - 0.06, d - 0.03, 0.06, h - 0.02, "second", _FRIDGE),
    ]
    doors = ((0.06, split - 0.012), (split + 0.012, h))
    parts += [box(-w, w, d - 0.04, d, z0, z1, "main", _FRIDGE) for z0, z1 in doors]
    spans = ((split - 0.4, split - 0.08), (split + 0.08, split + 0.36))
    return parts + [box(side - 0.018, side + 0.018, d, d + 0.05, z0, z1, "second", _FRIDGE) for z0, z1 in spans]


def _studio_couch(rng: np.random.Generator) -> list[Part]:
    w, d, seat = rng.uniform(0.75, 1.0), 0.42, rng.uniform(0.38, 0.44)
    top, arm = rng.uniform(0.75, 0.9), rng.uniform(0.12, 0.2)
    parts = [box(-w, w, -d, d, 0.1, seat - 0.12, "main", _COUCH), box(-w, w, -d, -d + 0.2, 0.1, top, "main", _COUCH)]
    parts += [box(x - arm / 2, x + arm / 2, -d, d, 0.1, seat + 0.2, "main", _COUCH) for x in (-w, w)]
    edges = np.linspace(-w + arm / 2, w - arm / 2, rng.integers(3, 5))
    for x0, x1 in itertools.pairwise(edges):
        back = box(x0 + 0.02, x1 - 0.02, -d + 0.2, -d + 0.32, seat, top - 0.05, "second", _COUCH)
        parts += [box(x0 + 0.01, x1 - 0.01, -d + 0.2, d + 0.02, seat - 0.12, seat, "second", _COUCH)]
        parts += [_tilt(back, 0.15, (0, -d + 0.2, seat))]
    return parts + _posts(w - 0.1, d - 0.06, 0.03, 0, 0.1, "third", _COUCH)


def _television(rng: np.random.Generator) -> list[Part]:
    w, foot = rng.uniform(0.5, 0.65), rng.uniform(0.4, 0.6)
    h, base = w * rng.uniform(1.1, 1.25), foot + 0.1
    console = [
        box(-w * 0.9, w * 0.9, -0.2, 0.2, 0, foot, "third"),
        box(-w * 0.8, w * 0.8, 0.2, 0.21, 0.08, foot - 0.06, "prop"),
    ]
    stand = [
        box(-w * 0.35, w * 0.35, -0.1, 0.1, foot, foot + 0.025, "second", _TV),
        box(-0.05, 0.05, -0.03, 0.0, foot, base + 0.1, "second", _TV),
    ]
    screen = [box(-w, w, -0.04, 0.02, base, base + h, "second", _TV)]
    return console + stand + screen + [box(-w + 0.05, w - 0.05, 0.02, 0.025, base + 0.05, base + h - 0.05, "main", _TV)]


def _toilet(rng: np.random.Generator) -> list[Part]:
    w, h, top = rng.uniform(0.18, 0.21), rng.uniform(0.38, 0.44), rng.uniform(0.72, 0.82)
    outside = [(0, 0), (w * 0.62, 0), (w * 0.5, h * 0.4), (w * 0.95, h * 0.85), (w, h)]
    bowl = [*outside, (w * 0.72, h), (w * 0.5, h - 0.12), (0, h - 0.14)]
    seat = [(w * 0.7, h), (w * 1.04, h), (w * 1.04, h + 0.03), (w * 0.7, h + 0.03)]
    parts = [_lathe(bowl, "main", _TOILET, (0, 0.1, 0), 1.3), _lathe(seat, "second", _TOILET, (0, 0.1, 0), 1.3)]
    parts += [
        box(-w * 1.15, w * 1.15, -0.34, -0.15, h - 0.05, top, "main", _TOILET),
        box(-w * 1.2, w * 1.2, -0.35, -0.13, top, top + 0.04, "main", _TOILET),
    ]
    parts += [box(-w * 0.5, w * 0.5, -0.3, 0.05, 0, h - 0.04, "main", _TOILET)]
    if rng.random() < 0.5:  # lid up, leaning on the tank
        lid = _lathe([(0, 0), (w, 0), (w, 0.03), (0, 0.03)], "second", _TOILET, (0, 0.24, h + 0.02), 1.25)
        parts.append(_tilt(lid, 1.5, (0, -0.1, h + 0.04)))
    return parts


def _vase(rng: np.random.Generator) -> list[Part]:
    r, h, neck = rng.uniform(0.11, 0.16), rng.uniform(0.4, 0.55), rng.uniform(0.3, 0.5)
    belly, table, side = rng.uniform(0.35, 0.6), rng.uniform(0.5, 0.75), rng.uniform(0.2, 0.28)
    z = np.linspace(0, 1, 14)
    bulge = np.interp(z, [0, belly, 0.85, 1], [0.55, 1, neck, neck * 1.5]) + 0.12 * np.sin(np.pi * z) - 0.03
    outside = zip(r * bulge, table + h * z, strict=True)
    inside = [(r * neck, table + h - 0.01), (0, table + h - 0.1)]
    vase = _lathe([(0, table), *outside, *inside], "main", _VASE, sections=24)
    top = box(-side, side, -side, side, table - 0.04, table, "third")
    return [vase, top, *_posts(side - 0.03, side - 0.03, 0.02, 0, table - 0.04, "third")]


# ---------------------------------------------------------------- what stands along the walls, one builder a scene type


def _trunk(rng: np.random.Generator) -> list[Part]:
    w, d, h = rng.uniform(0.3, 0.5), rng.uniform(0.45, 0.6), rng.uniform(0.35, 0.5)
    crate = box(-w * 0.7, w * 0.6, 0.1, d - 0.05, h + 0.02, h + rng.uniform(0.25, 0.5), "prop")
    band = box(-w - 0.01, w + 0.01, 0.02, d + 0.01, h - 0.1, h - 0.05, "dim")
    return [box(-w, w, 0.03, d, 0, h, "wood"), band, crate]


def _boiler(rng: np.random.Generator) -> list[Part]:
    r, h = rng.uniform(0.24, 0.32), rng.uniform(1.3, 1.6)
    tank = _lathe([(0, 0.1), (r, 0.1), (r, h), (r * 0.6, h + 0.12), (0, h + 0.15)], "prop", at=(0, r + 0.08, 0))
    pipes = [_pole(x, 0.1, 0, 3.2, 0.04, "dim") for x in (-r - 0.15, r + 0.12)]
    return [tank, *pipes, _pole(0, r + 0.08, h, 3.2, 0.035, "dim")]


def _washing(rng: np.random.Generator) -> list[Part]:
    if rng.random() < 0.5:  # a bath: four walls and a floor
        w, d, h = 0.75, 0.7, 0.55
        sides = [box(-w, w, y, y + 0.08, 0, h, "light") for y in (0.02, d - 0.08)]
        ends = [box(x, x + 0.1, 0.02, d, 0, h - 0.002, "light") for x in (-w + 0.002, w - 0.102)]
        return [*sides, *ends, box(-w + 0.01, w - 0.01, 0.03, d - 0.01, 0, 0.2, "light")]
    basin = _lathe([(0, 0.7), (0.2, 0.72), (0.28, 0.88), (0.24, 0.88), (0, 0.8)], "light", _SINK, (0, 0.3, 0))
    foot = _pole(0, 0.25, 0, 0.75, 0.07, "light", _SINK)
    mirror = [box(-0.33, 0.33, 0, 0.015, 1.12, 1.88, "trim"), box(-0.3, 0.3, 0, 0.02, 1.15, 1.85, "glint")]
    return [basin, foot, *mirror]


def _wardrobe(rng: np.random.Generator) -> list[Part]:
    if rng.random() < 0.5:  # a bedside table with its lamp
        shade = _lathe([(0.06, 1.0), (0.16, 0.75), (0.15, 0.75)], "light", at=(0, 0.25, 0))
        table = [box(-0.25, 0.25, 0.02, 0.45, 0, 0.5, "wood"), box(-0.2, 0.2, 0.45, 0.46, 0.2, 0.42, "dim")]
        return [*table, _pole(0, 0.25, 0.5, 0.8, 0.03, "trim"), shade]
    w, h = rng.uniform(0.45, 0.65), rng.uniform(1.9, 2.1)
    doors = [box(x + 0.02, x + w - 0.02, 0.55, 0.57, 0.1, h - 0.05, "prop") for x in (-w, 0)]
    return [box(-w, w, 0.02, 0.55, 0, h, "wood"), *doors]


def _door(rng: np.random.Generator) -> list[Part]:
    spans = itertools.product((-0.34, 0.04), ((0.2, 0.9), (1.05, 1.85)))
    panels = [box(x, x + 0.3, 0.03, 0.045, z0, z1, "wood") for x, (z0, z1) in spans]
    return [box(-0.48, 0.48, 0, 0.02, 0, 2.08, "trim"), box(-0.4, 0.4, 0, 0.035, 0, 2.0, "prop"), *panels]


def _sideboard(rng: np.random.Generator) -> list[Part]:
    w, h = rng.uniform(0.5, 0.8), rng.uniform(0.75, 0.9)
    doors = [box(x + 0.03, x + w - 0.03, 0.42, 0.44, 0.12, h - 0.08, "prop") for x in (-w, 0)]
    bottle = [(0, h), (0.045, h), (0.045, h + 0.2), (0.015, h + 0.27), (0.015, h + 0.34), (0, h + 0.34)]
    places = [(x, 0.25, 0) for x in rng.uniform(-w + 0.1, w - 0.1, 3)]
    bottles = [_lathe(bottle, "dim", _BOTTLE, place, sections=10) for place in places]
    picture = [
        box(-w * 0.6, w * 0.6, 0, 0.03, 1.35, 1.95, "wood"),
        box(-w * 0.5, w * 0.5, 0, 0.04, 1.42, 1.88, "light"),
    ]
    return [box(-w, w, 0.02, 0.42, 0, h, "wood"), *doors, *bottles, *picture]


def _desk(rng: np.random.Generator) -> list[Part]:
    w = rng.uniform(0.55, 0.75)
    top = [box(-w, w, 0.02, 0.65, 0.7, 0.74, "wood"), box(w - 0.4, w, 0.05, 0.6, 0, 0.7, "prop")]
    screen = [box(-0.3, 0.25, 0.25, 0.28, 0.86, 1.2, "dim", _TV), box(-0.06, 0.02, 0.22, 0.25, 0.74, 0.95, "dim", _TV)]
    shelf = [box(-w, w, 0, 0.22, 1.55, 1.58, "wood")]
    for x in np.arange(-w + 0.05, w - 0.1, 0.08):
        paint = rng.choice(["prop", "dim", "light"])
        shelf.append(box(x, x + 0.06, 0.02, 0.2, 1.58, 1.58 + rng.uniform(0.18, 0.28), paint, _BOOK))
    return [*top, box(-w, -w + 0.04, 0.05, 0.6, 0, 0.7, "wood"), *screen, *shelf]


def _counter(rng: np.random.Generator) -> list[Part]:
    w = rng.uniform(0.6, 0.8)
    base = [box(-w, w, 0.02, 0.58, 0.08, 0.86, "prop"), box(-w, w, 0.0, 0.62, 0.86, 0.91, "wood")]
    doors = [box(x + 0.02, x + w / 1.5 - 0.02, 0.58, 0.6, 0.14, 0.8, "light") for x in np.linspace(-w, w, 4)[:-1]]
    upper = [box(-w, w, 0.02, 0.35, 1.45, 2.1, "prop")]
    upper += [box(x + 0.02, x + w / 1.5 - 0.02, 0.35, 0.37, 1.48, 2.07, "light") for x in np.linspace(-w, w, 4)[:-1]]
    if rng.random() < 0.5:
        return [*base, *doors, *upper, box(-0.28, 0.2, 0.15, 0.5, 0.91, 1.2, "dim", _MICROWAVE)]
    return [*base, *doors[::2], *upper, box(-w / 3, w / 3, 0.58, 0.61, 0.14, 0.82, "dim", _OVEN)]


def _fireside(rng: np.random.Generator) -> list[Part]:
    if rng.random() < 0.5:  # a standing lamp beside a picture
        shade = _lathe([(0.12, 1.65), (0.24, 1.35), (0.23, 1.35)], "light", at=(0, 0.35, 0))
        picture = [box(-0.75, 0.0, 0, 0.03, 1.3, 1.85, "wood"), box(-0.69, -0.06, 0, 0.04, 1.36, 1.79, "prop")]
        return [_pole(0, 0.35, 0, 1.4, 0.025, "trim"), _pole(0, 0.35, 0, 0.03, 0.16, "trim"), shade, *picture]
    jambs = [box(x, x + 0.25, 0.02, 0.4, 0, 0.95, "light") for x in (-0.65, 0.4)]
    disc = _lathe([(0, 0), (0.18, 0), (0.18, 0.04), (0, 0.04)], "prop", _CLOCK, (0, 0.04, 1.6))
    clock = _tilt(disc, np.pi / 2, (0, 0.04, 1.6))
    return [*jambs, box(-0.75, 0.75, 0.0, 0.46, 0.95, 1.05, "wood"), box(-0.4, 0.4, 0.02, 0.06, 0, 0.95, "dim"), clock]


def _stairs(rng: np.random.Generator) -> list[Part]:
    tread, rise, side, parts = 0.26, 0.18, rng.choice([-1, 1]), []
    for i in range(9):
        x, z, r = side * (i * tread - 0.9), (i + 1) * rise, tread / 2
        parts.append(box(x - r, x + r, 0.02, 0.85, 0, z, "wood"))
        parts.append(box(x - r - 0.02, x + r + 0.02, 0.0, 0.88, z - 0.03, z + 0.001, "light"))
        parts.append(box(x - 0.015, x + 0.015, 0.78, 0.81, z, z + 0.85, "trim"))
    return parts


OBJECTS = {
    "bookcase": _bookcase, "dining_table": _dining_table, "folding_chair": _folding_chair, "four_poster": _four_poster,
    "pot_plant": _pot_plant, "refrigerator": _refrigerator, "studio_couch": _studio_couch, "television": _television,
    "toilet": _toilet, "vase": _vase,
}  # fmt: skip
PROPS = {
    "attic": _trunk, "basement": _boiler, "bathroom": _washing, "bedroom": _wardrobe, "corridor": _door,
    "dining_room": _sideboard, "home_office": _desk, "kitchen": _counter, "living_room": _fireside,
    "staircase": _stairs,
}  # fmt: skip
