"""Taskonomy's files: units and masks on real views against plain numpy, layouts and labels on planted folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import one_hot, plant, view_arrays
from ul import data
from ul.base.errors import InputError
from ul.data import buildings, taskonomy

FIELD_OF_VIEW = 1.1805  # radians, in point_info of the real views
HOLE = 65535


@pytest.fixture(scope="module")
def root(shared_data, tmp_path_factory):
    """A data root whose `taskonomy` is the folder of real views."""
    path = tmp_path_factory.mktemp("root")
    (path / "taskonomy").symlink_to((shared_data / "taskonomy-sample").resolve())
    return path


def raw(root, domain: str, view: str = "point_202_view_5") -> np.ndarray:
    with Image.open(root / "taskonomy" / domain / "sample" / f"{view}_domain_{domain}.png") as image:
        return np.asarray(image)


def load(root, *targets: str, size: int | None = None) -> data.Split:
    return data.load("taskonomy", "all", root=root, targets=targets, size=size)


def sample_views(root, domain: str) -> list[str]:
    """Stems of the domain's files, by numbers of point and view."""
    names = [p.name.split("_domain")[0] for p in (root / "taskonomy" / domain / "sample").glob("*.png")]
    return sorted(names, key=lambda name: [int(part) for part in name.split("_")[1::2]])


def blocks(image: np.ndarray, size: int) -> np.ndarray:
    """[h,w,…] -> [size,size,cell*cell,…]."""
    cell = len(image) // size
    cells = image.reshape(size, cell, size, cell, *image.shape[2:]).swapaxes(1, 2)
    return cells.reshape(size, size, cell * cell, *image.shape[2:])


# ---- real depth --------------------------------------------------------------------------------------------------


def test_native_depth_is_metres_with_a_mask_of_holes(root):
    split = load(root, "depth_euclidean")
    views = sample_views(root, "depth_euclidean")
    place = views.index("point_202_view_5")
    stored = raw(root, "depth_euclidean")
    depth, mask = split.targets["depth_euclidean"][place, 0], split.targets["mask_valid"][place, 0]
    assert len(split) == len(views) == 12  # of 13 with rgb
    assert np.array_equal(split.images[place].permute(1, 2, 0).numpy(), raw(root, "rgb"))
    assert np.array_equal(mask.numpy(), stored != HOLE)
    assert (~mask).float().mean() == pytest.approx(0.077, abs=0.0005)
    assert (depth[mask].min() * 512, depth[mask].max() * 512) == (607, 4617)
    assert depth[~mask].abs().max() == 0


def test_small_depth_is_the_mean_over_valid_pixels(root):
    split = load(root, "depth_euclidean", size=64)
    assert split.images.shape == (12, 3, 64, 64)
    for place, view in enumerate(sample_views(root, "depth_euclidean")):
        cells = blocks(raw(root, "depth_euclidean", view).astype(float), 64)
        valid = cells != HOLE
        count = valid.sum(2)
        mean = np.where(valid, cells, 0).sum(2) / np.maximum(count, 1) / 512
        depth, mask = (split.targets[name][place, 0].numpy() for name in ("depth_euclidean", "mask_valid"))
        assert np.array_equal(mask, count > 0)
        assert np.allclose(depth, mean, atol=1e-4)
        near, far = cells[valid].min() / 512, cells[valid].max() / 512
        assert near - 1e-4 <= depth[mask].min() <= depth[mask].max() <= far + 1e-4


def test_small_images_are_area_means(root):
    split = load(root, "depth_euclidean", size=64)
    place = sample_views(root, "depth_euclidean").index("point_202_view_5")
    mean = blocks(raw(root, "rgb").astype(float), 64).mean(2)
    assert np.abs(split.images[place].permute(1, 2, 0).numpy() - mean).max() <= 0.5 + 1e-3


def rays(side: int = 512) -> np.ndarray:
    """float[side,side,3]: where pixels look, x right, y down, z = 1, for a square pinhole."""
    line = np.tan(FIELD_OF_VIEW / 2) * (2 * np.arange(side) + 1 - side) / side
    x, y = np.meshgrid(line, line)
    return np.stack([x, y, np.ones_like(x)], -1)


