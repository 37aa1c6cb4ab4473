"""`Tracklets`: one row for each local track (or part of one), its feature pooled over crops, and when it was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reid.core.errors import ReidError
from reid.data.box_selection import box_quality

if TYPE_CHECKING:
    from reid.data.tracks import Tracks
    from reid.embedding.table import Embeddings
    from reid.mtmc.cameras import Cameras

_LEAST_WEIGHT = 0.05
PROTOTYPES = 4
"""Crops of a tracklet that stand for it, at most."""
_CROPS_AT_ONCE = 16_384
_COLUMNS = (
    "camera", "track", "start", "end", "frames", "features", "has_feature", "quality",
    "first_frame", "last_frame", "entry", "exit", "previous_track",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Tracklets:
    """T tracklets of several cameras, as columns.

    Rows are sorted by (camera, track, start). Two rows of one (camera, track) are parts of one local track that was
    split; their frames do not overlap.

    Attributes:
        camera_names: name of each camera; `camera` indexes it. A camera without tracklets may be among them.
        camera: `[T]` int64.
        track: `[T]` int64, the local id.
        start, end: `[T]` seconds of the first and last box, on the one clock of all cameras.
        frames: `[T]` int64, number of boxes.
        features: `[T, D]` float32, pooled over crops and of length 1; zeros where `has_feature` is False.
        has_feature: `[T]` bool.
        quality: `[T]` 0..1, the mean weight of the tracklet's crops (1 where nothing is known of them).
        first_frame, last_frame: `[T]` int64, as in the camera's file.
        entry, exit: `[T, 2]` place on the ground in metres of the first and last box; NaN where unknown.
        previous_track: `[T]` int64, the local id of the earlier track of this camera that this one goes on
            (`broken.py`); −1:
            none.
        prototype_row: `[P]` int64, rows of the embeddings: up to `PROTOTYPES` crops of each tracklet, the most typical
            one and those that differ most from it and from each other, in that order (`select_prototypes`).
        prototype_tracklet: `[P]` int64, the tracklet of each.
        invalid_rows: `[B]` int64, rows of the embeddings that were left out because they hold NaN, infinity or only
            zeros.
    """

    camera_names: tuple[str, ...]
    camera: NDArray[np.int64]
    track: NDArray[np.int64]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    frames: NDArray[np.int64]
    features: NDArray[np.float32]
    has_feature: NDArray[np.bool_]
    quality: NDArray[np.float64]
    first_frame: NDArray[np.int64]
    last_frame: NDArray[np.int64]
    entry: NDArray[np.float64]
    exit: NDArray[np.float64]
    previous_track: NDArray[np.int64]
    prototype_row: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    prototype_tracklet: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    invalid_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        """T."""
        return len(self.camera)

    def describe(self, row: int) -> str:
        """A tracklet in words."""
        return f"camera {self.camera_names[self.camera[row]]}, track {self.track[row]}"

    def shifted(self, offsets: Mapping[str, float]) -> Tracklets:
        """The same tracklets with each camera's clock moved by seconds, by name."""
        seconds = np.array([offsets.get(name, 0.0) for name in self.camera_names])[self.camera]
        return replace(self, start=self.start + seconds, end=self.end + seconds)

    def take(self, rows: NDArray[np.int64]) -> Tracklets:
        """Return the given rows in that order, without prototypes."""
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in _COLUMNS}
        none = np.zeros(0, np.int64)
        return replace(self, **columns, prototype_row=none, prototype_tracklet=none)

    def append(self, other: Tracklets) -> Tracklets:
        """Return the rows of both, without prototypes.

        Raises:
            ReidError: the camera names differ.
        """
        if self.camera_names != other.camera_names:
            raise ReidError(
                f"Tracklets of cameras {', '.join(self.camera_names)} cannot be joined with tracklets of cameras "
                f"{', '.join(other.camera_names)}. Name all cameras in both, in one order."
            )
        none = np.zeros(0, np.int64)
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in _COLUMNS
        }
        return replace(self, **columns, prototype_row=none, prototype_tracklet=none)

    @classmethod
    def from_features(
        cls,
        camera_names: Sequence[str],
        camera: NDArray[np.int64],
        track: NDArray[np.int64],
        frame: NDArray[np.int64],
        features: NDArray[np.float32],
        seconds: NDArray[np.float64] | None = None,
        *,
        weights: NDArray[np.float64] | None = None,
        split: bool = False,
    ) -> Tracklets:
        """Tracklets of N crops that say where and when they were seen; every crop's frame is one box.

        Args:
            camera_names: names that `camera` indexes.
            camera, track, frame: `[N]` of each crop.
            features: `[N, D]`.
            seconds: `[N]` when each crop was seen; frame / 25 where not given.
            weights: `[N]` 0..1, how much each crop is to count; all alike where not given.
            split: whether a track is cut where its appearance changes (`change_points`).
        """
        if seconds is None:
            seconds = np.asarray(frame, np.float64) / 25.0
        return _assemble(
            tuple(camera_names),
            (camera, track, frame, seconds),
            _Crops(camera, track, frame, features, weights),
            split,
        )

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Embeddings,
        cameras: Cameras | None = None,
        *,
        camera_names: Mapping[int, str] | None = None,
        split: bool = False,
    ) -> Tracklets:
        """Tracklets of embeddings that have camids, tracks and frames, where no track files are at hand.

        Args:
            embeddings: one row a crop.
            cameras: frame rates and clock offsets; 25 frames a second and clocks alike where not given.
            camera_names: the name of each camid; `cam01` for 1 and so on where not given.
            split: as in `from_features`.

        Raises:
            ReidError: a column is missing, or a camid has no name.
        """
        columns = {"camids": embeddings.camids, "tracks": embeddings.tracks, "frames": embeddings.frames}
        missing = [name for name, values in columns.items() if values is None]
        if missing:
            raise ReidError(
                f"The embeddings have no column {', '.join(missing)}: to match, each crop must say its camera, local "
                "track and frame. Embed with them, or give the track files beside the embeddings."
            )
        names, camera = _named_cameras(columns["camids"], camera_names)
        frame = np.asarray(columns["frames"])
        seconds = _seconds(names, camera, frame, cameras)
        track = np.asarray(columns["tracks"])
        return cls.from_features(names, camera, track, frame, embeddings.features, seconds, split=split)

    @classmethod
    def from_tracks(
        cls,
        tracks: Tracks,
        embeddings: Embeddings | None,
        cameras: Cameras | None = None,
        *,
        camera_names: Mapping[int, str] | None = None,
        blur: NDArray[np.float64] | None = None,
        split: bool = False,
        stitch: bool = True,
    ) -> Tracklets:
        """Tracklets of track files, with the appearance that the embeddings give to some of their boxes.

        A track none of whose boxes has an embedding is a tracklet without a feature. Crops count by the quality of
        their boxes (`box_quality`, 0.05 at least). A ground place is that of the middle of a box's lower edge,
        where the camera has a homography.

        Args:
            tracks: all boxes.
            embeddings: rows keyed by camid, track and frame; rows of tracks that are not in `tracks` are refused.
            cameras: frame rates, clocks, sizes, homographies.
            camera_names: the name of each camid of the embeddings; `cam01` for 1 and so on where not given.
            blur: `[rows of embeddings]` sharpness of each crop, 0 (none) to 1, if known.
            split: as in `from_features`; needs embeddings with frames.
            stitch: whether tracks that the tracker lost and found again are looked for (`broken.stitch_tracks`).

        Raises:
            ReidError: embeddings without camids or tracks, of cameras or tracks that are not there, or to be split
                without frames.
        """
        names = tracks.camera_names
        seconds = _seconds(names, tracks.camera, tracks.frame, cameras)
        boxes = (tracks.camera, tracks.track, tracks.frame, seconds)
        ground = _ground(tracks, cameras)
        if embeddings is None or len(embeddings) == 0:
            none = np.zeros(0, np.int64)
            dimension = 1 if embeddings is None else embeddings.dimension
            empty = _Crops(none, none, none, np.zeros((0, dimension), np.float32), None)
            return _assemble(names, boxes, empty, False, ground)
        if embeddings.camids is None or embeddings.tracks is None:
            raise ReidError("The embeddings have no camids or tracks, so they cannot be laid to the tracks.")
        theirs, index = _named_cameras(embeddings.camids, camera_names)
        unknown = [name for name in theirs if name not in names]
        if unknown:
            raise ReidError(
                f"The embeddings are of cameras {', '.join(unknown)}, of which there are no tracks "
                f"(tracks of: {', '.join(names)}). Name the cameras alike."
            )
        camera = np.array([names.index(name) for name in theirs], np.int64)[index]
        weights = None
        if embeddings.frames is not None:
            weights = _quality_of_crops(tracks, cameras, camera, embeddings.tracks, embeddings.frames)
        if blur is not None:
            weights = (np.ones(len(camera)) if weights is None else weights) * np.clip(blur, _LEAST_WEIGHT, 1)
        if split and embeddings.frames is None:
            raise ReidError("To split tracks the embeddings must have frames. Embed with them, or do not split.")
        frames = np.zeros(len(camera), np.int64) if embeddings.frames is None else embeddings.frames
        crops = _Crops(camera, embeddings.tracks, frames, embeddings.features, weights)
        tracklets = _assemble(names, boxes, crops, split, ground)
        if stitch:
            from reid.mtmc.stitching import stitch_tracks

            tracklets = stitch_tracks(tracklets, tracks, seconds)
        return tracklets


