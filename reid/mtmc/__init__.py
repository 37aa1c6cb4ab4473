"""Tracks of several cameras: who is the same person? Knows arrays only; files are `files.py`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reid.data.tracks import Tracks
from reid.mtmc.cameras import Camera, Cameras
from reid.mtmc.constraints import Constraints, find_violations, read_constraints
from reid.mtmc.scores import BoxScores, ClusterScores, IdScores, TrackScores, cluster_scores, score_tracks, true_ids
from reid.mtmc.tracklets import Tracklets

if TYPE_CHECKING:
    from reid.mtmc.matching import Links, Matches, MatchSettings, match

__all__ = [
    "BoxScores",
    "Camera",
    "Cameras",
    "ClusterScores",
    "Constraints",
    "IdScores",
    "Links",
    "MatchSettings",
    "Matches",
    "TrackScores",
    "Tracklets",
    "Tracks",
    "cluster_scores",
    "find_violations",
    "match",
    "read_constraints",
    "score_tracks",
    "true_ids",
]


def __getattr__(name: str) -> Any:
    """Import the matcher when it is first used: it needs torch, scores do not."""
    if name not in ("Links", "MatchSettings", "Matches", "match"):
        raise AttributeError(f"module 'reid.mtmc' has no attribute {name!r}")
    import reid.mtmc.matching

    return getattr(reid.mtmc.matching, name)
