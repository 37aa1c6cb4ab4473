"""Tracklets: one row per local track (or part of one), with its pooled feature and the time it was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import column_codes, find_columns
from reid.core.errors import DataError
from reid.data.box_selection import box_quality, hidden_feet
from reid.data.tracks import Floats, Integers, Tracks, check_frame_numbers
from reid.mtmc.cameras import HIDDEN_FEET, Cameras
from reid.mtmc.negatives import Spans
from reid.mtmc.pooling import MIN_WEIGHT, Features, Mask, pool_features, select_prototypes
from reid.mtmc.splitting import change_points
from reid.mtmc.stitching import edge_motion, stitch_tracks

if TYPE_CHECKING:
    from reid.embedding.table import Embeddings

_COLUMNS = (
    "camera", "track", "start", "end", "frames", "features", "has_feature", "quality",
    "first_frame", "last_frame", "entry", "exit", "previous_track", "paths", "edges",
)  # fmt: skip


def _no_rows() -> Integers:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Tracklets(Spans):
    """T tracklets of several cameras, as columns.

    Rows are sorted by (camera, track, start). Two rows of one (camera, track) are parts of one local track that was
    split; their frames do not overlap.

    Attributes:
        camera_names: Name of each camera; `camera` indexes it. A camera may have no tracklets.
        camera: `[T]` int64.
        track: `[T]` int64, the local id.
        start, end: `[T]` seconds of the first and last box, on the clock that all cameras share.
        frames: `[T]` int64, number of boxes.
        features: `[T, D]` float32, pooled over crops and L2-normalised; zeros where `has_feature` is False.
        has_feature: `[T]` bool.
        quality: `[T]` 0..1, mean weight of the tracklet's crops (1 where unknown).
        first_frame, last_frame: `[T]` int64, as in the camera's file.
        entry, exit: `[T, 2]` ground position in metres of the first and last box; NaN where unknown.
        paths: `[T]` arrays `[M, 4]`: seconds, ground position x, y in metres, and its standard deviation, of each box;
            without rows where the ground is unknown.
        previous_track: `[T]` int64, local id of the earlier track that this one continues (`stitch_tracks`); −1: none.
        edges: `[T, 2, 5]` at the start and at the end: middle of the box's lower edge x, y in pixels, logarithm of the
            height, and velocity in heights per second; NaN where boxes are unknown, and where a split track was cut.
        prototype_row: `[P]` int64, rows of the embeddings: up to `MAX_PROTOTYPES` crops of each tracklet, the most
            typical one first, then those that differ most (`select_prototypes`).
        prototype_tracklet: `[P]` int64, tracklet of each prototype.
        invalid_rows: `[B]` int64, rows of the embeddings that were left out: NaN, infinity or only zeros.

    Example:
        >>> tracklets = Tracklets.from_features(
        ...     ["entrance"],
        ...     camera=np.array([0, 0, 0]),
        ...     track=np.array([1, 1, 2]),
        ...     frame=np.array([25, 50, 75]),
        ...     features=np.eye(3, dtype=np.float32),
        ... )
        >>> tracklets.track.tolist(), tracklets.start.tolist(), tracklets.frames.tolist()
        ([1, 2], [1.0, 3.0], [2, 1])
    """

    camera_names: tuple[str, ...]
    frames: Integers
    features: Features
    has_feature: Mask
    quality: Floats
    first_frame: Integers
    last_frame: Integers
    entry: Floats
    exit: Floats
    previous_track: Integers
    paths: NDArray[np.object_] = field(default_factory=lambda: np.zeros(0, object), repr=False)
    edges: Floats = field(default_factory=lambda: np.zeros((0, 2, 5)), repr=False)
    prototype_row: Integers = field(default_factory=_no_rows)
    prototype_tracklet: Integers = field(default_factory=_no_rows)
    invalid_rows: Integers = field(default_factory=_no_rows)

    def __post_init__(self) -> None:
        if len(self.paths) != len(self.camera):
            paths = np.empty(len(self.camera), object)
            paths[:] = [np.zeros((0, 4))] * len(paths)
            object.__setattr__(self, "paths", paths)
        if len(self.edges) != len(self.camera):
            object.__setattr__(self, "edges", np.full((len(self.camera), 2, 5), np.nan))

    @property
    def has_path(self) -> Mask:
        """Whether ground positions of each tracklet are known, `[T]`."""
        return np.array([len(path) > 0 for path in self.paths], bool)

    def __len__(self) -> int:
        """Number of tracklets."""
        return len(self.camera)

    def describe(self, row: int) -> str:
        """Name a tracklet in a message."""
        return f"camera {self.camera_names[self.camera[row]]}, track {self.track[row]}"

    def take(self, rows: Integers) -> Tracklets:
        """Return the given rows in that order, without prototypes."""
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return replace(self, **columns, prototype_row=_no_rows(), prototype_tracklet=_no_rows())

    def append(self, other: Tracklets) -> Tracklets:
        """Return the rows of both, without prototypes. The cameras are those of both."""
        names = tuple(dict.fromkeys([*self.camera_names, *other.camera_names]))
        if names != other.camera_names:
            place = np.array([names.index(name) for name in other.camera_names], np.int64)
            other = replace(other, camera=place[other.camera])
        columns: dict[str, Any] = {n: np.concatenate([getattr(self, n), getattr(other, n)]) for n in _COLUMNS}
        return replace(self, camera_names=names, **columns, prototype_row=_no_rows(), prototype_tracklet=_no_rows())

    @classmethod
    def from_features(
        cls,
        camera_names: Sequence[str],
        camera: Integers,
        track: Integers,
        frame: Integers,
        features: Features,
        seconds: Floats | None = None,
        *,
        weights: Floats | None = None,
        split: bool = False,
    ) -> Tracklets:
        """Make tracklets of N crops with known camera, track and frame; each crop counts as one box.

        Args:
            camera_names: Names that `camera` indexes.
            camera, track, frame: `[N]` of each crop.
            features: `[N, D]`.
            seconds: `[N]` time of each crop; frame / 25 if not given.
            weights: `[N]` 0..1, weight of each crop; equal if not given.
            split: Whether tracks are cut where their appearance changes (`change_points`).
        """
        if seconds is None:
            seconds = np.asarray(frame, np.float64) / 25.0
        crops = _Crops(camera, track, frame, features, weights)
        return _assemble(tuple(camera_names), _Boxes(camera, track, frame, seconds), crops, split)

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Embeddings,
        cameras: Cameras | None = None,
        *,
        camera_names: Mapping[int, str] | None = None,
        split: bool = False,
    ) -> Tracklets:
        """Make tracklets of embeddings that have camids, tracks and frames, without track files.

        Args:
            embeddings: One row per crop.
            cameras: Frame rates and clock offsets; 25 frames per second and equal clocks if not given.
            camera_names: Name of each camid; `cam01` for 1 and so on if not given.
            split: As in `from_features`.

        Raises:
            DataError: A column is missing, or a camid has no name.
        """
        columns = {"camids": embeddings.camids, "tracks": embeddings.tracks, "frames": embeddings.frames}
        missing = [name for name, values in columns.items() if values is None]
        if missing:
            raise DataError(
                f"The embeddings have no column {', '.join(missing)}. Matching needs the camera, local track and frame "
                "of each crop: embed with them, or give the track files with the embeddings."
            )
        names, camera = _named_cameras(columns["camids"], camera_names)
        frame, track = np.asarray(columns["frames"]), np.asarray(columns["tracks"])
        if (track < 0).any():
            raise DataError(
                f"{int((track < 0).sum())} of {len(track)} embeddings have a track below 0: their track is unknown. "
                "Remove these rows, or give each its own track."
            )
        seconds = _seconds(names, camera, frame, cameras)
        return cls.from_features(names, camera, track, frame, embeddings.features, seconds, split=split)

    @classmethod
    def from_tracks(
        cls,
        tracks: Tracks,
        embeddings: Embeddings | None,
        cameras: Cameras | None = None,
        *,
        camera_names: Mapping[int, str] | None = None,
        blur: Floats | None = None,
        split: bool = True,
        stitch: bool = True,
    ) -> Tracklets:
        """Make tracklets of track files; the embeddings give the appearance of some or all of their boxes.

        A track without an embedded box is a tracklet without a feature. Crops are weighted by the quality of their
        boxes (`box_selection.box_quality`, at least 0.05). The ground position is that of the middle of a box's lower
        edge, where the camera has a homography.

        Args:
            tracks: All boxes.
            embeddings: Rows with camid, track and frame. Rows of tracks that are not in `tracks` are an error.
            cameras: Frame rates, clocks, sizes, homographies.
            camera_names: Name of each camid of the embeddings; `cam01` for 1 and so on if not given.
            blur: `[rows of embeddings]` sharpness of each crop, 0 (none) to 1, if known.
            split: As in `from_features`. Embeddings without frames are not split.
            stitch: Whether tracks that the tracker lost and found again are stitched (`stitch_tracks`), and `match`
                may use handovers between cameras (`handovers.find_handovers`).

        Raises:
            DataError: Embeddings without camids or tracks, of unknown cameras or tracks.
        """
        names = tracks.camera_names
        seconds = _seconds(names, tracks.camera, tracks.frame, cameras)
        ground, error = _ground(tracks, cameras)
        boxes = _Boxes(
            tracks.camera, tracks.track, tracks.frame, seconds, tracks.boxes if stitch else None, ground, error
        )
        if embeddings is None or len(embeddings) == 0:
            dimension = 1 if embeddings is None else embeddings.dimension
            none = _no_rows()
            return _assemble(names, boxes, _Crops(none, none, none, np.zeros((0, dimension), np.float32), None), False)
        if embeddings.camids is None or embeddings.tracks is None:
            raise DataError("The embeddings have no camids or tracks. Embed with them to match by tracks.")
        found_names, index = _named_cameras(embeddings.camids, camera_names)
        unknown = [name for name in found_names if name not in names]
        if unknown:
            raise DataError(
                f"The embeddings are of cameras {', '.join(unknown)}, which have no tracks (cameras with tracks: "
                f"{', '.join(names)}). Use the same camera names."
            )
        camera = np.array([names.index(name) for name in found_names], np.int64)[index]
        weights = None
        if embeddings.frames is not None:
            found = {d: int(tracks.has_box(camera, embeddings.tracks, embeddings.frames + d).sum()) for d in (0, -1, 1)}
            check_frame_numbers("The embeddings", "rows", found, "Add {offset} to their frames.", len(camera))
            weights = _crop_quality(tracks, cameras, np.stack([camera, embeddings.tracks, embeddings.frames]))
        if blur is not None:
            weights = (np.ones(len(camera)) if weights is None else weights) * np.clip(blur, MIN_WEIGHT, 1)
        split &= embeddings.frames is not None
        frames = np.zeros(len(camera), np.int64) if embeddings.frames is None else embeddings.frames
        return _assemble(names, boxes, _Crops(camera, embeddings.tracks, frames, embeddings.features, weights), split)


def tracklet_of_boxes(tracklets: Tracklets, tracks: Tracks) -> Integers:
    """Tracklet of each box of the tracks, `[N]`; for a split track, the part that contains its frame."""
    code = column_codes(np.concatenate([[tracklets.camera, tracklets.track], [tracks.camera, tracks.track]], axis=1))
    most = 1 + max(int(tracks.frame.max(initial=0)), int(tracklets.last_frame.max(initial=0)))
    begins = code[: len(tracklets)] * most + tracklets.first_frame
    order = np.argsort(begins, kind="stable")
    return order[np.searchsorted(begins[order], code[len(tracklets) :] * most + tracks.frame, "right") - 1]


def _crop_quality(tracks: Tracks, cameras: Cameras | None, crops: Integers) -> Floats:
    """Quality of the box of each crop (camera, track, frame) `[3, N]`; 1 for a crop without a box."""
    known = {} if cameras is None else cameras.cameras
    quality = box_quality(tracks, {name: camera.size for name, camera in known.items() if camera.size is not None})
    found = find_columns(np.stack([tracks.camera, tracks.track, tracks.frame]), crops)
    return np.where(found >= 0, np.append(quality, 1.0)[found], 1.0)


def _named_cameras(camids: Integers | None, names: Mapping[int, str] | None) -> tuple[tuple[str, ...], Integers]:
    """Names of the different camids, and each row's index into them."""
    known, index = np.unique(np.asarray(camids), return_inverse=True)
    if (known < 0).any():
        raise DataError(
            f"{int((known[index] < 0).sum())} of {len(index)} embeddings have camid {known[0]}: "
            "their camera is unknown. Remove these rows, or give each unknown camera its own number, 0 or more."
        )
    if names is None:
        return tuple(f"cam{number:02d}" for number in known), index.astype(np.int64)
    unnamed = [str(number) for number in known if int(number) not in names]
    if unnamed:
        raise DataError(f"Camera {', '.join(unnamed)} of the embeddings has no name. Name it; named are {dict(names)}.")
    return tuple(names[int(number)] for number in known), index.astype(np.int64)


