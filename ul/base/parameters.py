"""What a notebook's parameters may be: types from their annotations, choices and limits from tables; no heavy import.

A wrong parameter must end a run in its first second, before torch is loaded: names come from the light table.
"""

import ast
from collections.abc import Iterable
from reprlib import repr as shortened
from typing import Any

from . import arithmetic
from .errors import InputError
from .names import CLEAN, DATASETS, DEFENSES, DEPARTURES, ENCODERS, EXECUTORS, METHODS, MOVED, NETWORKS, RARE, RECIPES

# By parameter, in every notebook that has it; each name of a list is looked up.
CHOICES: dict[str, tuple[str, ...]] = {
    "method": (*METHODS,),
    "others": (*METHODS,),
    "methods": (*METHODS,),
    "balance_methods": (*METHODS,),
    "varied": (*METHODS,),
    "flat_methods": (*METHODS,),
    "defense": DEFENSES,
    "architecture": (*NETWORKS,),
    "dataset": (*DATASETS,),
    "recipe": RECIPES,
    "rare": RARE,
    "encoder": ENCODERS,
    "backend": EXECUTORS,
    "departed": (*DEPARTURES,),
    "freeze": MOVED,
}
_SEVERAL_LAYERS = {"architecture": tuple(name for name, network in NETWORKS.items() if network.several_layers)}
# By notebook, where it takes others.
OWN_CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "02_cross_task": {"dataset": tuple(name for name, known in DATASETS.items() if not known.a_users)},
    "04_sal": {"method": (CLEAN, *METHODS), "others": (CLEAN, *METHODS)} | _SEVERAL_LAYERS,
    "06_validation": _SEVERAL_LAYERS,
    "08_my_poison": _SEVERAL_LAYERS,
}
COUNTS = (
    "limit", "size", "epochs", "seeds", "jobs", "probe_epochs", "sal_images", "batch_size", "features", "points",
    "looked", "grid", "surface_images", "draws",
)  # fmt: skip
LOWEST = dict.fromkeys(COUNTS, 1) | {"victims": 0, "start": 0, "flat_seeds": 0, "sam": 0}
OWN_LOWEST = {"03_convergence": {"seeds": 3, "epochs": 2, "grid": 2, "surface_images": 2}}  # by notebook
POSITIVE = ("lr", "levels", "epsilons", "own_weights")
SHARES = ("share", "label_noise", "shares", "label_noises")
TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "None": (type(None),),
    "list": (list,),
    "dict": (dict,),
}
INJECTED = "# Parameters"  # how papermill's own cell begins


def check(space: dict[str, Any], notebook: str) -> None:
    """Check the parameters of the running notebook; its first cell after them calls `check(globals(), NAME)`.

    space: the notebook's names, `__annotations__` of its parameters and IPython's list `In` of cells among them.
    Fixes the arithmetic as well, since nothing heavy is loaded yet. Raises InputError that names the parameter and
    lists what is allowed.
    """
    arithmetic.fix()
    declared = {name: text(kind) for name, kind in space["__annotations__"].items()}
    cells = [cell for cell in space.get("In", []) if cell.startswith(INJECTED)]
    refuse_unknown({name for cell in cells for name in assigned(cell)}, declared)
    refuse_wrong({name: space[name] for name in declared}, declared, notebook)


def refuse_unknown(names: Iterable[str], declared: dict[str, str]) -> None:
    """Raises InputError if a name is not among the declared ones."""
    if unknown := sorted(str(name)[:40] for name in set(names) - set(declared)):
        raise InputError(f"unknown parameter {', '.join(unknown)}; there are {', '.join(sorted(declared))}")


def refuse_wrong(values: dict[str, object], declared: dict[str, str], notebook: str) -> None:
    """Raises InputError if a value is not of its declared type, not a choice of the notebook's, or out of bounds."""
    choices = CHOICES | OWN_CHOICES.get(notebook, {})
    for name, value in values.items():
        if not fits(value, declared[name]):
            raise InputError(
                f"parameter {name} must be {declared[name]}, got {type(value).__name__} {shortened(value)}"
            )
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                _refuse_value(name, one, choices.get(name), lowest(notebook))


def lowest(notebook: str) -> dict[str, int]:
    """The smallest values that parameters of a notebook may have."""
    return LOWEST | OWN_LOWEST.get(notebook, {})


def _refuse_value(name: str, value: Any, choices: tuple[str, ...] | None, bounds: dict[str, int]) -> None:
    if choices and value not in choices:
        raise InputError(f"parameter {name}: unknown {shortened(value)}; choose from {', '.join(choices)}")
    if name in bounds and not value >= bounds[name]:
        raise InputError(f"parameter {name} is {value}; it must be at least {bounds[name]}")
    if name in POSITIVE and not value > 0:
        raise InputError(f"parameter {name} is {value}; it must be above 0")
    if name in SHARES and not 0 <= value <= 1:
        raise InputError(f"parameter {name} is {value}; it is a share from 0 to 1")


def fits(value: object, kind: str) -> bool:
    """Whether a value is of a declared type: `int`, `float or None`, `list[str]`, ... An int passes for a float."""
    return any(_is(value, part) for part in kind.split(" or "))


def _is(value: object, part: str) -> bool:
    if part.startswith("list["):
        return isinstance(value, list) and all(_is(one, part[5:-1]) for one in value)
    return type(value) in TYPES[part] if part in TYPES else True  # a type that is not ours


def text(kind: type | str) -> str:
    """An annotation as written: `int` or "int or None" (quoted, as papermill's help reads no `|`)."""
    return kind if isinstance(kind, str) else kind.__name__ if type(kind) is type else str(kind)


def assigned(source: str) -> dict[str, ast.expr]:
    """Names and values of the assignments in a cell.

    Raises SyntaxError if it is not Python, AttributeError if a target is not a name.
    """
    # A line without a value is none: ast.literal_eval refuses it.
    return {name: node.value for name, node in _assignments(source)}  # type: ignore[misc]


def declared(source: str) -> dict[str, str]:
    """Names and types of the annotated assignments in a cell of parameters."""
    nodes = [(name, node) for name, node in _assignments(source) if isinstance(node, ast.AnnAssign)]
    return {name: ast.unparse(node.annotation).strip("'\"") for name, node in nodes}


def _assignments(source: str) -> list[tuple[str, ast.Assign | ast.AnnAssign]]:
    nodes = [n for n in ast.parse(source).body if isinstance(n, ast.Assign | ast.AnnAssign)]
    # Targets without a name end in an AttributeError, as documented.
    return [((n.targets[0] if isinstance(n, ast.Assign) else n.target).id, n) for n in nodes]  # type: ignore[attr-defined]
