"""`make licences`: the bill of materials of requirements.lock, by pip-licenses -> results/bench/licences.csv."""

import csv
import io
import json
import re
import subprocess
import sys

from tests.imports import ROOT
from ul.base import records

TABLE = ROOT / "results" / "bench" / "licences.csv"
COLUMNS = ("package", "version", "licence", "decision")
# What may be used without a thought: permissive, or (MPL) copyleft that ends at the file. Their usual spellings.
ALLOWED = {
    "0BSD", "Apache 2.0", "Apache License 2.0", "Apache License, Version 2.0", "Apache Software License", "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception", "BSD", "BSD 3-Clause", "3-Clause BSD License", "BSD License", "BSD-2-Clause",
    "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "ISC License (ISCL)", "MIT", "MIT License", "MIT-0", "MIT-CMU",
    "MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)", "PSF-2.0", "Python Software Foundation License", "Zlib",
    "Zope Public License",
}  # fmt: skip
# The others, one by one: package -> (what it says, as pip-licenses gives it, and why it may stay).
GIT = "DVC's git layer: a program beside ours, never imported here nor shipped with it"
DECIDED = {
    "asyncssh": ("EPL-2.0 OR GPL-2.0-or-later", f"taken under EPL-2.0; {GIT}"),
    "docutils": ("BSD License; GNU General Public License (GPL); Public Domain",
                 "what Sphinx uses of it is in the public domain or BSD; the GPL is that of an Emacs mode"),
    "dulwich": ("Apache-2.0 OR GPL-2.0-or-later", "taken under Apache-2.0"),
    "embreex": ("Copyright (c) 2015, Anthony Scopatz", "its text, read by hand, is BSD-2-Clause"),
    "grandalf": ("GNU General Public License v2 (GPLv2)", "offered as `GPLv2 | EPLv1`, taken under EPL-1.0; draws "
                 "DVC's graphs: a program beside ours, never imported here nor shipped with it"),
    "pygit2": ("GPLv2 with linking exception", f"the exception lets any program link with it; {GIT}"),
}  # fmt: skip


def normal(name: str) -> str:
    """A package's name as PyPI compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lines() -> list[str]:
    """The lines of the lock that are neither comment nor option."""
    return [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] not in "#-"]


def pins() -> dict[str, str]:
    """Package, as the lock spells it -> version."""
    return dict(line.split("==") for line in lines())


def installed() -> dict[str, dict[str, str]]:
    """What pip-licenses says of the packages in this environment, by their normal names."""
    command = [sys.executable, "-m", "piplicenses", "--with-system", "--from=mixed", "--format=json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {normal(row["Name"]): row for row in found}


def rows(names: dict[str, str], found: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """A row a locked package; of a licence given as its whole text the first line."""
    out = []
    for name, version in names.items():
        licence = found[normal(name)]["License"].strip().splitlines()[0]
        decision = DECIDED[normal(name)][1] if normal(name) in DECIDED else ""
        out.append(dict(zip(COLUMNS, (name, version, licence, decision), strict=True)))
    return out


def refused(row: dict[str, str]) -> bool:
    """Whether a row's licence is neither allowed in all its parts nor decided as it stands."""
    if normal(row["package"]) in DECIDED:
        return row["licence"] != DECIDED[normal(row["package"])][0]
    parts = re.split(r" AND \(?| OR |\) AND |; ", row["licence"])
    return any(part not in ALLOWED and part.removesuffix(")") not in ALLOWED for part in parts)


def main() -> None:
    """Write the table; fail if a package's licence is not allowed."""
    table, buffer = rows(pins(), installed()), io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    records.write_text(TABLE, buffer.getvalue())
    if bad := [f"{row['package']} ({row['licence']})" for row in table if refused(row)]:
        sys.exit(f"error: not an allowed licence: {', '.join(bad)}; remove it, or decide in tests/licences.py")
    print(f"{TABLE.relative_to(ROOT)}: {len(table)} packages, {len(DECIDED)} of them decided one by one")


if __name__ == "__main__":
    main()
