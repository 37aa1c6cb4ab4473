"""Heat maps of mAP and rank-1 for every pair of cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps

from reid.core.errors import DataError
from reid.evaluation.ranking import CameraPairs
from reid.report.style import picture


def plot_camera_pairs(pairs: CameraPairs, path: str | Path, *, dark: bool = False) -> Path:
    """Draw mAP and rank-1 in percent for queries of one camera (rows) in the gallery of another (columns).

    The cell of a pair without a scored query is empty. The colour map (cividis) is readable in grey and with colour
    blindness.

    Returns:
        The path (.png, .pdf, .svg or .webp).

    Raises:
        ReidError: no pair of cameras has a scored query, or the file cannot be written.
    """
    if not np.isfinite(pairs.mAP).any():
        raise DataError("No pair of cameras has a scored query.")
    rows, columns = pairs.mAP.shape
    side = max(0.26, min(0.5, 6 / max(rows, columns)))
    width, height = max(2.2, columns * side) + 0.9, max(1.4, rows * side) + 1.1
    colours = colormaps["cividis"]
    with picture(path, (2 * width, height), dark=dark) as (figure, theme):
        for axes, name, values in zip(figure.subplots(1, 2), ("mAP", "rank-1"), (pairs.mAP, pairs.rank1), strict=True):
            axes.set_facecolor(theme.paper)
            axes.imshow(np.ma.masked_invalid(100 * values), cmap=colours, vmin=0, vmax=100)
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    ink = "black" if value > 0.5 else "white"
                    text = f"{100 * value:.0f}"
                    axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=min(9, 20 * side))
            axes.set_xticks(range(columns), [str(camera) for camera in pairs.gallery_cameras])
            axes.set_yticks(range(rows), [str(camera) for camera in pairs.query_cameras])
            axes.tick_params(length=0, labelsize=min(9, 24 * side))
            axes.spines[:].set_visible(False)
            axes.set(title=f"{name} (%)", xlabel="gallery camera", ylabel="query camera")
    return Path(path)
