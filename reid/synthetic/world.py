"""The made world as a plan: everything that a seed decides, before a pixel is drawn."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from reid.core.errors import ReidError
from reid.synthetic.camera_models import Camera, Occluder, draw_cameras, scene_occluders
from reid.synthetic.people import Person, draw_people
from reid.synthetic.simulated_tracks import TrackerFaults
from reid.synthetic.trajectories import Pass, Sighting, Travel, sight, travel_table, walk_people

Box = tuple[float, float, float, float]
TRAIN, TEST = 0, 1


@dataclass(frozen=True)
class Difficulty:
    """What makes the set hard; every value is a plain number with the unit named.

    Attributes:
        lookalikes: share of identities, 0..1, that copy another's clothes but for two things.
        colour: how much the cameras' colours differ; 0 not at all, 1 more than in most real places.
        degrade: how much blur, noise, lost detail and compression the cameras add; 0 none, 1 much.
        crowd: people in view of a camera at once, mean.
        occluders: poles, bushes, cars and railings among the walkers of each camera, count.
        jitter: σ of a detector's box, share of its height.
        bad_boxes: share of crops, 0..1, whose box cuts off head, feet or side, or is far too large.
        hidden: largest share, 0..1, of a person that others may cover in a crop.
        reentry: chance at each step of a journey of coming back to the camera just left.
    """

    lookalikes: float = 0.25
    colour: float = 0.35
    degrade: float = 0.6
    crowd: float = 2.0
    occluders: int = 3
    jitter: float = 0.02
    bad_boxes: float = 0.06
    hidden: float = 0.35
    reentry: float = 0.08


@dataclass(frozen=True)
class Streets:
    """Every parameter of a made set; the same values give the same bytes.

    Attributes:
        seed: of everything.
        ids: identities, train and test together; `train_share` of them are for training.
        cameras: count.
        crops_per_pass: fewest and most crops taken of one walk across one camera's view.
        distractors: crops with identity 0000 (people of no query, empty background), share of the gallery.
        junk: crops with identity -1 (parts of people, two people in a box), share of the gallery.
        fps: frames a second of every camera.
        size: width and height of a crop, pixels.
        track_seconds: length of the test recording that tracks, truth and videos cover; None for all of it. The tree
            always draws on the whole.
        videos: whether videos of the test recording are written.
        stills: of each made track, the whole frames of so many of its boxes are written as pictures, those that
            `reid match` would choose: what it needs of the videos, in a fraction of their time. 0 for none.
        difficulty: see `Difficulty`.
        tracker: how the made single-camera tracks err.
    """

    seed: int = 0
    ids: int = 350
    cameras: int = 6
    train_share: float = 0.7
    crops_per_pass: tuple[int, int] = (2, 4)
    distractors: float = 0.18
    junk: float = 0.15
    fps: float = 10.0
    size: tuple[int, int] = (64, 128)
    track_seconds: float | None = None
    videos: bool = False
    stills: int = 0
    difficulty: Difficulty = field(default_factory=Difficulty)
    tracker: TrackerFaults = field(default_factory=TrackerFaults)

    def check(self) -> None:
        """Raise `ReidError` for a value out of range."""
        shares = {
            "difficulty.lookalikes": self.difficulty.lookalikes,
            "difficulty.bad_boxes": self.difficulty.bad_boxes,
            "difficulty.hidden": self.difficulty.hidden,
            "difficulty.reentry": self.difficulty.reentry,
            "train_share": self.train_share,
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ReidError(f"{name} is a share from 0 to 1, not {value}.")
        if self.stills < 0:
            raise ReidError(f"stills is {self.stills}; give a number of boxes a track from 0 on.")
        if self.seed < 0:
            raise ReidError(f"seed is {self.seed}; give a whole number from 0 on.")
        if not 4 <= self.ids <= 9999:
            raise ReidError(
                f"ids is {self.ids}; give from 4 (two to train on, two to test) to 9999 (four digits in a name)."
            )
        if not 2 <= self.cameras <= 99:
            raise ReidError(f"cameras is {self.cameras}; give from 2 (a match must cross cameras) to 99.")
        low, high = self.crops_per_pass
        if not 2 <= low <= high:
            raise ReidError(f"crops_per_pass is {self.crops_per_pass}; give the fewest (at least 2) and the most.")
        for name, value in {"distractors": self.distractors, "junk": self.junk}.items():
            if value < 0:
                raise ReidError(f"{name} is {value}; give a share of the gallery from 0 on.")
        if self.track_seconds is not None and self.track_seconds <= 0:
            raise ReidError(
                f"track_seconds is {self.track_seconds}; give seconds above 0, or None for the whole recording."
            )
        if self.fps <= 0 or self.difficulty.crowd <= 0:
            raise ReidError(f"fps ({self.fps}) and difficulty.crowd ({self.difficulty.crowd}) must be above 0.")
        if self.difficulty.occluders < 0 or self.difficulty.colour < 0 or self.difficulty.degrade < 0:
            raise ReidError("difficulty.occluders, .colour and .degrade must not be below 0.")
        if min(self.size) < 16:
            raise ReidError(f"size is {self.size}; a crop needs at least 16 × 16 pixels.")


@dataclass(frozen=True)
class Shot:
    """One crop to be drawn: where it goes, and what box of which camera's frame it shows."""

    folder: str
    name: str
    recording: int
    camera: int
    frame: int
    box: Box
    seed: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class World:
    """The plan. `people` holds the train identities, the test identities, then passers-by, who have no pid.

    `passes[recording][camera]` and `sightings[recording][camera]` are sorted by start. `pids` numbers everybody:
    the pid, or for passers-by the id that only the tracks' truth uses.
    """

    streets: Streets
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
def plan(streets: Streets) -> World:
    """Decide everything that the parameters say, and draw nothing."""
    streets.check()
    hard, seed = streets.difficulty, streets.seed
    n_train = int(np.clip(round(streets.ids * streets.train_share), 2, streets.ids - 2))
    n_test = streets.ids - n_train
    n_passing = max(1, round(0.2 * n_test))
    groups = enumerate((n_train, n_test, n_passing))
    people = [p for group, n in groups for p in draw_people(seed, n, lookalikes=hard.lookalikes, group=group)]
    members = (range(n_train), range(n_train, streets.ids))
    passers_by = range(streets.ids, streets.ids + n_passing)
    cameras = draw_cameras(seed, streets.cameras, colour=hard.colour, degrade=hard.degrade)
    occluders = [scene_occluders(camera, hard.occluders) for camera in cameras]
    passes: list[list[list[Pass]]] = []
    sightings: list[list[list[Sighting]]] = []
    for recording in (TRAIN, TEST):
        walked = walk_people(
            seed,
            cameras,
            people,
            members[recording],
            passers_by if recording == TEST else (),
            crowd=hard.crowd,
            reentry=hard.reentry,
        )
        passes.append([[one for one in walked if one.camera == c] for c in range(len(cameras))])
        sightings.append(
            [sight(cameras[c], occluders[c], people, passes[-1][c], streets.fps) for c in range(len(cameras))]
        )
    pids = list(range(1, len(people) + 1))
    world = World(streets, n_train, people, pids, cameras, occluders, travel_table(cameras), passes, sightings, [])
    world.shots.extend(_take_shots(world))
    return world


