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

_CROPS_PER_BLOCK = 16_384


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
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(features, axis=1)
    usable = np.isfinite(lengths) & (lengths > 0)
    good = np.flatnonzero(usable)
    good = good[np.argsort(tracklet[good], kind="stable")]
    pooled = np.zeros((tracklets, features.shape[1]), np.float32)
    has_feature, quality = np.zeros(tracklets, bool), np.zeros(tracklets)
    if len(good):
        owners, first = np.unique(tracklet[good], return_index=True)
        scaled = features[good] * (weight[good] / lengths[good]).astype(np.float32)[:, None]
        sums = np.add.reduceat(scaled, first, axis=0)
        pooled[owners] = unit_rows(sums)
        has_feature[owners] = np.linalg.norm(sums, axis=1) > 0
        quality[owners] = np.add.reduceat(weight[good], first) / np.diff(np.append(first, len(good)))
    return PooledFeatures(pooled, has_feature, quality, usable)


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
    if len(rows) == 0:
        return rows
    first = np.flatnonzero(np.append(True, np.diff(tracklet[rows]) != 0))
    borders = first[np.flatnonzero(np.append(True, np.diff(first // _CROPS_PER_BLOCK) != 0))]
    blocks = np.split(rows, borders[1:])
    return np.concatenate([_block_prototypes(features, tracklet, block, pooled.features, most) for block in blocks])


def _block_prototypes(features: Features, tracklet: Integers, rows: Integers, pooled: Features, most: int) -> Integers:
    """As `select_prototypes`, for rows that are sorted by tracklet."""
    crops, owner = unit_rows(features[rows]), tracklet[rows]
    first = np.flatnonzero(np.append(True, np.diff(owner) != 0))
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
