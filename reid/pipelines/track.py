"""Videos to tracks: detect people in each camera, link their boxes, write track files."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from reid.core.atomic import result_folder, write_json, write_text
from reid.core.console import progress_bar, warn
from reid.core.errors import DataError, ReidError
from reid.core.prefetch import prefetch
from reid.core.workers import available_cores, worker_pool
from reid.data.crops import IMAGE_SUFFIXES
from reid.data.frame_reader import FrameReader, TimedFrame
from reid.data.tracks import Floats, Integers, Tracks
from reid.data.videos import VIDEO_SUFFIXES, Video, find_videos
from reid.mtmc.track_writers import write_tracks
from reid.pipelines.settings import TrackSettings
from reid.tracking.detections import Detections, read_detections
from reid.tracking.detectors import Detector, open_detector
from reid.tracking.trackers import FrameTracker, link_boxes

_AHEAD = 4
"""Batches of frames that are decoded while the detector works."""
_PACKAGES = ("reid-toolkit", "trackers", "supervision", "opencv-python", "openvino", "onnxruntime", "torch")
_FPS_TOLERANCE = 0.5
"""Largest error of a constant frame rate, in intervals between analysed frames."""


@dataclass(frozen=True, eq=False)
class TrackedVideos:
    """Result of `track_videos`.

    Attributes:
        tracks: of all cameras that could be processed; ids are of single cameras.
        videos: the videos, by camera.
        frames: numbers of the frames that were analysed, by camera.
        summary: of each camera: frames, boxes, tracks, rates and notes.
        failed: why a camera could not be processed, by its name.
        written: files and folders that were written.
    """

    tracks: Tracks
    videos: dict[str, Video]
    frames: dict[str, Integers]
    summary: dict[str, dict[str, Any]]
    failed: dict[str, str]
    written: Sequence[Path]


@dataclass(frozen=True)
class _Job:
    """What a worker needs to process one camera."""

    camera: str
    reader: FrameReader
    settings: TrackSettings
    file: Path
    threads: int


@dataclass(frozen=True, eq=False)
class _Done:
    tracks: Tracks
    frames: Integers
    summary: dict[str, Any]
    clock: dict[str, Any]


def track_videos(
    videos: Sequence[str | Path] | str | Path, out: str | Path, settings: TrackSettings | None = None
) -> TrackedVideos:
    """Detect and track the people in videos, one camera each.

    All boxes of confidence 0.02 or more are kept in `out/detections/CAMERA.parquet`. A later run with the same
    detector, rate and video uses them, so that an interrupted run is resumed camera by camera, and tracking again with
    another tracker needs no detector. A camera that cannot be processed is reported and left out.

    Args:
        videos: video files, folders of numbered images, or folders that contain these. A camera is called like its
            file or folder.
        out: folder for detections/, tracks/ (MOTChallenge), cameras.yaml (frame rate and size) and track.json.
        settings: None for the defaults.

    Raises:
        DataError: no video, two cameras of one name, or no camera that can be processed.
        ConfigError: a setting that is invalid.
        ModelError: a detector or package that is not available.
    """
    settings = settings or TrackSettings()
    return track_cameras(open_cameras(videos, settings), Path(out), settings)


@dataclass(frozen=True, eq=False)
class OpenedCameras:
    """Result of `open_cameras`: a reader of each video, and why other cameras have none, by name."""

    readers: dict[str, FrameReader]
    failed: dict[str, str]


def open_cameras(videos: Sequence[str | Path] | str | Path, settings: TrackSettings) -> OpenedCameras:
    """Open the video of each camera, before anything that takes long. Cameras without one are reported.

    Raises:
        DataError: no video, two cameras of one name, no video that can be opened, or no folder `settings.detections`.
    """
    if settings.detections is not None and not settings.detections.is_dir():
        raise DataError(f"There is no folder {settings.detections}. Pass the folder with the boxes of the cameras.")
    listed = list_cameras([videos] if isinstance(videos, str | Path) else videos)
    opened = {name: _open(video, settings) for name, video in listed.items()}
    readers = {name: reader for name, reader in opened.items() if isinstance(reader, FrameReader)}
    failed = {name: reason for name, reason in opened.items() if isinstance(reason, str)}
    _report_failed(failed, len(readers))
    return OpenedCameras(readers, failed)


def _open(video: Video, settings: TrackSettings) -> FrameReader | str:
    try:
        return FrameReader(video, settings.rate or None, settings.fps)
    except DataError as error:
        return str(error)


def _report_failed(failed: Mapping[str, str], left: int) -> None:
    if not left:
        first = next(iter(failed.values()))
        some = f"None of the {len(failed)} cameras can be processed. The first: " if len(failed) > 1 else ""
        raise DataError(f"{some}{first}")
    for name, reason in failed.items():
        warn(f"camera {name!r} is left out: {reason}")


def track_cameras(cameras: OpenedCameras, out: Path, settings: TrackSettings) -> TrackedVideos:
    """Detect and track the people in videos that are open; see `track_videos`."""
    began = time.perf_counter()
    with result_folder(out, "track", "track.json") as staging:
        workers = settings.workers or (1 if settings.device.startswith("cuda") else available_cores())
        workers = min(workers, len(cameras.readers))
        threads = max(1, available_cores() // workers)
        jobs = [
            _Job(name, reader, settings, out / "detections" / f"{name}.parquet", threads)
            for name, reader in cameras.readers.items()
        ]
        FrameTracker(settings.tracker)  # detector and tracker are opened here, because their errors concern all cameras
        detector = None
        if settings.detections is None:
            detector = open_detector(settings.detector, settings.device, threads)
        results = dict(zip(cameras.readers, _run(jobs, workers, detector), strict=True))
        done = {name: result for name, result in results.items() if isinstance(result, _Done)}
        failed = {name: result for name, result in results.items() if isinstance(result, str)}
        _report_failed(failed, len(done))
        failed = cameras.failed | failed
        for name, result in done.items():
            for note in result.summary["notes"]:
                warn(f"{name}: {note}")
        tracks = _merge(done)
        write_tracks(tracks, staging / "tracks")
        clocks = {"cameras": {name: result.clock for name, result in done.items()}}
        write_text(staging / "cameras.yaml", yaml.safe_dump(clocks, sort_keys=False, default_flow_style=None))
        summary = {name: result.summary for name, result in done.items()}
        write_json(staging / "track.json", _describe(settings, summary, failed, time.perf_counter() - began))
    written = [out / name for name in ("tracks", "cameras.yaml", "track.json")]
    frames = {name: result.frames for name, result in done.items()}
    videos = {name: cameras.readers[name].video for name in done}
    return TrackedVideos(tracks, videos, frames, summary, failed, written)


def list_cameras(videos: Sequence[str | Path]) -> dict[str, Video]:
    """Return the video of each camera; see `track_videos`.

    Raises:
        DataError: nothing is found, or two cameras have one name.
    """
    found: dict[str, Video] = {}
    for given in map(Path, videos):
        for name, video in _cameras_in(given).items():
            if name in found:
                raise DataError(
                    f"Two videos are called {name!r}: {found[name].path} and {video.path}. A camera is called like its "
                    "file or folder: rename one of them."
                )
            found[name] = video
    if not found:
        raise DataError("There is no video. Pass video files, or folders of videos or numbered images.")
    return found


def _cameras_in(path: Path) -> dict[str, Video]:
    if not path.is_dir():
        return {path.stem: Video(path)}
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    names = [entry.stem for entry in inside if entry.suffix.lower() in VIDEO_SUFFIXES]
    folders = [entry.name for entry in inside if entry.is_dir() and entry.name != "img1"]
    if not names and not folders:
        if not any(entry.name == "img1" or entry.suffix.lower() in IMAGE_SUFFIXES for entry in inside):
            raise DataError(
                f"{path} contains neither videos ({', '.join(VIDEO_SUFFIXES)}) nor numbered images. Check the path."
            )
        return find_videos(path, [path.resolve().name]).videos
    return find_videos(path, list(dict.fromkeys([*names, *folders]))).videos


_COUNTS: Any = None
"""Of a worker process: the number of frames done by each camera, shared with the parent."""


def _start_worker(counts: Any) -> None:
    global _COUNTS
    _COUNTS = counts


def _work(job: _Job, place: int) -> _Done | str:
    def advance(frames: int) -> None:
        _COUNTS[place] += frames

    return _process(job, advance)


def _run(jobs: Sequence[_Job], workers: int, detector: Detector | None) -> list[_Done | str]:
    """Process the cameras, here with this detector or in worker processes, with a progress bar of frames."""
    with progress_bar() as bar:
        expected = sum(job.reader.expected or 0 for job in jobs)
        task = bar.add_task("Detecting people (frames)", total=expected or None)
        if workers == 1:
            return [_process(job, lambda frames: bar.advance(task, frames), detector) for job in jobs]
        counts = get_context("spawn").Array("q", len(jobs))
        with worker_pool(workers, _start_worker, counts) as pool:
            running = [pool.submit(_work, job, place) for place, job in enumerate(jobs)]
            try:
                while wait(running, timeout=0.3).not_done:
                    bar.update(task, completed=sum(counts[:]))
                return [future.result() for future in running]
            except BrokenProcessPool as error:
                raise DataError(
                    "A worker process ended early. If memory is short, run the command again with fewer --workers; "
                    'finished cameras are kept. A script must call this under `if __name__ == "__main__":`, or with '
                    "workers=1."
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)


def _process(job: _Job, advance: Callable[[int], object], detector: Detector | None = None) -> _Done | str:
    """Detect and track one camera; returns the reason if that is impossible. The detector is opened if it is None."""
    try:
        return _track_camera(job, advance, detector)
    except ReidError as error:
        return str(error)


def _track_camera(job: _Job, advance: Callable[[int], object], detector: Detector | None) -> _Done:
    settings = job.settings
    if settings.detections is not None:
        found = _with_times(read_detections(settings.detections, job.camera), job)
    else:
        found = _detect(job, advance, detector)
    tracks = link_boxes(found, job.camera, settings.tracker, floor=settings.floor)
    notes = [*found.meta["notes"]]
    clock = _describe_clock(found, notes)
    frames, fps = found.frames, found.meta["header_fps"]
    if found.meta.get("given"):  # frames without boxes need not be listed
        images = job.reader.video.images
        shift = int(images is not None and 0 in images)
        frames = np.arange(1, found.meta["frames"] + 1) if images is None else np.array(sorted(images)) + shift
    elif len(frames) > 1:
        fps = round(1 / float(np.median(np.diff(found.times))), 4)
    if not len(tracks):
        notes.append("no people were found.")
    summary = {
        "video": job.reader.video.path.name,
        **{key: found.meta[key] for key in ("detector", "size", "frames", "seconds", "frames_per_second")},
        "analysed_frames": len(frames),
        "analysed_fps": _plain(fps),
        "boxes": len(found),
        "tracked_boxes": len(tracks),
        "tracks": len(np.unique(tracks.track)),
        "notes": notes,
    }
    return _Done(tracks, frames, summary, clock)


@functools.cache
def _open_once(name: str, device: str, threads: int) -> Detector:
    """Open the detector of a worker process, at its first camera."""
    return open_detector(name, device, threads)


def _detect(job: _Job, advance: Callable[[int], object], detector: Detector | None) -> Detections:
    """Return the boxes of a camera: those of an earlier run, or those that the detector finds now."""
    settings = job.settings
    detector = detector or _open_once(settings.detector, settings.device, job.threads)
    identity = {
        "detector": detector.name,
        "rate": settings.rate,
        "fps": settings.fps,
        "fingerprint": job.reader.video.fingerprint(),
    }
    if job.file.is_file():
        try:
            found = Detections.load(job.file)
        except DataError as error:
            warn(f"{error} It is written again.")
        else:
            if all(found.meta.get(key) == value for key, value in identity.items()):
                advance(len(found.frames))
                return found
    found, seconds = detect_people(job.reader, detector, advance)
    found.meta.update(identity)
    found.meta["frames_per_second"] = round(len(found.frames) / max(seconds, 1e-9), 2)
    found.save(job.file)
    return found


def detect_people(
    reader: FrameReader, detector: Detector, advance: Callable[[int], object] = lambda frames: None
) -> tuple[Detections, float]:
    """Detect people in the frames of a video; a thread decodes ahead.

    Args:
        reader: the frames.
        detector: finds the boxes.
        advance: is called with the number of frames after each batch.

    Returns:
        The boxes, and the seconds that it took.

    Raises:
        DataError: no frame can be decoded.
    """
    numbers, times, rows, boxes = list[int](), list[float](), list[int](), list[Floats]()
    began = time.perf_counter()
    for batch in prefetch(_batches(reader, detector.batch_size), _AHEAD):
        for frame, found in zip(batch, detector([frame.image for frame in batch]), strict=True):
            numbers.append(frame.number)
            times.append(frame.time)
            rows += [frame.number] * len(found)
            boxes.append(found)
        advance(len(batch))
    columns = np.concatenate([np.zeros((0, 5)), *boxes]).astype(np.float32)  # as in the file
    meta = {
        "size": list(reader.size),
        "frames": reader.decoded,
        "seconds": round(reader.duration, 6),
        "header_fps": reader.fps,
        "notes": reader.notes,
    }
    detections = Detections.from_columns(numbers, times, rows, columns[:, :4], columns[:, 4], meta)
    return detections, time.perf_counter() - began


def _batches(reader: FrameReader, size: int) -> Iterator[list[TimedFrame]]:
    frames = iter(reader)
    while batch := list(islice(frames, size)):
        yield batch


def _with_times(found: Detections, job: _Job) -> Detections:
    """Return detections that were given, with the times of their frames and what is known of the video."""
    reader, info, notes = job.reader, job.reader.info, list(job.reader.notes)
    last = int(found.frames.max(initial=0))
    if info.frames is not None and last > info.frames:
        notes.append(f"there are detections up to frame {last:,}, but the header of the video counts {info.frames:,}.")
    times = found.times
    if not np.isfinite(times).all():
        times = (found.frames - 1) / reader.fps
    meta = {
        "detector": found.meta.get("detector", "given"),
        "size": [info.width, info.height],
        "frames": info.frames or last,
        "seconds": round(float(times.max(initial=0)), 6),
        "header_fps": reader.fps,
        "frames_per_second": None,
        "notes": notes,
        "given": True,
    }
    return Detections(found.frames, times, found.row, found.boxes, found.confidence, meta)


def _describe_clock(found: Detections, notes: list[str]) -> dict[str, Any]:
    """Return the entry of a camera in cameras.yaml: frame rate, or the time of some frames if it varies, and size."""
    frames, times, fps = found.frames, found.times, float(found.meta["header_fps"])
    entry: dict[str, Any] = {"fps": _plain(fps), "size": found.meta["size"]}
    if len(frames) < 2:
        return entry
    limit = _FPS_TOLERANCE * float(np.median(np.diff(times)))
    steps, elapsed = frames - frames[0], times - times[0]
    if np.abs(elapsed - steps / fps).max() <= limit:
        return entry
    measured = float(steps[-1] / elapsed[-1])
    entry["fps"] = _plain(round(measured, 4))
    if np.abs(elapsed - steps / measured).max() <= limit:
        notes.append(f"the header says {fps:g} frames per second, the time stamps {measured:.4g}; these are used.")
        return entry
    knots = clock_knots(frames, times, limit)
    entry["clock"] = [[int(frames[row]), round(float(times[row]), 4)] for row in knots]
    notes.append(f"the frame rate varies around {measured:.4g} frames per second; the time stamps are used.")
    return entry


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number


def clock_knots(frames: Integers, times: Floats, tolerance: float) -> list[int]:
    """Return the rows between which times can be interpolated with errors of at most `tolerance` seconds.

    The line between two knots is divided at its largest error until all errors are small enough (Douglas and Peucker
    1973). `frames` and `times` are `[F]` and rise.

    Example:
        >>> clock_knots(np.arange(5), np.array([0, 1, 2, 6, 10.0]), 0.1)
        [0, 2, 4]
    """
    knots, waiting = {0, len(frames) - 1}, [(0, len(frames) - 1)]
    while waiting:
        a, b = waiting.pop()
        line = np.interp(frames[a : b + 1], frames[[a, b]], times[[a, b]])
        error = np.abs(times[a : b + 1] - line)
        worst = a + int(error.argmax())
        if error.max() > tolerance:
            knots.add(worst)
            waiting += [(a, worst), (worst, b)]
    return sorted(knots)


def _merge(done: Mapping[str, _Done]) -> Tracks:
    parts = [result.tracks for result in done.values()]
    camera = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    columns = [
        np.concatenate([getattr(part, name) for part in parts]) for name in ("track", "frame", "boxes", "confidence")
    ]
    return Tracks.from_columns(list(done), camera, *columns, first_frame=min(part.first_frame for part in parts))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe(
    settings: TrackSettings, cameras: dict[str, dict[str, Any]], failed: dict[str, str], seconds: float
) -> dict[str, Any]:
    return {
        "detector": sorted({summary["detector"] for summary in cameras.values()}),
        "tracker": settings.tracker,
        "rate": settings.rate or "every frame",
        "floor": settings.floor,
        "seconds": round(seconds, 1),
        "versions": {package: _version(package) for package in _PACKAGES},
        "cameras": cameras,
        "failed": failed,
    }
