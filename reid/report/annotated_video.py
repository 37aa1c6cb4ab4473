"""Videos with a box, the identity and the path of each person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reid.core.arrays import corners_of_boxes
from reid.core.atomic import atomic_file
from reid.core.errors import DataError, ModelError
from reid.data.tracks import Tracks
from reid.data.videos import Video
from reid.report.match_page import pixelate_heads

_TRACE = 20  # frames


def draw_tracks(
    video: Video,
    tracks: Tracks,
    frames: Sequence[int],
    path: str | Path,
    *,
    fps: float = 10.0,
    heads: bool = True,
) -> Path:
    """Write a video (MP4, without sound) of the given frames, with the boxes and ids of `tracks` drawn by supervision.

    An id has the same colour in every video.

    Args:
        video: the frames of one camera.
        tracks: boxes of this camera alone.
        frames: numbers of the frames to write, usually those that were analysed.
        path: the MP4 file, written completely or not at all.
        fps: frames per second of the result.
        heads: whether heads are visible; False pixelates the upper part of each box.

    Raises:
        DataError: OpenCV cannot write the video, or no frame can be read.
        ModelError: supervision is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise ModelError("Annotated videos need supervision. Run: pip install 'reid-toolkit[video]'") from error
    by_track = supervision.ColorLookup.TRACK
    annotators = [
        supervision.BoxAnnotator(color_lookup=by_track),
        supervision.TraceAnnotator(color_lookup=by_track, trace_length=_TRACE),
    ]
    label = supervision.LabelAnnotator(color_lookup=by_track, text_padding=3)
    starts = np.searchsorted(tracks.frame, [[number, number + 1] for number in frames]).reshape(-1, 2).tolist()
    written = 0
    with atomic_file(path) as temporary:
        writer: cv2.VideoWriter | None = None
        try:
            for frame, (start, end) in zip(video.read(frames, first_frame=tracks.first_frame), starts, strict=True):
                if frame.image is None:
                    continue
                picture: Any = cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR)
                boxes, ids = tracks.boxes[start:end], tracks.track[start:end]
                if not heads:
                    _hide_heads(picture, boxes)
                corners = corners_of_boxes(boxes)
                people = supervision.Detections(xyxy=corners, tracker_id=ids, class_id=np.zeros(len(ids), int))
                for annotator in annotators:
                    picture = annotator.annotate(picture, people)
                picture = label.annotate(picture, people, labels=[str(number) for number in ids.tolist()])
                if writer is None:
                    height, width = picture.shape[:2]
                    writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
                    if not writer.isOpened():
                        raise DataError(f"OpenCV cannot write {path} (codec mp4v). Install opencv-python with FFmpeg.")
                if picture.shape[:2] == (height, width):
                    writer.write(picture)
                    written += 1
        finally:
            if writer is not None:
                writer.release()
        if not written:
            raise DataError(f"No frame of {video.path} can be read, so that {path} is not written. Check the video.")
    return Path(path)


def _hide_heads(picture: np.ndarray, boxes: np.ndarray) -> None:
    for left, top, width, height in boxes.tolist():
        x, y = max(0, int(left)), max(0, int(top))
        crop = picture[y : max(0, int(np.ceil(top + height))), x : max(0, int(np.ceil(left + width)))]
        if crop.size:
            crop[...] = pixelate_heads([crop])[0]
