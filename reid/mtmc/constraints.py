"""What no identity may break: rules as data, compiled for tracklets; and a check that shares no code with them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reid.core.errors import ReidError
from reid.mtmc.tracklets import Tracklets

if TYPE_CHECKING:
    from reid.mtmc.cameras import Cameras

REASONS = (
    "",
    "same camera, same time",
    "cameras do not overlap",
    "shorter than the transition time",
    "no transition",
    "faster than the maximum speed",
    "cannot-link",
)
"""Why two tracklets cannot be one person; "" where nothing forbids it. `Rules.violations` gives indices into this."""

_SAME_CAMERA, _APART, _TOO_FAST, _NO_WAY, _TOO_FAR, _CANNOT = range(1, 7)

Key = tuple[str, int, int]
"""A tracklet by name: camera, local track, and a frame in it (−1: the whole local track)."""


@dataclass(frozen=True)
class Constraints:
    """What is laid down about pairs, beside what follows from cameras and clocks.

    Attributes:
        cannot_link: pairs of tracklets that are different people.
        must_link: pairs that are one person. They are joined first; if that breaks a rule, it is an error.
        tolerance: seconds by which clocks may be off: a pair in one camera, or in two that do not overlap, is stopped
            only when both are seen together for this long or longer (0: one shared moment stops it), and a travel
            time may be shorter than the least by this much.
        max_speed: metres per second between the last place on the ground of one tracklet and the first of the next;
            used where both places are known. None: no bound.
    """

    cannot_link: tuple[tuple[Key, Key], ...] = ()
    must_link: tuple[tuple[Key, Key], ...] = ()
    tolerance: float = 0.0
    max_speed: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ReidError(f"tolerance is {self.tolerance}; it must be a number of seconds, 0 or more.")
        if self.max_speed is not None and not (math.isfinite(self.max_speed) and self.max_speed > 0):
            raise ReidError(f"max_speed is {self.max_speed}; it must be metres per second above 0, or None.")


def read_constraints(path: str | Path) -> Constraints:
    """A small JSON file, as the report writes it: what a person decided.

    ```json
    {"format": 1,
     "merge": [[["cam01", 12], ["cam03", 7]]],
     "split": [[["cam01", 12], ["cam02", 5]]]}
    ```

    A tracklet is `[camera, track]`, or `[camera, track, frame]` for that part of a track which has the frame.
    `accept` means the same as `merge`, and `reject` the same as `split`: each is a list of pairs. `tolerance` and
    `max_speed` may stand there too.

    Raises:
        ReidError: missing, not JSON, an unknown key, or a pair that is not one, by number.
    """
    path = Path(path)
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReidError(f"There is no constraints file {path}.") from None
    except (OSError, ValueError) as error:
        raise ReidError(f"{path} cannot be read as JSON: {error}.") from error
    return parse_constraints(given, str(path))


def parse_constraints(given: Any, where: str = "constraints") -> Constraints:
    """`Constraints` from the plain values of the JSON file (see `read_constraints`)."""
    known = ("format", "merge", "accept", "split", "reject", "tolerance", "max_speed")
    if not isinstance(given, dict):
        raise ReidError(f"{where} must hold one object with some of: {', '.join(known)}.")
    for key in given:
        if key not in known:
            raise ReidError(f"{where}: unknown key {key!r}. Known: {', '.join(known)}.")
    if given.get("format", 1) != 1:
        raise ReidError(f"{where} is of format {given['format']!r}; this version reads format 1.")
    must = [pair for key in ("merge", "accept") for pair in _pairs(given.get(key, []), key, where)]
    cannot = [pair for key in ("split", "reject") for pair in _pairs(given.get(key, []), key, where)]
    numbers: dict[str, Any] = {key: given[key] for key in ("tolerance", "max_speed") if given.get(key) is not None}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ReidError(f"{where}: {key} is {value!r}; it must be a number.")
    return Constraints(cannot_link=tuple(cannot), must_link=tuple(must), **numbers)


def _pairs(given: Any, key: str, where: str) -> list[tuple[Key, Key]]:
    if not isinstance(given, list):
        raise ReidError(f"{where}: {key!r} must be a list of pairs.")
    pairs = []
    for number, pair in enumerate(given):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise ReidError(f"{where}: {key}[{number}] is {pair!r}; give two tracklets, [[camera, track], …].")
        pairs.append((_key(pair[0], f"{key}[{number}]", where), _key(pair[1], f"{key}[{number}]", where)))
    return pairs


def _key(given: Any, at: str, where: str) -> Key:
    good = isinstance(given, list) and len(given) in (2, 3) and isinstance(given[0], str)
    if not good or not all(isinstance(value, int) and not isinstance(value, bool) for value in given[1:]):
        raise ReidError(f"{where}: {at} names a tracklet as {given!r}; give [camera, track] or [camera, track, frame].")
    return given[0], given[1], given[2] if len(given) == 3 else -1


@dataclass(frozen=True, eq=False)
class Rules:
    """Constraints made ready for one set of tracklets: any pair is answered from arrays, none is stored.

    Two tracklets i, j (i starts first; ties: the lower row) are stopped when

    1. one camera: they share time, `min(end) − max(start) ≥ tolerance`;
    2. two cameras known not to overlap: they share time likewise;
    3. two cameras with a least travel time m of that order: `start_j − end_i < m − tolerance`. Infinite m: no way.
       Of one camera to itself this is not used: a track broken in two is one walk, not two;
    4. a speed bound v and both places known: `distance > v · (max(start_j − end_i, 0) + tolerance)`; in one camera and
       time-disjoint, likewise;
    5. it is laid down.

    A longest travel time stops nothing: a sighting between the two may be missing.
    """

    tracklets: Tracklets
    tolerance: float
    non_overlapping: NDArray[np.bool_]
    min_transition_time: NDArray[np.float64]
    max_speed: float | None
    cannot_link: NDArray[np.int64]
    must_link: NDArray[np.int64] = field(repr=False)

    def violations(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int8]:
        """Index into `REASONS` for each pair of rows; arrays of one shape. 0: nothing forbids it."""
        t = self.tracklets
        swap = (t.start[first] > t.start[second]) | ((t.start[first] == t.start[second]) & (first > second))
        i, j = np.where(swap, second, first), np.where(swap, first, second)
        a, b = t.camera[i], t.camera[j]
        gap = t.start[j] - t.end[i]
        together = np.minimum(t.end[i], t.end[j]) - t.start[j] >= self.tolerance
        same = a == b
        reason = np.zeros(i.shape, np.int8)
        if self.max_speed is not None:
            way = np.linalg.norm(t.entry[j] - t.exit[i], axis=-1)
            with np.errstate(invalid="ignore"):
                reason[way > self.max_speed * (np.maximum(gap, 0) + self.tolerance)] = _TOO_FAR
        least = self.min_transition_time[a, b]
        reason[~same & (gap < least - self.tolerance)] = _TOO_FAST
        reason[~same & np.isposinf(least)] = _NO_WAY
        reason[~same & together & self.non_overlapping[a, b]] = _APART
        reason[same & together] = _SAME_CAMERA
        if len(self.cannot_link):
            code = np.minimum(i, j) * len(t) + np.maximum(i, j)
            place = np.minimum(np.searchsorted(self.cannot_link, code), len(self.cannot_link) - 1)
            reason[self.cannot_link[place] == code] = _CANNOT
        return reason

    def allow(self, members: NDArray[np.int64], others: NDArray[np.int64]) -> bool:
        """Whether no member is stopped from being one person with any of the others."""
        if len(members) == 1 and len(others) == 1:
            return not self.violations(members, others)[0]
        first = np.repeat(members, len(others))
        return not self.violations(first, np.tile(others, len(members))).any()


def compile_rules(
    tracklets: Tracklets, cameras: Cameras | None = None, constraints: Constraints | None = None
) -> Rules:
    """The rules of these tracklets.

    Raises:
        ReidError: a constraint names a tracklet that is not there, or the same pair must and cannot be one person.
    """
    constraints = constraints or Constraints()
    names = tracklets.camera_names
    apart = np.zeros((len(names), len(names)), bool)
    least = np.full((len(names), len(names)), -np.inf)
    if cameras is not None:
        for a, first in enumerate(names):
            for b, second in enumerate(names):
                if first in cameras.cameras and second in cameras.cameras:
                    apart[a, b] = cameras.non_overlapping(first, second)
                    least[a, b] = cameras.min_transition_time(first, second)
    cannot = _rows_of(tracklets, constraints.cannot_link)
    must = _rows_of(tracklets, constraints.must_link)
    t = len(tracklets)
    codes = np.unique(cannot.min(axis=1) * t + cannot.max(axis=1)) if len(cannot) else np.zeros(0, np.int64)
    if len(cannot) and (cannot[:, 0] == cannot[:, 1]).any():
        row = int(cannot[cannot[:, 0] == cannot[:, 1]][0, 0])
        raise ReidError(f"{_named(tracklets, row)} cannot be split from itself.")
    return Rules(tracklets, constraints.tolerance, apart, least, constraints.max_speed, codes, must)


def _rows_of(tracklets: Tracklets, pairs: tuple[tuple[Key, Key], ...]) -> NDArray[np.int64]:
    """All pairs of rows `[n, 2]` that pairs of keys name. A key of a whole track names all its parts."""
    where: dict[tuple[str, int], list[int]] = {}
    for row, (camera, track) in enumerate(zip(tracklets.camera, tracklets.track, strict=True)):
        where.setdefault((tracklets.camera_names[camera], int(track)), []).append(row)
    found = []
    for pair in pairs:
        sides = []
        for camera, track, frame in pair:
            rows = where.get((camera, track), [])
            if frame >= 0:
                rows = [r for r in rows if tracklets.first_frame[r] <= frame <= tracklets.last_frame[r]]
            if not rows:
                at = f" with frame {frame}" if frame >= 0 else ""
                raise ReidError(f"A constraint names camera {camera!r}, track {track}{at}, which is not there.")
            sides.append(rows)
        found += [(a, b) for a in sides[0] for b in sides[1]]
    return np.array(found, np.int64).reshape(-1, 2)


def _named(tracklets: Tracklets, row: int) -> str:
    return f"camera {tracklets.camera_names[tracklets.camera[row]]}, track {tracklets.track[row]}"


def find_violations(
    tracklets: Tracklets,
    identity: NDArray[np.int64],
    cameras: Cameras | None = None,
    constraints: Constraints | None = None,
) -> list[str]:
    """Every breach of a rule by these identities, in words; empty when there is none.

    Written apart from `Rules`, pair by pair in plain Python, so that a mistake there cannot hide here.

    Args:
        tracklets: T of them.
        identity: `[T]`, equal numbers mean one person; 0 or below: nobody.
        cameras, constraints: as given to the match.
    """
    constraints = constraints or Constraints()
    tolerance = constraints.tolerance
    found: list[str] = []
    people: dict[int, list[int]] = {}
    for row, number in enumerate(identity):
        if number > 0:
            people.setdefault(int(number), []).append(row)
    names = tracklets.camera_names
    where = {
        row: (names[int(camera)], float(start), float(end))
        for row, (camera, start, end) in enumerate(zip(tracklets.camera, tracklets.start, tracklets.end, strict=True))
    }
    for number, members in sorted(people.items()):
        in_time = sorted(members, key=lambda row: (where[row][1], row))
        for place, earlier in enumerate(in_time):
            camera, start, end = where[earlier]
            for later in in_time[place + 1 :]:
                other, other_start, other_end = where[later]
                pair = f"identity {number}: {_named(tracklets, earlier)} and {_named(tracklets, later)}"
                shared = min(end, other_end) - max(start, other_start)
                gap = other_start - end
                if camera == other and shared >= tolerance:
                    found.append(f"{pair} are in one camera at once (for {shared:.2f} s)")
                elif camera != other and cameras is not None and {camera, other} <= set(cameras.cameras):
                    if cameras.non_overlapping(camera, other) and shared >= tolerance:
                        found.append(f"{pair} are at once in cameras that do not overlap (for {shared:.2f} s)")
                    least = cameras.min_transition_time(camera, other)
                    if math.isinf(least) and least > 0:
                        found.append(f"{pair}: nobody goes from {camera} to {other}")
                    elif gap < least - tolerance:
                        found.append(f"{pair} are {gap:.2f} s apart; the way takes {least:.2f} s or more")
                if constraints.max_speed is not None:
                    (x, y), (u, v) = tracklets.exit[earlier], tracklets.entry[later]
                    way = math.hypot(u - x, v - y)
                    if way > constraints.max_speed * (max(gap, 0.0) + tolerance):
                        found.append(f"{pair} are {way:.1f} m and {gap:.2f} s apart: too fast to walk")
    for kind, pairs in (("cannot", constraints.cannot_link), ("must", constraints.must_link)):
        for first, second in pairs:
            sides = []
            for camera, track, frame in (first, second):
                rows = [
                    row
                    for row in where
                    if where[row][0] == camera
                    and int(tracklets.track[row]) == track
                    and (frame < 0 or int(tracklets.first_frame[row]) <= frame <= int(tracklets.last_frame[row]))
                ]
                sides.append({int(identity[row]) for row in rows})
            one = bool(sides[0] & sides[1] - {0})
            if kind == "cannot" and one:
                found.append(f"{first[:2]} and {second[:2]} are one identity, though split by a constraint")
            if kind == "must" and (sides[0] != sides[1] or len(sides[0]) != 1):
                found.append(f"{first[:2]} and {second[:2]} are not one identity, though joined by a constraint")
    return found
