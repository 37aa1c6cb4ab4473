"""From the boxes of tracks and the videos they lie in to features: cut, embedded in batches, kept as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray

from reid.core.console import progress_bar
from reid.core.distributed import DistributedContext
from reid.core.errors import ReidError
from reid.data.images import resize
from reid.data.videos import Video
from reid.embedding.embedder import Embedder, embed_batches
from reid.embedding.shards import PART_SIZE, Batch, Keys, Parts, fill, part_folder
from reid.embedding.stream import Streamed, close_folder, folder_of, total
from reid.embedding.table import Embeddings, rows_per_group, save_stream

CROP_HEIGHT = 96
_CROP_MAX_WIDTH = 192
_SHARPNESS_SIZE = (128, 64)
_FAR = 1e6  # pixels: no picture is as large
_FORMAT = 2


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
        return [*self.notes, *_in_words(self.left_out, self.reasons)]


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
    first_frame: int = 1,
    part_size: int = PART_SIZE,
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
        embedder: the model, with its batch size and flip.
        quality: `[N]` in 0..1 from geometry (`box_quality`), None for 1. The table's `quality` is this times
            min(1, sharpness / median sharpness of the camera's boxes).
        cache: folder for finished boxes; None keeps nothing.
        keep_crops: small pictures to keep of each (camera, track): of its boxes with the highest `quality` given.
        first_frame: the number that the tracks give to the first picture of a video.
        part_size: boxes in a part of the cache: what a kill loses at most.

    Raises:
        ReidError: columns of different lengths, a camera number without a name, nothing left to embed (with the
            reasons), a model whose output is not finite, a cache that cannot be written.
    """
    plan = _Plan(videos, camera_names, camera, track, frame, boxes, quality, first_frame, keep_crops)
    n = len(plan.frame)
    features = np.zeros((n, embedder.dimension), np.float32)
    jpegs = np.full(n, b"", dtype=object)
    found = plan.embed(embedder, None if cache is None else Path(cache), part_size)
    for rows, parts, places in found.cameras:
        features[rows] = parts.read(places, ["features"])["features"]
        pictured = np.flatnonzero(plan.pictured[rows])
        jpegs[rows[pictured]] = parts.read(places[pictured], ["crop"])["crop"]
    kept, left_out = found.kept(), np.flatnonzero(found.reasons != "")
    crop_rows = np.flatnonzero(jpegs[kept] != b"")
    return EmbeddedBoxes(
        embeddings=Embeddings(
            features[kept],
            camids=plan.camera[kept],
            tracks=plan.track[kept],
            frames=plan.frame[kept],
            meta=embedder.describe() | {"camera_names": plan.camera_names},
            quality=found.quality(kept),
        ),
        rows=kept,
        sharpness=found.sharpness[kept],
        crop_rows=crop_rows,
        crop_jpegs=tuple(jpegs[kept[crop_rows]]),
        left_out=left_out,
        reasons=tuple(found.reasons[left_out]),
        from_cache=found.finished,
        notes=tuple(found.notes),
    )


def boxes_to_parquet(
    videos: Mapping[str, Video],
    camera_names: Sequence[str],
    camera: ArrayLike,
    track: ArrayLike,
    frame: ArrayLike,
    boxes: ArrayLike,
    embedder: Embedder,
    out: str | Path,
    *,
    quality: ArrayLike | None = None,
    first_frame: int = 1,
    ranks: DistributedContext | None = None,
    part_size: int = PART_SIZE,
) -> Streamed | None:
    """Cut boxes from videos and embed them into one Parquet file, as `embed_boxes` does and its arguments say.

    As `embed_to_parquet`: nothing of size N × D is in memory, finished boxes lie in `OUT.parts/` while it runs, and a
    later run embeds only what is missing. With several `ranks` each takes whole cameras.

    Raises:
        ReidError: as `embed_boxes`.
    """
    out, ranks = Path(out), ranks or DistributedContext(0, 1, torch.device("cpu"))
    plan = _Plan(videos, camera_names, camera, track, frame, boxes, quality, first_frame, 0)
    folder = folder_of(out)
    numbers, amounts = np.unique(plan.camera[plan.reasons == ""], return_counts=True)
    shares = _fair_shares(amounts, ranks.world_size)
    found = plan.embed(embedder, folder, part_size, only=numbers[shares == ranks.rank])
    finished = total(ranks, found.finished)  # and all have written their parts
    if not ranks.is_first:
        return None
    if ranks.world_size > 1:
        found = plan.embed(embedder, folder, part_size)
    kept = found.kept()
    meta = embedder.describe() | {"camera_names": plan.camera_names}
    left_out = _in_words(np.flatnonzero(found.reasons != ""), found.reasons[found.reasons != ""])
    if left_out:
        meta["left_out"] = left_out
    at = np.zeros(len(plan.frame), np.int64)
    of = np.full(len(plan.frame), -1)
    for number, (rows, _, places) in enumerate(found.cameras):
        at[rows], of[rows] = places, number
    share = found.quality(kept)

    size = rows_per_group(embedder.dimension)

    def chunks() -> Iterator[Embeddings]:
        for start in range(0, max(len(kept), 1), size):
            rows = kept[start : start + size]
            features = np.zeros((len(rows), embedder.dimension), np.float32)
            for number in np.unique(of[rows]):
                own = of[rows] == number
                features[own] = found.cameras[number][1].read(at[rows[own]], ["features"])["features"]
            yield Embeddings(
                features,
                camids=plan.camera[rows],
                tracks=plan.track[rows],
                frames=plan.frame[rows],
                quality=share[start : start + size],
            )

    save_stream(out, chunks(), meta)
    notes = [*found.notes, *close_folder(folder, [parts for _, parts, _ in found.cameras])]
    return Streamed(out, len(kept), finished, tuple(left_out), tuple(notes))


