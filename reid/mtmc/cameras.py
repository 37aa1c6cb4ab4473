"""Cameras: clocks, frame sizes, ground planes, overlaps and transition times; reads `cameras.yaml`."""

from __future__ import annotations

import configparser
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from reid.config import Settings, load_settings
from reid.core.errors import ConfigError, did_you_mean
from reid.data.tracks import Floats, same_cameras

FPS = 25.0
"""Frames per second of a camera that nothing is known about."""

_Pixels = Annotated[int, Field(ge=1, le=1_000_000)]

FOOT_ERROR = 0.05
"""Error of a foot point in the image, in heights of its box."""

MAP_ERROR = 0.3
"""Error of a homography in metres on the ground."""

HIDDEN_FEET = 3.0
"""Factor of the error of a foot point that is cut off or hidden by another person."""

_IGNORED_KEYS = ("position", "azimuth")
"""Keys of a camera that `reid data synthesize` writes and matching does not use."""


def _homography(value: Any) -> Floats | None:
    if value is None:
        return None
    try:
        matrix = np.array(value, dtype=np.float64).reshape(3, 3)
    except (TypeError, ValueError):
        raise ValueError("must be three rows of three numbers.") from None
    if not np.isfinite(matrix).all() or np.linalg.det(matrix) == 0:
        raise ValueError("must contain finite numbers and be invertible.")
    return matrix


def _point_pairs(value: Any) -> Floats | None:
    if value is None:
        return None
    try:
        pairs = np.array(value, dtype=np.float64).reshape(-1, 4)
    except (TypeError, ValueError):
        raise ValueError("must be a list of [x, y, X, Y]: a point of the image and where it is.") from None
    if len(pairs) < 4 or not np.isfinite(pairs).all():
        raise ValueError(f"must contain 4 pairs of finite points or more, not {len(pairs)}.")
    return pairs


