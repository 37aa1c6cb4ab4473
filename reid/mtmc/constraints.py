"""Rules that no identity may break: constraints, their compiled form, and an independent check of results."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, StrictInt, StrictStr

from reid.config import Settings
from reid.core.errors import ConfigError, check_number
from reid.core.reading import read_json
from reid.data.tracks import Floats, Integers
from reid.mtmc.cameras import Cameras
from reid.mtmc.pooling import Mask
from reid.mtmc.tracklets import Tracklets

REASONS = (
    "",
    "same camera, same time",
    "cameras do not overlap",
    "shorter than the transition time",
    "no transition",
    "faster than the maximum speed",
    "cannot-link",
    "too fast on the ground",
)
"""Rules that can forbid a pair; `Rules.violations` returns indices into this. "" where no rule forbids it."""

_SAME_CAMERA, _NON_OVERLAPPING, _TOO_EARLY, _NO_TRANSITION, _TOO_FAST, _CANNOT_LINK, _FAST_ON_GROUND = range(1, 8)

Key = tuple[str, int, int]
"""Key of a tracklet: camera, local track, and a frame in it (−1: the whole local track)."""


@dataclass(frozen=True)
class Constraints:
    """Constraints on pairs of tracklets, in addition to those that follow from cameras and clocks.

    Attributes:
        cannot_link: Pairs of tracklets that are different people. Repetitions are removed, as in must_link.
        must_link: Pairs that are one person. They are joined first; a must-link that breaks a rule is an error.
        tolerance: Seconds by which clocks may be wrong. A pair in one camera, or in two non-overlapping cameras, is
            forbidden only if both are seen simultaneously for at least this long (0: one shared moment), and a
            transition may be this much shorter than its minimum time. Where boxes of one identity then share a frame,
            `results.global_tracks` keeps one.
        max_speed: Metres per second between the last ground position of one tracklet and the first of the next, where
            both are known. None: no limit.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> constraints = Constraints(must_link=((("cam01", 12, -1), ("cam03", 7, -1)),), tolerance=0.5)
    """

    cannot_link: tuple[tuple[Key, Key], ...] = ()
    must_link: tuple[tuple[Key, Key], ...] = ()
    tolerance: float = 0.0
    max_speed: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cannot_link", tuple(dict.fromkeys(self.cannot_link)))
        object.__setattr__(self, "must_link", tuple(dict.fromkeys(self.must_link)))
        check_number("tolerance (seconds)", self.tolerance)
        check_number("max_speed (metres per second, or None)", self.max_speed, above=True)


def _with_frame(key: Any) -> Any:
    """Add the frame of a whole track; the match report writes ids from 2^53 on as text."""
    if (
        isinstance(key, list)
        and len(key) in (2, 3)
        and isinstance(key[1], str)
        and re.fullmatch("[0-9]{16,19}", key[1])
    ):
        key = [key[0], int(key[1]), *key[2:]]
    return [*key, -1] if isinstance(key, list) and len(key) == 2 else key


_FileKey = Annotated[tuple[StrictStr, StrictInt, StrictInt], BeforeValidator(_with_frame)]
_FilePairs = Annotated[list[tuple[_FileKey, _FileKey]], Field(default_factory=list)]


class _File(Settings):
    """Content of a constraints file."""

    format: Literal[1] = 1
    merge: _FilePairs
    accept: _FilePairs
    split: _FilePairs
    reject: _FilePairs
    tolerance: float = Field(default=0.0, ge=0, strict=True)
    max_speed: float | None = Field(default=None, gt=0, strict=True)


def read_constraints(path: str | Path) -> Constraints:
    """Read a JSON file of constraints, as the match report writes it, for example::

        {"format": 1,
         "merge": [[["cam01", 12], ["cam03", 7]]],
         "split": [[["cam01", 12], ["cam02", 5]]]}

    A tracklet is `[camera, track]`, or `[camera, track, frame]` for the part of a split track that contains the frame.
    The match report writes tracks from 2^53 on as text, `["cam01", "9007199254740993"]`, which browsers read exactly.
    `accept` means the same as `merge`, and `reject` the same as `split`: each is a list of pairs. `tolerance` and
    `max_speed` are optional keys.

    Raises:
        ConfigError: The file is missing or not JSON, a key is unknown, or a value is invalid.
    """
    return parse_constraints(read_json(path, "Save it again from the match report.", ConfigError), str(path))


def parse_constraints(given: Any, source: str = "constraints") -> Constraints:
    """Return the constraints of a JSON file's content (see `read_constraints`); `source` names it in errors."""
    if not isinstance(given, dict):
        raise ConfigError(f"{source} must contain one object with some of the keys {', '.join(_File.model_fields)}.")
    content = _File.from_dict({key: value for key, value in given.items() if value is not None}, source)
    must_link, cannot_link = (*content.merge, *content.accept), (*content.split, *content.reject)
    return Constraints(cannot_link, must_link, content.tolerance, content.max_speed)


