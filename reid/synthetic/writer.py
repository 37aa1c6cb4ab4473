"""Writes a synthetic data set: a Market-1501 tree, track files with truth, and videos or stills."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from reid.core.atomic import atomic_folder, write_json, write_text
from reid.core.console import progress_bar
from reid.core.errors import DataError
from reid.data.box_selection import box_quality, choose_boxes
from reid.mtmc.track_files import read_tracks
from reid.synthetic.body import Mesh
from reid.synthetic.camera_models import Image, apply_sensor, blur_image
from reid.synthetic.rendering import Placed, Studio
from reid.synthetic.settings import SyntheticSettings
from reid.synthetic.simulated_tracks import describe_cameras, format_mot, tracked_rows, true_rows
from reid.synthetic.trajectories import placed_at
from reid.synthetic.world import TEST, Shot, World, plan_world

MAKER, VERSION = "reid.synthetic", 2
"""`VERSION` increases when the same settings would give different files than before."""
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
BLOCK = 200
"""Crops per job of a worker process."""
QUALITY = 92
"""JPEG quality of crops and stills."""


def _encode(image: Image) -> bytes:
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])


class _Renderer:
    """Renders a world's crops, videos and stills; caches each camera's studio."""

    def __init__(self, settings: SyntheticSettings) -> None:
        self.world: World = plan_world(settings)
        self.studios: dict[int, Studio] = {}
        self.meshes: dict[int, Mesh] = {}

    def studio(self, camera: int) -> Studio:
        """Return the studio of a camera; it is built at first use."""
        if camera not in self.studios:
            world = self.world
            self.studios[camera] = Studio(world.cameras[camera], world.people, world.occluders[camera], self.meshes)
        return self.studios[camera]

    def moment(self, recording: int, camera: int, frame: int) -> tuple[list[Placed], float]:
        """Return the people in view at a camera's frame, and the relative exposure, which changes slowly around 1."""
        one = self.world.cameras[camera]
        time = one.offset + (frame - 1) / self.world.settings.fps
        gain = 1 + one.exposure * math.sin(2 * math.pi * time / 97 + 1.7 * camera)
        return placed_at(self.world.passes[recording][camera], self.world.people, time), gain

    def crop(self, shot: Shot) -> bytes:
        """Render a crop as JPEG bytes."""
        placed, gain = self.moment(shot.recording, shot.camera, shot.frame)
        rng, size = np.random.default_rng(shot.seed), self.world.settings.size
        return _encode(self.studio(shot.camera).crop(placed, shot.box, rng, size=size, gain=gain))

    def frame(self, camera: int, frame: int, rng: np.random.Generator) -> Image:
        """Render a whole frame of a camera's test recording, `[h, w, 3]` BGR."""
        one = self.world.cameras[camera]
        placed, gain = self.moment(TEST, camera, frame)
        twice = self.studio(camera).draw(placed, (0, 0, *one.size), (2 * one.size[0], 2 * one.size[1]))
        picture = cv2.resize(twice, one.size, interpolation=cv2.INTER_AREA)
        return apply_sensor(one, blur_image(one, picture), rng, gain)

    def write_crops(self, root: Path, shots: Sequence[Shot]) -> int:
        """Write crops as JPEG files; returns their number."""
        for shot in shots:
            (root / shot.folder / shot.name).write_bytes(self.crop(shot))
        return len(shots)

    def write_video(self, root: Path, camera: int) -> int:
        """Write the video of a camera's test recording."""
        world, one = self.world, self.world.cameras[camera]
        path = root / "videos" / f"{one.name}.mp4"
        video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), world.settings.fps, one.size)
        if not video.isOpened():
            raise DataError(
                f"OpenCV cannot write {path.name} (codec mp4v). Install an opencv-python with FFmpeg, "
                "or set videos=false."
            )
        rng = np.random.default_rng((world.settings.seed, 14, camera))
        try:
            for frame in range(1, _last_frame(world, camera) + 1):
                video.write(self.frame(camera, frame, rng))
        finally:
            video.release()
        return 0

    def write_stills(self, root: Path, camera: int, frames: Sequence[int]) -> int:
        """Write frames as JPEG files that are named by their numbers."""
        folder = root / "stills" / self.world.cameras[camera].name
        for number in frames:
            rng = np.random.default_rng((self.world.settings.seed, 16, camera, number))
            (folder / f"{number:06d}.jpg").write_bytes(_encode(self.frame(camera, number, rng)))
        return 0


Job = tuple[Callable[..., int], tuple[Any, ...]]
"""A method of `_Renderer` that returns the number of crops it wrote, and its arguments after the folder."""

_worker: _Renderer | None = None
"""The renderer of a worker process."""


def _start_worker(settings: SyntheticSettings) -> None:
    global _worker
    cv2.setNumThreads(1)
    _worker = _Renderer(settings)


def _run_in_worker(job: Job, root: Path) -> int:
    return job[0](_worker, root, *job[1])


def _parameters(settings: SyntheticSettings) -> dict[str, Any]:
    return {"maker": MAKER, "version": VERSION, **settings.as_dict()}