def _detect(rng: np.random.Generator, box: np.ndarray, hard: Difficulty) -> Box:
    """A detector's box around a true one: twice as high as wide, a little off, sometimes badly."""
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
    """The box cut at the frame's border, as a detector's is."""
    x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
    x1, y1 = min(box[0] + box[2], float(size[0])), min(box[1] + box[3], float(size[1]))
    x0, y0 = min(x0, size[0] - 8.0), min(y0, size[1] - 16.0)
    return x0, y0, max(x1 - x0, 8.0), max(y1 - y0, 16.0)


class _Names:
    """Market-1501 names; the box number tells apart the crops of one identity's frame."""

    def __init__(self) -> None:
        self.used: dict[tuple[int, int, int, int], int] = defaultdict(int)

    def __call__(self, pid: int, camera: int, sequence: int, frame: int) -> str:
        key = (pid, camera, sequence, frame)
        self.used[key] += 1
        who = "-1" if pid < 0 else f"{pid:04d}"
        return f"{who}_c{camera + 1}s{sequence}_{frame:06d}_{self.used[key]:02d}.jpg"


def _shots_of(world: World, recording: int, names: _Names) -> list[tuple[int, Shot]]:
    """The good crops of one recording's people as (person, shot); the folder is filled in for the train set."""
    streets, hard = world.streets, world.streets.difficulty
    taken = []
    for c, seen in enumerate(world.sightings[recording]):
        for sighting in seen:
            one = sighting.one
            rng = np.random.default_rng((streets.seed, 7, one.person, c, one.visit))
            good = np.flatnonzero((sighting.inside > 0.9) & (sighting.hidden <= hard.hidden))
            wanted = int(rng.integers(streets.crops_per_pass[0], streets.crops_per_pass[1] + 1))
            if len(good) == 0:
                continue
            slots = np.array_split(good, min(wanted, len(good)))
            for slot in slots:
                t = int(rng.choice(slot))
                frame = int(sighting.frames[t])
                box = _inside(_detect(rng, sighting.boxes[t], hard), world.cameras[c].size)
                pid = world.pids[one.person] if one.person < streets.ids else 0
                seed = (streets.seed, 8, one.person, c, one.visit, frame)
                shot = Shot("bounding_box_train", names(pid, c, one.visit, frame), recording, c, frame, box, seed)
                taken.append((one.person, shot))
    return taken


