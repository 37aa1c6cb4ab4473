"""Exact k-reciprocal re-ranking without an N×N matrix (Zhong, Zheng, Cao, Li, CVPR 2017), also by camera."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from torch import Tensor

from reid.core.errors import ReidError
from reid.evaluation.features import MEMORY_LIMIT, Features, Metric, distance_blocks, prepare_features
from reid.evaluation.neighbours import (
    Neighbours,
    camera_column,
    centred,
    nearest_items,
    nearest_items_by_camera,
    pair_distances,
)

_ROWS = 128
"""Rows of V that are compared with all others at a time."""


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
    measured again from the features; V is sparse. Beside the result, memory is copies of the features, N × (k1 + 1)
    neighbours, the sparse V and one block; `rerank_blocks` gives the same without holding the result.

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
    _check(lambda_value, k1=k1, k2=k2)
    items = _Items.of(query_features, gallery_features, metric)
    squared = np.empty((items.n_query, len(items.features) - items.n_query), dtype=np.float32)
    encoded = _plain(items, k1, k2, memory_limit, squared)
    encoded.rerank_in_place(0, squared, lambda_value)
    return squared


def rerank_blocks(
    query_features: Features,
    gallery_features: Features,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    metric: Metric = "euclidean",
    memory_limit: int = MEMORY_LIMIT,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The distances of `rerank` as (first row, float32 `[b, G]`), for results that are too large to hold.

    `evaluate_distances` takes them as they come. Neighbours and V are found by the call itself, blocks as they are
    asked for; a block is the caller's to change until the next one is asked for. Arguments and errors are `rerank`'s.
    """
    _check(lambda_value, k1=k1, k2=k2)
    items = _Items.of(query_features, gallery_features, metric)
    return _plain(items, k1, k2, memory_limit).blocks(lambda_value, memory_limit)


def rerank_camera_aware(
    query_features: Features,
    gallery_features: Features,
    query_camids: ArrayLike,
    gallery_camids: ArrayLike,
    *,
    k1_intra: int = 5,
    k1_inter: int = 20,
    k2_intra: int = 3,
    k2_inter: int = 3,
    lambda_value: float = 0.3,
    metric: Metric = "euclidean",
    memory_limit: int = MEMORY_LIMIT,
) -> NDArray[np.float32]:
    """Distances `[Q, G]` by camera-aware Jaccard distance (Chen, Fan, Chen, Zhu, "CA-Jaccard", CVPR 2024).

    As `rerank`, but neighbours are looked for in the item's own camera and in all other cameras apart, so that its
    own camera, where strangers look alike, does not crowd out the others:

    1. Original distance d as in `rerank`.
    2. `N_intra(i, k)`: the item itself and its k nearest others of its camera. `N_inter(i, k)`: its k nearest items of
       all other cameras. Equal distances in item order. (The authors' code takes one more there: add 1 to `k1_inter`
       to follow it.)
    3. `R_intra(i) = {j ∈ N_intra(i, k1_intra) : i ∈ N_intra(j, k1_intra)}`, `R_inter(i)` likewise with `k1_inter`;
       camera-aware k-reciprocal neighbours are `R_intra(i) ∪ R_inter(i)`. They are not expanded as `R*` is.
    4. `V(i, j) = exp(−d(i, j))` on them, each row divided by its sum.
    5. Camera-aware local query expansion: `V(i)` becomes the mean of `V` over the first `k2_intra` of `N_intra` (the
       item itself first) and the first `k2_inter` of `N_inter`, all with one weight.
    6. Jaccard distance and 7. result as in `rerank`.

    Corner cases: a camera with fewer items than asked for gives those it has; with one camera only, neighbours are
    `R_intra`. The defaults are those of the authors' code for re-ranking.

    Args:
        query_features: `[Q, D]` numbers, NumPy or torch on any device.
        gallery_features: `[G, D]` likewise.
        query_camids: `[Q]` integers in any coding.
        gallery_camids: `[G]` integers in the same coding.
        k1_intra: neighbours within the camera, beside the item itself.
        k1_inter: neighbours in other cameras.
        k2_intra: items of its own camera averaged in the expansion, the item itself among them.
        k2_inter: items of other cameras averaged in the expansion; 0 for none.
        lambda_value: weight λ of the original distance, 0..1.
        metric: "euclidean" (features as given) or "cosine".
        memory_limit: bytes a block of distances may take (one row at least).

    Raises:
        ReidError: as `rerank`, or the camera ids are not one integer for each item.
    """
    settings = _CameraAware(k1_intra, k1_inter, k2_intra, k2_inter)
    settings.check(lambda_value)
    items = _Items.of(query_features, gallery_features, metric)
    cameras = items.cameras(query_camids, gallery_camids)
    out = np.empty((items.n_query, len(items.features) - items.n_query), dtype=np.float32)
    for start, block in _camera_aware(items, cameras, settings, memory_limit).blocks(lambda_value, memory_limit):
        out[start : start + len(block)] = block
    return out


