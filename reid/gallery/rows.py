"""Rows of a gallery: up to four prototypes of each tracklet, with stable ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reid.core.arrays import UNKNOWN, unit_rows
from reid.core.errors import DataError
from reid.embedding.table import Embeddings
from reid.mtmc.pooling import pool_features, select_prototypes

if TYPE_CHECKING:
    from reid.mtmc.cameras import Cameras

FORMAT = 2
"""Of the columns, stored in gallery.json. Format 1 lacks frame, time and box; the first write adds them, empty."""

UNKNOWN_TIME = np.iinfo(np.int64).min
"""Value of `start` and `end` where the time is unknown."""

_ROWS_PER_BLOCK = 2048

Integers = NDArray[np.int64]


def feature_matrix(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float16]:
    """Return a column `features` of N rows as a matrix `[N, D]`."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    flat: NDArray[np.float16] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def schema(dimension: int) -> pa.Schema:
    """Return the Arrow schema of a gallery's rows for features of length D."""
    time = pa.timestamp("ms", "UTC")
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("tracklet", pa.string(), nullable=False),
            pa.field("features", pa.list_(pa.float16(), dimension), nullable=False),
            ("camera", pa.string()),
            ("start", time),
            ("end", time),
            ("track", pa.int64()),
            ("part", pa.string()),
            ("prototype", pa.int64()),
            ("crops", pa.int64()),
            ("quality", pa.float32()),
            ("identity", pa.int64()),
            ("path", pa.string()),
            ("picture", pa.binary()),
            ("source", pa.string()),
            ("added", time),
            ("expires", time),
            ("frame", pa.int64()),
            ("time", time),
            ("box", pa.list_(pa.float32(), 4)),
        ]
    )


def tracklet_id(source: str, camera: str | None, track: int | None, part: object) -> str:
    """Return the stable id of a tracklet: 20 hexadecimal digits of a hash of these values."""
    text = "\0".join((source, camera or "", "" if track is None else str(track), str(part)))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


@dataclass(frozen=True, eq=False)
class Sightings:
    """T tracklets as columns, before they become rows.

    Attributes:
        camera: `[T]` names, None where unknown.
        track: `[T]` local id, -1 where unknown.
        part: `[T]` texts that distinguish tracklets of one camera and track.
        start, end: `[T]` milliseconds since 1970; `UNKNOWN_TIME` where unknown.
        crops: `[T]` number of crops.
        identity: `[T]` identity over cameras; -1 where unknown.
    """

    camera: NDArray[np.object_]
    track: Integers
    part: NDArray[np.object_]
    start: Integers
    end: Integers
    crops: Integers
    identity: Integers

    def __len__(self) -> int:
        """Return T."""
        return len(self.track)


@dataclass(frozen=True, eq=False)
class Places:
    """When and where each of N crops was cut.

    Attributes:
        time: `[N]` milliseconds since 1970; `UNKNOWN_TIME` where unknown.
        box: `[N, 4]` left, top, width and height in pixels; NaN where unknown.
    """

    time: Integers
    box: NDArray[np.float64]


@dataclass(frozen=True)
class Clock:
    """Converts frames to times: the cameras' clocks, and the time (ms since 1970) of their second 0."""

    cameras: Cameras | None = None
    epoch: int | None = None

    def times(self, camera: str | None, frames: Integers) -> Integers:
        """Return milliseconds since 1970 of each frame of a camera; `UNKNOWN_TIME` without an epoch.

        Without cameras, 25 frames per second are assumed.
        """
        if self.epoch is None or camera is None:
            return np.full(len(frames), UNKNOWN_TIME)
        seconds = (frames - 1) / 25.0 if self.cameras is None else self.cameras[camera].seconds(frames)
        return np.where(frames == UNKNOWN, UNKNOWN_TIME, self.epoch + np.round(1000 * seconds).astype(np.int64))


def camera_names(table: Embeddings) -> NDArray[np.object_]:
    """Return the camera of each row by name, None where unknown: `meta["camera_names"]`, else `cam01` for 1."""
    names = np.full(len(table), None, object)
    if table.camids is not None:
        for camid in np.unique(table.camids[table.camids != UNKNOWN]).tolist():
            names[table.camids == camid] = _camera_name(table, camid)
    return names


def _camera_name(table: Embeddings, camid: int) -> str:
    known = table.meta.get("camera_names")
    return str(known[camid]) if known else f"cam{camid:02d}"


def find_places(table: Embeddings, clock: Clock) -> Places:
    """Return the time of each crop by the clock of its camera; boxes are unknown."""
    times = np.full(len(table), UNKNOWN_TIME)
    if table.camids is not None and table.frames is not None:
        for camid in np.unique(table.camids[table.camids != UNKNOWN]).tolist():
            rows = np.flatnonzero(table.camids == camid)
            times[rows] = clock.times(_camera_name(table, camid), table.frames[rows])
    return Places(times, np.full((len(table), 4), np.nan))


