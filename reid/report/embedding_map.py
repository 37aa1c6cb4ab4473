"""Crops of some identities as points: how a model places them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from reid.core.errors import ReidError
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
    """Draw points of crops: colour and number for the identity, the marker's shape for the camera.

    More identities than colours come round again, told apart by their numbers, which stand at the median of each
    identity's points; so do cameras beyond 15 shapes.

    Args:
        projections: `[N, 2]` by name, as from `project`; a panel each.
        pids: `[N]` integers; camids: `[N]`, or None without cameras.
        path: where to; .png, .pdf, .svg or .webp.
        dark: for a dark screen.

    Returns:
        The path written.

    Raises:
        ReidError: no projection or no point, columns that do not fit, or the file cannot be written.
    """
    who = np.asarray(pids)
    where = np.zeros(len(who), dtype=np.int64) if camids is None else np.asarray(camids)
    panels = {name: np.asarray(points, dtype=np.float64) for name, points in projections.items()}
    if not panels or len(who) == 0:
        raise ReidError("No points to draw a map of.")
    for name, points in panels.items():
        if points.shape != (len(who), 2) or len(where) != len(who):
            raise ReidError(f"{name} of shape {points.shape} does not fit {len(who)} pids and {len(where)} cameras.")
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
