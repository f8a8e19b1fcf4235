"""Files of poisoned images: .npz, .safetensors and APBench's folders of PNG, read and written as plain arrays."""

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.lib import format as npy

from ..base import records
from ..base.errors import InputError, choose
from .photographs import opened

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Format:
    """One kind of file. read: path -> arrays; write: (arrays, path)."""

    suffix: str  # none: a folder
    read: Callable[[Path], Arrays]
    write: Callable[[Arrays, Path], None]
    looks_like: str

    def fits(self, path: Path) -> bool:
        """Whether what lies there is of this kind."""
        return path.is_dir() if not self.suffix else path.is_file() and path.suffix == self.suffix


def read(path: Path) -> Arrays:
    """Arrays by name, `images` among them (uint8[n,h,w,c]). Raises InputError for unknown kinds and damaged files."""
    found = [format for format in FORMATS.values() if format.fits(path)]
    if not found:
        raise InputError(f"{path}: not a kind of file that holds poisoned images; use {_kinds()}")
    arrays = found[0].read(path)
    if "images" not in arrays:
        raise InputError(f"{path}: holds {sorted(arrays)}, not `images`; write it with ul.data.export")
    return arrays


def write(arrays: Arrays, path: Path, format: str) -> Path:
    """Write arrays in a format of FORMATS; a half-written file never has this name."""
    chosen = FORMATS[choose(format, FORMATS, "export format")]
    if path.suffix != chosen.suffix:
        raise InputError(f"{path}: the suffix is not that of {format}, {chosen.looks_like}; give both alike")
    chosen.write(arrays, path)
    return path


def format_of(path: Path) -> str:
    """The format whose suffix a path has. Raises InputError that lists them."""
    found = [name for name, format in FORMATS.items() if format.suffix == path.suffix]
    if not found:
        raise InputError(f"{path}: no format has this suffix; use {_kinds()}")
    return found[0]


def _kinds() -> str:
    return ", ".join(format.looks_like for format in FORMATS.values())


def _read_npz(path: Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as file:
            return {info.filename.removesuffix(".npy"): _array(file, info) for info in file.infolist()}
    except Exception as error:  # zip, header and decompression errors are of many types
        kind = type(error).__name__
        raise InputError(
            f"{path}: not a readable .npz of plain arrays ({kind}); write it with ul.data.export"
        ) from None


def _array(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array of an .npz; unlike `np.load` it takes no memory for more values than there are."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("compressed in a way that numpy does not write")
    raw = file.read(info)
    stream = io.BytesIO(raw)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
    shape, columns_first, dtype = read_header(stream)
    return np.frombuffer(raw, dtype, offset=stream.tell()).reshape(shape, order="F" if columns_first else "C").copy()


def _write_npz(arrays: Arrays, path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast("dict[str, Any]", arrays))
    records.write_bytes(path, buffer.getvalue())


def _read_safetensors(path: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        text = str(error).splitlines()[0][:80]
        raise InputError(f"{path}: not a readable .safetensors file ({text}); write it with ul.data.export") from None


def _write_safetensors(arrays: Arrays, path: Path) -> None:
    from safetensors.numpy import save

    records.write_bytes(path, save({key: np.ascontiguousarray(values) for key, values in arrays.items()}))


def _read_folder(path: Path) -> Arrays:
    """`<index>.png` for every index from 0, in the folder or in its `data` folder (APBench's layout); no labels."""
    folder = path / "data" if (path / "data").is_dir() else path
    found = [file for file in folder.glob("*.png") if file.stem.isdecimal()]
    files = {int(file.stem): file for file in found}
    if len(files) < len(found):
        raise InputError(f"{folder}: two files have one number, as in 1.png and 01.png; keep one of each")
    if not files:
        raise InputError(f"{folder}: holds no <index>.png; name the folder that holds 0.png, 1.png, ...")
    if missing := set(range(len(files))) - set(files):
        raise InputError(f"{folder / f'{min(missing)}.png'} is missing; images are numbered from 0 without a gap")
    first = _read_png(files[0])
    images = np.empty((len(files), *first.shape), np.uint8)
    for index in range(len(files)):
        image = _read_png(files[index])
        if image.shape != first.shape:
            raise InputError(f"{files[index]}: {image.shape}, but 0.png is {first.shape}; export all images alike")
        images[index] = image
    return {"images": images}


def _read_png(path: Path) -> np.ndarray:
    try:
        with opened(path, ("PNG",)) as image:
            pixels = np.asarray(image)
            mode = image.mode
    except Exception as error:  # damaged files raise many types
        raise InputError(f"{path}: not a readable PNG ({type(error).__name__}); export it again") from None
    if mode not in ("RGB", "L"):
        raise InputError(f"{path}: mode {mode}, not RGB or L of 8 bits; convert it before saving")
    return pixels.reshape(*pixels.shape[:2], -1)


def _write_folder(arrays: Arrays, path: Path) -> None:
    from PIL import Image

    if path.exists():
        raise InputError(f"{path} exists; remove it or name another folder")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        (part / "data").mkdir(parents=True)
        for index, image in enumerate(arrays["images"]):
            Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(part / "data" / f"{index}.png")
        part.rename(path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say where
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


FORMATS: dict[str, Format] = {
    "npz": Format(".npz", _read_npz, _write_npz, ".npz"),
    "safetensors": Format(".safetensors", _read_safetensors, _write_safetensors, ".safetensors"),
    "png": Format("", _read_folder, _write_folder, "a folder of <index>.png"),
}
