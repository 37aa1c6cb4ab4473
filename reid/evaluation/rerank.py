"""Exact k-reciprocal re-ranking without an N×N matrix (Zhong, Zheng, Cao, Li, CVPR 2017); also camera-aware."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from reid.core.arrays import concatenated_ranges, integer_column
from reid.core.errors import ConfigError, DataError, check_choice, check_number
from reid.evaluation.clustering import estimate_identity_size
from reid.evaluation.features import (
    MEMORY_LIMIT,
    EmbeddingTable,
    Features,
    Metric,
    centred,
    distance_blocks,
    pair_distances,
    prepare_features,
    prepare_one,
    unpack_tables,
)
from reid.evaluation.neighbour_search import (
    SEARCHES,
    NeighbourSearch,
    chosen_search,
    search_neighbours,
)
from reid.evaluation.neighbours import Neighbours, nearest_items_by_camera

_ROWS = 128
"""Rows of V that are compared with all others together."""


@dataclass(frozen=True)
class Reranking:
    """Settings of re-ranking; see `rerank` for the method. The defaults are those of the authors' code.

    Attributes:
        k1: neighbours besides the item itself. Camera-aware: neighbours in other cameras. "auto" (not camera-aware)
            estimates the size of identities from the features, see `auto_neighbours`; k2 is then an upper limit.
        k2: items averaged in the local query expansion, the item itself among them; 1 turns it off. Camera-aware: of
            both lists together.
        lambda_value: weight λ of the original distance, 0..1.
        metric: "euclidean" (features as given) or "cosine".
        camera_aware: search neighbours separately in the item's own camera and in the other cameras.
        k1_intra: camera-aware only: neighbours in the item's own camera, besides the item itself.
        k2_intra: camera-aware only: how many of the k2 averaged items are of the item's own camera; the other
            `k2 − k2_intra` are of other cameras.
        neighbour_search: "exact", "faiss" (not camera-aware) or "auto", see `search_neighbours`.

    Raises:
        ConfigError: a value out of range.

    Example:
        >>> Reranking(k1=30, metric="cosine").describe()[:44]
        'k-reciprocal re-ranked distance (k1=30, k2=6'
    """

    k1: int | Literal["auto"] = 20
    k2: int = 6
    lambda_value: float = 0.3
    metric: Metric = "euclidean"
    camera_aware: bool = False
    k1_intra: int = 5
    k2_intra: int = 3
    neighbour_search: NeighbourSearch = "exact"

    def __post_init__(self) -> None:
        if self.k1 == "auto" and self.camera_aware:
            raise ConfigError("k1='auto' is for plain re-ranking. Set k1 to a number, or turn camera_aware off.")
        for name in (
            *(("k1",) if self.k1 != "auto" else ()),
            "k2",
            *(("k1_intra", "k2_intra") if self.camera_aware else ()),
        ):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise ConfigError(f"{name} must be a whole number; got {value!r}.")
            check_number(name, int(value), 1)
        if self.lambda_value is None:
            raise ConfigError("lambda_value must be from 0 to 1; got None.")
        check_number("lambda_value", self.lambda_value, 0, 1)
        check_choice("neighbour_search", self.neighbour_search, SEARCHES)
        if self.camera_aware and self.neighbour_search == "faiss":
            raise ConfigError("Camera-aware re-ranking searches exactly. Set neighbour_search to 'exact' or 'auto'.")
        if self.camera_aware and self.k2 < self.k2_intra:
            raise ConfigError(
                f"k2 counts all averaged items, so it must be at least k2_intra; got k2={self.k2} and "
                f"k2_intra={self.k2_intra}."
            )

    def describe(self) -> str:
        """Return the definition of the distance, to pass as `metric` to `evaluate_distances`."""
        method, counts = "k-reciprocal", f"k1={self.k1}, k2={self.k2}"
        if self.camera_aware:
            method = f"camera-aware {method}"
            counts = (
                f"k1={self.k1_intra} in the own camera and {self.k1} in others, k2={self.k2_intra} and "
                f"{self.k2 - self.k2_intra}"
            )
        normalised = " of L2-normalised features" if self.metric == "cosine" else ""
        return (
            f"{method} re-ranked distance ({counts}, λ={self.lambda_value:g}; original distance: squared "
            f"Euclidean{normalised} divided by the largest in its row)"
        )


def auto_neighbours(identity_size: float, k2: int = 6) -> tuple[int, int]:
    """Return k1 and k2 for a set with so many items per identity (`estimate_identity_size`).

    k1 is twice the size, rounded, from 4 to 20 (the authors' k1, which suits Market-1501); k2 is 0.3 k1, rounded, as
    in the authors' 20 and 6, and at most `k2`. The factor was chosen on half of the identities of Market-1501; see
    docs/reranking.md.

    Example:
        >>> auto_neighbours(3.0), auto_neighbours(12.0)
        ((6, 2), (20, 6))
    """
    k1 = int(np.clip(round(2 * identity_size), 4, 20))
    return k1, min(k2, round(0.3 * k1))


PLAIN = Reranking()
"""k-reciprocal re-ranking with the authors' settings."""

WITHIN = Reranking(k1=10, k2=4, metric="cosine")
"""Default settings of `rerank_within`."""


def rerank(
    query_features: Features | EmbeddingTable,
    gallery_features: Features | EmbeddingTable,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    *,
    memory_limit: int = MEMORY_LIMIT,
    **options: Any,
) -> NDArray[np.float32]:
    """Return distances `[Q, G]` re-ranked by k-reciprocal encoding; smaller is nearer.

    All N = Q + G items are encoded together, queries first.

    1. Original distance: `d(i, j) = |xᵢ − xⱼ|² / max_l |xᵢ − x_l|²`, the squared Euclidean distance divided by its
       largest value in row i (not symmetric). With `metric="cosine"` the features are L2-normalised first. The
       distance is squared once; some copies of the method square it twice.
    2. `N(i, k)`: the item itself and its k nearest others, so k + 1 items; equal distances in item order.
       `R(i, k) = {j ∈ N(i, k) : i ∈ N(j, k)}` (eq. 3).
    3. `R*(i)`: the union of `R(i, k1)` and every `R(j, ½k1)`, j ∈ R(i, k1), of which more than two thirds are in
       `R(i, k1)` (eq. 4; the paper has "at least", the authors' code "more than", which is used here). ½k1 is rounded
       to the nearest integer, halves to the even one.
    4. `V(i, j) = exp(−d(i, j))` for j ∈ R*(i), else 0; each row is divided by its sum (eq. 7, normalised as in the
       authors' code).
    5. Local query expansion: `V(i)` becomes the mean of `V` over i and its k2 − 1 nearest others (eq. 11).
    6. Jaccard distance: `J(i, j) = 1 − Σ min(Vᵢ, Vⱼ) / Σ max(Vᵢ, Vⱼ)` (eq. 10).
    7. Result: `(1 − λ) J(q, g) + λ d(q, g)` (eq. 12).

    `camera_aware` gives the camera-aware Jaccard distance (Chen, Fan, Chen, Zhu, "CA-Jaccard", CVPR 2024). Items of
    the item's own camera look similar and would crowd out those of other cameras, so steps 2, 3 and 5 search them
    separately:

    - `N_intra(i, k)`: the item itself and its k nearest others of its camera. `N_inter(i, k)`: its k nearest items of
      all other cameras. (The authors' code takes one more there: add 1 to `k1` to follow it.)
    - `R_intra` and `R_inter` are the reciprocal neighbours in these lists, with `k1_intra` and `k1`. Their union takes
      the place of `R*` and is not expanded.
    - The expansion averages the first `k2_intra` of `N_intra` (the item itself first) and the first `k2 − k2_intra` of
      `N_inter`, with equal weights.

    Memory: neighbours come from one pass over blocks of distances, and those that float32 rounding could confuse are
    measured again from the features. V is sparse. Besides the result, memory contains copies of the features,
    N × (k1 + 1) neighbours, the sparse V and one block. `rerank_blocks` does not store the result either.

    Corner cases: with fewer than k1 + 1 items all are neighbours; if all items are one point, d is 0. A camera with
    fewer items than requested contributes what it has; with one camera only, neighbours are `R_intra`.

    Args:
        query_features: `[Q, D]` numbers, NumPy or torch on any device; or an `Embeddings` table, and the gallery too.
        gallery_features: `[G, D]`, or a table.
        query_camids: `[Q]` integers (-1: unknown, which is no item's own camera); used by `camera_aware` only.
        gallery_camids: `[G]`.
        memory_limit: bytes of a block of distances (at least one row).
        options: the attributes of `Reranking`: k1 (a number or "auto"), k2, lambda_value, metric, camera_aware,
            k1_intra, k2_intra and neighbour_search.

    Raises:
        DataError: shapes that do not fit, missing camera ids, or a feature that is NaN, infinite or (cosine) zero.
        ConfigError: a setting out of range.

    Example:
        >>> import numpy as np
        >>> from reid import rerank
        >>> rng = np.random.default_rng(0)
        >>> query, gallery = rng.normal(size=(3, 8)), rng.normal(size=(40, 8))
        >>> rerank(query, gallery, k1=10, k2=3).shape
        (3, 40)
    """
    settings = Reranking(**options)
    items = _Items(query_features, gallery_features, query_camids, gallery_camids, settings)
    distances = np.empty((items.n_query, len(items.features) - items.n_query), dtype=np.float32)
    if settings.camera_aware or items.search(settings) == "faiss":
        for start, block in _Encoded(items, settings, memory_limit).blocks(memory_limit):
            distances[start : start + len(block)] = block
    else:  # the search for neighbours also fills in the squared distances
        _Encoded(items, settings, memory_limit, squared=distances).rerank_in_place(0, distances)
    return distances


def rerank_blocks(
    query_features: Features | EmbeddingTable,
    gallery_features: Features | EmbeddingTable,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    *,
    settings: Reranking = PLAIN,
    memory_limit: int = MEMORY_LIMIT,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Return an iterator over `(first row, distances [b, G])` of `rerank`, for results that do not fit in memory.

    Pass it to `evaluate_distances`. The call itself finds neighbours and V; blocks are computed when requested. The
    caller may change a block in place; it is overwritten when the next one is requested.

    Example:
        >>> import numpy as np
        >>> features = np.random.default_rng(0).normal(size=(50, 8))
        >>> [block.shape for _, block in rerank_blocks(features[:10], features[10:], settings=Reranking(k1=5, k2=2))]
        [(10, 40)]
    """
    items = _Items(query_features, gallery_features, query_camids, gallery_camids, settings)
    return _Encoded(items, settings, memory_limit).blocks(memory_limit)


@dataclass(frozen=True, eq=False)
class RerankedPairs:
    """Re-ranked distances of a set to itself, for the pairs with a common neighbour.

    Attributes:
        distances: symmetric csr `[N, N]` float32, the re-ranked distance of each such pair; empty diagonal. A stored
            distance may be 0: do not call `eliminate_zeros`.
        original: csr of the same pattern (it shares the index arrays): the distance of the pair by the metric, cosine
            (1 − cosine similarity) or Euclidean (not squared).
        absent: lower bound of the distance of a pair that is not stored, 1 − λ. Its Jaccard distance is 1, so its
            re-ranked distance is `1 − λ + λ d̄(i, j)`, in 1 − λ .. 1.
    """

    distances: sparse.csr_matrix
    original: sparse.csr_matrix
    absent: float


def rerank_within(
    features: Features,
    camids: ArrayLike | None = None,
    *,
    settings: Reranking = WITHIN,
    memory_limit: int = MEMORY_LIMIT,
    neighbours: Neighbours | None = None,
    largest_jaccard: float = 1.0,
) -> RerankedPairs:
    """Return re-ranked distances of N items to each other, for pairs with overlapping neighbours; never N×N.

    The definition is that of `rerank` with every item both query and gallery item, except that d is made symmetric so
    that the result is: `d̄(i, j) = ½ (d(i, j) + d(j, i))`, and the result is `(1 − λ) J(i, j) + λ d̄(i, j)`.

    Args:
        features: `[N, D]` numbers, NumPy or torch on any device.
        camids: `[N]` integers (-1: unknown); used by camera-aware settings only.
        settings: see `Reranking`.
        memory_limit: bytes of a block of distances (at least one row).
        neighbours: for settings that are not camera-aware, the result of `nearest_items` for the same features and k1
            or more, to avoid repeating the search when several k1 are tried.
        largest_jaccard: pairs with a larger Jaccard distance are not stored. Most pairs with a common neighbour have
            little overlap: 12 % of them were below 0.95 on Market-1501.

    Raises:
        ReidError: as `rerank`.
    """
    items = _Items(features, None, camids, None, settings)
    return _Encoded(items, settings, memory_limit, neighbours=neighbours).pairs(largest_jaccard)


class _Items:
    """Centred features `[N, D]`, of which the first `n_query` are the queries, and `[N]` cameras if needed.

    `gallery` None means one set, whose cameras are `query_camids`.
    """

    def __init__(
        self,
        query: Features | EmbeddingTable,
        gallery: Features | EmbeddingTable | None,
        query_camids: ArrayLike | None,
        gallery_camids: ArrayLike | None,
        settings: Reranking,
    ) -> None:
        if gallery is None:
            (features,), (_, *cameras) = unpack_tables([query], [None, query_camids])
            own = prepare_one(features, "item", settings.metric)
            sides, names = [own if settings.metric == "cosine" else own.clone()], ["camids"]
        else:
            labels = (None, None, query_camids, gallery_camids)
            (query, gallery), (_, _, *cameras) = unpack_tables([query, gallery], labels)
            sides, names = list(prepare_features(query, gallery, settings.metric)), ["query_camids", "gallery_camids"]
        self.n_query, self.cameras = len(sides[0]), None
        self.features = centred(torch.cat(sides) if len(sides) > 1 else sides[0])
        if settings.camera_aware:
            known = [camids for camids in cameras if camids is not None]
            if len(known) < len(names):
                raise DataError(f"Camera-aware re-ranking needs camera ids. Pass {' and '.join(names)}.")
            self.cameras = np.concatenate(list(map(integer_column, names, known, map(len, sides))))

    def search(self, settings: Reranking) -> str:
        """Return how neighbours are searched, "exact" or "faiss"."""
        return chosen_search(settings.neighbour_search, len(self.features), self.features.device.type)


def _from_lists(lists: NDArray[np.int64]) -> sparse.csr_matrix:
    """Return a sparse `[N, N]` with 1 at (i, j) for each j in row i of `lists [N, k]`; −1 is padding."""
    used = lists >= 0
    ends = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    columns = lists[used]
    return sparse.csr_matrix((np.ones(len(columns), dtype=np.float32), columns, ends), shape=(len(lists), len(lists)))


def _reciprocal(lists: NDArray[np.int64]) -> sparse.csr_matrix:
    """Return ones at (i, j) where j is in list i and i in list j."""
    chosen = _from_lists(lists)
    return chosen.multiply(chosen.T).tocsr()


def _expanded_reciprocal(nearest: NDArray[np.int64], k1: int) -> sparse.csr_matrix:
    """Return R*(i) as positive numbers in a sparse `[N, N]`."""
    whole = _reciprocal(nearest[:, : k1 + 1])
    half = _reciprocal(nearest[:, : round(k1 / 2) + 1])
    size = np.diff(half.indptr)
    overlap = whole.multiply(whole @ half.T).tocsr()
    overlap.data = (3 * overlap.data > 2 * size[overlap.indices]).astype(np.float32)
    overlap.eliminate_zeros()
    return (whole + overlap @ half).tocsr()


class _Encoded:
    """Result of steps 2 to 5 of `rerank`: V, csr `[N, N]`, and the largest squared distance `[N]` of each item.

    Args:
        items: features and cameras.
        settings: see `Reranking`.
        memory_limit: as in `rerank`.
        squared: `[Q, G]`, to be filled with squared distances; not if camera-aware or with FAISS.
        neighbours: what `nearest_items` returned, if known; not if camera-aware.
    """

    def __init__(
        self,
        items: _Items,
        settings: Reranking,
        memory_limit: int,
        squared: NDArray[np.float32] | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        k1, k2 = settings.k1, settings.k2
        if isinstance(k1, str):
            k1, k2 = auto_neighbours(estimate_identity_size(items.features), k2)
        if items.cameras is not None:
            own, k2_inter = settings.k1_intra, k2 - settings.k2_intra
            neighbours, other = nearest_items_by_camera(
                items.features, items.cameras, max(own, settings.k2_intra - 1), max(k1, k2_inter), memory_limit
            )
            members = _reciprocal(neighbours.nearest[:, : own + 1]) + _reciprocal(other[:, :k1])
            averaged = np.hstack([neighbours.nearest[:, : settings.k2_intra], other[:, :k2_inter]])
        else:
            if neighbours is None:
                how = settings.neighbour_search
                neighbours = search_neighbours(items.features, max(k1, k2 - 1), how, memory_limit, squared)
            members, averaged = _expanded_reciprocal(neighbours.nearest, k1), neighbours.nearest[:, :k2]
        largest = np.where(neighbours.largest > 0, neighbours.largest, np.float32(np.inf))
        rows = np.repeat(np.arange(members.shape[0]), np.diff(members.indptr))
        weights = np.exp(-pair_distances(items.features, rows, members.indices) / largest[rows])
        weights /= np.bincount(rows, weights, minlength=len(largest)).astype(np.float32)[rows]
        v = sparse.csr_matrix((weights, members.indices, members.indptr), shape=members.shape)
        if averaged.shape[1] > 1:
            average = _from_lists(averaged)
            average.data /= np.repeat(np.diff(average.indptr), np.diff(average.indptr)).astype(np.float32)
            v = (average @ v).tocsr()
        self.items, self.settings, self.largest, self.v = items, settings, largest, v

    @cached_property
    def _gallery_columns(self) -> sparse.csc_matrix:
        return self.v[self.items.n_query :].tocsc()

    def blocks(self, memory_limit: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield re-ranked distances `[b, G]`."""
        query, gallery = self.items.features[: self.items.n_query], self.items.features[self.items.n_query :]
        for start, block in distance_blocks(query, gallery, "euclidean", memory_limit):
            self.rerank_in_place(start, block)
            yield start, block

    def rerank_in_place(self, start: int, squared: NDArray[np.float32]) -> None:
        """Replace squared distances `[b, G]` of the queries from `start` on by the re-ranked ones.

        Gallery items that have no neighbour in common with a query have a Jaccard distance of 1.
        """
        weight = np.float32(1 - self.settings.lambda_value)
        scale = torch.from_numpy(
            np.float32(self.settings.lambda_value) / self.largest[start : start + len(squared), None]
        )
        torch.from_numpy(squared).clamp_(min=0).mul_(scale).add_(weight)
        for first in range(0, len(squared), _ROWS):
            distances = squared[first : first + _ROWS]
            similar = _jaccard(self._gallery_columns, self.v, start + first, start + first + len(distances))
            at = np.repeat(np.arange(len(distances)), np.diff(similar.indptr)), similar.indices
            distances[at] = np.maximum(distances[at] - weight * similar.data, 0)

    def pairs(self, largest_jaccard: float) -> RerankedPairs:
        """Return the distances of all items to each other where V overlaps enough."""
        n, columns, lambda_value = len(self.largest), self.v.tocsc(), self.settings.lambda_value
        firsts, seconds, similarities = [], [], []
        for start in range(0, n, _ROWS):
            similar = _jaccard(columns, self.v, start, min(start + _ROWS, n), later=True)
            rows = np.repeat(np.arange(start, start + similar.shape[0], dtype=np.int32), np.diff(similar.indptr))
            kept = similar.data >= 1 - largest_jaccard
            firsts.append(rows[kept])
            seconds.append(similar.indices[kept])
            similarities.append(similar.data[kept])
        first, second = np.concatenate(firsts), np.concatenate(seconds)
        ends = np.searchsorted(first, np.arange(n + 1))
        squared = pair_distances(self.items.features, first, second)
        original = squared / 2 if self.settings.metric == "cosine" else np.sqrt(squared)
        inverse = 1 / self.largest
        mean = squared * (inverse[first] + inverse[second]) / 2
        distances = np.float32(1 - lambda_value) * (1 - np.concatenate(similarities)) + np.float32(lambda_value) * mean
        upper = sparse.csr_matrix((np.arange(1, len(first) + 1), second, ends), shape=(n, n))
        positions = (upper + upper.T).tocsr()
        positions.sort_indices()
        reranked, by_metric = (
            sparse.csr_matrix(
                (values[positions.data - 1].astype(np.float32), positions.indices, positions.indptr), shape=(n, n)
            )
            for values in (distances, original)
        )
        return RerankedPairs(reranked, by_metric, 1 - lambda_value)


def _jaccard(
    columns: sparse.csc_matrix, v: sparse.csr_matrix, start: int, stop: int, later: bool = False
) -> sparse.csr_matrix:
    """Return the Jaccard similarity `Σ min / Σ max` of rows of V with other rows that have a column in common.

    Rows of V sum to 1, so Σ max = 2 − Σ min, and Σ min is summed over the few columns of a row.

    Args:
        columns: csc `[M, N]`, the other rows of V.
        v: csr `[N, N]`.
        start, stop: the rows of `v`.
        later: only compare with rows of a higher number than the row's own.

    Returns:
        csr `[stop − start, M]` float32.
    """
    entries = slice(v.indptr[start], v.indptr[stop])
    begins = columns.indptr[v.indices[entries]].astype(np.int64)
    lengths = columns.indptr[v.indices[entries] + 1] - begins
    positions = concatenated_ranges(begins, lengths)
    items = columns.indices[positions]
    overlap = np.minimum(columns.data[positions], np.repeat(v.data[entries], lengths)).astype(np.float64)
    row = np.repeat(np.repeat(np.arange(stop - start), np.diff(v.indptr[start : stop + 1])), lengths)
    if later:
        wanted = items > row + start
        items, overlap, row = items[wanted], overlap[wanted], row[wanted]
    ends = np.searchsorted(row, np.arange(stop - start + 1))
    total = sparse.csr_matrix((overlap, items, ends), shape=(stop - start, columns.shape[0]))
    total.sum_duplicates()
    minima = total.data.clip(max=1)
    total.data = (minima / (2 - minima)).astype(np.float32)
    return total
