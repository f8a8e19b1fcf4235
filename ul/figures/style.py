"""The one style of all figures: colours, markers, sizes, and how they are saved."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

from ..base.records import write_bytes

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# A method keeps its colour in every figure. The headline methods have Okabe and Ito's colours, the others Tol's muted
# ones: both are told apart by colour-blind readers, though not all of both together.
COLOURS = {
    "clean": "#000000", "noise": "#999999", "em": "#D55E00", "lsp": "#0072B2", "ops": "#009E73", "ar": "#CC79A7",
    "tap": "#E69F00", "rem": "#882255", "hypo": "#56B4E9", "sep": "#332288", "cuda": "#117733", "tue": "#44AA99",
    "dc": "#999933", "ntga": "#DDCC77", "em_classwise": "#CC6677", "em_ops": "#AA4499", "noise_classwise": "#555555",
}  # fmt: skip
MARKERS = "osD^vP*X"
STYLE: "dict[RcKeyType, Any]" = {
    "svg.hashsalt": "ul", "svg.fonttype": "none", "font.size": 8, "axes.titlesize": 9, "axes.spines.top": False,
    "axes.spines.right": False, "figure.dpi": 110, "savefig.dpi": 160, "figure.constrained_layout.use": True,
    "legend.frameon": False, "image.cmap": "viridis",
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """The one style, inside a `with` block."""
    with matplotlib.rc_context(STYLE):
        yield


def use_style() -> None:
    """The one style for the rest of a notebook, which shows figures as they are saved.

    Notebooks cut the margins of what they show, for which each figure would be drawn twice.
    """
    matplotlib.rcParams.update(STYLE)
    if "matplotlib_inline" in sys.modules:
        from matplotlib_inline.config import InlineBackend

        InlineBackend.instance().print_figure_kwargs = {"bbox_inches": None}  # type: ignore[dict-item]


def save(figure: Figure, stem: Path | str | None) -> None:
    """`<stem>.svg` and `<stem>.png`, the same bytes on every run; None writes nothing."""
    if stem is None:
        return
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "ul"}):
            figure.savefig(buffer, format=kind, metadata=metadata)
        write_bytes(Path(f"{stem}.{kind}"), buffer.getvalue())


def colour(method: str) -> str:
    """A method's colour; grey-brown for one without an own."""
    return COLOURS.get(method, "#7f6a4f")
