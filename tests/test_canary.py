"""Whether this machine computes the committed results bit by bit; if not, from where on (see `tests.canary`)."""

import json
import os
import subprocess
import sys

import pytest

from tests import canary
from tests.imports import ROOT
from ul.base import arithmetic, records

PACKAGES = {name: found for name, found in records.versions().items() if name != "python"}
COMMITTED = json.loads(canary.FILE.read_text())


@pytest.mark.skipif(not arithmetic.able(), reason="numbers are promised for x86-64 with AVX2")
@pytest.mark.skipif(COMMITTED["versions"] != PACKAGES, reason="other versions compute otherwise")
def test_this_machine_computes_the_committed_numbers():
    found = dict(canary.digests())
    assert list(found) == list(COMMITTED["digests"])
    apart = [what for what, digest in found.items() if digest != COMMITTED["digests"][what]]
    here = canary.processor()
    place = f"{here} ({arithmetic.chosen()}), committed by {COMMITTED['processor']}"
    print(f"{place}: {len(found) - len(apart)} of {len(found)} equal")
    if apart and here != COMMITTED["processor"]:  # until a second kind of processor has been seen
        pytest.xfail(f"{place}: {len(apart)} of {len(found)} differ, the first is {apart[0]}")
    assert not apart, f"{place}: {len(apart)} of {len(found)} differ, the first is {apart[0]}"


ASKED = """
import os, sys
{first}
from ul.base import arithmetic
arithmetic.fix()
import torch
print(torch.backends.cpu.get_cpu_capability(), arithmetic.chosen())
"""


def asked(first: str = "", **environment: str) -> str:
    """What a fresh process says of itself."""
    bare = {k: v for k, v in os.environ.items() if k not in {**arithmetic.INSTRUCTIONS, **arithmetic.NUMPY}}
    done = subprocess.run(
        [sys.executable, "-c", ASKED.format(first=first)], cwd=ROOT, env=bare | environment, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not arithmetic.able(), reason="other processors have none of these instructions")
def test_it_is_fixed_before_torch_and_left_alone_after():
    assert asked() == "AVX2 avx2, avx2, compatible, haswell"
    assert asked("import torch").endswith(" as the processor has it"), "too late: it would be said and not be true"


def test_who_uses_the_package_is_left_alone():
    done = subprocess.run(
        [sys.executable, "-c", "import os; b = dict(os.environ); from ul import sal, ud; print(b == dict(os.environ))"],
        cwd=ROOT, text=True, capture_output=True,
    )  # fmt: skip
    assert done.stdout.split() == ["True"], done.stderr


def test_every_way_in_fixes_it():
    """Commands, the notebooks' first cell, tests and bench; workers are started by these."""
    for first in ("import ul.__main__", "import tests", "from ul.base import parameters; parameters.check(SPACE, 'x')"):
        source = f"import os, sys\nSPACE = {{'__annotations__': {{}}}}\n{first}\nprint('torch' in sys.modules)"
        bare = {k: v for k, v in os.environ.items() if k not in arithmetic.INSTRUCTIONS}
        source += "\nfrom ul.base import arithmetic; print(arithmetic.chosen())"
        done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, env=bare, text=True, capture_output=True)
        assert done.stdout.splitlines()[-1] != "as the processor has it" or not arithmetic.able(), (first, done.stderr)


@pytest.mark.parametrize(("machine", "flags", "able"), [
    ("x86_64", "fma avx2", True), ("x86_64", "sse2 avx", False), ("x86_64", "", True), ("aarch64", "asimd", False),
    ("AMD64", "", True),
])  # fmt: skip
def test_other_processors_are_left_as_they_are(monkeypatch, machine, flags, able):
    monkeypatch.setattr(arithmetic.platform, "machine", lambda: machine)
    monkeypatch.setattr(arithmetic, "_said", lambda what: flags)
    assert arithmetic.able() is able
    assert set(arithmetic.INSTRUCTIONS).isdisjoint(arithmetic.settings()) is not able
