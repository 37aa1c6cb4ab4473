"""Which boxes of a track are worth a look: the quality of a box from geometry alone, and a choice spread over time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import ReidError

_BORDER = 2.0
"""Pixels from the picture's border within which a box counts as touching it: trackers clip and round."""


def box_quality(
    camera: ArrayLike,
    frame: ArrayLike,
    boxes: ArrayLike,
    confidence: ArrayLike | None = None,
    frame_size: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """How good a picture of a person each box promises, 0..1; the pixels are not looked at.

    quality = size × visible × (1 − covered) × (1 + c) / 2, with

    - size = min(1, √(area / median area of the camera's boxes)), of the parts inside the picture;
    - visible = share of the box inside the picture; a box that touches the border may have been clipped there by the
      tracker, so there it is at most the share that is left of a person of the camera's median shape (of boxes that
      touch no border): height / (width × median height-to-width) at the upper and lower border, its inverse at the
      left and right one;
    - covered = 1 − Π (1 − sⱼ), where sⱼ is the share of the box under box j of the same camera and frame whose lower
      edge is lower, which is nearer to the camera (equal edges: both count as in front of the other);
    - c = confidence; of a camera whose confidences leave 0..1 they are first stretched to 0..1 (all equal: 1).

    Args:
        camera, frame: `[N]` integers; boxes of equal values are in one picture. All boxes of a picture should be given,
            or what covers a box is not known.
        boxes: `[N, 4]` x, y, width, height in pixels.
        confidence: `[N]` of the detector; None is 1 for all.
        frame_size: `[2]` width, height, of all cameras, or `[C, 2]` by camera number, NaN where unknown; None where
            all are unknown. Where it is unknown, every box counts as inside.

    Returns:
        `[N]` float64. 0 for a box without area, wholly outside the picture, or with a number that is not finite.

    Raises:
        ReidError: columns of different lengths, a camera without a row in `frame_size`.
    """
    camera, frame, boxes, confidence = _columns(camera, frame, boxes, confidence)
    if len(boxes) == 0:
        return np.zeros(0)
    size = _sizes(camera, frame_size)
    with np.errstate(invalid="ignore"):
        good = np.isfinite(boxes).all(axis=1) & np.isfinite(confidence) & (boxes[:, 2:] > 0).all(axis=1)
        low = np.maximum(boxes[:, :2], 0)
        low = np.where(np.isnan(size), boxes[:, :2], low)
        high = np.fmin(boxes[:, :2] + boxes[:, 2:], size)
        good &= (high > low).all(axis=1)
    quality = np.zeros(len(boxes))
    rows = np.flatnonzero(good)
    camera, frame, low, high, size = camera[rows], frame[rows], low[rows], high[rows], size[rows]
    sides = high - low
    area = sides.prod(axis=1)
    shape = sides[:, 1] / sides[:, 0]
    visible = area / boxes[rows, 2:].prod(axis=1)
    # NaN compares false: no border where the size is unknown.
    known = ~np.isnan(size)
    touches = ((low <= _BORDER) & known) | (high >= size - _BORDER)
    scale = np.empty(len(rows))
    sure = np.empty(len(rows))
    for number in np.unique(camera):
        own = camera == number
        whole = own & ~touches.any(axis=1)
        typical = np.median(shape[whole if whole.any() else own])
        scale[own] = np.minimum(1, np.sqrt(area[own] / np.median(area[own])))
        left = np.where(touches[own, 1], shape[own] / typical, 1), np.where(touches[own, 0], typical / shape[own], 1)
        visible[own] = np.minimum(visible[own], np.minimum(*left))
        sure[own] = _unit(confidence[rows][own])
    quality[rows] = scale * visible * (1 - _covered(camera, frame, low, high)) * (1 + sure) / 2
    return quality


def choose_boxes(
    camera: ArrayLike,
    track: ArrayLike,
    frame: ArrayLike,
    boxes: ArrayLike,
    confidence: ArrayLike | None = None,
    frame_size: ArrayLike | None = None,
    *,
    per_track: int = 8,
    quality: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Up to `per_track` boxes of every (camera, track), spread over its time, each the best of its stretch.

    The track's boxes of quality above 0, in order of time, are cut into `per_track` stretches of equally many boxes;
    of each the box of highest quality is taken, the earliest of equal ones. A track of no more boxes than `per_track`
    gives all of them; one whose boxes are all of quality 0 gives none.

    Args:
        camera, track, frame, boxes, confidence, frame_size: as in `box_quality`; `track` `[N]` integers.
        quality: `[N]`, where `box_quality` has been called already.

    Returns:
        `[M]` int64, ascending rows of the arrays given.

    Raises:
        ReidError: `per_track` below 1; columns of different lengths.
    """
    if per_track < 1:
        raise ReidError(f"per_track is {per_track}: it must be 1 box or more.")
    camera, frame, boxes, confidence = _columns(camera, frame, boxes, confidence)
    track = _column("track", track, len(boxes))
    if quality is None:
        quality = box_quality(camera, frame, boxes, confidence, frame_size)
    quality = _column("quality", quality, len(boxes)).astype(np.float64)
    rows = np.flatnonzero(quality > 0)
    if len(rows) == 0:
        return rows
    rows = rows[np.lexsort((frame[rows], track[rows], camera[rows]))]
    first = np.r_[True, (np.diff(camera[rows]) != 0) | (np.diff(track[rows]) != 0)]
    group = np.cumsum(first) - 1
    count = np.bincount(group)
    place = np.arange(len(rows)) - np.flatnonzero(first)[group]
    stretches = np.minimum(count, per_track)[group]
    stretch = place * stretches // count[group]
    order = np.lexsort((place, -quality[rows], stretch, group))
    best = np.r_[True, (np.diff(group[order]) != 0) | (np.diff(stretch[order]) != 0)]
    return np.sort(rows[order[best]])


def _covered(
    camera: NDArray[np.int64], frame: NDArray[np.int64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Row i meets row i + 1, i + 2, … of the same picture: as many steps as the fullest picture has boxes."""
    n = len(camera)
    order = np.lexsort((frame, camera))
    camera, frame, low, high = camera[order], frame[order], low[order], high[order]
    area = (high - low).prod(axis=1)
    last = np.flatnonzero(np.r_[(np.diff(camera) != 0) | (np.diff(frame) != 0), True])
    end = last[np.searchsorted(last, np.arange(n))]
    clear = np.ones(n)
    step = 1
    a = np.flatnonzero(end >= np.arange(n) + step)
    while len(a):
        b = a + step
        common = np.clip(np.minimum(high[a], high[b]) - np.maximum(low[a], low[b]), 0, None).prod(axis=1)
        b_in_front = high[b, 1] >= high[a, 1]
        a_in_front = high[a, 1] >= high[b, 1]
        clear[a] *= np.where(b_in_front, 1 - common / area[a], 1)
        clear[b] *= np.where(a_in_front, 1 - common / area[b], 1)
        step += 1
        a = a[end[a] >= a + step]
    covered = np.empty(n)
    covered[order] = 1 - clear
    return covered


def _unit(confidence: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = confidence.min(), confidence.max()
    if low >= 0 and high <= 1:
        return confidence
    return np.ones_like(confidence) if low == high else (confidence - low) / (high - low)


def _sizes(camera: NDArray[np.int64], frame_size: ArrayLike | None) -> NDArray[np.float64]:
    """`[N, 2]` width and height for each box, NaN where unknown."""
    if frame_size is None:
        return np.full((len(camera), 2), np.nan)
    size = np.asarray(frame_size, dtype=np.float64)
    if size.shape == (2,):
        return np.broadcast_to(size, (len(camera), 2))
    if size.ndim != 2 or size.shape[1] != 2:
        raise ReidError(f"frame_size has shape {list(size.shape)}: it must be [2] or [cameras, 2].")
    if camera.min() < 0 or camera.max() >= len(size):
        raise ReidError(f"frame_size has {len(size)} rows, but the cameras are {camera.min()} to {camera.max()}.")
    return size[camera]


def _columns(
    camera: ArrayLike, frame: ArrayLike, boxes: ArrayLike, confidence: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ReidError(f"Boxes have shape {list(boxes.shape)}: they must be [N, 4], x, y, width, height.")
    n = len(boxes)
    sure = np.ones(n) if confidence is None else _column("confidence", confidence, n).astype(np.float64)
    return _column("camera", camera, n).astype(np.int64), _column("frame", frame, n).astype(np.int64), boxes, sure


def _column(name: str, values: ArrayLike, n: int) -> NDArray[np.generic]:
    array = np.asarray(values)
    if array.shape != (n,):
        raise ReidError(f"{name} has shape {list(array.shape)}, but there are {n} boxes.")
    return array
