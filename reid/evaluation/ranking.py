"""CMC, mAP and mINP, in blocks: no row is sorted whole and no query × gallery matrix is held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.errors import ReidError, did_you_mean
from reid.evaluation.features import (
    MEMORY_LIMIT,
    Features,
    Metric,
    distance_blocks,
    prepare_features,
    rows_per_block,
)

JUNK = -1
"""The pid of gallery items that count neither as right nor as wrong, and of queries that nobody labelled."""

NO_IDENTITY = "no identity (pid -1)"
NOT_IN_GALLERY = "identity not in gallery"
OWN_CAMERA_ONLY = "only in the query's own camera"

AveragePrecision = Literal["precision", "trapezoid"]

_AP_IN_WORDS = {
    "precision": "mean of the precision at each right match",
    "trapezoid": "area under the precision-recall curve by trapezoids (official Market-1501 code)",
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
    """

    cmc: NDArray[np.float64]
    ap: NDArray[np.float64]
    inp: NDArray[np.float64]
    first_match: NDArray[np.int64]
    n_matches: NDArray[np.int64]
    dropped: dict[str, int]
    protocol: dict[str, Any]

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
    memory_limit: int = MEMORY_LIMIT,
) -> RankingResult:
    """Rank the gallery for every query and score the rankings.

    For a query, gallery items of pid -1 (junk) and, with `cross_camera`, items of the query's own identity seen by
    its own camera are taken out; the rest is ranked by distance. With the right matches at ranks r₁ < … < rₙ among
    what is left:

    - CMC(k): the share of queries with r₁ ≤ k.
    - AP, "precision": (1/n) Σᵢ i/rᵢ.
    - AP, "trapezoid": (1/n) Σᵢ ½ (i/rᵢ + (i−1)/(rᵢ−1)), where the second term is 1 if rᵢ = 1; the official
      Market-1501 evaluation (Zheng et al., ICCV 2015).
    - mINP: the mean of n/rₙ (Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", 2021).

    Corner cases:
    1. Equal distances rank by gallery order. Computed distances are float32, so two items are equal when they come
       out so; different block sizes may round differently.
    2. A query without a right match is dropped from all scores and counted in `dropped` with its reason: pid -1,
       identity absent from the gallery, or all its matches in its own camera.
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
        memory_limit: bytes a block of distances may take (one row at least).

    Raises:
        ReidError: shapes do not fit; a feature is NaN, infinite or (cosine) zero; an unknown setting; or no query
            has any right match, in which case the message says why and what to do.
    """
    labels = _Labels.of(query_pids, gallery_pids, query_camids, gallery_camids, cross_camera)
    _check_settings(ap, max_rank)
    query, gallery = prepare_features(query_features, gallery_features, metric)
    labels.check_lengths(len(query), len(gallery))
    labels.require_some_match()
    if len(labels.kept) < len(gallery):
        gallery = gallery[torch.from_numpy(labels.kept).to(gallery.device)]
    name = "cosine distance" if metric == "cosine" else "Euclidean distance"
    return _score(distance_blocks(query, gallery, metric, memory_limit), labels, name, ap, max_rank)


def evaluate_distances(
    distances: Features,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    *,
    cross_camera: bool = True,
    ap: AveragePrecision = "precision",
    max_rank: int = 50,
    memory_limit: int = MEMORY_LIMIT,
    metric: str = "distances as given",
) -> RankingResult:
    """Score rankings by given distances `[Q, G]` (smaller is nearer), for instance re-ranked ones.

    Everything else is as in `evaluate`; `metric` only names the distances in the protocol.

    Raises:
        ReidError: as in `evaluate`; or a distance is NaN or infinite.
    """
    labels = _Labels.of(query_pids, gallery_pids, query_camids, gallery_camids, cross_camera)
    _check_settings(ap, max_rank)
    matrix: Any = distances if isinstance(distances, Tensor) else np.asarray(distances)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ReidError(f"Distances have shape {tuple(matrix.shape)}; expected [queries, gallery items].")
    labels.check_lengths(*matrix.shape)
    labels.require_some_match()
    return _score(_given_blocks(matrix, labels.kept, memory_limit), labels, metric, ap, max_rank)


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
    labels = _Labels.of(query_pids, gallery_pids, query_camids, gallery_camids, cross_camera)
    query, gallery = prepare_features(query_features, gallery_features, metric)
    labels.check_lengths(len(query), len(gallery))
    if len(labels.kept) < len(gallery):
        gallery = gallery[torch.from_numpy(labels.kept).to(gallery.device)]
    indices = np.full((len(query), k), -1, dtype=np.int64)
    found = np.full((len(query), k), np.inf, dtype=np.float32)
    for start, block in distance_blocks(query, gallery, metric, memory_limit):
        for row, distances in enumerate(block, start):
            distances[labels.matches(row)[1]] = np.inf
            nearest = nearest_in_row(distances, k)
            nearest = nearest[np.isfinite(distances[nearest])]
            indices[row, : len(nearest)] = labels.kept[nearest]
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


