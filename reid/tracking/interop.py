"""Exchange boxes, tracks and identities with supervision's `Detections`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from reid.core.arrays import boxes_of_corners, corners_of_boxes
from reid.core.errors import DataError, ModelError
from reid.data.tracks import Tracks

if TYPE_CHECKING:
    import supervision


def tracks_from_supervision(cameras: Mapping[str, Mapping[int, supervision.Detections]]) -> Tracks:
    """Return the tracks of `{camera: {frame: detections}}`, for `reid.match` and `write_tracks`.

    Detections without a tracker id, or with a negative one, are left out.

    Raises:
        DataError: an id occurs twice in a frame, or a box has no area.

    Example:
        >>> import supervision as sv
        >>> found = sv.Detections(np.array([[10.0, 20, 40, 80]]), tracker_id=np.array([7]))
        >>> tracks_from_supervision({"door": {1: found}}).boxes.tolist()
        [[10.0, 20.0, 30.0, 60.0]]
    """
    camera, frame, track, confidence = list[int](), list[int](), list[int](), list[float]()
    boxes = [np.zeros((0, 4))]
    for number, frames in enumerate(cameras.values()):
        for at, found in frames.items():
            ids = np.full(len(found), -1) if found.tracker_id is None else np.asarray(found.tracker_id)
            rows = np.flatnonzero(ids >= 0)
            boxes.append(boxes_of_corners(np.asarray(found.xyxy, np.float64)[rows].reshape(-1, 4)))
            track += ids[rows].tolist()
            frame += [at] * len(rows)
            camera += [number] * len(rows)
            confidence += [1.0] * len(rows) if found.confidence is None else found.confidence[rows].tolist()
    return Tracks.from_columns(list(cameras), camera, track, frame, np.concatenate(boxes), confidence)


def tracks_to_supervision(tracks: Tracks, camera: str) -> dict[int, supervision.Detections]:
    """Return `{frame: detections}` of one camera; ids (global identities after matching) are the `tracker_id`.

    Raises:
        DataError: no such camera.
        ModelError: supervision is not installed.

    Example:
        >>> tracks = Tracks.from_columns(["door"], [0], [7], [1], [[10, 20, 30, 60]])
        >>> tracks_to_supervision(tracks, "door")[1].xyxy.tolist()
        [[10.0, 20.0, 40.0, 80.0]]
    """
    try:
        import supervision
    except ImportError as error:
        raise ModelError("This needs supervision. Run: pip install 'reid-toolkit[video]'") from error
    if camera not in tracks.camera_names:
        raise DataError(f"There is no camera {camera!r} in the tracks. Known: {', '.join(tracks.camera_names)}.")
    chosen = tracks.take(tracks.camera == tracks.camera_names.index(camera))
    corners = corners_of_boxes(chosen.boxes)
    frames = np.unique(chosen.frame)
    limits = np.searchsorted(chosen.frame, [frames, frames + 1]).T.tolist()
    return {
        number: supervision.Detections(
            xyxy=corners[start:end],
            confidence=chosen.confidence[start:end],
            class_id=np.zeros(end - start, int),
            tracker_id=chosen.track[start:end],
        )
        for number, (start, end) in zip(frames.tolist(), limits, strict=True)
    }
