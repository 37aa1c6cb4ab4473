"""Paths of tracklets on the ground, for the floor plan of the match report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reid.data.tracks import Tracks
from reid.mtmc.cameras import Cameras
from reid.mtmc.tracklets import Tracklets

INTERVAL = 0.5
"""Least seconds between two points of a path."""
MAX_POINTS = 100_000
"""Largest number of points of all paths; more are thinned out evenly."""


def ground_paths(
    tracklets: Tracklets, tracks: Tracks, cameras: Cameras | None
) -> tuple[dict[int, NDArray[np.float64]], list[str]]:
    """Return the path of each tracklet whose camera has a homography, and notes on positions that were left out.

    A path is `[K, 3]`: seconds, x and y in metres, the first and the last box and one every `INTERVAL` seconds
    between. Positions beyond the horizon, and those farther from the middle 98 % of all positions than their extent,
    are left out.
    """
    known = [name for name in tracks.camera_names if cameras is not None and cameras[name].homography is not None]
    if cameras is None or not known:
        return {}, []
    n_boxes = int(np.isin(tracks.camera, [tracks.camera_names.index(name) for name in known]).sum())
    row = np.repeat(np.arange(len(tracklets)), list(map(len, tracklets.paths)))
    points = np.concatenate([np.zeros((0, 4)), *tracklets.paths])[:, :3]
    if len(points):
        low, high = np.quantile(points[:, 1:], (0.01, 0.99), axis=0)
        reach = np.maximum(high - low, 1.0)
        good = ((points[:, 1:] > low - reach) & (points[:, 1:] < high + reach)).all(axis=1)
        row, points = row[good], points[good]
    tick = np.floor(points[:, 0] / max(INTERVAL, INTERVAL * len(points) / (MAX_POINTS * 5)))
    changed = (np.diff(row, prepend=-1) != 0) | (np.diff(tick, prepend=np.nan) != 0) | (np.diff(row, append=-1) != 0)
    row, kept, dropped = row[changed], points[changed], n_boxes - len(points)
    numbers, begin = np.unique(row, return_index=True)
    paths = dict(zip(numbers.tolist(), np.split(kept, begin[1:]), strict=False))
    note = f"{dropped:,} of {n_boxes:,} boxes: beyond the horizon, or far from all other positions"
    return paths, [note] if dropped else []
