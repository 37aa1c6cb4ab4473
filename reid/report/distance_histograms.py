"""Histograms of the distances of genuine and impostor pairs, and the ROC curve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.core.errors import DataError
from reid.evaluation import PairCounts, VerificationResult
from reid.report.style import DASHES, picture


def plot_distances(
    counts: PairCounts, path: str | Path, *, thresholds: Mapping[str, float] | None = None, dark: bool = False
) -> Path:
    """Draw histograms of the distances of genuine pairs (same person) and impostor pairs (different people).

    Each histogram is in percent of its own pairs, because there are many more impostor pairs. Every bar is the sum of
    whole bins of `counts`; all pairs are drawn.

    Args:
        counts: counts per bin, as from `count_pairs`.
        path: output file (.png, .pdf, .svg or .webp).
        thresholds: distances to mark with a line, by the name in the legend.
        dark: use the dark theme.

    Returns:
        The path.

    Raises:
        ReidError: there are no pairs, or the file cannot be written.
    """
    n_genuine, n_impostor = counts.n_genuine, counts.n_impostor
    if n_genuine + n_impostor == 0:
        raise DataError("There are no pairs to draw.")
    edges, (genuine, impostor) = merged_bins(counts.edges, (counts.genuine, counts.impostor))
    with picture(path, (6.4, 3.8), dark=dark) as (figure, theme):
        axes = figure.add_subplot()
        styles = (
            ("different people", impostor, n_impostor, theme.lines[1], "\\\\"),
            ("same person", genuine, n_genuine, theme.lines[0], "//"),
        )
        for name, bars, n, colour, hatch in styles:
            if n:
                percent, label = 100 * bars / n, f"{name} ({n:,} pairs)"
                axes.stairs(percent, edges, fill=True, color=colour, alpha=0.25, linewidth=0)
                hatched: dict[str, Any] = {"facecolor": "none", "edgecolor": colour, "hatch": hatch, "linewidth": 1.5}
                axes.stairs(percent, edges, fill=True, label=label, **hatched)
        for i, (name, distance) in enumerate((thresholds or {}).items()):
            style = DASHES[(i + 1) % len(DASHES)]
            axes.axvline(distance, color=theme.ink, linestyle=style, linewidth=1.5, label=f"{name}: {distance:.3f}")
        axes.set(xlabel=f"Distance of a pair ({counts.metric})", ylabel="Pairs (%)")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=2, fontsize=8.5, frameon=False)
    return Path(path)


def merged_bins(
    edges: NDArray[np.float64], columns: tuple[NDArray[np.int64], ...], bars: int = 80
) -> tuple[NDArray[np.float64], tuple[NDArray[np.int64], ...]]:
    """Merge adjacent bins into at most `bars` over the range of nonzero counts; sums do not change.

    Args:
        edges: `[B + 1]` ascending.
        columns: each `[B]` counts.
        bars: largest number of merged bins.

    Returns:
        edges `[b + 1]`, a subset of the given edges, and counts `[b]` for each column.
    """
    filled = np.flatnonzero(np.sum(columns, axis=0))
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, len(edges) - 1)
    starts = np.arange(first, last, max(1, -(-(last - first) // bars)))
    return edges[[*starts, last]], tuple(np.add.reduceat(column[:last], starts) for column in columns)


def plot_roc(results: Mapping[str, VerificationResult], path: str | Path, *, dark: bool = False) -> Path:
    """Draw the true-match rate over the false-match rate (logarithmic) of named results.

    Raises:
        ReidError: there is no result, or the file cannot be written.
    """
    if not results:
        raise DataError("There is no result to draw.")
    with picture(path, (6.4, 3.8), dark=dark) as (figure, theme):
        axes = figure.add_subplot()
        for i, (name, result) in enumerate(results.items()):
            false, true = result.roc()[:2]
            label = f"{name}\nAUC {100 * result.auc:.2f} %, EER {100 * result.eer:.2f} %"
            colour = theme.lines[i % len(theme.lines)]
            axes.plot(100 * false, 100 * true, color=colour, linestyle=DASHES[i % len(DASHES)], label=label)
        axes.set(xscale="log", xlabel="False-match rate (%)", ylabel="True-match rate (%)", ylim=(0, 101))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8.5, framealpha=0.9)
    return Path(path)
