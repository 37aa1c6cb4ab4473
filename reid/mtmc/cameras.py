"""Cameras: clocks, frame sizes, ground planes, overlaps and transition times; reads `cameras.yaml`."""

from __future__ import annotations

import configparser
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from reid.config import Settings, load_settings
from reid.core.errors import ConfigError, did_you_mean
from reid.data.tracks import Floats, same_cameras

FPS = 25.0
"""Frames per second of a camera that nothing is known about."""

_Pixels = Annotated[int, Field(ge=1, le=1_000_000)]

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
    size: tuple[_Pixels, _Pixels] | None = None
    """Width and height of the frame in pixels."""
    homography: Annotated[Any, AfterValidator(_homography)] = None
    """`[3, 3]` float64, from image (x, y, 1) to the ground in metres."""

    def seconds(self, frames: ArrayLike) -> Floats:
        """Time of each frame: offset + (frame − 1) / fps · (1 + drift), float64 of the same shape."""
        return self.offset + (np.asarray(frames, dtype=np.float64) - 1) / self.fps * (1 + self.drift)

    def ground(self, boxes: ArrayLike) -> Floats | None:
        """Ground position in metres `[N, 2]` of the middle of each box's lower edge; None without a homography.

        A point on the horizon gives infinity or NaN.
        """
        if self.homography is None:
            return None
        box = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        feet = np.stack([box[:, 0] + box[:, 2] / 2, box[:, 1] + box[:, 3], np.ones(len(box))], axis=1)
        projected = feet @ self.homography.T
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
        transition_times: By ordered pair. A pair that is absent is unknown, not impossible. Both infinite: nobody goes
            from a to b.
        overlaps_known: Whether it is known which cameras overlap, even if none do.
        warnings: Problems that the reader found.

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
        """Seconds that any person needs from `first` to `second`; −inf if unknown, inf if nobody goes there."""
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

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if value is not None}


def read_cameras(path: str | Path, names: Sequence[str]) -> Cameras:
    """Read `cameras.yaml` for the cameras `names` of the tracks; `docs/track-files.md` describes its keys.

    Cameras of the file and of the tracks correspond by name, or by number if no names are equal (`same_cameras`).
    Listed cameras without tracks are kept and reported in `.warnings`.

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
        if missing:
            raise ConfigError(
                f"{path}: there are tracks of {missing[0]!r}, which is not listed under cameras."
                f"{did_you_mean(missing[0], listed)} List it, or remove the key 'cameras'."
            )
        name_of = {name: same.get(name, name) for name in listed}
        if len(set(name_of.values())) < len(name_of):
            raise ConfigError(f"{path}: a name is used for different cameras here and in the tracks. Rename one.")
        unused = [name for name in listed if name not in same]
        if unused:
            warnings.append(f"{path} lists cameras without tracks: {', '.join(unused)}.")
    cameras = {name: listed.get(key, Camera()) for key, name in name_of.items()}

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
        return Cameras(cameras, overlapping, times, "overlapping" in content.model_fields_set, tuple(warnings))
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
