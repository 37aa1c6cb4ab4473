"""Galleries: store tracklets of many cameras for days, and find a person by photo."""

from __future__ import annotations

from reid.gallery.answers import Answer, Hit, Seen, search
from reid.gallery.gallery import Added, Gallery
from reid.gallery.scope import Scope
from reid.gallery.settings import GallerySettings
from reid.gallery.trajectory import Trajectory, find_trajectory

__all__ = [
    "Added",
    "Answer",
    "Gallery",
    "GallerySettings",
    "Hit",
    "Scope",
    "Seen",
    "Trajectory",
    "find_trajectory",
    "search",
]
