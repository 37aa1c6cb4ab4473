"""The old CUHK03 protocol: CMC in galleries that hold one item of each identity, drawn many times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import ReidError
from reid.evaluation.features import MEMORY_LIMIT, Features, Metric, distance_blocks
from reid.evaluation.protocol import Integers, Pairs, Protocol
from reid.evaluation.ranking import prepared


@dataclass(frozen=True, eq=False)
class SingleShotResult:
    """CMC over galleries of one item a person. Fractions in 0..1.

    Attributes:
        cmc: `[max_rank]` float64, the mean over the draws; flat from the number of identities on.
        spread: `[max_rank]` float64, the standard deviation between draws; 0 for a single one.
        n_valid: queries that were scored.
        dropped: queries that were left out, by reason.
        protocol: the rules, in words and plain values.
    """

    cmc: NDArray[np.float64]
    spread: NDArray[np.float64]
    n_valid: int
    dropped: dict[str, int]
    protocol: dict[str, Any]


def single_shot_cmc(
    query_features: Features,
    gallery_features: Features,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
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
    """Single-gallery-shot CMC, as CUHK03's first protocol has it (Li et al., "DeepReID", CVPR 2014).

    In each of `repeats` draws every identity keeps one gallery item, drawn evenly; a query's own identity keeps one of
    the query's right matches (with `cross_camera`, not of its own camera). CMC(k) is the share of queries whose own
    one is among the first k. There is no mAP: each query has one right match.

    Corner cases: every pid is one identity, also that of distractors (0); junk (-1) is left out; equal distances rank
    by gallery order; a query without a right match is dropped and counted, as in `evaluate`. The draws depend on
    `seed` and the gallery alone.

    Args:
        query_features: `[Q, D]`, and the other columns as in `evaluate`.
        repeats: galleries drawn; 100 in the paper.

    Raises:
        ReidError: as in `evaluate`.
    """
    if max_rank < 1 or repeats < 1:
        raise ReidError(f"max_rank and repeats must be at least 1, not {max_rank} and {repeats}.")
    protocol = Protocol.of(query_pids, gallery_pids, query_camids, gallery_camids, cross_camera)
    query, gallery = prepared(query_features, gallery_features, metric, protocol)
    protocol.require_some_match()
    rng = np.random.default_rng(seed)
    identities, identity = np.unique(protocol.gallery_pids, return_inverse=True)
    draws = [rng.permutation(len(identity)) for _ in range(repeats)]
    chosen = [_first_of_each(identity, draw) for draw in draws]
    own = np.searchsorted(identities, protocol.query_pids)
    hits = np.zeros((repeats, max_rank), dtype=np.int64)
    for start, block in distance_blocks(query, gallery, metric, memory_limit):
        matches = protocol.matches.of_queries(start, start + len(block))
        rows = np.flatnonzero(matches.counts)
        if not len(rows):
            continue
        for repeat, (draw, items) in enumerate(zip(draws, chosen, strict=True)):
            right = _drawn_match(matches, draw)
            others = block[np.ix_(rows, items)]
            others[np.arange(len(rows)), own[start + rows]] = np.inf
            mine = block[rows, right][:, None]
            ahead = (others < mine) | ((others == mine) & (items < right[:, None]))
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


def _first_of_each(identity: Integers, draw: Integers) -> Integers:
    """The item of each identity that comes first in a draw `[G]` (an item's place), by identity."""
    order = np.lexsort((draw, identity))
    return order[np.flatnonzero(np.diff(identity[order], prepend=-1))]


def _drawn_match(matches: Pairs, draw: Integers) -> Integers:
    """The right match that comes first in a draw, of each query that has one."""
    order = np.lexsort((draw[matches.item], matches.query))
    return matches.item[order[matches.first[:-1][matches.counts > 0]]]