def test_both_depths_agree_with_the_camera(root):
    split = load(root, "depth_euclidean", "depth_zbuffer")
    assert len(split) == 1
    mask = split.targets["mask_valid"][0, 0].numpy()
    along, ahead = (split.targets[f"depth_{name}"][0, 0].numpy()[mask] for name in ("euclidean", "zbuffer"))
    ratio = along / ahead / np.linalg.norm(rays(), axis=-1)[mask]
    assert np.abs(ratio - 1).max() < 0.01


# ---- real normals and maps ---------------------------------------------------------------------------------------


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((a * b).sum(-1), -1, 1)))


def test_normals_are_those_of_the_depth_map(root):
    split = load(root, "depth_zbuffer", "normal")
    stored = split.targets["normal"][0].permute(1, 2, 0).double().numpy()
    points = rays() * split.targets["depth_zbuffer"][0, 0].double().numpy()[..., None]
    step = 4
    right = points[step:-step, 2 * step :] - points[step:-step, : -2 * step]
    down = points[2 * step :, step:-step] - points[: -2 * step, step:-step]
    outward = -np.cross(right, down)  # right x down looks into the scene
    outward /= np.maximum(np.linalg.norm(outward, axis=-1, keepdims=True), 1e-12)
    holes = torch.nn.functional.max_pool2d((~split.targets["mask_valid"]).float(), 2 * step + 1, 1)[0, 0].numpy()
    inner = stored[step:-step, step:-step][holes == 0]
    outward = outward[holes == 0]
    assert np.median(angles(inner, outward)) < 4
    for other in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)):
        assert np.median(angles(inner * other, outward)) > 7


@pytest.mark.parametrize("size", [None, 64])
def test_normals_have_unit_length(root, size):
    split = load(root, "normal", size=size)
    assert len(split) == 2
    assert split.targets["normal"].norm(dim=1).numpy() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("domain", "high", "divisor"),
    [("edge_texture", 8901, 65535), ("edge_occlusion", 4658, 65535), ("keypoints2d", 1120, 65535),
     ("keypoints3d", 57797, 65535), ("reshading", 255, 255)],
)  # fmt: skip
def test_maps_decode_to_shares(root, domain, high, divisor):
    split = load(root, domain)
    place = sample_views(root, domain).index("point_202_view_5")
    values = split.targets[domain][place]
    assert values.shape == (1, 512, 512)
    assert values.max().item() == pytest.approx(high / divisor, rel=1e-6)
    assert values.min() >= 0


def test_flat_surfaces_have_no_curvature(root):
    curvature = load(root, "principal_curvature").targets["principal_curvature"]
    assert curvature.shape[1:] == (2, 512, 512)
    assert curvature.median() == 0  # 127 in the file
    assert curvature.abs().max() <= 34.5  # clipped to 1 / 0.03 m


@pytest.mark.parametrize("domain", ["segment_unsup2d", "segment_unsup25d"])
def test_region_ids_are_never_mixed(root, domain):
    ids = set(np.unique(raw(root, domain, "point_21_view_2")))
    native, small = (load(root, domain, size=size).targets[domain] for size in (None, 64))
    assert native.dtype == small.dtype == torch.uint8
    assert set(native.unique().tolist()) == ids
    assert set(small.unique().tolist()) < ids


# ---- views common to domains -------------------------------------------------------------------------------------


def test_a_view_that_lacks_a_domain_drops_out(root):
    split = load(root, "normal", size=64)
    both = [view for view in sample_views(root, "rgb") if view in sample_views(root, "normal")]
    assert both == ["point_21_view_2", "point_202_view_5"]
    for place, view in enumerate(both):
        mean = blocks(raw(root, "rgb", view).astype(float), 64).mean(2)
        assert np.abs(split.images[place].permute(1, 2, 0).numpy() - mean).max() <= 0.5 + 1e-3


def test_domains_without_a_common_view_are_an_error(root):
    with pytest.raises(InputError, match=r"taskonomy.*no view has all of rgb, .*; fetch"):
        data.load("taskonomy", "all", root=root, size=64)


# ---- planted folders ---------------------------------------------------------------------------------------------


def planted(root, views, *, level="taskonomy"):
    for seed, view in enumerate(views):
        plant(root / "taskonomy", view, view_arrays(seed), level=level)
    return data.load("taskonomy", "all", root=root)