class Camera(Settings):
    """Clock, frame size and ground plane of one camera.

    Example:
        >>> Camera(fps=10, offset=3.5).seconds([1, 11])
        array([3.5, 4.5])
    """

    fps: float = Field(default=FPS, ge=1e-6, le=1e6, strict=True)
    """Frames per second."""
    offset: float = Field(default=0.0, ge=-1e12, le=1e12, strict=True)
    """Seconds at frame 1, on the clock that all cameras share."""
    drift: float = Field(default=0.0, gt=-0.5, lt=0.5, strict=True)
    """Seconds that the camera's clock loses per second: 0.001 if 1000 s of its frames took 1001 s."""
    clock: tuple[tuple[int, float], ...] | None = Field(default=None, min_length=2)
    """Of a variable frame rate: pairs of frame and seconds after frame 1, both rising. Between them and beyond, time
    advances evenly. It replaces `fps`."""
    size: tuple[_Pixels, _Pixels] | None = None
    """Width and height of the frame in pixels."""
    homography: Annotated[Any, AfterValidator(_homography)] = None
    """`[3, 3]` float64, from image (x, y, 1), without lens distortion, to the ground in metres."""
    points: Annotated[Any, AfterValidator(_point_pairs)] = None
    """`[P, 4]`, 4 rows or more of x, y in the image and X, Y on the ground in metres, or in the image of the camera
    `points_to`; `read_cameras` fits the homography to them."""
    points_to: str | None = None
    """Camera whose image `points` lead to; null: the ground."""
    distortion: tuple[float, ...] | None = Field(default=None, min_length=4, max_length=8)
    """Lens distortion k1, k2, p1, p2, k3, ... as OpenCV defines them; needs `size`."""
    focal: float | None = Field(default=None, gt=0)
    """Focal length in pixels, used with `distortion`; null: the longer side of the frame."""

    @field_validator("clock")
    @classmethod
    def _check_rising(cls, clock: tuple[tuple[int, float], ...] | None) -> tuple[tuple[int, float], ...] | None:
        if clock is not None and (np.diff(np.array(clock, dtype=np.float64), axis=0) <= 0).any():
            raise ValueError("frames and seconds must rise.")
        return clock

    def undistort(self, points: Floats) -> Floats:
        """Image points `[N, 2]` without lens distortion."""
        if self.distortion is None or self.size is None or len(points) == 0:
            return points
        import cv2

        focal = self.focal or float(max(self.size))
        matrix = np.array([[focal, 0, self.size[0] / 2], [0, focal, self.size[1] / 2], [0, 0, 1]])
        found = cv2.undistortPoints(points.reshape(-1, 1, 2), matrix, np.array(self.distortion), P=matrix)
        return np.asarray(found, np.float64).reshape(-1, 2)

    def fit_homography(self) -> tuple[Floats, int, float]:
        """Homography from `points` by RANSAC, number of inliers, and the inliers' median residual.

        An inlier is within 5 % of the extent of the target points.

        Raises:
            ValueError: No homography fits 4 points or more.
        """
        import cv2

        source, target = self.undistort(self.points[:, :2]), self.points[:, 2:]
        cv2.setRNGSeed(0)
        limit = 0.05 * float(np.ptp(target, axis=0).max())
        found, mask = cv2.findHomography(source, target, cv2.RANSAC, limit)
        inliers = np.zeros(len(source), bool) if mask is None else mask.reshape(-1).astype(bool)
        if found is None or inliers.sum() < 4 or np.linalg.det(found) == 0:
            raise ValueError("no homography fits 4 of the points or more. Check their order; no 3 may be on a line.")
        matrix = np.array(found, np.float64)
        missed = np.linalg.norm(_project(matrix, source[inliers]) - target[inliers], axis=1)
        return matrix, int(inliers.sum()), float(np.median(missed))

    def seconds(self, frames: ArrayLike) -> Floats:
        """Time of each frame: offset + (frame − 1) / fps · (1 + drift), float64 of the same shape."""
        number = np.asarray(frames, dtype=np.float64)
        if self.clock is None:
            return self.offset + (number - 1) / self.fps * (1 + self.drift)
        known, times = np.array(self.clock, dtype=np.float64).T
        place = np.clip(np.searchsorted(known, number) - 1, 0, len(known) - 2)
        slope = np.diff(times) / np.diff(known)
        return np.asarray(self.offset + (times[place] + (number - known[place]) * slope[place]) * (1 + self.drift))

    def ground(self, boxes: ArrayLike) -> Floats:
        """Ground position in metres `[N, 2]` of the middle of each box's lower edge; NaN without a homography.

        A point on the horizon gives infinity or NaN.
        """
        box = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        if self.homography is None:
            return np.full((len(box), 2), np.nan)
        feet = np.stack([box[:, 0] + box[:, 2] / 2, box[:, 1] + box[:, 3]], axis=1)
        return _project(self.homography, self.undistort(feet))

    def ground_error(self, boxes: ArrayLike) -> Floats:
        """Standard deviation in metres `[N]`, in each direction, of `ground`.

        A foot point is wrong by `FOOT_ERROR` heights of its box, so the error on the ground grows with the distance
        from the camera; `MAP_ERROR` is added (squared) for the homography. A box that is cut at the border of the frame
        has `HIDDEN_FEET` times the error.
        """
        box = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        step = np.zeros_like(box)
        squares = np.zeros(len(box))
        here = self.ground(box)
        for column in (0, 1):
            step[:, column] = FOOT_ERROR * box[:, 3]
            squares += ((self.ground(box + step) - here) ** 2).sum(axis=1) / 2
            step[:, column] = 0
        error = np.sqrt(squares + MAP_ERROR**2)
        if self.size is not None:
            right, bottom = box[:, 0] + box[:, 2], box[:, 1] + box[:, 3]
            cut = (box[:, 0] < 2) | (right > self.size[0] - 2) | (bottom > self.size[1] - 2)
            error = np.where(cut, HIDDEN_FEET * error, error)
        return np.asarray(error)


