"""Who may be whom: camera bias out of the features, the nearest of each tracklet, and their distances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.evaluation.features import MEMORY_LIMIT, one_thread
from reid.evaluation.neighbours import Neighbours, centred, nearest_items, workers
from reid.evaluation.rerank import rerank_within
from reid.mtmc.tracklets import unit

PRIOR_TRACKLETS = 10.0
"""A camera's mean counts as much as this many tracklets' worth of the mean over all cameras, for few are no mean."""

KEPT = 60
"""Re-ranked pairs kept of each tracklet."""

LARGEST_JACCARD = 0.95
"""Re-ranked pairs of a larger Jaccard distance are left out: `far`, 1, stands for them."""


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


@dataclass(frozen=True, eq=False)
class CameraWhitening:
    """What a camera does to features, learned from tracklets without labels: `norm((C_c + λ v I)^(−½) (f − μ_c))`.

    μ_c is the mean of camera c's features, C_c their covariance and v the mean of its eigenvalues, so that λ means the
    same for every model. The AI City 2021 winners (Liu et al.) use `(XᵀX + n · 3 I)⁻¹ (f − μ)`, the power −1 and a λ
    for features of their scale; on Market-1501 the power −½ was better and hardly minded the choice of λ.
    μ_c is drawn towards the mean over all cameras as if that had been seen `PRIOR_TRACKLETS` times more, and that one
    towards 0 likewise, so that a camera with one tracklet keeps it; C_c is drawn likewise towards the covariance
    within all cameras together. A camera that was not seen gets the common mean and covariance.

    Attributes:
        camera: `[C]` numbers of the cameras seen; the last is −1 and stands for all others.
        means: `[C, D]`.
        maps: `[C, D, D]` float32, symmetric.
    """

    camera: NDArray[np.int64]
    means: NDArray[np.float32]
    maps: NDArray[np.float32]

    @classmethod
    def fit(cls, features: NDArray[np.float32], camera: NDArray[np.int64], strength: float = 1.0) -> CameraWhitening:
        """Learn from tracklets.

        Args:
            features: `[T, D]` of length 1, none of them zero.
            camera: `[T]`.
            strength: λ.
        """
        seen = np.unique(camera)
        x = torch.from_numpy(features)
        middle = x.sum(dim=0) / (len(x) + PRIOR_TRACKLETS)
        groups = [torch.from_numpy(np.flatnonzero(camera == c)) for c in seen]
        means = [(x[rows].sum(dim=0) + PRIOR_TRACKLETS * middle) / (len(rows) + PRIOR_TRACKLETS) for rows in groups]
        maps = torch.empty(len(seen) + 1, x.shape[1], x.shape[1])
        common = maps[-1]

        def scatter(number: int) -> None:
            own = x[groups[number]] - means[number]
            torch.mm(own.T, own, out=maps[number])

        def root(number: int) -> None:
            count = len(groups[number])
            maps[number] = _root((maps[number] + PRIOR_TRACKLETS * common) / (count + PRIOR_TRACKLETS), strength)

        with workers() as pool:
            list(pool.map(scatter, range(len(seen))))
            torch.sum(maps[:-1], dim=0, out=common).div_(len(x))
            list(pool.map(root, range(len(seen))))
            maps[-1] = pool.submit(_root, common, strength).result()
        return cls(np.append(seen, -1), torch.stack([*means, middle]).numpy(), maps.numpy())

    def remove(self, features: NDArray[np.float32], camera: NDArray[np.int64]) -> NDArray[np.float32]:
        """The features `[T, D]` of tracklets of these cameras `[T]`, cleaned and of length 1."""
        place = np.searchsorted(self.camera[:-1], camera)
        place = np.where(self.camera[np.minimum(place, len(self.camera) - 2)] == camera, place, len(self.camera) - 1)
        result = np.empty_like(features)
        for number in np.unique(place):
            rows = place == number
            own = torch.from_numpy(features[rows] - self.means[number])
            result[rows] = (own @ torch.from_numpy(self.maps[number])).numpy()
        return unit(result)


def _root(spread: Tensor, strength: float) -> Tensor:
    """`(C + λ v I)^(−½)`, float32."""
    ridge = strength * max(float(spread.diagonal().mean()), 1e-12)
    matrix = spread + ridge * torch.eye(len(spread))
    try:
        values, vectors = torch.linalg.eigh(matrix)
        good = bool(torch.isfinite(vectors).all())
    except torch.linalg.LinAlgError:
        good = False
    if not good:
        # Where most eigenvalues are equal, as with few features of many numbers, float32 may come to no end, or to NaN.
        values, vectors = (part.float() for part in torch.linalg.eigh(matrix.double()))
    return (vectors * values.clamp(min=ridge).rsqrt()) @ vectors.T


def find_neighbours(features: NDArray[np.float32], k: int, *, memory_limit: int = MEMORY_LIMIT) -> Neighbours:
    """Each feature's k nearest others, exactly, itself first; equal ones in row order. Features of length 1."""
    return nearest_items(centred(torch.from_numpy(features.copy())), min(k, len(features) - 1), memory_limit)


