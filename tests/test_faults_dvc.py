"""DVC under faults, in a small repository: two runs at once, a damaged cache, a damaged remote."""

import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.imports import ROOT
from tests.test_pipeline import command, environment
from tests.test_pipeline import dvc as dvc_in

pytestmark = pytest.mark.slow
dvc = partial(dvc_in, timeout=120)  # seconds: one that waits for a lock fails
PIPELINE = """
stages:
  one: {cmd: "sleep ${wait} && cp data/in.txt build/one.txt", deps: [data/in.txt], outs: [build/one.txt]}
  two: {cmd: cat build/one.txt build/one.txt > two.txt, deps: [build/one.txt], outs: [two.txt: {cache: false}]}
"""


@pytest.fixture
def repo(tmp_path) -> Path:
    """One stage with a cached output, one without, and data in a remote that verifies, as in this repository."""
    repo = tmp_path / "repo"
    (repo / "data").mkdir(parents=True)
    (repo / "build").mkdir()
    (repo / "data" / "in.txt").write_text("good\n")
    (repo / "dvc.yaml").write_text(PIPELINE)
    (repo / "params.yaml").write_text("wait: 0\n")
    subprocess.run(["git", "init", "-q"], cwd=repo, check=True)
    assert dvc(repo, "init", "-q").returncode == 0
    shutil.copy(ROOT / ".dvc" / "config", repo / ".dvc" / "config")
    for words in (("add", "-q", "data"), ("repro", "-q"), ("push", "-q", "data.dvc")):
        done = dvc(repo, *words)
        assert done.returncode == 0, done.stderr
    return repo


def damage(folder: Path) -> Path:
    """Another content in the stored file that holds "good", with its mode as it was."""
    (path,) = [p for p in folder.rglob("*") if p.is_file() and p.read_bytes() == b"good\n"]
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_text("evil\n")
    path.chmod(mode)
    return path


def verify(repo: Path) -> str:
    """What `make verify` says in a repository that needs no environment."""
    words = ["make", "-s", "-f", str(ROOT / "Makefile"), "-o", "setup", "verify"]
    # Nothing from a `make` that runs these tests.
    kept = {k: v for k, v in environment(repo).items() if not k.startswith(("MAKE", "MFLAGS", "PROFILE"))}
    done = subprocess.run(words, cwd=repo, env=kept, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_repro_is_refused_in_one_line_and_the_first_is_right(repo):
    (repo / "params.yaml").write_text("wait: 6\n")
    (repo / "dvc.yaml").write_text(PIPELINE.replace("one.txt build/one.txt >", "one.txt build/one.txt | sort >"))
    first = subprocess.Popen(command("repro", "-f"), cwd=repo, stdout=subprocess.PIPE, text=True)
    for line in first.stdout:
        if line.startswith("> sleep"):
            break
    second = dvc(repo, "repro", "-f")
    assert second.returncode != 0 and "is busy, it is being blocked by" in second.stderr
    assert f"(PID {first.pid})" in second.stderr and "Traceback" not in second.stderr
    first.stdout.read()
    assert first.wait(120) == 0 and (repo / "two.txt").read_text() == "good\ngood\n"
    assert "up to date" in dvc(repo, "repro").stdout


def test_a_damaged_cache_file_is_found_by_make_verify_and_made_again(repo):
    """DVC trusts read-only files in its cache: by itself it takes the damaged one, without a word."""
    stored = damage(repo / ".dvc" / "cache" / "files")
    (repo / "build" / "one.txt").unlink()
    assert dvc(repo, "checkout").returncode == 0 and (repo / "build" / "one.txt").read_text() == "evil\n"
    told = verify(repo)
    assert "not in cache:       build/one.txt" in told and "modified:           build/one.txt" in told
    assert not stored.exists(), "DVC itself removes what does not fit its name"
    assert dvc(repo, "pull", "-q", "data.dvc").returncode == 0 and dvc(repo, "repro").returncode == 0
    assert (repo / "build" / "one.txt").read_text() == "good\n" and (repo / "two.txt").read_text() == "good\ngood\n"
    assert "up to date" in verify(repo)


def test_damaged_data_is_found_by_make_verify_and_fetched_again(repo):
    damage(repo / ".dvc" / "cache" / "files")
    shutil.rmtree(repo / "data")
    assert dvc(repo, "checkout", "data.dvc").returncode == 0 and (repo / "data" / "in.txt").read_text() == "evil\n"
    assert re.search(r"data\.dvc:\n\s+changed outs:\n\s+(modified|not in cache):\s+data", verify(repo))
    assert dvc(repo, "pull", "-f", "data.dvc").returncode == 0
    assert (repo / "data" / "in.txt").read_text() == "good\n"


def test_make_verify_changes_nothing_where_there_is_no_cache_no_data_and_no_build(repo):
    for folder in (".dvc/cache", "data", "build"):
        shutil.rmtree(repo / folder)
    (repo / ".venv").mkdir()
    (repo / ".venv" / "read.txt").write_text("only\n")
    (repo / ".venv" / "read.txt").chmod(0o444)
    files = [p for p in repo.rglob("*") if p.is_file() and p.parts[len(repo.parts)] != ".dvc"]
    before = {p: (p.stat().st_mode, p.stat().st_mtime_ns) for p in files}
    assert {".git", ".venv", ".dvc-store"} < {p.parts[len(repo.parts)] for p in files}
    assert "build/one.txt" in verify(repo)
    assert {p: (p.stat().st_mode, p.stat().st_mtime_ns) for p in files} == before


def test_a_damaged_store_is_refused_by_pull(repo):
    damage(repo / ".dvc-store")
    shutil.rmtree(repo / "data")
    shutil.rmtree(repo / ".dvc" / "cache")
    pulled = dvc(repo, "pull", "data.dvc")
    assert pulled.returncode != 0 and not (repo / "data" / "in.txt").exists()
    assert re.search(r"ERROR: .*(corrupted|failed|not)", pulled.stderr) and "Traceback" not in pulled.stderr
