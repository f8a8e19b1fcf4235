"""`rooms`: small rendered indoor views in Taskonomy's file layout and encodings.

A building has twenty points (an object of each of ten classes, twice, each time in another kind of room) and two views
of each point. Object class and scene type are independent by construction and all colours come from palettes shared by
every class, so that one task cannot be read off the other, nor off a colour: classes differ by shape.
Layout and encodings: EPFL-VILAB/omnidata (omnitools) and StanfordVL/taskonomy; see `render`. World frame: metres, z up,
the object at the origin, the back wall towards -y, the camera towards +y.
"""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from ..data.rooms import BUILDINGS, OBJECTS, SCENES
from . import furniture, ray_tracer

if TYPE_CHECKING:
    from embreex.rtcore_scene import EmbreeScene

_POINTS, _VIEWS = 2 * len(OBJECTS), 2  # per building, per point

# Difficulty, tuned so that a small CNN gets most views right and a linear classifier few.
_TURN, _JITTER = 1.4, 0.3  # the object's turn (radians) and distance from the centre (of its size), at most
_FILL = (0.5, 1.2)  # the object's diagonal as a share of the picture's side
_EXPOSURE = (0.55, 1.2)  # how much light a room has
_CONTRAST, _CHROMA = (0.05, 0.22), 0.08  # object against wall, and its parts against each other; saturation
_NEAREST, _SHARE = 0.4, 0.06  # metres before the lens, least share of the pixels that show the object


# Of a scene: low, high, walls, height, light and tint.
Place = tuple[np.ndarray, np.ndarray, ray_tracer.Walls, float, np.ndarray, np.ndarray]


class Finish(NamedTuple):
    """Surface patterns of a scene type and the free space in metres (low, high) behind and beside the object."""

    wall: str
    floor: str
    behind: tuple[float, float] = (0.3, 1.3)
    beside: tuple[float, float] = (0.5, 1.6)


_FINISHES = {
    "attic": Finish("boards", "boards", (0.6, 1.6), (0.5, 1.0)),
    "basement": Finish("bricks", "plain"),
    "bathroom": Finish("tiles", "tiles", (0.2, 0.8), (0.4, 1.0)),
    "bedroom": Finish("plain", "plain"),
    "corridor": Finish("plain", "boards", (2.0, 4.0), (0.25, 0.45)),
    "dining_room": Finish("wainscot", "boards"),
    "home_office": Finish("plain", "boards"),
    "kitchen": Finish("plain", "tiles"),
    "living_room": Finish("stripes", "boards"),
    "staircase": Finish("plain", "plain", (1.0, 1.6), (1.0, 1.8)),
}
# ---------------------------------------------------------------- colours


def _colour(rng: np.random.Generator, lightness: float, saturation: float) -> np.ndarray:
    hue = rng.uniform(0, 2 * np.pi) + np.array([0, 2.1, 4.2])
    return np.clip(lightness * (1 + saturation * np.cos(hue)), 0.02, 0.98)


def _near(rng: np.random.Generator, lightness: float) -> float:
    """A lightness a little above or below the one given, by chance."""
    return float(np.clip(lightness + rng.choice([-1, 1]) * rng.uniform(*_CONTRAST), 0.12, 0.92))


