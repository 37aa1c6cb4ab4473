"""Cut the boxes of tracks from videos and embed them."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import float_column, pixels_of_boxes
from reid.core.console import progress_bar
from reid.core.errors import DataError, check_number, first_few
from reid.data.images import cut_out, encode_jpeg, resize
from reid.data.tracks import Tracks
from reid.data.videos import Video
from reid.embedding.batches import ImageBatch
from reid.embedding.embedder import Embedder
from reid.embedding.shards import SHARD_SIZE, Shards, fill, shard_folder
from reid.embedding.stream import (
    Cluster,
    Unit,
    WrittenEmbeddings,
    make_unit,
    remove_shards,
    temporary_folder,
)
from reid.embedding.table import Embeddings, save_rows

CROP_HEIGHT = 96
_MAX_CROP_WIDTH = 192
_SHARPNESS_SIZE = (128, 64)
_FORMAT = 2


@dataclass(frozen=True, eq=False)
class EmbeddedBoxes:
    """Features of boxes, and the boxes without a feature.

    Attributes:
        embeddings: M rows in the order of the tracks: `camids` (indices into `camera_names`), `tracks`, `frames` and
            `quality`.
        rows: `[M]` int64, the row in the tracks of each feature.
        crop_jpegs: of each of the M rows a small JPEG file, `CROP_HEIGHT` pixels high; empty without `keep_crops`.
        left_out: `[L]` int64, the rows in the tracks that have no feature.
        reasons: why, for each of the L rows.
        from_cache: how many of the M rows an earlier run had embedded.
        notes: other messages.
    """

    embeddings: Embeddings
    rows: NDArray[np.int64]
    crop_jpegs: tuple[bytes, ...]
    left_out: NDArray[np.int64]
    reasons: tuple[str, ...]
    from_cache: int
    notes: tuple[str, ...]

    def problems(self) -> list[str]:
        """Return the notes, and for each reason one line with the number of boxes and their first rows."""
        return [*self.notes, *_summarise(self.left_out, self.reasons)]


def sharpness(image: NDArray[np.uint8]) -> float:
    """Return the sharpness of a crop, independent of its size and contrast: var(∇²g) / (var(g) + 1).

    g is the gray image at 128×64 pixels, ∇² OpenCV's 3×3 Laplacian. Small crops are blurred by the enlargement and
    score low. `[H, W, 3]` uint8 RGB → 0 or more.
    """
    gray = cv2.cvtColor(resize(image, _SHARPNESS_SIZE), cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(cv2.Laplacian(gray, cv2.CV_32F).var() / (gray.var() + 1))


def embed_boxes(
    embedder: Embedder,
    videos: Mapping[str, Video],
    tracks: Tracks,
    *,
    quality: ArrayLike | None = None,
    cache: str | Path | None = None,
    keep_crops: bool = False,
    shard_size: int = SHARD_SIZE,
) -> EmbeddedBoxes:
    """Cut boxes from videos and embed them. Each video is read once; a thread decodes ahead.

    A box is rounded to whole pixels and clipped to the frame. Boxes are left out, with a reason, if their camera has no
    video, their frame is not available, or they are outside the frame or smaller than a pixel.

    With `cache`, finished boxes are written to shards: a folder for each camera, model (with its preprocessing and
    `flip`) and video (path, size, modification time). A later run, for instance after a crash or with more boxes,
    embeds only missing rows. A box is identified by its frame and pixels, not by its track. The folder can be
    deleted at any time.

    Args:
        embedder: the model.
        videos: by camera name (`find_videos`).
        tracks: the boxes; the first frame of a video has the number `tracks.first_frame`.
        quality: `[N]` in 0..1 (`box_quality`); None for 1. The table's `quality` is this times
            min(1, sharpness / median sharpness of the camera's boxes).
        cache: folder for finished boxes; None for none.
        keep_crops: whether to keep small crops, for pictures of the result.
        shard_size: boxes in a shard of the cache: the most that an interruption loses.

    Raises:
        DataError: a `quality` of another length or out of range, no box that can be embedded, a cache that cannot be
            written.
        ModelError: the output of the model is not finite.
    """
    job = _Job(embedder, videos, tracks, quality, keep_crops)
    from_cache = job.run(None if cache is None else Path(cache), shard_size)
    rows = job.embedded()
    left_out = np.flatnonzero(job.reasons != "")
    return EmbeddedBoxes(
        embeddings=job.table(rows, job.final_quality()),
        rows=rows,
        crop_jpegs=tuple(job.read(rows, "crop")) if keep_crops else (),
        left_out=left_out,
        reasons=tuple(job.reasons[left_out]),
        from_cache=from_cache,
        notes=tuple(job.notes),
    )


def boxes_to_parquet(
    embedder: Embedder,
    videos: Mapping[str, Video],
    tracks: Tracks,
    out: str | Path,
    *,
    quality: ArrayLike | None = None,
    cluster: Cluster | None = None,
    shard_size: int = SHARD_SIZE,
) -> WrittenEmbeddings:
    """Cut boxes from videos and embed them into one Parquet file. See `embed_boxes` for the arguments.

    As in `embed_to_parquet`, features are never all in memory, finished boxes are stored in `OUT.shards/`, and a later
    run embeds only missing rows. The workers of a cluster take whole cameras.

    Raises:
        DataError, ModelError: as `embed_boxes`.
    """
    out = Path(out)
    job, folder = _Job(embedder, videos, tracks, quality, False), temporary_folder(out)
    if cluster is not None:
        units = []
        for camera in np.unique(tracks.camera[job.reasons == ""]).tolist():
            name, of_camera = tracks.camera_names[camera], tracks.take(tracks.camera == camera)
            identity = f"{name}\0{videos[name].fingerprint()}".encode() + of_camera.boxes.tobytes()
            units.append(make_unit(identity + of_camera.frame.tobytes(), {name: videos[name].absolute()}, of_camera))
        work = partial(_embed_camera, folder=folder.absolute(), shard_size=shard_size)
        cluster.run(work, units, shard_folder(folder, "cameras", [_FORMAT, embedder.describe()]), embedder.describe())
    finished = job.run(folder, shard_size)
    rows, final_quality = job.embedded(), job.final_quality()
    failed = np.flatnonzero(job.reasons != "")
    left_out = _summarise(failed, job.reasons[failed])
    meta = job.meta | ({"left_out": left_out} if left_out else {})
    save_rows(out, rows, lambda piece: job.table(piece, final_quality), meta)
    if cluster is not None:
        finished = 0  # what the workers found is not known here
        shutil.rmtree(shard_folder(folder, "cameras", [_FORMAT, embedder.describe()]), ignore_errors=True)
    notes = [*job.notes, *remove_shards(folder, job.shards)]
    return WrittenEmbeddings(out, len(rows), finished, tuple(left_out), tuple(notes))


def _embed_camera(embedder: Embedder, unit: Unit, *, folder: Path, shard_size: int) -> pa.Table:
    """Embed the boxes of one camera on a worker of a cluster, into shards in `folder`; return how many there are."""
    videos, tracks = pickle.loads(unit["content"])
    for name, video in videos.items():
        if not video.path.exists():
            raise DataError(
                f"There is no video {video.path} of camera {name!r}. Put it on a disk that every machine can read."
            )
    _Job(embedder, videos, tracks, None, False).run(folder, shard_size)
    return pa.table({"boxes": [len(tracks)]})


class _Job:
    """Boxes to embed, and what is known about them so far. Arguments as in `embed_boxes`.

    Attributes:
        cuts: `[N, 4]` left, top, right, bottom in whole pixels, not clipped.
        reasons: `[N]` why a box has no feature; empty if there is no reason.
        meta: of the embeddings.
        sharpness: `[N]`, 0 before the box is embedded.
        shards: of each camera embedded so far.
        notes: messages about the shards.
    """

    def __init__(
        self,
        embedder: Embedder,
        videos: Mapping[str, Video],
        tracks: Tracks,
        quality: ArrayLike | None,
        keep_crops: bool,
    ) -> None:
        n = len(tracks)
        self.embedder, self.videos, self.tracks = embedder, videos, tracks
        self.keep_crops = keep_crops
        self.quality = np.ones(n) if quality is None else float_column("quality", quality, n, low=0, high=1)
        self.cuts = pixels_of_boxes(tracks.boxes)
        self.reasons = np.full(n, "", dtype=object)
        self.reasons[(self.cuts[:, 2:] <= self.cuts[:, :2]).any(axis=1)] = "the box is smaller than a pixel"
        for camera, name in enumerate(tracks.camera_names):
            if name not in videos:
                self.reasons[(tracks.camera == camera) & (self.reasons == "")] = f"camera {name!r} has no video"
        self.meta = embedder.describe() | {"camera_names": list(tracks.camera_names)}
        self.sharpness = np.zeros(n, np.float32)
        self.shards: list[Shards] = []
        self.notes: list[str] = []
        self._shards_of, self._position = np.full(n, -1), np.full(n, -1)

    def run(self, cache: Path | None, shard_size: int) -> int:
        """Embed the boxes that the cache lacks; return how many it had."""
        check_number("shard_size", shard_size, 1)
        embedder, finished = self.embedder, 0
        self.shards, self.notes = [], []
        wanted = self.reasons == ""
        with progress_bar() as bar:
            task = bar.add_task("Embedding boxes", total=int(wanted.sum()))
            for camera in np.unique(self.tracks.camera[wanted]):
                name = self.tracks.camera_names[camera]
                video = self.videos[name]
                rows = np.flatnonzero((self.tracks.camera == camera) & wanted)
                cuts, cut_of = np.unique(np.c_[self.tracks.frame[rows], self.cuts[rows]], axis=0, return_inverse=True)
                count = np.bincount(cut_of)
                keys = np.frombuffer(cuts.astype("<i8").tobytes(), "S40")
                identity = [_FORMAT, embedder.describe(), video.fingerprint(), self.tracks.first_frame]
                shards = Shards(cache and shard_folder(cache, name, identity), embedder.dimension)
                positions = shards.find(keys)
                done = positions >= 0
                if self.keep_crops:  # an earlier run may have kept none
                    found = positions[done]
                    done[done] = (shards.read(found, "crop") != b"") | (shards.read(found, "reason") != "")
                bar.advance(task, int(count[done].sum()))
                batches = self._batches(video, cuts, np.flatnonzero(~done))
                for fresh in fill(shards, keys, embedder.embed_batches(batches), shard_size):
                    bar.advance(task, int(count[fresh].sum()))
                positions = shards.find(keys)
                reasons = shards.read(positions, "reason")
                finished += int(count[done & (reasons == "")].sum())
                self.reasons[rows] = [f"{name}: {reason}" if reason else "" for reason in reasons[cut_of]]
                self.sharpness[rows] = shards.read(positions, "sharpness")[cut_of]
                self._shards_of[rows], self._position[rows] = len(self.shards), positions[cut_of]
                self.shards.append(shards)
                self.notes += shards.notes
        return finished

    def embedded(self) -> NDArray[np.int64]:
        """Return the rows that have a feature.

        Raises:
            DataError: no box has one.
        """
        rows = np.flatnonzero(self.reasons == "")
        if len(self.reasons) and not len(rows):
            raise DataError(f"None of the {len(self.reasons)} boxes can be embedded. The first: {self.reasons[0]}.")
        return rows

    def final_quality(self) -> NDArray[np.float64]:
        """Return `[N]`, the quality times the sharpness relative to the camera's median, at most 1."""
        quality, embedded = self.quality.copy(), self.reasons == ""
        for camera in np.unique(self.tracks.camera[embedded]):
            rows = embedded & (self.tracks.camera == camera)
            median = float(np.median(self.sharpness[rows]))
            if median > 0:
                quality[rows] *= np.minimum(1, self.sharpness[rows] / median)
        return quality

    def read(self, rows: NDArray[np.int64], column: str) -> NDArray[Any]:
        """Return a column of the shards for embedded rows."""
        result: NDArray[Any] = np.zeros(0)
        for number in np.unique(self._shards_of[rows]):
            chosen = self._shards_of[rows] == number
            values = self.shards[number].read(self._position[rows[chosen]], column)
            if len(result) < len(rows):
                result = np.empty((len(rows), *values.shape[1:]), values.dtype)
            result[chosen] = values
        return result

    def table(self, rows: NDArray[np.int64], quality: NDArray[np.float64]) -> Embeddings:
        """Return the embeddings of embedded rows; `quality` is `[N]`."""
        return Embeddings(
            self.read(rows, "features").reshape(len(rows), self.embedder.dimension),
            camids=self.tracks.camera[rows],
            tracks=self.tracks.track[rows],
            frames=self.tracks.frame[rows],
            quality=quality[rows],
            meta=self.meta,
        )

    def _batches(self, video: Video, cuts: NDArray[np.int64], missing: NDArray[np.int64]) -> Iterator[ImageBatch]:
        """Yield the `missing` rows of `cuts [U, 5]` (frame, left, top, right, bottom; sorted by frame)."""
        size, limit = self.embedder.preprocessing.size, self.embedder.batch_size
        frames = cuts[missing, 0]
        images: dict[int, NDArray[np.uint8]] = {}
        failed: dict[int, str] = {}
        sharp, jpegs = list[float](), list[bytes]()

        def batch() -> ImageBatch:
            columns = {"sharpness": pa.array(sharp, pa.float32()), "crop": pa.array(jpegs, pa.binary())}
            names = [f"{video.path}, frame {cuts[row, 0]}" for row in images]
            stacked = np.stack(list(images.values())) if images else np.zeros((0, *size, 3), np.uint8)
            return ImageBatch(list(images), stacked, names, failed, columns)

        for frame in video.read(frames, first_frame=self.tracks.first_frame) if len(frames) else ():
            start, end = np.searchsorted(frames, [frame.number, frame.number + 1])
            for row in missing[start:end].tolist():
                if frame.image is None:
                    failed[row] = frame.reason
                elif (crop := cut_out(frame.image, cuts[row, 1:])).size == 0:
                    failed[row] = "the box is outside the frame"
                else:
                    images[row] = resize(crop, size)
                    sharp.append(sharpness(crop))
                    jpegs.append(_small_jpeg(crop) if self.keep_crops else b"")
                if len(images) == limit or len(failed) >= limit:
                    yield batch()
                    images, failed, sharp, jpegs = {}, {}, [], []
        if images or failed:
            yield batch()


def _summarise(rows: NDArray[np.int64], reasons: Sequence[str] | NDArray[np.object_]) -> list[str]:
    """Return one line for each reason, with the number of its rows and the first of them."""
    lines = []
    for reason in dict.fromkeys(reasons):
        found = rows[np.asarray(reasons, object) == reason]
        lines.append(f"{reason}: {len(found)} boxes without a feature, rows {first_few(found, 5)}")
    return lines


def _small_jpeg(crop: NDArray[np.uint8]) -> bytes:
    width = round(crop.shape[1] * CROP_HEIGHT / crop.shape[0])
    small = resize(crop, (CROP_HEIGHT, min(max(width, 1), _MAX_CROP_WIDTH)))
    return encode_jpeg(small, 90)
