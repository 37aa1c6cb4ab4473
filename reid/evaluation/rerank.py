"""Exact k-reciprocal re-ranking without an N×N matrix (Zhong, Zheng, Cao, Li, CVPR 2017)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from reid.errors import ReidError
from reid.evaluation.features import MEMORY_LIMIT, Features, Metric, distance_blocks, prepare_features

_ROUNDING = 1e-5
"""Squared distances from a float32 product are trusted to this part of the squared lengths of the two items."""

_MOST_CANDIDATES = 512
"""Beyond so many neighbours that rounding cannot tell apart, their order is the product's."""


def rerank(
    query_features: Features,
    gallery_features: Features,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    metric: Metric = "euclidean",
    memory_limit: int = MEMORY_LIMIT,
) -> NDArray[np.float32]:
    """Distances `[Q, G]` re-ranked by k-reciprocal encoding; smaller is nearer.

    The N = Q + G items are taken together, queries first.

    1. Original distance: `d(i, j) = |xᵢ − xⱼ|² / max_l |xᵢ − x_l|²`, the squared Euclidean distance over its largest
       value in row i (not symmetric). With `metric="cosine"` the features are first made of length 1. It is squared
       once; some copies of the method square it twice.
    2. `N(i, k)`: the item itself and its k nearest others, so k + 1 items; equal distances in item order.
       `R(i, k) = {j ∈ N(i, k) : i ∈ N(j, k)}` (eq. 3).
    3. `R*(i)`: `R(i, k1)` together with every `R(j, ½k1)`, j ∈ R(i, k1), of which more than two thirds lie in
       `R(i, k1)` (eq. 4; "at least" there, "more than" in the authors' code, followed here). ½k1 is rounded to the
       nearest, halves to the even.
    4. `V(i, j) = exp(−d(i, j))` for j ∈ R*(i), else 0, each row divided by its sum (eq. 7; normalised as in the
       authors' code).
    5. Local query expansion: `V(i)` becomes the mean of `V` over i and its k2 − 1 nearest others (eq. 11).
    6. Jaccard distance: `J(i, j) = 1 − Σ min(Vᵢ, Vⱼ) / Σ max(Vᵢ, Vⱼ)` (eq. 10).
    7. Result: `(1 − λ) J(q, g) + λ d(q, g)` (eq. 12).

    Neighbours come from one pass over blocks of the N×N distances, with those that float32 rounding could confuse
    measured again from the features; V is sparse. Beside the result, memory is the features, N × (k1 + 1)
    neighbours, the sparse V and one block.

    Corner cases: with fewer than k1 + 1 items all are neighbours; where all items are one point d is 0.

    Args:
        query_features: `[Q, D]` numbers, NumPy or torch on any device.
        gallery_features: `[G, D]` likewise.
        k1: neighbours beside the item itself.
        k2: items averaged in the local query expansion; 1 turns it off.
        lambda_value: weight λ of the original distance, 0..1.
        metric: "euclidean" (features as given) or "cosine".
        memory_limit: bytes a block of distances may take (one row at least).

    Raises:
        ReidError: shapes do not fit, a feature is NaN, infinite or (cosine) zero, or a setting is out of range.
    """
    if k1 < 1 or k2 < 1:
        raise ReidError(f"k1 and k2 must be at least 1, not k1={k1}, k2={k2}.")
    if not 0 <= lambda_value <= 1:
        raise ReidError(f"lambda_value must lie in 0..1, not {lambda_value}.")
    query, gallery = prepare_features(query_features, gallery_features, metric)
    n_query, n = len(query), len(query) + len(gallery)
    features = _centred(torch.cat([query, gallery]))
    neighbours, largest, result = _neighbours(features, n_query, max(k1 + 1, k2), memory_limit)

    encoding = _encode(_expanded_reciprocal(neighbours, k1), features, largest, memory_limit)
    if k2 > 1:
        near = neighbours[:, :k2]
        average = _from_lists(near, np.float32(1 / near.shape[1]))
        encoding = (average @ encoding).tocsr()

    result *= np.float32(lambda_value)
    _add_jaccard(result, encoding[:n_query], encoding[n_query:n], 1 - lambda_value)
    return result


def rerank_in_words(*, k1: int = 20, k2: int = 6, lambda_value: float = 0.3, metric: Metric = "euclidean") -> str:
    """The distance that `rerank` gives, for the protocol: pass it as `metric` to `evaluate_distances`."""
    lengths = " of features of length 1" if metric == "cosine" else ""
    return (
        f"k-reciprocal re-ranked distance (k1={k1}, k2={k2}, λ={lambda_value:g}; original distance: "
        f"squared Euclidean{lengths} over its row's largest)"
    )


def _centred(features: Tensor) -> Tensor:
    """Move the origin to the item nearest the mean, in place; distances stay, and float32 loses less of them.

    The origin is an item, not the mean, so that whole numbers stay whole and equal distances equal.
    """
    lengths = features.square().sum(dim=1)
    nearest = (lengths - 2 * features @ features.mean(dim=0)).argmin()
    return features.sub_(features[nearest].clone())


