"""Trajectories: walks from camera to camera, and what each camera sees of them.

Times are seconds on a common clock. Frame `f` (from 1) of a camera is taken at `camera.offset + (f - 1) / fps`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reid.synthetic.camera_models import Camera, Occluder
from reid.synthetic.people import Person
from reid.synthetic.rendering import Placed
from reid.synthetic.settings import SyntheticSettings

if TYPE_CHECKING:
    from reid.synthetic.floor import FloorPass

Floats = NDArray[np.float64]
DETOUR = 1.15
"""Walked metres per metre of distance between two cameras."""
BASE = 6.0
"""Metres walked in addition, out of one camera's view and into the next."""
TRAVEL_SPREAD, TRAVEL_LOW, TRAVEL_HIGH = 0.22, 0.65, 1.8
"""σ of the logarithm of a travel time; least and largest ratio to the expected time."""
SPEED_LOW, SPEED_HIGH = 0.85, 1.8
"""Slowest and fastest walk, m/s: the limits of `Person.speed`."""


@dataclass(frozen=True)
class Pass:
    """One walk of one person through one camera's view.

    `person` and `camera` are indices; `visit` counts the person's passes of this camera from 1. The walk begins at
    `start`, lasts `seconds`, and leads from point `origin` to point `target` (metres) with a sideways `bend`.
    """

    person: int
    camera: int
    visit: int
    start: float
    seconds: float
    origin: tuple[float, float]
    target: tuple[float, float]
    bend: float
    phase: float

    @property
    def end(self) -> float:
        """Return the time at which the person leaves the view."""
        return self.start + self.seconds

    def at(self, person: Person, times: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return x, y (metres), heading and gait phase (radians) at times `[T]`, each `[T]`."""
        progress = (times - self.start) / self.seconds
        (x0, y0), (x1, y1) = self.origin, self.target
        dx, dy = x1 - x0, y1 - y0
        length = math.hypot(dx, dy)
        side = self.bend * np.sin(math.pi * progress)
        x = x0 + dx * progress - side * dy / length
        y = y0 + dy * progress + side * dx / length
        turn = np.arctan2(self.bend * math.pi * np.cos(math.pi * progress), length)
        heading = math.atan2(-dx, dy) + turn
        phase = self.phase + 2 * math.pi * person.speed * (times - self.start) / step_length(person)
        return x, y, heading, phase


def step_length(person: Person) -> float:
    """Return the metres that a person walks in one gait cycle of 2π."""
    return 4 * math.sin(person.stride) * 0.46 * person.height


@dataclass(frozen=True)
class Travel:
    """Travel time between two cameras, seconds from leaving one view to entering the other.

    `least` applies to any two passes of a person in this order. `most` applies to two passes with none between them;
    it is None where every route passes a third camera.
    """

    source: int
    target: int
    least: float
    most: float | None


def neighbours(n: int) -> list[list[int]]:
    """Return the cameras that can be reached from each without passing another: a ring with chords."""
    steps = [(1, -1, 0 if n < 5 else 2 if i % 2 == 0 else -2) for i in range(n)]
    return [sorted({(i + step) % n for step in steps[i]} - {i}) for i in range(n)]


def _metres(cameras: Sequence[Camera], i: int, j: int) -> float:
    return BASE + DETOUR * math.dist(cameras[i].position, cameras[j].position)


def travel_table(cameras: Sequence[Camera]) -> list[Travel]:
    """Return the travel times of every ordered pair of cameras, including a camera and itself."""
    n = len(cameras)
    least = np.full((n, n), np.inf)
    most: dict[tuple[int, int], float] = {}
    for i, adjacent in enumerate(neighbours(n)):
        for j in [*adjacent, i]:
            metres = _metres(cameras, i, j)
            least[i, j] = TRAVEL_LOW * metres / SPEED_HIGH
            most[i, j] = TRAVEL_HIGH * metres / SPEED_LOW
    for k in range(n):
        least = np.minimum(least, least[:, k : k + 1] + least[k : k + 1, :])
    return [Travel(i, j, float(least[i, j]), most.get((i, j))) for i in range(n) for j in range(n)]


def _cross(rng: np.random.Generator, camera: Camera, person: int, speed: float, visit: int, start: float) -> Pass:
    """Draw a walk through the view: a line through a random point, roughly in the main walking direction."""
    for _ in range(50):
        angle = camera.walking_direction + rng.normal(0, 0.3) + (math.pi if rng.random() < 0.5 else 0.0)
        direction = np.array([math.cos(angle), math.sin(angle)])
        y = rng.uniform(camera.near * 1.05, camera.far)
        middle = np.array([rng.uniform(-0.45, 0.45) * camera.half_width(y), y])
        ends = []
        for sign in (-1, 1):
            at = middle.copy()
            while 0.75 * camera.near < at[1] < camera.far + 2.5 and abs(at[0]) < camera.half_width(at[1]) + 0.3:
                at += sign * 0.2 * direction
            ends.append(at)
        length = math.dist(*ends)
        if length > 3.5:
            break
    seconds = length / speed
    if seconds > 14:
        ends[1] = ends[0] + (ends[1] - ends[0]) * 14 / seconds
        seconds = 14.0
    origin, target = ((float(x), float(y)) for x, y in ends)
    bend, phase = float(rng.normal(0, 0.3)), float(rng.uniform(0, 2 * math.pi))
    return Pass(person, camera.number - 1, visit, start, float(seconds), origin, target, bend, phase)


def walk_people(
    settings: SyntheticSettings,
    cameras: Sequence[Camera],
    people: Sequence[Person],
    walkers: Sequence[int],
    passers_by: Sequence[int],
) -> list[Pass]:
    """Draw the passes of one recording, sorted by start.

    Args:
        settings: uses seed, `difficulty.crowd` and `difficulty.reentry`.
        cameras: all cameras.
        people: all people.
        walkers: indices of the people who walk from camera to camera.
        passers_by: indices of the people whom only one camera sees.
    """
    n, hard = len(cameras), settings.difficulty
    adjacent = neighbours(n)
    journeys: list[list[Pass]] = []
    for person in [*walkers, *passers_by]:
        rng = np.random.default_rng((settings.seed, 5, person))
        speed = people[person].speed
        wanted = 1 if person in passers_by else int(rng.integers(min(3, n), n + 1))
        visits = [0] * n
        camera, clock = int(rng.integers(n)), 0.0
        journey: list[Pass] = []
        while True:
            visits[camera] += 1
            journey.append(_cross(rng, cameras[camera], person, speed, visits[camera], clock))
            if sum(count > 0 for count in visits) >= wanted or len(journey) > wanted:
                break
            if rng.random() < hard.reentry:
                following = camera
            else:
                weights = np.array([0.15 if visits[j] else 1.0 for j in adjacent[camera]])
                following = int(rng.choice(adjacent[camera], p=weights / weights.sum()))
            spread = math.exp(float(np.clip(rng.normal(0, TRAVEL_SPREAD), math.log(TRAVEL_LOW), math.log(TRAVEL_HIGH))))
            clock = journey[-1].end + spread * _metres(cameras, camera, following) / speed
            camera = following
        journeys.append(journey)
    total = sum(one.seconds for journey in journeys for one in journey)
    length = max(total / (n * hard.crowd), 1.0)
    moved = []
    for journey in journeys:
        rng = np.random.default_rng((settings.seed, 6, journey[0].person))
        shift = 4.5 + float(rng.uniform(0, 1)) * length
        moved += [replace(one, start=one.start + shift) for one in journey]
    return sorted(moved, key=lambda one: (one.start, one.person))


@dataclass(frozen=True, eq=False)
class Sighting:
    """A pass frame by frame: the `T` frames in which at least a part of the person is visible.

    Attributes:
        walk: the pass.
        frames: `[T]` int, from 1.
        times: `[T]` seconds on the common clock.
        boxes: `[T, 4]` x, y, w, h in pixels, not clipped at the border of the frame.
        depths: `[T]` metres.
        inside: `[T]` fraction of the box that is inside the frame.
        hidden: `[T]` fraction of the box, at most 1, that closer people and occluders cover.
    """

    walk: Pass | FloorPass
    frames: NDArray[np.int64]
    times: Floats
    boxes: Floats
    depths: Floats
    inside: Floats
    hidden: Floats

    def until(self, frame: int) -> Sighting:
        """Return the part up to and including a frame."""
        n = int(np.searchsorted(self.frames, frame, side="right"))
        names = ("frames", "times", "boxes", "depths", "inside", "hidden")
        return replace(self, **{name: getattr(self, name)[:n] for name in names})


def person_boxes(camera: Camera, person: Person, x: Floats, y: Floats, heading: Floats) -> Floats:
    """Return the boxes `[T, 4]` around a walking person at ground points `[T]`."""
    view = np.arctan2(-x, y)
    sideways = np.abs(np.sin(heading - view))
    half = (0.26 + 0.10 * sideways) * person.height / 1.7 + 0.03 * (person.girth - 1)
    feet = np.stack([x, y - 0.10, np.zeros_like(x)], axis=-1)
    head = np.stack([x, y, np.full_like(x, person.height)], axis=-1)
    low, high = camera.project(feet), camera.project(head)
    wide = camera.focal * half / low[:, 2]
    middle = 0.5 * (low[:, 0] + high[:, 0])
    return np.stack([middle - wide, high[:, 1], 2 * wide, low[:, 1] - high[:, 1]], axis=1)


def overlap(boxes: Floats, others: Floats) -> Floats:
    """Return the fraction of each box `[T, 4]` that the other box `[T or 1, 4]` covers."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    return np.maximum(high - low, 0).prod(axis=1) / boxes[:, 2:].prod(axis=1)


def observe_passes(
    camera: Camera,
    occluders: Sequence[Occluder],
    people: Sequence[Person],
    passes: Sequence[Pass | FloorPass],
    fps: float,
) -> list[Sighting]:
    """Return the passes of one camera frame by frame, in the given order."""
    frame = np.array([[0.0, 0.0, *camera.size]])
    found = []
    for one in passes:
        first = max(1, math.ceil((one.start - camera.offset) * fps) + 1)
        last = math.floor((one.end - camera.offset) * fps) + 1
        frames = np.arange(first, last + 1)
        times = camera.offset + (frames - 1) / fps
        x, y, heading, _ = one.at(people[one.person], times)
        boxes = person_boxes(camera, people[one.person], x, y, heading)
        inside = overlap(boxes, frame)
        keep = inside > 0.25
        hidden = np.zeros(len(frames))
        for thing in occluders:
            hidden += np.where(y > thing.depth, overlap(boxes, np.array([thing.box], dtype=float)), 0)
        found.append(Sighting(one, frames[keep], times[keep], boxes[keep], y[keep], inside[keep], hidden[keep]))
    for i, a in enumerate(found):
        for b in found[:i]:
            if a.walk.start > b.walk.end or b.walk.start > a.walk.end:
                continue
            shared, in_a, in_b = np.intersect1d(a.frames, b.frames, return_indices=True)
            if len(shared):
                behind, before = a.depths[in_a] > b.depths[in_b], b.depths[in_b] > a.depths[in_a]
                a.hidden[in_a] += np.where(behind, overlap(a.boxes[in_a], b.boxes[in_b]), 0)
                b.hidden[in_b] += np.where(before, overlap(b.boxes[in_b], a.boxes[in_a]), 0)
        np.minimum(a.hidden, 1, out=a.hidden)
    return found


def placed_at(seen: Sequence[Sighting], people: Sequence[Person], time: float) -> list[Placed]:
    """Return the people of one camera's sightings (sorted by start) who are in view at `time`."""
    found = []
    for one in (sighting.walk for sighting in seen):
        if one.start > time:
            break
        if time <= one.end:
            x, y, heading, phase = one.at(people[one.person], np.array([time]))
            found.append(Placed(one.person, float(x[0]), float(y[0]), float(heading[0]), float(phase[0])))
    return found
