"""The plan of a synthetic world: everything that a seed determines, before any pixel is drawn."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice

import numpy as np

from reid.synthetic.camera_models import Camera, Occluder, draw_cameras, scene_occluders
from reid.synthetic.floor import FloorPass, place_cameras, walk_floor
from reid.synthetic.people import Person, draw_people
from reid.synthetic.rendering import Box
from reid.synthetic.settings import Difficulty, SyntheticSettings
from reid.synthetic.trajectories import Pass, Sighting, observe_passes, overlap, walk_people

TRAIN, TEST = 0, 1
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


@dataclass(frozen=True)
class Shot:
    """One crop to be drawn: the camera, frame and box that it shows, and its file in the Market-1501 tree.

    `box_number` distinguishes the crops of one identity, camera, sequence and frame.
    """

    folder: str
    pid: int
    sequence: int
    recording: int
    camera: int
    frame: int
    box: Box
    seed: tuple[int, ...]
    box_number: int = 1

    @property
    def name(self) -> str:
        """Market-1501 file name."""
        who = "-1" if self.pid < 0 else f"{self.pid:04d}"
        return f"{who}_c{self.camera + 1}s{self.sequence}_{self.frame:06d}_{self.box_number:02d}.jpg"


@dataclass(frozen=True, eq=False)
class World:
    """The plan of a world.

    Attributes:
        settings: what the plan was made from.
        n_train: number of identities in the train split.
        people: train identities, test identities, then passers-by, who are distractors. The pid is the index plus 1.
        cameras: all cameras.
        occluders: by camera.
        sightings: `sightings[recording][camera]`, walks through the view frame by frame, sorted by start.
        shots: all crops.
    """

    settings: SyntheticSettings
    n_train: int
    people: list[Person]
    cameras: list[Camera]
    occluders: list[list[Occluder]]
    sightings: list[list[list[Sighting]]]
    shots: list[Shot]


_DrawShot = Callable[[World, np.random.Generator], Shot | None]
"""Draws a gallery crop, or None if there is none at the place drawn."""


@lru_cache(maxsize=2)
def plan_world(settings: SyntheticSettings) -> World:
    """Plan a world without drawing it."""
    hard, seed = settings.difficulty, settings.seed
    n_train = int(np.clip(round(settings.ids * settings.train_fraction), 2, settings.ids - 2))
    n_test = settings.ids - n_train
    n_passing = max(1, round(0.2 * n_test)) if settings.site == "separate" else 0
    groups = enumerate((n_train, n_test, n_passing))
    people = [p for group, n in groups for p in draw_people(seed, n, lookalikes=hard.lookalikes, group=group)]
    walkers = (range(n_train), range(n_train, settings.ids))
    passers_by = (range(0), range(settings.ids, settings.ids + n_passing))
    cameras = draw_cameras(seed, settings.cameras, colour=hard.colour, degrade=hard.degrade)
    if settings.site != "separate":
        cameras = place_cameras(cameras, settings)
    occluders = [scene_occluders(camera, hard.occluders) for camera in cameras]
    sightings: list[list[list[Sighting]]] = []
    for recording in (TRAIN, TEST):
        walked: Sequence[Pass | FloorPass]
        if settings.site == "separate":
            walked = walk_people(settings, cameras, people, walkers[recording], passers_by[recording])
        else:
            walked = walk_floor(settings, cameras, people, walkers[recording])
        by_camera = [[one for one in walked if one.camera == c] for c in range(len(cameras))]
        views = zip(cameras, occluders, by_camera, strict=True)
        sightings.append([observe_passes(camera, hiding, people, seen, settings.fps) for camera, hiding, seen in views])
    world = World(settings, n_train, people, cameras, occluders, sightings, [])
    world.shots.extend(_take_shots(world))
    return world


def _detect(rng: np.random.Generator, box: np.ndarray, hard: Difficulty) -> Box:
    """Return a detected box around a true one: about twice as high as wide, with small and some large errors."""
    x, y, w, h = box
    height = h * (1.06 + abs(rng.normal(0, hard.jitter)))
    centre_x = x + w / 2 + rng.normal(0, hard.jitter) * h * 0.8
    centre_y = y + h / 2 + rng.normal(0, hard.jitter) * h
    width = max(0.5 * height, 0.9 * w) * (1 + rng.normal(0, hard.jitter))
    if rng.random() < hard.bad_boxes:
        kind = int(rng.integers(4))
        centre_y += (0.14, -0.16, 0.0, 0.0)[kind] * h
        centre_x += rng.choice((-1, 1)) * 0.16 * h if kind == 2 else 0.0
        height, width = (height * 1.3, width * 1.3) if kind == 3 else (height, width)
    return centre_x - width / 2, centre_y - height / 2, width, height


def _inside(box: Box, size: tuple[int, int]) -> Box:
    """Clip a box at the border of the frame."""
    x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
    x1, y1 = min(box[0] + box[2], float(size[0])), min(box[1] + box[3], float(size[1]))
    x0, y0 = min(x0, size[0] - 8.0), min(y0, size[1] - 16.0)
    return x0, y0, max(x1 - x0, 8.0), max(y1 - y0, 16.0)


def _shots_of(world: World, recording: int) -> list[Shot]:
    """Return the good crops of one recording, those of people of no identity with pid 0."""
    settings, hard = world.settings, world.settings.difficulty
    taken = []
    for c, seen in enumerate(world.sightings[recording]):
        for sighting in seen:
            one = sighting.walk
            rng = np.random.default_rng((settings.seed, 7, one.person, c, one.visit))
            good = np.flatnonzero((sighting.inside > 0.9) & (sighting.hidden <= hard.hidden))
            wanted = int(rng.integers(settings.crops_per_pass[0], settings.crops_per_pass[1] + 1))
            for slot in np.array_split(good, min(wanted, len(good))) if len(good) else ():
                t = int(rng.choice(slot))
                frame = int(sighting.frames[t])
                box = _inside(_detect(rng, sighting.boxes[t], hard), world.cameras[c].size)
                pid = one.person + 1 if one.person < settings.ids else 0
                seed = (settings.seed, 8, one.person, c, one.visit, frame)
                taken.append(Shot(FOLDERS[2 * recording], pid, one.visit, recording, c, frame, box, seed))
    return taken


def _take_shots(world: World) -> list[Shot]:
    """Return all crops: train, query, gallery, distractors and junk."""
    settings = world.settings
    shots, test = _shots_of(world, TRAIN), _shots_of(world, TEST)
    rng = np.random.default_rng((settings.seed, 9))
    by_id: dict[int, dict[int, list[Shot]]] = defaultdict(lambda: defaultdict(list))
    for shot in test:
        if shot.pid:
            by_id[shot.pid][shot.camera].append(shot)
    gallery: list[Shot] = []
    for _, by_camera in sorted(by_id.items()):
        for camera, found in sorted(by_camera.items()):
            has_match = any(len(others) > 1 for other, others in by_camera.items() if other != camera)
            query = int(rng.integers(len(found))) if len(found) > 1 and has_match else -1
            shots += [replace(found[query], folder=FOLDERS[1])] if query >= 0 else []
            gallery += [shot for i, shot in enumerate(found) if i != query]
    shots += gallery
    passing = [shot for shot in test if not shot.pid]
    n_distractors, n_junk = round(settings.distractors * len(gallery)), round(settings.junk * len(gallery))
    shots += passing[:n_distractors]
    shots += _draw_shots(world, max(0, n_distractors - len(passing)), _false_alarm, 10)
    shots += _draw_shots(world, n_junk, _junk, 12)
    boxes: Counter[tuple[int, ...]] = Counter()
    for i, shot in enumerate(shots):
        key = (shot.pid, shot.camera, shot.sequence, shot.frame)
        boxes[key] += 1
        shots[i] = replace(shot, box_number=boxes[key])
    return sorted(shots, key=lambda shot: (shot.recording, shot.camera, shot.frame, shot.folder, shot.name))


def _draw_shots(world: World, n: int, draw: _DrawShot, stream: int) -> list[Shot]:
    """Return `n` gallery crops from `draw`, fewer if 50 · n draws find too few."""
    drawn = (draw(world, np.random.default_rng((world.settings.seed, stream, i))) for i in range(50 * n))
    numbered = ((i, shot) for i, shot in enumerate(drawn) if shot is not None)
    return [replace(shot, seed=(world.settings.seed, stream + 1, i)) for i, shot in islice(numbered, n)]


def _false_alarm(world: World, rng: np.random.Generator) -> Shot | None:
    """Draw a box of the size of a person that shows only background; None where there is no room."""
    c = int(rng.integers(len(world.cameras)))
    seen = world.sightings[TEST][c]
    template = seen[int(rng.integers(len(seen)))] if seen else None
    if template is None or not len(template.frames):
        return None
    t = int(rng.integers(len(template.frames)))
    width, height = world.cameras[c].size
    h = float(np.clip(template.boxes[t, 3], 40, 0.9 * height))
    x, y = rng.uniform(0, max(width - h / 2, 1)), rng.uniform(0.1, 1) * max(height - h, 1)
    frame = int(template.frames[t])
    box = _inside((float(x), float(y), h / 2, h), (width, height))
    covered = sum(overlap(np.array([box]), s.boxes[s.frames == frame]).sum() for s in seen)
    return Shot(FOLDERS[2], 0, 1, TEST, c, frame, box, ()) if covered <= 0.1 else None


def _junk(world: World, rng: np.random.Generator) -> Shot | None:
    """Draw a box that an annotator would reject: a part of a body, or a box of twice the size."""
    pool = [(c, s) for c, seen in enumerate(world.sightings[TEST]) for s in seen if s.walk.person < world.settings.ids]
    c, sighting = pool[int(rng.integers(len(pool)))]
    good = np.flatnonzero(sighting.inside > 0.9)
    if not len(good):
        return None
    t = int(rng.choice(good))
    x, y, w, h = (float(value) for value in sighting.boxes[t])
    fraction, kind = rng.uniform(0.4, 0.55), int(rng.integers(4))
    box = (
        (x, y, w, h * fraction),
        (x, y + h * (1 - fraction), w, h * fraction),
        (x + rng.choice((-1, 1)) * 0.65 * w, y, w, h),
        (x - 0.5 * w, y - 0.4 * h, 2 * w, 1.8 * h),
    )[kind]
    inside = _inside(box, world.cameras[c].size)
    return Shot(FOLDERS[2], -1, sighting.walk.visit, TEST, c, int(sighting.frames[t]), inside, ())
