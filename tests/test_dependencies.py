"""The lock is whole and exact, and every package in it has a licence that we allow or decided upon."""

import ast
import csv
import re
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement

from tests import licences
from tests.imports import ROOT

# Come with torch's CUDA build alone, which pins them itself; NVIDIA's own terms, none of them is needed on a CPU.
CUDA = re.compile(r"(nvidia|cuda|triton)\b")


def bill() -> list[dict[str, str]]:
    with licences.TABLE.open(newline="") as f:
        return list(csv.DictReader(f))


def test_the_lock_pins_one_exact_version_of_each_package_in_order():
    assert all(re.fullmatch(r"[A-Za-z0-9][\w.-]*==\d[\w.]*", line) for line in licences.lines())
    names = [licences.normal(line.split("==")[0]) for line in licences.lines()]
    assert names == sorted(set(names))


def needs(name: str) -> set[str]:
    """What an installed package needs here without its extras; nothing if it is not installed."""
    try:
        wanted = map(Requirement, distribution(name).requires or [])
    except PackageNotFoundError:
        return set()
    return {licences.normal(r.name) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})}


def test_what_locked_packages_need_is_locked():
    locked = {licences.normal(name) for name in licences.pins()}
    found = {name: {other for other in needs(name) - locked if not CUDA.match(other)} for name in locked}
    assert {name: missing for name, missing in found.items() if missing} == {}


def test_the_bill_of_materials_lists_the_lock():
    assert {row["package"]: row["version"] for row in bill()} == licences.pins(), "run `make licences`"


def test_every_licence_is_allowed_or_decided():
    assert [row for row in bill() if licences.refused(row)] == []
    assert set(licences.DECIDED) <= {licences.normal(row["package"]) for row in bill()}, "a decision about nothing"
    assert all(row["decision"] for row in bill() if licences.normal(row["package"]) in licences.DECIDED)


@pytest.mark.parametrize(
    "licence",
    ["GPL-3.0-only", "LGPLv3", "MIT AND AGPL-3.0", "UNKNOWN", "", "MPL-2.0 AND (GPL-2.0 OR MIT)", "Proprietary"],
)
def test_other_licences_are_refused(licence):
    row = {"package": "some", "licence": licence}
    assert licences.refused(row) and not licences.refused(row | {"licence": "MPL-2.0 AND (Apache-2.0 OR MIT)"})


def test_a_decision_ends_when_the_licence_changes():
    assert licences.refused({"package": "pygit2", "licence": "GPL-3.0-only"})


def test_the_bill_says_what_the_installed_packages_say():
    found, pinned = licences.installed(), licences.pins()
    same = {n: v for n, v in pinned.items() if found.get(licences.normal(n), {}).get("Version", "").split("+")[0] == v}
    assert len(same) > 0.9 * len(pinned), "this environment is not the lock's"
    assert [row for row in bill() if row["package"] in same] == licences.rows(same, found), "run `make licences`"


def test_packages_under_the_gpl_are_never_imported():
    sources = [ast.parse(path.read_text()) for path in (ROOT / "ul").rglob("*.py")]
    nodes = [node for source in sources for node in ast.walk(source)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    copyleft = {name for name, (licence, _) in licences.DECIDED.items() if re.search("GPL|General Public", licence)}
    assert {"pygit2", "asyncssh"} < copyleft and not {name.partition(".")[0] for name in names} & copyleft
