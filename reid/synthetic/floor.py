"""Walks on one floor that several cameras see: overlapping views, meetings, crossings and one-way corridors.

The floor's coordinates are metres: x along the row of cameras, y across it. Camera coordinates are those of
`camera_models`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from reid.synthetic.camera_models import Camera, aim
from reid.synthetic.people import Person
from reid.synthetic.settings import SyntheticSettings
from reid.synthetic.trajectories import overlap, person_boxes, step_length

Floats = NDArray[np.float64]

VIEW = 8.0
"""Width in metres of the ground that a camera sees in the middle of its view; the unit of the overlap."""
GAP = 5.0
"""Metres between the views of cameras that do not overlap."""
DISTANCE = 10.0
"""Metres from a camera to the middle line of the floor."""
HALF_DEPTH = {"floor": 4.0, "corridor": 1.5}
"""Half the extent of the floor across the row of cameras, metres."""
STEP = 0.2
"""Seconds between the points of a walk."""


@dataclass(frozen=True, eq=False)
class Walk:
    """One walk of one person over the floor, from a door to a door.

    Attributes:
        times: `[K]` seconds, every `STEP`.
        points: `[K, 2]` metres on the floor.
        pauses: place and first and last second of each stop.
    """

    person: int
    times: Floats
    points: Floats
    pauses: list[tuple[Floats, float, float]]


@dataclass(frozen=True, eq=False)
class FloorPass:
    """The part of a walk during which one camera sees the person; has the attributes of `trajectories.Pass`.

    Attributes:
        walk: the whole walk.
        view: the camera that sees it.
    """

    person: int
    visit: int
    start: float
    end: float
    walk: Walk
    view: Camera

    @property
    def camera(self) -> int:
        """Return the index of the camera."""
        return self.view.number - 1

    def at(self, person: Person, times: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return x, y (metres), heading and gait phase (radians) in the camera's coordinates at times `[T]`."""
        walk = self.walk
        local = self.view.to_local(np.stack([np.interp(times, walk.times, c) for c in walk.points.T], axis=1))
        steps = np.diff(walk.points, axis=0, append=walk.points[-1:])
        moving = np.hypot(*steps.T) > 0.02
        last_moving = np.maximum.accumulate(np.where(moving, np.arange(len(steps)), int(np.argmax(moving))))
        heading = np.arctan2(steps[:, 1], steps[:, 0])[last_moving] - self.view.azimuth
        metres = np.concatenate([[0.0], np.cumsum(np.hypot(*steps[:-1].T))])
        phase = 2 * math.pi * np.interp(times, walk.times, metres) / step_length(person)
        nearest = np.clip(np.searchsorted(walk.times, times), 0, len(steps) - 1)
        return local[:, 0], local[:, 1], heading[nearest], phase + self.person


def place_cameras(cameras: Sequence[Camera], settings: SyntheticSettings) -> list[Camera]:
    """Return the cameras along the floor, on alternating sides, with the overlap and the distortion of the settings."""
    n, floor = len(cameras), settings.floor
    spacing = (1 - floor.overlap) * VIEW + (GAP if floor.overlap == 0 else 0.0)
    rng = np.random.default_rng((settings.seed, 17))
    placed = []
    for i, camera in enumerate(cameras):
        azimuth = math.pi * (0.5 + i % 2) + float(rng.uniform(-0.3, 0.3))
        target = np.array([(i - (n - 1) / 2) * spacing, 0.0])
        x, y = target - DISTANCE * np.array([math.cos(azimuth), math.sin(azimuth)])
        view = replace(camera, position=(float(x), float(y)), azimuth=azimuth, distortion=floor.distortion)
        placed.append(aim(view, DISTANCE - 4, DISTANCE + 4, math.radians(42)))
    return placed


def floor_limits(cameras: Sequence[Camera], settings: SyntheticSettings) -> Floats:
    """Return the least and largest x and y of the floor, `[2, 2]` metres."""
    reach = 0.5 * (1 - settings.floor.overlap) * VIEW * (len(cameras) - 1) + VIEW
    reach += 0.5 * GAP * (len(cameras) - 1) if settings.floor.overlap == 0 else 0.0
    depth = HALF_DEPTH[settings.site]
    return np.array([[-reach, -depth], [reach, depth]])


def overlapping_pairs(cameras: Sequence[Camera], limits: Floats) -> list[tuple[str, str]]:
    """Return the names of the pairs of cameras that see a common point of the floor."""
    axes = [np.arange(low, high, 0.25) for low, high in limits.T]
    ground = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    seen = []
    for camera in cameras:
        local = camera.to_local(ground)
        pixels = camera.project(np.concatenate([local, np.zeros((len(local), 1))], axis=1))[:, :2]
        seen.append((local[:, 1] > 1) & (pixels > 0).all(axis=1) & (pixels < camera.size).all(axis=1))
    pairs = combinations(range(len(cameras)), 2)
    return [(cameras[a].name, cameras[b].name) for a, b in pairs if (seen[a] & seen[b]).any()]


