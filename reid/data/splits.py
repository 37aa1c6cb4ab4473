"""Split crops by identity: no identity is in two splits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import UNKNOWN
from reid.core.errors import DataError, check_number
from reid.data.crops import Crops


def hold_out(
    train: Crops, *, fraction: float = 0.1, seed: int = 0, cross_camera: bool = True
) -> tuple[Crops, Crops, Crops]:
    """Hold out a fraction of the identities to score on.

    `round(fraction × identities)` identities are held out, at least one. They are drawn from those that can be scored:
    with crops from at least two known cameras, or, if cameras are unknown or `cross_camera` is False, with at least two
    crops. If fewer can be scored, all of them are held out, but at least one identity stays in train.
    `query_and_gallery` divides them. The same crops, fraction and seed give the same split; rows keep their order.

    Returns:
        `(train, query, gallery)`: disjoint, together all of `train`.

    Raises:
        ConfigError: `fraction` is not between 0 and 1.
        DataError: no identity can be held out.

    Example:
        >>> crops = Crops.from_columns([f"{i}.jpg" for i in range(40)], [i // 4 for i in range(40)], [0, 0, 1, 1] * 10)
        >>> [len(part) for part in hold_out(crops, fraction=0.3)]
        [28, 6, 6]
    """
    check_number("The fraction of identities to hold out", fraction, 0, 1, above=True, below=True)
    rng = np.random.default_rng(seed)
    ids = np.unique(train.pids)
    by_camera = cross_camera and train.has_cameras
    candidates = _scorable(train, by_camera)
    n = min(max(1, round(fraction * len(ids))), len(candidates), len(ids) - 1)
    if n < 1:
        need = "two cameras" if by_camera else "two crops"
        raise DataError(
            f"No identity can be held out to score on: {len(candidates)} of {len(ids)} have {need} or more, and one "
            "identity must remain for training. Add more people, or score on another data set."
        )
    held = np.isin(train.pids, rng.choice(candidates, size=n, replace=False))
    query, gallery = query_and_gallery(train.take(held), rng, cross_camera=by_camera)
    return train.take(~held), query, gallery


def query_and_gallery(crops: Crops, rng: np.random.Generator, *, cross_camera: bool = True) -> tuple[Crops, Crops]:
    """Take one crop of each (identity, camera), or of each identity without cameras, as query; the rest is the gallery.

    Every query has a match in the gallery, from another known camera if there are cameras. A drawn crop that would have
    no match goes to the gallery. So an identity with one crop in each of two cameras gives one query, and all crops of
    an identity that cannot be scored go to the gallery.

    Returns:
        `(query, gallery)`, disjoint, together all of `crops`, each in the order of `crops`.
    """
    by_camera = cross_camera and crops.has_cameras
    drawn = np.zeros(len(crops), dtype=bool)
    order = np.argsort(crops.pids, kind="stable")
    ends = np.flatnonzero(np.diff(crops.pids[order])) + 1
    for rows in np.split(order, ends):
        drawn[_draw_by_camera(rows, crops.camids[rows], rng) if by_camera else _draw_one(rows, rng)] = True
    return crops.take(drawn), crops.take(~drawn)


def _draw_one(rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the query of one identity without cameras; none if it has only one crop."""
    return rng.choice(rows, size=1) if len(rows) > 1 else rows[:0]


def _draw_by_camera(rows: NDArray[np.int64], camids: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the queries of one identity: one per known camera, if the gallery keeps a crop of another camera."""
    cameras, counts = np.unique(camids[camids != UNKNOWN], return_counts=True)
    if len(cameras) < 2:
        return rows[:0]
    queries = np.array([rng.choice(rows[camids == camera]) for camera in cameras], dtype=np.int64)
    left = counts - 1
    if not left.any():
        return rng.choice(queries, size=1)
    return queries[left.sum() > left]


def _scorable(crops: Crops, by_camera: bool) -> NDArray[np.int64]:
    """Return the identities that can be scored, sorted: those with two known cameras, or two crops."""
    pids = crops.pids
    if by_camera:
        known = crops.camids != UNKNOWN
        pids = np.unique(np.stack([pids[known], crops.camids[known]]), axis=1)[0]
    ids, counts = np.unique(pids, return_counts=True)
    return ids[counts > 1]