def tracklet_of_boxes(tracklets: Tracklets, tracks: Tracks) -> NDArray[np.int64]:
    """`[N]`: the tracklet that each box of the tracks belongs to; of a split track, the part that has its frame."""
    group = np.unique(
        np.concatenate(
            [np.stack([tracklets.camera, tracklets.track]), np.stack([tracks.camera, tracks.track])], axis=1
        ),
        axis=1,
        return_inverse=True,
    )[1].reshape(-1)
    of_part, of_box = group[: len(tracklets)], group[len(tracklets) :]
    most = 1 + max(int(tracks.frame.max(initial=0)), int(tracklets.last_frame.max(initial=0)))
    keys = of_part * most + tracklets.first_frame
    order = np.argsort(keys, kind="stable")
    return order[np.searchsorted(keys[order], of_box * most + tracks.frame, "right") - 1]


def _quality_of_crops(
    tracks: Tracks,
    cameras: Cameras | None,
    camera: NDArray[np.int64],
    track: NDArray[np.int64],
    frame: NDArray[np.int64],
) -> NDArray[np.float64]:
    """The quality of the box that each crop is of; 1 for a crop of which there is no box."""
    known = {} if cameras is None else cameras.cameras
    quality = box_quality(tracks, {name: camera.size for name, camera in known.items() if camera.size is not None})
    keys = np.concatenate(
        [np.stack([tracks.camera, tracks.track, tracks.frame]), np.stack([camera, track, frame])], axis=1
    )
    _, code = np.unique(keys, axis=1, return_inverse=True)
    code = code.reshape(-1)
    of_box, of_crop = code[: len(quality)], code[len(quality) :]
    table = np.full(code.max() + 1, 1.0)
    table[of_box] = quality
    return table[of_crop]


