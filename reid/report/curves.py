"""CMC curves of one or several results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reid.core.errors import DataError
from reid.evaluation import RankingResult
from reid.report.style import DASHES, MARKERS, picture


def plot_cmc(results: Mapping[str, RankingResult], path: str | Path, *, max_rank: int = 20, dark: bool = False) -> Path:
    """Draw the CMC curves of named results, best rank-1 first in the legend.

    Args:
        results: by the name in the legend.
        path: output file (.png, .pdf, .svg or .webp).
        max_rank: largest rank to draw.
        dark: use the dark theme.

    Returns:
        The path.

    Raises:
        ReidError: there is no result, or the file cannot be written.
    """
    if not results:
        raise DataError("There is no result to draw.")
    ordered = sorted(results.items(), key=lambda item: -item[1].rank(1))
    with picture(path, (6.4, 4.4), dark=dark) as (figure, theme):
        axes = figure.add_subplot()
        for i, (name, result) in enumerate(ordered):
            rates = 100 * result.cmc[:max_rank]
            axes.plot(
                np.arange(1, len(rates) + 1),
                rates,
                color=theme.lines[i % len(theme.lines)],
                linestyle=DASHES[i // len(theme.lines) % len(DASHES)],
                marker=MARKERS[i % len(MARKERS)],
                markevery=max(1, len(rates) // 10),
                markersize=5,
                linewidth=1.8,
                label=f"{name}\nrank-1 {100 * result.rank(1):.1f} %, mAP {100 * result.mAP:.1f} %",
            )
        axes.set(xlabel="Rank k", ylabel="Queries with a right match among the first k (%)")
        lowest = min(100 * result.cmc[0] for result in results.values())
        axes.set_ylim(max(0, 10 * np.floor(lowest / 10) - 10), 101)
        longest = min(max_rank, max(len(result.cmc) for result in results.values()))
        step = max(1, round(longest / 4 / 5) * 5)
        axes.set_xticks([1, *range(max(step, 2), longest + 1, step)])
        axes.grid(linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", fontsize=8.5, framealpha=0.9)
    return Path(path)
