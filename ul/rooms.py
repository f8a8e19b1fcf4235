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
from typing import NamedTuple

import numpy as np
from PIL import Image

from ul import shapes

# Name -> ImageNet-1000 index, out of the 100 that Taskonomy keeps. Insertion order is the label order.
OBJECTS = {
    "bookcase": 453, "dining_table": 532, "folding_chair": 559, "four_poster": 564, "pot_plant": 738,
    "refrigerator": 760, "studio_couch": 831, "television": 851, "toilet": 861, "vase": 883,
}  # fmt: skip
# Name -> Places-365 index, out of the 63 that Taskonomy keeps.
SCENES = {
    "attic": 26, "basement": 43, "bathroom": 45, "bedroom": 52, "corridor": 106,
    "dining_room": 121, "home_office": 176, "kitchen": 203, "living_room": 215, "staircase": 317,
}  # fmt: skip
_NAMES = tuple(f"synth{a}{b}" for a, b in itertools.product("abcd", "abcdefghij"))[:37]
BUILDINGS = {"train": _NAMES[:28], "val": _NAMES[28:30], "test": _NAMES[30:]}
_POINTS, _VIEWS = 2 * len(OBJECTS), 2  # per building, per point

_OFFSETS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))  # four rays a pixel, in pixels
# Difficulty, tuned so that a small CNN gets most views right and a linear classifier few.
_TURN, _JITTER, _FILL = 1.6, 0.22, (0.6, 1.3)  # object's turn (radians), off-centre (of its size), share of the picture
_EXPOSURE = (0.5, 1.15)  # how much light a room has
_LIGHTNESS = (0.25, 0.85)  # of the object's colours
_GAP, _CHROMA = 0.08, 0.08  # least difference in lightness of object and wall; saturation of the object's colours
_DEPTH_UNIT, _INVALID = 512, 65535  # raw depth is metres * 512


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
# Darker where true; u, v are metres along the surface (v is up on walls).
_PATTERNS = {
    "plain": lambda u, v: np.zeros(u.shape, bool),
    "boards": lambda u, v: (u % 0.24) < 0.03,
    "tiles": lambda u, v: ((u % 0.3) < 0.03) | ((v % 0.3) < 0.03),
    "bricks": lambda u, v: ((v % 0.16) < 0.03) | (((u + 0.2 * (v // 0.16 % 2)) % 0.4) < 0.03),
    "stripes": lambda u, v: (u % 0.3) < 0.15,
    "wainscot": lambda u, v: (v < 0.9) & ((v > 0.84) | ((u % 0.4) < 0.3)),
}
_PATTERN_NAMES = tuple(_PATTERNS)
_PATTERN_DEPTH = 0.10  # share of brightness that a pattern takes away


class Scene(NamedTuple):
    """One point, ready to be seen; n triangles."""

    triangles: np.ndarray  # float32[n,3,3], metres
    colour: np.ndarray  # float32[n,3], 0..1
    label: np.ndarray  # uint8[n], segment_semantic value
    pattern: np.ndarray  # uint8[n], index into _PATTERNS
    glows: np.ndarray  # bool[n], window panes: bright, and without depth
    low: np.ndarray  # float[3], the object's bounding box
    high: np.ndarray
    walls: tuple[float, float, float, float]  # x0, x1, y0, y1
    height: float
    light: np.ndarray  # float[3], position
    tint: np.ndarray  # float[3], colour of the light


class Camera(NamedTuple):
    """Square pinhole without roll: position and the axes right, down, forward as rows, tan(fov/2)."""

    position: np.ndarray
    axes: np.ndarray
    tangent: float


# ---------------------------------------------------------------- colours


def _colour(rng, lightness, saturation) -> np.ndarray:
    hue = rng.uniform(0, 2 * np.pi) + np.array([0, 2.1, 4.2])
    return np.clip(lightness * (1 + saturation * np.cos(hue)), 0.02, 0.98)


def _apart(rng, low, high, other, gap) -> float:
    """A uniform number of [low, high] at least `gap` from `other`."""
    while True:
        value = rng.uniform(low, high)
        if abs(value - other) >= gap:
            return value


def _palette(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Paint name -> rgb. The object is lighter or darker than the wall by chance, which no linear template survives."""
    wall, floor = rng.uniform(0.4, 0.75), rng.uniform(0.3, 0.6)
    main = _apart(rng, *_LIGHTNESS, wall, _GAP)
    second = _apart(rng, *_LIGHTNESS, main, _GAP)
    levels = {
        "wall": (wall, 0.04), "floor": (floor, 0.06), "ceiling": (min(wall + 0.15, 0.9), 0.03), "trim": (wall + 0.1, 0.05),
        "prop": (wall - rng.uniform(-0.1, 0.15), 0.1), "wood": (wall - rng.uniform(0.05, 0.2), 0.08), "dim": (wall * 0.5, 0.05),
        "light": (min(wall + 0.12, 0.9), 0.05), "glint": (0.7, 0.05), "glass": (0.95, 0.03),
        "main": (main, _CHROMA), "second": (second, _CHROMA), "third": (_apart(rng, *_LIGHTNESS, main, _GAP), _CHROMA),
    }  # fmt: skip
    return {name: _colour(rng, lightness, saturation) for name, (lightness, saturation) in levels.items()}


# ---------------------------------------------------------------- one point


def _quad(a, b, c, d, paint, pattern) -> shapes.Part:
    return shapes.Part(np.array([[a, b, c], [a, c, d]], float), paint, pattern=pattern)


def _shell(finish: Finish, walls, height: float, knee: float) -> list[shapes.Part]:
    """Floor, walls and ceiling; the ceiling slopes down to `knee` metres at the side walls."""
    x0, x1, y0, y1 = walls
    run = height - knee
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    parts = [_quad(*[(x, y, 0) for x, y in corners], "floor", finish.floor)]
    parts += [_quad((*a, 0), (*b, 0), (*b, height), (*a, height), "wall", finish.wall)
              for a, b in itertools.pairwise([*corners, corners[0]])]  # fmt: skip
    parts.append(_quad(*[(x, y, height) for x, y in corners], "ceiling", "plain"))
    if run > 0:
        for x, inner in ((x0, x0 + run), (x1, x1 - run)):
            parts.append(_quad((x, y0, knee), (x, y1, knee), (inner, y1, height), (inner, y0, height), "wall", "boards"))
    return parts


def _window(rng, walls) -> list[shapes.Part]:
    """A window in the back wall or a side wall, somewhere along it."""
    x0, x1, y0, y1 = walls
    place = (lambda: (0.0, (rng.uniform(x0 + 0.5, x1 - 0.5), y0, 0)), lambda: (-np.pi / 2, (x0, rng.uniform(y0 + 0.6, 0.8), 0)),
             lambda: (np.pi / 2, (x1, rng.uniform(y0 + 0.6, 0.8), 0)))[rng.integers(3)]  # fmt: skip
    w, z0, z1 = rng.uniform(0.3, 0.45), rng.uniform(0.9, 1.2), rng.uniform(1.7, 2.05)
    frame = shapes.box(-w - 0.06, w + 0.06, 0, 0.02, z0 - 0.06, z1 + 0.06, "trim")
    panes = [shapes.box(x + 0.02, x + w - 0.02, 0.01, 0.03, z0, z1, "glass", 0) for x in (-w, 0)]
    angle, shift = place()
    return shapes.move([frame, *panes], angle, shift)


def _furnish(rng, name: str, walls, half: float) -> list[shapes.Part]:
    """Furniture of the scene type on both sides of the object, along the back wall, and one piece on a side wall."""
    x0, x1, y0, y1 = walls
    parts = []
    for side in (-1, 1):
        unit = shapes.PROPS[name](rng)
        low, high = shapes.bounds(unit)
        reach = half + (high[0] - low[0]) / 2 + rng.uniform(-0.15, 0.3)
        parts += shapes.move(unit, 0.0, (side * reach - (low[0] + high[0]) / 2, y0, 0))
    side, wall = rng.choice([(-1, x0), (1, x1)])
    if abs(wall) - half > 1.1:  # else it would stand between the camera and the object
        parts += shapes.move(shapes.PROPS[name](rng), side * np.pi / 2, (wall, y0 + rng.uniform(1.2, 1.8), 0))
    return parts


def _scene(rng: np.random.Generator, object_name: str, scene_name: str) -> Scene:
    finish = _FINISHES[scene_name]
    thing = shapes.move(shapes.OBJECTS[object_name](rng), rng.uniform(-_TURN, _TURN))
    low, high = shapes.bounds(thing)
    half = max(-low[0], high[0])
    x0, x1 = (s * (half + rng.uniform(*finish.beside)) for s in (-1, 1))
    walls = (x0, x1, low[1] - rng.uniform(*finish.behind), high[1] + 4.5)
    height = rng.uniform(2.4, 2.8)
    knee = rng.uniform(1.0, 1.3) if scene_name == "attic" else height
    parts = _shell(finish, walls, height, knee) + _furnish(rng, scene_name, walls, half) + thing
    parts += _window(rng, walls) if rng.random() < 0.6 else []
    paints, counts = _palette(rng), [len(p.triangles) for p in parts]
    return Scene(
        np.concatenate([p.triangles for p in parts]).astype(np.float32),
        np.repeat([paints[p.paint] for p in parts], counts, 0).astype(np.float32),
        np.repeat(np.array([p.label for p in parts], np.uint8), counts),
        np.repeat(np.array([_PATTERN_NAMES.index(p.pattern) for p in parts], np.uint8), counts),
        np.repeat([p.paint == "glass" for p in parts], counts),
        low, high, walls, knee,
        np.array([rng.uniform(x0, x1) * 0.7, rng.uniform(0.3, 2.5), height - 0.15]), rng.uniform(*_EXPOSURE) * (1 + rng.uniform(-0.04, 0.04, 3)),
    )  # fmt: skip


def _camera(rng: np.random.Generator, scene: Scene) -> Camera:
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
    return Camera(position, np.stack([right, np.cross(forward, right), forward]), tangent)


# ---------------------------------------------------------------- rays


def _mesh(scene: Scene):
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    target = EmbreeScene()
    TriangleMesh(target, scene.triangles)
    return target


def _directions(camera: Camera, size: int, offset) -> np.ndarray:
    """Unit ray directions float32[size*size,3], row by row, through `offset` (x, y) pixels from each pixel's centre."""
    x, y = (((np.arange(size) + 0.5 + o) * 2 / size - 1) * camera.tangent for o in offset)
    grid = np.stack([*np.meshgrid(x, y), np.ones((size, size))], -1).reshape(-1, 3) @ camera.axes
    return (grid / np.linalg.norm(grid, axis=1, keepdims=True)).astype(np.float32)


def _cast(mesh, camera: Camera, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance in metres, triangle index (-1: none) and unit normal towards the camera of each ray."""
    hits = mesh.run(np.tile(camera.position.astype(np.float32), (len(d), 1)), d, output=1)
    n = hits["Ng"] / np.maximum(np.linalg.norm(hits["Ng"], axis=1, keepdims=True), 1e-12)
    return hits["tfar"], hits["primID"], n * -np.sign((n * d).sum(1, keepdims=True))


def _lit(mesh, origin, d, reach) -> np.ndarray:
    """1 where nothing lies between `origin` and `reach` metres along `d`, else 0."""
    free = mesh.run(origin, d.astype(np.float32), query="OCCLUDED", dists=np.asarray(reach, np.float32))
    return (np.asarray(free) < 0).astype(np.float32)


def _open(mesh, point, n, turn: int) -> np.ndarray:
    """Share of six fixed directions over the surface that stay free for 0.8 m: corners and undersides get darker."""
    k = np.arange(6) + turn / 4
    z = (k + 0.5) / 6.5
    rays = np.stack([np.sqrt(1 - z**2) * np.cos(2.4 * k + turn), np.sqrt(1 - z**2) * np.sin(2.4 * k + turn), z], -1)
    total = np.zeros(len(n), np.float32)
    for ray in rays.astype(np.float32):
        d = n + 0.95 * ray
        total += _lit(mesh, point, d / np.linalg.norm(d, axis=1, keepdims=True), np.full(len(n), 0.8))
    return total / len(rays)


def _shade(mesh, scene: Scene, camera: Camera, size: int, turn: int) -> np.ndarray:
    """Colours float[size*size,3] seen by one ray a pixel."""
    d = _directions(camera, size, _OFFSETS[turn])
    t, triangle, n = _cast(mesh, camera, d)
    point = (camera.position + d * t[:, None] + n * 2e-3).astype(np.float32)
    to_light = scene.light - point
    reach = np.linalg.norm(to_light, axis=1)
    to_light = to_light / reach[:, None]
    direct = np.clip((n * to_light).sum(1), 0, 1) * _lit(mesh, point, to_light, reach) / (1 + (reach / 4) ** 2)
    u = np.where(np.abs(n[:, 2]) > 0.7, point[:, 0], point[:, 0] * np.abs(n[:, 1]) + point[:, 1] * np.abs(n[:, 0]))
    v = np.where(np.abs(n[:, 2]) > 0.7, point[:, 1], point[:, 2])
    dark = np.select([scene.pattern[triangle] == i for i in range(len(_PATTERNS))], [f(u, v) for f in _PATTERNS.values()])
    facing = 0.12 * np.clip(-(n * d).sum(1), 0, 1)
    power = 0.28 + 0.35 * _open(mesh, point, n, turn) + facing
    light = (power + 0.68 * direct)[:, None] * scene.tint
    colour = scene.colour[triangle] * (1 - _PATTERN_DEPTH * dark)[:, None] * light
    return np.where(scene.glows[triangle][:, None], 0.95, colour)


def _see(scene: Scene, camera: Camera, size: int) -> dict[str, np.ndarray]:
    """The dense domains of one view, in Taskonomy's encodings."""
    mesh = _mesh(scene)
    d = _directions(camera, size, (0, 0))
    t, triangle, n = _cast(mesh, camera, d)
    hole = (triangle < 0) | scene.glows[triangle]
    rgb = sum(_shade(mesh, scene, camera, size, turn) for turn in range(len(_OFFSETS))) / len(_OFFSETS)
    depth = np.where(hole, _INVALID, np.rint(t * _DEPTH_UNIT)).astype(np.uint16)
    normal = np.where(hole[:, None], 128, np.rint((n @ camera.axes.T + 1) * 127.5)).astype(np.uint8)
    label = np.where(hole, 0, scene.label[triangle]).astype(np.uint8)
    return {
        "rgb": np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8).reshape(size, size, 3),
        "depth_euclidean": depth.reshape(size, size),
        "normal": normal.reshape(size, size, 3),
        "segment_semantic": label.reshape(size, size),
    }


# ---------------------------------------------------------------- files

_SUFFIXES = {"segment_semantic": "segmentsemantic", "class_scene": "class_places"}  # file names that are not the folder's


def _plan(seed: int, building: int) -> list[tuple[str, str]]:
    """(object, scene) of each point: each object and each scene twice, paired by chance."""
    rng = np.random.default_rng([seed, building])
    pairs = []
    for _ in range(_POINTS // len(OBJECTS)):
        pairs += zip(OBJECTS, rng.permutation(list(SCENES)), strict=True)
    return [pairs[i] for i in rng.permutation(len(pairs))]


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


def _building(folder: Path, seed: int, number: int, name: str, views: int, size: int, progress: Callable | None) -> None:
    for point, (thing, place) in enumerate(_plan(seed, number)):
        scene = _scene(np.random.default_rng([seed, number, point]), thing, str(place))
        for view in range(_VIEWS):
            if point * _VIEWS + view >= views:
                return
            camera = _camera(np.random.default_rng([seed, number, point, view]), scene)
            domains = _see(scene, camera, size)
            domains["class_object"] = _one_hot(OBJECTS[thing], (1, 1000))
            domains["class_scene"] = _one_hot(SCENES[str(place)], (365,))
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
        import embreex
        import trimesh  # noqa: F401
    except ImportError as error:
        raise ImportError(f"rendering needs trimesh and embreex ({error.name} is missing): pip install 'ul[render]'") from error
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
