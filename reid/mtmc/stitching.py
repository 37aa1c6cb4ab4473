"""Tracks that a tracker lost and found again in one camera: which one goes on as which?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reid.data.tracks import Tracks
from reid.mtmc.tracklets import Tracklets, certain_negative_distance, tracklet_of_boxes

LONGEST_GAP = 3.0
"""Seconds for which a track may have been lost."""

SPAN = 1.0
"""Seconds at the end of a track, and at the beginning of the next, from which the walk is taken."""

TOLERANCE = 0.15
"""How far the meeting may miss, in heights of the box, and again for every second of the gap."""

MOST_GROWTH = 0.25
"""How far the logarithms of the heights may differ."""


def stitch_tracks(tracklets: Tracklets, tracks: Tracks, seconds: NDArray[np.float64]) -> Tracklets:
    """The same tracklets with `previous_track` filled in: the local track that each goes on, if any.

    A tracklet j goes on as i did, both of one camera, when all hold:

    1. j begins after i ends, at most 3 s later;
    2. carried on from the end of i over the gap with the mean of both their speeds (straight lines through the boxes
       of i's last and of j's first second), the middle of the lower edge comes within 0.15 · (1 + gap / s) heights of
       where j begins;
    3. the heights differ by less than e^0.25, 28 %;
    4. both have a feature, and their cosine distance is less than that which 90 % of the tracklets seen at one time by
       one camera are apart. With fewer than 20 such pairs nothing is joined;
    5. neither has another that fits better by 2.

    Args:
        tracklets: parts of split tracks are tracklets of their own.
        tracks: the boxes.
        seconds: `[N]` when each box was seen.
    """
    limit = certain_negative_distance(
        tracklets.camera, tracklets.start, tracklets.end, tracklets.features, tracklets.has_feature
    )
    if limit is None:
        return tracklets
    earlier, later = _pairs(tracklets)
    gap = tracklets.start[later] - tracklets.end[earlier]
    place_out, speed_out = _walk(tracklets, tracks, seconds, last=True)
    place_in, speed_in = _walk(tracklets, tracks, seconds, last=False)
    ahead = place_out[earlier] + (speed_out[earlier] + speed_in[later]) / 2 * gap[:, None]
    height = np.exp((place_out[earlier, 2] + place_in[later, 2]) / 2)
    miss = np.hypot(*(ahead - place_in[later])[:, :2].T) / height
    alike = np.einsum("nd,nd->n", tracklets.features[earlier], tracklets.features[later])
    fits = (miss <= TOLERANCE * (1 + gap)) & (1 - alike < limit)
    fits &= np.abs(place_out[earlier, 2] - place_in[later, 2]) <= MOST_GROWTH
    earlier, later, miss = earlier[fits], later[fits], miss[fits]
    order = np.lexsort((later, earlier, miss))
    earlier, later = earlier[order], later[order]
    best = np.zeros(len(order), bool)
    best[np.intersect1d(np.unique(earlier, return_index=True)[1], np.unique(later, return_index=True)[1])] = True
    previous_track = tracklets.previous_track.copy()
    previous_track[later[best]] = tracklets.track[earlier[best]]
    return replace(tracklets, previous_track=previous_track)


def _pairs(tracklets: Tracklets) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of one camera with features, the later of which begins within `LONGEST_GAP` after the end of the earlier."""
    found = [np.zeros((2, 0), np.int64)]
    for camera in np.unique(tracklets.camera):
        rows = np.flatnonzero((tracklets.camera == camera) & tracklets.has_feature)
        rows = rows[np.argsort(tracklets.start[rows], kind="stable")]
        starts, ends = tracklets.start[rows], tracklets.end[rows]
        low, high = np.searchsorted(starts, ends, "right"), np.searchsorted(starts, ends + LONGEST_GAP, "right")
        count = high - low
        later = np.arange(count.sum()) + np.repeat(low - np.cumsum(count) + count, count)
        found.append(np.stack([np.repeat(rows, count), rows[later]]))
    earlier, later = np.concatenate(found, axis=1)
    another = tracklets.track[earlier] != tracklets.track[later]
    return earlier[another], later[another]


def _walk(
    tracklets: Tracklets, tracks: Tracks, seconds: NDArray[np.float64], *, last: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each tracklet is at its end (or beginning), and its speed in a second, `[T, 3]` each.

    The three numbers are the middle, the lower edge and the logarithm of the height, by a straight line through the
    boxes of `SPAN` seconds; standing still with fewer than 3 boxes.
    """
    of = tracklet_of_boxes(tracklets, tracks)
    moment = (tracklets.end if last else tracklets.start)[of]
    near = np.flatnonzero(np.abs(seconds - moment) <= SPAN)
    of, time = of[near], (seconds - moment)[near]
    x, y, width, height = tracks.boxes[near].T
    state = np.stack([x + width / 2, y + height, np.log(np.maximum(height, 1e-3))], axis=1)
    count = np.bincount(of, minlength=len(tracklets)).astype(np.float64)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(of, values, minlength=len(tracklets)) / np.maximum(count, 1)

    middle = mean(time)
    spread = mean((time - middle[of]) ** 2)
    moves = (count >= 3) & (spread > 0)
    place, speed = np.zeros((len(tracklets), 3)), np.zeros((len(tracklets), 3))
    for column in range(3):
        level = mean(state[:, column])
        slope = mean((time - middle[of]) * (state[:, column] - level[of])) / np.where(moves, spread, 1)
        speed[:, column] = np.where(moves, slope, 0)
        place[:, column] = level - speed[:, column] * middle
    return place, speed