def _take_shots(world: World) -> list[Shot]:
    """All the crops of the tree: train, query, gallery, distractors and junk."""
    streets = world.streets
    names = _Names()
    shots = [shot for _, shot in _shots_of(world, TRAIN, names)]
    test = _shots_of(world, TEST, names)
    rng = np.random.default_rng((streets.seed, 9))

    def moved(shot: Shot, folder: str) -> Shot:
        return Shot(folder, shot.name, shot.recording, shot.camera, shot.frame, shot.box, shot.seed)

    by_id: dict[int, dict[int, list[Shot]]] = defaultdict(lambda: defaultdict(list))
    for person, shot in test:
        if person < streets.ids:
            by_id[person][shot.camera].append(shot)
    gallery: list[Shot] = []
    for _, by_camera in sorted(by_id.items()):
        for camera, found in sorted(by_camera.items()):
            elsewhere = any(len(others) > 1 for other, others in by_camera.items() if other != camera)
            chosen = int(rng.integers(len(found))) if len(found) > 1 and elsewhere else -1
            for i, shot in enumerate(found):
                if i == chosen:
                    shots.append(moved(shot, "query"))
                else:
                    gallery.append(moved(shot, "bounding_box_test"))
    shots += gallery
    passing = [moved(shot, "bounding_box_test") for person, shot in test if person >= streets.ids]
    n_distractors, n_junk = round(streets.distractors * len(gallery)), round(streets.junk * len(gallery))
    shots += passing[:n_distractors]
    shots += _false_alarms(world, names, max(0, n_distractors - len(passing)))
    shots += _junk(world, names, n_junk)
    return sorted(shots, key=lambda shot: (shot.recording, shot.camera, shot.frame, shot.folder, shot.name))


def _false_alarms(world: World, names: _Names, n: int) -> list[Shot]:
    """Boxes with nobody in them, of the sizes that people have: what a detector wrongly fires at."""
    found: list[Shot] = []
    for i in range(50 * n):
        if len(found) == n:
            break
        rng = np.random.default_rng((world.streets.seed, 10, i))
        c = int(rng.integers(len(world.cameras)))
        seen = world.sightings[TEST][c]
        if not seen:
            continue
        like = seen[int(rng.integers(len(seen)))]
        t = int(rng.integers(len(like.frames))) if len(like.frames) else -1
        if t < 0:
            continue
        width, height = world.cameras[c].size
        h = float(np.clip(like.boxes[t, 3], 40, 0.9 * height))
        x, y = rng.uniform(0, max(width - h / 2, 1)), rng.uniform(0.1, 1) * max(height - h, 1)
        frame = int(like.frames[t])
        box = _inside((float(x), float(y), h / 2, h), world.cameras[c].size)
        near = [s.boxes[s.frames == frame] for s in seen if s.frames.size and s.frames[0] <= frame <= s.frames[-1]]
        boxes = np.concatenate(near) if near else np.zeros((0, 4))
        left, right = np.maximum(boxes[:, 0], box[0]), np.minimum(boxes[:, 0] + boxes[:, 2], box[0] + box[2])
        top, bottom = np.maximum(boxes[:, 1], box[1]), np.minimum(boxes[:, 1] + boxes[:, 3], box[1] + box[3])
        covered = np.maximum(right - left, 0) * np.maximum(bottom - top, 0) / (box[2] * box[3])
        if covered.sum() > 0.1:
            continue
        name = names(0, c, 1, frame)
        found.append(Shot("bounding_box_test", name, TEST, c, frame, box, (world.streets.seed, 11, i)))
    return found


def _junk(world: World, names: _Names, n: int) -> list[Shot]:
    """Boxes of a person that a labeller would throw out: a part of the body, or a box of half the right size."""
    found: list[Shot] = []
    pool = [(c, s) for c, seen in enumerate(world.sightings[TEST]) for s in seen if s.one.person < world.streets.ids]
    for i in range(50 * n):
        if len(found) == n:
            break
        rng = np.random.default_rng((world.streets.seed, 12, i))
        c, sighting = pool[int(rng.integers(len(pool)))]
        good = np.flatnonzero(sighting.inside > 0.9)
        if not len(good):
            continue
        t = int(rng.choice(good))
        x, y, w, h = sighting.boxes[t]
        share = rng.uniform(0.4, 0.55)
        kind = int(rng.integers(4))
        if kind == 0:
            box = (x, y, w, h * share)
        elif kind == 1:
            box = (x, y + h * (1 - share), w, h * share)
        elif kind == 2:
            box = (x + rng.choice((-1, 1)) * 0.65 * w, y, w, h)
        else:
            box = (x - 0.5 * w, y - 0.4 * h, 2 * w, 1.8 * h)
        frame = int(sighting.frames[t])
        name = names(-1, c, sighting.one.visit, frame)
        inside = _inside((float(box[0]), float(box[1]), float(box[2]), float(box[3])), world.cameras[c].size)
        found.append(Shot("bounding_box_test", name, TEST, c, frame, inside, (world.streets.seed, 13, i)))
    return found
