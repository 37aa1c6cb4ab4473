"""Trackers of the package `trackers`: link the boxes of one camera to tracks, all together or frame by frame."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from reid.core.arrays import corners_of_boxes
from reid.core.errors import ModelError, check_choice
from reid.data.tracks import Floats, Integers, Tracks
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


class FrameTracker:
    """Link the boxes of one camera to tracks, frame by frame, at the tracker's defaults.

    Args:
        tracker: a key of `TRACKERS`.
        frame_rate: frames per second, for frames without times.
        floor: lowest confidence of a box that the tracker gets.

    Raises:
        ConfigError: an unknown tracker.
        ModelError: the package `trackers` is not installed.

    Example:
        >>> tracker = FrameTracker(frame_rate=10)
        >>> [tracker.update(np.array([[10.0 * n, 50, 30, 80]]), np.ones(1), n / 10).tolist() for n in range(3)]
        [[1], [1], [1]]
    """

    def __init__(self, tracker: str = "cbiou", *, frame_rate: float = 30.0, floor: float = FLOOR) -> None:
        check_choice("tracker", tracker, TRACKERS)
        try:
            import supervision
            import trackers
        except ImportError as error:
            raise ModelError(f"Tracking needs {error.name}. Run: pip install 'reid-toolkit[video]'") from error
        name, arguments = TRACKERS[tracker]
        self._detections, self._floor = supervision.Detections, floor
        self._engine = getattr(trackers, name)(frame_rate=frame_rate, **arguments)

    def update(self, boxes: Floats, confidence: Floats, time: float | None = None) -> Integers:
        """Link the boxes of the next frame.

        Args:
            boxes: `[n, 4]` x, y, width, height in pixels.
            confidence: `[n]`.
            time: seconds, more than that of the frame before; None if frames follow each other regularly.

        Returns:
            `[n]` int64 track of each box, from 1; 0 for a box that is linked to no track.
        """
        rows = np.flatnonzero(confidence >= self._floor)
        found = self._detections(
            xyxy=corners_of_boxes(boxes[rows]),
            confidence=confidence[rows],
            class_id=np.zeros(len(rows), int),
            data={"row": rows},
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = self._engine.update(found, timestamp=time)
        track = np.zeros(len(boxes), np.int64)
        if len(result):
            track[np.asarray(result.data["row"], np.int64)] = np.maximum(np.asarray(result.tracker_id) + 1, 0)
        return track


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
    steps = np.diff(detections.times)
    timed = len(steps) > 0 and bool(np.isfinite(detections.times).all())
    linker = FrameTracker(tracker, frame_rate=1 / float(np.median(steps)) if timed else 30.0, floor=floor)
    starts = np.searchsorted(detections.row, np.arange(len(detections.frames) + 1)).tolist()
    ids = np.zeros(len(detections), np.int64)
    for place, time in enumerate(detections.times.tolist()):
        here = slice(starts[place], starts[place + 1])
        ids[here] = linker.update(detections.boxes[here], detections.confidence[here], time if timed else None)
    rows = np.flatnonzero(ids)
    return Tracks.from_columns(
        [camera],
        np.zeros(len(rows), np.int64),
        ids[rows],
        detections.frames[detections.row[rows]],
        detections.boxes[rows],
        detections.confidence[rows],
        first_frame=int(min(1, detections.frames.min(initial=1))),
    )
