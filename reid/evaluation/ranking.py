"""CMC, mAP and mINP, in blocks: no row is sorted whole and no query × gallery matrix is held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.core.errors import ReidError, did_you_mean
from reid.evaluation.features import (
    MEMORY_LIMIT,
    Features,
    Metric,
    distance_blocks,
    prepare_features,
    rows_per_block,
)
from reid.evaluation.protocol import Integers, Pairs, Protocol

AveragePrecision = Literal["precision", "trapezoid"]

_AP_IN_WORDS = {
    "precision": "mean of the precision at each right match",
    "trapezoid": "area under the precision-recall curve by trapezoids (official Market-1501 code)",
}


_ROWS = 64
"""Rows that are ranked at a time: enough to keep NumPy busy, few enough to stay in the cache."""


@dataclass(frozen=True, eq=False)
class CameraPairs:
    """Scores of the queries of one camera in the gallery of one camera only, for every such pair.

    Attributes:
        query_cameras: `[A]` int64, camera ids in order; gallery_cameras: `[B]`.
        mAP, rank1: `[A, B]` float64; nan where no query of the one camera has a right match in the other.
        queries: `[A, B]` int64, how many have one: the number that a cell's means are over.
    """

    query_cameras: Integers
    gallery_cameras: Integers
    mAP: NDArray[np.float64]
    rank1: NDArray[np.float64]
    queries: Integers

    def as_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON; None where a cell has no query."""
        return {
            "query_cameras": self.query_cameras.tolist(),
            "gallery_cameras": self.gallery_cameras.tolist(),
            **{
                name: [[None if np.isnan(cell) else cell for cell in row] for row in values.tolist()]
                for name, values in (("mAP", self.mAP), ("rank-1", self.rank1))
            },
            "queries": self.queries.tolist(),
        }


