"""Writes the made world: a Market-1501 tree, track files with their truth, and videos or stills."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from reid.core.atomic import atomic_folder, write_json, write_text
from reid.core.console import progress_bar
from reid.core.errors import ReidError
from reid.data.box_selection import box_quality, choose_boxes
from reid.mtmc.track_files import read_tracks
from reid.synthetic.body import Mesh
from reid.synthetic.camera_models import Image, expose, smear
from reid.synthetic.rendering import Studio
from reid.synthetic.simulated_tracks import TrackerFaults, cameras_yaml, mot_text, tracked_rows, true_rows
from reid.synthetic.trajectories import placed_at
from reid.synthetic.world import TEST, Difficulty, Shot, Streets, World, plan

MAKER, VERSION = "reid.synthetic", 2
"""`VERSION` rises whenever the same parameters would give other bytes than before."""
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
BLOCK = 200
"""Crops a worker draws at a time."""
QUALITY = 92


class _Draughtsman:
    """Draws a world's crops and videos; keeps each camera's studio."""

    def __init__(self, streets: Streets) -> None:
        self.world: World = plan(streets)
        self.studios: dict[int, Studio] = {}
        self.meshes: dict[int, Mesh] = {}

    def studio(self, camera: int) -> Studio:
        if camera not in self.studios:
            world = self.world
            self.studios[camera] = Studio(world.cameras[camera], world.people, world.occluders[camera], self.meshes)
        return self.studios[camera]

    def gain(self, camera: int, time: float) -> float:
        """The slow swing of a camera's exposure around 1."""
        one = self.world.cameras[camera]
        return 1 + one.exposure * math.sin(2 * math.pi * time / 97 + 1.7 * camera)

    def time(self, camera: int, frame: int) -> float:
        """The world's clock, seconds, when a camera took a frame."""
        return self.world.cameras[camera].offset + (frame - 1) / self.world.streets.fps

    def draw(self, shot: Shot) -> bytes:
        """A crop as JPEG bytes."""
        world = self.world
        time = self.time(shot.camera, shot.frame)
        placed = placed_at(world.passes[shot.recording][shot.camera], world.people, time)
        crop = self.studio(shot.camera).crop(
            placed,
            shot.box,
            np.random.default_rng(shot.seed),
            size=world.streets.size,
            gain=self.gain(shot.camera, time),
        )
        _, data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        return bytes(data)

    def film(self, camera: int, path: Path) -> int:
        """The video of a camera's test recording; returns the number of frames."""
        world, fps = self.world, self.world.streets.fps
        size = world.cameras[camera].size
        last = _last_frame(world, camera)
        video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        if not video.isOpened():
            raise ReidError(
                f"OpenCV cannot write the video {path.name} (mp4v). Install an opencv-python with FFmpeg, or make the "
                "set without videos."
            )
        rng = np.random.default_rng((world.streets.seed, 14, camera))
        try:
            for frame in range(1, last + 1):
                video.write(self.frame(camera, frame, rng))
        finally:
            video.release()
        return last

    def frame(self, camera: int, frame: int, rng: np.random.Generator) -> Image:
        """A whole frame of a camera's test recording, `[h, w, 3]` BGR."""
        world, one = self.world, self.world.cameras[camera]
        time = self.time(camera, frame)
        placed = placed_at(world.passes[TEST][camera], world.people, time)
        twice = self.studio(camera).draw(placed, (0, 0, *one.size), (2 * one.size[0], 2 * one.size[1]))
        picture = cv2.resize(twice, one.size, interpolation=cv2.INTER_AREA)
        return expose(one, smear(one, picture), rng, self.gain(camera, time))

    def stills(self, camera: int, frames: Sequence[int], folder: Path) -> None:
        """Some frames as JPEG files of a folder, named by their numbers."""
        for number in frames:
            rng = np.random.default_rng((self.world.streets.seed, 16, camera, number))
            _, data = cv2.imencode(".jpg", self.frame(camera, number, rng), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            (folder / f"{number:06d}.jpg").write_bytes(bytes(data))


_worker: _Draughtsman | None = None


def _start_worker(streets: Streets) -> None:
    global _worker
    cv2.setNumThreads(1)
    _worker = _Draughtsman(streets)


def _run_shots(shots: Sequence[Shot], root: Path, draughtsman: _Draughtsman | None = None) -> int:
    draughtsman = draughtsman or _worker
    assert draughtsman is not None
    for shot in shots:
        (root / shot.folder / shot.name).write_bytes(draughtsman.draw(shot))
    return len(shots)


def _run_film(camera: int, root: Path, draughtsman: _Draughtsman | None = None) -> int:
    draughtsman = draughtsman or _worker
    assert draughtsman is not None
    draughtsman.film(camera, root / "videos" / f"{draughtsman.world.cameras[camera].name}.mp4")
    return 0


def _run_stills(job: tuple[int, Sequence[int]], root: Path, draughtsman: _Draughtsman | None = None) -> int:
    draughtsman = draughtsman or _worker
    assert draughtsman is not None
    camera, frames = job
    draughtsman.stills(camera, frames, root / "stills" / draughtsman.world.cameras[camera].name)
    return 0


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _parameters(streets: Streets) -> dict[str, Any]:
    """The parameters as JSON knows them."""
    values: dict[str, Any] = json.loads(json.dumps({"maker": MAKER, "version": VERSION, **asdict(streets)}))
    return values


def _already_made(out: Path, streets: Streets) -> bool:
    """Whether `out` holds this very set.

    Raises:
        ReidError: it holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ReidError(f"{out} is a file; give a folder that is new or empty.")
    if not out.exists() or not any(out.iterdir()):
        return False
    wanted = _parameters(streets)
    try:
        found = json.loads((out / "made.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ReidError(f"{out} is not empty and holds no made.json that can be read; give a new folder.") from error
    differs = [key for key in wanted if found.get(key) != wanted[key]]
    if differs:
        key = differs[0]
        raise ReidError(
            f"{out} holds a set made with {key} = {found.get(key)!r}, but {wanted[key]!r} is asked for. "
            "Give another folder, or remove this one first."
        )
    return True


def _last_frame(world: World, camera: int) -> int:
    """The last frame of a camera's test recording that tracks and videos cover; all cameras stop at one time."""
    one, streets = world.cameras[camera], world.streets
    end = max(s.times[-1] for seen in world.sightings[TEST] for s in seen if len(s.times))
    if streets.track_seconds is not None:
        end = min(end, streets.track_seconds)
    return max(1, math.floor((end - one.offset) * streets.fps + 1e-6) + 1)


def _write_tracks(world: World, root: Path) -> None:
    """`tracks/` (local ids, imperfect), `truth/` (global ids) and `cameras.yaml` of the test recording."""
    streets = world.streets
    for c, camera in enumerate(world.cameras):
        until = _last_frame(world, c)
        seen = [sighting.until(until) for sighting in world.sightings[TEST][c] if (sighting.frames[:1] <= until).any()]
        rng = np.random.default_rng((streets.seed, 15, c))
        write_text(root / "truth" / f"{camera.name}.txt", mot_text(true_rows(camera, seen, world.pids)))
        write_text(root / "tracks" / f"{camera.name}.txt", mot_text(tracked_rows(camera, seen, streets.tracker, rng)))
    values = cameras_yaml(world.cameras, world.travels, streets.fps)
    write_text(root / "cameras.yaml", yaml.safe_dump(values, sort_keys=False))


def _still_jobs(world: World, root: Path) -> Iterator[tuple[int, list[int]]]:
    """(camera, frames) of the boxes that a match would look at, some frames a job; makes the folders."""
    tracks = read_tracks(root / "tracks")
    sizes = {camera.name: camera.size for camera in world.cameras}
    rows = choose_boxes(tracks, box_quality(tracks, sizes), per_track=world.streets.stills)
    for number, camera in enumerate(world.cameras):
        (root / "stills" / camera.name).mkdir(parents=True)
        frames = np.unique(tracks.frame[rows[tracks.camera[rows] == number]]).tolist()
        yield from ((number, frames[i : i + BLOCK]) for i in range(0, len(frames), BLOCK))


def _counts(world: World) -> dict[str, int]:
    folders = {folder: sum(shot.folder == folder for shot in world.shots) for folder in FOLDERS}
    test = [shot.name for shot in world.shots if shot.folder == "bounding_box_test"]
    return {
        **folders,
        "train_ids": world.n_train,
        "test_ids": world.streets.ids - world.n_train,
        "distractors": sum(name.startswith("0000_") for name in test),
        "junk": sum(name.startswith("-1_") for name in test),
        "test_walks": sum(len(passes) for passes in world.passes[TEST]),
    }


def synthesize(
    out: str | Path,
    *,
    seed: int = 0,
    ids: int = 350,
    cameras: int = 6,
    train_share: float = 0.7,
    crops_per_pass: tuple[int, int] = (2, 4),
    distractors: float = 0.18,
    junk: float = 0.15,
    fps: float = 10.0,
    size: tuple[int, int] = (64, 128),
    track_seconds: float | None = None,
    videos: bool = False,
    stills: int = 0,
    workers: int = 0,
    difficulty: Difficulty | None = None,
    tracker: TrackerFaults | None = None,
) -> Path:
    """Make a multi-camera pedestrian data set in the folder `out` and return its path.

    The folder then is a Market-1501 tree (`bounding_box_train`, `query`, `bounding_box_test` with junk and
    distractors), and holds `truth/` and `tracks/` (MOTChallenge files of the test recording, a file a camera, with
    global and with local imperfect ids), `cameras.yaml`, with `videos` also `videos/cam01.mp4` …, with `stills` also
    `stills/cam01/000123.jpg` …, and `made.json`.
    The same parameters give the same bytes, whatever `workers`. The set appears whole or not at all. If `out`
    already holds this very set, it is returned at once.

    Args:
        out: a folder that is new, or empty.
        workers: processes that draw; 0 and 1 draw in this one.
        others: see `Streets`, `Difficulty` and `TrackerFaults`.

    Raises:
        ReidError: a parameter is out of range, `out` holds something else or cannot be written, or OpenCV cannot
            write videos.
    """
    streets = Streets(
        seed=seed,
        ids=ids,
        cameras=cameras,
        train_share=train_share,
        crops_per_pass=(crops_per_pass[0], crops_per_pass[1]),
        distractors=distractors,
        junk=junk,
        fps=fps,
        size=(size[0], size[1]),
        track_seconds=track_seconds,
        videos=videos,
        stills=stills,
        difficulty=difficulty or Difficulty(),
        tracker=tracker or TrackerFaults(),
    )
    streets.check()
    out = Path(out)
    if _already_made(out, streets):
        return out
    with _one_thread(), atomic_folder(out) as root:
        world = plan(streets)
        for folder in FOLDERS:
            (root / folder).mkdir()
        _write_tracks(world, root)
        jobs: list[tuple[Callable[..., int], Any]] = []
        if videos:
            (root / "videos").mkdir()
            jobs += [(_run_film, camera) for camera in range(cameras)]
        if stills:
            jobs += [(_run_stills, job) for job in _still_jobs(world, root)]
        jobs += [(_run_shots, world.shots[i : i + BLOCK]) for i in range(0, len(world.shots), BLOCK)]
        with progress_bar() as bar:
            task = bar.add_task("Drawing crops", total=len(world.shots))
            if workers > 1:
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(workers, context, _start_worker, (streets,)) as pool:
                    running = [pool.submit(job, argument, root) for job, argument in jobs]
                    try:
                        for done in as_completed(running):
                            bar.advance(task, done.result())
                    finally:
                        pool.shutdown(cancel_futures=True)
            else:
                draughtsman = _Draughtsman(streets)
                for job, argument in jobs:
                    bar.advance(task, job(argument, root, draughtsman))
        write_json(root / "made.json", {**_parameters(streets), "counts": _counts(world)})
    return out