def _check_settings(ap: str, max_rank: int) -> None:
    if ap not in _AP_IN_WORDS:
        raise ReidError(f"Unknown average precision {ap!r}.{did_you_mean(ap, _AP_IN_WORDS)}")
    if max_rank < 1:
        raise ReidError(f"max_rank must be at least 1, not {max_rank}.")


def _column(values: ArrayLike, name: str) -> NDArray[np.int64]:
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iub"):
        raise ReidError(f"{name} must be one column of integers, not shape {array.shape} of type {array.dtype}.")
    return array.astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Labels:
    """Who is where: finds, for a query, its right matches and the items that do not count.

    `kept [G′]` are the gallery items that are not junk; every other index here is a position in `kept`.
    """

    query_pids: NDArray[np.int64]
    query_camids: NDArray[np.int64]
    gallery_pids: NDArray[np.int64]
    gallery_camids: NDArray[np.int64]
    gallery_size: int
    kept: NDArray[np.int64]
    by_pid: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    cross_camera: bool

    @classmethod
    def of(
        cls,
        query_pids: ArrayLike,
        gallery_pids: ArrayLike,
        query_camids: ArrayLike | None,
        gallery_camids: ArrayLike | None,
        cross_camera: bool,
    ) -> _Labels:
        if cross_camera and (query_camids is None or gallery_camids is None):
            raise ReidError("Cross-camera evaluation needs camera ids. Without cameras, set cross_camera=False.")
        q_pids, g_pids = _column(query_pids, "query_pids"), _column(gallery_pids, "gallery_pids")
        q_cams = _column(np.zeros(len(q_pids), int) if query_camids is None else query_camids, "query_camids")
        g_cams = _column(np.zeros(len(g_pids), int) if gallery_camids is None else gallery_camids, "gallery_camids")
        for name, pids, cams in (("query", q_pids, q_cams), ("gallery", g_pids, g_cams)):
            if len(pids) != len(cams):
                raise ReidError(f"There are {len(pids)} {name}_pids but {len(cams)} {name}_camids.")
        kept = np.flatnonzero(g_pids != JUNK)
        by_pid = np.argsort(g_pids[kept], kind="stable")
        ordered = g_pids[kept][by_pid]
        return cls(
            query_pids=q_pids,
            query_camids=q_cams,
            gallery_pids=g_pids[kept],
            gallery_camids=g_cams[kept],
            gallery_size=len(g_pids),
            kept=kept,
            by_pid=by_pid,
            first=np.searchsorted(ordered, q_pids, "left"),
            last=np.searchsorted(ordered, q_pids, "right"),
            cross_camera=cross_camera,
        )

    def check_lengths(self, n_query: int, n_gallery: int) -> None:
        for name, rows, labels in (
            ("query", n_query, len(self.query_pids)),
            ("gallery", n_gallery, self.gallery_size),
        ):
            if rows != labels:
                raise ReidError(f"There are {rows} {name} items but {labels} {name}_pids.")

    def matches(self, query: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Right matches of a query, and items to leave out, both in gallery order."""
        same = self.by_pid[self.first[query] : self.last[query]]
        if not self.cross_camera:
            return same, same[:0]
        own = self.gallery_camids[same] == self.query_camids[query]
        return same[~own], same[own]

    def reason(self, query: int) -> str:
        """Why a query without a right match has none."""
        if self.query_pids[query] == JUNK:
            return NO_IDENTITY
        return NOT_IN_GALLERY if self.first[query] == self.last[query] else OWN_CAMERA_ONLY

    def require_some_match(self) -> None:
        """Say what is the matter when every query would be dropped."""
        if any(len(self.matches(query)[0]) for query in range(len(self.query_pids))):
            return
        reasons: dict[str, int] = {}
        for query in range(len(self.query_pids)):
            reasons[self.reason(query)] = reasons.get(self.reason(query), 0) + 1
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        message = f"None of the {len(self.query_pids)} queries has a right match to be ranked ({counts}). "
        if OWN_CAMERA_ONLY in reasons:
            cameras = np.unique(np.concatenate([self.query_camids, self.gallery_camids]))
            if len(cameras) == 1:
                message += f"All items are of one camera ({cameras[0]}). "
            message += (
                "The cross-camera protocol leaves out gallery items of the query's own identity and camera. "
                "If cameras are unknown or do not matter here, set cross_camera=False; else check the camera ids."
            )
        else:
            message += (
                "Queries are matched by identity: query_pids and gallery_pids must number the same people alike, "
                "and pid -1 means unlabelled. Check that both come from one data set."
            )
        raise ReidError(message)


def _given_blocks(matrix: Any, kept: NDArray[np.int64], memory_limit: int) -> Iterator[tuple[int, NDArray[Any]]]:
    rows = rows_per_block(matrix.shape[1], memory_limit)
    for start in range(0, len(matrix), rows):
        part = matrix[start : start + rows]
        block = part.detach().cpu().numpy() if isinstance(part, Tensor) else part
        block = block.astype(np.float32 if block.dtype in (np.float16, np.float32) else np.float64)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = start + int(np.flatnonzero(~finite)[0])
            raise ReidError(f"Distances of query {row} hold NaN or infinity. Give finite distances.")
        yield start, block[:, kept] if len(kept) < matrix.shape[1] else block


def _ranks(distances: NDArray[Any], matches: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks (from 1, ascending) of the items `matches` in a row of distances `[G]`, equal ones in gallery order.

    Only what is not farther than the farthest match is looked at: it is sorted, and each match finds its place.
    """
    wanted = distances[matches]
    near = distances[np.flatnonzero(distances <= wanted.max())]
    near.sort()
    before = np.searchsorted(near, wanted, "left")
    tied = np.searchsorted(near, wanted, "right") - before > 1
    for i in np.flatnonzero(tied):
        before[i] += np.count_nonzero(distances[: matches[i]] == wanted[i])
    before.sort()
    return before + 1


def _average_precision(ranks: NDArray[np.int64], ap: str) -> float:
    found = np.arange(1, len(ranks) + 1)
    precision = found / ranks
    if ap == "precision":
        return float(precision.mean())
    before = np.where(ranks > 1, (found - 1) / np.maximum(ranks - 1, 1), 1.0)
    return float((precision + before).mean() / 2)


def _score(
    blocks: Iterable[tuple[int, NDArray[Any]]], labels: _Labels, metric: str, ap: str, max_rank: int
) -> RankingResult:
    n_query = len(labels.query_pids)
    aps, inps = np.full(n_query, np.nan), np.full(n_query, np.nan)
    first_match, n_matches = np.zeros(n_query, dtype=np.int64), np.zeros(n_query, dtype=np.int64)
    dropped: dict[str, int] = {}
    for start, block in blocks:
        for query, distances in enumerate(block, start):
            matches, left_out = labels.matches(query)
            if not len(matches):
                reason = labels.reason(query)
                dropped[reason] = dropped.get(reason, 0) + 1
                continue
            distances[left_out] = np.inf
            ranks = _ranks(distances, matches)
            aps[query] = _average_precision(ranks, ap)
            inps[query] = len(ranks) / ranks[-1]
            first_match[query], n_matches[query] = ranks[0], len(ranks)
    found = first_match[first_match > 0]
    counts = np.bincount(np.minimum(found, max_rank + 1), minlength=max_rank + 2)
    protocol = {
        "metric": metric,
        "average precision": f"{ap} ({_AP_IN_WORDS[ap]})",
        "cross-camera": (
            "gallery items of the query's own identity and camera are left out"
            if labels.cross_camera
            else "off: nothing is left out by camera"
        ),
        "ties": "gallery order",
        "queries": n_query,
        "gallery": len(labels.kept),
        "junk": labels.gallery_size - len(labels.kept),
    }
    return RankingResult(
        cmc=np.cumsum(counts[1 : max_rank + 1]) / len(found),
        ap=aps,
        inp=inps,
        first_match=first_match,
        n_matches=n_matches,
        dropped=dropped,
        protocol=protocol,
    )
