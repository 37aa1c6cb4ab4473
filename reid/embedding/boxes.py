"""From the boxes of tracks and the videos they lie in to features: cut, embedded in batches, kept as they come."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from reid.console import progress_bar
from reid.data.images import resize
from reid.data.loader import ahead
from reid.data.videos import Video
from reid.embedding.embedder import Embedder, check_finite
from reid.embedding.table import Embeddings
from reid.errors import ReidError
from reid.wholefile import whole_file

CROP_HEIGHT = 96
_CROP_MAX_WIDTH = 192
_SHARPNESS_SIZE = (128, 64)
_FAR = 1e6  # pixels: no picture is as large
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class EmbeddedBoxes:
    """Features of boxes, and what became of the others.

    Attributes:
        embeddings: M rows in the order of the boxes given: `camids` (numbers of `camera_names`), `tracks`, `frames`
            and `quality`.
        rows: `[M]` int64, the box of each row.
        sharpness: `[M]` float32, see `sharpness`.
        crop_rows: `[K]` int64, the rows of `embeddings` of which a picture was kept.
        crop_jpegs: K JPEG files, `CROP_HEIGHT` pixels high.
        left_out: `[L]` int64, the boxes that have no feature; `reasons` says why, for each.
        from_cache: how many of the M rows had been embedded by an earlier run.
        notes: what else was met, in words.
    """

    embeddings: Embeddings
    rows: NDArray[np.int64]
    sharpness: NDArray[np.float32]
    crop_rows: NDArray[np.int64]
    crop_jpegs: tuple[bytes, ...]
    left_out: NDArray[np.int64]
    reasons: tuple[str, ...]
    from_cache: int
    notes: tuple[str, ...]

    def crop(self, number: int) -> NDArray[np.uint8]:
        """The kept picture of `crop_rows[number]`: uint8 `[CROP_HEIGHT, w, 3]` in RGB."""
        image = cv2.imdecode(np.frombuffer(self.crop_jpegs[number], np.uint8), cv2.IMREAD_COLOR)
        return np.ascontiguousarray(np.asarray(image, np.uint8)[..., ::-1])

    def problems(self) -> list[str]:
        """In words: the notes, and a line for each reason of boxes left out, with their number and first rows."""
        same: dict[str, list[int]] = {}
        for row, reason in zip(self.left_out.tolist(), self.reasons, strict=True):
            same.setdefault(reason, []).append(row)
        return [
            *self.notes,
            *(
                f"{reason}: {len(rows)} boxes without a feature, rows {', '.join(map(str, rows[:5]))}"
                + (", …" if len(rows) > 5 else "")
                for reason, rows in same.items()
            ),
        ]


def sharpness(image: NDArray[np.uint8]) -> float:
    """How sharp a crop is, whatever its size and contrast: var(∇²g) / (var(g) + 1).

    g is the gray image at 128×64 pixels, ∇² OpenCV's 3×3 Laplacian. Small crops come out blurred, as they are once
    enlarged. `[H, W, 3]` uint8 RGB → 0 or more.
    """
    gray = cv2.cvtColor(resize(image, _SHARPNESS_SIZE), cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(cv2.Laplacian(gray, cv2.CV_32F).var() / (gray.var() + 1))


def embed_boxes(
    videos: Mapping[str, Video],
    camera_names: Sequence[str],
    camera: ArrayLike,
    track: ArrayLike,
    frame: ArrayLike,
    boxes: ArrayLike,
    embedder: Embedder,
    *,
    quality: ArrayLike | None = None,
    cache: str | Path | None = None,
    keep_crops: int = 0,
    batch_size: int = 64,
    flip: bool = False,
    first_frame: int = 1,
    part_size: int = 1024,
) -> EmbeddedBoxes:
    """Cut boxes from videos and embed them. Each camera's video is read once, one thread decoding ahead.

    A box is rounded to whole pixels and clipped to the picture. Left out and listed are boxes of a camera without a
    video or of a frame that cannot be had, boxes outside the picture, without area, or not finite.

    With `cache`, finished boxes are written to Parquet parts as the work goes on, in a folder for each camera, model
    (with its preprocessing and `flip`) and video (path, size, time of change). A later run, after a kill for instance,
    or with more boxes, reads them and embeds only what is missing; a box is known by its frame and pixels, not by its
    track. The folder may be deleted at any time.

    Args:
        videos: by camera name (`find_videos`).
        camera, track, frame: `[N]` integers; `camera` are numbers of `camera_names`.
        boxes: `[N, 4]` x, y, width, height in pixels.
        quality: `[N]` in 0..1 from geometry (`box_quality`), None for 1. The table's `quality` is this times
            min(1, sharpness / median sharpness of the camera's boxes).
        cache: folder for finished boxes; None keeps nothing.
        keep_crops: small pictures to keep of each (camera, track): of its boxes with the highest `quality` given.
        batch_size: boxes a forward pass.
        flip: average with the mirrored crop.
        first_frame: the number that the tracks give to the first picture of a video.
        part_size: boxes in a part of the cache: what a kill loses at most.

    Raises:
        ReidError: columns of different lengths, a camera number without a name, nothing left to embed (with the
            reasons), a model whose output is not finite, a cache that cannot be written.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    n = len(boxes)
    camera, track, frame = (_integers(*one, n) for one in (("camera", camera), ("track", track), ("frame", frame)))
    given = np.ones(n) if quality is None else np.asarray(quality, dtype=np.float64)
    if given.shape != (n,):
        raise ReidError(f"quality has shape {list(given.shape)}, but there are {n} boxes.")
    if n and (camera.min() < 0 or camera.max() >= len(camera_names)):
        raise ReidError(f"Cameras are numbered {camera.min()} to {camera.max()}; there are {len(camera_names)} names.")
    if min(batch_size, part_size) < 1:
        raise ReidError(f"batch_size and part_size must be 1 or more; they are {batch_size} and {part_size}.")
    cuts, reasons = _cuts(boxes)
    for number in np.unique(camera):
        if camera_names[number] not in videos:
            reasons[(camera == number) & (reasons == "")] = f"camera {camera_names[number]!r} has no video"
    pictured = _best(camera, track, given, keep_crops) & (reasons == "")

    meta = embedder.describe(flip=flip)
    features = np.zeros((n, embedder.dimension), np.float32)
    sharp = np.zeros(n, np.float32)
    jpegs = np.full(n, b"", dtype=object)
    notes: list[str] = []
    cached = 0
    with progress_bar() as bar:
        task = bar.add_task("Embedding boxes", total=int((reasons == "").sum()))
        for number in np.unique(camera[reasons == ""]):
            name = str(camera_names[number])
            rows = np.flatnonzero((camera == number) & (reasons == ""))
            keys, place = np.unique(np.c_[frame[rows], cuts[rows]], axis=0, return_inverse=True)
            times = np.bincount(place, minlength=len(keys))
            work = _Work(keys, np.bincount(place, pictured[rows]) > 0, embedder.dimension)
            parts = None
            if cache is not None:
                parts = _Parts(Path(cache), name, [_FORMAT, meta, videos[name].fingerprint(), first_frame])
                notes += parts.load(work)
            cached += int(times[work.done & (work.reasons == "")].sum())
            bar.advance(task, int(times[work.done].sum()))
            for done in _embed(work, videos[name], embedder, flip, batch_size, first_frame, parts, part_size):
                bar.advance(task, int(times[done].sum()))
            features[rows], sharp[rows] = work.features[place], work.sharpness[place]
            reasons[rows] = [f"{name}: {reason}" if reason else "" for reason in work.reasons[place]]
            jpegs[rows[pictured[rows]]] = work.jpegs[place[pictured[rows]]]
    kept = np.flatnonzero(reasons == "")
    left_out = np.flatnonzero(reasons != "")
    if n and len(kept) == 0:
        raise ReidError(f"None of the {n} boxes could be embedded. The first: {reasons[0]}.")
    crop_rows = np.flatnonzero(jpegs[kept] != b"")
    return EmbeddedBoxes(
        embeddings=Embeddings(
            features[kept],
            camids=camera[kept],
            tracks=track[kept],
            frames=frame[kept],
            meta=meta | {"camera_names": [str(name) for name in camera_names]},
            quality=np.clip(given[kept], 0, 1) * _sharp_share(camera[kept], sharp[kept]),
        ),
        rows=kept,
        sharpness=sharp[kept],
        crop_rows=crop_rows,
        crop_jpegs=tuple(jpegs[kept[crop_rows]]),
        left_out=left_out,
        reasons=tuple(reasons[left_out]),
        from_cache=cached,
        notes=tuple(notes),
    )


@dataclass(eq=False)
class _Work:
    """The cuts of one camera, each once. keys `[U, 5]`: frame, left, top, right, bottom; ordered by frame."""

    keys: NDArray[np.int64]
    pictured: NDArray[np.bool_]
    dimension: int
    features: NDArray[np.float32] = field(init=False)
    sharpness: NDArray[np.float32] = field(init=False)
    jpegs: NDArray[np.object_] = field(init=False)
    reasons: NDArray[np.object_] = field(init=False)
    done: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.keys)
        self.features = np.zeros((n, self.dimension), np.float32)
        self.sharpness = np.zeros(n, np.float32)
        self.jpegs, self.reasons = np.full(n, b"", dtype=object), np.full(n, "", dtype=object)
        self.done = np.zeros(n, bool)