def _seconds(names: Sequence[str], camera: Integers, frame: Integers, cameras: Cameras | None) -> Floats:
    if cameras is None:
        return (frame - 1) / 25.0
    seconds = np.zeros(len(frame))
    for number in np.unique(camera).tolist():
        rows = camera == number
        seconds[rows] = cameras[names[number]].seconds(frame[rows])
    return seconds


def _ground(tracks: Tracks, cameras: Cameras | None) -> tuple[Floats, Floats]:
    """Ground position `[N, 2]` of each box and its error `[N]`, metres; NaN where the camera has no homography."""
    places, error = np.full((len(tracks.camera), 2), np.nan), np.full(len(tracks.camera), np.nan)
    for number, name in enumerate(tracks.camera_names):
        camera = cameras.cameras.get(name) if cameras is not None else None
        if camera is not None and camera.homography is not None:
            rows = np.flatnonzero(tracks.camera == number)
            places[rows] = camera.ground(tracks.boxes[rows])
            error[rows] = camera.ground_error(tracks.boxes[rows])
    places[~(np.isfinite(places).all(axis=1) & np.isfinite(error))] = np.nan
    if np.isfinite(error).any():
        error[hidden_feet(tracks)] *= HIDDEN_FEET
    return places, error


@dataclass(frozen=True, eq=False)
class _Rows:
    """Camera, local id and frame of N boxes or crops."""

    camera: Integers
    track: Integers
    frame: Integers


