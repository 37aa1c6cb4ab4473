"""Multi-target multi-camera matching: tracklets of several cameras in, identities and their scores out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reid.config import MatchSettings
from reid.data.tracks import Tracks
from reid.mtmc.cameras import Camera, Cameras, read_cameras
from reid.mtmc.clustering_scores import ClusterScores, cluster_scores
from reid.mtmc.constraints import Constraints, find_violations, read_constraints
from reid.mtmc.scores import BoxScores, IdScores, TrackScores, score_tracks, true_ids
from reid.mtmc.track_files import read_tracks
from reid.mtmc.track_writers import write_tracks
from reid.mtmc.tracklets import Tracklets

if TYPE_CHECKING:
    from reid.mtmc.matching import Links, Matches, match

_MATCHING = ("Links", "Matches", "match")

__all__ = [
    "BoxScores", "Camera", "Cameras", "ClusterScores", "Constraints", "IdScores", "Links", "MatchSettings", "Matches",
    "TrackScores", "Tracklets", "Tracks", "cluster_scores", "find_violations", "match", "read_cameras",
    "read_constraints", "read_tracks", "score_tracks", "true_ids", "write_tracks",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the matcher on first use: it needs torch; scores and files do not."""
    if name not in _MATCHING:
        raise AttributeError(f"module 'reid.mtmc' has no attribute {name!r}")
    import reid.mtmc.matching

    return getattr(reid.mtmc.matching, name)