def _project(matrix: Floats, points: Floats) -> Floats:
    projected = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(projected[:, :2] / projected[:, 2:])


@dataclass(frozen=True, eq=False)
class Cameras:
    """All cameras, their overlaps and the transition times between them.

    `transition_times[a, b] = (min, max)` in seconds, from the end of a person's sighting in camera a to the start of
    the sighting in camera b; a may equal b. The two values have different meanings:

    - `min` is valid for **any** two sightings of one person in that order. It is a rule (`min_transition_time`).
    - `max` is valid only for **consecutive** sightings. Two sightings may have a third between them that was missed or
      is not matched yet, so it never proves that two tracklets are different people. Matching does not use it.

    An interrupted track gives two tracklets of one sighting, so `min` of a camera and itself does not apply to them.

    Attributes:
        cameras: By name.
        overlapping: Pairs of names of cameras that can see one person simultaneously.
        transition_times: By ordered pair. A pair that is absent is unknown, not impossible. Both infinite: no one goes
            from a to b.
        overlaps_known: Whether it is known which cameras overlap, even if none do.
        warnings: Problems that the reader found.
        fits: How well each homography fits the `points` that it was fitted to, for people.
        epoch: Date and time of second 0 of the shared clock, in UTC; None if unknown.

    Raises:
        ConfigError: An unknown camera, `min` above `max`, or a pair that overlaps and has a positive `min`.

    Example:
        >>> cameras = Cameras({"a": Camera(), "b": Camera()}, transition_times={("a", "b"): (12.0, 60.0)})
        >>> cameras.min_transition_time("a", "b"), cameras.min_transition_time("b", "a")
        (12.0, -inf)
    """

    cameras: dict[str, Camera]
    overlapping: frozenset[frozenset[str]] = frozenset()
    transition_times: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    overlaps_known: bool = False
    warnings: tuple[str, ...] = ()
    fits: tuple[str, ...] = ()
    epoch: datetime | None = None

    def __post_init__(self) -> None:
        for pair in self.overlapping:
            if len(pair) != 2:
                raise ConfigError(f"overlapping: {sorted(pair)} is not a pair of cameras. Give two names.")
            self._check_known(pair, "overlapping")
        for (a, b), (low, high) in self.transition_times.items():
            self._check_known((a, b), "pairs")
            if math.isnan(low) or math.isnan(high) or low > high:
                raise ConfigError(f"pairs: from {a!r} to {b!r} min is {low} and max {high}. Make min at most max.")
            if low > 0 and frozenset((a, b)) in self.overlapping:
                raise ConfigError(
                    f"pairs: from {a!r} to {b!r} min is {low} s, but the two overlap. Set min to 0 or below (minus the "
                    "seconds that a person is in both), or remove the pair from overlapping."
                )

    def _check_known(self, names: Iterable[str], where: str) -> None:
        for name in names:
            if name not in self.cameras:
                raise ConfigError(f"{where}: there is no camera {name!r}.{did_you_mean(name, self.cameras)}")

    def __getitem__(self, name: str) -> Camera:
        """Return the camera of that name.

        Raises:
            ConfigError: There is none.
        """
        self._check_known([name], "Cameras")
        return self.cameras[name]

    def min_transition_time(self, first: str, second: str) -> float:
        """Seconds that any person needs from `first` to `second`; −inf if unknown, inf if no one goes there."""
        return self.transition_times.get((first, second), (-math.inf, math.inf))[0]

    def non_overlapping(self, first: str, second: str) -> bool:
        """Whether two different cameras are known not to see one person simultaneously.

        True if the overlaps are known and do not include the pair, or if both transition times have a `min` of 0 or
        more. False means that they overlap or that nothing is known.
        """
        if first == second or frozenset((first, second)) in self.overlapping:
            return False
        times = self.min_transition_time(first, second), self.min_transition_time(second, first)
        return self.overlaps_known or min(times) >= 0


