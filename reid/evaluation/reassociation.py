"""Re-association: is a person recognised k frames later among the people who are present then?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import concatenated_ranges, integer_column
from reid.core.errors import DataError, check_number
from reid.evaluation.features import MEMORY_LIMIT, Features, Metric, prepare_one
from reid.evaluation.protocol import Integers, Pairs

GAPS = (1, 10, 30, 100)
"""Default gaps, frames."""
ABSENT = "person not in the later frame"
ALONE = "fewer than two people in the later frame"


@dataclass(frozen=True)
class GapScores:
    """Scores of one gap, as fractions in 0..1. Undefined scores (no scored query) are None.

    Attributes:
        gap: frames between query and gallery.
        n_valid: number of scored queries.
        dropped: number of queries that were not scored, by reason.
        rank1: fraction of queries whose nearest crop is the same person.
        mrr: mean of 1 / rank of the right crop. Each query has one, so this is also mAP and mINP.
        chance: the rank-1 of a random choice: mean of 1 / number of candidates.
        candidates: mean number of people in the later frame.
    """

    gap: int
    n_valid: int
    dropped: dict[str, int]
    rank1: float | None
    mrr: float | None
    chance: float | None
    candidates: float | None


@dataclass(frozen=True)
class ReassociationResult:
    """Result of `reassociate`: scores by gap, and the rules behind them as plain values."""

    gaps: tuple[GapScores, ...]
    protocol: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"gaps": [asdict(gap) for gap in self.gaps], "protocol": self.protocol}


def query_rows(frames: Integers, cameras: Integers, stride: int) -> NDArray[np.bool_]:
    """Return which rows are queries: those in every `stride`-th frame from the first frame of their camera."""
    first = np.full(int(cameras.max(initial=0)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, cameras, frames)
    return (frames - first[cameras]) % stride == 0


def reassociate(
    features: Features,
    people: ArrayLike,
    frames: ArrayLike,
    cameras: ArrayLike | None = None,
    *,
    gaps: Sequence[int] = GAPS,
    stride: int = 10,
    metric: Metric = "cosine",
    memory_limit: int = MEMORY_LIMIT,
) -> ReassociationResult:
    """Score a model on crops of tracks with known identities, as a tracker would use it.

    Each crop in every `stride`-th frame of a camera is a query. Its gallery is all crops of the same camera exactly
    `gap` frames later. The query is scored if its person and at least one other are there; otherwise it is dropped and
    counted. The rank of the right crop is 1 plus the number of others that are as near or nearer: equal distances
    count as errors, because such a model cannot distinguish the people. All cameras together give one mean.

    Args:
        features: `[N, D]`, of crops.
        people: `[N]` true identity of each crop; below 0: unknown, left out and counted.
        frames: `[N]` frame of each crop.
        cameras: `[N]` camera of each crop; one camera if not given.
        gaps: frames between query and gallery, each at least 1.
        stride: frames between queries of one camera.
        metric: "cosine" or "euclidean".
        memory_limit: bytes for the distances of a block.

    Raises:
        ConfigError: a gap or the stride is below 1, or an unknown metric.
        DataError: columns of different length, invalid features, or a person twice in one frame of one camera.

    Example:
        >>> import numpy as np
        >>> features = np.array([[1, 0], [0, 1], [1, 0.2], [0.1, 1]], np.float32)
        >>> result = reassociate(features, people=[1, 2, 1, 2], frames=[1, 1, 6, 6], gaps=[5])
        >>> result.gaps[0].rank1, result.gaps[0].chance, result.gaps[0].n_valid
        (1.0, 0.5, 2)
    """
    check_number("stride", stride, 1)
    for gap in gaps:
        check_number("gap", gap, 1)
    ready = prepare_one(features, "crop", metric).cpu().numpy()
    n = len(ready)
    person, frame = integer_column("people", people, n), integer_column("frames", frames, n)
    names, camera = np.unique(
        integer_column("cameras", np.zeros(n, np.int64) if cameras is None else cameras, n), return_inverse=True
    )
    known = person >= 0
    order = np.flatnonzero(known)[np.lexsort((person[known], frame[known], camera[known]))]
    columns = np.stack([camera, frame, person])[:, order]
    repeated = np.flatnonzero((columns[:, 1:] == columns[:, :-1]).all(axis=0))
    if len(repeated):
        c, f, p = columns[:, repeated[0]].tolist()
        raise DataError(f"Person {p} has two crops in frame {f} of camera {names[c]}. Keep one per person and frame.")
    camera, frame, person = columns
    low = int(frame.min(initial=0))
    moment = camera * (int(frame.max(initial=0)) - low + 1 + max(gaps, default=0)) + frame - low
    moments, begin, count = np.unique(moment, return_index=True, return_counts=True)
    query = np.flatnonzero(query_rows(frame, camera, stride))
    scores = []
    for gap in gaps:
        found = np.searchsorted(moments, moment[query] + gap)
        at = np.minimum(found, len(moments) - 1)
        present = moments[at] == moment[query] + gap if len(moments) else np.zeros(0, bool)
        number = np.where(present, count[at], 0)
        item = concatenated_ranges(np.where(present, begin[at], 0), number)
        pairs = Pairs.from_columns(np.repeat(np.arange(len(query)), number), item, len(query))
        right = person[pairs.item] == person[query[pairs.query]]
        there = np.bincount(pairs.query[right], minlength=len(query)) > 0
        valid = there & (number > 1)
        blocks = _distances(ready[order], query[pairs.query], pairs.item, metric, memory_limit)
        distance = np.concatenate([np.zeros(0), *blocks])
        own = np.full(len(query), np.nan)
        own[pairs.query[right]] = distance[right]
        ahead = ~right & (distance <= own[pairs.query])
        rank = 1 + np.bincount(pairs.query[ahead], minlength=len(query))[valid]
        values = (rank == 1, 1 / rank, 1 / number[valid], number[valid])
        means = [float(np.mean(column)) if valid.any() else None for column in values]
        dropped = {ABSENT: int((~there).sum()), ALONE: int((there & (number < 2)).sum())}
        scores.append(GapScores(int(gap), int(valid.sum()), dropped, *means))
    protocol = {
        "metric": metric,
        "stride": int(stride),
        "crops": int(n),
        "crops of unknown people": int(n - len(order)),
        "cameras": len(np.unique(camera)),
        "queries": len(query),
        "gallery": "all crops of the query's camera exactly `gap` frames later, at least two",
        "ties": "count as errors",
    }
    return ReassociationResult(tuple(scores), protocol)


def _distances(
    features: NDArray[np.float32], first: Integers, second: Integers, metric: str, memory_limit: int
) -> Iterator[NDArray[np.float64]]:
    """Yield the distances of the pairs in blocks; in float64, so that equal features have equal distances."""
    rows = max(1, memory_limit // (3 * 8 * features.shape[1]))
    for start in range(0, len(first), rows):
        a, b = (features[side[start : start + rows]].astype(np.float64) for side in (first, second))
        yield 1 - np.einsum("nd,nd->n", a, b) if metric == "cosine" else np.linalg.norm(a - b, axis=1)
