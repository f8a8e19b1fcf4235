"""The command line, `python -m ul COMMAND`: data sets, files of poisoned images, results and notebooks."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ..base import records
from ..base.errors import InputError, located
from ..base.names import DATASETS
from . import notebooks

if TYPE_CHECKING:
    from ..data.split import Split

Action = Callable[[argparse.Namespace], None]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _render(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..data import mnist
    from ..render import renderer

    out = args.root / args.name
    if out.exists():
        raise InputError(f"{out} exists; remove it or name another --root")
    with tqdm(unit=" views") as bar:
        makers = {"rooms": lambda: renderer.render(out, progress=bar.update), "mnist": lambda: mnist.embed(out)}
        count = makers[args.name]()
    print(f"{out}: {count} images")


def _fetch(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..data import fetch

    total = sum(file.size for file in fetch.ARCHIVES[args.name].files)
    with tqdm(total=total, unit="B", unit_scale=True) as bar:
        out = fetch.fetch(args.name, args.root, progress=bar.update)
    print(f"{out}: fetched and checked; `python -m ul verify {args.name} --root {args.root}` reads every file")


def _verify(args: argparse.Namespace) -> None:
    from ..data.sources import load

    for part in DATASETS[args.name].parts:
        split = load(args.name, part, root=args.root)
        print(f"{split.name}: {len(split)} images read, all files whole, contents {split.digest()}")


def _info(args: argparse.Namespace) -> None:
    from ..data.sources import load

    source = DATASETS[args.name]
    classes, size = source.classes or "any number of", source.size or "as stored"
    print(f"{args.name}: target {source.target}, {classes} classes, benchmark size {size}")
    for part in source.parts:
        split = load(args.name, part, root=args.root)
        print(f"  {part}: {len(split)} images {tuple(split.images.shape[1:])}, targets {', '.join(split.targets)}")


def _to_poison(name: str, root: Path, limit: int | None) -> "Split":
    """The training images as the notebooks train on them: at the benchmark's size, with the labels of its target."""
    from ..data.sources import load

    source = DATASETS[name]
    return load(name, source.parts[0], root=root, size=source.size, limit=limit, targets=(source.target,))


def _export(args: argparse.Namespace) -> None:
    from ..data.poison_files import export

    if args.path.exists():
        raise InputError(f"{args.path} exists; remove it or name another file")
    clean = _to_poison(args.name, args.root, args.limit)
    out = export(clean, args.path)
    shape = (len(clean), *clean.images.shape[2:], clean.images.shape[1])
    print(f"{out}: clean images of {clean.name}, uint8 {shape}; poison these and keep their order")


def _check_poison(args: argparse.Namespace) -> None:
    from .. import poisons
    from ..data import checks
    from ..data.poison_files import read_poison

    source = DATASETS[args.clean]
    clean = _to_poison(args.clean, args.root, args.limit)
    eps = poisons.strength(source.eps if args.eps is None else args.eps)
    poisoned = read_poison(args.path, clean)
    print("\n".join(checks.report(clean, poisoned, str(args.path), eps)))
    if args.method:
        poisons.check(clean, poisoned, args.method, eps)


def _compare(args: argparse.Namespace) -> None:
    from ..tables import table_files

    if found := table_files.differences(args.a, args.b):
        raise InputError(f"{len(found)} differences beyond tolerance: " + "; ".join(found))
    print(f"tables/benchmark/ud_by_data.csv of {args.a} and {args.b} agree within {table_files.TOLERANCES}")


def _report(args: argparse.Namespace) -> None:
    from . import site

    count, warnings = site.build(located("README.md").parent, args.profile, args.out)
    print("\n".join(warnings), file=sys.stderr, end="\n" if warnings else "")
    print(f"{args.out}: {count} pages; open {args.out / 'index.html'} in a browser")


def _queue(args: argparse.Namespace) -> None:
    from . import queue

    name = args.params.parent.name or "laptop"
    given = {"minutes": args.minutes, "longest": args.longest, "packed": args.pack, "jobs": args.jobs}
    lines = []
    for line in queue.chunk(args.params, **given, build=args.build or Path("build") / name):
        print(line, flush=True)
        lines.append(line)
    if failed := [line for line in lines if ": failed (" in line]:
        raise InputError(f"{len(failed)} of {len(lines)} steps failed; the first: {failed[0]}")


FINDINGS = ["results/laptop/findings.md", "results/cifar10/exploratory/findings.md", "results/cifar10/findings.md"]
# Profiles that README speaks of before they are run, and where their main setting is named.
WAITING = {"results/cifar10/findings.md": ("cifar10", "profiles/cifar10/params.yaml:settings.cifar10.with")}


def _readme(args: argparse.Namespace) -> None:
    from . import readme, run_list

    if args.runs:
        records.write_text(args.runs, run_list.page(Path(".")))
    for source in args.findings:
        if str(source) in WAITING and not source.exists():
            profile, setting = WAITING[str(source)]
            blocks = readme.waiting(profile, notebooks.parameters_from([setting], []))
            readme.update(args.readme, **blocks)
            print(f"{args.readme}: {', '.join(blocks)} not run yet")
        else:
            names = readme.renew(args.readme, source)
            print(f"{args.readme}: {', '.join(names)} as in {source}")


def _nb_run(args: argparse.Namespace) -> None:
    parameters = notebooks.parameters_from(args.params, args.p)
    if args.recorded:
        parameters = notebooks.redrawn(parameters, notebooks.kinds_of(args.source))
    notebooks.run(args.source, args.target, parameters)