def _named_cameras(
    camids: NDArray[np.int64] | None, names: Mapping[int, str] | None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    known, index = np.unique(np.asarray(camids), return_inverse=True)
    if names is None:
        return tuple(f"cam{number:02d}" for number in known), index.astype(np.int64)
    unnamed = [str(number) for number in known if int(number) not in names]
    if unnamed:
        raise ReidError(f"Camera {', '.join(unnamed)} of the embeddings has no name. Named: {dict(names)}.")
    return tuple(names[int(number)] for number in known), index.astype(np.int64)


def _seconds(
    names: Sequence[str], camera: NDArray[np.int64], frame: NDArray[np.int64], cameras: Cameras | None
) -> NDArray[np.float64]:
    if cameras is None:
        return (frame - 1) / 25.0
    seconds = np.zeros(len(frame))
    for number, name in enumerate(names):
        rows = camera == number
        if rows.any():
            seconds[rows] = cameras[name].seconds(frame[rows])
    return seconds


def _ground(tracks: Tracks, cameras: Cameras | None) -> NDArray[np.float64]:
    """Where each box stands, `[N, 2]` metres; NaN where the camera has no homography."""
    places = np.full((len(tracks.camera), 2), np.nan)
    for number, name in enumerate(tracks.camera_names):
        camera = cameras.cameras.get(name) if cameras is not None else None
        if camera is None or camera.homography is None:
            continue
        rows = np.flatnonzero(tracks.camera == number)
        places[rows] = camera.ground(tracks.boxes[rows])
    places[~np.isfinite(places).all(axis=1)] = np.nan
    return places


@dataclass(frozen=True, eq=False)
class _Crops:
    """Columns of length N; `weights` may be None."""

    camera: NDArray[np.int64]
    track: NDArray[np.int64]
    frame: NDArray[np.int64]
    features: NDArray[np.float32]
    weights: NDArray[np.float64] | None


def _assemble(
    names: tuple[str, ...],
    boxes: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
    crops: _Crops,
    split: bool,
    ground: NDArray[np.float64] | None = None,
) -> Tracklets:
    """Group boxes by (camera, track, part), lay the crops to them, pool."""
    camera, track, frame, seconds = boxes
    order = np.lexsort((frame, track, camera))
    camera, track, frame, seconds = camera[order], track[order], frame[order], seconds[order]
    n = len(order)
    new_track = np.ones(n, bool)
    new_track[1:] = (np.diff(camera) != 0) | (np.diff(track) != 0)
    keys = np.stack([camera[new_track], track[new_track]])
    of = _tracklet_of(keys, np.stack([crops.camera, crops.track]))
    if (of < 0).any():
        at = int(np.flatnonzero(of < 0)[0])
        raise ReidError(
            f"{int((of < 0).sum())} embeddings are of tracks that are not in the track files (the first: camera "
            f"{names[crops.camera[at]]}, track {crops.track[at]}). Embeddings and tracks must come from one run."
        )
    fresh = new_track.copy()
    if split:
        number = np.cumsum(new_track) - 1
        first = np.flatnonzero(new_track)
        last = np.append(first[1:], n) - 1
        spans = (keys[0], seconds[first], seconds[last])
        cut_track, cut_frame = change_points(crops.features, of, crops.frame, spans)
        most = 1 + max(int(array.max(initial=0)) for array in (frame, crops.frame, cut_frame))
        cuts = cut_track * most + cut_frame
        passed = np.searchsorted(cuts, number * most + frame, "right")
        fresh[1:] |= (np.diff(number) == 0) & (np.diff(passed) != 0)
        begins = (number * most + frame)[fresh]
        of = np.maximum(
            np.searchsorted(begins, of * most + crops.frame, "right") - 1, (np.cumsum(fresh) - 1)[first][of]
        )
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], n) - 1 if n else first
    places = np.full((n, 2), np.nan) if ground is None else ground[order]
    pooled = pool(crops.features, of, len(first), crops.weights)
    prototypes = select_prototypes(crops.features, of, pooled)
    return Tracklets(
        camera_names=names,
        camera=camera[first].astype(np.int64),
        track=track[first].astype(np.int64),
        start=np.minimum(seconds[first], seconds[last]).astype(np.float64),
        end=np.maximum(seconds[first], seconds[last]).astype(np.float64),
        frames=(last - first + 1).astype(np.int64),
        features=pooled.features,
        has_feature=pooled.has_feature,
        quality=pooled.quality,
        first_frame=frame[first].astype(np.int64),
        last_frame=frame[last].astype(np.int64),
        entry=places[first],
        exit=places[last],
        previous_track=np.full(len(first), -1),
        prototype_row=prototypes,
        prototype_tracklet=of[prototypes],
        invalid_rows=np.flatnonzero(~pooled.usable),
    )