@dataclass(frozen=True, eq=False)
class RankingResult:
    """How well the gallery was ranked for `Q` queries. All scores are fractions in 0..1.

    Attributes:
        cmc: `[max_rank]` float64; `cmc[k − 1]` is the share of valid queries with a right match among the first k.
            Flat from the gallery's size on.
        ap: `[Q]` float64, average precision of each query; nan where the query was dropped.
        inp: `[Q]` float64, inverse negative penalty: right matches / rank of the last one; nan where dropped.
        first_match: `[Q]` int64, rank (from 1) of the first right match; 0 where the query was dropped.
        n_matches: `[Q]` int64, how many right matches the gallery held under the protocol.
        dropped: how many queries were left out of the scores, by reason.
        protocol: the rules the scores were made by, in words and plain values.
        pairs: scores by camera pair, where they were asked for.
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
        """Queries that were scored."""
        return int((self.first_match > 0).sum())

    @property
    def n_dropped(self) -> int:
        """Queries that were left out; `dropped` says why."""
        return len(self.first_match) - self.n_valid

    def rank(self, k: int) -> float:
        """The CMC at rank `k`, also beyond `max_rank`.

        Raises:
            ReidError: `k` is below 1.
        """
        if k < 1:
            raise ReidError(f"Ranks count from 1, not {k}.")
        found = self.first_match[self.first_match > 0]
        return float((found <= k).mean())

    def as_dict(self) -> dict[str, Any]:
        """The scores and the protocol as plain Python, ready for JSON; the per-query columns are left out."""
        return {
            "mAP": self.mAP,
            "mINP": self.mINP,
            **{f"rank-{k}": self.rank(k) for k in (1, 5, 10, 20)},
            "cmc": [float(share) for share in self.cmc],
            "queries_used": self.n_valid,
            "queries_dropped": self.n_dropped,
            "dropped": dict(self.dropped),
            "protocol": dict(self.protocol),
            **({} if self.pairs is None else {"camera_pairs": self.pairs.as_dict()}),
        }


def evaluate(
    query_features: Features,
    gallery_features: Features,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
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

    For a query, gallery items of pid -1 (junk) and, with `cross_camera`, items of the query's own identity seen by
    its own camera are taken out, and so is what `excluded` marks; the rest is ranked by distance. With the right
    matches at ranks r₁ < … < rₙ among what is left:

    - CMC(k): the share of queries with r₁ ≤ k.
    - AP, "precision": (1/n) Σᵢ i/rᵢ.
    - AP, "trapezoid": (1/n) Σᵢ ½ (i/rᵢ + (i−1)/(rᵢ−1)), where the second term is 1 if rᵢ = 1; the official
      Market-1501 evaluation (Zheng et al., ICCV 2015).
    - mINP: the mean of n/rₙ (Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", 2021).

    Corner cases:
    1. Equal distances rank by gallery order. Computed distances are float32, so two items are equal when they come
       out so; different block sizes may round differently.
    2. A query without a right match is dropped from all scores and counted in `dropped` with its reason: pid -1,
       identity absent from the gallery, all its matches in its own camera, or some there and the rest excluded.
    3. Without `cross_camera` nothing is left out by camera. An image that is both query and gallery item then finds
       itself: take it out of the gallery.
    4. Distractors (pid 0 in Market-1501) are ordinary wrong answers.
    5. `max_rank` may exceed the gallery.

    Args:
        query_features: `[Q, D]` numbers of any type, NumPy or torch on any device; computed with in float32.
        gallery_features: `[G, D]` likewise.
        query_pids: `[Q]` integers; gallery_pids: `[G]`.
        query_camids: `[Q]` integers in any coding, or None with `cross_camera=False`; gallery_camids: `[G]`.
        metric: "cosine" (1 − cosine similarity) or "euclidean" (of the features as given).
        cross_camera: leave the query's own identity in its own camera out.
        ap: which average precision.
        max_rank: length of the CMC.
        excluded: `[Q, G]` bool, or None; True takes a gallery item out of that query's ranking.
        camera_pairs: also score every pair of a query camera and a gallery camera alone (`RankingResult.pairs`).
        memory_limit: bytes a block of distances may take (one row at least).

    Raises:
        ReidError: shapes do not fit; a feature is NaN, infinite or (cosine) zero; an unknown setting; or no query
            has any right match, in which case the message says why and what to do.
    """
    protocol = Protocol.of(query_pids, gallery_pids, query_camids, gallery_camids, cross_camera, excluded)
    _check_settings(ap, max_rank, camera_pairs, protocol)
    query, gallery = prepared(query_features, gallery_features, metric, protocol)
    protocol.require_some_match()
    name = "cosine distance" if metric == "cosine" else "Euclidean distance"
    return _score(distance_blocks(query, gallery, metric, memory_limit), protocol, name, ap, max_rank, camera_pairs)


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
        distances: `[Q, G]`, NumPy or torch on any device; or an iterator of `(first row, [b, G])` over all queries in
            order, such as `rerank_blocks` gives, so that the whole need not be held.

    Raises:
        ReidError: as in `evaluate`; a distance is NaN or infinite; or the blocks are not all rows in order.
    """
    protocol = Protocol.of(query_pids, gallery_pids, query_camids, gallery_camids, cross_camera, excluded)
    _check_settings(ap, max_rank, camera_pairs, protocol)
    if not isinstance(distances, Iterator):
        matrix: Any = distances if isinstance(distances, Tensor) else np.asarray(distances)
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ReidError(f"Distances have shape {tuple(matrix.shape)}; expected [queries, gallery items].")
        protocol.check_lengths(*matrix.shape)
        rows = rows_per_block(matrix.shape[1], memory_limit)
        distances = ((start, matrix[start : start + rows]) for start in range(0, len(matrix), rows))
    protocol.require_some_match()
    return _score(_given_blocks(distances, protocol), protocol, metric, ap, max_rank, camera_pairs)


def top_matches(
    query_features: Features,
    gallery_features: Features,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    k: int = 10,
    metric: Metric = "cosine",
    cross_camera: bool = True,
    memory_limit: int = MEMORY_LIMIT,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first `k` gallery items of each query under the protocol of `evaluate`, nearest first.

    Returns:
        indices `[Q, k]` int64 into the gallery and their distances `[Q, k]` float32. Equal distances stand in gallery
        order. Where fewer than `k` items are left, the row ends in index -1 and distance inf.

    Raises:
        ReidError: as in `evaluate`, except that queries without a right match are fine here.
    """
    if k < 1:
        raise ReidError(f"The number of matches must be at least 1, not {k}.")
    protocol = Protocol.of(query_pids, gallery_pids, query_camids, gallery_camids, cross_camera)
    query, gallery = prepared(query_features, gallery_features, metric, protocol)
    indices = np.full((len(query), k), -1, dtype=np.int64)
    found = np.full((len(query), k), np.inf, dtype=np.float32)
    for start, block in distance_blocks(query, gallery, metric, memory_limit):
        protocol.hide(block, start)
        for row, distances in enumerate(block, start):
            nearest = nearest_in_row(distances, k)
            nearest = nearest[np.isfinite(distances[nearest])]
            indices[row, : len(nearest)] = protocol.kept[nearest]
            found[row, : len(nearest)] = distances[nearest]
    if metric == "euclidean":
        found = np.sqrt(np.maximum(found, 0))
    return indices, found