def _redraw(args: argparse.Namespace) -> None:
    from . import redrawing

    redrawing.redraw(args.pipeline, args.jobs)


def _nb_clean(args: argparse.Namespace) -> None:
    from . import cleaning

    print("\n".join(cleaning.clean(args.source, args.target) or ["nothing changed"]))


def _data_command(
    commands: Commands, name: str, action: Action, choices: Sequence[str], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("name", choices=choices)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder that holds data sets (default data)")
    parser.set_defaults(action=action)
    return parser


def _check_command(commands: Commands, names: tuple[str, ...]) -> None:
    text = "check a file of poisoned images: order, labels, size of the perturbation, whose budget it fits"
    parser = commands.add_parser("check-poison", help=text, description=text)
    parser.add_argument("path", type=Path, help=".npz, .safetensors or a folder of <index>.png")
    parser.add_argument("--clean", required=True, choices=names, help="data set that was poisoned")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder that holds data sets (default data)")
    parser.add_argument("--limit", type=int, help="only this many training images were poisoned (as load's limit)")
    parser.add_argument("--eps", help="strength that budgets are checked at (default: the data set's; 8/255 works)")
    parser.add_argument("--method", help="fail if this method's budget is exceeded")
    parser.set_defaults(action=_check_poison)


def _report_command(commands: Commands) -> None:
    text = "the results of a profile as one static site (extra `report`)"
    parser = commands.add_parser("report", help=text, description=text)
    parser.add_argument("--profile", default="laptop", help="results/<profile> (default laptop)")
    parser.add_argument("--out", type=Path, default=Path("build/site"), help="folder of the site (default build/site)")
    parser.set_defaults(action=_report)


def _notebook_command(commands: Commands, name: str, action: Action, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.set_defaults(action=action)
    return parser


def parser() -> argparse.ArgumentParser:
    """The only argument parser of the project."""
    names = tuple(sorted(DATASETS))
    top = argparse.ArgumentParser(prog="python -m ul", description="Tools beside the notebooks.")
    commands = top.add_subparsers(required=True, metavar="command")
    _data_command(commands, "fetch", _fetch, ("cifar10", "cifar100", "mnist"), "download an official archive")
    _data_command(commands, "render", _render, ("mnist", "rooms"), "make an embedded data set anew (extra `render`)")
    _data_command(commands, "verify", _verify, names, "read every file of a data set and check it")
    _data_command(commands, "info", _info, names, "what a data set holds")
    text = "write the training images that a poison of your own starts from"
    export = _data_command(commands, "export", _export, names, text)
    export.add_argument("path", type=Path, help="a new .npz, .safetensors or folder of <index>.png")
    export.add_argument("--limit", type=int, help="only this many of them (as load's limit)")
    _check_command(commands, names)
    text = "do the means of two result folders agree within tolerances? Reads tables/benchmark/ud_by_data.csv alone"
    compare = commands.add_parser("compare", help=text, description=text)
    compare.add_argument("a", metavar="A", help="results/<profile>")
    compare.add_argument("b", metavar="B", help="the same folder from another machine")
    compare.set_defaults(action=_compare)
    _report_command(commands)
    text = "copy what the pipeline found (results/*/findings.md) into README, between the comments that mark it"
    written = commands.add_parser("readme", help=text, description=text)
    written.add_argument("--readme", type=Path, default=Path("README.md"))
    written.add_argument("--findings", type=Path, nargs="+", default=[Path(name) for name in FINDINGS])
    written.add_argument("--runs", type=Path, help="also list there what was run where (results/runs.md)")
    written.set_defaults(action=_readme)
    text = "draw every notebook of a pipeline from its records; nothing is trained"
    drawn = commands.add_parser("redraw", help=text, description=text)
    drawn.add_argument("pipeline", type=Path, help="dvc.yaml, or profiles/NAME/dvc.yaml")
    drawn.add_argument("--jobs", type=int, help="notebooks at once (default: one a core)")
    drawn.set_defaults(action=_redraw)
    _queue_command(commands)
    run = _notebook_command(commands, "nb-run", _nb_run, "execute a notebook with checked parameters")
    run.add_argument("--params", action="append", default=[], metavar="FILE:KEY", help="section of a YAML file")
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="one parameter")
    text = "draw from the record that it would write (parameter record) instead of running"
    run.add_argument("--recorded", action="store_true", help=text)
    text = "write a folder's notebooks without outputs, each with the code that it depends on, and say what changed"
    _notebook_command(commands, "nb-clean", _nb_clean, text)
    return top


def _queue_command(commands: Commands) -> None:
    text = (
        "a profile's runs, those that are worth most first, until the time is over; kept, and packed to go on elsewhere"
    )
    queued = commands.add_parser("queue", help=text, description=text)
    queued.add_argument("params", type=Path, help="profiles/NAME/params.yaml")
    queued.add_argument("--minutes", type=float, default=9.0, help="how long this sitting lasts (default 9)")
    queued.add_argument("--longest", type=float, default=120.0, help="seconds that one run may take (default 120)")
    queued.add_argument("--pack", type=Path, help="a .tar.xz of finished runs: read first, if it is there, and written")
    queued.add_argument(
        "--jobs", type=int, help="runs at once (default: one a core, on a GPU as many as its memory holds)"
    )
    queued.add_argument("--build", type=Path, help="folder of kept runs and poisons (default build/NAME)")
    queued.set_defaults(action=_queue)


def main() -> None:
    """Run a command; a user's mistake, or a full disk, ends in one line on stderr and exit status 1."""
    args = parser().parse_args()
    try:
        args.action(args)
    except (InputError, notebooks.NotebookError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
