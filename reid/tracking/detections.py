"""`Detections`: the boxes that a detector found in one video, as columns; read and written as Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import box_array, float_column, integer_column
from reid.core.atomic import atomic_file
from reid.core.errors import DataError, first_line
from reid.core.reading import parse_json
from reid.data.tracks import MAX_FRAME, Floats, Integers, check_boxes

COLUMNS = ("frame", "time", "x", "y", "w", "h", "confidence")
LEAST_CONFIDENCE = 0.02
"""Boxes of lower confidence are not kept."""

_METADATA = b"reid"


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of one video, and the frames that the detector has seen.

    Attributes:
        frames: int64 `[F]`, ascending: the frames that were analysed, also those without boxes.
        times: float64 `[F]`, seconds since the first frame of the video, rising; NaN if unknown.
        row: int64 `[N]`, ascending: the index into `frames` of each box.
        boxes: float64 `[N, 4]`: x, y, width, height in pixels; x, y is the upper left corner.
        confidence: float64 `[N]`.
        meta: plain values: detector, video, size and what else the writer knows.

    Example:
        >>> found = Detections.from_columns([1, 2, 3], [0.0, 0.1, 0.2], [1, 3], [[5, 5, 20, 60]] * 2, [0.9, 0.8])
        >>> found.frames.tolist(), found.row.tolist()
        ([1, 2, 3], [0, 2])
    """

    frames: Integers
    times: Floats
    row: Integers
    boxes: Floats
    confidence: Floats
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_columns(
        cls,
        frames: ArrayLike,
        times: ArrayLike | None,
        frame: ArrayLike,
        boxes: ArrayLike,
        confidence: ArrayLike | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Detections:
        """Check and sort the columns; `frame [N]` is the frame of each box, one of `frames`.

        Raises:
            DataError: columns of different length or type, frames or times that do not rise, a box of another frame,
                or without area, or with values that are not finite.
        """
        seen = integer_column("Detections.frames", frames, minimum=0)
        clock = np.full(len(seen), np.nan) if times is None else float_column("Detections.times", times, len(seen))
        box = box_array("Detections.boxes", boxes)
        number = integer_column("Detections.frame", frame, len(box), minimum=0)
        score = float_column("Detections.confidence", np.ones(len(box)) if confidence is None else confidence, len(box))
        if len(seen) and (seen.max() > MAX_FRAME or (np.diff(seen) <= 0).any()):
            raise DataError(
                f"Detections.frames must rise and be at most {MAX_FRAME}. Sort them and remove repetitions."
            )
        if (np.diff(clock) <= 0).any():
            raise DataError("Detections.times must rise from frame to frame. Correct the time stamps, or remove them.")
        check_boxes("Detections", box, score)
        place = np.searchsorted(seen, number)
        known = place < len(seen)
        known[known] = seen[place[known]] == number[known]
        if not known.all():
            raise DataError(f"Detections: frame {number[np.argmin(known)]} has a box, but is not one of the frames.")
        order = np.lexsort((-score, place))
        return cls(seen, clock, place[order], box[order], score[order], dict(meta or {}))

    def __len__(self) -> int:
        """The number of boxes."""
        return len(self.row)

    def save(self, path: str | Path) -> None:
        """Write Parquet: a row for each box, and a row without a box for each frame that has none; `meta` is kept."""
        empty = np.setdiff1d(np.arange(len(self.frames)), self.row)
        place = np.concatenate([self.row, empty])
        order = np.argsort(place, kind="stable")
        missing = np.concatenate([np.zeros(len(self.row), bool), np.ones(len(empty), bool)])[order]
        values = np.concatenate([np.column_stack([self.boxes, self.confidence]), np.zeros((len(empty), 5))])[order]
        table = {
            "frame": pa.array(self.frames[place[order]]),
            "time": pa.array(self.times[place[order]], mask=np.isnan(self.times[place[order]])),
        }
        for column, name in enumerate(COLUMNS[2:]):
            table[name] = pa.array(values[:, column].astype(np.float32), mask=missing)
        note = {_METADATA: json.dumps(self.meta).encode()}
        with atomic_file(path) as temporary:
            pq.write_table(pa.table(table).replace_schema_metadata(note), temporary)

    @classmethod
    def load(cls, path: str | Path) -> Detections:
        """Read Parquet with the columns frame, x, y, w, h and optionally confidence and time, in any order of rows.

        A row without x is a frame without boxes.

        Raises:
            DataError: not such a file.
        """
        path = Path(path)
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as Parquet: {first_line(error)}. Restore it.") from error
        lacking = [name for name in COLUMNS if name not in table.column_names and name not in ("time", "confidence")]
        if lacking:
            raise DataError(f"{path} lacks the columns {', '.join(lacking)}. Detections have frame, x, y, w, h.")
        note = (table.schema.metadata or {}).get(_METADATA)
        meta = {} if note is None else parse_json(note, f"The metadata of {path}")
        columns = {name: _numbers(table, name, path) for name in COLUMNS if name in table.column_names}
        return _from_rows(path, columns, meta if isinstance(meta, dict) else {})


def read_detections(folder: str | Path, camera: str) -> Detections:
    """Read the detections of one camera from a folder, of any detector.

    The file is `CAMERA.parquet` (see `Detections.load`), `CAMERA.txt` or `CAMERA/det/det.txt` (MOTChallenge:
    frame,id,x,y,w,h,confidence,…; the id is ignored).

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    folder = Path(folder)
    places = [folder / f"{camera}.parquet", folder / f"{camera}.txt", folder / camera / "det" / "det.txt"]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise DataError(
            f"There are no detections of camera {camera!r} in {folder}. Name them {camera}.parquet or {camera}.txt."
        )
    if path.suffix == ".parquet":
        return Detections.load(path)
    if path.stat().st_size == 0:
        return Detections.from_columns([], None, [], np.zeros((0, 4)))
    names = ["frame", "id", *COLUMNS[2:]]
    try:
        table = pa_csv.read_csv(path, pa_csv.ReadOptions(autogenerate_column_names=True))
        table = table.rename_columns([*names, *map(str, range(table.num_columns))][: table.num_columns])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}. Use MOTChallenge text.") from error
    if table.num_columns < 6:
        raise DataError(f"{path} has {table.num_columns} columns. MOTChallenge has frame,id,x,y,w,h,confidence.")
    return _from_rows(path, {name: _numbers(table, name, path) for name in names if name in table.column_names}, {})


def _numbers(table: pa.Table, name: str, path: Path) -> Floats:
    try:
        return np.asarray(table[name].cast(pa.float64()).to_numpy(), np.float64)
    except pa.ArrowException as error:
        raise DataError(f"{path}: the column {name} contains something other than numbers. Correct it.") from error


def _from_rows(path: Path, columns: Mapping[str, Floats], meta: Mapping[str, Any]) -> Detections:
    frame = columns["frame"]
    whole = np.isfinite(frame) & (np.abs(frame) <= MAX_FRAME)
    whole[whole] = frame[whole] == np.round(frame[whole])
    if not whole.all():
        row = int(np.argmin(whole))
        raise DataError(f"{path}: row {row} has frame {frame[row]}. Frames are whole numbers from 0.")
    frames, first = np.unique(frame.astype(np.int64), return_index=True)
    times = columns["time"][first] if "time" in columns else None
    has_box = ~np.isnan(columns["x"])
    boxes = np.column_stack([columns[name][has_box] for name in ("x", "y", "w", "h")])
    confidence: NDArray[Any] | None = columns["confidence"][has_box] if "confidence" in columns else None
    try:
        return Detections.from_columns(frames, times, frame[has_box].astype(np.int64), boxes, confidence, meta)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
