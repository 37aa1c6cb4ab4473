"""Writes a synthetic data set: a Market-1501 tree, track files with truth, and videos or stills."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from reid.core.atomic import atomic_folder, write_json, write_text
from reid.core.console import progress_bar
from reid.core.errors import DataError
from reid.core.reading import read_json
from reid.core.workers import worker_pool
from reid.data.box_selection import box_quality, choose_boxes
from reid.data.tracks import Tracks
from reid.mtmc.track_writers import write_tracks
from reid.synthetic.camera_models import Image, apply_sensor, blur_image
from reid.synthetic.recording import last_frame, record
from reid.synthetic.rendering import Placed, Studio
from reid.synthetic.settings import SyntheticSettings
from reid.synthetic.trajectories import placed_at
from reid.synthetic.world import FOLDERS, TEST, Shot, World, plan_world

MAKER, VERSION = "reid.synthetic", 3
"""`VERSION` increases when the same settings would give different files than before."""
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
        self.studio = cache(self._studio)

    def _studio(self, camera: int) -> Studio:
        return Studio(self.world.cameras[camera], self.world.people, self.world.occluders[camera])

    def moment(self, recording: int, camera: int, frame: int) -> tuple[list[Placed], float]:
        """Return the people in view at a camera's frame, and the relative exposure, which changes slowly around 1."""
        one = self.world.cameras[camera]
        time = one.offset + (frame - 1) / self.world.settings.fps
        gain = 1 + one.exposure * math.sin(2 * math.pi * time / 97 + 1.7 * camera)
        return placed_at(self.world.sightings[recording][camera], self.world.people, time), gain

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
            for frame in range(1, last_frame(world, camera) + 1):
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

_renderer = lru_cache(maxsize=1)(_Renderer)
"""Returns the renderer of some settings; each worker process builds its own."""


def _run_job(job: Job, settings: SyntheticSettings, root: Path) -> int:
    cv2.setNumThreads(1)
    return job[0](_renderer(settings), root, *job[1])


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
    if not (out / "made.json").is_file():
        raise DataError(f"{out} is not empty and has no made.json. Pass a new or an empty folder.")
    found = read_json(out / "made.json", "Pass a new or an empty folder.")
    for key, value in wanted.items():
        if found.get(key) != value:
            raise DataError(
                f"{out} contains a data set with {key}={found.get(key)!r}, not {value!r}. "
                "Pass another folder, or remove this one."
            )
    return True


def _still_jobs(world: World, tracks: Tracks, root: Path) -> Iterator[tuple[int, list[int]]]:
    """Yield (camera, frames) of the boxes that `reid match` selects; creates the folders."""
    sizes = {camera.name: camera.size for camera in world.cameras}
    rows = choose_boxes(tracks, box_quality(tracks, sizes), per_track=world.settings.stills)
    for number, camera in enumerate(world.cameras):
        (root / "stills" / camera.name).mkdir(parents=True)
        frames = np.unique(tracks.frame[rows[tracks.camera[rows] == number]]).tolist()
        yield from ((number, frames[i : i + BLOCK]) for i in range(0, len(frames), BLOCK))


def _counts(world: World) -> dict[str, int]:
    folders = Counter(shot.folder for shot in world.shots)
    gallery = Counter(shot.pid for shot in world.shots if shot.folder == FOLDERS[2])
    return {
        **{folder: folders[folder] for folder in FOLDERS},
        "train_ids": world.n_train,
        "test_ids": world.settings.ids - world.n_train,
        "distractors": gallery[0],
        "junk": gallery[-1],
        "test_walks": sum(map(len, world.sightings[TEST])),
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
        recording = record(settings)
        write_tracks(recording.truth, root / "truth")
        write_tracks(recording.tracks, root / "tracks")
        write_text(root / "cameras.yaml", yaml.safe_dump(recording.cameras, sort_keys=False))
        jobs: list[Job] = []
        if settings.videos:
            (root / "videos").mkdir()
            jobs += [(_Renderer.write_video, (camera,)) for camera in range(settings.cameras)]
        if settings.stills:
            jobs += [(_Renderer.write_stills, frames) for frames in _still_jobs(world, recording.tracks, root)]
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
        yield from (_run_job(job, settings, root) for job in jobs)
        return
    with worker_pool(workers) as pool:
        running = [pool.submit(_run_job, job, settings, root) for job in jobs]
        try:
            for done in as_completed(running):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)
