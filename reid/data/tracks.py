"""`Tracks`: boxes of several cameras as columns, whoever tracked them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import ReidError

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tracks:
    """`N` boxes, one a row, sorted by (camera, frame, track). Make one with `Tracks.of` or `read_tracks`.

    A camera may have a name and no boxes. Whether an id of one camera means the same person as that id in another is
    not said here: it does in truth and in results, and does not in what single-camera trackers write.

    Attributes:
        camera_names: the cameras, each once; a row's `camera` is an index into them.
        camera: int64 `[N]`.
        track: int64 `[N]`, 0 or more; at most once in one frame of one camera.
        frame: int64 `[N]` as in the file: from 1, in MOTChallenge.
        boxes: float64 `[N, 4]` x, y, width, height in pixels; x, y the upper left corner, width and height above 0.
        confidence: float64 `[N]`, 1 where nobody said.
        format: where read from files, their format (`files.FORMATS`); else empty.
        why: how the reader knew the format, in words; else empty.
        warnings: what the reader left out or found odd, in words.
    """

    camera_names: tuple[str, ...]
    camera: Integers
    track: Integers
    frame: Integers
    boxes: Floats
    confidence: Floats
    format: str = ""
    why: str = ""
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_columns(
        cls,
        camera_names: Sequence[str],
        camera: ArrayLike,
        track: ArrayLike,
        frame: ArrayLike,
        boxes: ArrayLike,
        confidence: ArrayLike | None = None,
    ) -> Tracks:
        """Check and sort the columns.

        Args:
            camera_names: the cameras; those without boxes too.
            camera: `[N]` index into `camera_names`.
            track, frame: `[N]` integers, 0 or more.
            boxes: `[N, 4]` x, y, width, height in pixels.
            confidence: `[N]`; all 1 when None.

        Raises:
            ReidError: columns of different length or kind; a camera named twice; a negative id or frame; a box that
                is not finite or has no area; one id twice in one frame of one camera. Names the first such row.
        """
        names = tuple(map(str, camera_names))
        for name in names:
            if names.count(name) > 1:
                raise ReidError(f"Tracks: the camera {name!r} is named twice. Give each camera one name.")
        n = len(np.asarray(track))
        columns = [_integers("camera", camera, n), _integers("track", track, n), _integers("frame", frame, n)]
        box = np.asarray(boxes, dtype=np.float64)
        box = box.reshape(0, 4) if box.size == 0 and n == 0 else box
        if box.shape != (n, 4):
            raise ReidError(f"Tracks: boxes must be [{n}, 4] (x, y, width, height); got shape {list(box.shape)}.")
        sure = np.ones(n) if confidence is None else np.asarray(confidence, dtype=np.float64)
        if sure.shape != (n,):
            raise ReidError(f"Tracks: column 'confidence' has shape {list(sure.shape)}, but there are {n} boxes.")
        if n and not (columns[0].min() >= 0 and columns[0].max() < len(names)):
            raise ReidError(f"Tracks: column 'camera' must hold 0 to {len(names) - 1}, indices into camera_names.")
        for name, values in (("track", columns[1]), ("frame", columns[2])):
            if n and values.min() < 0:
                row = int(np.argmin(values))
                raise ReidError(f"Tracks: {name} is {values[row]} in row {row}; it must be 0 or more.")
        good = usable(box, sure)
        if not good.all():
            row = int(np.argmin(good))
            raise ReidError(
                f"Tracks: row {row} has box {box[row].tolist()}, confidence {sure[row]}. Both must be finite, width "
                "and height above 0. Leave such rows out."
            )
        order = sorting_order(*columns)
        if order is not None:
            columns = [values[order] for values in columns]
            box, sure = box[order], sure[order]
        tracks = cls(names, columns[0], columns[1], columns[2], np.ascontiguousarray(box), sure)
        twice = tracks.repeated()
        if twice.any():
            row = int(np.argmax(twice))
            raise ReidError(
                f"Tracks: id {tracks.track[row]} is twice in frame {tracks.frame[row]} of camera "
                f"{names[tracks.camera[row]]!r} ({int(twice.sum())} such rows). A person has one box in a frame."
            )
        return tracks

    def __len__(self) -> int:
        """The number of boxes."""
        return len(self.track)

    def __repr__(self) -> str:
        return f"Tracks({len(self):,} boxes, {len(self.camera_names)} cameras)"

    def repeated(self) -> NDArray[np.bool_]:
        """`[N]`: whether the row before is of the same camera, frame and id."""
        same = np.zeros(len(self), dtype=bool)
        same[1:] = (
            (self.camera[1:] == self.camera[:-1])
            & (self.frame[1:] == self.frame[:-1])
            & (self.track[1:] == self.track[:-1])
        )
        return same

    def take(self, index: ArrayLike) -> Tracks:
        """The rows of an index array or boolean mask, sorted as ever; all cameras stay."""
        index = np.asarray(index)
        if index.size == 0:
            index = index.astype(np.int64)
        taken = Tracks.from_columns(
            self.camera_names,
            self.camera[index],
            self.track[index],
            self.frame[index],
            self.boxes[index],
            self.confidence[index],
        )
        return replace(taken, format=self.format, why=self.why, warnings=self.warnings)

    def with_ids(self, track: ArrayLike) -> Tracks:
        """The same boxes under other ids, `[N]` in the order of the rows here; sorted anew.

        Raises:
            ReidError: an id comes twice in one frame of one camera.
        """
        changed = Tracks.from_columns(self.camera_names, self.camera, track, self.frame, self.boxes, self.confidence)
        return replace(changed, format=self.format, why=self.why, warnings=self.warnings)


def usable(boxes: Floats, confidence: Floats) -> NDArray[np.bool_]:
    """`[N]`: finite box and confidence, width and height above 0."""
    mask: NDArray[np.bool_] = np.isfinite(boxes).all(axis=1) & np.isfinite(confidence) & (boxes[:, 2:] > 0).all(axis=1)
    return mask


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key under which cam2 comes before cam10."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d+|\D+", name))


def camera_number(name: str) -> int | None:
    """The last number in a camera's name (`cam01` → 1, `c042` → 42), or None."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def same_cameras(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Which of `others` is which of `names`: {other: name}, for those that have one.

    Equal names are the same camera. Where not one name is equal, cameras are the same that have the same number in
    their names (`cam01`, `c001`, `1`), provided that no two cameras on a side share a number.
    """
    names, others = list(names), list(others)
    found = {other: other for other in others if other in set(names)}
    if found:
        return found
    numbers = [camera_number(name) for name in names]
    other_numbers = [camera_number(other) for other in others]
    for side in (numbers, other_numbers):
        if None in side or len(set(side)) < len(side):
            return {}
    return {
        other: names[numbers.index(number)]
        for other, number in zip(others, other_numbers, strict=True)
        if number in numbers
    }


def _integers(name: str, values: ArrayLike, n: int) -> Integers:
    array = np.asarray(values)
    if array.shape != (n,):
        raise ReidError(f"Tracks: column {name!r} has shape {list(array.shape)}, but there are {n} rows.")
    if n and not np.issubdtype(array.dtype, np.integer):
        raise ReidError(f"Tracks: column {name!r} must hold integers; it holds {array.dtype}.")
    return array.astype(np.int64)


def sorting_order(camera: Integers, track: Integers, frame: Integers) -> Integers | None:
    """The sorting order by (camera, frame, track), ties in row order; None when the rows stand in it already."""
    a, b = slice(None, -1), slice(1, None)
    later = (camera[b] > camera[a]) | (
        (camera[b] == camera[a]) & ((frame[b] > frame[a]) | ((frame[b] == frame[a]) & (track[b] >= track[a])))
    )
    return None if later.all() else np.lexsort((track, frame, camera))