def _is_complete(out: Path, settings: SyntheticSettings) -> bool:
    """Return whether `out` already contains the data set of these settings.

    Raises:
        DataError: `out` contains something else.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file. Pass a new or an empty folder.")
    if not out.exists() or not any(out.iterdir()):
        return False
    wanted = _parameters(settings)
    try:
        found = json.loads((out / "made.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{out} is not empty and has no readable made.json. Pass a new or an empty folder.") from error
    for key, value in wanted.items():
        if found.get(key) != value:
            raise DataError(
                f"{out} contains a data set with {key}={found.get(key)!r}, not {value!r}. "
                "Pass another folder, or remove this one."
            )
    return True


def _last_frame(world: World, camera: int) -> int:
    """Return the last frame of a camera in tracks and videos; all cameras stop at the same time."""
    one, settings = world.cameras[camera], world.settings
    end = max(s.times[-1] for seen in world.sightings[TEST] for s in seen if len(s.times))
    if settings.track_seconds is not None:
        end = min(end, settings.track_seconds)
    return max(1, math.floor((end - one.offset) * settings.fps + 1e-6) + 1)


def _write_tracks(world: World, root: Path) -> None:
    """Write `tracks/` (local ids, imperfect), `truth/` (global ids) and `cameras.yaml` of the test recording."""
    settings = world.settings
    for c, camera in enumerate(world.cameras):
        last = _last_frame(world, c)
        seen = [sighting.until(last) for sighting in world.sightings[TEST][c] if (sighting.frames[:1] <= last).any()]
        rng = np.random.default_rng((settings.seed, 15, c))
        write_text(root / "truth" / f"{camera.name}.txt", format_mot(true_rows(camera, seen, world.pids)))
        tracked = tracked_rows(camera, seen, settings.tracker, rng)
        write_text(root / "tracks" / f"{camera.name}.txt", format_mot(tracked))
    values = describe_cameras(world.cameras, world.travels, settings.fps)
    write_text(root / "cameras.yaml", yaml.safe_dump(values, sort_keys=False))


def _still_jobs(world: World, root: Path) -> Iterator[tuple[int, list[int]]]:
    """Yield (camera, frames) of the boxes that `reid match` selects; creates the folders."""
    tracks = read_tracks(root / "tracks")
    sizes = {camera.name: camera.size for camera in world.cameras}
    rows = choose_boxes(tracks, box_quality(tracks, sizes), per_track=world.settings.stills)
    for number, camera in enumerate(world.cameras):
        (root / "stills" / camera.name).mkdir(parents=True)
        frames = np.unique(tracks.frame[rows[tracks.camera[rows] == number]]).tolist()
        yield from ((number, frames[i : i + BLOCK]) for i in range(0, len(frames), BLOCK))


def _counts(world: World) -> dict[str, int]:
    folders = Counter(shot.folder for shot in world.shots)
    gallery = [shot.name for shot in world.shots if shot.folder == "bounding_box_test"]
    return {
        **{folder: folders[folder] for folder in FOLDERS},
        "train_ids": world.n_train,
        "test_ids": world.settings.ids - world.n_train,
        "distractors": sum(name.startswith("0000_") for name in gallery),
        "junk": sum(name.startswith("-1_") for name in gallery),
        "test_walks": sum(map(len, world.passes[TEST])),
    }


def synthesize(
    out: str | Path, settings: SyntheticSettings | None = None, *, workers: int = 0, **overrides: Any
) -> Path:
    """Generate a multi-camera pedestrian data set in a folder and return the folder's path.

    The folder is a Market-1501 tree (`bounding_box_train`, `query`, `bounding_box_test` with junk and distractors).
    It also contains `truth/` and `tracks/` (MOTChallenge files of the test recording, one per camera, with global ids
    and with imperfect local ids), `cameras.yaml` and `made.json` (settings and counts); with `videos`,
    `videos/cam01.mp4` …; with `stills`, `stills/cam01/000123.jpg` ….

    The same settings give the same files, whatever `workers`. The data set appears complete or not at all. If `out`
    already contains it, nothing is done.

    Args:
        out: a new or an empty folder.
        settings: all settings; None for the defaults.
        workers: number of processes; 0 and 1: render in this process.
        overrides: settings by name that replace those of `settings`, e.g. `ids=20`.

    Raises:
        ConfigError: a setting is unknown or out of range.
        DataError: `out` contains something else or cannot be written, or OpenCV cannot write videos.

    Example:
        >>> import tempfile
        >>> root = synthesize(tempfile.mkdtemp(), ids=4, cameras=2)
        >>> sorted(path.name for path in root.iterdir())[:4]
        ['bounding_box_test', 'bounding_box_train', 'cameras.yaml', 'made.json']
    """
    settings = SyntheticSettings(**{**(settings.as_dict() if settings else {}), **overrides})
    out = Path(out)
    if _is_complete(out, settings):
        return out
    with ExitStack() as stack:
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        cv2.setNumThreads(1)
        root = stack.enter_context(atomic_folder(out))
        world = plan_world(settings)
        for folder in FOLDERS:
            (root / folder).mkdir()
        _write_tracks(world, root)
        jobs: list[Job] = []
        if settings.videos:
            (root / "videos").mkdir()
            jobs += [(_Renderer.write_video, (camera,)) for camera in range(settings.cameras)]
        if settings.stills:
            jobs += [(_Renderer.write_stills, frames) for frames in _still_jobs(world, root)]
        jobs += [(_Renderer.write_crops, (world.shots[i : i + BLOCK],)) for i in range(0, len(world.shots), BLOCK)]
        with progress_bar() as bar:
            task = bar.add_task("Rendering crops", total=len(world.shots))
            for done in _run(jobs, settings, root, workers):
                bar.advance(task, done)
        write_json(root / "made.json", {**_parameters(settings), "counts": _counts(world)})
    return out


def _run(jobs: Sequence[Job], settings: SyntheticSettings, root: Path, workers: int) -> Iterator[int]:
    """Run the jobs, here or in worker processes, and yield the number of crops that each has written."""
    if workers <= 1:
        renderer = _Renderer(settings)
        for method, arguments in jobs:
            yield method(renderer, root, *arguments)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (settings,)) as pool:
        running = [pool.submit(_run_in_worker, job, root) for job in jobs]
        try:
            for done in as_completed(running):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)
