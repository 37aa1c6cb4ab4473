"""How far apart same and different people are: histograms with the threshold, and the ROC."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reid.core.errors import ReidError
from reid.report.style import DASHES, picture

if TYPE_CHECKING:
    from reid.evaluation import PairCounts, VerificationResult


def plot_distances(
    counts: PairCounts, path: str | Path, *, thresholds: Mapping[str, float] | None = None, dark: bool = False
) -> Path:
    """Draw the distances of pairs of the same and of different people as histograms over each other.

    Each is in percent of its own pairs, since different people make many times more pairs. Every bar sums whole bins
    of `counts`; nothing is left out of the drawing.

    Args:
        counts: as from `count_pairs`.
        path: where to; .png, .pdf, .svg or .webp.
        thresholds: distances to mark with a line, by the name that the legend shows; one may lie outside the bars.
        dark: for a dark screen.

    Returns:
        The path written.

    Raises:
        ReidError: there are no pairs at all, or the file cannot be written.
    """
    n_genuine, n_impostor = counts.n_genuine, counts.n_impostor
    if n_genuine + n_impostor == 0:
        raise ReidError("There are no pairs to draw the distances of.")
    edges, (genuine, impostor) = merged_bins(counts.edges, (counts.genuine, counts.impostor))
    with picture(path, (6.4, 3.8), dark=dark) as (figure, theme):
        axes = figure.add_subplot()
        styles = (
            ("different people", impostor, n_impostor, theme.lines[1], "\\\\"),
            ("same person", genuine, n_genuine, theme.lines[0], "//"),
        )
        for name, bars, n, colour, hatch in styles:
            if n:
                shares, label = 100 * bars / n, f"{name} ({n:,} pairs)"
                axes.stairs(shares, edges, fill=True, color=colour, alpha=0.25, linewidth=0)
                axes.stairs(
                    shares,
                    edges,
                    fill=True,
                    facecolor="none",
                    edgecolor=colour,
                    hatch=hatch,
                    linewidth=1.5,
                    label=label,
                )
        for i, (name, distance) in enumerate((thresholds or {}).items()):
            style = DASHES[(i + 1) % len(DASHES)]
            axes.axvline(distance, color=theme.ink, linestyle=style, linewidth=1.5, label=f"{name}: {distance:.3f}")
        axes.set_xlabel(f"Distance of a pair ({counts.metric})")
        axes.set_ylabel("Share of pairs (%)")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=2, fontsize=8.5, frameon=False)
    return Path(path)


def merged_bins(
    edges: NDArray[np.float64], columns: tuple[NDArray[np.int64], ...], bars: int = 80
) -> tuple[NDArray[np.float64], tuple[NDArray[np.int64], ...]]:
    """Join neighbouring bins into about `bars` over the range where any count is; sums stay.

    Args:
        edges: `[B + 1]` ascending.
        columns: each `[B]` counts.
        bars: at most so many come back.

    Returns:
        edges `[b + 1]`, a subset of the given ones, and counts `[b]` for each column.
    """
    filled = np.flatnonzero(np.sum(columns, axis=0))
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, len(edges) - 1)
    starts = np.arange(first, last, max(1, -(-(last - first) // bars)))
    return edges[[*starts, last]], tuple(np.add.reduceat(column[:last], starts) for column in columns)


def plot_roc(results: Mapping[str, VerificationResult], path: str | Path, *, dark: bool = False) -> Path:
    """Draw the share of same pairs accepted over the share of different pairs accepted (logarithmic), by name.

    Raises:
        ReidError: nothing to draw, or the file cannot be written.
    """
    if not results:
        raise ReidError("No result to draw a ROC of.")
    with picture(path, (6.4, 3.8), dark=dark) as (figure, theme):
        axes = figure.add_subplot()
        for i, (name, result) in enumerate(results.items()):
            false, true = result.roc()[:2]
            label = f"{name}\nAUC {100 * result.auc:.2f} %, EER {100 * result.eer:.2f} %"
            colour = theme.lines[i % len(theme.lines)]
            axes.plot(100 * false, 100 * true, color=colour, linestyle=DASHES[i % len(DASHES)], label=label)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("Different people taken for the same (%)")
        axes.set_ylabel("Same person recognised (%)")
        axes.set_ylim(0, 101)
        axes.grid(linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8.5, framealpha=0.9)
    return Path(path)
