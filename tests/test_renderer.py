"""The renderer against closed forms and against the data that travels with the repository."""

import numpy as np
import pytest
from PIL import Image

from tests.imports import ROOT
from ul import data
from ul.data import rooms, taskonomy
from ul.render import ray_tracer, renderer

pytest.importorskip("embreex")
DATA = ROOT / "data" / "rooms"


def wall(distance: float) -> ray_tracer.Scene:
    """A large square wall at y = -distance, seen from the origin along -y."""
    a, b, c, d = ((x, -distance, z) for x, z in ((-50, -50), (50, -50), (50, 50), (-50, 50)))
    triangles = np.array([[a, b, c], [a, c, d]], np.float32)
    return ray_tracer.Scene(
        triangles, np.full((2, 3), 0.5, np.float32), np.array([1, 1], np.uint8), np.zeros(2, np.uint8),
        np.zeros(2, bool), np.ones(2, bool), np.zeros(3), np.ones(3), (-9, 9, -9, 9), 3.0, np.array([0, 0, 2.0]),
        np.ones(3),
    )  # fmt: skip


def camera(tangent: float) -> ray_tracer.Camera:
    """At the origin, looking along -y with z up: right is -x."""
    return ray_tracer.Camera(np.zeros(3), np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]), tangent)


@pytest.mark.parametrize("distance", [1.0, 3.5])
def test_depth_of_a_wall_is_its_distance_along_the_ray(distance):
    scene, size, tangent = wall(distance), 16, 0.6
    seen = ray_tracer.see(ray_tracer.mesh(scene), scene, camera(tangent), size)
    x = ((np.arange(size) + 0.5) * 2 / size - 1) * tangent
    expected = distance * np.sqrt(1 + x[:, None] ** 2 + x[None] ** 2)
    assert np.abs(seen["depth_euclidean"] / 512 - expected).max() <= 0.5 / 512 + 1e-5
    assert np.all(seen["segment_semantic"] == 1)


def test_normal_of_a_facing_wall_points_out_of_the_scene():
    scene = wall(2.0)
    seen = ray_tracer.see(ray_tracer.mesh(scene), scene, camera(0.5), 8)
    assert np.all(seen["normal"][..., 2] == 0)  # into the scene is +z, so a facing wall is -1
    assert np.all(np.abs(seen["normal"][..., :2].astype(int) - 127.5) <= 0.5)


def test_a_pane_has_no_depth_no_label_and_a_grey_normal():
    scene = wall(2.0)._replace(glows=np.ones(2, bool))
    seen = ray_tracer.see(ray_tracer.mesh(scene), scene, camera(0.5), 8)
    assert np.all(seen["depth_euclidean"] == taskonomy.INVALID)
    assert np.all(seen["normal"] == 128) and np.all(seen["segment_semantic"] == 0)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The first view of every building."""
    out = tmp_path_factory.mktemp("rooms") / "once"
    renderer.render(out, views=1)
    return out


def files(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("point_*"))


def test_rendering_repeats_its_bytes(rendered, tmp_path):
    renderer.render(tmp_path / "again", views=1)
    assert len(files(rendered)) == 6 * 37
    assert files(rendered) == files(tmp_path / "again")
    assert all((rendered / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files(rendered))


def test_another_seed_gives_other_rooms(rendered, tmp_path):
    renderer.render(tmp_path / "other", views=1, seed=1)
    pictures = [f for f in files(rendered) if f.parts[0] == "rgb"]
    assert all((rendered / f).read_bytes() != (tmp_path / "other" / f).read_bytes() for f in pictures)


@pytest.mark.skipif(not DATA.is_dir(), reason="data/ is not pulled")
def test_the_renderer_still_makes_the_data_that_travels(rendered):
    """Equal labels in 99.9 % of the pixels; other kinds of processors may round a ray to the other side of an edge."""
    for name in files(rendered):
        ours, theirs = rendered / name, DATA / name
        if name.suffix == ".npy":
            assert ours.read_bytes() == theirs.read_bytes(), name
        else:
            a, b = (np.asarray(Image.open(p)).astype(int) for p in (ours, theirs))
            assert np.mean(np.abs(a - b) <= 2) >= 0.99, name


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "rooms").mkdir()
    with pytest.raises(FileExistsError, match="remove it"):
        renderer.render(tmp_path / "rooms", views=1)


def test_classes_are_kept_ones_and_buildings_disjoint():
    assert set(rooms.OBJECTS.values()) <= set(taskonomy.OBJECTS)
    assert set(rooms.SCENES.values()) <= set(taskonomy.SCENES)
    names = [name for part in rooms.BUILDINGS.values() for name in part]
    assert len(names) == len(set(names)) >= 20
    assert len(taskonomy.OBJECTS) == 100 and len(taskonomy.SCENES) == 63


@pytest.mark.skipif(not DATA.is_dir(), reason="data/ is not pulled")
def test_objects_and_scenes_are_balanced_and_independent():
    split = data.load("rooms", "train", root=ROOT / "data", targets=("class_object", "class_scene"))
    table = np.zeros((10, 10), int)
    np.add.at(table, (split.targets["class_object"].numpy(), split.targets["class_scene"].numpy()), 1)
    assert np.all(table.sum(1) == 112) and np.all(table.sum(0) == 112)
    assert table.min() >= 8 and table.max() <= 14
