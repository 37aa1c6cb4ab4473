"""Paths of tracklets on the ground, for the floor plan of the match report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reid.data.tracks import Tracks
from reid.mtmc.cameras import Cameras
from reid.mtmc.tracklets import Tracklets, tracklet_of_boxes

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
    points = np.full((len(tracks), 3), np.nan)
    for number, name in enumerate(tracks.camera_names):
        rows = tracks.camera == number
        points[rows, 0] = cameras[name].seconds(tracks.frame[rows])
        ground = cameras[name].ground(tracks.boxes[rows])
        if ground is not None:
            points[rows, 1:] = ground
    has_ground = np.isin(tracks.camera, [tracks.camera_names.index(name) for name in known])
    finite = np.isfinite(points).all(axis=1)
    good = finite.copy()
    if finite.any():
        low, high = np.quantile(points[finite, 1:], (0.01, 0.99), axis=0)
        reach = np.maximum(high - low, 1.0)
        within = (points[finite, 1:] > low - reach) & (points[finite, 1:] < high + reach)
        good[finite] = within.all(axis=1)
    row = tracklet_of_boxes(tracklets, tracks)
    good &= row >= 0
    interval = max(INTERVAL, INTERVAL * int(good.sum()) / (MAX_POINTS * 5))
    order = np.flatnonzero(good)[np.lexsort((points[good, 0], row[good]))]
    tick = np.floor(points[order, 0] / interval)
    changed = (np.diff(row[order], prepend=-1) != 0) | (np.diff(tick, prepend=np.nan) != 0)
    changed |= np.diff(row[order], append=-1) != 0
    kept = order[changed]
    begin = np.flatnonzero(np.diff(row[kept], prepend=-1))
    paths = {int(row[part[0]]): points[part] for part in np.split(kept, begin[1:]) if len(part)}
    dropped = int((has_ground & ~good).sum())
    note = f"{dropped:,} of {int(has_ground.sum()):,} boxes: beyond the horizon, or far from all other positions"
    return paths, [note] if dropped else []
