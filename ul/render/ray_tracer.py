"""Ray tracing for the renderer: a coloured, labelled triangle soup seen through a pinhole, in Taskonomy's encodings.

Embree (embreex) finds the hits; shading is ambient light with fixed occlusion directions, one lamp with its shadow and
a weak light at the camera. No randomness: equal scenes give equal bytes on one kind of CPU. Only this file and
`ul.render.furniture` need the extra `ul[render]`, and only when called.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from embreex.rtcore_scene import EmbreeScene

_OFFSETS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))  # four rays a pixel, in pixels
_DEPTH_UNIT, _INVALID = 512, 65535  # raw depth is metres * 512

# Darker where true; u, v are metres along the surface (v is up on walls).
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": lambda u, v: np.zeros(u.shape, bool),
    "boards": lambda u, v: (u % 0.32) < 0.05,
    "tiles": lambda u, v: ((u % 0.35) < 0.05) | ((v % 0.35) < 0.05),
    "bricks": lambda u, v: ((v % 0.22) < 0.05) | (((u + 0.25 * (v // 0.22 % 2)) % 0.5) < 0.05),
    "stripes": lambda u, v: (u % 0.36) < 0.18,
    "wainscot": lambda u, v: (v < 0.9) & ((v > 0.84) | ((u % 0.4) < 0.28)),
}
PATTERN_NAMES = tuple(PATTERNS)
_PATTERN_DEPTH = 0.20  # share of brightness that a pattern takes away

Walls = tuple[float, float, float, float]  # x0, x1, y0, y1


class Scene(NamedTuple):
    """One point, ready to be seen; n triangles."""

    triangles: np.ndarray  # float32[n,3,3], metres
    colour: np.ndarray  # float32[n,3], 0..1
    label: np.ndarray  # uint8[n], segment_semantic value
    pattern: np.ndarray  # uint8[n], index into PATTERNS
    glows: np.ndarray  # bool[n], window panes: bright, and without depth
    fixated: np.ndarray  # bool[n], the object
    low: np.ndarray  # float[3], the object's bounding box
    high: np.ndarray
    walls: Walls
    height: float
    light: np.ndarray  # float[3], position
    tint: np.ndarray  # float[3], colour of the light


class Camera(NamedTuple):
    """Square pinhole without roll: position and the axes right, down, forward as rows, tan(fov/2)."""

    position: np.ndarray
    axes: np.ndarray
    tangent: float


def mesh(scene: Scene) -> "EmbreeScene":
    """The scene as Embree holds it, for `cast` and `see`."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    out = EmbreeScene()
    TriangleMesh(out, scene.triangles)
    return out


def directions(camera: Camera, size: int, offset: tuple[float, float]) -> np.ndarray:
    """Unit ray directions float32[size*size,3], row by row, through `offset` (x, y) pixels from each pixel's centre."""
    x, y = (((np.arange(size) + 0.5 + o) * 2 / size - 1) * camera.tangent for o in offset)
    grid = np.stack([*np.meshgrid(x, y), np.ones((size, size))], -1).reshape(-1, 3) @ camera.axes
    return (grid / np.linalg.norm(grid, axis=1, keepdims=True)).astype(np.float32)


def cast(mesh: "EmbreeScene", camera: Camera, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance in metres, triangle index (-1: none) and unit normal towards the camera of each ray."""
    hits = mesh.run(np.tile(camera.position.astype(np.float32), (len(d), 1)), d, output=1)
    n = hits["Ng"] / np.maximum(np.linalg.norm(hits["Ng"], axis=1, keepdims=True), 1e-12)
    return hits["tfar"], hits["primID"], n * -np.sign((n * d).sum(1, keepdims=True))


def _lit(mesh: "EmbreeScene", origin: np.ndarray, d: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """1 where nothing lies between `origin` and `reach` metres along `d`, else 0."""
    free = mesh.run(origin, d.astype(np.float32), query="OCCLUDED", dists=np.asarray(reach, np.float32))
    return (np.asarray(free) < 0).astype(np.float32)


def _open(mesh: "EmbreeScene", point: np.ndarray, n: np.ndarray, turn: int) -> np.ndarray:
    """Share of six fixed directions over the surface that stay free for 0.8 m: corners and undersides get darker."""
    k = np.arange(6) + turn / 4
    z = (k + 0.5) / 6.5
    rays = np.stack([np.sqrt(1 - z**2) * np.cos(2.4 * k + turn), np.sqrt(1 - z**2) * np.sin(2.4 * k + turn), z], -1)
    total = np.zeros(len(n), np.float32)
    for ray in rays.astype(np.float32):
        d = n + 0.95 * ray
        total += _lit(mesh, point, d / np.linalg.norm(d, axis=1, keepdims=True), np.full(len(n), 0.8))
    return total / len(rays)


def _shade(mesh: "EmbreeScene", scene: Scene, camera: Camera, size: int, turn: int) -> np.ndarray:
    """Colours float[size*size,3] seen by one ray a pixel."""
    d = directions(camera, size, _OFFSETS[turn])
    t, triangle, n = cast(mesh, camera, d)
    point = (camera.position + d * t[:, None] + n * 2e-3).astype(np.float32)
    to_light = scene.light - point
    reach = np.linalg.norm(to_light, axis=1)
    to_light = to_light / reach[:, None]
    direct = np.clip((n * to_light).sum(1), 0, 1) * _lit(mesh, point, to_light, reach) / (1 + (reach / 4) ** 2)
    u = np.where(np.abs(n[:, 2]) > 0.7, point[:, 0], point[:, 0] * np.abs(n[:, 1]) + point[:, 1] * np.abs(n[:, 0]))
    v = np.where(np.abs(n[:, 2]) > 0.7, point[:, 1], point[:, 2])
    dark = np.choose(scene.pattern[triangle], [darker(u, v) for darker in PATTERNS.values()])
    facing = 0.12 * np.clip(-(n * d).sum(1), 0, 1)
    power = 0.28 + 0.35 * _open(mesh, point, n, turn) + facing
    light = (power + 0.68 * direct)[:, None] * scene.tint
    colour = scene.colour[triangle] * (1 - _PATTERN_DEPTH * dark)[:, None] * light
    return np.where(scene.glows[triangle][:, None], 0.95, colour)


def see(mesh: "EmbreeScene", scene: Scene, camera: Camera, size: int) -> dict[str, np.ndarray]:
    """The dense domains of one view, in Taskonomy's encodings."""
    d = directions(camera, size, (0, 0))
    t, triangle, n = cast(mesh, camera, d)
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
