"""The plan of a synthetic world: everything that a seed determines, before any pixel is drawn."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from reid.synthetic.camera_models import Camera, Occluder, draw_cameras, scene_occluders
from reid.synthetic.people import Person, draw_people
from reid.synthetic.rendering import Box
from reid.synthetic.settings import Difficulty, SyntheticSettings
from reid.synthetic.trajectories import Pass, Sighting, Travel, observe_passes, overlap, travel_table, walk_people

TRAIN, TEST = 0, 1


@dataclass(frozen=True)
class Shot:
    """One crop to be drawn: its file, and the camera, frame and box that it shows."""

    folder: str
    name: str
    recording: int
    camera: int
    frame: int
    box: Box
    seed: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class World:
    """The plan of a world.

    Attributes:
        settings: what the plan was made from.
        n_train: number of identities in the train split.
        people: train identities, test identities, then passers-by, who are distractors.
        pids: the pid of each of `people`; those of passers-by only occur in the truth of the tracks.
        cameras: all cameras.
        occluders: by camera.
        travels: travel times of all ordered pairs of cameras.
        passes: `passes[recording][camera]`, sorted by start.
        sightings: `sightings[recording][camera]`, the same passes frame by frame.
        shots: all crops.
    """

    settings: SyntheticSettings
    n_train: int
    people: list[Person]
    pids: list[int]
    cameras: list[Camera]
    occluders: list[list[Occluder]]
    travels: list[Travel]
    passes: list[list[list[Pass]]]
    sightings: list[list[list[Sighting]]]
    shots: list[Shot]


@lru_cache(maxsize=2)
def plan_world(settings: SyntheticSettings) -> World:
    """Plan a world without drawing it."""
    hard, seed = settings.difficulty, settings.seed
    n_train = int(np.clip(round(settings.ids * settings.train_fraction), 2, settings.ids - 2))
    n_test = settings.ids - n_train
    n_passing = max(1, round(0.2 * n_test))
    groups = enumerate((n_train, n_test, n_passing))
    people = [p for group, n in groups for p in draw_people(seed, n, lookalikes=hard.lookalikes, group=group)]
    walkers = (range(n_train), range(n_train, settings.ids))
    passers_by = (range(0), range(settings.ids, settings.ids + n_passing))
    cameras = draw_cameras(seed, settings.cameras, colour=hard.colour, degrade=hard.degrade)
    occluders = [scene_occluders(camera, hard.occluders) for camera in cameras]
    passes: list[list[list[Pass]]] = []
    sightings: list[list[list[Sighting]]] = []
    for recording in (TRAIN, TEST):
        walked = walk_people(settings, cameras, people, walkers[recording], passers_by[recording])
        passes.append([[one for one in walked if one.camera == c] for c in range(len(cameras))])
        seen = zip(cameras, occluders, passes[-1], strict=True)
        sightings.append([observe_passes(camera, hidden_by, people, p, settings.fps) for camera, hidden_by, p in seen])
    pids = list(range(1, len(people) + 1))
    world = World(settings, n_train, people, pids, cameras, occluders, travel_table(cameras), passes, sightings, [])
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
        if kind == 0:
            centre_y += 0.14 * h
        elif kind == 1:
            centre_y -= 0.16 * h
        elif kind == 2:
            centre_x += rng.choice((-1, 1)) * 0.16 * h
        else:
            height, width = height * 1.3, width * 1.3
    return centre_x - width / 2, centre_y - height / 2, width, height


def _inside(box: Box, size: tuple[int, int]) -> Box:
    """Clip a box at the border of the frame."""
    x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
    x1, y1 = min(box[0] + box[2], float(size[0])), min(box[1] + box[3], float(size[1]))
    x0, y0 = min(x0, size[0] - 8.0), min(y0, size[1] - 16.0)
    return x0, y0, max(x1 - x0, 8.0), max(y1 - y0, 16.0)


class _Names:
    """Market-1501 file names; the box number distinguishes crops of one identity and frame."""

    def __init__(self) -> None:
        self.used: dict[tuple[int, int, int, int], int] = defaultdict(int)

    def __call__(self, pid: int, camera: int, sequence: int, frame: int) -> str:
        key = (pid, camera, sequence, frame)
        self.used[key] += 1
        who = "-1" if pid < 0 else f"{pid:04d}"
        return f"{who}_c{camera + 1}s{sequence}_{frame:06d}_{self.used[key]:02d}.jpg"


def _shots_of(world: World, recording: int, names: _Names) -> list[tuple[int, Shot]]:
    """Return the good crops of one recording as (person, shot), all in the train folder."""
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
                pid = world.pids[one.person] if one.person < settings.ids else 0
                seed = (settings.seed, 8, one.person, c, one.visit, frame)
                shot = Shot("bounding_box_train", names(pid, c, one.visit, frame), recording, c, frame, box, seed)
                taken.append((one.person, shot))
    return taken


def _take_shots(world: World) -> list[Shot]:
    """Return all crops: train, query, gallery, distractors and junk."""
    settings, names = world.settings, _Names()
    shots = [shot for _, shot in _shots_of(world, TRAIN, names)]
    test = [(person, replace(shot, folder="bounding_box_test")) for person, shot in _shots_of(world, TEST, names)]
    rng = np.random.default_rng((settings.seed, 9))
    by_id: dict[int, dict[int, list[Shot]]] = defaultdict(lambda: defaultdict(list))
    for person, shot in test:
        if person < settings.ids:
            by_id[person][shot.camera].append(shot)
    gallery: list[Shot] = []
    for _, by_camera in sorted(by_id.items()):
        for camera, found in sorted(by_camera.items()):
            has_match = any(len(others) > 1 for other, others in by_camera.items() if other != camera)
            query = int(rng.integers(len(found))) if len(found) > 1 and has_match else -1
            shots += [replace(found[query], folder="query")] if query >= 0 else []
            gallery += [shot for i, shot in enumerate(found) if i != query]
    shots += gallery
    passing = [shot for person, shot in test if person >= settings.ids]
    n_distractors, n_junk = round(settings.distractors * len(gallery)), round(settings.junk * len(gallery))
    shots += passing[:n_distractors]
    shots += _false_alarms(world, names, max(0, n_distractors - len(passing)))
    shots += _junk(world, names, n_junk)
    return sorted(shots, key=lambda shot: (shot.recording, shot.camera, shot.frame, shot.folder, shot.name))


def _false_alarms(world: World, names: _Names, n: int) -> list[Shot]:
    """Return `n` boxes of the size of a person that show only background (fewer where there is no room)."""
    found: list[Shot] = []
    for i in range(50 * n):
        if len(found) == n:
            break
        rng = np.random.default_rng((world.settings.seed, 10, i))
        c = int(rng.integers(len(world.cameras)))
        seen = world.sightings[TEST][c]
        template = seen[int(rng.integers(len(seen)))] if seen else None
        if template is None or not len(template.frames):
            continue
        t = int(rng.integers(len(template.frames)))
        width, height = world.cameras[c].size
        h = float(np.clip(template.boxes[t, 3], 40, 0.9 * height))
        x, y = rng.uniform(0, max(width - h / 2, 1)), rng.uniform(0.1, 1) * max(height - h, 1)
        frame = int(template.frames[t])
        box = _inside((float(x), float(y), h / 2, h), (width, height))
        covered = sum(overlap(np.array([box]), s.boxes[s.frames == frame]).sum() for s in seen)
        if covered <= 0.1:
            seed = (world.settings.seed, 11, i)
            found.append(Shot("bounding_box_test", names(0, c, 1, frame), TEST, c, frame, box, seed))
    return found


def _junk(world: World, names: _Names, n: int) -> list[Shot]:
    """Return `n` boxes that an annotator would reject: a part of a body, or a box of twice the size."""
    settings = world.settings
    found: list[Shot] = []
    pool = [(c, s) for c, seen in enumerate(world.sightings[TEST]) for s in seen if s.walk.person < settings.ids]
    for i in range(50 * n):
        if len(found) == n:
            break
        rng = np.random.default_rng((settings.seed, 12, i))
        c, sighting = pool[int(rng.integers(len(pool)))]
        good = np.flatnonzero(sighting.inside > 0.9)
        if not len(good):
            continue
        t = int(rng.choice(good))
        x, y, w, h = (float(value) for value in sighting.boxes[t])
        fraction, kind = rng.uniform(0.4, 0.55), int(rng.integers(4))
        box = (
            (x, y, w, h * fraction),
            (x, y + h * (1 - fraction), w, h * fraction),
            (x + rng.choice((-1, 1)) * 0.65 * w, y, w, h),
            (x - 0.5 * w, y - 0.4 * h, 2 * w, 1.8 * h),
        )[kind]
        frame = int(sighting.frames[t])
        name, inside = names(-1, c, sighting.walk.visit, frame), _inside(box, world.cameras[c].size)
        found.append(Shot("bounding_box_test", name, TEST, c, frame, inside, (settings.seed, 13, i)))
    return found
