"""Data sets as one shape, their files, and files of poisoned images."""

from .poison_files import export, read_poison
from .sources import SOURCES, load, resized
from .split import Split, classes, default_target, subset

__all__ = ["SOURCES", "Split", "classes", "default_target", "export", "load", "read_poison", "resized", "subset"]