def test_both_layouts_read_the_same(tmp_path):
    views = [("allensville", 0, 0), ("allensville", 3, 1), ("beechwood", 0, 0)]
    canonical = planted(tmp_path / "omnitools", views)
    plain = planted(tmp_path / "domain-first", views, level="")
    assert len(canonical) == 3
    assert set(canonical.targets) == {*view_arrays(0), "mask_valid"} - {"rgb"}
    assert canonical.digest() == plain.digest()


@pytest.mark.parametrize("name", ["{building}", "{building}_{domain}"])
def test_building_first_layouts_read_the_same(tmp_path, name):
    views = [("allensville", 0, 0), ("allensville", 3, 1), ("beechwood", 0, 0)]
    expected = planted(tmp_path / "omnitools", views)
    for path in sorted((tmp_path / "omnitools/taskonomy").glob("*/taskonomy/*/point_*")):
        building, domain = path.parent.name, path.parents[2].name
        place = tmp_path / "first/taskonomy" / name.format(building=building, domain=domain) / domain
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    assert data.load("taskonomy", "all", root=tmp_path / "first").digest() == expected.digest()


def test_one_building_without_a_folder(tmp_path):
    """The sample model's repository: `<domain>/point_…`."""
    expected = planted(tmp_path / "omnitools", [("cauthron", 0, 0), ("cauthron", 3, 1)])
    for path in sorted((tmp_path / "omnitools/taskonomy").glob("*/taskonomy/*/point_*")):
        place = tmp_path / "flat/taskonomy" / path.parents[2].name
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    assert data.load("taskonomy", "all", root=tmp_path / "flat").digest() == expected.digest()


def test_parts_are_taskonomys_own_splits(tmp_path):
    views = [("hanson", 0, 0), ("goodfield", 0, 0), ("ihlen", 0, 0), ("cauthron", 0, 0), ("cauthron", 1, 0)]
    assert len(planted(tmp_path, views)) == 5
    counts = {
        (name, part): len(data.load(name, part, root=tmp_path))
        for name in ("taskonomy", "taskonomy_medium") for part in ("train", "test")
    }  # fmt: skip
    assert list(counts.values()) == [1, 1, 2, 3]


def test_splits_hold_what_the_release_says():
    sizes = {s: [len(parts[p]) for p in ("train", "val", "test")] for s, parts in buildings.SPLITS.items()}
    assert sizes == {"tiny": [25, 5, 5], "medium": [99, 20, 19]}
    for parts in buildings.SPLITS.values():
        assert len(set().union(*parts.values())) == sum(map(len, parts.values()))
    for part, names in buildings.SPLITS["tiny"].items():
        assert set(names) <= set(buildings.SPLITS["medium"][part])


def test_views_with_gaps_are_left_out_and_noted(tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(taskonomy.records, "note", notes.append)
    planted(tmp_path, [("hanson", 0, 0), ("hanson", 1, 0), ("onaga", 0, 0)])
    (tmp_path / "taskonomy/normal/taskonomy/hanson/point_1_view_0_domain_normal.png").unlink()
    assert len(data.load("taskonomy", "train", root=tmp_path)) == 2
    assert notes and "1 of 3 views lack one of rgb" in notes[0]


def test_a_part_without_buildings_is_refused(tmp_path):
    plant(tmp_path / "taskonomy", ("sample", 0, 0), view_arrays(0))
    with pytest.raises(InputError, match=r"has sample, but none of this part's 25 buildings .*name the part all"):
        data.load("taskonomy", "train", root=tmp_path)


def test_views_are_in_numeric_order(tmp_path):
    views = [("b", 2, 0), ("a", 10, 2), ("a", 9, 0), ("a", 10, 10), ("a", 2, 0)]
    split = planted(tmp_path, views)
    order = [views.index(view) for view in sorted(views)]
    assert order == [4, 2, 1, 3, 0]
    for image, seed in zip(split.images, order, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), view_arrays(seed)["rgb"])


