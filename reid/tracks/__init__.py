"""Tracks of several cameras: who is the same person? Knows arrays only; files are `files.py`'s."""

from reid.tracks.cameras import Camera, Cameras
from reid.tracks.scores import BoxScores, ClusterScores, IdScores, TrackScores, cluster_scores, score, true_ids
from reid.tracks.tracks import Tracks

__all__ = [
    "BoxScores",
    "Camera",
    "Cameras",
    "ClusterScores",
    "IdScores",
    "TrackScores",
    "Tracks",
    "cluster_scores",
    "score",
    "true_ids",
]
