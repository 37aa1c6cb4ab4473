"""What is known of the cameras: clocks, sizes, ground, who may be where when."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import ReidError, did_you_mean
from reid.data.tracks import same_cameras

FPS = 25.0


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera.

    Attributes:
        name: as in the track files.
        fps: frames per second.
        offset: when frame 1 was taken, seconds on the clock that all cameras share.
        drift: seconds that this camera's clock loses in a second: 0.001 when 1000 s of its frames took 1001 s.
        size: frame's width and height, pixels; None when nobody said.
        homography: `[3, 3]` float64, from image (x, y, 1) to the ground in metres; None when nobody said.

    Raises:
        ReidError: a value that cannot be, by name.
    """

    name: str
    fps: float = FPS
    offset: float = 0.0
    drift: float = 0.0
    size: tuple[int, int] | None = None
    homography: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ReidError(f"Camera {self.name!r}: fps is {self.fps}; it must be a number above 0.")
        if not math.isfinite(self.offset):
            raise ReidError(f"Camera {self.name!r}: offset is {self.offset}; it must be a number of seconds.")
        if not (math.isfinite(self.drift) and abs(self.drift) < 0.5):
            raise ReidError(
                f"Camera {self.name!r}: drift is {self.drift}; it is in seconds per second, between -0.5 and 0.5 "
                "(0.001 loses a second in 1000)."
            )
        if self.size is not None and not (len(self.size) == 2 and min(self.size) > 0):
            raise ReidError(f"Camera {self.name!r}: size is {self.size}; give width and height in pixels, above 0.")
        if self.homography is not None:
            h = self.homography
            if h.shape != (3, 3) or not np.isfinite(h).all() or np.linalg.det(h) == 0:
                raise ReidError(f"Camera {self.name!r}: homography must be 3 × 3 finite numbers that can be inverted.")

    def seconds(self, frames: ArrayLike) -> NDArray[np.float64]:
        """When frames were taken: offset + (frame − 1) / fps · (1 + drift), float64 of the same shape."""
        return self.offset + (np.asarray(frames, dtype=np.float64) - 1) / self.fps * (1 + self.drift)

    def ground(self, boxes: ArrayLike) -> NDArray[np.float64] | None:
        """Where the middle of the lower edge of boxes `[N, 4]` stands, metres `[N, 2]`; None without homography.

        A foot on the camera's horizon gives infinity or NaN.
        """
        if self.homography is None:
            return None
        box = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        feet = np.stack([box[:, 0] + box[:, 2] / 2, box[:, 1] + box[:, 3], np.ones(len(box))], axis=1)
        there = feet @ self.homography.T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(there[:, :2] / there[:, 2:])