class _Batch(NamedTuple):
    which: list[int]
    images: NDArray[np.uint8]
    sharpness: list[float]
    jpegs: list[bytes]
    failed: dict[int, str]


def _embed(
    work: _Work,
    video: Video,
    embedder: Embedder,
    flip: bool,
    batch_size: int,
    first_frame: int,
    parts: _Parts | None,
    part_size: int,
) -> Iterator[list[int]]:
    """Fill in what is not done; the indices of each batch come out as they are finished."""
    fresh: list[int] = []
    missing = np.flatnonzero(~work.done)
    for batch in ahead(_batches(work, missing, video, embedder.preprocessing.size, batch_size, first_frame), 2):
        if batch.which:
            got = embedder.embed_batch(batch.images, flip=flip)
            check_finite(got, [f"{video.path}, frame {work.keys[i, 0]}" for i in batch.which])
            work.features[batch.which], work.sharpness[batch.which] = got, batch.sharpness
            work.jpegs[batch.which] = batch.jpegs
        for i, reason in batch.failed.items():
            work.reasons[i] = reason
        finished = [*batch.which, *batch.failed]
        work.done[finished] = True
        yield finished
        fresh += finished
        if parts is not None and len(fresh) >= part_size:
            parts.write(work, fresh)
            fresh = []
    if parts is not None and fresh:
        parts.write(work, fresh)


