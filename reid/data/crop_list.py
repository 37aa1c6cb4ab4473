"""Lists of crops: a CSV or Parquet file with one image, or one box in an image, per row."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import FARTHEST_PIXEL, UNKNOWN, pixels_of_boxes
from reid.core.errors import DataError
from reid.core.storage import is_remote, local_file
from reid.data.crops import Crops
from reid.data.layouts.table import SUFFIXES, TableRows

_BOX = ("x", "y", "width", "height")
COLUMNS = ("path", *_BOX, "pid", "camid", "track", "frame")


@dataclass(frozen=True, eq=False)
class CropList:
    """Images, or boxes in images, with their known properties.

    Attributes:
        crops: `paths` are absolute paths or addresses such as `s3://bucket/a.jpg`. `pids` are `UNKNOWN` if the list
            has none.
        pixels: `[N, 4]` int64 left, top, right, bottom of each box in whole pixels; None for whole images.
    """

    crops: Crops
    pixels: NDArray[np.int64] | None


def read_crop_list(source: str | Path) -> CropList:
    """Read a list of crops.

    Columns: `path`; `x`, `y`, `width`, `height` of a box in pixels (all or none); and `pid`, `camid`, `track` and
    `frame` as in the layout `table`. Relative paths start from the folder of the list.

    Args:
        source: a .csv or .parquet file, or its address in object storage.

    Raises:
        DataError: the file cannot be read; or naming file, row (the line of a CSV; counted from 1 in Parquet), column
            and value.
    """
    if not str(source).lower().endswith(SUFFIXES):
        raise DataError(f"{source} is not a list of crops: its name must end in {' or '.join(SUFFIXES)}.")
    with local_file(source) as file:
        if not file.is_file():
            raise DataError(f"There is no list of crops {source}.")
        try:
            rows = TableRows(file, COLUMNS, ("path",))
            crops, pixels = _read(rows, source)
        except DataError as error:
            raise DataError(str(error).replace(str(file), str(source))) from error
    return CropList(crops, pixels)


def _read(rows: TableRows, source: str | Path) -> tuple[Crops, NDArray[np.int64] | None]:
    folder = os.path.dirname(str(source) if is_remote(source) else os.path.abspath(source))
    texts = rows.texts("path", "every row needs an image").to_pylist()
    paths = [text if is_remote(text) else os.path.join(folder, text) for text in texts]
    columns: dict[str, Any] = {
        "pids": rows.numbers("pid", text=True),
        "camids": rows.numbers("camid", text=True),
        "tracks": rows.numbers("track", text=True),
        "frames": rows.numbers("frame", text=False),
    }
    pixels = None
    present = [name for name in _BOX if name in rows.table.column_names]
    if present and len(present) < len(_BOX):
        raise DataError(
            f"{source} has the columns {', '.join(present)}; a box needs {', '.join(_BOX)}. Add the others."
        )
    if present:
        boxes = np.stack([rows.reals(name) for name in _BOX], axis=1)
        small = np.flatnonzero((boxes[:, 2:] <= 0).any(axis=1) | (np.abs(boxes) > FARTHEST_PIXEL).any(axis=1))
        if len(small):
            raise DataError(
                f"{source}: box {boxes[small[0]].tolist()} of {texts[small[0]]} (crop {small[0] + 1} of the list) has "
                "no area or is too large. Correct x, y, width and height, in pixels."
            )
        pixels = pixels_of_boxes(boxes)
    return Crops.from_columns(paths, **columns, source=str(source), names=rows.names), pixels


def is_labelled(crops: Crops) -> bool:
    """Return whether any identity is known."""
    return bool((crops.pids != UNKNOWN).any())
