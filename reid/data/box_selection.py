"""Select boxes of a track to embed: the expected quality of each box from geometry, and a choice spread over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import float_column, integer_column
from reid.core.errors import DataError, check_number
from reid.data.tracks import Floats, Integers, Tracks

_HIDING = 0.3
"""Overlap from which the feet of the hidden person are not visible, and two people can be confused."""
_SHORT = 6
"""Boxes without an overlap that end an encounter, and frames without a box that end a stretch."""
_BORDER = 2.0
"""Distance in pixels from the image border within which a box touches it. Trackers clip and round."""


def box_quality(tracks: Tracks, frame_sizes: Mapping[str, Sequence[float]] | Sequence[float] | None = None) -> Floats:
    """Estimate how well each box shows a person, 0..1, from geometry alone; pixels are not read.

    quality = size × visible × (1 − covered) × (1 + c) / 2, with

    - size = min(1, √(area / median area of the camera's boxes)), where area is the area inside the image;
    - visible = fraction of the box inside the image. A box that touches the border may have been clipped there by the
      tracker, so visible is at most the fraction of a person of the camera's median aspect ratio (over boxes that
      touch no border): height / (width × median height-to-width) at the upper and lower border, and its inverse at
      the left and right border;
    - covered = 1 − Π (1 − fⱼ), where fⱼ is the fraction of the box under box j of the same camera and frame whose lower
      edge is lower, that is, closer to the camera (with equal edges, each covers the other);
    - c = confidence. If the confidences of a camera leave 0..1, they are scaled to 0..1 first (all equal: 1).

    Args:
        tracks: all boxes of each frame; a box that is missing here cannot cover another one.
        frame_sizes: width and height of the frames in pixels, for all cameras or by camera name. A camera without a
            size has no border: all its boxes are inside.

    Returns:
        `[N]` float64. 0 for a box outside the image.

    Raises:
        DataError: a size that is not two numbers.

    Example:
        >>> tracks = Tracks.from_columns(["door"], [0, 0], [1, 2], [1, 1], [[50, 50, 20, 60], [-10, 50, 20, 60]])
        >>> box_quality(tracks, (640, 480)).round(2).tolist()
        [1.0, 0.41]
    """
    if len(tracks) == 0:
        return np.zeros(0)
    size = _sizes(tracks, frame_sizes)
    low = np.where(np.isnan(size), tracks.boxes[:, :2], np.maximum(tracks.boxes[:, :2], 0))
    high = np.fmin(tracks.boxes[:, :2] + tracks.boxes[:, 2:], size)
    rows = np.flatnonzero((high > low).all(axis=1))
    camera, low, high, size = tracks.camera[rows], low[rows], high[rows], size[rows]
    sides = high - low
    area = sides.prod(axis=1)
    shape = sides[:, 1] / sides[:, 0]
    visible = area / tracks.boxes[rows, 2:].prod(axis=1)
    # Comparisons with NaN are false: no border where the size is unknown.
    touches = ((low <= _BORDER) & ~np.isnan(size)) | (high >= size - _BORDER)
    scale = np.empty(len(rows))
    confidence = np.empty(len(rows))
    for number in np.unique(camera):
        mask = camera == number
        whole = mask & ~touches.any(axis=1)
        typical = np.median(shape[whole if whole.any() else mask])
        scale[mask] = np.minimum(1, np.sqrt(area[mask] / np.median(area[mask])))
        vertical = np.where(touches[mask, 1], shape[mask] / typical, 1)
        horizontal = np.where(touches[mask, 0], typical / shape[mask], 1)
        visible[mask] = np.minimum(visible[mask], np.minimum(vertical, horizontal))
        confidence[mask] = _scaled_to_unit(tracks.confidence[rows][mask])
    quality = np.zeros(len(tracks))
    quality[rows] = scale * visible * (1 - _covered(camera, tracks.frame[rows], low, high)) * (1 + confidence) / 2
    return quality


def hidden_feet(tracks: Tracks) -> NDArray[np.bool_]:
    """Whether 30 % or more of each box is covered by boxes closer to the camera, which hide its feet first, `[N]`."""
    low = tracks.boxes[:, :2]
    return _covered(tracks.camera, tracks.frame, low, low + tracks.boxes[:, 2:]) >= _HIDING


def stretches(tracks: Tracks) -> Integers:
    """Divide each track where its tracker may have switched to another person; return the stretch of each box, `[N]`.

    A stretch ends after an encounter, that is, after consecutive boxes that overlap another box of their frame by 30 %
    or more of the smaller of the two. Fewer than 6 boxes between two overlaps belong to the encounter. A stretch also
    ends where the track has no box in 6 consecutive frames of its camera or more; frames without any box do not
    count. Numbers rise from 0 over cameras, tracks and time.

    Example:
        >>> frame = [*range(1, 13), 3]
        >>> boxes = [[10 * f, 0, 30, 90] for f in frame]
        >>> tracks = Tracks.from_columns(["door"], [0] * 13, [1] * 12 + [2], frame, boxes)
        >>> stretches(tracks)[tracks.track == 1].tolist()
        [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    n = len(tracks)
    if n == 0:
        return np.zeros(0, np.int64)
    order = np.lexsort((tracks.frame, tracks.track, tracks.camera))
    camera, track, frame, meets = (x[order] for x in (tracks.camera, tracks.track, tracks.frame, _meets(tracks)))
    new = np.r_[True, (np.diff(camera) != 0) | (np.diff(track) != 0)]
    for number in np.unique(camera):
        rows = np.flatnonzero(camera == number)
        steps = np.diff(np.unique(frame[rows]))  # above 1 where not every frame was analysed
        new[rows[1:]] |= np.diff(frame[rows]) > _SHORT * (np.median(steps) if len(steps) else 1)
    # Runs of boxes with or without an overlap. An encounter ends at a long run without an overlap.
    run_start = np.flatnonzero(new | np.r_[True, np.diff(meets.astype(np.int8)) != 0])
    length = np.diff(np.append(run_start, n))
    ends_encounter = ~meets[run_start] & (length >= _SHORT) & ~new[run_start]
    new[run_start[ends_encounter]] = True
    result = np.empty(n, np.int64)
    result[order] = np.cumsum(new) - 1
    return result


def choose_boxes(
    tracks: Tracks, quality: ArrayLike, *, per_track: int = 8, stretch: ArrayLike | None = None
) -> Integers:
    """Choose up to `per_track` boxes of each (camera, track), spread over time, each the best of its interval.

    The boxes of quality above 0, sorted by time, are divided into `per_track` intervals with equal numbers of boxes.
    From each interval the box of highest quality is taken, the earliest of equal ones. A track with at most
    `per_track` such boxes keeps all of them. A track whose boxes all have quality 0 keeps none.

    Args:
        tracks: boxes.
        quality: `[N]`, from `box_quality`.
        per_track: 1 or more.
        stretch: `[N]`, from `stretches`: choose up to `per_track` boxes of each stretch instead of each track.

    Returns:
        `[M]` int64, ascending rows of `tracks`.

    Raises:
        ConfigError: `per_track` below 1.
        DataError: `quality` or `stretch` of another length.
    """
    check_number("per_track", per_track, 1)
    quality = float_column("quality", quality, len(tracks))
    part = integer_column("stretch", np.zeros(len(tracks), np.int64) if stretch is None else stretch, len(tracks))
    rows = np.flatnonzero(quality > 0)
    if len(rows) == 0:
        return rows
    keys = np.stack([tracks.camera, tracks.track, part])[:, rows]
    order = np.lexsort((tracks.frame[rows], *keys[::-1]))
    rows = rows[order]
    first = np.r_[True, (np.diff(keys[:, order]) != 0).any(axis=0)]
    group = np.cumsum(first) - 1
    count = np.bincount(group)
    place = np.arange(len(rows)) - np.flatnonzero(first)[group]
    interval = place * np.minimum(count, per_track)[group] // count[group]
    order = np.lexsort((place, -quality[rows], interval, group))
    best = np.r_[True, (np.diff(group[order]) != 0) | (np.diff(interval[order]) != 0)]
    return np.sort(rows[order[best]])


def _meets(tracks: Tracks) -> NDArray[np.bool_]:
    """Return whether each box overlaps another one of its frame by 30 % or more of the smaller box, `[N]`."""
    low, high = tracks.boxes[:, :2], tracks.boxes[:, :2] + tracks.boxes[:, 2:]
    area, meets = tracks.boxes[:, 2:].prod(axis=1), np.zeros(len(tracks), np.bool_)
    for a, b in _pairs_in_frames(tracks.camera, tracks.frame):
        common = np.clip(np.minimum(high[a], high[b]) - np.maximum(low[a], low[b]), 0, None).prod(axis=1)
        close = common >= _HIDING * np.minimum(area[a], area[b])
        meets[a[close]] = meets[b[close]] = True
    return meets


def _covered(camera: Integers, frame: Integers, low: Floats, high: Floats) -> Floats:
    """Return the fraction of each box that others cover. Rows are sorted by (camera, frame)."""
    area = (high - low).prod(axis=1)
    clear = np.ones(len(camera))
    for a, b in _pairs_in_frames(camera, frame):
        common = np.clip(np.minimum(high[a], high[b]) - np.maximum(low[a], low[b]), 0, None).prod(axis=1)
        clear[a] *= np.where(high[b, 1] >= high[a, 1], 1 - common / area[a], 1)
        clear[b] *= np.where(high[a, 1] >= high[b, 1], 1 - common / area[b], 1)
    return 1 - clear


def _pairs_in_frames(camera: Integers, frame: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Yield all pairs of rows of one image, in blocks without repeated rows. Rows are sorted by (camera, frame).

    Row i is paired with row i + 1, i + 2, … of its image: as many blocks as the fullest image has boxes.
    """
    n = len(camera)
    last = np.flatnonzero(np.r_[(np.diff(camera) != 0) | (np.diff(frame) != 0), True])
    end = last[np.searchsorted(last, np.arange(n))]
    step = 1
    a = np.flatnonzero(end >= np.arange(n) + step)
    while len(a):
        yield a, a + step
        step += 1
        a = a[end[a] >= a + step]


def _scaled_to_unit(confidence: Floats) -> Floats:
    low, high = confidence.min(), confidence.max()
    if low >= 0 and high <= 1:
        return confidence
    return np.ones_like(confidence) if low == high else (confidence - low) / (high - low)


def _sizes(tracks: Tracks, frame_sizes: Mapping[str, Sequence[float]] | Sequence[float] | None) -> Floats:
    """`[N, 2]` width and height for each box, NaN where unknown."""
    unknown = (np.nan, np.nan)
    sizes = np.empty((len(tracks.camera_names), 2))
    for number, name in enumerate(tracks.camera_names):
        size = frame_sizes.get(name, unknown) if isinstance(frame_sizes, Mapping) else frame_sizes or unknown
        if len(size) != 2:
            raise DataError(f"frame_sizes: {tuple(size)!r} of camera {name!r} must be two numbers, width and height.")
        sizes[number] = size
    return sizes[tracks.camera]