def _entry(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: given for key, given in value.items() if key not in _IGNORED_KEYS and given is not None}
    return {} if value is None else value


def _with_offset(value: Any) -> Any:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("must be a date and time with an offset, such as 2026-11-23T08:00:00+01:00.")
    return value


class _Pair(Settings):
    source: str = Field(alias="from")
    target: str = Field(alias="to")
    min: float | None = Field(default=None, strict=True, allow_inf_nan=True)
    max: float | None = Field(default=None, strict=True, allow_inf_nan=True)


class _File(Settings):
    """Content of `cameras.yaml`."""

    cameras: dict[str, Annotated[Camera, BeforeValidator(_entry)]] = Field(default_factory=dict)
    pairs: list[_Pair] = Field(default_factory=list)
    overlapping: list[tuple[str, str]] = Field(default_factory=list)
    epoch: Annotated[datetime, BeforeValidator(_with_offset)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if value is not None}


def _fit_homographies(
    cameras: dict[str, Camera], name_of: Mapping[str, str], path: str
) -> tuple[dict[str, Camera], list[str]]:
    """Give cameras with `points` a homography to the ground; a camera that leads to another follows it."""
    fits: list[str] = []
    fitted = dict(cameras)
    waiting = {name: camera for name, camera in cameras.items() if camera.points is not None}
    while waiting:
        ready = [
            name
            for name, camera in waiting.items()
            if camera.points_to is None or name_of.get(camera.points_to, camera.points_to) not in waiting
        ]
        if not ready:
            raise ConfigError(f"{path}: points_to of {', '.join(waiting)} form a circle. Give one of them the ground.")
        for name in ready:
            camera = waiting.pop(name)
            if camera.homography is not None:
                raise ConfigError(f"{path}: cameras.{name} has a homography and points. Remove one of them.")
            try:
                matrix, inliers, residual = camera.fit_homography()
            except ValueError as error:
                raise ConfigError(f"{path}: cameras.{name}.points: {error}") from None
            unit = "m"
            if camera.points_to is not None:
                target = fitted.get(name_of.get(camera.points_to, camera.points_to))
                if target is None or target.homography is None or target.distortion is not None:
                    raise ConfigError(
                        f"{path}: cameras.{name}.points_to is {camera.points_to!r}. It must be a listed camera with a "
                        "homography or points, and without distortion."
                    )
                matrix, unit = target.homography @ matrix, f"pixels of {camera.points_to}"
            count = f"{inliers} of {len(camera.points)} points"
            fits.append(f"{name}: homography of {count}, residual {residual:.3g} {unit}")
            fitted[name] = camera.model_copy(update={"homography": matrix})
    return fitted, fits


