"""Tracks of several cameras: who is the same person? Knows arrays only; files are `files.py`'s."""

from reid.tracks.cameras import Camera, Cameras
from reid.tracks.constraints import Constraints, check_matches, read_constraints
from reid.tracks.matching import Links, Matches, MatchSettings, match
from reid.tracks.scores import BoxScores, ClusterScores, IdScores, TrackScores, cluster_scores, score, true_ids
from reid.tracks.tracklets import Tracklets
from reid.tracks.tracks import Tracks

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
    "check_matches",
    "cluster_scores",
    "match",
    "read_constraints",
    "score",
    "true_ids",
]