def test_planted_values_decode_by_their_definitions(tmp_path):
    arrays = view_arrays(0, side=2)
    arrays["depth_euclidean"] = np.array([[512, 1024], [256, HOLE]], np.uint16)
    arrays["normal"] = np.array([[[255, 128, 128], [128, 255, 128]], [[128, 128, 0], [0, 128, 128]]], np.uint8)
    plant(tmp_path / "taskonomy", ("a", 0, 0), arrays)
    targets = data.load("taskonomy", "all", root=tmp_path).targets
    assert targets["depth_euclidean"].tolist() == [[[[1.0, 2.0], [0.5, 0.0]]]]
    assert targets["mask_valid"].tolist() == [[[[True, True], [True, False]]]]
    right, down, towards, left = targets["normal"][0].flatten(1).T.round().tolist()
    assert (right, down, towards, left) == ([1, 0, 0], [0, 1, 0], [0, 0, -1], [-1, 0, 0])
    assert np.array_equal(targets["segment_semantic"][0, 0].numpy(), arrays["segment_semantic"])


def test_depth_next_to_holes_is_not_mixed(tmp_path):
    arrays = view_arrays(0, side=4)
    arrays["depth_euclidean"] = np.full((4, 4), 1024, np.uint16)
    arrays["depth_euclidean"][:2, :2] = HOLE
    arrays["depth_euclidean"][2, 2:] = HOLE
    plant(tmp_path / "taskonomy", ("a", 0, 0), arrays)
    targets = data.load("taskonomy", "all", root=tmp_path, size=2).targets
    assert targets["depth_euclidean"][0, 0].tolist() == [[0.0, 2.0], [2.0, 2.0]]
    assert targets["mask_valid"][0, 0].tolist() == [[False, True], [True, True]]


def test_resizing_never_looks_into_holes():
    depth = torch.tensor([[2.0, 99, 99, 99], [4, 6, 99, 99]])[None, None]
    small = taskonomy.resize({"depth_euclidean": depth, "mask_valid": depth < 99}, 2)["depth_euclidean"]
    assert small[0, 0].tolist() == [[2.0, 0.0], [5.0, 0.0]]


def test_depth_is_not_resized_without_its_mask():
    with pytest.raises(InputError, match="depth_zbuffer cannot be resized without its holes; give mask_valid"):
        taskonomy.resize({"depth_zbuffer": torch.ones(1, 1, 4, 4)}, 2)


@pytest.mark.parametrize("shape", [(1000,), (1, 1000)])
@pytest.mark.parametrize(("best", "label"), [(401, 0), (453, 8), (999, 99)])
def test_object_labels_are_places_among_the_kept_classes(tmp_path, shape, best, label):
    scores = np.linspace(0, 0.1, 1000)
    scores[best] = 0.8
    scores[7] = 0.9  # a goldfish or so: not one of the hundred
    plant(tmp_path / "taskonomy", ("a", 0, 0), view_arrays(0) | {"class_object": scores.reshape(shape)})
    split = data.load("taskonomy", "all", root=tmp_path, targets=("class_object",))
    assert split.targets["class_object"].tolist() == [label]


@pytest.mark.parametrize(("best", "label"), [(3, 0), (43, 6), (363, 62)])
def test_scene_labels_are_places_among_the_kept_classes(tmp_path, best, label):
    arrays = view_arrays(0) | {"class_scene": one_hot(best, 365)}
    plant(tmp_path / "taskonomy", ("a", 0, 0), arrays)
    split = data.load("taskonomy", "all", root=tmp_path, targets=("class_scene",))
    assert split.targets["class_scene"].tolist() == [label]


def test_as_many_kept_classes_as_published():
    assert len(set(taskonomy.OBJECTS)) == 100 and sorted(taskonomy.OBJECTS) == list(taskonomy.OBJECTS)
    assert len(set(taskonomy.SCENES)) == 63 and sorted(taskonomy.SCENES) == list(taskonomy.SCENES)


def test_limit_takes_whole_views(tmp_path):
    views = [("a", point, 0) for point in range(9)]
    every = planted(tmp_path, views)
    few = data.load("taskonomy", "all", root=tmp_path, limit=4)
    places = [next(i for i, image in enumerate(every.images) if torch.equal(image, x)) for x in few.images]
    assert places == sorted(set(places)) and len(places) == 4
    assert few.digest() == every.take(torch.tensor(places)).digest()


def test_chunks_do_not_show(tmp_path, monkeypatch):
    views = [("a", point, 0) for point in range(5)]
    whole = planted(tmp_path, views)
    monkeypatch.setattr(taskonomy, "CHUNK", 2)
    assert data.load("taskonomy", "all", root=tmp_path).digest() == whole.digest()
