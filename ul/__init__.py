"""`ul`: how far are we from true unlearnability? Poisons, SAL, UD and the pipeline that measures them."""

from importlib import import_module
from typing import Any

SHORT = {"sal": "sharpness.sal", "ud": "base.ud", "train": "training.victim"}  # `from ul import sal, ud, train`


def __getattr__(name: str) -> Any:
    """Modules that are used on their own, imported when they are asked for."""
    if name not in SHORT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f".{SHORT[name]}", __name__)