def _neighbours(
    features: Tensor, n_query: int, k: int, memory_limit: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """The `k` nearest of each item `[N, k]` (itself first), the largest distance of each row `[N]`, and d `[Q, G]`."""
    n = len(features)
    k = min(k, n)
    host = features.cpu().numpy()
    squares = np.einsum("nd,nd->n", host, host)
    neighbours = np.empty((n, k), dtype=np.int64)
    largest = np.empty(n, dtype=np.float32)
    original = np.empty((n_query, n - n_query), dtype=np.float32)
    for start, block in distance_blocks(features, features, "euclidean", memory_limit):
        stop = start + len(block)
        largest[start:stop] = block.max(axis=1)
        for row, distances in enumerate(block, start):
            farthest = max(np.partition(distances, k - 1)[k - 1], 0)
            # |xⱼ|² ≤ 2 |xᵢ|² + 2 d² bounds the lengths of whatever may be near.
            rounding = _ROUNDING * (3 * squares[row] + 2 * farthest)
            near = np.flatnonzero(distances <= farthest + rounding)
            exact = distances[near]
            if len(near) <= _MOST_CANDIDATES:
                difference = host[near] - host[row]
                exact = np.einsum("nd,nd->n", difference, difference)
            exact[near == row] = -1
            neighbours[row] = near[np.argsort(exact, kind="stable")[:k]]
        if start < n_query:
            original[start:stop] = block[: n_query - start, n_query:]
    largest[largest <= 0] = np.inf
    np.maximum(original, 0, out=original)
    original /= largest[:n_query, None]
    return neighbours, largest, original


def _from_lists(lists: NDArray[np.int64], value: np.float32) -> sparse.csr_matrix:
    """Sparse `[N, N]` with `value` at (i, j) for each j in row i of `lists [N, k]`."""
    n, k = lists.shape
    return sparse.csr_matrix(
        (np.full(n * k, value, dtype=np.float32), lists.reshape(-1), np.arange(0, n * k + 1, k)), shape=(n, n)
    )


def _reciprocal(neighbours: NDArray[np.int64], k: int) -> sparse.csr_matrix:
    """R(i, k) as ones in a sparse `[N, N]`."""
    chosen = _from_lists(neighbours[:, : k + 1], np.float32(1))
    return chosen.multiply(chosen.T).tocsr()


def _expanded_reciprocal(neighbours: NDArray[np.int64], k1: int) -> sparse.csr_matrix:
    """R*(i) as positive numbers in a sparse `[N, N]`."""
    near = _reciprocal(neighbours, k1)
    half = _reciprocal(neighbours, round(k1 / 2))
    size = np.diff(half.indptr)
    shared = near.multiply(near @ half.T).tocsr()
    shared.data = (3 * shared.data > 2 * size[shared.indices]).astype(np.float32)
    shared.eliminate_zeros()
    return (near + shared @ half).tocsr()


def _encode(
    members: sparse.csr_matrix, features: Tensor, largest: NDArray[np.float32], memory_limit: int
) -> sparse.csr_matrix:
    """V: exp(−d) at the members, each row divided by its sum."""
    rows = np.repeat(np.arange(members.shape[0]), np.diff(members.indptr))
    weights = np.empty(len(rows), dtype=np.float32)
    step = max(1, memory_limit // (12 * features.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        i, j = torch.from_numpy(rows[part]), torch.from_numpy(members.indices[part].astype(np.int64))
        difference = features[i.to(features.device)] - features[j.to(features.device)]
        weights[part] = difference.square_().sum(dim=1).cpu().numpy()
    weights = np.exp(-weights / largest[rows])
    sums = np.bincount(rows, weights, minlength=members.shape[0])
    values = (weights / sums[rows]).astype(np.float32)
    return sparse.csr_matrix((values, members.indices, members.indptr), shape=members.shape)


def _add_jaccard(
    result: NDArray[np.float32], query: sparse.csr_matrix, gallery: sparse.csr_matrix, weight: float
) -> None:
    """Add `weight · J` to `result [Q, G]`, from the rows of V of the queries and of the gallery.

    Rows of V sum to 1, so Σ max = 2 − Σ min, and Σ min is gathered over the few columns that a query's row has.
    """
    by_column = gallery.tocsc()
    for i in range(len(result)):
        mine = slice(query.indptr[i], query.indptr[i + 1])
        starts = by_column.indptr[query.indices[mine]].astype(np.int64)
        lengths = by_column.indptr[query.indices[mine] + 1] - starts
        places = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        shared = np.minimum(by_column.data[places], np.repeat(query.data[mine], lengths))
        overlap = np.bincount(by_column.indices[places], shared, minlength=result.shape[1]).clip(max=1)
        result[i] += weight * (1 - overlap / (2 - overlap))
