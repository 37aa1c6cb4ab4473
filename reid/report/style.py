"""What all pictures share: colours that colour-blind readers can tell apart, and how a figure is saved."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reid.errors import ReidError
from reid.wholefile import whole_file

BLUE, GREEN, RED, GREY = "#0072B2", "#009E73", "#CC3311", "#8C8C8C"
LINES = (BLUE, "#D55E00", GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito (2008), without its yellow, which is faint on white."""

DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX"
FORMATS = ("pdf", "png", "svg")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure whole; the suffix of `path` chooses the format.

    Raises:
        ReidError: the suffix is not .png, .pdf or .svg, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ReidError(f"Cannot draw to {path}: the name must end in .{', .'.join(FORMATS)}.")
    FigureCanvasAgg(figure)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=kind, facecolor="white")
    return path
