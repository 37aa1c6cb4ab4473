"""CMC, mAP and mINP, computed in blocks without sorting whole rows or storing a query × gallery matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.core.arrays import UNKNOWN, none_for_nan
from reid.core.errors import DataError, check_choice, check_number
from reid.evaluation.features import MEMORY_LIMIT, EmbeddingTable, Features, Metric, rows_per_block
from reid.evaluation.neighbours import workers
from reid.evaluation.protocol import Integers, Pairs, Protocol, Search

AveragePrecision = Literal["precision", "trapezoid"]

_AP_DEFINITIONS = {
    "precision": "mean of the precision at each right match",
    "trapezoid": "area under the precision-recall curve by trapezoids (official Market-1501 code)",
}

_ROWS = 64
"""Rows that are ranked together, few enough for the processor's cache."""

_MOSTLY_NEAR = 1 / 8
"""Fraction of near distances in a row above which sorting all is faster than selecting these and sorting them."""

_COUNTED_ITEMS = 10
"""Number of items of a row up to which counting smaller distances for each is faster than sorting the row."""


@dataclass(frozen=True, eq=False)
class CameraPairs:
    """Scores of the queries of one camera in the gallery of one camera, for every such pair.

    Attributes:
        query_cameras: `[A]` int64, sorted camera ids without unknown ones (-1); gallery_cameras: `[B]`.
        mAP, rank1: `[A, B]` float64; NaN where no query has a right match in the pair.
        queries: `[A, B]` int64, the number of queries with a right match, over which the means are taken.
    """

    query_cameras: Integers
    gallery_cameras: Integers
    mAP: NDArray[np.float64]
    rank1: NDArray[np.float64]
    queries: Integers

    def as_dict(self) -> dict[str, Any]:
        """Return plain Python, ready for JSON; None where a pair has no query."""
        return {
            "query_cameras": self.query_cameras.tolist(),
            "gallery_cameras": self.gallery_cameras.tolist(),
            "mAP": none_for_nan(self.mAP),
            "rank-1": none_for_nan(self.rank1),
            "queries": self.queries.tolist(),
        }


@dataclass(frozen=True, eq=False)
class RankingResult:
    """Ranking scores of `Q` queries, as fractions in 0..1.

    Attributes:
        cmc: `[max_rank]` float64; `cmc[k − 1]` is the fraction of valid queries with a right match in the first k.
            Constant beyond the gallery's size.
        ap: `[Q]` float64, average precision of each query; NaN where the query was dropped.
        inp: `[Q]` float64, inverse negative penalty: right matches / rank of the last one; NaN where dropped.
        first_match: `[Q]` int64, rank (from 1) of the first right match; 0 where the query was dropped.
        n_matches: `[Q]` int64, number of right matches in the gallery under the protocol.
        dropped: number of queries that were not scored, by reason.
        protocol: the rules behind the scores, as plain values.
        pairs: scores by camera pair, if requested.

    Example:
        >>> import numpy as np
        >>> from reid import evaluate
        >>> result = evaluate(np.eye(2), np.eye(2), [7, 8], [7, 8], cross_camera=False)
        >>> result.mAP, result.rank(1), result.n_valid, result.n_dropped
        (1.0, 1.0, 2, 0)
        >>> result.ap
        array([1., 1.])
    """

    cmc: NDArray[np.float64]
    ap: NDArray[np.float64]
    inp: NDArray[np.float64]
    first_match: NDArray[np.int64]
    n_matches: NDArray[np.int64]
    dropped: dict[str, int]
    protocol: dict[str, Any]
    pairs: CameraPairs | None = None

    @property
    def mAP(self) -> float:
        """Mean of `ap` over the valid queries."""
        return float(np.nanmean(self.ap))

    @property
    def mINP(self) -> float:
        """Mean of `inp` over the valid queries (Ye et al., 2021, section IV)."""
        return float(np.nanmean(self.inp))

    @property
    def n_valid(self) -> int:
        """Number of scored queries."""
        return int((self.first_match > 0).sum())

    @property
    def n_dropped(self) -> int:
        """Number of queries that were not scored; `dropped` has the reasons."""
        return len(self.first_match) - self.n_valid

    def rank(self, k: int) -> float:
        """Return the CMC at rank `k`, which may exceed `max_rank`.

        Raises:
            ConfigError: `k` is below 1.
        """
        check_number("A rank", k, 1)
        found = self.first_match[self.first_match > 0]
        return float((found <= k).mean())

    def as_dict(self) -> dict[str, Any]:
        """Return the scores and the protocol as plain Python, ready for JSON, without the per-query columns."""
        return {
            "mAP": self.mAP,
            "mINP": self.mINP,
            **{f"rank-{k}": self.rank(k) for k in (1, 5, 10, 20)},
            "cmc": self.cmc.tolist(),
            "queries_used": self.n_valid,
            "queries_dropped": self.n_dropped,
            "dropped": dict(self.dropped),
            "protocol": dict(self.protocol),
            **({} if self.pairs is None else {"camera_pairs": self.pairs.as_dict()}),
        }


