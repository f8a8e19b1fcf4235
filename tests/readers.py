"""Whole files of every kind that `ul` reads, and the table of their readers; used by test_fuzz.py."""

import gzip
import io
import json
import lzma
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
from ul import data
from ul.base import records
from ul.base.errors import InputError
from ul.data import fetch
from ul.pipeline import cleaning, notebooks, queue, readme
from ul.studies import paths, store
from ul.tables import poisons as poison_tables
from ul.tables import run_records, study_claims, table_files

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


CIFAR = ("cifar-10-batches-bin/a.bin", "cifar-10-batches-bin/b.bin")


def tar(names: tuple[str, ...] = CIFAR, content: bytes = bytes(600)) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
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


def xz(raw: bytes) -> bytes:
    """A gzipped tar as an .xz."""
    return lzma.compress(gzip.decompress(raw), preset=0) if raw[:2] == b"\x1f\x8b" else raw


def same(raw: bytes) -> bytes:
    return raw


# ---- Readers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """What reads one kind of file.

    file: where the damaged file lies in the folder; wholes: good contents; read(folder); functions: those below `ul`
    that open or first interpret it; mend: what makes damaged bytes pass their sums; beside: other files that must be
    there; makes: what it may leave in the folder.
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
    notebooks.kinds_of(str(folder / "in" / "a.ipynb"))
    notebooks.stable(notebooks._finished(folder / "in" / "a.ipynb", "a.ipynb"))
    cleaning.clean(str(folder / "in"), str(folder / "out"))


def _parameters(folder: Path) -> None:
    found = notebooks.parameters_from([f"{folder / 'p.yaml'}:grid"], [])
    notebooks.checked(
        found, {"settings": "list[str]", "limit": "int", "again": "int", "nested": "dict"}, str(folder / "p.yaml")
    )


def _kept(folder: Path) -> None:
    """What was kept comes back as it was, or not at all."""
    if (found := store.load(folder / "cell.json")) is None:
        raise InputError(f"{folder}: trained again")
    arrays = found.pop("arrays")
    assert found == RUN and np.array_equal(arrays["a"], IMAGES) and len(arrays) == 1


def _cleaned(folder: Path) -> None:
    """What stages depended on before, to name what changed: as it was written, or unknown."""
    known, text = cleaning._closures(folder / "out"), cleaning._text(folder / "out" / "a.ipynb")
    if "a.ipynb" not in known or text is None:
        raise InputError(f"{folder}: written again")


def _packed(folder: Path) -> None:
    found = records.study(lambda: {}, recorded=str(folder / "a.json"))
    try:
        records.unpacked(found)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def _archive(folder: Path) -> None:
    fetch.fetch("cifar10", folder)


def _recipes(folder: Path) -> None:
    import pandas as pd

    poison_tables.with_recipes(
        pd.DataFrame({"dataset": ["rooms"], "method": ["em"], "recipe": ["cpu"]}), folder / "recipes.csv"
    )


def _kept_files() -> tuple[bytes, bytes]:
    """A finished run: its record and its arrays."""
    with tempfile.TemporaryDirectory() as name:
        store.save(Path(name) / "cell.json", RUN, {"a": IMAGES})
        return tuple((Path(name) / f"cell.{kind}").read_bytes() for kind in ("json", "safetensors"))


def _cleaned_file() -> bytes:
    return nbformat.writes(cleaning.with_closure(notebooks.cleaned(nbformat.from_dict(NOTEBOOK)))).encode()


def _unpacked(folder: Path) -> dict[str, str]:
    return queue.unpack(folder / "runs.tar.xz", folder / "kept")


