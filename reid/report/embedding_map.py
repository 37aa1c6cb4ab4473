"""Two-dimensional maps of the embeddings of some identities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from reid.core.errors import DataError
from reid.report.style import MARKERS, picture

_MARKERS = MARKERS + "<>ph*dH8"


def plot_embedding_map(
    projections: Mapping[str, ArrayLike],
    pids: ArrayLike,
    camids: ArrayLike | None,
    path: str | Path,
    *,
    dark: bool = False,
) -> Path:
    """Draw crops as points: colour and number show the identity, the marker's shape shows the camera.

    Colours and shapes repeat when there are more identities or cameras than colours or shapes. The number of an
    identity is at the median of its points.

    Args:
        projections: `[N, 2]` by name, as from `project`; one panel each.
        pids: `[N]` integers.
        camids: `[N]` integers, or None without cameras.
        path: output file (.png, .pdf, .svg or .webp).
        dark: use the dark theme.

    Returns:
        The path.

    Raises:
        ReidError: there are no points, columns differ in length, or the file cannot be written.
    """
    who = np.asarray(pids)
    where = np.zeros(len(who), dtype=np.int64) if camids is None else np.asarray(camids)
    panels = {name: np.asarray(points, dtype=np.float64) for name, points in projections.items()}
    if not panels or len(who) == 0:
        raise DataError("There are no points to draw.")
    for name, points in panels.items():
        if points.shape != (len(who), 2) or len(where) != len(who):
            raise DataError(
                f"{name} {points.shape}, {len(who)} pids and {len(where)} camids differ in number. Pass points [N, 2]."
            )
    people, cameras = np.unique(who), np.unique(where)
    shape_of = {camera: _MARKERS[i % len(_MARKERS)] for i, camera in enumerate(cameras)}
    with picture(path, (4.6 * len(panels), 4.6), dark=dark) as (figure, theme):
        halo = {"boxstyle": "round,pad=0.15", "facecolor": theme.paper, "edgecolor": "none", "alpha": 0.75}
        for axes, (name, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for i, pid in enumerate(people):
                colour = theme.lines[i % len(theme.lines)]
                for camera in cameras:
                    chosen = points[(who == pid) & (where == camera)]
                    axes.plot(*chosen.T, shape_of[camera], color=colour, markersize=5.5, alpha=0.8, markeredgewidth=0)
                x, y = np.median(points[who == pid], axis=0)
                axes.text(x, y, str(pid), color=theme.ink, fontsize=8.5, ha="center", va="center", bbox=halo)
            axes.set(title=name, xticks=[], yticks=[])
            axes.margins(0.08)
        if camids is not None:
            signs = [
                Line2D([], [], linestyle="", color=theme.ink, marker=shape_of[camera], label=f"cam {camera}")
                for camera in cameras
            ]
            figure.legend(
                handles=signs, loc="outside lower center", ncols=min(8, len(signs)), fontsize=8.5, frameon=False
            )
    return Path(path)
