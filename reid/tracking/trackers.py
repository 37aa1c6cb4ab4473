"""Trackers of the package `trackers`: link the boxes of one camera to tracks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from reid.core.errors import ModelError, check_choice
from reid.data.tracks import Tracks
from reid.tracking.detections import Detections

TRACKERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "cbiou": ("CBIoUTracker", {}),
    "bytetrack": ("ByteTrackTracker", {}),
    "botsort": ("BoTSORTTracker", {"enable_cmc": False}),
    "ocsort": ("OCSORTTracker", {}),
    "sort": ("SORTTracker", {}),
}
"""Class in the package `trackers` and arguments of each tracker. BoT-SORT runs without camera-motion compensation."""

FLOOR = 0.1
"""Default of the lowest confidence that a tracker gets."""


def link_boxes(detections: Detections, camera: str, tracker: str = "cbiou", *, floor: float = FLOOR) -> Tracks:
    """Link the boxes of one camera to tracks, at the tracker's defaults.

    The times of the frames are passed to the tracker, so that gaps and variable frame rates are treated right; without
    times, frames are taken to follow each other regularly. Boxes that the tracker links to no track are left out.

    Args:
        detections: boxes of a camera.
        camera: name of the camera in the result.
        tracker: a key of `TRACKERS`.
        floor: lowest confidence of a box that the tracker gets.

    Returns:
        Tracks with ids from 1.

    Raises:
        ConfigError: an unknown tracker.
        ModelError: the package `trackers` is not installed.

    Example:
        >>> frames = np.arange(1, 9)
        >>> boxes = np.column_stack([10.0 * frames, 0 * frames + 50, 0 * frames + 30, 0 * frames + 80])
        >>> link_boxes(Detections.from_columns(frames, frames / 10, frames, boxes), "door").track.tolist()
        [1, 1, 1, 1, 1, 1, 1, 1]
    """
    check_choice("tracker", tracker, TRACKERS)
    try:
        import supervision
        import trackers
    except ImportError as error:
        raise ModelError(f"Tracking needs {error.name}. Run: pip install 'reid-toolkit[video]'") from error
    name, arguments = TRACKERS[tracker]
    steps = np.diff(detections.times)
    timed = len(steps) > 0 and bool(np.isfinite(detections.times).all())
    engine = getattr(trackers, name)(frame_rate=1 / float(np.median(steps)) if timed else 30.0, **arguments)
    kept = np.flatnonzero(detections.confidence >= floor)
    starts = np.searchsorted(detections.row[kept], np.arange(len(detections.frames) + 1)).tolist()
    corners = np.concatenate([detections.boxes[:, :2], detections.boxes[:, :2] + detections.boxes[:, 2:]], axis=1)
    linked, ids = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, time in enumerate(detections.times.tolist()):
            rows = kept[starts[place] : starts[place + 1]]
            found = supervision.Detections(
                xyxy=corners[rows],
                confidence=detections.confidence[rows],
                class_id=np.zeros(len(rows), int),
                data={"row": rows},
            )
            result = engine.update(found, timestamp=time if timed else None)
            if len(result):
                number = np.asarray(result.tracker_id)
                linked.append(np.asarray(result.data["row"], np.int64)[number >= 0])
                ids.append(number[number >= 0] + 1)
    rows = np.concatenate(linked)
    return Tracks.from_columns(
        [camera],
        np.zeros(len(rows), np.int64),
        np.concatenate(ids),
        detections.frames[detections.row[rows]],
        detections.boxes[rows],
        detections.confidence[rows],
        first_frame=int(min(1, detections.frames.min(initial=1))),
    )