def _batches(
    work: _Work, missing: NDArray[np.int64], video: Video, size: tuple[int, int], batch_size: int, first_frame: int
) -> Iterator[_Batch]:
    """Runs in the decoding thread."""
    keys = work.keys[missing]
    ends = {int(number): end for number, end in zip(keys[:, 0], range(1, len(keys) + 1), strict=True)}
    starts = {int(number): start for start, number in reversed(list(enumerate(keys[:, 0].tolist())))}
    batch = _Batch([], np.empty((batch_size, *size, 3), np.uint8), [], [], {})
    for frame in video.read(keys[:, 0], first_frame=first_frame) if len(keys) else ():
        for i in missing[starts[frame.number] : ends[frame.number]].tolist():
            if frame.image is None:
                batch.failed[i] = frame.reason
            else:
                left, top, right, bottom = work.keys[i, 1:].tolist()
                crop = frame.image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
                if crop.size == 0:
                    batch.failed[i] = "the box lies outside the picture"
                    continue
                resize(crop, size, out=batch.images[len(batch.which)])
                batch.which.append(i)
                batch.sharpness.append(sharpness(crop))
                batch.jpegs.append(_picture(crop) if work.pictured[i] else b"")
            if len(batch.which) == batch_size or len(batch.failed) >= batch_size:
                yield batch._replace(images=batch.images[: len(batch.which)])
                batch = _Batch([], np.empty_like(batch.images), [], [], {})
    yield batch._replace(images=batch.images[: len(batch.which)])