def evaluate(
    query_features: Features | EmbeddingTable,
    gallery_features: Features | EmbeddingTable,
    query_pids: ArrayLike | None = None,
    gallery_pids: ArrayLike | None = None,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    *,
    metric: Metric = "cosine",
    cross_camera: bool = True,
    ap: AveragePrecision = "precision",
    max_rank: int = 50,
    excluded: ArrayLike | None = None,
    camera_pairs: bool = False,
    memory_limit: int = MEMORY_LIMIT,
) -> RankingResult:
    """Rank the gallery for every query and score the rankings.

    For each query these gallery items are ignored: junk (pid -1); with `cross_camera`, items of the query's own
    identity in its own camera; and what `excluded` marks. An unknown camera (-1) is never the query's own camera. The
    rest is ranked by distance. With the right matches at ranks r₁ < … < rₙ:

    - CMC(k): the fraction of queries with r₁ ≤ k.
    - AP, "precision": (1/n) Σᵢ i/rᵢ.
    - AP, "trapezoid": (1/n) Σᵢ ½ (i/rᵢ + (i−1)/(rᵢ−1)), where the second term is 1 if rᵢ = 1; the official
      Market-1501 evaluation (Zheng et al., ICCV 2015).
    - mINP: the mean of n/rₙ (Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", 2021).

    Corner cases:
    1. Equal distances rank by gallery order. Distances are computed in float32, so two items are equal if rounding
       makes them so; different block sizes may round differently.
    2. A query without a right match is dropped from all scores and counted in `dropped` by reason: pid -1, identity
       absent from the gallery, all its matches in its own camera, or all its matches excluded.
    3. Without `cross_camera` no item is ignored because of its camera. An image that is both query and gallery item
       then finds itself: remove it from the gallery.
    4. Distractors (pid 0 in Market-1501) are ordinary wrong answers.
    5. `max_rank` may exceed the gallery.

    Args:
        query_features: `[Q, D]` numbers of any type, NumPy or torch on any device; computed in float32. Or an
            `Embeddings` table with pids and camids; then pass the gallery as a table too, and no columns.
        gallery_features: `[G, D]`, or a table.
        query_pids: `[Q]` integers; gallery_pids: `[G]`.
        query_camids: `[Q]` integers (-1: unknown), or None with `cross_camera=False`; gallery_camids: `[G]`.
        metric: "cosine" (1 − cosine similarity) or "euclidean".
        cross_camera: ignore the query's own identity in its own camera.
        ap: definition of average precision.
        max_rank: length of the CMC.
        excluded: `[Q, G]` bool; True removes a gallery item from that query's ranking.
        camera_pairs: also score every pair of query camera and gallery camera (`RankingResult.pairs`).
        memory_limit: bytes of a block of distances (at least one row).

    Raises:
        DataError: shapes that do not fit; a feature that is NaN, infinite or (cosine) zero; or no query has any
            right match.
        ConfigError: a setting out of range.

    Example:
        >>> import numpy as np
        >>> from reid import evaluate
        >>> query, gallery = np.eye(2), [[1, 0], [0.9, 0.1], [0, 1]]
        >>> result = evaluate(query, gallery, [1, 2], [1, 3, 2], [1, 1], [2, 2, 2])
        >>> f"mAP {result.mAP:.0%}, rank-1 {result.rank(1):.0%}"
        'mAP 100%, rank-1 100%'
    """
    labels = (query_pids, gallery_pids, query_camids, gallery_camids)
    search = Search(query_features, gallery_features, labels, metric, cross_camera, excluded)
    name = "cosine distance" if metric == "cosine" else "Euclidean distance"
    return _score(search.protocol, search.blocks(memory_limit), name, ap, max_rank, camera_pairs)


