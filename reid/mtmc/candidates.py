"""Candidate pairs of tracklets: camera whitening, nearest neighbours and distances."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from reid.core.arrays import UNKNOWN, unit_rows
from reid.core.errors import DataError
from reid.data.tracks import Floats, Integers
from reid.evaluation.clustering import Candidates
from reid.evaluation.features import one_thread
from reid.evaluation.neighbours import Neighbours, workers
from reid.evaluation.rerank import Reranking, rerank_within
from reid.mtmc.pooling import Features

PRIOR_TRACKLETS = 10.0
"""Weight of the mean over all cameras in each camera's mean, as a number of tracklets."""

MAX_PAIRS_PER_TRACKLET = 60
"""Re-ranked pairs kept for each tracklet."""

MAX_JACCARD = 0.95
"""Re-ranked pairs with a larger Jaccard distance are dropped; they count as `far`."""


@dataclass(eq=False)
class CameraWhitening:
    """Remove each camera's bias from features: `norm((C_c + λ v I)^(−½) (f − μ_c))`, fitted without labels.

    μ_c is the mean of camera c's features, C_c their covariance and v its mean eigenvalue, so that λ means the same for
    every model. The AI City 2021 winners (Liu et al.) use `(XᵀX + n · 3 I)⁻¹ (f − μ)`: the power −1 and a λ for
    features of their scale. On Market-1501 the power −½ is better and less sensitive to λ.

    μ_c is shrunk towards the mean over all cameras with the weight of `PRIOR_TRACKLETS` tracklets, and that mean
    towards 0 in the same way, so that a camera with one tracklet keeps its feature. C_c is shrunk towards the pooled
    within-camera covariance. An unseen or unknown camera uses the common mean and covariance.

    Args:
        strength: λ.

    Attributes:
        camera: `[C]` numbers of the cameras seen in `fit`; the last is −1 and represents all others.
        means: `[C, D]`.
        maps: `[C, D, D]` float32, symmetric.

    Example:
        >>> import numpy as np
        >>> features = np.eye(6, dtype=np.float32)
        >>> camera = np.array([0, 0, 0, 1, 1, 1])
        >>> CameraWhitening().fit(features, camera).transform(features, camera).shape
        (6, 6)
    """

    strength: float = 1.0
    camera: Integers = field(init=False)
    means: Features = field(init=False)
    maps: Features = field(init=False)

    def fit(self, features: Features, camera: Integers) -> CameraWhitening:
        """Estimate the mean and covariance of each camera and return self.

        Args:
            features: `[T, D]`, L2-normalised, without zero rows.
            camera: `[T]`; -1 means unknown.

        Raises:
            DataError: no camera is known.
        """
        seen = np.setdiff1d(camera, [UNKNOWN])
        if not len(seen):
            raise DataError("Camera whitening needs known cameras, and all are -1. Add cameras, or turn it off.")
        x = torch.from_numpy(features)
        common_mean = x.sum(dim=0) / (len(x) + PRIOR_TRACKLETS)
        groups = [torch.from_numpy(np.flatnonzero(camera == c)) for c in seen]
        means = [
            (x[rows].sum(dim=0) + PRIOR_TRACKLETS * common_mean) / (len(rows) + PRIOR_TRACKLETS) for rows in groups
        ]
        maps = torch.empty(len(seen) + 1, x.shape[1], x.shape[1])
        common = maps[-1]

        def scatter(number: int) -> None:
            centred_rows = x[groups[number]] - means[number]
            torch.mm(centred_rows.T, centred_rows, out=maps[number])

        def root(number: int) -> None:
            count = len(groups[number])
            shrunk = (maps[number] + PRIOR_TRACKLETS * common) / (count + PRIOR_TRACKLETS)
            maps[number] = _inverse_root(shrunk, self.strength)

        with workers() as pool:
            list(pool.map(scatter, range(len(seen))))
            torch.sum(maps[:-1], dim=0, out=common).div_(sum(map(len, groups)))
            list(pool.map(root, range(len(seen))))
            maps[-1] = pool.submit(_inverse_root, common, self.strength).result()
        self.camera, self.maps = np.append(seen, -1), maps.numpy()
        self.means = torch.stack([*means, common_mean]).numpy()
        return self

    def transform(self, features: Features, camera: Integers) -> Features:
        """Return whitened features `[T, D]`, L2-normalised, for tracklets of these cameras `[T]`."""
        place = np.searchsorted(self.camera[:-1], camera)
        place = np.where(self.camera[np.minimum(place, len(self.camera) - 2)] == camera, place, len(self.camera) - 1)
        result = np.empty_like(features)
        for number in np.unique(place):
            rows = place == number
            centred_rows = torch.from_numpy(features[rows] - self.means[number])
            result[rows] = unit_rows((centred_rows @ torch.from_numpy(self.maps[number])).numpy())
        return result