def rerank_camera_aware_blocks(
    query_features: Features,
    gallery_features: Features,
    query_camids: ArrayLike,
    gallery_camids: ArrayLike,
    *,
    k1_intra: int = 5,
    k1_inter: int = 20,
    k2_intra: int = 3,
    k2_inter: int = 3,
    lambda_value: float = 0.3,
    metric: Metric = "euclidean",
    memory_limit: int = MEMORY_LIMIT,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The distances of `rerank_camera_aware` as (first row, float32 `[b, G]`), in the way of `rerank_blocks`."""
    settings = _CameraAware(k1_intra, k1_inter, k2_intra, k2_inter)
    settings.check(lambda_value)
    items = _Items.of(query_features, gallery_features, metric)
    cameras = items.cameras(query_camids, gallery_camids)
    return _camera_aware(items, cameras, settings, memory_limit).blocks(lambda_value, memory_limit)


@dataclass(frozen=True, eq=False)
class RerankedPairs:
    """Re-ranked distances of a set to itself, at the pairs that share a neighbour.

    Attributes:
        distances: symmetric csr `[N, N]` float32, the re-ranked distance of each such pair; none on the diagonal. A
            distance may be 0 and is stored all the same: do not call `eliminate_zeros`.
        original: csr of the same pattern (it shares the index arrays): the distance of the pair by the metric,
            cosine (1 − cosine similarity) or Euclidean (not squared).
        absent: the least that a pair which is not stored can have, 1 − λ: its Jaccard distance is 1, so its
            re-ranked distance is `1 − λ + λ d̄(i, j)`, in 1 − λ .. 1.
    """

    distances: sparse.csr_matrix
    original: sparse.csr_matrix
    absent: float


def rerank_within(
    features: Features,
    *,
    camids: ArrayLike | None = None,
    k1: int = 10,
    k2: int = 4,
    k1_intra: int = 3,
    k2_intra: int = 2,
    lambda_value: float = 0.3,
    metric: Metric = "cosine",
    memory_limit: int = MEMORY_LIMIT,
    neighbours: Neighbours | None = None,
    largest_jaccard: float = 1.0,
) -> RerankedPairs:
    """Re-ranked distances of N items to each other, where their neighbours overlap; never N×N.

    The definition is that of `rerank` with every item both query and gallery item, but for d, which is made
    symmetric so that the result is: `d̄(i, j) = ½ (d(i, j) + d(j, i))`, and the result is
    `(1 − λ) J(i, j) + λ d̄(i, j)`. With `camids` it is that of `rerank_camera_aware`, where `k1` and `k2` count
    neighbours in other cameras and `k1_intra` and `k2_intra` those of the item's own.

    Args:
        features: `[N, D]` numbers, NumPy or torch on any device.
        camids: `[N]` integers in any coding, or None for neighbours of whatever camera.
        k1: neighbours beside the item itself.
        k2: items averaged in the local query expansion.
        k1_intra: with `camids`, neighbours within the camera, beside the item itself.
        k2_intra: with `camids`, items of its own camera averaged in the expansion, the item itself among them.
        lambda_value: weight λ of the original distance, 0..1.
        metric: "cosine" or "euclidean" (features as given).
        memory_limit: bytes a block of distances may take (one row at least).
        neighbours: without `camids`, what `nearest_items` found for the same features and k1 or more, not to look for
            them again where several k1 are tried.
        largest_jaccard: pairs of a larger Jaccard distance are not stored. Most pairs that share a neighbour share
            little: below 0.95 lay 12 % of them on Market-1501.

    Raises:
        ReidError: as `rerank_camera_aware`.
    """
    settings = _CameraAware(k1_intra, k1, k2_intra, k2)
    if camids is None:
        _check(lambda_value, k1=k1, k2=k2)
    else:
        settings.check(lambda_value)
    items = _Items.of(features, None, metric)
    if camids is None:
        encoded = _plain(items, k1, k2, memory_limit, neighbours=neighbours)
    else:
        encoded = _camera_aware(items, items.cameras(camids, None), settings, memory_limit)
    return encoded.pairs(lambda_value, metric, largest_jaccard)


def describe_reranking(*, k1: int = 20, k2: int = 6, lambda_value: float = 0.3, metric: Metric = "euclidean") -> str:
    """The distance that `rerank` gives, for the protocol: pass it as `metric` to `evaluate_distances`."""
    return _in_words("k-reciprocal", f"k1={k1}, k2={k2}", lambda_value, metric)


def describe_camera_aware_reranking(
    *,
    k1_intra: int = 5,
    k1_inter: int = 20,
    k2_intra: int = 3,
    k2_inter: int = 3,
    lambda_value: float = 0.3,
    metric: Metric = "euclidean",
) -> str:
    """The distance that `rerank_camera_aware` gives, for the protocol."""
    settings = f"k1 {k1_intra} within and {k1_inter} across cameras, k2 {k2_intra} and {k2_inter}"
    return _in_words("camera-aware k-reciprocal", settings, lambda_value, metric)


def _in_words(method: str, settings: str, lambda_value: float, metric: Metric) -> str:
    lengths = " of features of length 1" if metric == "cosine" else ""
    return (
        f"{method} re-ranked distance ({settings}, λ={lambda_value:g}; original distance: "
        f"squared Euclidean{lengths} over its row's largest)"
    )


def _check(lambda_value: float, *, least: int = 1, **counts: int) -> None:
    if min(counts.values()) < least:
        given = ", ".join(f"{name}={value}" for name, value in counts.items())
        raise ReidError(f"{' and '.join(counts)} must be at least {least}, not {given}.")
    if not 0 <= lambda_value <= 1:
        raise ReidError(f"lambda_value must lie in 0..1, not {lambda_value}.")


@dataclass(frozen=True)
class _CameraAware:
    k1_intra: int
    k1_inter: int
    k2_intra: int
    k2_inter: int

    def check(self, lambda_value: float) -> None:
        _check(lambda_value, k1_intra=self.k1_intra, k1_inter=self.k1_inter, k2_intra=self.k2_intra)
        _check(lambda_value, least=0, k2_inter=self.k2_inter)


@dataclass(frozen=True, eq=False)
class _Items:
    """Centred features `[N, D]`, the first `n_query` of them the queries'."""

    features: Tensor
    n_query: int

    @classmethod
    def of(cls, query: Features, gallery: Features | None, metric: str) -> _Items:
        first, second = prepare_features(query, query if gallery is None else gallery, metric)
        together = first.clone() if gallery is None else torch.cat([first, second])
        return cls(centred(together), len(first))

    def cameras(self, query_camids: ArrayLike, gallery_camids: ArrayLike | None) -> NDArray[np.int64]:
        """Both columns of camera ids in one `[N]`."""
        n = len(self.features)
        if gallery_camids is None:
            return camera_column(query_camids, "camids", n)
        columns = (
            camera_column(query_camids, "query_camids", self.n_query),
            camera_column(gallery_camids, "gallery_camids", n - self.n_query),
        )
        return np.concatenate(columns)


def _plain(
    items: _Items,
    k1: int,
    k2: int,
    memory_limit: int,
    squared: NDArray[np.float32] | None = None,
    neighbours: Neighbours | None = None,
) -> _Encoded:
    """The encoding of `rerank`, steps 2 to 5; squared distances of queries to gallery go to `squared [Q, G]`."""
    if neighbours is None:
        neighbours = nearest_items(items.features, max(k1, k2 - 1), memory_limit, squared)
    members = _expanded_reciprocal(neighbours.nearest, k1)
    return _Encoded.of(items, neighbours, members, neighbours.nearest[:, :k2])


def _camera_aware(items: _Items, cameras: NDArray[np.int64], k: _CameraAware, memory_limit: int) -> _Encoded:
    """The encoding of `rerank_camera_aware`, steps 2 to 5."""
    neighbours, other = nearest_items_by_camera(
        items.features, cameras, max(k.k1_intra, k.k2_intra - 1), max(k.k1_inter, k.k2_inter), memory_limit
    )
    own = neighbours.nearest
    members = _reciprocal(own[:, : k.k1_intra + 1]) + _reciprocal(other[:, : k.k1_inter])
    return _Encoded.of(items, neighbours, members, np.hstack([own[:, : k.k2_intra], other[:, : k.k2_inter]]))


def _from_lists(lists: NDArray[np.int64]) -> sparse.csr_matrix:
    """Sparse `[N, N]` with 1 at (i, j) for each j in row i of `lists [N, k]`; −1 stands for none."""
    there = lists >= 0
    ends = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    columns = lists[there]
    return sparse.csr_matrix((np.ones(len(columns), dtype=np.float32), columns, ends), shape=(len(lists), len(lists)))


def _reciprocal(lists: NDArray[np.int64]) -> sparse.csr_matrix:
    """Ones at (i, j) where j is in list i and i in list j."""
    chosen = _from_lists(lists)
    return chosen.multiply(chosen.T).tocsr()


def _expanded_reciprocal(nearest: NDArray[np.int64], k1: int) -> sparse.csr_matrix:
    """R*(i) as positive numbers in a sparse `[N, N]`."""
    near = _reciprocal(nearest[:, : k1 + 1])
    half = _reciprocal(nearest[:, : round(k1 / 2) + 1])
    size = np.diff(half.indptr)
    shared = near.multiply(near @ half.T).tocsr()
    shared.data = (3 * shared.data > 2 * size[shared.indices]).astype(np.float32)
    shared.eliminate_zeros()
    return (near + shared @ half).tocsr()


@dataclass(frozen=True, eq=False)
class _Encoded:
    """V after the query expansion, csr `[N, N]`, and what the distances need beside it."""

    items: _Items
    largest: NDArray[np.float32]
    v: sparse.csr_matrix

    @classmethod
    def of(
        cls, items: _Items, neighbours: Neighbours, members: sparse.csr_matrix, averaged: NDArray[np.int64]
    ) -> _Encoded:
        """V: exp(−d) at the members, each row divided by its sum, then the mean over the rows `averaged`."""
        largest = np.where(neighbours.largest > 0, neighbours.largest, np.float32(np.inf))
        rows = np.repeat(np.arange(members.shape[0]), np.diff(members.indptr))
        weights = np.exp(-pair_distances(items.features, rows, members.indices) / largest[rows])
        weights /= np.bincount(rows, weights, minlength=len(largest)).astype(np.float32)[rows]
        v = sparse.csr_matrix((weights, members.indices, members.indptr), shape=members.shape)
        if averaged.shape[1] > 1:
            average = _from_lists(averaged)
            average.data /= np.repeat(np.diff(average.indptr), np.diff(average.indptr)).astype(np.float32)
            v = (average @ v).tocsr()
        return cls(items, largest, v)

    @cached_property
    def _gallery(self) -> _Overlaps:
        return _Overlaps.of(self.v[self.items.n_query :])

    def blocks(self, lambda_value: float, memory_limit: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """`[b, G]` at a time."""
        query, gallery = self.items.features[: self.items.n_query], self.items.features[self.items.n_query :]
        for start, block in distance_blocks(query, gallery, "euclidean", memory_limit):
            self.rerank_in_place(start, block, lambda_value)
            yield start, block

    def rerank_in_place(self, start: int, squared: NDArray[np.float32], lambda_value: float) -> None:
        """Make squared distances `[b, G]` of the queries from `start` the re-ranked ones.

        Gallery items that a query does not meet have a Jaccard distance of 1.
        """
        weight = np.float32(1 - lambda_value)
        scale = torch.from_numpy(np.float32(lambda_value) / self.largest[start : start + len(squared), None])
        torch.from_numpy(squared).clamp_(min=0).mul_(scale).add_(weight)
        for first in range(0, len(squared), _ROWS):
            distances = squared[first : first + _ROWS]
            shared = self._gallery.with_rows(self.v, start + first, start + first + len(distances))
            at = np.repeat(np.arange(len(distances)), np.diff(shared.indptr)), shared.indices
            distances[at] = np.maximum(distances[at] - weight * shared.data, 0)

    def pairs(self, lambda_value: float, metric: str, largest_jaccard: float) -> RerankedPairs:
        """Distances of all items to each other where V overlaps by enough."""
        n = len(self.largest)
        overlaps = _Overlaps.of(self.v)
        firsts, seconds, shares = [], [], []
        for start in range(0, n, _ROWS):
            shared = overlaps.with_rows(self.v, start, min(start + _ROWS, n), later=True)
            rows = np.repeat(np.arange(start, start + shared.shape[0], dtype=np.int32), np.diff(shared.indptr))
            near = shared.data >= 1 - largest_jaccard
            firsts.append(rows[near])
            seconds.append(shared.indices[near])
            shares.append(shared.data[near])
        first, second = np.concatenate(firsts), np.concatenate(seconds)
        ends = np.searchsorted(first, np.arange(n + 1))
        squared = pair_distances(self.items.features, first, second)
        original = squared / 2 if metric == "cosine" else np.sqrt(squared)
        inverse = 1 / self.largest
        mean = squared * (inverse[first] + inverse[second]) / 2
        distances = np.float32(1 - lambda_value) * (1 - np.concatenate(shares)) + np.float32(lambda_value) * mean
        upper = sparse.csr_matrix((np.arange(1, len(first) + 1), second, ends), shape=(n, n))
        places = (upper + upper.T).tocsr()
        places.sort_indices()

        def as_matrix(values: NDArray[np.floating]) -> sparse.csr_matrix:
            data = values[places.data - 1].astype(np.float32)
            return sparse.csr_matrix((data, places.indices, places.indptr), shape=(n, n))

        return RerankedPairs(as_matrix(distances), as_matrix(original), 1 - lambda_value)


@dataclass(frozen=True, eq=False)
class _Overlaps:
    """Finds, for a row of V, the rows of another part of V that share a column with it."""

    by_column: sparse.csc_matrix

    @classmethod
    def of(cls, v: sparse.csr_matrix) -> _Overlaps:
        return cls(v.tocsc())

    def with_rows(self, v: sparse.csr_matrix, start: int, stop: int, later: bool = False) -> sparse.csr_matrix:
        """The Jaccard similarity `Σ min / Σ max` of rows `start` to `stop` with each, csr `[stop − start, M]` float32.

        Rows of V sum to 1, so Σ max = 2 − Σ min, and Σ min is gathered over the few columns that a row has.

        Args:
            v: csr `[N, N]`.
            start, stop: its rows.
            later: only with rows of a higher number than the row's own.
        """
        mine = slice(v.indptr[start], v.indptr[stop])
        columns = v.indices[mine]
        begins = self.by_column.indptr[columns].astype(np.int64)
        lengths = self.by_column.indptr[columns + 1] - begins
        places = np.arange(lengths.sum()) + np.repeat(begins - np.cumsum(lengths) + lengths, lengths)
        items = self.by_column.indices[places]
        shared = np.minimum(self.by_column.data[places], np.repeat(v.data[mine], lengths)).astype(np.float64)
        row = np.repeat(np.repeat(np.arange(stop - start), np.diff(v.indptr[start : stop + 1])), lengths)
        if later:
            wanted = items > row + start
            items, shared, row = items[wanted], shared[wanted], row[wanted]
        ends = np.searchsorted(row, np.arange(stop - start + 1))
        total = sparse.csr_matrix((shared, items, ends), shape=(stop - start, self.by_column.shape[0]))
        total.sum_duplicates()
        overlap = total.data.clip(max=1)
        total.data = (overlap / (2 - overlap)).astype(np.float32)
        return total
