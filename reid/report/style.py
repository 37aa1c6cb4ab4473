"""Style of all pictures: colours for colour-blind readers, in a light and a dark theme."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reid.core.atomic import atomic_file
from reid.core.errors import ConfigError

BLUE, GREEN, RED, GREY = "#0072B2", "#009E73", "#CC3311", "#8C8C8C"

DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX"
FORMATS = ("pdf", "png", "svg", "webp")

_SAVED_WITH: dict[str, dict[str, Any]] = {
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None}},
    "png": {"pil_kwargs": {"compress_level": 4}},
    "webp": {"pil_kwargs": {"quality": 85, "method": 2}},
}


@dataclass(frozen=True)
class Theme:
    """Colours of a picture; `lines` is the palette of Okabe and Ito (2008) without the one that is faint on `paper`."""

    paper: str
    ink: str
    faint: str
    lines: tuple[str, ...]


LIGHT = Theme("#FFFFFF", "#1A1A1A", "#DDDDDD", (BLUE, "#D55E00", GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000"))
DARK = Theme("#16191D", "#E6E6E6", "#3A4048", ("#56B4E9", "#E69F00", GREEN, "#CC79A7", "#F0E442", "#D55E00", "#FFFFFF"))


@contextlib.contextmanager
def picture(
    path: str | Path, size: tuple[float, float], *, dark: bool = False, constrained: bool = True, dpi: int = 150
) -> Iterator[tuple[Figure, Theme]]:
    """Yield an empty figure of `size` inches and its theme; write the file when the block ends.

    Set `constrained` to False to place everything yourself. The suffix of `path` selects the format. Text is embedded
    as TrueType in a PDF, and as outlines in an SVG. The same drawing gives the same file.

    Raises:
        ReidError: the suffix is not one of `FORMATS`, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ConfigError(f"{path} has no known picture format. Use .{', .'.join(FORMATS)}.")
    theme = DARK if dark else LIGHT
    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    paper = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
    settings: dict[Any, Any] = {
        **dict.fromkeys(ink, theme.ink),
        **dict.fromkeys(paper, theme.paper),
        "grid.color": theme.faint,
        "legend.edgecolor": theme.faint,
        "axes.axisbelow": True,
        "font.size": 10,
        "pdf.fonttype": 42,
        "svg.hashsalt": "reid",
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, dpi=dpi, layout="constrained" if constrained else None)
        yield figure, theme
        FigureCanvasAgg(figure)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format=kind, **_SAVED_WITH.get(kind, {}))