_FEWEST_CROPS = 3
_SHUFFLES = 99
_FEWEST_STRANGERS = 20
_NEAREST_STRANGERS = 0.1


def certain_negative_distance(
    camera: NDArray[np.int64],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    features: NDArray[np.float32],
    has_feature: NDArray[np.bool_],
) -> float | None:
    """The cosine distance that 90 % of tracks `[T]` seen at one time by one camera, which are two people, reach.

    None with fewer than 20 such pairs.
    """
    pairs = _simultaneous(camera, start, end, has_feature)
    if len(pairs) < _FEWEST_STRANGERS:
        return None
    distance = 1 - np.einsum("nd,nd->n", features[pairs[:, 0]], features[pairs[:, 1]])
    return float(np.quantile(distance, _NEAREST_STRANGERS))


def change_points(
    features: NDArray[np.float32],
    of: NDArray[np.int64],
    frame: NDArray[np.int64],
    spans: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where tracks begin to show somebody else: the track and the frame of each cut, sorted.

    A tracker that swaps two people makes a track of two appearances. Of each track with 6 crops or more, in order of
    frames, the cut is looked for, with 3 crops or more on either side, that leaves the least scatter: the largest
    `|Σa|²/n_a + |Σb|²/n_b` of crops of length 1. The track is cut there when both hold:

    1. no one of 99 random orders of its crops gives as large a value (p ≤ 0.01; seeded by the track's number);
    2. the cosine distance between the means of both sides is at least `certain_negative_distance`. Where that is not
    known nothing
       is cut.

    Then either side is looked at in the same way. Crops of one track that follow each other are alike, so the first
    test alone would cut far too many.

    Args:
        features: `[N, D]` crops.
        of: `[N]` the track of each.
        frame: `[N]`.
        spans: camera, start and end of each track, `[T]` each.
    """
    pooled = pool(features, of, len(spans[0]))
    apart = certain_negative_distance(*spans, pooled.features, pooled.has_feature)
    found: list[tuple[int, int]] = []
    rows = np.flatnonzero(pooled.usable)
    rows = rows[np.lexsort((frame[rows], of[rows]))]
    owners, first = np.unique(of[rows], return_index=True)
    for owner, whole in zip(owners.tolist(), np.split(rows, first[1:]), strict=False):
        rng = np.random.default_rng(owner)
        parts = [whole]
        while apart is not None and parts:
            part = parts.pop()
            cut = _cut(normalise_rows(features[part]).astype(np.float64), frame[part], apart, rng)
            if cut:
                found.append((owner, int(frame[part[cut]])))
                parts += [part[cut:], part[:cut]]
    cuts = np.array(sorted(found), np.int64).reshape(-1, 2)
    return cuts[:, 0], cuts[:, 1]


def _cut(crops: NDArray[np.float64], frame: NDArray[np.int64], apart: float, rng: np.random.Generator) -> int:
    """How many of these crops of one track, in order, stand before a cut; 0 where there is none."""
    if len(crops) < 2 * _FEWEST_CROPS:
        return 0
    cut, gain = _best_cut(crops)
    a, b = crops[:cut].sum(axis=0), crops[cut:].sum(axis=0)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0 or 1 - float(a @ b) / lengths < apart or frame[cut] == frame[cut - 1]:
        return 0
    by_chance = any(_best_cut(crops[rng.permutation(len(crops))])[1] >= gain for _ in range(_SHUFFLES))
    return 0 if by_chance else cut


def _best_cut(crops: NDArray[np.float64]) -> tuple[int, float]:
    """How many crops stand before the best cut, and its gain."""
    n = len(crops)
    sums = np.cumsum(crops, axis=0)
    before = np.arange(_FEWEST_CROPS, n - _FEWEST_CROPS + 1)
    left = sums[before - 1]
    right = sums[-1] - left
    gain = (left**2).sum(axis=1) / before + (right**2).sum(axis=1) / (n - before)
    best = int(gain.argmax())
    return int(before[best]), float(gain[best])


def _simultaneous(
    camera: NDArray[np.int64],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    wanted: NDArray[np.bool_],
    most: int = 200_000,
) -> NDArray[np.int64]:
    """Pairs of wanted rows `[n, 2]` of one camera that share time; at most `most`, evenly taken."""
    rows = np.flatnonzero(wanted)
    order = rows[np.lexsort((start[rows], camera[rows]))]
    found = [np.zeros((0, 2), np.int64)]
    step = 1
    alive = np.arange(len(order))
    while len(alive := alive[alive + step < len(order)]):
        a, b = order[alive], order[alive + step]
        together = (camera[a] == camera[b]) & (start[b] <= end[a])
        alive = alive[together]
        found.append(np.stack([a[together], b[together]], axis=1))
        step += 1
    pairs = np.concatenate(found)
    return pairs if len(pairs) <= most else pairs[np.linspace(0, len(pairs) - 1, most).astype(np.int64)]


def simultaneous_pairs(tracklets: Tracklets) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of one camera that share time, both with a feature: certainly two people. 200,000 at most, evenly taken."""
    pairs = _simultaneous(tracklets.camera, tracklets.start, tracklets.end, tracklets.has_feature)
    return pairs[:, 0], pairs[:, 1]


def _tracklet_of(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each column of `wanted [2, N]` its column in `keys [2, T]`; −1 where there is none."""
    both = np.concatenate([keys, wanted], axis=1)
    _, code = np.unique(both, axis=1, return_inverse=True)
    code = code.reshape(-1)
    t = keys.shape[1]
    table = np.full((int(code.max()) + 1) if len(code) else 0, -1, np.int64)
    table[code[:t]] = np.arange(t)
    return table[code[t:]]


@dataclass(frozen=True, eq=False)
class Pooled:
    """`features [T, D]`, `has_feature [T]`, `quality [T]`, and which crops were `usable [N]`."""

    features: NDArray[np.float32]
    has_feature: NDArray[np.bool_]
    quality: NDArray[np.float64]
    usable: NDArray[np.bool_]


def normalise_rows(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; rows of zeros stay zeros."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (features / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return scaled


def pool(
    features: NDArray[np.float32], of: NDArray[np.int64], tracklets: int, weights: NDArray[np.float64] | None = None
) -> Pooled:
    """`norm(Σ wᵢ norm(fᵢ))` over each tracklet's crops; crops of NaN, infinity or zeros are left out.

    Args:
        features: `[N, D]` of crops.
        of: `[N]` the tracklet of each.
        tracklets: T.
        weights: `[N]` 0..1; 1 where not given.
    """
    dimension = features.shape[1]
    weight = np.ones(len(of)) if weights is None else np.clip(np.asarray(weights, np.float64), _LEAST_WEIGHT, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(features, axis=1)
    usable = np.isfinite(lengths) & (lengths > 0)
    good = np.flatnonzero(usable)
    good = good[np.argsort(of[good], kind="stable")]
    pooled = np.zeros((tracklets, dimension), np.float32)
    has_feature = np.zeros(tracklets, bool)
    quality = np.zeros(tracklets)
    if len(good):
        owners, first = np.unique(of[good], return_index=True)
        scaled = features[good] * (weight[good] / lengths[good]).astype(np.float32)[:, None]
        sums = np.add.reduceat(scaled, first, axis=0)
        pooled[owners] = normalise_rows(sums)
        has_feature[owners] = np.linalg.norm(sums, axis=1) > 0
        counts = np.diff(np.append(first, len(good)))
        quality[owners] = np.add.reduceat(weight[good], first) / counts
    return Pooled(pooled, has_feature, quality, usable)


def select_prototypes(
    features: NDArray[np.float32], of: NDArray[np.int64], pooled: Pooled, most: int = PROTOTYPES
) -> NDArray[np.int64]:
    """Rows of up to `most` crops of each tracklet, tracklet by tracklet: the crop nearest the pooled feature, then each
    time the one farthest (by cosine) from its nearest among those chosen. Of equals (to 1e-6) the earlier row; crops
    equal to a chosen one are not taken, so a tracklet of like crops has one. O(N · most).

    Args:
        features: `[N, D]` of crops.
        of: `[N]` the tracklet of each.
        pooled: of the same crops.
        most: K ≥ 1.
    """
    rows = np.flatnonzero(pooled.usable)
    rows = rows[np.argsort(of[rows], kind="stable")]
    if len(rows) == 0:
        return rows
    first = np.flatnonzero(np.append(True, np.diff(of[rows]) != 0))
    borders = first[np.flatnonzero(np.append(True, np.diff(first // _CROPS_AT_ONCE) != 0))]
    blocks = np.split(rows, borders[1:])
    return np.concatenate([_prototypes_of_some(features, of, block, pooled.features, most) for block in blocks])


def _prototypes_of_some(
    features: NDArray[np.float32],
    of: NDArray[np.int64],
    rows: NDArray[np.int64],
    pooled: NDArray[np.float32],
    most: int,
) -> NDArray[np.int64]:
    """As `select_prototypes`, among rows that are sorted by tracklet."""
    crops, owner = normalise_rows(features[rows]), of[rows]
    first = np.flatnonzero(np.append(True, np.diff(owner) != 0))
    group = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(rows))))
    score = np.einsum("nd,nd->n", crops, pooled[owner]).round(6)
    gap = np.full(len(rows), np.inf)
    open_groups = np.ones(len(first), bool)
    chosen = []
    for _ in range(most):
        hits = np.flatnonzero(score == np.maximum.reduceat(score, first)[group])
        pick = hits[np.unique(group[hits], return_index=True)[1]]
        chosen.append(pick[open_groups])
        gap = np.minimum(gap, 1 - np.einsum("nd,nd->n", crops, crops[pick][group]))
        score = gap.round(6)
        open_groups &= np.maximum.reduceat(score, first) > 1e-6
        if not open_groups.any():
            break
    picked = np.concatenate(chosen)
    return rows[picked[np.argsort(group[picked], kind="stable")]]
