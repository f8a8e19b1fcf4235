"""Whole files of every kind that `ul` reads, and the table of their readers; used by test_fuzz.py."""

import gzip
import io
import json
import re
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import torch
from safetensors.numpy import save as tensor_bytes

from tests.conftest import idx_bytes, picture, plant, view_arrays
from tests.test_benchmark import SETTINGS
from ul import behaviour, claims, data, fetch, kept, nb, paths, readme, records, tables
from ul.benchmark import cells
from ul.config import InputError

# ---- Whole files, and sums mended so that damage gets past them ----------------------------------------------------

IMAGES, LABELS = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3), np.arange(4)
CLEAN = data.Split(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), {"label": torch.arange(4)}, "tiny/train")


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(raw: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An .npz whose `images` are these bytes of a .npy."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr(zipfile.ZipInfo("images.npy"), raw)
    return buffer.getvalue()


def crc(raw: bytes) -> bytes:
    """A PNG with the sums of its chunks mended."""
    out, at = bytearray(raw), 8 if raw[1:4] == b"PNG" else len(raw)
    while at + 12 <= len(out):
        (length,) = struct.unpack(">I", out[at : at + 4])
        if at + 12 + length > len(out):
            break
        out[at + 8 + length : at + 12 + length] = zlib.crc32(out[at + 4 : at + 8 + length]).to_bytes(4, "big")
        at += 12 + length
    return bytes(out)


def header(raw: bytes) -> bytes:
    """A .safetensors whose first eight bytes say how long its header is, which ends in braces and spaces."""
    end = re.search(rb"\}\} *", raw)
    return raw if end is None else max(end.end() - 8, 0).to_bytes(8, "little") + raw[8:]


def tar(names: tuple[str, ...] = ("cifar-10-batches-bin/a.bin", "cifar-10-batches-bin/b.bin")) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 600
            file.addfile(entry, io.BytesIO(bytes(600)))
    return buffer.getvalue()[:4096]


def sums(raw: bytes) -> bytes:
    """A gzipped tar with the sums of its headers mended."""
    if raw[:2] == b"\x1f\x8b":
        return raw
    out = bytearray(raw)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return gzip.compress(bytes(out), 1)


def same(raw: bytes) -> bytes:
    return raw


# ---- Readers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """What reads one kind of file.

    file: where the damaged file lies in the folder; wholes: good contents; read(folder); functions: those of `ul` that
    open or first interpret it; mend: what makes damaged bytes pass their sums; beside: other files that must be there;
    makes: what it may leave in the folder.
    """

    file: str
    wholes: tuple[bytes, ...]
    read: Callable[[Path], object]
    functions: tuple[str, ...]
    mend: Callable[[bytes], bytes] = same
    beside: tuple[tuple[str, bytes], ...] = ()
    makes: tuple[str, ...] = ()


def _poison(name: str) -> Callable[[Path], object]:
    return lambda folder: data.read_poison(folder / name, CLEAN)


def _load(name: str, part: str, **options) -> Callable[[Path], object]:
    return lambda folder: data.load(name, part, root=folder, **options)


def record(number: int, size: int) -> bytes:
    return bytes(size) + bytes([number]) + bytes(3072)


def _views() -> tuple[tuple[str, bytes], ...]:
    with tempfile.TemporaryDirectory() as name:
        for point in range(2):
            plant(Path(name) / "taskonomy", ("a", point, 0), view_arrays(point))
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        return tuple((str(path.relative_to(name)), path.read_bytes()) for path in files)


def _view(domain: str, ending: str, *functions: str, mend: Callable = same) -> Reader:
    file = f"taskonomy/{domain}/taskonomy/a/point_1_view_0_domain_{ending}"
    views = dict(_views())
    whole = views.pop(file)
    others = tuple(views.items())
    return Reader(file, (whole,), _load("taskonomy", "all", size=4), functions, mend, others)


CIFAR = [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)]
MNIST = ("mnist/t10k-images-idx3-ubyte", idx_bytes(np.zeros((4, 3, 3), np.uint8)))
MNIST_LABELS = ("mnist/t10k-labels-idx1-ubyte", idx_bytes(LABELS))
PHOTO = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
KINDS = tuple(picture(PHOTO, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"))
PHOTOS = tuple((f"{part}/{kind}/0.png", KINDS[0]) for part in ("train", "test") for kind in ("cat", "dog"))

NOTEBOOK = nbformat.v4.new_notebook(cells=[
    nbformat.v4.new_markdown_cell("# A", id="a"),
    nbformat.v4.new_code_cell("n = 1\nname: str = 'x'", id="b", metadata={"tags": ["parameters"]}),
    nbformat.v4.new_code_cell("n", id="c", outputs=[nbformat.v4.new_output("stream", text="1 at 0x7fffffffffff")]),
])  # fmt: skip
YAML = b"""grid:
  settings: [rooms, mnist]
  limit: &n 128
  again: *n
  nested: {a: 1.5, b: null, c: "text", d: true}
other: {x: 1}
"""
RUN = {"config": {"dataset": "rooms", "architecture": "resnet8", "defense": "none", "recipe": {"epochs": 2},
                  "method": "lsp", "seed": 0, "poison": False}, "history": {"test_accuracy": [0.1]},
       "sal": [{"epoch": 1, "sal": [0.1, 0.2]}], "machine": {"device": "cpu"},
       "versions": records.versions()}  # fmt: skip
JSON = json.dumps({"runs": [RUN, RUN]}, indent=1).encode()
TABLE = b"""dataset,architecture,defense,epochs,method,test_accuracy,ud_layers
rooms,resnet8,none,20,clean,0.61,1.0
rooms,resnet8,none,20,lsp,0.16,
"""
RECIPES = (
    b"method,accuracy_noise,accuracy_cpu,accuracy_published,difference,difference_low,difference_high\nem,1,1,1,0,0,0\n"
)
README = b"# A\n<!-- claims: written by the pipeline -->\nold\n<!-- end of claims -->\nrest\n"


def _paths() -> bytes:
    steps, start = np.array([0, 1, 2]), np.zeros(3, np.float32)
    return tensor_bytes({"a-0/steps": steps, "a-0/start": start, "a-0/moves": np.ones((2, 3), np.float16)})


def _notebook(folder: Path) -> None:
    nb.kinds_of(str(folder / "in" / "a.ipynb"))
    nb.stable(nb._finished(folder / "in" / "a.ipynb", "a.ipynb"))
    nb.clean(str(folder / "in"), str(folder / "out"))


def _parameters(folder: Path) -> None:
    found = nb.parameters_from([f"{folder / 'p.yaml'}:grid"], [])
    nb.checked(
        found, {"settings": "list[str]", "limit": "int", "again": "int", "nested": "dict"}, str(folder / "p.yaml")
    )


def _kept(folder: Path) -> None:
    """What was kept comes back as it was, or not at all."""
    found = kept.load(folder / "cell.json", CELL.poison)
    if found is None:
        raise InputError(f"{folder}: trained again")
    assert found == RUN


def _archive(folder: Path) -> None:
    fetch.fetch("cifar10", folder)


def _recipes(folder: Path) -> None:
    import pandas as pd

    behaviour.with_recipes(
        pd.DataFrame({"dataset": ["rooms"], "method": ["em"], "recipe": ["cpu"]}), folder / "recipes.csv"
    )


CELL = cells(SETTINGS)[0]
KEPT = json.dumps(kept.sealed(RUN)).encode()
READERS: dict[str, Reader] = {
    "npz": Reader("p.npz", (zipped(npy(IMAGES)), zipped(npy(IMAGES), 0)), _poison("p.npz"), ("files._read_npz",)),
    "npz, inside": Reader(
        "p.npz", (npy(IMAGES),), _poison("p.npz"), ("files._array", "files.read", "data.read_poison"), zipped,
    ),
    "safetensors": Reader(
        "p.safetensors", (tensor_bytes({"images": IMAGES, "label": LABELS}),), _poison("p.safetensors"),
        ("files._read_safetensors",), header,
    ),
    "folder of png": Reader(
        "p/data/1.png", (picture(IMAGES[1]),), _poison("p"),
        ("files._read_folder", "files._read_png"), crc,
        tuple((f"p/data/{i}.png", picture(IMAGES[i])) for i in (0, 2, 3)),
    ),
    "photographs": Reader(
        "train/cat/1.png", KINDS, _load("folder", "train", size=4),
        ("folders.listed", "folders._classes", "folders.opened", "folders.read", "data._photographs"), crc, PHOTOS,
    ),
    "IDX images": Reader(MNIST[0], (MNIST[1],), _load("mnist", "test"), ("data.read_idx",), beside=(MNIST_LABELS,)),
    "IDX labels": Reader(
        MNIST_LABELS[0], (MNIST_LABELS[1],), _load("mnist", "test"), ("data._mnist",), gzip.compress, (MNIST,),
    ),
    "CIFAR-10": Reader(
        CIFAR[0], (record(3, 0) * 2,), _load("cifar10", "train"), ("data._cifar_records",),
        beside=tuple((name, record(9, 0)) for name in CIFAR[1:]),
    ),
    "CIFAR-100": Reader("cifar-100-binary/test.bin", (record(99, 1) * 2,), _load("cifar100", "test"), ("data.load",)),
    "view, rgb": _view("rgb", "rgb.png", "taskonomy.read_png", "taskonomy._stack", mend=crc),
    "view, depth": _view(
        "depth_euclidean", "depth_euclidean.png", "taskonomy._files", "taskonomy.domains_in", mend=crc,
    ),
    "view, segments": _view("segment_semantic", "segmentsemantic.png", "data.read", mend=crc),
    "view, scores": _view("class_object", "class_object.npy", "taskonomy._label"),
    "archive": Reader(
        f".fetch/cifar10/{fetch.CIFAR10.name}", (tar(), sums(tar())), _archive, ("fetch._unpacked",), sums,
        makes=("cifar-10-batches-bin", ".fetch"),
    ),
    "records": Reader(
        "a.json", (JSON,), lambda folder: tables.load(folder, ["a"]), ("records.load", "tables.load", "tables._runs"),
    ),
    "poison records": Reader(
        "poison-a.json", (json.dumps({"method": "em", "eps": 0.1}).encode(),),
        lambda folder: behaviour.load(folder, ["a"]), ("behaviour.load",),
    ),
    "kept cells": Reader("cell.json", (KEPT,), _kept, ("kept.load",)),
    "compared tables": Reader(
        "b/tables/ud_by_data.csv", (TABLE,), lambda folder: tables.differences(folder / "a", folder / "b"),
        ("tables._indexed", "tables.read"), beside=(("a/tables/ud_by_data.csv", TABLE),),
    ),
    "tables of a folder": Reader("t/a.csv", (TABLE,), lambda folder: claims.folder(folder / "t"), ("claims.folder",),
                                 beside=(("t/b.csv", TABLE),)),
    "recipes": Reader("recipes.csv", (RECIPES,), _recipes, ("behaviour.with_recipes",)),
    "notebooks": Reader(
        "in/a.ipynb", (nbformat.writes(NOTEBOOK).encode(),), _notebook,
        ("nb.read", "nb.clean", "nb._finished", "nb.kinds_of"),
        makes=("out",),
    ),
    "parameters": Reader("p.yaml", (YAML,), _parameters, ("nb.parameters_from",)),
    "paths": Reader("p.safetensors", (_paths(),), lambda folder: paths.load(folder / "p.safetensors"), ("paths.load",),
                    header),
    "README": Reader(
        "README.md", (README,), lambda folder: readme.update(folder / "README.md", claims="new"), ("readme.update",),
        makes=("README.md",),
    ),
}  # fmt: skip
