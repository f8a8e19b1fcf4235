"""Drawing every notebook of a pipeline anew from its records: the stages' own commands, with `--recorded`."""

import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

import joblib

from ..base.errors import InputError, existing

RUN = "python -m ul nb-run"
Command = tuple[Path, str]  # folder, and what runs there


def waves(pipeline: Path) -> list[list[Command]]:
    """Commands of a pipeline's stages that run a notebook; none needs what one of its wave or a later one makes."""
    from dvc.repo import Repo
    from dvc.stage import PipelineStage
    from networkx import topological_generations

    existing(pipeline, "`ls profiles` shows what there is")
    with Repo(".") as repo:
        own = {s for s in repo.stage.load_all(str(pipeline)) if isinstance(s, PipelineStage) and s.cmd.startswith(RUN)}
        names = {stage.addressing for stage in own}
        generations = topological_generations(repo.index.graph.reverse())  # its edges lead to what a stage needs
        found = [[s for s in wave if s.addressing in names] for wave in generations]
        return [[(Path(s.wdir), s.cmd) for s in wave] for wave in found if wave]


def redraw(pipeline: Path, jobs: int | None = None) -> None:
    """Run them, several at once. Raises InputError that names those that failed."""
    failed = [name for wave in waves(pipeline) for name in _all(wave, jobs)]
    if failed:
        raise InputError(f"{len(failed)} notebooks were not drawn: {', '.join(failed)}")


def _all(wave: Iterable[Command], jobs: int | None) -> list[str]:
    """The executed copies that could not be made."""
    parallel = joblib.Parallel(n_jobs=jobs or joblib.cpu_count(), prefer="threads")
    done = parallel(joblib.delayed(_drawn)(folder, command) for folder, command in wave)
    return [name for name in done if name]


def _drawn(folder: Path, command: str) -> str | None:
    words = [*shlex.split(command), "--recorded"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    told = [f"exit status {done.returncode}", *done.stderr.strip().splitlines()][-1]
    print(f"{words[5]}: {told if done.returncode else 'drawn'}", flush=True)
    return words[5] if done.returncode else None
