"""A profile's runs in the order in which they are worth most, until a deadline, and a pack that goes on elsewhere.

For a machine that is lent for minutes: what is finished is kept, the pack carries it, and stages read it.
"""

import io
import json
import lzma
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..base import records
from ..base.errors import InputError, at_least
from ..studies import conditions, cross_task, images, poison
from ..studies.executor import OutOfTime
from . import notebooks

Step = tuple[str, Callable[..., object]]  # what it is, and what runs it: takes options of `executor.run_all`
MOST = 16 * 2**20  # bytes of a pack
RUN = re.compile(r"[0-9a-f]{16}\.json")  # a kept run
DIGESTS = "poisons.json"  # in a pack: digest of each poison that was made, by file name
SOURCES = Path(__file__).resolve().parents[2] / "notebooks"  # their defaults complete a profile's parameters


def steps(parameters: Mapping[str, Any], *, poisons: Path, digests: dict[str, str]) -> Iterator[Step]:
    """Every seed of the plain settings with its poisons, then of those with a defense or another network, then of the
    cross-task studies.

    parameters: of a profile, as its params.yaml has them. poisons: folder that poisons are written to. digests: of
    poisons by file name; filled, and what is made anew must have the digest that is there (InputError otherwise).
    """
    grid, settings = parameters["grid"], parameters["settings"]
    rest = [*grid["defended"], *grid["architectures"], *grid.get("lengths", [])]
    for names in (grid["settings"], rest):
        for seed in _seeds(settings[name]["with"] for name in names):
            for name in names:
                own = _complete("04_sal", settings[name]["with"])
                if seed in conditions.seeds_of(own):
                    made = parameters["poisons"][own["dataset"]]["with"]
                    yield f"poisons of {own['dataset']}, seed {seed}", _poisons(made, seed, poisons, digests)
                    yield f"{name}, seed {seed}", _setting(own, seed, poisons)
    for row in parameters["cross_tasks"].values():
        own = _complete("02_cross_task", row["with"])
        for seed in conditions.seeds_of(own):
            made = parameters["poisons"][own["dataset"]]["with"]
            yield f"poisons of {own['dataset']}, seed {seed}", _poisons(made, seed, poisons, digests)
            yield f"{own['name']}, seed {seed}", _tasks(own, seed, poisons)


def work(planned: Iterator[Step], *, until: float, **options: Any) -> Iterator[str]:
    """Take step after step until a moment (`time.time()`); what each came to, a line a step, as it is known.

    options: of `executor.run_all`. Nothing is begun after `until`, and the first step with something left is the last.
    A step that fails is named, and those after it go on.
    """
    for name, run in planned:
        try:
            run(until=until, **options)
        except OutOfTime as error:
            yield f"{name}: stopped ({error})"
            return
        except InputError as error:
            yield f"{name}: failed ({error})"
        else:
            yield f"{name}: finished"


def _seeds(settings: Iterator[Mapping[str, Any]]) -> list[int]:
    return sorted({seed for own in settings for seed in conditions.seeds_of(own)})


