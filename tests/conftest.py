"""Where real data lies, and builders of tiny data folders that share no code with `ul`."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ul.data import rooms

SHARED = Path(os.environ.get("UL_SHARED") or Path(__file__).resolve().parents[2] / "shared")
SUFFIX = {"segment_semantic": "segmentsemantic", "class_scene": "class_places"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, the pipeline's at the very beginning: the last file would keep one process alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.stem != "test_pipeline", item.path not in slow))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As poisons and runs are made: a network that a test fits again must come out the same."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that ask for it are skipped where there is none."""
    path = SHARED / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path}")
    return path


def ul(*args: object, cwd: Path) -> subprocess.CompletedProcess:
    """`python -m ul ARGS`, as a user types it."""
    command = [sys.executable, "-m", "ul", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def one_hot(index: int, length: int) -> np.ndarray:
    return (np.arange(length) == index).astype(np.float16)


def plant(folder: Path, view: tuple[str, int, int], values: dict[str, np.ndarray], *, level: str = "taskonomy") -> None:
    """Write one view's arrays as Taskonomy files: `<folder>/<domain>/<level>/<building>/point_P_view_V_domain_S.*`."""
    building, point, number = view
    for domain, array in values.items():
        place = folder / domain / level / building
        place.mkdir(parents=True, exist_ok=True)
        stem = f"point_{point}_view_{number}_domain_{SUFFIX.get(domain, domain)}"
        if domain.startswith("class_"):
            np.save(place / f"{stem}.npy", array)
        else:
            Image.fromarray(array).save(place / f"{stem}.png")


def view_arrays(seed: int, side: int = 8) -> dict[str, np.ndarray]:
    """Raw arrays of one made-up view with every kind of encoding; depth has a hole in its first two rows."""
    rng = np.random.default_rng(seed)
    depth = rng.integers(512, 5120, (side, side), dtype=np.uint16)
    depth[:2] = 65535
    return {
        "rgb": rng.integers(0, 256, (side, side, 3), dtype=np.uint8),
        "depth_euclidean": depth,
        "normal": rng.integers(0, 256, (side, side, 3), dtype=np.uint8),
        "segment_semantic": rng.integers(0, 18, (side, side), dtype=np.uint8),
        "class_object": one_hot(453, 1000)[None],
        "class_scene": one_hot(43, 365),
    }


def planted_rooms(root: Path) -> None:
    """A `rooms` folder with one view in the first building of each part."""
    for number, buildings in enumerate(rooms.BUILDINGS.values()):
        plant(root / "rooms", (buildings[0], 0, 0), view_arrays(number))


def real_views(shared: Path, root: Path) -> None:
    """A `taskonomy` folder of the twelve real views with depth, as two buildings, under made-up scenes."""
    views = sorted(p.name for p in (shared / "taskonomy-sample" / "depth_euclidean" / "sample").glob("*.png"))
    for place, name in enumerate(views):
        building = "hanson" if place < 8 else "ihlen"
        for domain in ("rgb", "depth_euclidean"):
            folder = root / "taskonomy" / domain / building
            folder.mkdir(parents=True, exist_ok=True)
            file = name.replace("depth_euclidean", domain)
            shutil.copy(shared / "taskonomy-sample" / domain / "sample" / file, folder / file)
        point, view = name.partition("_domain_")[0].split("_")[1::2]
        scene = {"class_scene": one_hot(43 + place % 2, 365)}
        plant(root / "taskonomy", (building, int(point), int(view)), scene, level="")


def write_cifar(folder: Path, *, per_file: int = 4, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The official binary layout with random images; returns (labels, images) of train and test in stored order."""
    place = folder / "cifar-10-batches-bin"
    place.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    stored: dict[str, list] = {"train": [], "test": []}
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        labels = rng.integers(0, 10, per_file, dtype=np.uint8)
        images = rng.integers(0, 256, (per_file, 3, 32, 32), dtype=np.uint8)
        raw = b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))
        (place / name).write_bytes(raw)
        stored["test" if name.startswith("test") else "train"].append((labels, images))
    return {part: tuple(map(np.concatenate, zip(*pairs, strict=True))) for part, pairs in stored.items()}


def picture(array: np.ndarray, kind: str = "PNG") -> bytes:
    """An image file of uint8 (or, as PNG, uint16) pixels."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file of bytes, written from the format's description: 0 0 8 rank, big-endian sizes, data."""
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()
