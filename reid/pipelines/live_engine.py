"""The engine of `reid live`: frames of several cameras in, events with identities out."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reid.config import StreamSettings
from reid.core.arrays import pixels_of_boxes
from reid.data.box_selection import box_quality, choose_boxes
from reid.data.images import cut_out, resize
from reid.data.tracks import Floats, Integers, Tracks
from reid.embedding.batches import ImageBatch
from reid.embedding.embedder import Embedder
from reid.embedding.table import Embeddings
from reid.gallery.pictures import small_picture
from reid.mtmc.cameras import Camera, Cameras
from reid.mtmc.online import OnlineMatcher
from reid.mtmc.tracklets import Tracklets
from reid.pipelines.settings import LiveSettings
from reid.tracking.detectors import Detector
from reid.tracking.trackers import FrameTracker

TICKS = 10_000
"""Frame numbers per second in the tracks that the engine makes of times."""
HISTORY = 300.0
"""Seconds for which tracks with an identity are kept, to judge boxes and stitch tracks."""

_RECENT = 200  # boxes that the size of a new one is compared with

Event = dict[str, Any]


class LiveFrame(NamedTuple):
    """A frame of a camera: seconds since 1970 in UTC, and RGB uint8 `[H, W, 3]`."""

    time: float
    image: NDArray[np.uint8]


class Decided(NamedTuple):
    """A tracklet that has got its identity.

    Attributes:
        camera, track: as in events.
        part: distinguishes the tracklets of one track.
        start, end: seconds since 1970.
        identity: over all cameras.
        boxes: number of boxes.
        features: `[K, D]` of its crops.
        pictures: K JPEG files.
    """

    camera: str
    track: int
    part: str
    start: float
    end: float
    identity: int
    boxes: int
    features: NDArray[np.float32]
    pictures: Sequence[bytes]


def utc(time: float) -> str:
    """Return seconds since 1970 as text in UTC.

    Example:
        >>> utc(1764403456.25)
        '2025-11-29T08:04:16.250Z'
    """
    moment = datetime.fromtimestamp(time, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(eq=False)
class _Track:
    """A local track as events show it; `since` is the start of the time for which `identity` is known."""

    number: int
    since: float
    updated: float
    identity: int | None = None


@dataclass(eq=False)
class _Part:
    """A local track, or a part of a long one. `number` is unique in its camera and never used again.

    Attributes:
        previous: number of the part that this one continues; -1: none.
        crops: by interval of the track, the row of a box, its quality, and the crop at the size that the model takes.
        stride: boxes in an interval.
        rows, features, pictures: of the embedded boxes, once the part has ended; pictures are JPEG files.
        decided: whether it has an identity.
        closed: whether its end was sent, or another part continues it.
    """

    camera: _Camera
    number: int
    track: _Track
    previous: int = -1
    times: list[float] = field(default_factory=list)
    boxes: list[Floats] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    crops: dict[int, tuple[int, float, NDArray[np.uint8]]] = field(default_factory=dict)
    stride: int = 1
    rows: Sequence[int] = ()
    features: NDArray[np.float32] | None = None
    pictures: Sequence[bytes] = ()
    decided: bool = False
    closed: bool = False
    _columns: Floats = field(default_factory=lambda: np.zeros((0, 6)))

    def columns(self) -> Floats:
        """Return `[n, 6]` time, x, y, width, height and confidence of its boxes; only new boxes are converted."""
        if (known := len(self._columns)) < len(self.times):
            new = np.column_stack([self.times[known:], self.boxes[known:], self.confidence[known:]])
            self._columns = np.concatenate([self._columns, new])
        return self._columns

    def wants(self, row: int, quality: float) -> bool:
        """Return whether this box is the best of its interval so far."""
        best = self.crops.get(row // self.stride)
        return quality > 0 and (best is None or quality > best[1])

    def keep(self, row: int, quality: float, crop: NDArray[np.uint8], most: int) -> None:
        """Keep a crop for its interval; the intervals are doubled when there are more than `most`."""
        self.crops[row // self.stride] = row, quality, crop
        if len(self.crops) > most:
            self.stride *= 2
            entries = sorted(self.crops.values(), key=lambda entry: (-entry[1], entry[0]), reverse=True)
            self.crops = {entry[0] // self.stride: entry for entry in entries}  # the best is the last


class _Remembered(NamedTuple):
    """A part at the time of a decision; `columns` as of `_Part`, `rows` and `features` of its embedded boxes."""

    place: int
    number: int
    columns: Floats
    rows: Sequence[int]
    features: NDArray[np.float32] | None


@dataclass(eq=False)
class _Decision:
    """A decision at a tick: parts that have ended by `time`, parts that get identities, and those that last.

    `result` has their tracklets and identities; None if there are no parts to decide.
    """

    time: float
    over: Sequence[_Part]
    wanted: dict[tuple[int, int], _Part]
    lasting: set[_Part]
    result: Future[tuple[Tracklets, Integers]] | None = None


@dataclass(eq=False)
class _Camera:
    """A camera: its tracker, the parts that its tracker follows by id, and all parts that are remembered."""

    name: str
    place: int
    tracker: FrameTracker
    track_numbers: Iterator[int]
    part_numbers: Iterator[int]
    last: float = -np.inf
    size: tuple[int, int] | None = None
    following: dict[int, _Part] = field(default_factory=dict)
    parts: list[_Part] = field(default_factory=list)
    recent: list[tuple[Floats, float]] = field(default_factory=list)


class LiveEngine:
    """Detect, track, embed and match the frames of several cameras as they come.

    A track is decided by `OnlineMatcher` at the first multiple of `stream.period` after its end, so its identity is
    known at most `stream.delay` seconds after its last box. A track longer than `settings.longest` is decided in
    parts, so that its identity is known while it lasts. Matching can run in another thread, so that frames are taken
    meanwhile; identities are the same, and come later. Memory is bounded: boxes and features of tracks with an identity
    are forgotten after `HISTORY` seconds, tracklets as `stream` says. Numbers of tracks and identities only rise.

    Args:
        detector: finds the people of a batch of frames.
        embedder: the model.
        matcher: with the stream settings `stream`, and without tracklets.
        emit: is called with each event; see docs/guides/live.md.
        settings: of tracking and events.
        stream: when decisions are made.
        cameras: frame sizes, homographies and overlaps, by camera name; clocks are not used.
        executor: runs the matching, and `archive`; None for the calling thread.

    Attributes:
        start: seconds since 1970 of the first step, the second 0 of matching.
        run: name of this run, from `start`.
        archive: is called with the tracklets of each decision; None for nothing.
    """

    def __init__(
        self,
        detector: Detector,
        embedder: Embedder,
        matcher: OnlineMatcher,
        emit: Callable[[Event], object],
        settings: LiveSettings | None = None,
        stream: StreamSettings | None = None,
        cameras: Cameras | None = None,
        executor: Executor | None = None,
    ) -> None:
        self._detector, self._embedder, self._matcher, self._emit = detector, embedder, matcher, emit
        self._settings, self._stream = settings or LiveSettings(), stream or StreamSettings()
        self._known = {} if cameras is None else cameras.cameras
        self._cameras: dict[str, _Camera] = {}
        self._leaving: list[_Camera] = []
        self._open: list[_Part] = []
        self._names: dict[str, tuple[Iterator[int], Iterator[int]]] = {}
        self._tick = 1
        self._executor = executor
        self._pending: _Decision | None = None
        self.start, self.run = 0.0, ""
        self.archive: Callable[[Sequence[Decided]], object] | None = None

    @property
    def identities(self) -> int:
        """Number of identities given so far; equal to the highest."""
        return self._matcher.last

    @property
    def delay(self) -> float:
        """Seconds after its last box after which the identity of a track is known, at most."""
        return self._stream.delay

    def people(self) -> dict[str, int]:
        """Return the number of tracks that have not ended, by camera."""
        return Counter(part.camera.name for part in self._open if part.features is None)

    def begin(self, now: float) -> None:
        """Set the second 0 and the name of the run."""
        self.start, self.run = now, utc(now)

    def step(self, frames: Mapping[str, LiveFrame], now: float) -> None:
        """Process the newest frames of some cameras; a frame that is not newer than the camera's last is ignored.

        Args:
            frames: by camera name; an unknown name is a new camera.
            now: seconds since 1970; tracks end and decisions are made by this time.

        Raises:
            ModelError: the output of the model is not finite.
        """
        if not self.run:
            self.begin(now)
        self._decide_until(now - HISTORY)  # after a pause, so that tracks before it and after it are not seen together
        cameras = [self._cameras.get(name) or self._add(name) for name in frames]
        fresh = [
            (camera, frame)
            for camera, frame in zip(cameras, frames.values(), strict=True)
            if frame.time >= camera.last + 2 / TICKS
        ]
        found = self._detector([frame.image for _, frame in fresh]) if fresh else []
        for (camera, frame), people in zip(fresh, found, strict=True):
            self._link(camera, frame, people.astype(np.float32).astype(np.float64))  # as in files of detections
        self._finish(now)
        self._complete(wait=False)
        self._decide_until(now)

    def _decide_until(self, now: float) -> None:
        """Make the decisions that are due; without any tracks there are none, however long ago the last one was."""
        while self._time_of_tick() <= now:
            self._decide()
            if self._pending is None and next(self._parts(), None) is None:
                self._tick = max(self._tick, int((now - self.start) // self._stream.period))

    def remove(self, name: str) -> None:
        """Forget the tracker of a camera; its tracks end, and the name can be used again."""
        if name in self._cameras:
            self._leaving.append(self._cameras.pop(name))

    def close(self) -> None:
        """End all tracks and decide them."""
        self._complete()
        while self._open:
            self._decide()
            self._complete()

    def _time_of_tick(self) -> float:
        return self.start + self._tick * self._stream.period

    def _parts(self) -> Iterator[_Part]:
        for camera in (*self._cameras.values(), *self._leaving):
            yield from camera.parts

    def _add(self, name: str) -> _Camera:
        numbers = self._names.setdefault(name, (count(1), count(1)))
        place = list(self._names).index(name)
        rate = self._settings.rate or 30.0
        tracker = FrameTracker(self._settings.tracker, frame_rate=rate, floor=self._settings.floor)
        self._cameras[name] = _Camera(name, place, tracker, *numbers)
        return self._cameras[name]

    def _link(self, camera: _Camera, frame: LiveFrame, people: Floats) -> None:
        """Add the boxes `[n, 5]` of a frame to the tracks of its camera."""
        height, width = frame.image.shape[:2]
        camera.last, camera.size = frame.time, (width, height)
        ids = camera.tracker.update(people[:, :4], people[:, 4], frame.time - self.start)
        rows = np.flatnonzero(ids)
        rows = rows[np.argsort(ids[rows], kind="stable")]
        boxes, confidence = people[rows, :4], people[rows, 4]
        quality, pixels = _frame_quality(camera, boxes, confidence), pixels_of_boxes(boxes)
        for place, number in enumerate(ids[rows].tolist()):
            part = camera.following.get(number)
            if part is None or part.features is not None:
                part = self._new_part(camera, part, frame.time)
                camera.following[number] = part
            row = len(part.times)
            part.times.append(frame.time)
            part.boxes.append(boxes[place])
            part.confidence.append(float(confidence[place]))
            if part.wants(row, quality[place]):
                crop = cut_out(frame.image, pixels[place])
                if crop.size:
                    crop = resize(crop, self._embedder.preprocessing.size).copy()
                    part.keep(row, float(quality[place]), crop, 2 * self._settings.per_track)
            track = part.track
            if row == 0 and part.previous < 0:
                self._send("new", part, -1)
            elif frame.time >= track.updated + self._settings.every:
                track.updated = frame.time
                self._send("update", part, -1)

    def _new_part(self, camera: _Camera, before: _Part | None, time: float) -> _Part:
        """Start a track, or the next part of a long one whose earlier part has been decided while it lasted."""
        number = next(camera.part_numbers)
        if before is not None and before.times[-1] + self._stream.close_after > time:
            part = _Part(camera, number, before.track, before.number)
            before.closed = True
        else:
            part = _Part(camera, number, _Track(next(camera.track_numbers), time, time))
        camera.parts.append(part)
        self._open.append(part)
        return part

    def _finish(self, now: float) -> None:
        """Embed the crops of parts without a box for `close_after` seconds, all cameras together."""
        self._embed([p for p in self._open if p.features is None and p.times[-1] + self._stream.close_after <= now])

    def _embed(self, parts: Sequence[_Part]) -> None:
        if not parts:
            return
        chosen: dict[int, list[int]] = {}
        for camera in {id(part.camera): part.camera for part in parts}.values():
            here = [part for part in parts if part.camera is camera]
            chosen |= dict(zip(map(id, here), self._choose(camera, here), strict=True))
        crops = [crop for part in parts for row, _, crop in part.crops.values() if row in chosen[id(part)]]
        names = [part.camera.name for part in parts for _ in chosen[id(part)]]
        features, size = np.zeros((len(crops), self._embedder.dimension), np.float32), self._embedder.batch_size
        batches = (
            ImageBatch(list(range(at, min(at + size, len(crops)))), np.stack(crops[at : at + size]), names[at:], {})
            for at in range(0, len(crops), size)
        )
        for batch, values in self._embedder.embed_batches(batches):
            features[batch.rows] = values
        done = 0
        for part in parts:
            part.rows = chosen[id(part)]
            part.features = features[done : done + len(part.rows)]
            if self.archive is not None:
                part.pictures = [small_picture(crop, pixelate=False) for crop in crops[done : done + len(part.rows)]]
            part.crops = {}
            done += len(part.rows)

    def _choose(self, camera: _Camera, parts: Sequence[_Part]) -> list[list[int]]:
        """Return the rows of the boxes to embed of each part, ascending, out of those whose crop was kept."""
        tracks = _tracks(_snapshot(camera.parts), list(self._names))
        quality = box_quality(tracks, {camera.name: camera.size} if camera.size is not None else None)
        found = []
        for part in parts:
            rows = np.array(sorted(row for row, _, _ in part.crops.values()), np.int64)
            kept = np.flatnonzero(tracks.track == part.number)[rows]  # of one part, sorted by time
            best = choose_boxes(tracks.take(kept), quality[kept], per_track=self._settings.per_track)
            part.crops = dict(sorted(part.crops.items()))
            found.append(rows[best].tolist())
        return found

    def _tracklets(self, parts: Sequence[_Remembered], sizes: Mapping[str, tuple[int, int] | None]) -> Tracklets:
        """Return tracklets of all remembered parts; parts that have not ended have no feature."""
        base, names = _base(parts), list(sizes)
        embedded = [part for part in parts if part.features is not None and len(part.features)]
        counts = [len(part.rows) for part in embedded]
        none = np.zeros((0, self._embedder.dimension), np.float32)
        embeddings = Embeddings(
            np.concatenate([none, *(part.features for part in embedded if part.features is not None)]),
            camids=np.repeat(np.array([part.place for part in embedded], np.int64), counts),
            tracks=np.repeat(np.array([part.number for part in embedded], np.int64), counts),
            frames=_frames(np.concatenate([np.zeros(0), *(part.columns[part.rows, 0] for part in embedded)]), base),
            meta=self._embedder.describe(),
        )
        clock = {"fps": float(TICKS), "offset": base - self.start, "drift": 0.0, "clock": None}
        cameras = {}
        for name, size in sizes.items():
            camera = self._known.get(name, Camera())
            cameras[name] = camera.model_copy(update=clock | {"size": camera.size or size})
        return Tracklets.from_tracks(
            _tracks(parts, names),
            embeddings,
            Cameras(cameras),
            camera_names=dict(enumerate(names)),
            split=self._settings.split,
            stitch=self._settings.stitch,
        )

    def _decide(self) -> None:
        """Begin to give identities to parts that have ended by the next tick, and to long ones."""
        self._complete()
        time = self._time_of_tick()
        self._tick += 1
        self._finish(time)
        over = [p for p in self._open if p.times[-1] + self._stream.close_after <= time]
        ended = [p for p in over if not p.decided]
        long = [p for p in self._open if p.features is None and p.times[0] + self._settings.longest <= time]
        self._embed(long)
        wanted = {(part.camera.place, part.number): part for part in (*ended, *long)}
        self._pending = _Decision(time, over, wanted, set(long))
        if wanted:
            parts = list(self._parts())
            sizes: dict[str, tuple[int, int] | None] = dict.fromkeys(self._names)
            sizes.update((part.camera.name, part.camera.size) for part in parts)
            work = functools.partial(self._match, wanted, _snapshot(parts), sizes)
            if self._executor is not None:
                self._pending.result = self._executor.submit(work)
                return
            self._pending.result = Future()
            self._pending.result.set_result(work())
        self._complete()

    def _match(
        self,
        wanted: Mapping[tuple[int, int], _Part],
        parts: Sequence[_Remembered],
        sizes: Mapping[str, tuple[int, int] | None],
    ) -> tuple[Tracklets, Integers]:
        """Return the tracklets of the wanted parts and their identities, and archive them. Changes no part."""
        tracklets = self._tracklets(parts, sizes)
        keys = list(zip(tracklets.camera.tolist(), tracklets.track.tolist(), strict=True))
        rows = np.array([row for row, key in enumerate(keys) if key in wanted], np.int64)
        tracklets = tracklets.take(rows)
        previous = tracklets.previous_track.copy()
        seen = set()
        for row in range(len(rows)):  # sorted by camera, track and start
            key = keys[rows[row]]
            if key not in seen and previous[row] < 0:
                previous[row] = wanted[key].previous
            seen.add(key)
        tracklets = replace(tracklets, previous_track=previous)
        identity = self._matcher.push(tracklets)
        if self.archive is not None:
            self.archive(self._decided(wanted, tracklets, identity))
        return tracklets, identity

    def _complete(self, wait: bool = True) -> None:
        """Announce the identities of the decision that was begun last; if its matching has ended, or `wait`."""
        decision = self._pending
        if decision is None or not (wait or decision.result is None or decision.result.done()):
            return
        if decision.result is not None:
            self._announce(decision.wanted, *decision.result.result(), decision.lasting)
        self._pending = None
        for part in decision.wanted.values():
            part.pictures = ()
        for part in sorted(decision.over, key=lambda part: (part.times[-1], part.camera.place, part.number)):
            if not part.closed:
                self._send("end", part, -1)
                part.closed = True
        self._open = [part for part in self._open if not (part.decided and part.closed)]
        for camera in (*self._cameras.values(), *self._leaving):
            camera.parts = [p for p in camera.parts if not p.closed or p.times[-1] >= decision.time - HISTORY]
            camera.following = {number: part for number, part in camera.following.items() if not part.closed}
        self._leaving = [camera for camera in self._leaving if camera.parts]

    def _decided(
        self, wanted: Mapping[tuple[int, int], _Part], tracklets: Tracklets, identity: Integers
    ) -> list[Decided]:
        """Return the tracklets with their features, by camera, part and time."""
        found = []
        for row, number in enumerate(identity.tolist()):
            part = wanted[int(tracklets.camera[row]), int(tracklets.track[row])]
            start, end = (self.start + float(times[row]) for times in (tracklets.start, tracklets.end))
            inside = [k for k, at in enumerate(part.rows) if start - 0.5 / TICKS <= part.times[at] <= end + 0.5 / TICKS]
            features = np.zeros((0, self._embedder.dimension), np.float32) if part.features is None else part.features
            found.append(
                Decided(
                    part.camera.name,
                    part.track.number,
                    f"{part.number} {utc(start)}",
                    start,
                    end,
                    number,
                    int(tracklets.frames[row]),
                    features[inside],
                    [part.pictures[k] for k in inside],
                )
            )
        return found

    def _announce(
        self,
        wanted: Mapping[tuple[int, int], _Part],
        tracklets: Tracklets,
        identity: Integers,
        lasting: set[_Part],
    ) -> None:
        """Set the identities of the tracks; send the end of a replaced identity, and the first of a long track."""
        spans: dict[tuple[int, int], list[tuple[float, float, int]]] = {}
        for row, number in enumerate(identity.tolist()):
            key = int(tracklets.camera[row]), int(tracklets.track[row])
            spans.setdefault(key, []).append((float(tracklets.start[row]), float(tracklets.end[row]), number))
        for key, part in wanted.items():
            part.decided, track, before = True, part.track, part.track.identity
            for start, _, number in sorted(spans[key]):
                first = int(np.searchsorted(part.times, self.start + start - 0.5 / TICKS))
                if track.identity is not None and track.identity != number:
                    self._send("end", part, max(first - 1, 0))
                    track.since = part.times[first]
                track.identity = number
            if track.identity != before and part in lasting:
                self._send("update", next(p for p in reversed(self._open) if p.track is track), -1)

    def _send(self, kind: str, part: _Part, row: int) -> None:
        track = part.track
        event: Event = {
            "event": kind,
            "run": self.run,
            "camera": part.camera.name,
            "track": track.number,
            "identity": track.identity,
            "time": utc(part.times[row]),
            "box": [round(float(value), 1) for value in part.boxes[row]],
            "confidence": round(part.confidence[row], 4),
        }
        if kind == "end":
            event["start"] = utc(track.since)
        self._emit(event)


def _snapshot(parts: Sequence[_Part]) -> list[_Remembered]:
    return [_Remembered(p.camera.place, p.number, p.columns(), p.rows, p.features) for p in parts]


def _tracks(parts: Sequence[_Remembered], names: Sequence[str]) -> Tracks:
    """Return the boxes of parts; their track is the number of the part, their frame counts `TICKS` a second."""
    counts = [len(part.columns) for part in parts]
    columns = np.concatenate([np.zeros((0, 6)), *(part.columns for part in parts)])
    return Tracks.from_columns(
        names,
        np.repeat(np.array([part.place for part in parts], np.int64), counts),
        np.repeat(np.array([part.number for part in parts], np.int64), counts),
        _frames(columns[:, 0], _base(parts)),
        columns[:, 1:5],
        columns[:, 5],
        first_frame=1,
    )


def _base(parts: Sequence[_Remembered]) -> float:
    return float(min((part.columns[0, 0] for part in parts), default=0.0))


def _frames(times: Floats, base: float) -> Integers:
    return 1 + np.rint((times - base) * TICKS).astype(np.int64)


def _frame_quality(camera: _Camera, boxes: Floats, confidence: Floats) -> Floats:
    """Return the quality of the boxes of a frame, `[n]`; sizes are compared with recent boxes of the camera."""
    n, recent = len(boxes), camera.recent
    count = n + len(recent)
    tracks = Tracks.from_columns(
        [camera.name],
        np.zeros(count, np.int64),
        np.arange(count),
        np.concatenate([np.zeros(n, np.int64), np.arange(1, len(recent) + 1)]),
        np.concatenate([boxes, *(box[None] for box, _ in recent)]),
        np.concatenate([confidence, [score for _, score in recent]]),
        first_frame=0,
    )
    camera.recent = [*recent, *zip(boxes, confidence.tolist(), strict=True)][-_RECENT:]
    return box_quality(tracks, camera.size)[:n]