@dataclass(frozen=True, eq=False)
class Rules:
    """Constraints compiled for a set of tracklets. Pairs are checked on demand; no T × T matrix is stored.

    Two tracklets i, j (i starts first; ties: the lower row) are forbidden to be one person if

    1. they are in one camera and overlap in time: `min(end) − max(start) ≥ tolerance`;
    2. they are in two non-overlapping cameras and overlap in time in the same way;
    3. the transition between their two cameras has a minimum time m and `start_j − end_i < m − tolerance`. Infinite m:
       no transition. Not used for a camera and itself, because an interrupted track is one sighting;
    4. there is a maximum speed v, both ground positions are known, and
       `distance > v · (max(start_j − end_i, 0) + tolerance)`;
    5. there is a cannot-link;
    6. one person would have had to move too fast on the ground (`too_fast`, see `ground.measure_distances`). This is
       measured, so it is no rule for must-linked tracklets.

    A maximum transition time forbids nothing, because a sighting between the two may be missing.
    """

    tracklets: Tracklets
    tolerance: float
    non_overlapping: Mask
    min_transition_time: Floats
    max_speed: float | None
    cannot_link: Integers
    must_link: Integers = field(repr=False)
    too_fast: Integers = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)

    def violations(self, first: Integers, second: Integers) -> NDArray[np.int8]:
        """Index into `REASONS` for each pair of rows (arrays of one shape); 0 where no rule forbids it."""
        t = self.tracklets
        i, j = t.in_time_order(first, second)
        a, b = t.camera[i], t.camera[j]
        gap = t.start[j] - t.end[i]
        together = np.minimum(t.end[i], t.end[j]) - t.start[j] >= self.tolerance
        same = a == b
        reason = np.zeros(i.shape, np.int8)
        if self.max_speed is not None:
            distance = np.linalg.norm(t.entry[j] - t.exit[i], axis=-1)
            with np.errstate(invalid="ignore"):
                reason[distance > self.max_speed * (np.maximum(gap, 0) + self.tolerance)] = _TOO_FAST
        min_time = self.min_transition_time[a, b]
        reason[~same & (gap < min_time - self.tolerance)] = _TOO_EARLY
        reason[~same & np.isposinf(min_time)] = _NO_TRANSITION
        reason[~same & together & self.non_overlapping[a, b]] = _NON_OVERLAPPING
        reason[same & together] = _SAME_CAMERA
        code = np.minimum(i, j) * len(t) + np.maximum(i, j)
        for codes, number in ((self.too_fast, _FAST_ON_GROUND), (self.cannot_link, _CANNOT_LINK)):
            if len(codes):
                reason[codes[np.minimum(np.searchsorted(codes, code), len(codes) - 1)] == code] = number
        return reason

    def without_answers(self) -> Rules:
        """Return the rules without must-links and cannot-links."""
        return replace(self, cannot_link=np.zeros(0, np.int64), must_link=np.zeros((0, 2), np.int64))

    def allow(self, members: Integers, others: Integers) -> bool:
        """Whether no rule forbids any member to be one person with any of the others."""
        if len(members) == 1 and len(others) == 1:
            return not self.violations(members, others)[0]
        return not self.violations(np.repeat(members, len(others)), np.tile(others, len(members))).any()


def compile_rules(
    tracklets: Tracklets, cameras: Cameras | None = None, constraints: Constraints | None = None
) -> Rules:
    """Compile the rules for these tracklets.

    Raises:
        ConfigError: A constraint names a tracklet that does not exist, or separates a tracklet from itself.
    """
    constraints = constraints or Constraints()
    names = tracklets.camera_names
    non_overlapping = np.zeros((len(names), len(names)), bool)
    min_time = np.full((len(names), len(names)), -np.inf)
    for a, first in enumerate(names if cameras is not None else ()):
        for b, second in enumerate(names):
            if cameras is not None and first in cameras.cameras and second in cameras.cameras:
                non_overlapping[a, b] = cameras.non_overlapping(first, second)
                min_time[a, b] = cameras.min_transition_time(first, second)
    cannot = _pairs_of_rows(tracklets, constraints.cannot_link)
    must = _pairs_of_rows(tracklets, constraints.must_link)
    itself = cannot[cannot[:, 0] == cannot[:, 1]]
    if len(itself):
        raise ConfigError(
            f"{tracklets.describe(int(itself[0, 0]))} cannot be split from itself. Remove the constraint."
        )
    codes = np.unique(cannot.min(axis=1, initial=len(tracklets)) * len(tracklets) + cannot.max(axis=1, initial=0))
    return Rules(tracklets, constraints.tolerance, non_overlapping, min_time, constraints.max_speed, codes, must)


def row_finder(tracklets: Tracklets) -> Callable[[Key], list[int]]:
    """Return a function from a key to the rows that it names. The key of a whole track names all its parts."""
    parts: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    columns = (tracklets.camera, tracklets.track, tracklets.first_frame, tracklets.last_frame)
    for row, (camera, track, first, last) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        parts.setdefault((tracklets.camera_names[camera], track), []).append((row, first, last))

    def find(key: Key) -> list[int]:
        return [row for row, first, last in parts.get(key[:2], ()) if key[2] < 0 or first <= key[2] <= last]

    return find


