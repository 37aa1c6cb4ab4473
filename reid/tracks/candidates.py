"""Who may be whom: camera bias out of the features, the nearest of each tracklet, and their distances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from reid.evaluation.features import MEMORY_LIMIT, rows_per_block
from reid.tracks.tracklets import unit

PRIOR_TRACKLETS = 10.0
"""A camera's mean counts as much as this many tracklets' worth of the mean over all cameras, for few are no mean."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs of tracklets worth looking at, each once, `first < second`, sorted.

    Attributes:
        first, second: `[L]` int64 rows.
        distance: `[L]` float32.
        far: the distance that stands for every pair that is not here.
        tracklets: T.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    distance: NDArray[np.float32]
    far: float
    tracklets: int

    def __len__(self) -> int:
        """L."""
        return len(self.first)


def remove_camera_bias(
    features: NDArray[np.float32], camera: NDArray[np.int64], strength: float = 0.03
) -> NDArray[np.float32]:
    """`norm((XcᵀXc / n_c + λ I)⁻¹ (f − μ_c))` for each camera c, with X_c its features less μ_c.

    This is the formula of the AI City 2021 winners (Liu et al.) with their `XᵀX + n λ I` divided by n. μ_c is the
    camera's mean, drawn towards the mean over all cameras as if that had been seen `PRIOR_TRACKLETS` times more, and
    that one towards 0 likewise, so that a camera with one tracklet keeps it.

    Args:
        features: `[T, D]` of length 1, none of them zero.
        camera: `[T]`.
        strength: λ.
    """
    result = np.empty_like(features)
    total = len(features)
    middle = features.sum(axis=0, dtype=np.float64) / (total + PRIOR_TRACKLETS)
    for c in np.unique(camera):
        rows = camera == c
        own = features[rows].astype(np.float64)
        n = len(own)
        mean = (own.sum(axis=0) + PRIOR_TRACKLETS * middle) / (n + PRIOR_TRACKLETS)
        centred = own - mean
        spread = centred.T @ centred / n
        spread[np.diag_indices_from(spread)] += strength
        result[rows] = np.linalg.solve(spread, centred.T).T
    return unit(result)


def nearest(
    features: NDArray[np.float32],
    others: NDArray[np.float32],
    k: int,
    *,
    memory_limit: int = MEMORY_LIMIT,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k of `others` with the largest inner product with each feature: rows `[T, k]`, products; best first."""
    k = min(k, len(others))
    columns = torch.from_numpy(others).T
    index = np.empty((len(features), k), np.int64)
    product = np.empty((len(features), k), np.float32)
    step = rows_per_block(len(others), memory_limit)
    for start in range(0, len(features), step):
        block = torch.from_numpy(features[start : start + step]) @ columns
        values, rows = torch.topk(block, k, dim=1)
        index[start : start + step] = rows.numpy()
        product[start : start + step] = values.numpy()
    return index, product


def candidate_pairs(
    features: NDArray[np.float32], k: int, *, memory_limit: int = MEMORY_LIMIT
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of which one is among the k nearest others of the other: rows `first < second`, sorted, each once."""
    n = len(features)
    index, _ = nearest(features, features, k + 1, memory_limit=memory_limit)
    rows = np.repeat(np.arange(n), index.shape[1])
    other = index.reshape(-1)
    keep = rows != other
    code = np.unique(np.minimum(rows, other)[keep] * n + np.maximum(rows, other)[keep])
    return code // n, code % n


def cosine_of_pairs(
    features: NDArray[np.float32], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float32]:
    """`1 − f_i · f_j` of each pair, in blocks."""
    distance = np.empty(len(first), np.float32)
    step = max(1, MEMORY_LIMIT // (8 * features.shape[1]))
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        distance[part] = 1 - np.einsum("nd,nd->n", features[first[part]], features[second[part]])
    return distance
