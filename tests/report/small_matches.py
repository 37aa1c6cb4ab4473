"""Small matches and random crops for the tests of the match report."""

from __future__ import annotations

from typing import Any

import numpy as np

from reid.config import MatchSettings
from reid.mtmc.matching import Links, Matches, match
from reid.mtmc.tracklets import Tracklets

MARKUP = "</script><script>alert(1)</script><!--"
"""Text that must never be interpreted as HTML."""


def bundled_tracklets(people: int = 6, cameras: int = 3, *, seed: int = 0, names: tuple[str, ...] = ()) -> Tracklets:
    """Return tracklets of ten boxes: each camera sees each person once, one after another.

    Features of a person are close together. Local track ids are 10·camera + person, in another order in each camera.
    """
    rng = np.random.default_rng(seed)
    size = max(16, people)
    centres = 4 * np.linalg.qr(rng.normal(size=(size, size)))[0]
    rows: list[tuple[int, int, int, float]] = []
    features = []
    for camera in range(cameras):
        for person in range(people):
            for box in range(10):
                begin = 60.0 * camera + 7.0 * person
                rows.append((camera, 10 * camera + (person + camera) % people, 1 + box, begin + 0.4 * box))
                features.append(centres[person] + rng.normal(0, 0.4, size))
    camera_of, track, frame, seconds = (np.array(column) for column in zip(*rows, strict=True))
    names = names or tuple(f"cam{number:02d}" for number in range(1, cameras + 1))
    frame = frame + np.round(seconds * 2.5).astype(np.int64)
    return Tracklets.from_features(
        names, camera_of, track, frame, np.array(features, np.float32), seconds.astype(np.float64)
    )


def small_matches(people: int = 6, cameras: int = 3, **more: Any) -> Matches:
    settings = MatchSettings(threshold=0.5, camera_whitening=None)
    return match(bundled_tracklets(people, cameras, **more), settings=settings)


def random_crop(number: int, height: int = 96, width: int = 48) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)


def empty_matches() -> Matches:
    none = np.zeros(0, np.int64)
    tracklets = Tracklets.from_features(("cam01", "cam02"), none, none, none, np.zeros((0, 4), np.float32))
    floats = np.zeros(0)
    links = Links(
        none,
        none,
        floats.astype(np.float32),
        1.0,
        len(tracklets),
        floats,
        floats,
        np.zeros(0, object),
        np.zeros(0, bool),
    )
    return Matches(tracklets, none, floats, links, 0.5, 0.01, {})
