"""Tracklets with the identities that `reid match` found."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reid.core.atomic import with_formula
from reid.core.errors import DataError
from reid.data.tracks import same_cameras
from reid.embedding.table import Embeddings
from reid.gallery.rows import UNKNOWN_TIME, Sightings, camera_names

NAME = "identities.csv"
_INTEGERS = ("identity", "track", "first_frame", "last_frame", "frames")

Integers = NDArray[np.int64]


def read_matched(folder: Path, table: Embeddings, epoch: int | None) -> tuple[Sightings, Integers]:
    """Return the tracklets of identities.csv in the folder of a match, and the tracklet of each crop.

    Args:
        folder: that `reid match` wrote.
        table: N crops with camids, tracks and frames.
        epoch: milliseconds since 1970 of second 0; None if unknown.

    Returns:
        The tracklets, and `[N]` the tracklet of each crop, -1 for a crop of none.

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
    return _assign(columns, start, end, table, epoch)


def _assign(
    columns: dict[str, Any], start: NDArray[np.float64], end: NDArray[np.float64], table: Embeddings, epoch: int | None
) -> tuple[Sightings, Integers]:
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
    return Sightings(*known, columns["frames"], columns["identity"]), owner