def evaluate_distances(
    distances: Features | Iterator[tuple[int, NDArray[Any]]],
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    *,
    cross_camera: bool = True,
    ap: AveragePrecision = "precision",
    max_rank: int = 50,
    excluded: ArrayLike | None = None,
    camera_pairs: bool = False,
    memory_limit: int = MEMORY_LIMIT,
    metric: str = "distances as given",
) -> RankingResult:
    """Score rankings by given distances (smaller is nearer), for instance re-ranked ones.

    Everything else is as in `evaluate`; `metric` only names the distances in the protocol.

    Args:
        distances: `[Q, G]`, NumPy or torch on any device; or an iterator of `(first row, distances [b, G])` over all
            queries in order, as `rerank_blocks` returns, so that the whole matrix is never in memory.

    Raises:
        DataError: as `evaluate`; a distance is NaN or infinite; or the blocks are not all rows in order.

    Example:
        >>> result = evaluate_distances([[0.2, 0.1]], [7], [7, 8], cross_camera=False)
        >>> result.mAP
        0.5
    """
    protocol = Protocol((query_pids, gallery_pids, query_camids, gallery_camids), cross_camera, excluded)
    if not isinstance(distances, Iterator):
        matrix: Any = distances if isinstance(distances, Tensor) else np.asarray(distances)
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise DataError(f"Distances have shape {list(matrix.shape)}; expected [Q, G].")
        protocol.check_lengths(*matrix.shape)
        rows = rows_per_block(matrix.shape[1], memory_limit)
        distances = ((start, matrix[start : start + rows]) for start in range(0, len(matrix), rows))
    return _score(protocol, _given_blocks(distances, protocol), metric, ap, max_rank, camera_pairs)