class _Plan:
    """Checked boxes, and what can be said of them before a video is read. Arguments as of `embed_boxes`.

    `cuts [N, 4]` are left, top, right, bottom in whole pixels; `reasons [N]` why a box has no feature, or empty;
    `pictured [N]` whether a small picture of it is asked for.
    """

    def __init__(
        self,
        videos: Mapping[str, Video],
        camera_names: Sequence[str],
        camera: ArrayLike,
        track: ArrayLike,
        frame: ArrayLike,
        boxes: ArrayLike,
        quality: ArrayLike | None,
        first_frame: int,
        keep_crops: int,
    ) -> None:
        corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        n = len(corners)
        self.camera, self.track, self.frame = (
            _integers(*one, n) for one in (("camera", camera), ("track", track), ("frame", frame))
        )
        self.given = np.ones(n) if quality is None else np.asarray(quality, dtype=np.float64)
        if self.given.shape != (n,):
            raise ReidError(f"quality has shape {list(self.given.shape)}, but there are {n} boxes.")
        if n and (self.camera.min() < 0 or self.camera.max() >= len(camera_names)):
            raise ReidError(
                f"Cameras are numbered {self.camera.min()} to {self.camera.max()}; there are {len(camera_names)} names."
            )
        self.videos, self.camera_names = videos, [str(name) for name in camera_names]
        self.first_frame = first_frame
        self.cuts, self.reasons = _cuts(corners)
        for number in np.unique(self.camera):
            if camera_names[number] not in videos:
                self.reasons[(self.camera == number) & (self.reasons == "")] = (
                    f"camera {camera_names[number]!r} has no video"
                )
        self.pictured = _best(self.camera, self.track, self.given, keep_crops) & (self.reasons == "")

    def embed(
        self, embedder: Embedder, cache: Path | None, part_size: int, only: NDArray[np.int64] | None = None
    ) -> _Found:
        """Embed what the cache lacks, of all cameras or `only` of these numbers."""
        if part_size < 1:
            raise ReidError(f"part_size must be 1 or more; it is {part_size}.")
        found = _Found(self)
        meta = embedder.describe()
        wanted = self.reasons == "" if only is None else (self.reasons == "") & np.isin(self.camera, only)
        with progress_bar() as bar:
            task = bar.add_task("Embedding boxes", total=int(wanted.sum()))
            for number in np.unique(self.camera[wanted]):
                name = self.camera_names[number]
                video = self.videos[name]
                rows = np.flatnonzero((self.camera == number) & wanted)
                cuts, place = np.unique(np.c_[self.frame[rows], self.cuts[rows]], axis=0, return_inverse=True)
                times, pictured = np.bincount(place), np.bincount(place, self.pictured[rows]) > 0
                keys = np.frombuffer(cuts.astype("<i8").tobytes(), "S40")
                folder = cache and part_folder(cache, name, [_FORMAT, meta, video.fingerprint(), self.first_frame])
                parts = Parts(folder, embedder.dimension)
                done = _there(parts, keys, pictured)
                bar.advance(task, int(times[done].sum()))
                batches = _batches(cuts, np.flatnonzero(~done), pictured, video, embedder, self.first_frame)
                for fresh in fill(parts, keys, embed_batches(embedder, batches), part_size):
                    bar.advance(task, int(times[fresh].sum()))
                places = parts.find(keys)
                known = parts.read(places, ["reason", "sharpness"])
                found.sharpness[rows] = known["sharpness"][place]
                found.reasons[rows] = [f"{name}: {reason}" if reason else "" for reason in known["reason"][place]]
                found.finished += int(times[done & (known["reason"] == "")].sum())
                found.notes += parts.notes
                found.cameras.append((rows, parts, places[place]))
        return found