def _complete(notebook: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return notebooks.defaults(notebooks.read(SOURCES / f"{notebook}.ipynb")) | dict(given)


def _of_seed(own: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {**own, "first_seed": seed, "seeds": 1}


def _poisons(given: Mapping[str, Any], seed: int, folder: Path, digests: dict[str, str]) -> Callable[..., object]:
    own = _of_seed(_complete("01_poison", given), seed) | {"victims": 0}

    def run(**options: Any) -> None:
        out, methods = folder / own["dataset"], [own["method"], *own["others"]]
        names = [images.file_name(own["dataset"], method, seed) for method in methods]
        if all(name in digests and (out / name).exists() for name in names):
            return
        found = poison.study(own, methods, out=str(out), **options)["poisons"]
        for name, digest in zip(names, (one["draws"][0]["digest"] for one in found), strict=True):
            if digests.setdefault(name, digest) != digest:
                (out / name).unlink()  # runs on it would be others than those in the pack
                raise InputError(f"{name} is {digest} here and was {digests[name]} in the pack; start without the pack")

    return run


def _setting(own: Mapping[str, Any], seed: int, poisons: Path) -> Callable[..., object]:
    def run(**options: Any) -> None:
        methods = [own["method"], *own["others"]]
        chosen = conditions.several(_of_seed(own, seed), methods, poisons=str(poisons))
        conditions.run_all(chosen, **options)

    return run


def _tasks(own: Mapping[str, Any], seed: int, poisons: Path) -> Callable[..., object]:
    def run(**options: Any) -> None:
        config = _of_seed(own, seed) | {"poisons": str(poisons)}
        chosen = [*cross_task.planned(config), *cross_task.variants(config)]
        cross_task.run_all(chosen, views=cross_task.VIEWS, **options)

    return run


# ---- The pack ------------------------------------------------------------------------------------------------------


def pack(kept: Path, digests: Mapping[str, str], path: Path) -> int:
    """Kept runs and the poisons' digests as one .tar.xz; how many runs. Poisons and other arrays stay behind.

    Raises InputError if it is larger than MOST.
    """
    runs = sorted(file for file in kept.glob("*.json") if RUN.fullmatch(file.name) and not _has_arrays(file))
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as tar:
        for name, text in [(DIGESTS, json.dumps(digests, indent=1, sort_keys=True).encode())] + [
            (file.name, file.read_bytes()) for file in runs
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    if len(content.getvalue()) > MOST:
        size = f"{len(content.getvalue()):,} bytes are more than {MOST:,}"
        raise InputError(f"{path}: {size}; move kept runs away that were packed before")
    records.write_bytes(path, content.getvalue())
    return len(runs)


def _has_arrays(file: Path) -> bool:
    return file.with_suffix(".safetensors").exists()


def unpack(path: Path, kept: Path) -> dict[str, str]:
    """Put a pack's runs where kept runs lie, without touching those that are there; the poisons' digests.

    Raises InputError for what is no pack: another archive, other names, links, more than MOST bytes a file.
    """
    try:
        with tarfile.open(path, "r:xz") as tar:
            members = dict(_members(tar))
        digests = json.loads(members.pop(DIGESTS))
        if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
            raise ValueError(f"{DIGESTS} holds no digests")
    except (OSError, EOFError, ValueError, KeyError, RecursionError, tarfile.TarError, lzma.LZMAError) as error:
        raise InputError(f"{path}: no pack of runs ({records.reason(error)}); pack it again, or remove it") from None
    for name, content in members.items():
        if not (kept / name).exists():
            records.write_bytes(kept / name, content)
    return digests


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        if not member.isreg() or member.size > MOST or not (RUN.fullmatch(member.name) or member.name == DIGESTS):
            raise ValueError(f"{member.name[:80]!r} is no kept run")
        content = tar.extractfile(member)
        assert content is not None  # a regular file has content
        yield member.name, content.read()


# ---- The command ---------------------------------------------------------------------------------------------------


def chunk(
    parameters: Path, *, minutes: float, longest: float, packed: Path | None, jobs: int | None, build: Path
) -> Iterator[str]:
    """One sitting: go on from the pack, work, pack again; the lines of `work`, packed anew after each.

    minutes: of the sitting; longest: seconds that one run may take, so long before its end nothing is begun. build:
    folder of kept runs (`runs`) and poisons (`poisons`). Raises InputError.
    """
    start = time.time()
    until = start + 60 * at_least(minutes, 0, "minutes") - at_least(longest, 0, "longest")
    kept = build / "runs"
    digests: dict[str, str] = {}
    if packed is not None and packed.exists():
        digests = unpack(packed, kept)
    planned = steps(notebooks.parameters_from([f"{parameters}:"], []), poisons=build / "poisons", digests=digests)
    for line in work(planned, until=until, folder=kept, jobs=jobs):
        if packed is not None:
            pack(kept, digests, packed)
        yield line