@dataclass(frozen=True, eq=False)
class Cameras:
    """All cameras, and what is known of the ways between them.

    **Travel times.** `transition_times[a, b] = (min, max)` in seconds, from the end of a person's walk before camera a
    to the
    start of the walk before camera b; a may be b. The two numbers are not alike:

    - `min` holds for **any** two walks of one person in that order, whatever lies between them. Take it as a hard
      rule, with `min_transition_time`.
    - `max` holds only for two walks **with none between them**. Two sightings in a cluster may have a third between
      them that no camera, tracker or matcher has found yet, so it never rules out that two tracklets are one person.
      It is evidence about consecutive sightings, and `max_transition_time` gives it as that. Infinite where nobody
      said.

    A broken track makes two tracklets of one walk: `min_transition_time(a, a)` holds for walks, not for such parts.

    Attributes:
        cameras: by name.
        overlapping: pairs of names that may see one person at once.
        transition_times: windows of ordered pairs; a pair that is not in it is unknown, not impossible. Both infinite:
            nobody
            goes from a to b.
        stated: False when nobody said anything (`from_names`): all values are defaults.
        overlaps_known: whether someone said which cameras overlap, if only that none do.
        warnings: what the reader found odd, in words.
    """

    cameras: dict[str, Camera]
    overlapping: frozenset[frozenset[str]] = frozenset()
    transition_times: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    stated: bool = True
    overlaps_known: bool = False
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pair in self.overlapping:
            for name in pair:
                self._known(name, "overlapping")
            if len(pair) != 2:
                raise ReidError(f"overlapping: {sorted(pair)} is not a pair of two cameras.")
        for (a, b), (low, high) in self.transition_times.items():
            self._known(a, "pairs")
            self._known(b, "pairs")
            if math.isnan(low) or math.isnan(high) or low > high:
                raise ReidError(f"pairs: from {a!r} to {b!r} min is {low} and max {high}; min must not be above max.")
            if low > 0 and frozenset((a, b)) in self.overlapping:
                raise ReidError(
                    f"pairs: from {a!r} to {b!r} takes {low} s or more, yet the two are said to overlap. Give min 0 or "
                    "below (seconds that a person is in both), or take the pair out of overlapping."
                )

    def _known(self, name: str, where: str) -> None:
        if name not in self.cameras:
            raise ReidError(f"{where}: there is no camera {name!r}.{did_you_mean(name, self.cameras)}")

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Cameras:
        """Zero configuration: 25 frames a second, clocks that agree, nothing known of overlap and ways."""
        return cls({name: Camera(name) for name in names}, stated=False)

    def __getitem__(self, name: str) -> Camera:
        """The camera of that name.

        Raises:
            ReidError: there is none.
        """
        self._known(name, "Cameras")
        return self.cameras[name]

    def seconds(self, name: str, frames: ArrayLike) -> NDArray[np.float64]:
        """When a camera took its frames, seconds on the shared clock: offset + (frame − 1) / fps · (1 + drift)."""
        return self[name].seconds(frames)

    def min_transition_time(self, first: str, second: str) -> float:
        """Seconds that any person needs from `first` to `second`; −inf where nobody said, inf where nobody goes.

        End of one walk to start of another. A hard rule for any two sightings in that order (see the class).
        """
        return self.transition_times.get((first, second), (-math.inf, math.inf))[0]

    def max_transition_time(self, first: str, second: str) -> float:
        """Seconds after which a person who went straight from `first` to `second` has come; inf where nobody said.

        Only for sightings with none between them: evidence, never a rule (see the class).
        """
        return self.transition_times.get((first, second), (-math.inf, math.inf))[1]

    def non_overlapping(self, first: str, second: str) -> bool:
        """Whether two different cameras are known not to see one person at once.

        They are, when someone said which cameras overlap and these do not; or when both ways between them are given
        with a `min` of 0 or more. False means: they overlap, or nobody said.
        """
        if first == second or frozenset((first, second)) in self.overlapping:
            return False
        return (
            self.overlaps_known
            or min(self.min_transition_time(first, second), self.min_transition_time(second, first)) >= 0
        )


_CAMERA_KEYS = ("fps", "offset", "drift", "size", "homography")
_UNREAD_KEYS = ("position", "azimuth")
"""Written by the made world; nothing here uses them."""


