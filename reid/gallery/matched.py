"""Tracklets with the identities that `reid match` found."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from reid.core.arrays import find_columns
from reid.core.atomic import with_formula
from reid.core.errors import DataError
from reid.core.reading import read_json
from reid.data.tracks import same_cameras
from reid.embedding.table import Embeddings
from reid.gallery.rows import UNKNOWN_TIME, Places, Sightings, camera_names

NAME = "identities.csv"
_INTEGERS = ("identity", "track", "first_frame", "last_frame", "frames")

Integers = NDArray[np.int64]


def read_matched(folder: Path, table: Embeddings, epoch: int | None) -> tuple[Sightings, Integers, Places]:
    """Return the tracklets of identities.csv in the folder of a match, and the tracklet and place of each crop.

    Times are interpolated between the first and the last frame of a tracklet. Boxes are those of aicity.txt, if that
    file and match.json are in the folder.

    Args:
        folder: that `reid match` wrote.
        table: N crops with camids, tracks and frames.
        epoch: milliseconds since 1970 of second 0; None if unknown.

    Returns:
        The tracklets, `[N]` the tracklet of each crop, -1 for a crop of none, and when and where each crop was cut.

    Raises:
        DataError: a missing file, column or value; or embeddings without columns.
    """
    path = folder / NAME
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        columns: dict[str, Any] = {name: np.array([int(line[name]) for line in lines], np.int64) for name in _INTEGERS}
        names = [with_formula(line["camera"]) for line in lines]
        columns["camera"] = np.array(names, object)
        start, end = (np.array([float(line[name]) for line in lines]) for name in ("first_time", "last_time"))
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}. Pass the folder that `reid match` wrote.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a list of identities ({error}). Match again with `reid match`.") from error
    sightings, owner, time = _assign(columns, start, end, table, epoch)
    return sightings, owner, Places(time, _read_boxes(folder, sightings, owner, table))


def _assign(
    columns: dict[str, Any], start: NDArray[np.float64], end: NDArray[np.float64], table: Embeddings, epoch: int | None
) -> tuple[Sightings, Integers, Integers]:
    missing = [name for name in ("camids", "tracks", "frames") if getattr(table, name) is None]
    if missing or table.tracks is None or table.frames is None:
        raise DataError(
            f"The embeddings have no column {', '.join(missing)}, so the tracklets of the match cannot be assigned. "
            "Pass the embeddings that were matched."
        )
    names = camera_names(table)
    same = same_cameras(sorted(set(columns["camera"])), {name for name in names if name is not None})
    order = np.lexsort((columns["first_frame"], columns["track"], columns["camera"].astype(str)))
    columns = {name: values[order] for name, values in columns.items()}
    keys = list(zip(columns["camera"], columns["track"].tolist(), strict=True))
    begins: dict[tuple[str, int], list[int]] = {}
    for row, key in enumerate(keys):
        begins.setdefault(key, []).append(row)
    part = np.array([str(row - begins[key][0]) for row, key in enumerate(keys)], object)
    owner = np.full(len(table), -1, np.int64)
    first = columns["first_frame"]
    for row, (name, track, frame) in enumerate(zip(names, table.tracks.tolist(), table.frames.tolist(), strict=True)):
        parts = begins.get((same.get(name, name), track), [])
        inside = [candidate for candidate in parts if first[candidate] <= frame <= columns["last_frame"][candidate]]
        owner[row] = inside[0] if inside else -1
    if len(owner) and (owner < 0).all():
        raise DataError("No embedding is of a matched tracklet. Pass the embeddings that were matched.")
    begin, finish = (
        np.full(len(order), UNKNOWN_TIME) if epoch is None else epoch + np.round(1000 * seconds[order]).astype(np.int64)
        for seconds in (start, end)
    )
    known = columns["camera"], columns["track"], part, begin, finish
    length = np.maximum(columns["last_frame"] - first, 1)[owner]
    part_of = (table.frames - first[owner]) / length
    time = begin[owner] + np.round(part_of * (finish - begin)[owner]).astype(np.int64)
    time[(owner < 0) | (begin[owner] == UNKNOWN_TIME)] = UNKNOWN_TIME
    return Sightings(*known, columns["frames"], columns["identity"]), owner, time


def _read_boxes(folder: Path, sightings: Sightings, owner: Integers, table: Embeddings) -> NDArray[np.float64]:
    """Return the box `[N, 4]` of each crop: that of its camera, identity and frame in aicity.txt; NaN without one."""
    boxes = np.full((len(owner), 4), np.nan)
    path, match = folder / "aicity.txt", folder / "match.json"
    if not (path.is_file() and match.is_file() and path.stat().st_size) or table.frames is None:
        return boxes
    names = ["camera", "identity", "frame", "x", "y", "w", "h", "unused 0", "unused 1"]
    options = {
        "parse_options": pa_csv.ParseOptions(delimiter=" "),
        "read_options": pa_csv.ReadOptions(column_names=names),
    }
    try:
        numbers = dict(read_json(match)["camera_numbers_in_aicity"])
        stored = pa_csv.read_csv(path, **options)
        rows = [stored[name].to_numpy().astype(np.int64) for name in names[:3]]
        sides = np.stack([stored[name].to_numpy().astype(np.float64) for name in "xywh"], axis=1)
        camera = np.array([int(numbers[name]) for name in sightings.camera], np.int64)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} does not fit the match ({error}). Match again with `reid match`.") from error
    used = np.flatnonzero(owner >= 0)
    wanted = [camera[owner[used]], sightings.identity[owner[used]], table.frames[used]]
    found = find_columns(rows, wanted)
    boxes[used[found >= 0]] = sides[found[found >= 0]]
    return boxes
