"""`Tracks`: the boxes of several cameras as columns, from any detector and tracker."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import box_array, column_codes, float_column, integer_column
from reid.core.errors import DataError
from reid.data.crops import as_rows

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_FRAME = 2**31 - 1
"""Largest frame number: more than two years at 25 frames per second."""

MAX_PIXELS = 1e6
"""Largest absolute value of a coordinate, side or confidence. Larger numbers are damaged data."""

MIN_SIDE = 1e-6
"""Smallest width and height of a box."""


@dataclass(frozen=True, eq=False)
class Tracks:
    """`N` boxes, one per row, sorted by (camera, frame, track).

    Create one with `Tracks.from_columns` or `reid.mtmc.read_tracks`. A camera may have no boxes. Equal ids in two
    cameras mean the same person in ground truth and in matched results, but not in the output of single-camera
    trackers.

    Attributes:
        camera_names: unique names; a row's `camera` is an index into them.
        camera: int64 `[N]`.
        track: int64 `[N]`, 0 or more; unique within one frame of one camera.
        frame: int64 `[N]`, as in the file (MOTChallenge counts from 1).
        boxes: float64 `[N, 4]` x, y, width, height in pixels; x, y is the upper left corner, width and height are
            above 0.
        confidence: float64 `[N]` of the detector; 1 where unknown.
        first_frame: number that `frame` gives to the first frame of the recording.
        format: file format that the tracks were read from; empty if they were not read from files.
        format_reason: how the reader recognised the format; empty if the tracks were not read from files.
        warnings: what the reader skipped or found suspicious.

    Example:
        >>> Tracks.from_columns(["door"], camera=[0, 0], track=[1, 1], frame=[1, 2], boxes=[[5, 5, 20, 60]] * 2)
        Tracks(2 boxes, 1 cameras)
    """

    camera_names: tuple[str, ...]
    camera: Integers
    track: Integers
    frame: Integers
    boxes: Floats
    confidence: Floats
    first_frame: int = 1
    format: str = ""
    format_reason: str = ""
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
        *,
        first_frame: int | None = None,
    ) -> Tracks:
        """Check and sort the columns.

        Args:
            camera_names: all cameras, including those without boxes.
            camera: `[N]` index into `camera_names`.
            track, frame: `[N]` integers, 0 or more; frames at most `MAX_FRAME`.
            boxes: `[N, 4]` x, y, width, height in pixels.
            confidence: `[N]`; None means 1 for all.
            first_frame: number of the first frame of the recording; by default 0 if there is a frame 0, else 1.

        Raises:
            DataError: columns of different length or type; a duplicate camera name; a negative id or frame; a frame
                before `first_frame`; a box without area or with values that are not finite or beyond `MAX_PIXELS`; an
                id that occurs twice in one frame of one camera. The message names the first such row.
        """
        names = tuple(map(str, camera_names))
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"Tracks: the camera name {name!r} occurs twice. Give each camera one name.")
        box = box_array("Tracks.boxes", boxes)
        n = len(box)
        columns = [
            integer_column(f"Tracks.{name}", values, n, minimum=0)
            for name, values in (("camera", camera), ("track", track), ("frame", frame))
        ]
        if n and columns[0].max() >= len(names):
            raise DataError(f"Tracks.camera must be an index into camera_names, 0 to {len(names) - 1}.")
        if first_frame is None:
            first_frame = 0 if n and not columns[2].all() else 1
        elif n and columns[2].min() < first_frame:
            raise DataError(
                f"Tracks: there is a frame {columns[2].min()}, but the first frame is given as {first_frame}. Set the "
                "first frame to the number of the first frame of the recording."
            )
        if n and columns[2].max() > MAX_FRAME:
            raise DataError(
                f"Tracks.frame is {columns[2].max()} in row {int(columns[2].argmax())}; the largest is {MAX_FRAME}. "
                "Use frame numbers, not time stamps."
            )
        score = float_column("Tracks.confidence", np.ones(n) if confidence is None else confidence, n)
        check_boxes("Tracks", box, score)
        order = np.lexsort((columns[1], columns[2], columns[0]))
        columns = [column[order] for column in columns]
        tracks = cls(names, columns[0], columns[1], columns[2], box[order], score[order], first_frame)
        repeated = tracks.repeated()
        if repeated.any():
            row = int(np.argmax(repeated))
            raise DataError(
                f"Tracks: id {tracks.track[row]} occurs twice in frame {tracks.frame[row]} of camera "
                f"{names[tracks.camera[row]]!r} ({int(repeated.sum())} such rows). Keep one box per id and frame."
            )
        return tracks

    def __len__(self) -> int:
        """The number of boxes."""
        return len(self.track)

    def __repr__(self) -> str:
        return f"Tracks({len(self):,} boxes, {len(self.camera_names)} cameras)"

    def repeated(self) -> NDArray[np.bool_]:
        """`[N]`: whether the previous row has the same camera, frame and id."""
        columns = np.stack([self.camera, self.frame, self.track])
        return np.concatenate([np.zeros(min(1, len(self)), bool), (columns[:, 1:] == columns[:, :-1]).all(axis=0)])

    def has_box(self, camera: Integers, track: Integers, frame: Integers) -> NDArray[np.bool_]:
        """`[M]`: whether there is a box of this camera, id and frame, for each of M rows.

        Example:
            >>> tracks = Tracks.from_columns(["door"], [0], [7], [3], [[5, 5, 20, 60]])
            >>> tracks.has_box(np.array([0, 0]), np.array([7, 7]), np.array([3, 4])).tolist()
            [True, False]
        """
        pairs = np.concatenate([[self.camera, self.track], [camera, track]], axis=1)
        code = column_codes(pairs) * 2**32
        return np.isin(code[len(self) :] + frame, code[: len(self)] + self.frame)

    def take(self, index: ArrayLike) -> Tracks:
        """Return the rows of an index array or boolean mask, sorted; all cameras remain."""
        rows = as_rows(index)
        columns = (self.camera, self.track, self.frame, self.boxes, self.confidence)
        return self._replaced(*(column[rows] for column in columns))

    def with_ids(self, track: ArrayLike) -> Tracks:
        """Return the same boxes with other ids, `[N]` in the order of these rows; the result is sorted.

        Raises:
            DataError: an id occurs twice in one frame of one camera.
        """
        return self._replaced(self.camera, track, self.frame, self.boxes, self.confidence)

    def shift_frames(self, offset: int) -> Tracks:
        """Return the same boxes with `offset` added to the number of each frame.

        Raises:
            DataError: a frame would be negative.

        Example:
            >>> tracks = Tracks.from_columns(["door"], [0], [7], [0], [[5, 5, 20, 60]])
            >>> tracks.first_frame, tracks.shift_frames(1).first_frame, tracks.shift_frames(1).frame.tolist()
            (0, 1, [1])
        """
        shifted = replace(self, first_frame=self.first_frame + offset)
        return shifted._replaced(self.camera, self.track, self.frame + offset, self.boxes, self.confidence)

    def _replaced(self, *columns: ArrayLike) -> Tracks:
        tracks = Tracks.from_columns(self.camera_names, *columns, first_frame=self.first_frame)
        return replace(tracks, format=self.format, format_reason=self.format_reason, warnings=self.warnings)


def valid_boxes(boxes: Floats, confidence: Floats) -> NDArray[np.bool_]:
    """`[N]`: whether box and confidence are within ± `MAX_PIXELS`, and width and height at least `MIN_SIDE`."""
    within = np.abs(np.column_stack([boxes, confidence])) <= MAX_PIXELS  # NaN is not
    return np.asarray(within.all(axis=1) & (boxes[:, 2:] >= MIN_SIDE).all(axis=1))


def check_boxes(name: str, boxes: Floats, confidence: Floats) -> None:
    """Raise a `DataError` with the first row that is not valid; see `valid_boxes`."""
    valid = valid_boxes(boxes, confidence)
    if not valid.all():
        row = int(np.argmin(valid))
        raise DataError(
            f"{name}: row {row} has box {boxes[row].tolist()} and confidence {confidence[row]}. Values must be at most "
            f"{MAX_PIXELS:,.0f}, width and height above 0. Remove such rows."
        )


def check_frame_numbers(source: str, rows: str, found: Mapping[int, int], fix: str, total: int | None = None) -> None:
    """Raise an error if two sources seem to number their frames differently.

    Args:
        source: what is compared with the boxes, for the message.
        rows: what is counted, in the plural.
        found: number of rows that fit if the offset 0, −1 or 1 is added to their frame numbers.
        fix: how to state the right number; `{offset}` is replaced by the best offset.
        total: number of rows; if given, another offset is believed if all rows fit with it.

    Raises:
        DataError: no row fits with offset 0, twice as many fit with another offset, or all do and not with 0. The
            message shows all counts.

    Example:
        >>> check_frame_numbers("features.parquet", "features", {0: 90, -1: 2, 1: 4}, "")
        >>> check_frame_numbers("features.parquet", "features", {0: 2, -1: 0, 1: 90}, "Add {offset} to its frames.")
        Traceback (most recent call last):
        reid.core.errors.DataError: features.parquet and the tracks number their frames differently: of the features, \