@dataclass(eq=False)
class _Found:
    """What became of a plan. `cameras`: of each the rows `[R]`, the parts, and the place `[R]` of each row in them."""

    plan: _Plan
    finished: int = 0
    notes: list[str] = field(default_factory=list)
    cameras: list[tuple[NDArray[np.int64], Parts, NDArray[np.int64]]] = field(default_factory=list)
    sharpness: NDArray[np.float32] = field(init=False)
    reasons: NDArray[np.object_] = field(init=False)

    def __post_init__(self) -> None:
        self.sharpness = np.zeros(len(self.plan.frame), np.float32)
        self.reasons = self.plan.reasons.copy()

    def kept(self) -> NDArray[np.int64]:
        """The boxes that have a feature."""
        kept = np.flatnonzero(self.reasons == "")
        if len(self.reasons) and not len(kept):
            raise ReidError(f"None of the {len(self.reasons)} boxes could be embedded. The first: {self.reasons[0]}.")
        return kept

    def quality(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        share: NDArray[np.float64] = np.clip(self.plan.given[kept], 0, 1)
        return share * _sharp_share(self.plan.camera[kept], self.sharpness[kept])


def _there(parts: Parts, keys: Keys, pictured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which cuts are finished, with their picture where one is asked for."""
    places = parts.find(keys)
    done = places >= 0
    asked = np.flatnonzero(done & pictured)
    known = parts.read(places[asked], ["crop", "reason"])
    done[asked[(known["crop"] == b"") & (known["reason"] == "")]] = False
    return done


def _batches(
    cuts: NDArray[np.int64],
    missing: NDArray[np.int64],
    pictured: NDArray[np.bool_],
    video: Video,
    embedder: Embedder,
    first_frame: int,
) -> Iterator[Batch]:
    """Cuts `[U, 5]` (frame, left, top, right, bottom), ordered by frame. Runs in the decoding thread."""
    frames = cuts[missing, 0]
    ends = {int(number): end for number, end in zip(frames, range(1, len(frames) + 1), strict=True)}
    starts = {int(number): start for start, number in reversed(list(enumerate(frames.tolist())))}
    size, most = embedder.preprocessing.size, embedder.batch_size
    rows: list[int] = []
    failed: dict[int, str] = {}
    images, sharp, jpegs = np.empty((most, *size, 3), np.uint8), list[float](), list[bytes]()

    def batch() -> Batch:
        columns = {"sharpness": pa.array(sharp, pa.float32()), "crop": pa.array(jpegs, pa.binary())}
        names = [f"{video.path}, frame {cuts[row, 0]}" for row in rows]
        return Batch(rows, images[: len(rows)], names, failed, columns)

    for frame in video.read(frames, first_frame=first_frame) if len(frames) else ():
        for row in missing[starts[frame.number] : ends[frame.number]].tolist():
            if frame.image is None:
                failed[row] = frame.reason
            else:
                left, top, right, bottom = cuts[row, 1:].tolist()
                crop = frame.image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
                if crop.size == 0:
                    failed[row] = "the box lies outside the picture"
                else:
                    resize(crop, size, out=images[len(rows)])
                    rows.append(row)
                    sharp.append(sharpness(crop))
                    jpegs.append(_picture(crop) if pictured[row] else b"")
            if len(rows) == most or len(failed) >= most:
                yield batch()
                rows, failed, images, sharp, jpegs = [], {}, np.empty_like(images), [], []
    if rows or failed:
        yield batch()


def _in_words(rows: NDArray[np.int64], reasons: Sequence[str] | NDArray[np.object_]) -> list[str]:
    """A line for each reason, with the number of its rows and the first of them."""
    same: dict[str, list[int]] = {}
    for row, reason in zip(rows.tolist(), reasons, strict=True):
        same.setdefault(reason, []).append(row)
    return [
        f"{reason}: {len(some)} boxes without a feature, rows {', '.join(map(str, some[:5]))}"
        + (", …" if len(some) > 5 else "")
        for reason, some in same.items()
    ]


def _fair_shares(amounts: NDArray[np.int64], shares: int) -> NDArray[np.int64]:
    """The share of each amount: the largest first, each to the share that has least."""
    total, share = np.zeros(shares, np.int64), np.zeros(len(amounts), np.int64)
    for number in np.argsort(-amounts, kind="stable"):
        share[number] = np.argmin(total)
        total[share[number]] += amounts[number]
    return share


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
