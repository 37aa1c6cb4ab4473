"""Tracklets of labelled or unlabelled crops: which crops one camera's tracker linked, and when they were seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from reid.core.arrays import UNKNOWN, column_codes
from reid.core.errors import DataError
from reid.data.crops import Crops
from reid.data.tracks import Floats, Integers
from reid.mtmc.constraints import Constraints, Key
from reid.mtmc.negatives import Spans, simultaneous_rows
from reid.mtmc.pooling import Features
from reid.mtmc.tracklets import Tracklets

MAX_GAP = 250
"""Frames without a crop after which a track is cut: 10 s at 25 frames per second."""

_FPS = 25.0


@dataclass(frozen=True, eq=False)
class TrackedCrops:
    """N crops of T tracklets.

    Attributes:
        crops: the crops; `tracks` is the tracklet of each, 0 … T − 1.
        local: `[N]` int64 track of each crop, as given.
        camera: `[N]` int64 code of the camera; those of unknown cameras have one code, and no two of their tracklets
            are simultaneous.
        seconds: `[N]` time of each crop. Where the camera or the frame is unknown, tracklets follow each other.
    """

    crops: Crops
    local: Integers
    camera: Integers
    seconds: Floats

    def __len__(self) -> int:
        """Number of tracklets."""
        return int(self.crops.tracks.max(initial=-1)) + 1

    @property
    def spans(self) -> Spans:
        """Camera, first and last second of each tracklet."""
        tracklet, n = self.crops.tracks, len(self)
        start, end, camera = np.full(n, np.inf), np.full(n, -np.inf), np.zeros(n, np.int64)
        np.minimum.at(start, tracklet, self.seconds)
        np.maximum.at(end, tracklet, self.seconds)
        camera[tracklet] = self.camera
        return Spans(camera, np.arange(n), start, end)

    def simultaneous(self) -> Integers:
        """Return the pairs of tracklets `[P, 2]` that one camera sees simultaneously: different people."""
        return simultaneous_rows(self.spans, np.ones(len(self), bool))

    def take(self, tracklets: ArrayLike) -> TrackedCrops:
        """Return the crops of some tracklets (mask `[T]`), with tracklets numbered from 0 again."""
        kept = np.asarray(tracklets)[self.crops.tracks]
        crops = self.crops.take(kept)
        numbered = replace(crops, tracks=column_codes([crops.tracks]))
        return TrackedCrops(numbered, self.local[kept], self.camera[kept], self.seconds[kept])

    def tracklets(self, features: Features) -> Tracklets:
        """Return the tracklets with features pooled from those of the crops `[N, D]`."""
        names = [_camera_name(code) for code in range(int(self.camera.max(initial=0)) + 1)]
        frame = np.maximum(self.crops.frames, 0)
        return Tracklets.from_features(names, self.camera, self.crops.tracks, frame, features, self.seconds)

    def constraints(self, given: Constraints) -> tuple[Constraints, int]:
        """Return constraints on the result of `tracklets`, and the number of those left out: of tracks not here.

        A camera is named as in `crops.names`, or by its number.
        """
        crops = self.crops
        frames: dict[tuple[str, int], dict[tuple[int, int], list[int]]] = {}
        columns = (crops.camids, self.local, self.camera, crops.tracks, crops.frames)
        for camid, track, code, tracklet, frame in zip(*(column.tolist() for column in columns), strict=True):
            frames.setdefault((crops.camera_name(camid), track), {}).setdefault((code, tracklet), []).append(frame)

        def find(key: Key) -> list[Key]:
            parts = frames.get(key[:2], {}).items()
            inside = [part for part, seen in parts if key[2] < 0 or min(seen) <= key[2] <= max(seen)]
            return [(_camera_name(code), tracklet, -1) for code, tracklet in inside]

        pairs, left_out = [], 0
        for kind in (given.cannot_link, given.must_link):
            sides = [(find(first), find(second)) for first, second in kind]
            pairs.append(tuple(pair for side in sides for pair in product(*side) if pair[0] != pair[1]))
            left_out += sum(not (first and second) for first, second in sides)
        return replace(given, cannot_link=pairs[0], must_link=pairs[1]), left_out

    def held_out(self, fraction: float) -> Integers:
        """Return which tracklets `[T]` belong to the last part of each camera's recording: a mask."""
        spans, held = self.spans, np.zeros(len(self), bool)
        for code in np.unique(spans.camera):
            rows = np.flatnonzero(spans.camera == code)
            order = rows[np.argsort(spans.start[rows], kind="stable")]
            held[order[len(order) - round(fraction * len(order)) :]] = True
        return held


def tracklets_of(crops: Crops, *, max_gap: int = MAX_GAP) -> TrackedCrops:
    """Group crops into tracklets: those of one identity, camera and track.

    The identity is used for nothing else. Where it is the same for all crops, the track decides. Where the track is
    unknown, identity and camera do, and tracklets are cut where more than `max_gap` frames have no crop.

    In Market-1501, `tracks` numbers the recordings of a camera, in each of which frames count from the start. This is
    recognised by the crops: more than 1 in 100 has the camera, track and frame of another crop. Tracklets are then cut
    equally, and the times of different recordings do not overlap.

    Args:
        crops: in any order. Frames count within a camera.
        max_gap: frames.

    Raises:
        DataError: no crops.

    Example:
        >>> crops = Crops.from_columns(list("abcd"), [1, 1, 1, 2], camids=[1] * 4, frames=[5, 9, 900, 7])
        >>> tracked = tracklets_of(crops)
        >>> tracked.crops.tracks.tolist(), tracked.simultaneous().tolist()
        ([0, 0, 1, 2], [[0, 2]])
    """
    if len(crops) == 0:
        raise DataError("There are no crops to adapt to. Pass a data set with a train split.")
    frame, known = crops.frames, (crops.frames != UNKNOWN) & (crops.camids != UNKNOWN)
    moment = column_codes([crops.sources, crops.camids, crops.tracks, frame])
    repeated = (np.bincount(moment)[moment] > 1) & known & (crops.tracks != UNKNOWN)
    recordings = repeated.sum() > known.sum() / 100
    group = column_codes([crops.sources, crops.pids, crops.camids, crops.tracks])
    order = np.lexsort((frame, group))
    before, after = order[:-1], order[1:]
    interrupted = (frame[before] != UNKNOWN) & (frame[after] - frame[before] > max_gap)
    new = (group[before] != group[after]) | (interrupted & (recordings | (crops.tracks[before] == UNKNOWN)))
    tracklet = np.zeros(len(crops), np.int64)
    tracklet[order] = np.cumsum(np.append([False], new))
    length = 2 * (int(frame.max(initial=0)) + 1)
    seconds = (frame + (length * np.maximum(crops.tracks, 0) if recordings else 0)) / _FPS
    seconds[~known] = seconds.max(initial=0) + 1 + tracklet[~known]
    camera = column_codes([crops.sources, crops.camids])
    return TrackedCrops(replace(crops, tracks=tracklet), crops.tracks, camera, seconds)


def _camera_name(code: int) -> str:
    return f"camera {code}"