2 fit at offset 0, 0 at offset -1, 90 at offset 1. Add 1 to its frames.
    """
    best = max(found, key=lambda offset: (found[offset], offset == 0))
    if found[0] and (best == 0 or (found[best] < 2 * found[0] and found[best] != total)):
        return
    counts = ", ".join(f"{count:,} {'fit ' * (offset == 0)}at offset {offset}" for offset, count in found.items())
    fix = fix.format(offset=best) if found[best] else "Pass files of the same recording."
    raise DataError(f"{source} and the tracks number their frames differently: of the {rows}, {counts}. {fix}")


def natural_sort_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts `cam2` before `cam10`.

    Example:
        >>> sorted(["cam10", "cam2"], key=natural_sort_key)
        ['cam2', 'cam10']
    """
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d+|\D+", name))


def last_number(name: str) -> int | None:
    """Return the last number in the name of a camera or image (`cam01` → 1, `s02_c042` → 42), or None."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def same_cameras(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Match camera names of two sources: {other: name} for each of `others` that has a counterpart in `names`.

    Equal names are the same camera. If no name is equal, cameras with the same number in their names are the same
    (`cam01`, `c001`, `1`), provided that no two cameras of one source share a number.

    Example:
        >>> same_cameras(["cam01", "cam02"], ["c002", "c003"])
        {'c002': 'cam02'}
        >>> same_cameras(["cam01", "door"], ["door", "c001"])
        {'door': 'door'}
    """
    names, others = list(names), list(others)
    found = {other: other for other in others if other in set(names)}
    if found:
        return found
    numbers = [last_number(name) for name in names]
    other_numbers = [last_number(other) for other in others]
    for side in (numbers, other_numbers):
        if None in side or len(set(side)) < len(side):
            return {}
    return {
        other: names[numbers.index(number)]
        for other, number in zip(others, other_numbers, strict=True)
        if number in numbers
    }
