"""README's picture of the pipeline, from `dvc dag`: `python -m tests.dag` draws it anew."""

import re
import subprocess
import sys
from pathlib import Path

from ul.pipeline import readme

ROOT = Path(__file__).resolve().parent.parent
NODE = re.compile(r'\s*(node\d+)\["(.*)"\]')
EDGE = re.compile(r"\s*(node\d+)-->(node\d+)")


def drawn() -> str:
    """Mermaid's source of the graph of stages; the stages of a matrix are one node."""
    command = [sys.executable, "-m", "dvc", "dag", "--mermaid", "dvc.yaml"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {m[1]: m[2].partition("@")[0] for m in map(NODE.fullmatch, lines) if m}
    edges = {(names[m[1]], names[m[2]]) for m in map(EDGE.fullmatch, lines) if m}
    needed = sorted((a, b) for a, b in edges if a != b and not _longer(a, b, edges))
    return "\n".join(["```mermaid", "flowchart LR", *(f"  {a} --> {b}" for a, b in needed), "```"])


def _longer(start: str, end: str, edges: set[tuple[str, str]]) -> bool:
    """Whether there is another way than the edge itself, so that the picture needs no line for it."""
    todo = [b for a, b in edges if a == start and b not in (start, end)]
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name == end:
            return True
        seen.add(name)
        todo += [b for a, b in edges if a == name and b not in seen and b != start]
    return False


if __name__ == "__main__":
    readme.update(ROOT / "README.md", pipeline=drawn())
