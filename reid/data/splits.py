"""Splits by identity: nobody is in two parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import UNKNOWN
from reid.core.errors import ReidError
from reid.data.crops import Crops


def hold_out(
    train: Crops, *, fraction: float = 0.1, seed: int = 0, cross_camera: bool = True
) -> tuple[Crops, Crops, Crops]:
    """Hold out a fraction of the identities to score on: `(train, query, gallery)`, disjoint, together all of `train`.

    Held out are `round(fraction × identities)`, at least one, drawn among those that can be scored: seen by at least
    two known cameras, or, where cameras are unknown or `cross_camera` is off, in at least two crops. Where fewer can be
    scored all of them are, but at least one identity stays in train. `query_and_gallery` divides them.
    The same crops, fraction and seed give the same split; rows keep their order.

    Raises:
        ReidError: `fraction` is not between 0 and 1, or no identity can be held out.
    """
    if not 0 < fraction < 1:
        raise ReidError(f"The fraction of identities to hold out is {fraction}; it must lie between 0 and 1.")
    rng = np.random.default_rng(seed)
    ids = np.unique(train.pids)
    by_camera = cross_camera and train.has_cameras
    able = _scorable(train, by_camera)
    n = min(max(1, round(fraction * len(ids))), len(able), len(ids) - 1)
    if n < 1:
        need = "two cameras" if by_camera else "two crops"
        raise ReidError(
            f"No identity can be held out to score on: {len(able)} of {len(ids)} are in at least {need}, and one "
            "identity must be left to train on. Bring more people, or score on another data set."
        )
    held = np.isin(train.pids, rng.choice(able, size=n, replace=False))
    query, gallery = query_and_gallery(train.take(held), rng, cross_camera=by_camera)
    return train.take(~held), query, gallery


def query_and_gallery(crops: Crops, rng: np.random.Generator, *, cross_camera: bool = True) -> tuple[Crops, Crops]:
    """Take as query one crop of each (identity, camera), or of each identity without cameras; the rest is the gallery.

    Every query has a right answer in the gallery, of another known camera where there are cameras: a crop drawn as
    query that would have none goes to the gallery. So an identity with one crop in each of two cameras gives one query,
    and an identity that cannot be scored at all goes to the gallery whole.

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
    """The query among the rows of one identity without cameras; none if its only crop."""
    return rng.choice(rows, size=1) if len(rows) > 1 else rows[:0]


def _draw_by_camera(rows: NDArray[np.int64], camids: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """The queries among the rows of one identity: one a known camera, if the gallery keeps one of another camera."""
    cameras, counts = np.unique(camids[camids != UNKNOWN], return_counts=True)
    if len(cameras) < 2:
        return rows[:0]
    queries = np.array([rng.choice(rows[camids == camera]) for camera in cameras], dtype=np.int64)
    left = counts - 1
    if not left.any():
        return rng.choice(queries, size=1)
    return queries[left.sum() > left]


def _scorable(crops: Crops, by_camera: bool) -> NDArray[np.int64]:
    """The identities that can be scored, sorted: those of two known cameras, or of two crops."""
    pids = crops.pids
    if by_camera:
        known = crops.camids != UNKNOWN
        pids = np.unique(np.stack([pids[known], crops.camids[known]]), axis=1)[0]
    ids, counts = np.unique(pids, return_counts=True)
    return ids[counts > 1]