def _inverse_root(covariance: Tensor, strength: float) -> Tensor:
    """`(C + λ v I)^(−½)`, float32."""
    ridge = strength * max(float(covariance.diagonal().mean()), 1e-12)
    matrix = covariance + ridge * torch.eye(len(covariance))
    try:
        values, vectors = torch.linalg.eigh(matrix)
        converged = bool(torch.isfinite(vectors).all())
    except torch.linalg.LinAlgError:
        converged = False
    if not converged:
        # With few features of many dimensions most eigenvalues are equal; float32 may then fail or return NaN.
        values, vectors = (part.float() for part in torch.linalg.eigh(matrix.double()))
    return (vectors * values.clamp(min=ridge).rsqrt()) @ vectors.T


def reranked_candidates(features: Features, neighbours: Neighbours, k1: int, lambda_value: float = 0.3) -> Candidates:
    """Pairs that share a k-reciprocal neighbour, with distance `(1 − λ) Jaccard + λ cosine`.

    k2 is 0.4 k1, rounded. A pair is kept if it is among the `MAX_PAIRS_PER_TRACKLET` nearest pairs of either tracklet
    and its Jaccard distance is at most `MAX_JACCARD`. `far` is 1: the Jaccard distance of a pair that shares nothing,
    and the cosine distance of random features.
    """
    n = len(features)
    k1 = min(k1, n - 1)
    k2 = max(1, round(0.4 * k1))
    with one_thread():
        settings = Reranking(k1=k1, k2=k2, lambda_value=0.0, metric="cosine")
        pairs = rerank_within(features, settings=settings, neighbours=neighbours, largest_jaccard=MAX_JACCARD)
    jaccard, cosine = pairs.distances, pairs.original
    mixed = ((1 - lambda_value) * jaccard.data + lambda_value * cosine.data).astype(np.float32)
    rows = np.repeat(np.arange(n, dtype=np.int32), np.diff(jaccard.indptr))
    columns = jaccard.indices
    order = np.lexsort((columns, mixed, rows))
    place = np.arange(len(rows)) - jaccard.indptr[:-1].astype(np.int64)[rows]
    kept = order[place < MAX_PAIRS_PER_TRACKLET]
    i, j = rows[kept].astype(np.int64), columns[kept].astype(np.int64)
    code, at = np.unique(np.minimum(i, j) * n + np.maximum(i, j), return_index=True)
    return Candidates(code // n, code % n, mixed[kept[at]], 1.0, n)


def pair_distances(candidates: Candidates, first: Integers, second: Integers) -> Floats:
    """Distance of each pair of rows; `far` for pairs that are not candidates."""
    if len(candidates) == 0:
        return np.full(len(first), candidates.far)
    n = candidates.tracklets
    known = candidates.first * n + candidates.second
    code = np.minimum(first, second) * n + np.maximum(first, second)
    place = np.minimum(np.searchsorted(known, code), len(known) - 1)
    return np.where(known[place] == code, candidates.distance[place].astype(np.float64), candidates.far)
