"""Learning curves of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from reid.core.errors import DataError
from reid.report.style import DASHES, picture

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps, and the value at each step."""


def plot_learning(path: str | Path, panels: Mapping[str, Mapping[str, Curve]], *, dark: bool = False) -> None:
    """Draw one panel per quantity with one line per run; each run has the same colour in all panels.

    Args:
        path: output file (.png, .pdf, .svg or .webp).
        panels: `{quantity: {run: (steps, values)}}`. Values that are not finite are gaps.

    Raises:
        ReidError: no run has logged anything, or the file cannot be written.
    """
    runs = list(dict.fromkeys(run for curves in panels.values() for run in curves))
    if not runs:
        raise DataError("The runs have not logged anything yet. Train for at least one logging interval.")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with picture(path, (4.2 * columns, 2.8 * rows + 0.22 * len(runs)), dark=dark) as (figure, theme):
        grid = figure.subplots(rows, columns, squeeze=False)
        lines = {}
        for axes, (quantity, curves) in zip(grid.flat, panels.items(), strict=False):
            for run, (steps, values) in curves.items():
                number = runs.index(run)
                style = DASHES[number // len(theme.lines) % len(DASHES)]
                colour = theme.lines[number % len(theme.lines)]
                marker = "o" if len(steps) == 1 else None
                (lines[run],) = axes.plot(
                    steps, values, style, color=colour, linewidth=1.4, marker=marker, markersize=4
                )
            axes.set_title(quantity, fontsize=10)
            axes.grid(True)
            positive = [v for _, values in curves.values() for v in values if v > 0 and math.isfinite(v)]
            if quantity == "lr" and positive and max(positive) > 100 * min(positive):
                axes.set_yscale("log")
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("step")
        figure.legend([lines[run] for run in runs], runs, loc="outside lower left", frameon=False, fontsize=9)