def top_matches(
    query_features: Features | EmbeddingTable,
    gallery_features: Features | EmbeddingTable,
    query_pids: ArrayLike | None = None,
    gallery_pids: ArrayLike | None = None,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    *,
    k: int = 10,
    metric: Metric = "cosine",
    cross_camera: bool = True,
    memory_limit: int = MEMORY_LIMIT,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the first `k` gallery items of each query under the protocol of `evaluate`, nearest first.

    Returns:
        Indices `[Q, k]` int64 into the gallery and their distances `[Q, k]` float32. Equal distances are in gallery
        order. Where fewer than `k` items remain, the row ends in index -1 and distance inf.

    Raises:
        ReidError: as `evaluate`, except that queries without a right match are allowed.
    """
    check_number("k", k, 1)
    labels = (query_pids, gallery_pids, query_camids, gallery_camids)
    search = Search(query_features, gallery_features, labels, metric, cross_camera)
    indices = np.full((len(search.query), k), -1, dtype=np.int64)
    found = np.full((len(search.query), k), np.inf, dtype=np.float32)
    for start, block in search.blocks(memory_limit):
        for row, distances in enumerate(block, start):
            nearest = _nearest_in_row(distances, k)
            nearest = nearest[np.isfinite(distances[nearest])]
            indices[row, : len(nearest)] = search.protocol.kept[nearest]
            found[row, : len(nearest)] = distances[nearest]
    return indices, np.sqrt(np.maximum(found, 0)) if metric == "euclidean" else found


def _nearest_in_row(distances: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return the indices of the `k` smallest of `distances [G]` in order, equal ones in index order; at most `G`."""
    if k >= len(distances):
        return np.argsort(distances, kind="stable")
    farthest = np.partition(distances, k - 1)[k - 1]
    near = np.flatnonzero(distances <= farthest)
    return near[np.argsort(distances[near], kind="stable")[:k]]


def _given_blocks(blocks: Iterable[tuple[int, Any]], protocol: Protocol) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the caller's blocks, checked and copied, without junk columns and with ignored pairs at inf."""
    done, n_query = 0, len(protocol.query_pids)
    for start, part in blocks:
        given = part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
        if start != done or given.ndim != 2 or given.shape[1] != protocol.gallery_size or start + len(given) > n_query:
            raise DataError(
                f"A block of distances has rows {start} to {start + len(given)} and shape {list(given.shape)}; "
                f"expected rows from {done} on, of {n_query}, with {protocol.gallery_size} columns."
            )
        block = given.astype(np.float32 if given.dtype in (np.float16, np.float32) else np.float64)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise DataError(f"Distances of query {row} contain NaN or infinity. Pass finite distances.")
        done += len(block)
        block = block[:, protocol.kept] if len(protocol.kept) < protocol.gallery_size else block
        protocol.hide(block, start)
        yield start, block
    if done < n_query:
        raise DataError(f"The blocks of distances end after {done} of {n_query} queries.")


def _ranks(distances: NDArray[Any], wanted: Pairs) -> Integers:
    """Return the ranks (from 1) of the items `wanted` in their rows of distances `[b, G]`; ties in gallery order."""
    values = distances[wanted.query, wanted.item]
    ranks = np.empty(len(values), dtype=np.int64)
    for row in np.flatnonzero(wanted.counts).tolist():
        part = slice(wanted.first[row], wanted.first[row + 1])
        ranks[part] = _number_before(distances[row], values[part], wanted.item[part])
    return ranks + 1


def _number_before(row: NDArray[Any], values: NDArray[Any], items: Integers) -> Integers:
    """Return how many items of a row `[G]` rank before each of `items [n]`, whose distances are `values [n]`.

    Only the distances up to the largest of `values` are sorted. If they are many, the smaller distances of each item
    are counted if `items` are few, or the row is sorted whole.
    """
    near = row <= values.max()
    many = np.count_nonzero(near) > _MOSTLY_NEAR * len(row)
    if many and len(values) <= _COUNTED_ITEMS:
        before = np.array([np.count_nonzero(np.less(row, value, out=near)) for value in values])
        up_to = np.array([np.count_nonzero(np.less_equal(row, value, out=near)) for value in values])
    else:
        candidates = np.sort(row if many else row[near])
        before, up_to = candidates.searchsorted(values), candidates.searchsorted(values, "right")
    for i in np.flatnonzero(up_to > before + 1):
        before[i] += np.count_nonzero(row[: items[i]] == values[i])
    return before


class _MatchRanks:
    """Ranks of right matches `[M]`, filled in by rows; then sorted within each query, and scored."""

    def __init__(self, wanted: Pairs, columns: Integers | slice = slice(None)) -> None:
        self.wanted = wanted
        self.columns = columns
        self.ranks = np.empty(len(wanted.item), np.int64)

    def add(self, distances: NDArray[Any], start: int) -> None:
        """Rank the matches of the queries from `start` on, given their distances to all gallery items."""
        wanted = self.wanted.of_queries(start, start + len(distances))
        if len(wanted.item):
            first, stop = self.wanted.first[start], self.wanted.first[start + len(distances)]
            self.ranks[first:stop] = _ranks(distances[:, self.columns], wanted)

    def finish(self) -> None:
        """Sort the ranks within each query."""
        self.ranks = self.ranks[np.lexsort((self.ranks, self.wanted.query))]

    def average_precision(self, ap: str) -> NDArray[np.float64]:
        """Return AP `[Q]`; NaN without a match."""
        found = np.arange(1, len(self.ranks) + 1) - self.wanted.first[self.wanted.query]
        values = found / self.ranks
        if ap == "trapezoid":
            before = np.where(self.ranks > 1, (found - 1) / np.maximum(self.ranks - 1, 1), 1.0)
            values = (values + before) / 2
        sums = np.bincount(self.wanted.query, values, minlength=len(self.wanted.counts))
        with np.errstate(invalid="ignore"):
            return sums / self.wanted.counts

    def at(self, position: Integers) -> Integers:
        """Return the rank at one position of each query `[Q]`; 0 without a match."""
        has = self.wanted.counts > 0
        ranks = np.zeros(len(has), dtype=np.int64)
        ranks[has] = self.ranks[position[has]]
        return ranks


def _score(
    protocol: Protocol,
    blocks: Iterable[tuple[int, NDArray[Any]]],
    metric: str,
    ap: str,
    max_rank: int,
    camera_pairs: bool,
) -> RankingResult:
    """Turn blocks of distances into a `RankingResult`, with one pass over the blocks."""
    check_choice("average precision", ap, _AP_DEFINITIONS)
    check_number("max_rank", max_rank, 1)
    if camera_pairs and not protocol.has_cameras:
        raise DataError("Scores by camera pair need camera ids. Pass query_camids and gallery_camids.")
    protocol.require_matches()
    matches = protocol.matches
    all_ranks, by_camera = _MatchRanks(matches), {}
    for camera in np.setdiff1d(protocol.gallery_camids, [UNKNOWN]) if camera_pairs else []:
        items = np.flatnonzero(protocol.gallery_camids == camera)
        part = matches.select(protocol.gallery_camids[matches.item] == camera)
        by_camera[camera] = _MatchRanks(Pairs(part.query, np.searchsorted(items, part.item), part.first), items)

    def add(rows: NDArray[Any], start: int) -> None:
        for ranks in (all_ranks, *by_camera.values()):
            ranks.add(rows, start)

    with workers() as pool:  # sorting and comparing let other threads run
        for first, block in blocks:
            starts = range(0, len(block), _ROWS)
            list(pool.map(add, (block[i : i + _ROWS] for i in starts), (first + i for i in starts)))
    for ranks in (all_ranks, *by_camera.values()):
        ranks.finish()
    first_match, last_match = all_ranks.at(matches.first[:-1]), all_ranks.at(matches.first[1:] - 1)
    valid = first_match[first_match > 0]
    counts = np.bincount(np.minimum(valid, max_rank + 1), minlength=max_rank + 2)
    with np.errstate(invalid="ignore"):
        inp = matches.counts / np.where(matches.counts, last_match, np.nan)
    definition = f"{ap} ({_AP_DEFINITIONS[ap]})"
    return RankingResult(
        cmc=np.cumsum(counts[1 : max_rank + 1]) / len(valid),
        ap=all_ranks.average_precision(ap),
        inp=inp,
        first_match=first_match,
        n_matches=matches.counts,
        dropped=protocol.dropped(),
        protocol={"metric": metric, "average precision": definition, **protocol.describe()},
        pairs=_camera_pairs(protocol.query_camids, by_camera, ap) if camera_pairs else None,
    )


def _camera_pairs(query_camids: Integers, by_camera: dict[int, _MatchRanks], ap: str) -> CameraPairs:
    cameras = np.setdiff1d(query_camids, [UNKNOWN])
    shape = (len(cameras), len(by_camera))
    mean_ap, rank1, queries = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, dtype=np.int64)
    for b, ranks in enumerate(by_camera.values()):
        aps, first = ranks.average_precision(ap), ranks.at(ranks.wanted.first[:-1])
        for a in range(len(cameras)):
            rows = (query_camids == cameras[a]) & (first > 0)
            queries[a, b] = rows.sum()
            if queries[a, b]:
                mean_ap[a, b], rank1[a, b] = aps[rows].mean(), (first[rows] == 1).mean()
    return CameraPairs(cameras, np.array([*by_camera]), mean_ap, rank1, queries)
