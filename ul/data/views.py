"""Data sets of views in Taskonomy's layout: `rooms`, and the user's download of Taskonomy itself."""

from collections.abc import Collection, Mapping
from pathlib import Path

from ..base.errors import InputError, existing
from . import buildings, rooms, taskonomy
from .split import PULL, Load, Split, Targets, subset

CLASSES = {"class_object": taskonomy.Kept(taskonomy.OBJECTS), "class_scene": taskonomy.Kept(taskonomy.SCENES)}
ROOMS_CLASSES = {
    "class_object": taskonomy.Kept(list(rooms.OBJECTS.values()), closed=True),
    "class_scene": taskonomy.Kept(list(rooms.SCENES.values()), closed=True),
}


def reader(
    name: str,
    folder: str,
    places: Mapping[str, Collection[str]],
    classes: dict[str, taskonomy.Kept],
    always: tuple[str, ...] = (),
) -> Load:
    """A loader of views; places: buildings by part; always: domains that every view of this data set has."""

    def read(root: Path, part: str, limit: int | None, targets: Targets, size: int | None) -> Split:
        at = existing(root / folder, PULL)
        domains = list(dict.fromkeys(["rgb", *([*always, *taskonomy.domains_in(at)] if targets is None else targets)]))
        if always and (missing := taskonomy.incomplete(at, domains)):
            raise InputError(f"{missing[0]} is missing ({len(missing)} files in all); {PULL}")
        views = list(taskonomy.index(at, domains, places.get(part)).items())
        found = taskonomy.read(dict(views[i] for i in subset(len(views), limit)), size=size, classes=classes)
        return Split(found.pop("rgb"), found, f"{name}/{part}")

    return read


def _taskonomy(name: str, split: str) -> Load:
    """The user's download below `taskonomy/`, parted by one of Taskonomy's own splits."""
    return reader(name, "taskonomy", buildings.SPLITS[split], CLASSES)


rendered = reader("rooms", "rooms", rooms.BUILDINGS, ROOMS_CLASSES, rooms.DOMAINS)
tiny, medium = _taskonomy("taskonomy", "tiny"), _taskonomy("taskonomy_medium", "medium")


def stored(root: Path) -> list[str]:
    """Domains that the user's download holds. Raises InputError if there is none."""
    folder = existing(root / "taskonomy", "name the folder that holds it with -p root")
    if not (found := taskonomy.domains_in(folder)):
        raise InputError(f"{folder} holds no domain of Taskonomy; fetch rgb and the tasks' domains into it")
    return found