@dataclass(frozen=True, eq=False)
class _Boxes(_Rows):
    """N boxes. `boxes [N, 4]` is given if tracks are to be stitched, `ground [N, 2]` and its `error [N]` if known."""

    seconds: Floats
    boxes: Floats | None = None
    ground: Floats | None = None
    error: Floats | None = None


@dataclass(frozen=True, eq=False)
class _Crops(_Rows):
    """N crops; `weights` may be None."""

    features: Features
    weights: Floats | None = None


def _assemble(names: tuple[str, ...], boxes: _Boxes, crops: _Crops, split: bool) -> Tracklets:
    """Group boxes by (camera, track, part), assign the crops to them, and pool."""
    order = np.lexsort((boxes.frame, boxes.track, boxes.camera))
    camera, track, frame = boxes.camera[order], boxes.track[order], boxes.frame[order]
    seconds = boxes.seconds[order]
    n = len(order)
    new_track = np.ones(n, bool)
    new_track[1:] = (np.diff(camera) != 0) | (np.diff(track) != 0)
    owner = find_columns(np.stack([camera[new_track], track[new_track]]), np.stack([crops.camera, crops.track]))
    if (owner < 0).any():
        row = int(np.flatnonzero(owner < 0)[0])
        raise DataError(
            f"{int((owner < 0).sum())} embeddings are of tracks that are not in the track files (the first: camera "
            f"{names[crops.camera[row]]}, track {crops.track[row]}). Use embeddings and tracks of one run."
        )
    new_part = new_track.copy()
    if split:
        number = np.cumsum(new_track) - 1
        first = np.flatnonzero(new_track)
        last = np.append(first[1:], n) - 1
        spans = Spans(camera[first], track[first], seconds[first], seconds[last])
        cut_track, cut_frame = change_points(crops.features, owner, crops.frame, spans)
        most = 1 + max(int(array.max(initial=0)) for array in (frame, crops.frame, cut_frame))
        passed = np.searchsorted(cut_track * most + cut_frame, number * most + frame, "right")
        new_part[1:] |= (np.diff(number) == 0) & (np.diff(passed) != 0)
        begins = (number * most + frame)[new_part]
        part = np.searchsorted(begins, owner * most + crops.frame, "right") - 1
        owner = np.maximum(part, (np.cumsum(new_part) - 1)[first][owner])
    first = np.flatnonzero(new_part)
    last = np.append(first[1:], n) - 1 if n else first
    places = np.full((n, 2), np.nan) if boxes.ground is None else boxes.ground[order]
    spans = Spans(
        camera[first].astype(np.int64),
        track[first].astype(np.int64),
        np.minimum(seconds[first], seconds[last]).astype(np.float64),
        np.maximum(seconds[first], seconds[last]).astype(np.float64),
    )
    pooled = pool_features(crops.features, owner, len(first), crops.weights)
    prototypes = select_prototypes(crops.features, owner, pooled)
    previous_track = np.full(len(first), -1)
    edges = np.full((len(first), 2, 5), np.nan)
    if boxes.boxes is not None:
        part = np.cumsum(new_part) - 1
        motion = [edge_motion(moment, part, boxes.boxes[order], seconds) for moment in (spans.start, spans.end)]
        previous_track = stitch_tracks(spans, pooled, motion[0], motion[1])
        edges = np.stack([np.hstack([place, speed[:, :2] / np.exp(place[:, 2:])]) for place, speed in motion], axis=1)
        cut = first[~new_track[first]]
        edges[part[cut], 0] = edges[part[cut] - 1, 1] = np.nan
    paths = np.empty(len(first), object)
    paths[:] = [np.zeros((0, 4))] * len(first)
    if boxes.error is not None:
        rows = np.column_stack([seconds, places, boxes.error[order]])
        for place, part in enumerate(np.split(rows, first[1:])[: len(first)]):
            paths[place] = part[np.isfinite(part[:, 1])]
    return Tracklets(
        paths=paths,
        camera_names=names,
        **vars(spans),
        frames=(last - first + 1).astype(np.int64),
        features=pooled.features,
        has_feature=pooled.has_feature,
        quality=pooled.quality,
        first_frame=frame[first].astype(np.int64),
        last_frame=frame[last].astype(np.int64),
        entry=places[first],
        exit=places[last],
        previous_track=previous_track,
        edges=edges,
        prototype_row=prototypes,
        prototype_tracklet=owner[prototypes],
        invalid_rows=np.flatnonzero(~pooled.usable),
    )