def _pairs_of_rows(tracklets: Tracklets, pairs: tuple[tuple[Key, Key], ...]) -> Integers:
    """Pairs of rows `[n, 2]` that the pairs of keys name."""
    found: list[tuple[int, ...]] = []
    if not pairs:
        return np.zeros((0, 2), np.int64)
    find = row_finder(tracklets)
    for pair in pairs:
        sides = [find(key) for key in pair]
        for (camera, track, frame), rows in zip(pair, sides, strict=True):
            if not rows:
                with_frame = f" with frame {frame}" if frame >= 0 else ""
                raise ConfigError(
                    f"A constraint names camera {camera!r}, track {track}{with_frame}, which is not among the "
                    "tracklets. Correct or remove the constraint."
                )
        found += itertools.product(*sides)
    return np.array(found, np.int64).reshape(-1, 2)


def find_violations(
    tracklets: Tracklets, identity: Integers, cameras: Cameras | None = None, constraints: Constraints | None = None
) -> list[str]:
    """Describe every violation of a rule by these identities; empty if there is none.

    Independent of `Rules`, so that an error there is found here. The sightings of each identity are in order of start
    (ties: the lower row), and each is compared with the next, then with the one after that, and so on.

    Args:
        tracklets: T tracklets.
        identity: `[T]`; equal numbers mean one person, 0 or below means no identity.
        cameras, constraints: As given to the match.

    Example:
        >>> from reid.mtmc import Tracklets
        >>> one = np.zeros(2, np.int64)
        >>> tracklets = Tracklets.from_features(["cam01"], one, np.array([1, 2]), one + 5, np.eye(2, dtype=np.float32))
        >>> find_violations(tracklets, np.array([1, 1]))
        ['identity 1: camera cam01, track 1 and camera cam01, track 2 are in one camera simultaneously (for 0.00 s)']
    """
    constraints = constraints or Constraints()
    identity = np.asarray(identity)
    names, camera, start, end = tracklets.camera_names, tracklets.camera, tracklets.start, tracklets.end
    separate = np.zeros((len(names), len(names)), bool)
    min_time = np.full(separate.shape, -math.inf)
    for a, b in itertools.permutations(range(len(names)) if cameras is not None else (), 2):
        if cameras is not None and {names[a], names[b]} <= set(cameras.cameras):
            separate[a, b] = cameras.non_overlapping(names[a], names[b])
            min_time[a, b] = cameras.min_transition_time(names[a], names[b])
    rows = np.flatnonzero(identity > 0)
    rows = rows[np.lexsort((rows, start[rows], identity[rows]))]
    broken: list[tuple[int, int, str]] = []
    place, step = np.arange(len(rows)), 1
    while len(place := place[place + step < len(rows)]):
        place = place[identity[rows[place]] == identity[rows[place + step]]]
        i, j = rows[place], rows[place + step]
        a, b = camera[i], camera[j]
        shared, gap, least = np.minimum(end[i], end[j]) - start[j], start[j] - end[i], min_time[a, b]
        together = shared >= constraints.tolerance
        no_way = np.isposinf(least)
        walk = np.hypot(*(tracklets.entry[j] - tracklets.exit[i]).T)
        reach = math.inf if constraints.max_speed is None else constraints.max_speed
        with np.errstate(invalid="ignore"):
            too_fast = walk > reach * (np.maximum(gap, 0.0) + constraints.tolerance)
        for wrong, text in (
            (together & (a == b), " are in one camera simultaneously (for {shared:.2f} s)"),
            (together & separate[a, b], " are in non-overlapping cameras simultaneously (for {shared:.2f} s)"),
            (no_way, ": there is no transition from {a} to {b}"),
            (
                ~no_way & (gap < least - constraints.tolerance),
                ": the gap is {gap:.2f} s; the transition takes at least {least:.2f} s",
            ),
            (too_fast, ": {walk:.1f} m in {gap:.2f} s exceeds the maximum speed"),
        ):
            for n in np.flatnonzero(wrong).tolist():
                values = {"shared": shared[n], "gap": gap[n], "least": least[n], "walk": walk[n]}
                reason = text.format(a=names[a[n]], b=names[b[n]], **values)
                pair = f"{tracklets.describe(int(i[n]))} and {tracklets.describe(int(j[n]))}"
                broken.append((int(place[n]), step, f"identity {identity[i[n]]}: {pair}{reason}"))
        step += 1
    found = [text for *_, text in sorted(broken, key=lambda line: line[:2])]
    if not (constraints.cannot_link or constraints.must_link):
        return found
    find = row_finder(tracklets)
    for kind, pairs in (("cannot", constraints.cannot_link), ("must", constraints.must_link)):
        for first, second in pairs:
            sides = [{int(identity[row]) for row in find(key)} for key in (first, second)]
            one = bool(sides[0] & sides[1] - {0})
            if kind == "cannot" and one:
                found.append(f"{first[:2]} and {second[:2]} are one identity despite a cannot-link")
            if kind == "must" and (sides[0] != sides[1] or len(sides[0]) != 1):
                found.append(f"{first[:2]} and {second[:2]} are not one identity despite a must-link")
    return found
