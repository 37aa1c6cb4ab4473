"""Stitch tracks that a tracker lost and found again in one camera."""

from __future__ import annotations

import numpy as np

from reid.core.arrays import concatenated_ranges
from reid.data.tracks import Floats, Integers
from reid.mtmc.negatives import Spans, certain_negative_distance
from reid.mtmc.pooling import Mask, PooledFeatures

MAX_GAP = 3.0
"""Longest time in seconds for which a track may have been lost."""

MOTION_SECONDS = 1.0
"""Seconds at the end of a track, and at the start of the next, from which position and speed are estimated."""

TOLERANCE = 0.15
"""Largest position error, in heights of the box; grows by the same amount for each second of the gap."""

MAX_LOG_HEIGHT = 0.25
"""Largest difference between the logarithms of the heights."""


Motion = tuple[Floats, Floats]
"""Position and speed per second `[T, 3]` of `edge_motion`."""


def stitch_tracks(spans: Spans, pooled: PooledFeatures, at_start: Motion, at_end: Motion) -> Integers:
    """Find the local track that each tracklet continues, `[T]`; −1 for none.

    Tracklet j continues i, both of one camera, if all of these are true:

    1. j starts after i ends, at most 3 s later.
    2. Extrapolated over the gap with the mean of both speeds, the middle of i's lower edge comes within
       0.15 · (1 + gap / s) box heights of j's. Position and speed are straight-line fits to i's last and j's first
       second of boxes.
    3. The heights differ by less than a factor of e^0.25 (28 %).
    4. Both have a feature, and their cosine distance is below `certain_negative_distance`. If that is unknown, nothing
       is stitched.
    5. Neither has another candidate with a smaller position error.

    Args:
        spans: T tracklets. The parts of a split track are separate tracklets.
        pooled: Their features.
        at_start, at_end: `edge_motion` at the start and the end of each.
    """
    previous_track = np.full(len(spans.track), -1)
    max_distance = certain_negative_distance(spans, pooled)
    if max_distance is None:
        return previous_track
    earlier, later = _candidates(spans, pooled.has_feature)
    gap = spans.start[later] - spans.end[earlier]
    (place_in, speed_in), (place_out, speed_out) = at_start, at_end
    extrapolated = place_out[earlier] + (speed_out[earlier] + speed_in[later]) / 2 * gap[:, None]
    height = np.exp((place_out[earlier, 2] + place_in[later, 2]) / 2)
    error = np.hypot(*(extrapolated - place_in[later])[:, :2].T) / height
    similarity = np.einsum("nd,nd->n", pooled.features[earlier], pooled.features[later])
    fits = (error <= TOLERANCE * (1 + gap)) & (1 - similarity < max_distance)
    fits &= np.abs(place_out[earlier, 2] - place_in[later, 2]) <= MAX_LOG_HEIGHT
    earlier, later, error = earlier[fits], later[fits], error[fits]
    order = np.lexsort((later, earlier, error))
    earlier, later = earlier[order], later[order]
    best = np.intersect1d(np.unique(earlier, return_index=True)[1], np.unique(later, return_index=True)[1])
    previous_track[later[best]] = spans.track[earlier[best]]
    return previous_track


def _candidates(spans: Spans, has_feature: Mask) -> tuple[Integers, Integers]:
    """Rows of one camera with features, of different tracks, the later of which starts within `MAX_GAP`."""
    found = [np.zeros((2, 0), np.int64)]
    for camera in np.unique(spans.camera):
        rows = np.flatnonzero((spans.camera == camera) & has_feature)
        rows = rows[np.argsort(spans.start[rows], kind="stable")]
        starts, ends = spans.start[rows], spans.end[rows]
        low, high = np.searchsorted(starts, ends, "right"), np.searchsorted(starts, ends + MAX_GAP, "right")
        count = high - low
        later = concatenated_ranges(low, count)
        found.append(np.stack([np.repeat(rows, count), rows[later]]))
    earlier, later = np.concatenate(found, axis=1)
    different = spans.track[earlier] != spans.track[later]
    return earlier[different], later[different]


def edge_motion(moment: Floats, tracklet: Integers, boxes: Floats, seconds: Floats) -> Motion:
    """Position and speed per second of each tracklet at this moment, `[T, 3]` each.

    The three numbers are the horizontal middle, the lower edge and the logarithm of the height, from a straight-line
    fit to the boxes within `MOTION_SECONDS`. The speed is 0 with fewer than 3 boxes.

    Args:
        moment: `[T]` seconds: start or end of each tracklet.
        tracklet: `[N]` tracklet of each box.
        boxes: `[N, 4]` x, y, width, height.
        seconds: `[N]` time of each box.
    """
    n = len(moment)
    rows = np.flatnonzero(np.abs(seconds - moment[tracklet]) <= MOTION_SECONDS)
    tracklet, time = tracklet[rows], seconds[rows] - moment[tracklet[rows]]
    x, y, width, height = boxes[rows].T
    state = np.stack([x + width / 2, y + height, np.log(np.maximum(height, 1e-3))], axis=1)
    count = np.bincount(tracklet, minlength=n).astype(np.float64)

    def mean(values: Floats) -> Floats:
        return np.bincount(tracklet, values, minlength=n) / np.maximum(count, 1)

    middle = mean(time)
    variance = mean((time - middle[tracklet]) ** 2)
    moves = (count >= 3) & (variance > 0)
    place, speed = np.zeros((n, 3)), np.zeros((n, 3))
    for column in range(3):
        level = mean(state[:, column])
        slope = mean((time - middle[tracklet]) * (state[:, column] - level[tracklet])) / np.where(moves, variance, 1)
        speed[:, column] = np.where(moves, slope, 0)
        place[:, column] = level - speed[:, column] * middle
    return place, speed