def _palette(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Paint name -> rgb. The object is lighter or darker than the wall by chance, which no linear template survives."""
    wall, floor = rng.uniform(0.4, 0.75), rng.uniform(0.3, 0.6)
    main = _near(rng, wall)
    second = _near(rng, main)
    levels = {
        "wall": (wall, 0.04), "floor": (floor, 0.06), "trim": (wall + 0.1, 0.05),
        "ceiling": (min(wall + 0.15, 0.9), 0.03),
        "prop": (wall - rng.uniform(-0.1, 0.15), 0.1), "wood": (wall - rng.uniform(0.05, 0.2), 0.08),
        "dim": (wall * 0.5, 0.05), "light": (min(wall + 0.12, 0.9), 0.05), "glint": (0.7, 0.05), "glass": (0.95, 0.03),
        "main": (main, _CHROMA), "second": (second, _CHROMA), "third": (_near(rng, main), _CHROMA),
    }  # fmt: skip
    return {name: _colour(rng, lightness, saturation) for name, (lightness, saturation) in levels.items()}


# ---------------------------------------------------------------- one point


def _quad(
    a: furniture.Vector, b: furniture.Vector, c: furniture.Vector, d: furniture.Vector, paint: str, pattern: str
) -> furniture.Part:
    return furniture.Part(np.array([[a, b, c], [a, c, d]], float), paint, pattern=pattern)


def _shell(finish: Finish, walls: ray_tracer.Walls, height: float, knee: float) -> list[furniture.Part]:
    """Floor, walls and ceiling; the ceiling slopes down to `knee` metres at the side walls."""
    x0, x1, y0, y1 = walls
    run = height - knee
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    # There are four corners, which a list cannot tell mypy.
    parts = [_quad(*[(x, y, 0) for x, y in corners], "floor", finish.floor)]  # type: ignore[call-arg, arg-type]
    parts += [
        _quad((*a, 0), (*b, 0), (*b, height), (*a, height), "wall", finish.wall)
        for a, b in itertools.pairwise([*corners, corners[0]])
    ]
    # There are four corners, which a list cannot tell mypy.
    parts.append(_quad(*[(x, y, height) for x, y in corners], "ceiling", "plain"))  # type: ignore[call-arg, arg-type]
    if run > 0:
        for x, inner in ((x0, x0 + run), (x1, x1 - run)):
            parts.append(
                _quad((x, y0, knee), (x, y1, knee), (inner, y1, height), (inner, y0, height), "wall", "boards")
            )
    return parts


def _window(rng: np.random.Generator, walls: ray_tracer.Walls) -> list[furniture.Part]:
    """A window in the back wall or a side wall, somewhere along it."""
    x0, x1, y0, _ = walls
    back, along = rng.uniform(x0 + 0.5, x1 - 0.5), rng.uniform(y0 + 0.6, 0.8)
    places = [(0.0, (back, y0, 0)), (-np.pi / 2, (x0, along, 0)), (np.pi / 2, (x1, along, 0))]
    angle, shift = places[rng.integers(3)]
    w, z0, z1 = rng.uniform(0.3, 0.45), rng.uniform(0.9, 1.2), rng.uniform(1.7, 2.05)
    frame = furniture.box(-w - 0.06, w + 0.06, 0, 0.02, z0 - 0.06, z1 + 0.06, "trim")
    panes = [furniture.box(x + 0.02, x + w - 0.02, 0.01, 0.03, z0, z1, "glass", 0) for x in (-w, 0)]
    return furniture.move([frame, *panes], angle, shift)


def _furnish(rng: np.random.Generator, name: str, walls: ray_tracer.Walls, half: float) -> list[furniture.Part]:
    """Furniture of the scene type on both sides of the object, along the back wall, and one piece on a side wall."""
    x0, x1, y0, _ = walls
    parts = []
    for side in (-1, 1):
        unit = furniture.PROPS[name](rng)
        low, high = furniture.bounds(unit)
        reach = half + (high[0] - low[0]) / 2 + rng.uniform(-0.15, 0.3)
        parts += furniture.move(unit, 0.0, (side * reach - (low[0] + high[0]) / 2, y0, 0))
    side, wall = rng.choice([(-1, x0), (1, x1)])
    if abs(wall) - half > 1.1:  # else it would stand between the camera and the object
        parts += furniture.move(furniture.PROPS[name](rng), side * np.pi / 2, (wall, y0 + rng.uniform(1.2, 1.8), 0))
    return parts


def _scene(rng: np.random.Generator, object_name: str, scene_name: str) -> ray_tracer.Scene:
    finish = _FINISHES[scene_name]
    thing = furniture.move(furniture.OBJECTS[object_name](rng), rng.uniform(-_TURN, _TURN))
    low, high = furniture.bounds(thing)
    half = max(-low[0], high[0])
    x0, x1 = (s * (half + rng.uniform(*finish.beside)) for s in (-1, 1))
    walls = (x0, x1, low[1] - rng.uniform(*finish.behind), high[1] + 4.5)
    height = rng.uniform(2.4, 2.8)
    knee = rng.uniform(1.0, 1.3) if scene_name == "attic" else height
    parts = thing + _shell(finish, walls, height, knee) + _furnish(rng, scene_name, walls, half)
    parts += _window(rng, walls) if rng.random() < 0.6 else []
    light = np.array([rng.uniform(x0, x1) * 0.7, rng.uniform(0.3, 2.5), height - 0.15])
    tint = rng.uniform(*_EXPOSURE) * (1 + rng.uniform(-0.04, 0.04, 3))
    return _assemble(parts, len(thing), _palette(rng), (low, high, walls, knee, light, tint))


def _assemble(
    parts: list[furniture.Part], fixated: int, paints: dict[str, np.ndarray], place: Place
) -> ray_tracer.Scene:
    """One triangle soup of all parts, the first `fixated` of which are the object."""
    counts = [len(p.triangles) for p in parts]
    patterns = np.array([ray_tracer.PATTERN_NAMES.index(p.pattern) for p in parts], np.uint8)
    return ray_tracer.Scene(
        np.concatenate([p.triangles for p in parts]).astype(np.float32),
        np.repeat([paints[p.paint] for p in parts], counts, 0).astype(np.float32),
        np.repeat(np.array([p.label for p in parts], np.uint8), counts),
        np.repeat(patterns, counts),
        np.repeat([p.paint == "glass" for p in parts], counts),
        np.repeat(np.arange(len(parts)) < fixated, counts),
        *place,
    )


def _aim(rng: np.random.Generator, scene: ray_tracer.Scene) -> ray_tracer.Camera:
    """A view fixated on the object, which fills about half of the picture."""
    x0, x1, _, y1 = scene.walls
    size = scene.high - scene.low
    target = (scene.low + scene.high) / 2 + size * rng.uniform(-_JITTER, _JITTER, 3)
    tangent = np.tan(np.radians(rng.uniform(45, 75)) / 2)
    distance = np.linalg.norm(size) / 2 / (rng.uniform(*_FILL) * tangent)
    height = np.clip(target[2] + distance * rng.uniform(-0.1, 0.5), 1.0, min(2.0, scene.height + 0.4))
    ground = np.sqrt(max(distance**2 - (height - target[2]) ** 2, (np.linalg.norm(size[:2]) / 2 + 0.3) ** 2))
    angle = rng.uniform(-0.8, 0.8)
    x = np.clip(target[0] + ground * np.sin(angle), x0 + 0.2, x1 - 0.2)
    y = min(target[1] + np.sqrt(max(ground**2 - (x - target[0]) ** 2, 0)), y1 - 0.1)
    position = np.array([x, y, height])
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    return ray_tracer.Camera(position, np.stack([right, np.cross(forward, right), forward]), tangent)


def _camera(rng: np.random.Generator, scene: ray_tracer.Scene, mesh: "EmbreeScene") -> ray_tracer.Camera:
    """The first aim that shows enough of the object and has nothing right before the lens."""
    for _ in range(200):  # two or three are enough, but another seed must not hang
        camera = _aim(rng, scene)
        t, triangle, _ = ray_tracer.cast(mesh, camera, ray_tracer.directions(camera, 24, (0, 0)))
        if t.min() > _NEAREST and scene.fixated[triangle].mean() > _SHARE:
            break
    return camera


# ---------------------------------------------------------------- files

# Domains whose files are not named as their folder is.
_SUFFIXES = {"segment_semantic": "segmentsemantic", "class_scene": "class_places"}


def _plan(seed: int, building: int) -> list[tuple[str, str]]:
    """(object, scene) of each point: each object and each scene twice; over five buildings, each pair once."""
    scenes = np.random.default_rng(seed).permutation(list(SCENES)).tolist()
    repeats = _POINTS // len(OBJECTS)
    shifts = range(repeats * building, repeats * (building + 1))
    pairs = [(name, scenes[(i + shift) % len(scenes)]) for shift in shifts for i, name in enumerate(OBJECTS)]
    return [pairs[i] for i in np.random.default_rng([seed, building]).permutation(len(pairs))]


def _one_hot(index: int, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, np.float16)
    out[..., index] = 1
    return out


def _write(folder: Path, building: str, stem: str, domains: dict[str, np.ndarray]) -> None:
    for domain, values in domains.items():
        place = folder / domain / "taskonomy" / building
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{stem}_domain_{_SUFFIXES.get(domain, domain)}"
        if values.dtype == np.float16:
            np.save(path.with_suffix(".npy"), values)
        else:
            Image.fromarray(values).save(path.with_suffix(".png"), optimize=True)


def _building(
    folder: Path, seed: int, number: int, name: str, views: int, size: int, progress: Callable[[], object] | None
) -> None:
    for point, (thing, place) in enumerate(_plan(seed, number)):
        scene = _scene(np.random.default_rng([seed, number, point]), thing, place)
        mesh = ray_tracer.mesh(scene)
        for view in range(_VIEWS):
            if point * _VIEWS + view >= views:
                return
            camera = _camera(np.random.default_rng([seed, number, point, view]), scene, mesh)
            domains = ray_tracer.see(mesh, scene, camera, size)
            domains["class_object"] = _one_hot(OBJECTS[thing], (1, 1000))
            domains["class_scene"] = _one_hot(SCENES[place], (365,))
            _write(folder, name, f"point_{point}_view_{view}", domains)
            if progress is not None:
                progress()


def render(
    out: Path, *, seed: int = 0, views: int | None = None, size: int = 64, progress: Callable[[], object] | None = None
) -> int:
    """Render all buildings into the new folder `out` and return the number of views.

    `views` limits the views of each building (40 by default); `size` is the side in pixels; `progress` is called after
    each view. Files are `<domain>/taskonomy/<building>/point_<P>_view_<V>_domain_<suffix>.<ext>`: rgb (RGB8),
    depth_euclidean (16 bits, metres * 512, 65535 in window panes), normal (RGB8, (n + 1) * 127.5 of the outward normal
    in the camera's frame: right, down, forward; 128 in panes), segment_semantic (8 bits, 0 uncertain, 1 background,
    2 to 17 objects), class_object (float16[1,1000] over ImageNet), class_scene (float16[365] over Places).
    Equal arguments give equal bytes on one kind of CPU. Needs the extra `ul[render]`.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists: remove it or render into another folder")
    try:
        import embreex  # noqa: F401
        import trimesh  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"rendering needs trimesh and embreex ({error.name} is missing): pip install 'ul[render]'"
        ) from error
    limit = _POINTS * _VIEWS if views is None else min(views, _POINTS * _VIEWS)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        for number, name in enumerate(itertools.chain(*BUILDINGS.values())):
            _building(part, seed, number, name, limit, size, progress)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return limit * sum(map(len, BUILDINGS.values()))
