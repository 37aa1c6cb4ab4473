"""Tracks of several cameras: who is the same person? Knows arrays only; files are `files.py`'s."""

from reid.tracks.cameras import Camera, Cameras
from reid.tracks.tracks import Tracks

__all__ = ["Camera", "Cameras", "Tracks"]