def _route(rng: np.random.Generator, limits: Floats, one_way: bool) -> tuple[Floats, Floats]:
    """Draw the corners `[W, 2]` of a walk and the seconds `[W]` that the person stops at each."""
    (left, low), (right, high) = limits
    across = rng.uniform(low, high, 2)
    if one_way:
        middle = np.array([[rng.uniform(0.4, 0.6) * (left + right), rng.uniform(low, high)]])
        return np.concatenate([[[left, across[0]]], middle, [[right, across[1]]]]), np.zeros(3)
    along = rng.uniform(0.8 * left, 0.8 * right, 2)
    doors = np.array([[left, across[0]], [right, across[1]], [along[0], low], [along[1], high]])
    corners = rng.uniform(0.9 * limits[0], 0.9 * limits[1], (int(rng.integers(1, 4)), 2))
    route = np.concatenate([doors[rng.permutation(4)[:1]], corners, doors[rng.permutation(4)[:1]]])
    stops = np.where(rng.random(len(route)) < 0.35, rng.uniform(2, 8, len(route)), 0.0)
    stops[[0, -1]] = 0.0
    return route, stops


def _schedule(route: Floats, stops: Floats, speed: float) -> tuple[Floats, Floats]:
    """Return the seconds after the start at which each corner is reached and left, `[W]` each."""
    legs = np.hypot(*np.diff(route, axis=0).T) / speed
    arrive = np.concatenate([[0.0], np.cumsum(legs + stops[:-1])])
    return arrive, arrive + stops


def _walk(person: int, start: float, route: Floats, stops: Floats, speed: float) -> Walk:
    """Return the walk along a route, its corners rounded by a moving average over one second."""
    arrive, leave = _schedule(route, stops, speed)
    times = np.arange(0, leave[-1] + STEP, STEP)
    corners, moments = np.repeat(route, 2, axis=0), np.stack([arrive, leave], axis=1).reshape(-1)
    points = np.stack([np.interp(times, moments, column) for column in corners.T], axis=1)
    padded = np.pad(points, ((2, 2), (0, 0)), mode="edge")
    points = np.mean([padded[k : k + len(points)] for k in range(5)], axis=0)
    pauses = [(route[k], start + arrive[k], start + leave[k]) for k in np.flatnonzero(stops)]
    return Walk(person, start + times, points, pauses)


def walk_floor(
    settings: SyntheticSettings, cameras: Sequence[Camera], people: Sequence[Person], walkers: Sequence[int]
) -> list[FloorPass]:
    """Draw the walks of one recording and return what each camera sees of them, sorted by start.

    Every person walks over the floor one to three times. The recording is as long as makes `difficulty.crowd` people
    be on the floor on average. A fraction `floor.meetings` of the walks leads to where another person stops, at that
    time.
    """
    limits = floor_limits(cameras, settings)
    plans = []
    for person in walkers:
        rng = np.random.default_rng((settings.seed, 18, person))
        one_way, speed = settings.site == "corridor", people[person].speed
        plans += [(person, *_route(rng, limits, one_way), speed) for _ in range(int(rng.integers(1, 4)))]
    total = sum(float(_schedule(*plan[1:])[1][-1]) for plan in plans)
    length = total / settings.difficulty.crowd
    walks: list[Walk] = []
    for number, (person, route, stops, speed) in enumerate(plans):
        rng = np.random.default_rng((settings.seed, 19, number, walkers[0]))
        back = max((walk.times[-1] + 4 for walk in walks if walk.person == person), default=0.0)
        start = max(4.5 + float(rng.uniform(0, 1)) * length, back + float(rng.uniform(0, 20)))
        pauses = [pause for walk in walks if walk.person != person for pause in walk.pauses]
        if pauses and len(route) > 2 and rng.random() < settings.floor.meetings:
            place, begin, end = pauses[int(rng.integers(len(pauses)))]
            angle = rng.uniform(0, 2 * math.pi)
            met, met_stops = route.copy(), stops.copy()
            met[1], met_stops[1] = place + 0.7 * np.array([math.cos(angle), math.sin(angle)]), end - begin
            at = begin - float(_schedule(met, met_stops, speed)[0][1])
            if at >= max(back, 4.5):
                start, route, stops = at, met, met_stops
        walks.append(_walk(person, start, route, stops, speed))
    passes = [one for camera in cameras for one in _views(camera, people, walks)]
    return sorted(passes, key=lambda one: (one.start, one.person, one.camera))


def _views(camera: Camera, people: Sequence[Person], walks: Sequence[Walk]) -> list[FloorPass]:
    """Return the passes of one camera: each time a person comes into view, for at least 0.8 s."""
    frame = np.array([[0.0, 0.0, *camera.size]])
    passes: list[FloorPass] = []
    visits: dict[int, int] = {}
    for walk in sorted(walks, key=lambda one: float(one.times[0])):
        local = camera.to_local(walk.points)
        boxes = person_boxes(camera, people[walk.person], local[:, 0], local[:, 1], np.zeros(len(local)))
        visible = (local[:, 1] > 2) & (overlap(boxes, frame) > 0.3)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], visible, [0]])))
        for first, last in edges.reshape(-1, 2):
            if last - first >= 0.8 / STEP:
                visits[walk.person] = visits.get(walk.person, 0) + 1
                start, end = float(walk.times[first]), float(walk.times[last - 1])
                passes.append(FloorPass(walk.person, visits[walk.person], start, end, walk, camera))
    return passes
