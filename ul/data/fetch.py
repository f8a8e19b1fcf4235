"""Official archives of CIFAR and MNIST: resumable downloads, checked by SHA-256, unpacked within their folder."""

import contextlib
import errno
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ..base.errors import InputError, choose

CHUNK = 1 << 18  # bytes read at once
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)  # of what an archive may hold
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # not the archive's fault
SECONDS = 60  # without an answer
AGAIN = "run the same command again, it goes on where it stopped"


@dataclass(frozen=True)
class File:
    """One file of a server. size: bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Archive:
    """What a data set is made of. folder: what appears below the root; of a tar it is the one at its top."""

    server: str
    folder: str
    files: tuple[File, ...]
    packed: bool  # a tar; else the files are kept as they are


KRIZ = "https://www.cs.toronto.edu/~kriz"
CIFAR10 = File("cifar-10-binary.tar.gz", 170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd")
CIFAR100 = File(
    "cifar-100-binary.tar.gz", 168513733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
)
MNIST = (
    File("train-images-idx3-ubyte.gz", 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    File("train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    File("t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    File("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
)
ARCHIVES: dict[str, Archive] = {
    "cifar10": Archive(KRIZ, "cifar-10-batches-bin", (CIFAR10,), packed=True),
    "cifar100": Archive(KRIZ, "cifar-100-binary", (CIFAR100,), packed=True),
    "mnist": Archive("https://storage.googleapis.com/cvdf-datasets/mnist", "mnist", MNIST, packed=False),
}


def fetch(name: str, root: Path, *, progress: Callable[[int], None] = lambda count: None) -> Path:
    """Download, check and unpack a data set below `root`; the folder that then holds it.

    Half a download stays below `root/.fetch/<name>` and is continued by the next call. progress: called with numbers of
    new bytes. Raises InputError for unknown names, a folder that exists, a server that fails and contents that differ.
    """
    archive = ARCHIVES[choose(name, ARCHIVES, "data set to fetch")]
    out = root / archive.folder
    if out.exists():
        raise InputError(f"{out} exists; remove it, or name another --root")
    store = root / ".fetch" / name
    store.mkdir(parents=True, exist_ok=True)
    paths = [download(f"{archive.server}/{file.name}", store / file.name, file, progress) for file in archive.files]
    with tempfile.TemporaryDirectory(dir=store) as folder:
        made = _unpacked(paths[0], Path(folder), archive.folder) if archive.packed else _gathered(paths, Path(folder))
        os.replace(made, out)
    shutil.rmtree(store)
    with contextlib.suppress(OSError):  # another data set's download is under way
        store.parent.rmdir()
    return out


def download(url: str, path: Path, file: File, progress: Callable[[int], None]) -> Path:
    """A whole, checked file at `path`, what is there already included."""
    if not path.exists():
        part = path.with_name(f"{path.name}.part")
        _continue(url, part, file.size, progress)
        found = hashlib.sha256(part.read_bytes()).hexdigest()
        if found != file.sha256:
            part.unlink()
            raise InputError(f"{url}: SHA-256 is {found}, not {file.sha256}; fetch it again, or from another network")
        os.replace(part, path)
    return path


def _continue(url: str, part: Path, size: int, progress: Callable[[int], None]) -> None:
    """Append what is missing; a server that cannot continue sends all of it again."""
    have = part.stat().st_size if part.exists() else 0
    if have >= size:
        return
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urlopen(request, timeout=SECONDS) as answer:
            goes_on = answer.status == 206
            progress(have if goes_on else 0)
            with part.open("ab" if goes_on else "wb") as out:
                while chunk := answer.read(CHUNK):
                    out.write(chunk)
                    progress(len(chunk))
    except HTTPError as error:
        raise InputError(f"{url}: the server says {error.code} {error.reason}; fetch it later, or by hand") from None
    except (URLError, HTTPException, OSError) as error:
        raise InputError(f"{url}: {getattr(error, 'reason', error)}; {AGAIN}") from None
    if (found := part.stat().st_size) < size:
        raise InputError(f"{url}: the connection ended after {found} of {size} bytes; {AGAIN}")


def _unpacked(path: Path, folder: Path, top: str) -> Path:
    """The folder at the top of a gzipped tar of plain files and folders."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            tar.extractall(folder, filter=_plain)
    except Exception as error:  # damaged archives raise many types
        if getattr(error, "errno", None) in FULL:
            raise
        raise InputError(f"{path}: {' '.join(str(error).split())[:200]}; remove it and fetch it again") from None
    if not (folder / top).is_dir():
        raise InputError(f"{path}: holds no folder {top}; remove it and fetch it again")
    return folder / top


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Refuse links, devices and names that are absolute or climb; PEP 706 sees to owners and modes."""
    name = PurePosixPath(member.name)
    if member.type not in PLAIN or name.is_absolute() or ".." in name.parts:
        raise tarfile.TarError(f"{member.name[:80]!r} is a link, a device, or outside the archive's folder")
    return tarfile.data_filter(member, folder)


def _gathered(paths: list[Path], folder: Path) -> Path:
    """The files in a folder of their own."""
    made = folder / "files"
    made.mkdir()
    for path in paths:
        shutil.copy(path, made / path.name)
    return made
