"""`python -m ul fetch` against a local file server: whole files, resumption, damage, refusals."""

import gzip
import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from ul import data
from ul.base.errors import InputError
from ul.data import fetch, mnist

RECORDS = np.random.default_rng(0).integers(0, 256, (3, 3073), dtype=np.uint8)
RECORDS[:, 0] = [0, 9, 3]  # labels


def tar_of(files, links=(), kind=tarfile.SYMTYPE):
    """A gzipped tar of files, by name, and of links (or devices) with what they point to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name, target in links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            tar.addfile(entry)
    return buffer.getvalue()


NAMES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
GOOD = tar_of({f"cifar-10-batches-bin/{name}": RECORDS.tobytes() for name in NAMES})


class Server:
    """Serves `files` by path; ranges: whether it can continue; most: it hangs up after that many bytes."""

    def __init__(self):
        self.files, self.ranges, self.most, self.asked = {}, True, None, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        content, wanted = self.files.get(request.path), request.headers.get("Range")
        self.asked.append(wanted)
        if content is None:
            return request.send_error(404)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start:][: self.most])
        return None


@pytest.fixture
def server():
    found = Server()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def cifar(server, monkeypatch):
    """The server has CIFAR-10's archive; the table knows its sum."""

    def serve(content, sha256=None):
        server.files["/cifar.tar.gz"] = content
        file = fetch.File("cifar.tar.gz", len(content), sha256 or hashlib.sha256(content).hexdigest())
        archive = fetch.Archive(server.url, "cifar-10-batches-bin", (file,), packed=True)
        monkeypatch.setitem(fetch.ARCHIVES, "cifar10", archive)

    serve(GOOD)
    return serve


def test_what_was_fetched_can_be_loaded(tmp_path, cifar):
    seen = []
    out = fetch.fetch("cifar10", tmp_path, progress=seen.append)
    assert out == tmp_path / "cifar-10-batches-bin" and sum(seen) == len(GOOD)
    assert len(data.load("cifar10", "train", root=tmp_path)) == 15
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-batches-bin"]


def test_mnist_keeps_its_files(tmp_path, server, monkeypatch):
    images, labels = np.zeros((4, 28, 28), np.uint8), np.arange(4, dtype=np.uint8)
    files = []
    for name, array in [("t10k-images-idx3-ubyte.gz", images), ("t10k-labels-idx1-ubyte.gz", labels)]:
        mnist.write_idx(array, tmp_path / "made" / name)
        content = (tmp_path / "made" / name).read_bytes()
        assert gzip.decompress(content)
        server.files[f"/{name}"] = content
        files.append(fetch.File(name, len(content), hashlib.sha256(content).hexdigest()))
    monkeypatch.setitem(fetch.ARCHIVES, "mnist", fetch.Archive(server.url, "mnist", tuple(files), packed=False))
    fetch.fetch("mnist", tmp_path / "root")
    assert data.load("mnist", "test", root=tmp_path / "root").targets["label"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("ranges", [True, False])
def test_half_a_download_is_continued(tmp_path, server, cifar, ranges):
    server.most, server.ranges = 1000, ranges
    with pytest.raises(InputError, match=r"1000 of \d+ bytes|IncompleteRead; run the same command again"):
        fetch.fetch("cifar10", tmp_path)
    assert not (tmp_path / "cifar-10-batches-bin").exists()
    server.most, seen = None, []
    fetch.fetch("cifar10", tmp_path, progress=seen.append)
    assert server.asked == [None, "bytes=1000-"] and sum(seen) == len(GOOD)
    assert len(data.load("cifar10", "test", root=tmp_path)) == 3


def test_other_contents_are_refused_and_removed(tmp_path, cifar):
    cifar(GOOD, sha256="0" * 64)
    with pytest.raises(InputError, match=r"SHA-256 is [0-9a-f]{64}, not 0{64}; fetch it again"):
        fetch.fetch("cifar10", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_server_without_the_file(tmp_path, server, cifar):
    server.files.clear()
    with pytest.raises(InputError, match="the server says 404"):
        fetch.fetch("cifar10", tmp_path)


def test_no_server(tmp_path, server, cifar):
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(InputError, match="run the same command again"):
        fetch.fetch("cifar10", tmp_path)


TOP = "cifar-10-batches-bin"
BAD_NAMES = ("../outside.bin", "/tmp/ul-outside.bin", f"{TOP}/../../outside.bin", f"/{TOP}/a.bin", f"{TOP}/a/../../..")
BAD_LINKS = [
    *[(kind, TOP, target) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) for target in ("/etc", "..", f"{TOP}/a.bin")],
    *[(kind, f"{TOP}/b", f"{TOP}/a.bin") for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)],
    *[(kind, f"{TOP}/b", "") for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE)],
]
GOOD_FILE = {f"{TOP}/a.bin": b"x"}
BAD_ARCHIVES = {
    **{f"name {name}": tar_of(GOOD_FILE | {name: b"x"}) for name in BAD_NAMES},
    **{f"kind {kind} {name} {to}": tar_of(GOOD_FILE, [(name, to)], kind) for kind, name, to in BAD_LINKS},
    "through a link": tar_of({f"{TOP}/b/a.bin": b"x"}, [(f"{TOP}/b", "/tmp")]),
    "other folder": tar_of({"other/a.bin": b"x"}),
    "a file for a folder": tar_of({TOP: b"x", f"{TOP}/a.bin": b"x"}),
    "cut": GOOD[: len(GOOD) // 2],
    "no tar": b"no archive at all",
    "not gzipped": gzip.decompress(GOOD),
}


@pytest.mark.parametrize("content", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_archives_that_are_not_what_they_should_be(tmp_path, cifar, content):
    """Links are refused even where they stay inside: no official archive has one."""
    cifar(content)
    root = tmp_path / "root"
    with pytest.raises(InputError, match="remove it and fetch it again") as caught:
        fetch.fetch("cifar10", root)
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in root.iterdir()] == [".fetch"] and not (tmp_path / "outside.bin").exists()
    assert [path.name for path in (root / ".fetch" / "cifar10").iterdir()] == ["cifar.tar.gz"]
    assert not any((folder / "ul-outside.bin").exists() for folder in (tmp_path, tmp_path.parent, Path("/tmp")))


def test_what_exists_is_left_alone(tmp_path, server, cifar):
    (tmp_path / "cifar-10-batches-bin").mkdir()
    with pytest.raises(InputError, match="exists; remove it, or name another --root"):
        fetch.fetch("cifar10", tmp_path)
    assert not server.asked


def test_unknown_names(tmp_path):
    with pytest.raises(InputError, match=r"'svhn'.*cifar10"):
        fetch.fetch("svhn", tmp_path)
