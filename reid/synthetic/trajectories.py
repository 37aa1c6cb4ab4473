"""Who walks where and when: journeys from camera to camera, and the passes across each camera's view.

The world's clock runs in seconds. Frame `f` (from 1) of a camera was taken at `camera.offset + (f - 1) / fps`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.synthetic.camera_models import Camera, Occluder
from reid.synthetic.people import Person
from reid.synthetic.rendering import Placed

Floats = NDArray[np.float64]
DETOUR = 1.15
"""Walked metres per metre between two cameras."""
TRAVEL_SPREAD, TRAVEL_LOW, TRAVEL_HIGH = 0.22, 0.65, 1.8
"""σ of the log of a travel time, and the shares of the expected time it is cut to."""
SPEED_LOW, SPEED_HIGH = 0.85, 1.8
"""Slowest and fastest walk, m/s: the limits of `Person.speed`."""
BASE = 6.0
"""Metres walked out of one camera's sight and into the next one's, besides the way between the two."""


@dataclass(frozen=True)
class Pass:
    """One walk of one person across one camera's view.

    `person` and `camera` are indices, `visit` counts the person's passes before this camera from 1. The walk starts
    at `start` seconds, lasts `seconds`, and leads from (`x0`, `y0`) to (`x1`, `y1`) metres with a sideways `bend`.
    """

    person: int
    camera: int
    visit: int
    start: float
    seconds: float
    x0: float
    y0: float
    x1: float
    y1: float
    bend: float
    phase: float

    @property
    def end(self) -> float:
        """Second at which the person leaves."""
        return self.start + self.seconds

    def at(self, person: Person, times: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """x, y (metres), heading, gait phase (radians) at world times `[T]`, each `[T]`."""
        share = (times - self.start) / self.seconds
        dx, dy = self.x1 - self.x0, self.y1 - self.y0
        length = math.hypot(dx, dy)
        side = self.bend * np.sin(math.pi * share)
        x = self.x0 + dx * share - side * dy / length
        y = self.y0 + dy * share + side * dx / length
        turn = np.arctan2(self.bend * math.pi * np.cos(math.pi * share), length)
        heading = math.atan2(-dx, dy) + turn
        step = 4 * math.sin(person.stride) * 0.46 * person.height
        phase = self.phase + 2 * math.pi * person.speed * (times - self.start) / step
        return x, y, heading, phase


@dataclass(frozen=True)
class Travel:
    """How long people take between two cameras, seconds from leaving the one to entering the other.

    `least` holds for any two passes of a person in this order. `most` holds for two passes with none between them,
    and is None where nobody goes from the one to the other without passing a third.
    """

    source: int
    target: int
    least: float
    most: float | None


def neighbours(n: int) -> list[list[int]]:
    """The cameras that can be reached from each without passing another: a ring with chords, and itself."""
    found: list[list[int]] = []
    for i in range(n):
        near = {(i + 1) % n, (i - 1) % n}
        if n >= 5:
            near.add((i + 2) % n if i % 2 == 0 else (i - 2) % n)
        near.discard(i)
        found.append(sorted(near))
    return found


def _metres(cameras: Sequence[Camera], i: int, j: int) -> float:
    return BASE + DETOUR * math.dist(cameras[i].position, cameras[j].position)


def travel_table(cameras: Sequence[Camera]) -> list[Travel]:
    """The travel times of every ordered pair of cameras, a camera and itself included."""
    n = len(cameras)
    least = np.full((n, n), np.inf)
    most: dict[tuple[int, int], float] = {}
    for i, near in enumerate(neighbours(n)):
        for j in [*near, i]:
            metres = _metres(cameras, i, j)
            least[i, j] = TRAVEL_LOW * metres / SPEED_HIGH
            most[i, j] = TRAVEL_HIGH * metres / SPEED_LOW
    for k in range(n):
        least = np.minimum(least, least[:, k : k + 1] + least[k : k + 1, :])
    return [Travel(i, j, float(least[i, j]), most.get((i, j))) for i in range(n) for j in range(n)]


def _cross(
    rng: np.random.Generator, camera: Camera, person: int, speed: float, visit: int, start: float, number: int
) -> Pass:
    """A walk across the view: a line through a point of the walking ground, mostly along the street."""
    for _ in range(50):
        angle = camera.street + rng.normal(0, 0.3) + (math.pi if rng.random() < 0.5 else 0.0)
        way = np.array([math.cos(angle), math.sin(angle)])
        y = rng.uniform(camera.near * 1.05, camera.far)
        middle = np.array([rng.uniform(-0.45, 0.45) * camera.half_width(y), y])
        ends = []
        for sign in (-1, 1):
            at = middle.copy()
            while 0.75 * camera.near < at[1] < camera.far + 2.5 and abs(at[0]) < camera.half_width(at[1]) + 0.3:
                at += sign * 0.2 * way
            ends.append(at)
        length = math.dist(*ends)
        if length > 3.5:
            break
    seconds = length / speed
    if seconds > 14:
        ends[1] = ends[0] + (ends[1] - ends[0]) * 14 / seconds
        seconds = 14.0
    (x0, y0), (x1, y1) = ends
    bend, phase = rng.normal(0, 0.3), rng.uniform(0, 2 * math.pi)
    return Pass(
        person, number, visit, start, seconds, float(x0), float(y0), float(x1), float(y1), float(bend), float(phase)
    )


def walk_people(
    seed: int,
    cameras: Sequence[Camera],
    people: Sequence[Person],
    members: Sequence[int],
    passers_by: Sequence[int],
    *,
    crowd: float,
    reentry: float,
) -> list[Pass]:
    """The passes of one recording, sorted by start.

    Args:
        seed: with the person's index, the seed of a journey.
        people: everybody; `members` index those who walk from camera to camera, `passers_by` those seen once.
        crowd: people in view at once, the mean over cameras and time.
        reentry: chance at each step of coming back to the camera just left.
    """
    n = len(cameras)
    near = neighbours(n)
    journeys: list[list[Pass]] = []
    for person in [*members, *passers_by]:
        rng = np.random.default_rng((seed, 5, person))
        speed = people[person].speed
        once = person in passers_by
        wanted = 1 if once else int(rng.integers(min(3, n), n + 1))
        visits = [0] * n
        camera, clock = int(rng.integers(n)), 0.0
        journey: list[Pass] = []
        while True:
            visits[camera] += 1
            journey.append(_cross(rng, cameras[camera], person, speed, visits[camera], clock, camera))
            if sum(count > 0 for count in visits) >= wanted or len(journey) > wanted:
                break
            if rng.random() < reentry:
                following = camera
            else:
                weights = np.array([0.15 if visits[j] else 1.0 for j in near[camera]])
                following = int(rng.choice(near[camera], p=weights / weights.sum()))
            spread = math.exp(float(np.clip(rng.normal(0, TRAVEL_SPREAD), math.log(TRAVEL_LOW), math.log(TRAVEL_HIGH))))
            clock = journey[-1].end + spread * _metres(cameras, camera, following) / speed
            camera = following
        journeys.append(journey)
    busy = sum(one.seconds for journey in journeys for one in journey)
    length = max(busy / (n * crowd), 1.0)
    moved = []
    for journey in journeys:
        rng = np.random.default_rng((seed, 6, journey[0].person))
        shift = 4.5 + float(rng.uniform(0, 1)) * length
        moved += [Pass(**{**vars(one), "start": one.start + shift}) for one in journey]
    return sorted(moved, key=lambda one: (one.start, one.person))


@dataclass(frozen=True, eq=False)
class Sighting:
    """A pass frame by frame, `T` frames in which at least a part of the person is in the picture.

    Attributes:
        one: the pass.
        frames: `[T]` int, from 1.
        times: `[T]` seconds on the world's clock.
        boxes: `[T, 4]` x, y, w, h in pixels of the frame, uncut by its border.
        depths: `[T]` metres.
        inside: `[T]` share of the box that lies inside the frame.
        hidden: `[T]` share of the box, at most 1, that nearer people and occluders cover.
    """

    one: Pass
    frames: NDArray[np.int64]
    times: Floats
    boxes: Floats
    depths: Floats
    inside: Floats
    hidden: Floats

    def until(self, frame: int) -> Sighting:
        """The part up to and including a frame."""
        n = int(np.searchsorted(self.frames, frame, side="right"))
        return Sighting(
            self.one, self.frames[:n], self.times[:n], self.boxes[:n], self.depths[:n], self.inside[:n], self.hidden[:n]
        )


def person_boxes(camera: Camera, person: Person, x: Floats, y: Floats, heading: Floats) -> Floats:
    """Boxes `[T, 4]` around a walking person at ground points `[T]`."""
    view = np.arctan2(-x, y)
    sideways = np.abs(np.sin(heading - view))
    half = (0.26 + 0.10 * sideways) * person.height / 1.7 + 0.03 * (person.girth - 1)
    top = person.height * 1.0 + np.zeros_like(x)
    feet = np.stack([x, y - 0.10, np.zeros_like(x)], axis=-1)
    head = np.stack([x, y, top], axis=-1)
    low, high = camera.project(feet), camera.project(head)
    wide = camera.focal * half / low[:, 2]
    middle = 0.5 * (low[:, 0] + high[:, 0])
    return np.stack([middle - wide, high[:, 1], 2 * wide, low[:, 1] - high[:, 1]], axis=1)


def _overlap(boxes: Floats, others: Floats) -> Floats:
    """Share of each box `[T, 4]` covered by the other `[T or 1, 4]`."""
    left = np.maximum(boxes[:, 0], others[:, 0])
    top = np.maximum(boxes[:, 1], others[:, 1])
    right = np.minimum(boxes[:, 0] + boxes[:, 2], others[:, 0] + others[:, 2])
    bottom = np.minimum(boxes[:, 1] + boxes[:, 3], others[:, 1] + others[:, 3])
    area = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    share: Floats = area / (boxes[:, 2] * boxes[:, 3])
    return share


def sight(
    camera: Camera, occluders: Sequence[Occluder], people: Sequence[Person], passes: Sequence[Pass], fps: float
) -> list[Sighting]:
    """The passes before one camera, frame by frame, in the order given."""
    frame = np.array([[0.0, 0.0, *camera.size]])
    found = []
    for one in passes:
        first = max(1, math.ceil((one.start - camera.offset) * fps) + 1)
        last = math.floor((one.end - camera.offset) * fps) + 1
        frames = np.arange(first, last + 1)
        times = camera.offset + (frames - 1) / fps
        x, y, heading, _ = one.at(people[one.person], times)
        boxes = person_boxes(camera, people[one.person], x, y, heading)
        inside = _overlap(boxes, frame)
        keep = inside > 0.25
        hidden = np.zeros(len(frames))
        for thing in occluders:
            hidden += np.where(y > thing.depth, _overlap(boxes, np.array([thing.box], dtype=float)), 0)
        found.append(Sighting(one, frames[keep], times[keep], boxes[keep], y[keep], inside[keep], hidden[keep]))
    for i, a in enumerate(found):
        for b in found[:i]:
            if a.one.start > b.one.end or b.one.start > a.one.end:
                continue
            shared, in_a, in_b = np.intersect1d(a.frames, b.frames, return_indices=True)
            if len(shared):
                over = _overlap(a.boxes[in_a], b.boxes[in_b])
                a.hidden[in_a] += np.where(a.depths[in_a] > b.depths[in_b], over, 0)
                over = _overlap(b.boxes[in_b], a.boxes[in_a])
                b.hidden[in_b] += np.where(b.depths[in_b] > a.depths[in_a], over, 0)
        np.minimum(a.hidden, 1, out=a.hidden)
    return found


def placed_at(passes: Sequence[Pass], people: Sequence[Person], time: float) -> list[Placed]:
    """Everybody of `passes` (sorted by start) who is before the camera at `time`."""
    found = []
    for one in passes:
        if one.start > time:
            break
        if time <= one.end:
            x, y, heading, phase = one.at(people[one.person], np.array([time]))
            found.append(Placed(one.person, float(x[0]), float(y[0]), float(heading[0]), float(phase[0])))
    return found