def read_cameras(path: str | Path, names: Sequence[str], *, partial: bool = False) -> Cameras:
    """Read `cameras.yaml` for the cameras `names` of the tracks; `docs/track-files.md` describes its keys.

    Cameras of the file and of the tracks correspond by name, or by number if no names are equal (`same_cameras`).
    Listed cameras without tracks are kept and reported in `.warnings`. With `partial`, neither side must be complete:
    such cameras are not reported, and nothing is known about cameras that are not listed.

    Raises:
        ConfigError: Not readable, not YAML, an unknown key (the nearest one is suggested), an invalid value, or a
            camera with tracks that is not listed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "cameras.yaml").write_text("cameras: {cam01: {fps: 10}}")
        ...     cameras = read_cameras(Path(folder) / "cameras.yaml", ["cam01"])
        >>> cameras["cam01"].seconds([1, 11]).tolist()
        [0.0, 1.0]
    """
    path = Path(path)
    content = load_settings(_File, path)
    listed = content.cameras
    name_of = {name: name for name in names}
    warnings: list[str] = []
    if listed:
        same = same_cameras(names, listed)
        missing = [name for name in names if name not in same.values()]
        if missing and not partial:
            raise ConfigError(
                f"{path}: there are tracks of {missing[0]!r}, which is not listed under cameras."
                f"{did_you_mean(missing[0], listed)} List it, or remove the key 'cameras'."
            )
        name_of = {name: same.get(name, name) for name in listed}
        if len(set(name_of.values())) < len(name_of):
            raise ConfigError(f"{path}: a name is used for different cameras here and in the tracks. Rename one.")
        unused = [name for name in listed if name not in same]
        if unused and not partial:
            warnings.append(f"{path} lists cameras without tracks: {', '.join(unused)}.")
    cameras = {name: listed.get(key, Camera()) for key, name in name_of.items()}
    cameras, fits = _fit_homographies(cameras, name_of, str(path))

    def known(name: str, where: str) -> str:
        found = name_of.get(name, name)
        if found not in cameras:
            raise ConfigError(f"{path}: {where}: there is no camera {name!r}.{did_you_mean(name, name_of)}")
        return found

    times: dict[tuple[str, str], tuple[float, float]] = {}
    for number, pair in enumerate(content.pairs):
        key = known(pair.source, f"pairs.{number}"), known(pair.target, f"pairs.{number}")
        if key in times:
            raise ConfigError(f"{path}: pairs.{number}: from {key[0]!r} to {key[1]!r} is given twice. Remove one.")
        times[key] = -math.inf if pair.min is None else pair.min, math.inf if pair.max is None else pair.max
    overlapping = frozenset(
        frozenset(known(name, f"overlapping.{number}") for name in pair)
        for number, pair in enumerate(content.overlapping)
    )
    try:
        return Cameras(
            cameras,
            overlapping,
            times,
            "overlapping" in content.model_fields_set,
            tuple(warnings),
            tuple(fits),
            content.epoch,
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


class _Sequence(Settings):
    model_config = ConfigDict(extra="ignore")

    framerate: float = Field(default=FPS, ge=1e-6, le=1e6)
    imwidth: _Pixels | None = None
    imheight: _Pixels | None = None


def read_sequences(path: str | Path, names: Sequence[str]) -> Cameras | None:
    """Read frame rate and frame size from the `seqinfo.ini` (MOTChallenge) of each camera; None if there is none.

    Args:
        path: Tracks as given to `read_tracks`: a folder of sequences, a sequence, its `gt/` or its `gt.txt`.
        names: Cameras of the tracks.

    Raises:
        ConfigError: A file is not readable, or a value is invalid.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     (Path(folder) / "MOT17-02").mkdir()
        ...     _ = (Path(folder) / "MOT17-02" / "seqinfo.ini").write_text("[Sequence]\\nframeRate=30\\n")
        ...     cameras = read_sequences(folder, ["MOT17-02"])
        >>> cameras["MOT17-02"].fps
        30.0
    """
    path = Path(path).absolute()
    found = {}
    for name in names:
        folders = [path / name, *(folder for folder in (path, *path.parents[:2]) if folder.name == name)]
        file = next((folder / "seqinfo.ini" for folder in folders if (folder / "seqinfo.ini").is_file()), None)
        if file is not None:
            parser = configparser.ConfigParser(interpolation=None, strict=False)
            try:
                parser.read_string(file.read_text("utf-8-sig"))
                values = dict(parser["Sequence"])
            except (OSError, UnicodeDecodeError, KeyError, configparser.Error) as error:
                raise ConfigError(f"{file} cannot be read as seqinfo.ini: {error}. Correct or remove it.") from error
            info = _Sequence.from_dict(values, str(file))
            size = (info.imwidth, info.imheight) if info.imwidth and info.imheight else None
            found[name] = Camera(fps=info.framerate, size=size)
    return Cameras({name: found.get(name, Camera()) for name in names}) if found else None