def parse_cameras(values: Any, names: Sequence[str], where: str) -> Cameras:
    """`Cameras` of what a `cameras.yaml` holds, for the cameras `names` of the tracks.

    Raises:
        ReidError: see `files.read_cameras`; `where` is the file's name for the messages.
    """
    content = _mapping({} if values is None else values, where, ("cameras", "pairs", "overlapping"))
    listed = content.get("cameras")
    listed = {} if listed is None else _mapping(listed, f"{where}: cameras")
    called = {str(name): str(name) for name in names}
    warnings: list[str] = []
    if listed:
        same = same_cameras(names, listed)
        missing = [name for name in names if name not in same.values()]
        if missing:
            raise ReidError(
                f"{where}: there are tracks of {missing[0]!r}, which is not listed under cameras."
                f"{did_you_mean(missing[0], listed)} List it, or leave 'cameras' out altogether."
            )
        called = {name: same.get(name, name) for name in listed}
        if len(set(called.values())) < len(called):
            raise ReidError(f"{where}: the names under cameras and those of the tracks are mixed up. Name them alike.")
        idle = [name for name in listed if name not in same]
        if idle:
            warnings.append(f"{where} lists cameras without tracks: {', '.join(idle)}.")
    cameras = {name: Camera(name) for name in called.values()}
    for listed_name, its in listed.items():
        cameras[called[listed_name]] = _camera(called[listed_name], its, f"{where}: cameras.{listed_name}")

    def camera(name: Any, place: str) -> str:
        if str(name) in called:
            return called[str(name)]
        if str(name) in cameras:
            return str(name)
        raise ReidError(f"{place}: there is no camera {str(name)!r}.{did_you_mean(str(name), called)}")

    travel: dict[tuple[str, str], tuple[float, float]] = {}
    for number, pair in enumerate(_list(content.get("pairs"), f"{where}: pairs"), start=1):
        place = f"{where}: pair {number}"
        pair = _mapping(pair, place, ("from", "to", "min", "max"))
        for key in ("from", "to"):
            if pair.get(key) is None:
                raise ReidError(f"{place} has no {key!r}. Give the names of both cameras.")
        way = (camera(pair["from"], place), camera(pair["to"], place))
        if way in travel:
            raise ReidError(f"{place}: the way from {way[0]!r} to {way[1]!r} is given twice. Keep one.")
        low, high = pair.get("min"), pair.get("max")
        travel[way] = (
            -math.inf if low is None else _number(low, f"{place}: min"),
            math.inf if high is None else _number(high, f"{place}: max"),
        )
    overlapping = set()
    for number, both in enumerate(_list(content.get("overlapping"), f"{where}: overlapping"), start=1):
        place = f"{where}: overlapping, entry {number}"
        if not isinstance(both, list) or len(both) != 2 or both[0] == both[1]:
            raise ReidError(f"{place} is {both!r}; give two cameras, like [cam01, cam02].")
        overlapping.add(frozenset(camera(name, place) for name in both))
    return Cameras(
        cameras, frozenset(overlapping), travel, overlaps_known="overlapping" in content, warnings=tuple(warnings)
    )


def _camera(name: str, values: Any, where: str) -> Camera:
    its = _mapping({} if values is None else values, where, _CAMERA_KEYS, _UNREAD_KEYS)
    given = {key: value for key, value in its.items() if key in _CAMERA_KEYS and value is not None}
    numbers = {key: _number(given[key], f"{where}.{key}") for key in ("fps", "offset", "drift") if key in given}
    size = homography = None
    if "size" in given:
        sides = [_number(side, f"{where}.size") for side in _list(given["size"], f"{where}.size")]
        if len(sides) != 2 or any(side != int(side) for side in sides if math.isfinite(side)):
            raise ReidError(f"{where}.size is {given['size']!r}; give width and height in pixels, like [1920, 1080].")
        size = (int(sides[0]), int(sides[1]))
    if "homography" in given:
        try:
            homography = np.array(given["homography"], dtype=np.float64).reshape(3, 3)
        except (TypeError, ValueError) as error:
            raise ReidError(f"{where}.homography must be three rows of three numbers.") from error
    try:
        return Camera(name, **numbers, size=size, homography=homography)
    except ReidError as error:
        raise ReidError(f"{where}: {error}") from error


def _mapping(value: Any, where: str, known: Sequence[str] = (), unread: Sequence[str] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ReidError(f"{where} must hold `key: value` lines, not {value!r}.")
    keys = {str(key): content for key, content in value.items()}
    for key in keys:
        if known and key not in known and key not in unread:
            raise ReidError(f"{where}: there is no key {key!r}.{did_you_mean(key, known)}")
    return keys


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ReidError(f"{where} must be a list, not {value!r}.")
    return value


def _number(value: Any, where: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise ReidError(f"{where} is {value!r}; it must be a number.") from None