def nearest_in_row(distances: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Indices of the `k` smallest of `distances [G]`, in order; equal ones stand in index order. At most `G`."""
    if k >= len(distances):
        return np.argsort(distances, kind="stable")
    farthest = np.partition(distances, k - 1)[k - 1]
    near = np.flatnonzero(distances <= farthest)
    return near[np.argsort(distances[near], kind="stable")[:k]]


def _check_settings(ap: str, max_rank: int, camera_pairs: bool, protocol: Protocol) -> None:
    if ap not in _AP_IN_WORDS:
        raise ReidError(f"Unknown average precision {ap!r}.{did_you_mean(ap, _AP_IN_WORDS)}")
    if max_rank < 1:
        raise ReidError(f"max_rank must be at least 1, not {max_rank}.")
    if camera_pairs and not protocol.has_cameras:
        raise ReidError("Scores by camera pair need camera ids of queries and gallery.")


def prepared(query: Features, gallery: Features, metric: str, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Both sides ready for `distance_blocks`, the gallery without junk, as the protocol numbers it."""
    ready_query, ready_gallery = prepare_features(query, gallery, metric)
    protocol.check_lengths(len(ready_query), len(ready_gallery))
    if len(protocol.kept) < len(ready_gallery):
        ready_gallery = ready_gallery[torch.from_numpy(protocol.kept).to(ready_gallery.device)]
    return ready_query, ready_gallery


def _given_blocks(blocks: Iterable[tuple[int, Any]], protocol: Protocol) -> Iterator[tuple[int, NDArray[Any]]]:
    """The caller's blocks, checked, as floats of our own without junk columns."""
    done, n_query = 0, len(protocol.query_pids)
    for start, part in blocks:
        given = part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
        if start != done or given.ndim != 2 or given.shape[1] != protocol.gallery_size or start + len(given) > n_query:
            raise ReidError(
                f"A block of distances holds rows {start} to {start + len(given)} in shape {list(given.shape)}; "
                f"expected rows from {done} on, of {n_query}, with {protocol.gallery_size} columns."
            )
        block = given.astype(np.float32 if given.dtype in (np.float16, np.float32) else np.float64)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise ReidError(f"Distances of query {row} hold NaN or infinity. Give finite distances.")
        done += len(block)
        yield start, block[:, protocol.kept] if len(protocol.kept) < protocol.gallery_size else block
    if done < n_query:
        raise ReidError(f"The blocks of distances end after {done} of {n_query} queries.")


def _ranks(distances: NDArray[Any], wanted: Pairs) -> Integers:
    """Ranks (from 1) of the items `wanted` in their rows of distances `[b, G]`, equal ones in gallery order.

    No row is sorted: what is not farther than a row's farthest wanted item is picked out of it and sorted, and each
    wanted item finds its place there.
    """
    ranks = np.empty(len(wanted.item), dtype=np.int64)
    if not len(ranks):
        return ranks
    values = distances[wanted.query, wanted.item]
    asked = np.flatnonzero(wanted.counts)
    farthest = np.full((len(distances), 1), -np.inf, dtype=distances.dtype)
    farthest[asked, 0] = np.maximum.reduceat(values, wanted.first[asked])
    place = np.flatnonzero(distances <= farthest)
    near = distances.reshape(-1)[place]
    ends = np.searchsorted(place, (asked + 1) * distances.shape[1])
    start, alone = 0, np.ones(len(ranks), dtype=bool)
    for row, end in zip(asked.tolist(), ends.tolist(), strict=True):
        candidates, mine = near[start:end], slice(wanted.first[row], wanted.first[row + 1])
        candidates.sort()
        before = candidates.searchsorted(values[mine])
        alone[mine] = candidates.searchsorted(values[mine], "right") == before + 1
        ranks[mine] = before
        start = end
    for i in np.flatnonzero(~alone):
        ranks[i] += np.count_nonzero(distances[wanted.query[i], : wanted.item[i]] == values[i])
    return ranks + 1


@dataclass(frozen=True, eq=False)
class _Found:
    """Ranks of the right matches of all queries, ascending within a query, and the scores of each query by them."""

    ranks: Integers
    pairs: Pairs

    @classmethod
    def of(cls, ranks: Integers, pairs: Pairs) -> _Found:
        return cls(ranks[np.lexsort((ranks, pairs.query))], pairs)

    def per_query(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean of one value a match, by query; nan where there is none."""
        sums = np.bincount(self.pairs.query, values, minlength=len(self.pairs.counts))
        with np.errstate(invalid="ignore"):
            return sums / self.pairs.counts

    def average_precision(self, ap: str) -> NDArray[np.float64]:
        found = np.arange(1, len(self.ranks) + 1) - self.pairs.first[self.pairs.query]
        precision = found / self.ranks
        if ap == "precision":
            return self.per_query(precision)
        before = np.where(self.ranks > 1, (found - 1) / np.maximum(self.ranks - 1, 1), 1.0)
        return self.per_query((precision + before) / 2)

    def at(self, place: Integers) -> Integers:
        """The rank at an index of each query with matches; 0 for the others."""
        has = self.pairs.counts > 0
        ranks = np.zeros(len(has), dtype=np.int64)
        ranks[has] = self.ranks[place[has]]
        return ranks

    @property
    def first_match(self) -> Integers:
        return self.at(self.pairs.first[:-1])

    @property
    def last_match(self) -> Integers:
        return self.at(self.pairs.first[1:] - 1)


def _score(
    blocks: Iterable[tuple[int, NDArray[Any]]],
    protocol: Protocol,
    metric: str,
    ap: str,
    max_rank: int,
    camera_pairs: bool,
) -> RankingResult:
    wanted = protocol.matches
    ranks = np.empty(len(wanted.item), dtype=np.int64)
    by_camera = _ByCamera.of(protocol) if camera_pairs else None
    for first, block in blocks:
        protocol.hide(block, first)
        for start in range(first, first + len(block), _ROWS):
            part = block[start - first : start - first + _ROWS]
            stop = start + len(part)
            ranks[wanted.first[start] : wanted.first[stop]] = _ranks(part, wanted.of_queries(start, stop))
            if by_camera is not None:
                by_camera.rank(part, start)
    found = _Found.of(ranks, wanted)
    first_match, n_matches = found.first_match, wanted.counts
    valid = first_match[first_match > 0]
    counts = np.bincount(np.minimum(valid, max_rank + 1), minlength=max_rank + 2)
    with np.errstate(invalid="ignore"):
        inp = n_matches / np.where(n_matches, found.last_match, np.nan)
    return RankingResult(
        cmc=np.cumsum(counts[1 : max_rank + 1]) / len(valid),
        ap=found.average_precision(ap),
        inp=inp,
        first_match=first_match,
        n_matches=n_matches,
        dropped=protocol.dropped(),
        protocol={"metric": metric, "average precision": f"{ap} ({_AP_IN_WORDS[ap]})", **protocol.describe()},
        pairs=None if by_camera is None else by_camera.scores(ap),
    )


@dataclass(frozen=True, eq=False)
class _ByCamera:
    """Ranks within the items of one gallery camera at a time."""

    protocol: Protocol
    cameras: Integers
    columns: list[Integers]
    wanted: list[Pairs]
    ranks: list[Integers]

    @classmethod
    def of(cls, protocol: Protocol) -> _ByCamera:
        cameras = np.unique(protocol.gallery_camids)
        columns = [np.flatnonzero(protocol.gallery_camids == camera) for camera in cameras]
        wanted = []
        for camera, items in zip(cameras, columns, strict=True):
            here = protocol.matches.where(protocol.gallery_camids[protocol.matches.item] == camera)
            wanted.append(Pairs(here.query, np.searchsorted(items, here.item), here.first))
        return cls(protocol, cameras, columns, wanted, [np.empty(len(pairs.item), np.int64) for pairs in wanted])

    def rank(self, distances: NDArray[Any], start: int) -> None:
        stop = start + len(distances)
        for items, wanted, ranks in zip(self.columns, self.wanted, self.ranks, strict=True):
            here = wanted.of_queries(start, stop)
            if len(here.item):
                ranks[wanted.first[start] : wanted.first[stop]] = _ranks(distances[:, items], here)

    def scores(self, ap: str) -> CameraPairs:
        cameras, of_query = np.unique(self.protocol.query_camids, return_inverse=True)
        shape = (len(cameras), len(self.cameras))
        mean_ap, rank1, queries = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, dtype=np.int64)
        for b, (ranks, wanted) in enumerate(zip(self.ranks, self.wanted, strict=True)):
            found = _Found.of(ranks, wanted)
            aps, first = found.average_precision(ap), found.first_match
            for a in range(len(cameras)):
                here = (of_query == a) & (first > 0)
                queries[a, b] = here.sum()
                if queries[a, b]:
                    mean_ap[a, b], rank1[a, b] = aps[here].mean(), (first[here] == 1).mean()
        return CameraPairs(cameras, self.cameras, mean_ap, rank1, queries)
