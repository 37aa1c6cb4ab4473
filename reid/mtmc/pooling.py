"""Pool crop features into one feature per tracklet, and select prototype crops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import unit_rows
from reid.data.tracks import Floats, Integers

Features = NDArray[np.float32]
Mask = NDArray[np.bool_]

MIN_WEIGHT = 0.05
"""Smallest weight of a crop."""

MAX_PROTOTYPES = 4
"""Largest number of crops that represent a tracklet."""

_CROPS_PER_BLOCK = 2048


@dataclass(frozen=True, eq=False)
class PooledFeatures:
    """`features [T, D]`, `has_feature [T]`, `quality [T]`, and which crops are `usable [N]`."""

    features: Features
    has_feature: Mask
    quality: Floats
    usable: Mask


def pool_features(
    features: Features, tracklet: Integers, tracklets: int, weights: Floats | None = None
) -> PooledFeatures:
    """Pool the crops of each tracklet: `norm(Σ wᵢ norm(fᵢ))`. Crops with NaN, infinity or only zeros are left out.

    Args:
        features: `[N, D]` of crops.
        tracklet: `[N]` tracklet of each crop.
        tracklets: T.
        weights: `[N]` 0..1; 1 if not given.
    """
    weight = np.ones(len(tracklet)) if weights is None else np.clip(np.asarray(weights, np.float64), MIN_WEIGHT, 1)
    usable = np.zeros(len(tracklet), bool)
    pooled = np.zeros((tracklets, features.shape[1]), np.float32)
    has_feature, quality = np.zeros(tracklets, bool), np.zeros(tracklets)
    for rows in _blocks_of_tracklets(np.argsort(tracklet, kind="stable"), tracklet):
        crops = features[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(crops, axis=1)
        good = np.isfinite(lengths) & (lengths > 0)
        usable[rows] = good
        if not good.all():
            rows, crops, lengths = rows[good], crops[good], lengths[good]
        if len(rows):
            sums, first = crops * (weight[rows] / lengths).astype(np.float32)[:, None], _first_of_groups(tracklet[rows])
            if len(first) < len(rows):
                sums = np.add.reduceat(sums, first, axis=0)
            owners = tracklet[rows[first]]
            size = np.linalg.norm(sums, axis=1)
            has_feature[owners] = size > 0
            pooled[owners] = sums / np.where(size == 0, 1, size)[:, None]
            quality[owners] = np.add.reduceat(weight[rows], first) / np.diff(np.append(first, len(rows)))
    return PooledFeatures(pooled, has_feature, quality, usable)


def _first_of_groups(sorted_values: Integers) -> Integers:
    """Return the position of the first of each run of equal values."""
    return np.flatnonzero(np.append(True, np.diff(sorted_values) != 0))


def _blocks_of_tracklets(rows: Integers, tracklet: Integers) -> list[Integers]:
    """Divide rows that are sorted by tracklet into blocks of whole tracklets, small enough for caches."""
    if len(rows) == 0:
        return []
    first = _first_of_groups(tracklet[rows])
    borders = first[np.flatnonzero(np.append(True, np.diff(first // _CROPS_PER_BLOCK) != 0))]
    return np.split(rows, borders[1:])


def select_prototypes(
    features: Features, tracklet: Integers, pooled: PooledFeatures, most: int = MAX_PROTOTYPES
) -> Integers:
    """Select up to `most` different crops of each tracklet; return their rows, tracklet by tracklet.

    First the crop closest to the pooled feature, then repeatedly the crop that is farthest (by cosine) from its closest
    selected crop. Ties (within 1e-6): the earlier row. Crops equal to a selected one are skipped, so a tracklet of
    equal crops has one prototype. O(N · most).

    Args:
        features: `[N, D]` of crops.
        tracklet: `[N]` tracklet of each crop.
        pooled: Pooled features of the same crops.
        most: Largest number per tracklet, at least 1.
    """
    rows = np.flatnonzero(pooled.usable)
    rows = rows[np.argsort(tracklet[rows], kind="stable")]
    blocks = [
        _block_prototypes(features, tracklet, block, pooled.features, most)
        for block in _blocks_of_tracklets(rows, tracklet)
    ]
    return np.concatenate([rows[:0], *blocks])


def _block_prototypes(features: Features, tracklet: Integers, rows: Integers, pooled: Features, most: int) -> Integers:
    """As `select_prototypes`, for rows that are sorted by tracklet."""
    owner = tracklet[rows]
    first = _first_of_groups(owner)
    if len(first) == len(rows):
        return rows
    crops = unit_rows(features[rows])
    group = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(rows))))
    score = np.einsum("nd,nd->n", crops, pooled[owner]).round(6)
    distance = np.full(len(rows), np.inf)
    unfinished = np.ones(len(first), bool)
    selected = []
    for _ in range(most):
        hits = np.flatnonzero(score == np.maximum.reduceat(score, first)[group])
        pick = hits[np.unique(group[hits], return_index=True)[1]]
        selected.append(pick[unfinished])
        distance = np.minimum(distance, 1 - np.einsum("nd,nd->n", crops, crops[pick][group]))
        score = distance.round(6)
        unfinished &= np.maximum.reduceat(score, first) > 1e-6
        if not unfinished.any():
            break
    picked = np.concatenate(selected)
    return rows[picked[np.argsort(group[picked], kind="stable")]]