def cosine_candidates(features: NDArray[np.float32], neighbours: Neighbours) -> Candidates:
    """Pairs of which one is among the nearest of the other, by cosine distance; `far` is 1, that of features at random
    once the means are taken out.
    """
    n = len(features)
    other = neighbours.nearest
    rows = np.repeat(np.arange(n), other.shape[1])
    other = other.reshape(-1)
    keep = rows != other
    code = np.unique(np.minimum(rows, other)[keep] * n + np.maximum(rows, other)[keep])
    first, second = code // n, code % n
    return Candidates(first, second, cosine_distances(features, first, second), 1.0, n)


def reranked_candidates(
    features: NDArray[np.float32], neighbours: Neighbours, k1: int, lambda_value: float = 0.3
) -> Candidates:
    """Pairs that share a k-reciprocal neighbour, by `(1 − λ) Jaccard + λ cosine distance`.

    k2 is 0.4 k1, rounded. Of each tracklet, pairs beyond its `KEPT` nearest are left out unless they are among those
    of the other one, and so are pairs that share little (`LARGEST_JACCARD`). `far` is 1: the Jaccard distance of a pair
    that shares nothing, and the cosine distance of features at random.
    """
    n = len(features)
    k1 = min(k1, n - 1)
    k2 = max(1, round(0.4 * k1))
    with one_thread():
        pairs = rerank_within(
            features, k1=k1, k2=k2, lambda_value=0.0, neighbours=neighbours, largest_jaccard=LARGEST_JACCARD
        )
    jaccard, cosine = pairs.distances, pairs.original
    mixed = ((1 - lambda_value) * jaccard.data + lambda_value * cosine.data).astype(np.float32)
    rows = np.repeat(np.arange(n, dtype=np.int32), np.diff(jaccard.indptr))
    columns = jaccard.indices
    order = np.lexsort((columns, mixed, rows))
    place = np.arange(len(rows)) - jaccard.indptr[:-1].astype(np.int64)[rows]
    kept = order[place < KEPT]
    i, j = rows[kept].astype(np.int64), columns[kept].astype(np.int64)
    code, at = np.unique(np.minimum(i, j) * n + np.maximum(i, j), return_index=True)
    return Candidates(code // n, code % n, mixed[kept[at]], 1.0, n)


def cosine_distances(
    features: NDArray[np.float32], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float32]:
    """`1 − f_i · f_j` of each pair, in blocks."""
    distance = np.empty(len(first), np.float32)
    step = max(1, 2**20 // (4 * features.shape[1]))
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        distance[part] = 1 - np.einsum("nd,nd->n", features[first[part]], features[second[part]])
    return distance


def pair_distances(candidates: Candidates, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
    """The distance of each pair of rows; `far` for those that are no candidates."""
    if len(candidates) == 0:
        return np.full(len(first), candidates.far)
    n = candidates.tracklets
    known = candidates.first * n + candidates.second
    code = np.minimum(first, second) * n + np.maximum(first, second)
    place = np.minimum(np.searchsorted(known, code), len(known) - 1)
    return np.where(known[place] == code, candidates.distance[place].astype(np.float64), candidates.far)