class _Parts:
    """Finished cuts of one camera, as Parquet files that are never changed once written."""

    def __init__(self, cache: Path, camera: str, key: object) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.folder = cache / f"{re.sub(r'[^A-Za-z0-9_-]', '_', camera)}-{digest[:16]}"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.parquet"))  # not the hidden ones, which a killed run had not finished

    def load(self, work: _Work) -> list[str]:
        """Fill in what is there; words on parts that cannot be read, which count as absent."""
        notes = []
        place = {key: i for i, key in enumerate(map(tuple, work.keys.tolist()))}
        for path in self._paths():
            try:
                part = pq.read_table(path)
                keys = np.stack([part.column(name).to_numpy() for name in _KEY], axis=1)
                features = part.column("features").combine_chunks().flatten().to_numpy().reshape(-1, work.dimension)
                sharp, reasons, jpegs = (part.column(name).to_pylist() for name in ("sharpness", "reason", "crop"))
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                notes.append(f"{path} cannot be read and is not used ({str(error).splitlines()[0]}).")
                continue
            for row, key in enumerate(map(tuple, keys.tolist())):
                i = place.get(key)
                if i is None or (work.pictured[i] and not (jpegs[row] or reasons[row])):
                    continue
                work.features[i], work.sharpness[i] = features[row], sharp[row]
                work.reasons[i], work.jpegs[i], work.done[i] = reasons[row], jpegs[row], True
        return notes

    def write(self, work: _Work, index: list[int]) -> None:
        columns = {name: pa.array(work.keys[index, number]) for number, name in enumerate(_KEY)}
        flat = pa.array(work.features[index].reshape(-1), type=pa.float32())
        columns["features"] = pa.FixedSizeListArray.from_arrays(flat, work.dimension)
        columns["sharpness"] = pa.array(work.sharpness[index])
        columns["reason"] = pa.array(work.reasons[index], type=pa.string())
        columns["crop"] = pa.array(work.jpegs[index], type=pa.binary())
        number = len(self._paths())
        with whole_file(self.folder / f"{number:06d}-{os.getpid()}.parquet") as temporary:
            pq.write_table(pa.table(columns), temporary)


_KEY = ("frame", "left", "top", "right", "bottom")


def _cuts(boxes: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    """left, top, right, bottom `[N, 4]` in whole pixels, not clipped; and "" or why there is nothing to cut."""
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(boxes).all(axis=1, keepdims=True)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        corners = np.where(finite, np.rint(corners.clip(-_FAR, _FAR)), 0).astype(np.int64)
    reasons = np.full(len(boxes), "", dtype=object)
    reasons[(corners[:, 2:] <= corners[:, :2]).any(axis=1)] = "the box has no area"
    reasons[np.flatnonzero(~finite)] = "the box is not finite"
    return corners, reasons


def _best(
    camera: NDArray[np.int64], track: NDArray[np.int64], quality: NDArray[np.float64], count: int
) -> NDArray[np.bool_]:
    """The `count` boxes of the highest quality of each (camera, track), the first given of equal ones."""
    order = np.lexsort((np.arange(len(camera)), -quality, track, camera))
    begins = np.ones(len(order), bool)
    begins[1:] = (np.diff(camera[order]) != 0) | (np.diff(track[order]) != 0)
    first = np.flatnonzero(begins)
    place = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    best = np.zeros(len(order), bool)
    best[order] = place < count
    return best


def _sharp_share(camera: NDArray[np.int64], sharp: NDArray[np.float32]) -> NDArray[np.float64]:
    share = np.ones(len(sharp))
    for number in np.unique(camera):
        own = camera == number
        median = float(np.median(sharp[own]))
        if median > 0:
            share[own] = np.minimum(1, sharp[own] / median)
    return share


def _picture(crop: NDArray[np.uint8]) -> bytes:
    width = round(crop.shape[1] * CROP_HEIGHT / crop.shape[0])
    small = resize(crop, (CROP_HEIGHT, min(max(width, 1), _CROP_MAX_WIDTH)))
    return cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def _integers(name: str, values: ArrayLike, n: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.shape != (n,):
        raise ReidError(f"{name} has shape {list(array.shape)}, but there are {n} boxes.")
    return array.astype(np.int64)