KEPT, ARRAYS = _kept_files()
PACKED = json.dumps(records.packed(IMAGES)).encode()
READERS: dict[str, Reader] = {
    "npz": Reader(
        "p.npz", (zipped(npy(IMAGES)), zipped(npy(IMAGES), 0)), _poison("p.npz"), ("data.formats._read_npz",),
    ),
    "npz, inside": Reader(
        "p.npz", (npy(IMAGES),), _poison("p.npz"),
        ("data.formats._array", "data.formats.read", "data.poison_files.read_poison"), zipped,
    ),
    "safetensors": Reader(
        "p.safetensors", (tensor_bytes({"images": IMAGES, "label": LABELS}),), _poison("p.safetensors"),
        ("data.formats._read_safetensors",), header,
    ),
    "folder of png": Reader(
        "p/data/1.png", (picture(IMAGES[1]),), _poison("p"),
        ("data.formats._read_folder", "data.formats._read_png"), crc,
        tuple((f"p/data/{i}.png", picture(IMAGES[i])) for i in (0, 2, 3)),
    ),
    "photographs": Reader(
        "train/cat/1.png", KINDS, _load("folder", "train", size=4),
        ("data.photographs.listed", "data.photographs._classes", "data.photographs.opened", "data.photographs.read",
         "data.photographs.folder"), crc, PHOTOS,
    ),
    "IDX images": Reader(
        MNIST[0], (MNIST[1],), _load("mnist", "test"), ("data.mnist.read_idx",), beside=(MNIST_LABELS,),
    ),
    "IDX labels": Reader(
        MNIST_LABELS[0], (MNIST_LABELS[1],), _load("mnist", "test"), ("data.mnist.mnist",), gzip.compress, (MNIST,),
    ),
    "CIFAR-10": Reader(
        CIFAR[0], (record(3, 0) * 2,), _load("cifar10", "train"), ("data.cifar._cifar_records",),
        beside=tuple((name, record(9, 0)) for name in CIFAR[1:]),
    ),
    "CIFAR-100": Reader(
        "cifar-100-binary/test.bin", (record(99, 1) * 2,), _load("cifar100", "test"), ("data.sources.load",),
    ),
    "view, rgb": _view("rgb", "rgb.png", "data.taskonomy.read_png", "data.taskonomy._stack", mend=crc),
    "view, depth": _view(
        "depth_euclidean", "depth_euclidean.png", "data.taskonomy._files", "data.taskonomy.domains_in", mend=crc,
    ),
    "view, segments": _view("segment_semantic", "segmentsemantic.png", "data.views.read", mend=crc),
    "view, scores": _view("class_object", "class_object.npy", "data.taskonomy._label"),
    "archive": Reader(
        f".fetch/cifar10/{fetch.CIFAR10.name}", (tar(), sums(tar())), _archive, ("data.fetch._unpacked",), sums,
        makes=("cifar-10-batches-bin", ".fetch"),
    ),
    "records": Reader(
        "a.json", (JSON,), lambda folder: run_records.load(folder, ["a"]),
        ("base.records.load", "tables.run_records.load", "tables.run_records._runs"),
    ),
    "poison records": Reader(
        "poison-a.json", (json.dumps({"poisons": [{"dataset": "a", "method": "em"}]}).encode(),),
        lambda folder: poison_tables.load(folder, [("a", "em")]), ("tables.poisons.load",),
    ),
    "packed arrays": Reader("a.json", (PACKED,), _packed, ("base.records.study", "base.records.unpacked")),
    "kept runs": Reader("cell.json", (KEPT,), _kept, ("studies.store.load",), beside=(("cell.safetensors", ARRAYS),)),
    "kept arrays": Reader(
        "cell.safetensors", (ARRAYS,), _kept, ("studies.store._arrays",), header, (("cell.json", KEPT),),
    ),
    "compared tables": Reader(
        "b/tables/benchmark/ud_by_data.csv", (TABLE,),
        lambda folder: table_files.differences(folder / "a", folder / "b"),
        ("tables.table_files._indexed", "tables.table_files.read"),
        beside=(("a/tables/benchmark/ud_by_data.csv", TABLE),),
    ),
    "tables of studies": Reader(
        "t/a/evidence.csv", (TABLE,), lambda folder: study_claims.evidence(folder / "t"),
        ("tables.study_claims.evidence",),
        beside=(("t/b/evidence.csv", TABLE),),
    ),
    "recipes": Reader("recipes.csv", (RECIPES,), _recipes, ("tables.poisons.with_recipes",)),
    "notebooks": Reader(
        "in/a.ipynb", (nbformat.writes(NOTEBOOK).encode(),), _notebook,
        ("pipeline.notebooks.read", "pipeline.cleaning.clean", "pipeline.notebooks._finished",
         "pipeline.notebooks.kinds_of"),
        makes=("out",),
    ),
    "cleaned notebooks": Reader(
        "out/a.ipynb", (_cleaned_file(),), _cleaned, ("pipeline.cleaning._closures", "pipeline.cleaning._text"),
    ),
    "parameters": Reader("p.yaml", (YAML,), _parameters, ("pipeline.notebooks.parameters_from",)),
    "paths": Reader(
        "p.safetensors", (_paths(),), lambda folder: paths.load(folder / "p.safetensors"), ("studies.paths.load",),
        header,
    ),
    "packs": Reader(
        "runs.tar.xz", (tar(("poisons.json", "0123456789abcdef.json"), b"{}".ljust(600)),), _unpacked,
        ("pipeline.queue.unpack", "pipeline.queue._members"), lambda raw: xz(sums(raw)), makes=("kept",),
    ),
    "README": Reader(
        "README.md", (README,), lambda folder: readme.update(folder / "README.md", claims="new"),
        ("pipeline.readme.update", "pipeline.readme._read"), makes=("README.md",),
    ),
    "findings": Reader(
        "findings.md", (README,), lambda folder: readme.renew(folder / "README.md", folder / "findings.md"),
        ("pipeline.readme.renew",), beside=(("README.md", README),), makes=("README.md",),
    ),
}  # fmt: skip
