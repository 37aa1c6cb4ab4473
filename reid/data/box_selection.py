"""Select boxes of a track to embed: the expected quality of each box from geometry, and a choice spread over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import float_column
from reid.core.errors import DataError, check_number
from reid.data.tracks import Floats, Integers, Tracks

_HIDING = 0.3
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


def choose_boxes(tracks: Tracks, quality: ArrayLike, *, per_track: int = 8) -> Integers:
    """Choose up to `per_track` boxes of each (camera, track), spread over time, each the best of its interval.

    The boxes of quality above 0, sorted by time, are divided into `per_track` intervals with equal numbers of boxes.
    From each interval the box of highest quality is taken, the earliest of equal ones. A track with at most
    `per_track` such boxes keeps all of them. A track whose boxes all have quality 0 keeps none.

    Args:
        tracks: boxes.
        quality: `[N]`, from `box_quality`.
        per_track: 1 or more.

    Returns:
        `[M]` int64, ascending rows of `tracks`.

    Raises:
        ConfigError: `per_track` below 1.
        DataError: `quality` of another length.
    """
    check_number("per_track", per_track, 1)
    quality = float_column("quality", quality, len(tracks))
    rows = np.flatnonzero(quality > 0)
    if len(rows) == 0:
        return rows
    rows = rows[np.lexsort((tracks.frame[rows], tracks.track[rows], tracks.camera[rows]))]
    first = np.r_[True, (np.diff(tracks.camera[rows]) != 0) | (np.diff(tracks.track[rows]) != 0)]
    group = np.cumsum(first) - 1
    count = np.bincount(group)
    place = np.arange(len(rows)) - np.flatnonzero(first)[group]
    interval = place * np.minimum(count, per_track)[group] // count[group]
    order = np.lexsort((place, -quality[rows], interval, group))
    best = np.r_[True, (np.diff(group[order]) != 0) | (np.diff(interval[order]) != 0)]
    return np.sort(rows[order[best]])


def _covered(camera: Integers, frame: Integers, low: Floats, high: Floats) -> Floats:
    """Fraction of each box that others cover. Rows are sorted by (camera, frame).

    Row i is compared with row i + 1, i + 2, … of the same image: as many steps as the fullest image has boxes.
    """
    n = len(camera)
    area = (high - low).prod(axis=1)
    last = np.flatnonzero(np.r_[(np.diff(camera) != 0) | (np.diff(frame) != 0), True])
    end = last[np.searchsorted(last, np.arange(n))]
    clear = np.ones(n)
    step = 1
    a = np.flatnonzero(end >= np.arange(n) + step)
    while len(a):
        b = a + step
        common = np.clip(np.minimum(high[a], high[b]) - np.maximum(low[a], low[b]), 0, None).prod(axis=1)
        clear[a] *= np.where(high[b, 1] >= high[a, 1], 1 - common / area[a], 1)
        clear[b] *= np.where(high[a, 1] >= high[b, 1], 1 - common / area[b], 1)
        step += 1
        a = a[end[a] >= a + step]
    return 1 - clear


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
