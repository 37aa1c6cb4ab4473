"""Single-gallery-shot CMC, the first protocol of CUHK03: galleries with one item of each identity, drawn many times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import check_number
from reid.evaluation.features import MEMORY_LIMIT, EmbeddingTable, Features, Metric
from reid.evaluation.protocol import Integers, Search


@dataclass(frozen=True, eq=False)
class SingleShotResult:
    """CMC over galleries with one item of each identity, as fractions in 0..1.

    Attributes:
        cmc: `[max_rank]` float64, mean over the draws; constant beyond the number of identities.
        spread: `[max_rank]` float64, standard deviation between draws; 0 for a single draw.
        n_valid: number of scored queries.
        dropped: number of queries that were not scored, by reason.
        protocol: the rules behind the scores, as plain values.
    """

    cmc: NDArray[np.float64]
    spread: NDArray[np.float64]
    n_valid: int
    dropped: dict[str, int]
    protocol: dict[str, Any]


def single_shot_cmc(
    query_features: Features | EmbeddingTable,
    gallery_features: Features | EmbeddingTable,
    query_pids: ArrayLike | None = None,
    gallery_pids: ArrayLike | None = None,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    *,
    metric: Metric = "cosine",
    cross_camera: bool = True,
    max_rank: int = 50,
    repeats: int = 100,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
) -> SingleShotResult:
    """Compute the single-gallery-shot CMC of CUHK03's first protocol (Li et al., "DeepReID", CVPR 2014).

    In each of `repeats` draws every identity keeps one gallery item, drawn uniformly. The query's own identity keeps
    one of the query's right matches (with `cross_camera`, not of its own camera). CMC(k) is the fraction of queries
    whose match is among the first k. There is no mAP because each query has one right match.

    Corner cases: every pid is one identity, also that of distractors (0); junk (-1) is ignored; equal distances rank
    by gallery order; a query without a right match is dropped and counted, as in `evaluate`. The draws depend only on
    `seed` and the gallery.

    Args:
        query_features: `[Q, D]`; this and the other columns are as in `evaluate`.
        repeats: number of draws; 100 in the paper.

    Raises:
        ReidError: as `evaluate`.
    """
    check_number("max_rank", max_rank, 1)
    check_number("repeats", repeats, 1)
    labels = (query_pids, gallery_pids, query_camids, gallery_camids)
    search = Search(query_features, gallery_features, labels, metric, cross_camera)
    protocol = search.protocol
    protocol.require_matches()
    rng = np.random.default_rng(seed)
    identities, identity = np.unique(protocol.gallery_pids, return_inverse=True)
    draws = [rng.permutation(len(identity)) for _ in range(repeats)]
    everything = np.arange(len(identity))
    galleries = [_first_of_each(identity, everything, draw) for draw in draws]
    own_column = np.searchsorted(identities, protocol.query_pids)
    hits = np.zeros((repeats, max_rank), dtype=np.int64)
    for start, block in search.blocks(memory_limit):
        matches = protocol.matches.of_queries(start, start + len(block))
        rows = np.flatnonzero(matches.counts)
        if not len(rows):
            continue
        for repeat, (draw, items) in enumerate(zip(draws, galleries, strict=True)):
            match = _first_of_each(matches.query, matches.item, draw)
            others = block[np.ix_(rows, items)]
            others[np.arange(len(rows)), own_column[start + rows]] = np.inf
            distance = block[rows, match][:, None]
            ahead = (others < distance) | ((others == distance) & (items < match[:, None]))
            ranks = ahead.sum(axis=1)
            hits[repeat] += np.bincount(ranks[ranks < max_rank], minlength=max_rank)
    n_valid = int((protocol.matches.counts > 0).sum())
    cmc = hits.cumsum(axis=1) / n_valid
    return SingleShotResult(
        cmc=cmc.mean(axis=0),
        spread=cmc.std(axis=0),
        n_valid=n_valid,
        dropped=protocol.dropped(),
        protocol={
            "metric": metric,
            "gallery shots": f"one item of each of {len(identities)} identities, drawn {repeats} times (seed {seed})",
            **protocol.describe(),
        },
    )


def _first_of_each(groups: Integers, items: Integers, draw: Integers) -> Integers:
    """Return the item of each group with the smallest number in a draw `[G]`; `groups` and `items` are `[M]`."""
    order = np.lexsort((draw[items], groups))
    return items[order[np.flatnonzero(np.diff(groups[order], prepend=-1))]]
