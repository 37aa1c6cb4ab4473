"""Detectors and trackers of other projects: from video frames to boxes, from boxes to tracks of one camera."""

from reid.tracking.detections import Detections, read_detections
from reid.tracking.detectors import DETECTORS, open_detector
from reid.tracking.interop import tracks_from_supervision, tracks_to_supervision
from reid.tracking.trackers import TRACKERS, FrameTracker, link_boxes

__all__ = [
    "DETECTORS", "TRACKERS", "Detections", "FrameTracker", "link_boxes", "open_detector", "read_detections",
    "tracks_from_supervision", "tracks_to_supervision",
]  # fmt: skip
