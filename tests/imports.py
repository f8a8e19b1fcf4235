"""Where the modules of `ul` lie; what they import is read by `ul.base.closure`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def module_file(name: str) -> Path | None:
    """`data.split` -> ul/data/split.py, `data` -> ul/data/__init__.py; None if there is no such module."""
    path = ROOT / "ul" / Path(*name.split("."))
    found = [p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()]
    return found[0] if found else None


def modules() -> list[str]:
    """All module names below `ul`, packages by their own name; without the package `ul` itself."""
    files = [p.relative_to(ROOT / "ul") for p in (ROOT / "ul").rglob("*.py")]
    names = [".".join(f.with_suffix("").parts).removesuffix("__init__").strip(".") for f in files]
    return sorted(filter(None, names))