def group_crops(table: Embeddings, times: Integers) -> tuple[Sightings, Integers]:
    """Return the tracklets of embedded crops with their times `[N]`, and the tracklet of each row `[N]`.

    A tracklet is all crops of one camera and track, and of one identity where identities are known. A crop without a
    track is a tracklet of its own; its path, or its row, is its part.
    """
    n = len(table)
    unknown = np.full(n, UNKNOWN)
    track = unknown if table.tracks is None else table.tracks
    pids = unknown if table.pids is None else np.where(table.pids > 0, table.pids, UNKNOWN)
    camids = unknown if table.camids is None else table.camids
    single = (track == UNKNOWN) | (camids == UNKNOWN)
    keys = np.stack([single, camids, track, pids, np.where(single, np.arange(n), 0)])
    _, first, owner, crops = np.unique(keys, axis=1, return_index=True, return_inverse=True, return_counts=True)
    owner = owner.reshape(-1)
    names = camera_names(table)
    start, end = np.full(len(first), np.iinfo(np.int64).max), np.full(len(first), UNKNOWN_TIME)
    np.minimum.at(start, owner, times)
    np.maximum.at(end, owner, times)
    part = np.where(pids[first] == UNKNOWN, "", pids[first].astype(str)).astype(object)
    for row in np.flatnonzero(single[first]).tolist():
        number = int(first[row])
        part[row] = str(number) if table.paths is None else table.paths[number]
    return Sightings(names[first], track[first], part, start, end, crops, pids[first]), owner


def make_rows(
    table: Embeddings,
    grouped: tuple[Sightings, Integers],
    places: Places,
    *,
    source: str,
    added: int,
    retention: int | None = None,
    picture_of: Callable[[int], bytes | None] | None = None,
    keep_paths: bool = True,
) -> tuple[pa.Table, int]:
    """Return the rows of tracklets, and the number of crops that are left out: NaN, infinite or zero.

    Args:
        table: N crops.
        grouped: T tracklets, and the tracklet `[N]` of each crop; -1 for a crop of none.
        places: time and box of each crop.
        source: of the tracklets, part of their ids.
        added: milliseconds since 1970.
        retention: milliseconds that a tracklet is kept after its end, or after `added` if its time is unknown.
        picture_of: the JPEG of a crop, by its row, or None.
        keep_paths: whether to store the paths of crops.

    Raises:
        DataError: there are crops, but none has a feature.
    """
    sightings, owner = grouped
    rows = np.flatnonzero(owner >= 0)
    features, owner = (table.features, owner) if len(rows) == len(owner) else (table.features[rows], owner[rows])
    weights = None if table.quality is None else table.quality[rows].astype(np.float64)
    pooled = pool_features(features, owner, len(sightings), weights)
    chosen = select_prototypes(features, owner, pooled)
    if not len(chosen) and len(table):
        raise DataError("There is no feature to add: all are NaN, infinite or zero. Embed the crops again.")
    whose = owner[chosen]
    is_first = np.append(True, np.diff(whose) != 0)
    number = np.arange(len(whose)) - np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    ids = _ids(sightings, source)[whose]
    crop = rows[chosen]

    def integers(values: Integers) -> pa.Array:
        return pa.array(values, mask=values == UNKNOWN)

    def times(values: Integers) -> pa.Array:
        unknown = values == UNKNOWN_TIME
        return pa.array(np.where(unknown, 0, values), pa.int64(), mask=unknown).cast(pa.timestamp("ms", "UTC"))

    def constant(value: Any, kind: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), len(whose))

    time = pa.timestamp("ms", "UTC")
    columns = {
        "id": pa.array([f"{one}-{index}" for one, index in zip(ids.tolist(), number.tolist(), strict=True)]),
        "tracklet": pa.array(ids, pa.string()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(_half(features, chosen)), table.dimension),
        "camera": pa.array(sightings.camera[whose], pa.string()),
        "start": times(sightings.start[whose]),
        "end": times(sightings.end[whose]),
        "track": integers(sightings.track[whose]),
        "part": pa.array(sightings.part[whose], pa.string()),
        "prototype": pa.array(number, pa.int64()),
        "crops": pa.array(sightings.crops[whose], pa.int64()),
        "quality": pa.array(pooled.quality[whose], pa.float32()),
        "identity": integers(sightings.identity[whose]),
        "path": constant(None, pa.string()),
        "picture": constant(None, pa.binary()),
        "source": constant(source, pa.string()),
        "added": constant(added, time),
        "expires": constant(None, time),
        "frame": constant(None, pa.int64()) if table.frames is None else integers(table.frames[crop]),
        "time": times(places.time[crop]),
        "box": _boxes(places.box[crop]),
    }
    if table.paths is not None and keep_paths:
        columns["path"] = pa.array(table.paths[crop], pa.string())
    if retention is not None:
        expires = np.where(sightings.end == UNKNOWN_TIME, added, sightings.end) + retention
        columns["expires"] = times(expires[whose])
    if picture_of is not None:
        columns["picture"] = pa.array(map(picture_of, crop.tolist()), pa.binary())
    return pa.table(columns, schema=schema(table.dimension)), int((~pooled.usable).sum())


def _boxes(boxes: NDArray[np.float64]) -> pa.Array:
    flat = pa.array(np.nan_to_num(boxes, nan=0.0).astype(np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, 4, mask=pa.array(np.isnan(boxes).any(axis=1)))


def _half(features: NDArray[np.float32], rows: Integers) -> NDArray[np.float16]:
    """Return rows divided by their length, as one float16 column. PyTorch rounds as NumPy does, but faster."""
    import torch

    half = np.empty((len(rows), features.shape[1]), np.float16)
    for start in range(0, len(rows), _ROWS_PER_BLOCK):
        block = torch.from_numpy(unit_rows(features[rows[start : start + _ROWS_PER_BLOCK]]))
        torch.from_numpy(half[start : start + _ROWS_PER_BLOCK]).copy_(block)
    return half.reshape(-1)


def _ids(sightings: Sightings, source: str) -> NDArray[np.object_]:
    ids = np.empty(len(sightings), object)
    columns = (sightings.camera, sightings.track.tolist(), sightings.part)
    ids[:] = [tracklet_id(source, *values) for values in zip(*columns, strict=True)]
    return ids
