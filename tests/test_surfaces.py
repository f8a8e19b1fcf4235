"""Planes and surfaces against planted answers and direct evaluation."""

import copy

import pytest
import torch
from torch import Generator, nn
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters

from tests.plain import plain_surface
from ul import data
from ul.base.errors import InputError
from ul.data import pixels
from ul.nets import classifiers, vit
from ul.studies import surfaces


def split(count=24, channels=3, size=32) -> data.Split:
    rng = Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, channels, size, size), generator=rng, dtype=torch.uint8)
    return data.Split(images, {"label": torch.arange(count) % 10}, "test/train")


def network(name: str, channels=3, size=32) -> nn.Module:
    return classifiers.make(name, channels=channels, classes=10, size=size, seed=0)


def test_a_planted_plane_is_found_with_its_coordinates_and_shares():
    rng = Generator().manual_seed(0)
    axes, _ = torch.linalg.qr(torch.randn(500, 2, generator=rng))
    places = torch.randn(30, 2, generator=rng) * torch.tensor([3.0, 1.0])
    places -= places.mean(0)
    origin = torch.randn(500, generator=rng)
    plane = surfaces.pca_plane(origin + places @ axes.T)
    torch.testing.assert_close(plane.origin, origin, atol=1e-5, rtol=0)
    shadow = plane.axes @ axes  # an orthogonal 2x2 matrix if both span the same plane
    torch.testing.assert_close(shadow @ shadow.T, torch.eye(2), atol=1e-5, rtol=0)
    assert sum(plane.explained) == pytest.approx(1, abs=1e-6)
    wanted = torch.linalg.svdvals(places)[0].square() / places.square().sum()
    assert plane.explained[0] == pytest.approx(wanted.item(), rel=1e-4)
    torch.testing.assert_close(plane.origin + plane.coordinates(origin + places @ axes.T) @ plane.axes,
                               origin + places @ axes.T, atol=1e-4, rtol=0)  # fmt: skip


def test_a_third_dimension_is_not_explained():
    points = torch.diag(torch.tensor([4.0, 2.0, 1.0])) @ torch.eye(3, 40)
    plane = surfaces.pca_plane(torch.cat([points, -points]))
    assert plane.explained == pytest.approx((16 / 21, 4 / 21), rel=1e-5)


def test_a_plane_needs_three_points():
    with pytest.raises(InputError, match="three points or more, got 2"):
        surfaces.pca_plane(torch.zeros(2, 5))


@pytest.mark.parametrize("name", ["linear", "lenet5", "resnet8"])
def test_surface_equals_direct_evaluation_and_leaves_the_model(name):
    model, images = network(name), split()
    before = copy.deepcopy(model.state_dict())
    plane = surfaces.random_plane(model, rng=Generator().manual_seed(3))
    xs, ys = torch.linspace(-0.5, 0.5, 4), torch.linspace(-0.3, 0.6, 3)
    found = surfaces.surface(model, images, plane, xs, ys)
    assert found.shape == (3, 4)
    torch.testing.assert_close(found, plain_surface(model, images, plane, xs, ys), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_surface_of_a_vision_transformer_and_of_accuracy():
    torch.manual_seed(0)
    parts = [vit.Patches(3, 32, 8, 12), vit.Block(12, 2), vit.AsMap(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model, images = nn.Sequential(*parts), split(12)
    plane, at = surfaces.random_plane(model, rng=Generator().manual_seed(3)), torch.tensor([-0.2, 0.4])
    found = surfaces.surface(model, images, plane, at, at)
    torch.testing.assert_close(found, plain_surface(model, images, plane, at, at), rtol=1e-4, atol=1e-5)
    hits = surfaces.surface(model, images, plane, at, at, score=surfaces.hit)
    assert ((hits * 12).round() == hits * 12).all()


def test_blocks_of_images_and_many_points_at_once_change_nothing(monkeypatch):
    model, images = network("lenet5"), split()
    plane = surfaces.random_plane(model, rng=Generator().manual_seed(3))
    at = torch.linspace(-0.5, 0.5, 3)
    one_by_one = surfaces.surface(model, images, plane, at, at)
    monkeypatch.setattr(surfaces, "IMAGES", 7)
    monkeypatch.setitem(surfaces.NUMBERS, "cpu", 2**30)
    torch.testing.assert_close(surfaces.surface(model, images, plane, at, at), one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [8, 9])
def test_windows_are_max_pooling(size):
    x = torch.randn(2, 3, size, size, generator=Generator().manual_seed(0))
    assert torch.equal(surfaces.Windows()(x), F.max_pool2d(x, 2))


def test_a_plane_of_another_network_is_refused():
    plane = surfaces.random_plane(network("linear"), rng=Generator().manual_seed(0))
    with pytest.raises(InputError, match="another number"):
        surfaces.surface(network("lenet5"), split(), plane, torch.zeros(1), torch.zeros(1))


def test_random_directions_are_as_long_as_their_filters():
    model = network("resnet8")
    plane = surfaces.random_plane(model, rng=Generator().manual_seed(0))
    moved = copy.deepcopy(model)
    vector_to_parameters(plane.axes[0], moved.parameters())
    for (name, p), direction in zip(model.named_parameters(), moved.parameters(), strict=True):
        if p.ndim == 1:
            assert not direction.any(), name
        else:
            torch.testing.assert_close(direction.flatten(1).norm(dim=1), p.flatten(1).norm(dim=1))


def test_the_gradient_at_a_point_is_the_slope_of_the_surface():
    model, images = network("lenet5"), split()
    plane = surfaces.random_plane(model, rng=Generator().manual_seed(5))
    h = 1e-3
    low, high = surfaces.surface(model, images, plane, torch.tensor([-h, h]), torch.zeros(1))[0]
    F.cross_entropy(model.eval()(pixels.to_float(images.images)), images.targets["label"]).backward()
    slope = torch.cat([p.grad.flatten() for p in model.parameters()]) @ plane.axes[0]
    assert ((high - low) / (2 * h)).item() == pytest.approx(slope.item(), rel=0.02, abs=1e-3)
