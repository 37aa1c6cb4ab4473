"""Open-set identification: search a gallery for people of whom some are not in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.core.errors import DataError, check_number
from reid.evaluation.features import MEMORY_LIMIT, EmbeddingTable, Features, Labels, Metric, unpack_tables
from reid.evaluation.pairs import RatePoint
from reid.evaluation.protocol import JUNK, NO_IDENTITY, Integers, Protocol, Search

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OpenSetResult:
    """Scores of open-set identification. See `open_set`.

    Attributes:
        points: one for each false-alarm rate.
        n_mated, n_unmated: number of queries whose identity is in the gallery, and is not.
        dropped: number of queries that were not scored, by reason.
        mated: `[n_mated]` float64, distance of each mated query's nearest right match; inf if its rank is too low.
        unmated: `[n_unmated]` float64, distance of each unmated query's nearest gallery item.
        protocol: the rules behind the scores, as plain values.
    """

    points: tuple[RatePoint, ...]
    n_mated: int
    n_unmated: int
    dropped: dict[str, int]
    mated: Floats
    unmated: Floats
    protocol: dict[str, Any]

    def curve(self) -> tuple[Floats, Floats, Floats]:
        """Return false-alarm rate, DIR and threshold, `[P]` each, ascending, where the false-alarm rate changes."""
        threshold = np.append(np.unique(self.unmated), np.inf)
        far = np.searchsorted(np.sort(self.unmated), threshold, "left") / self.n_unmated
        found = np.searchsorted(np.sort(self.mated[np.isfinite(self.mated)]), threshold, "left") / self.n_mated
        return far, found, threshold

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as plain Python, ready for JSON."""
        return {
            "dir": [asdict(point) for point in self.points],
            "mated_queries": self.n_mated,
            "unmated_queries": self.n_unmated,
            "dropped": dict(self.dropped),
            "protocol": dict(self.protocol),
        }


def open_set(
    query_features: Features | EmbeddingTable,
    gallery_features: Features | EmbeddingTable,
    query_pids: ArrayLike | None = None,
    gallery_pids: ArrayLike | None = None,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    *,
    metric: Metric = "cosine",
    cross_camera: bool = True,
    rank: int = 1,
    fars: Sequence[float] = (1e-1, 1e-2, 1e-3),
    unenrolled: float = 0.0,
    bootstrap: int = 1000,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
) -> OpenSetResult:
    """Compute DIR at FAR (Phillips, Grother, Micheals, "Evaluation Methods in Face Recognition", 2011, ch. 21).

    The gallery is that of `evaluate`: junk (pid -1) is ignored for all queries, and with `cross_camera` a query's own
    identity in its own camera for that query. A query is *mated* if its identity is in the rest, else *unmated*. With
    d₁(q) the distance to the nearest item, and d⁺(q), r⁺(q) the distance and rank of the nearest right match (equal
    distances rank by gallery order):

    - FAR(t): fraction of unmated queries with d₁ < t.
    - DIR(t): fraction of mated queries with r⁺ ≤ `rank` and d⁺ < t.
    - DIR at FAR f: DIR(t) at the largest d₁ of an unmated query for which FAR(t) ≤ f. It needs 10/f unmated queries,
      else None.
    - Intervals: percentiles 2.5 and 97.5 over draws of query identities with replacement, separately for mated and
      unmated queries.

    Corner cases:
    1. A query whose identity is only in its own camera is unmated, because these items are ignored.
    2. A query of pid -1 is dropped: it is unknown whether its identity is in the gallery.
    3. If every identity is in the gallery (as in Market-1501) there are no false alarms to count. `unenrolled=0.5`
       removes a random half of the query identities from the gallery.

    Args:
        query_features, gallery_features, query_pids, gallery_pids, query_camids, gallery_camids: as in `evaluate`.
        metric, cross_camera, memory_limit: as in `evaluate`. Distances: 1 − cosine similarity, or ‖q − g‖.
        rank: largest rank of the right match.
        fars: false-alarm rates, each above 0 and below 1.
        unenrolled: fraction of the query identities to remove from the gallery, 0 or more and below 1.
        bootstrap: number of draws; 0 for no intervals.
        seed: of the draws and of the removed identities.

    Raises:
        DataError: as `evaluate`; or no query is mated, or all are.
        ConfigError: a setting out of range.

    Example:
        >>> import numpy as np
        >>> gallery = np.eye(20)
        >>> result = open_set(gallery, gallery, range(20), range(20), cross_camera=False, unenrolled=0.5, fars=(0.5,))
        >>> result.n_mated, result.n_unmated
        (10, 10)
    """
    check_number("rank", rank, 1)
    check_number("unenrolled, a fraction of the query identities,", unenrolled, 0, 1, below=True)
    for far in fars:
        check_number("A false-alarm rate", far, 0, 1, above=True, below=True)
    rng = np.random.default_rng(seed)
    labels: Labels = (query_pids, gallery_pids, query_camids, gallery_camids)
    (query, gallery), labels = unpack_tables((query_features, gallery_features), labels)
    rules = Protocol(labels, cross_camera)
    identities = np.setdiff1d(rules.query_pids, [JUNK])
    removed = rng.permutation(identities)[: round(unenrolled * len(identities))]
    searched = np.where(np.isin(np.asarray(labels[1]), removed), JUNK, np.asarray(labels[1]))
    search = Search(query, gallery, (labels[0], searched, *labels[2:]), metric, cross_camera)
    protocol = search.protocol
    if not len(protocol.kept):
        raise DataError("All gallery items have pid -1, so there is nothing to search. Pass items with an identity.")
    known = protocol.query_pids != JUNK

    nearest, right = np.full(len(known), np.inf), np.full(len(known), np.inf)
    for start, block in search.blocks(memory_limit):
        for row, distances in enumerate(block, start):
            matches = protocol.matches.items_of(row)
            nearest[row] = distances.min()
            if len(matches):
                best = matches[np.argmin(distances[matches])]
                ahead = np.count_nonzero(distances < distances[best])
                ahead += np.count_nonzero(distances[:best] == distances[best])
                if ahead < rank:
                    right[row] = distances[best]
    if metric == "euclidean":
        nearest, right = np.sqrt(np.maximum(nearest, 0)), np.sqrt(np.maximum(right, 0))
    has_match = protocol.matches.counts > 0
    mated, unmated = known & has_match, known & ~has_match
    if not mated.any() or not unmated.any():
        raise DataError(
            f"Open-set scores need queries whose identity is in the gallery and queries whose identity is not: of "
            f"{int(known.sum()):,} with an identity, {int(mated.sum()):,} are in the gallery. "
            + (
                "Add queries of other people, or set unenrolled=0.5 to remove half of the identities from the gallery."
                if mated.any()
                else "Check that query and gallery use the same pids, and the cross-camera rule."
            )
        )
    pids = protocol.query_pids
    return OpenSetResult(
        points=_points((pids[mated], right[mated]), (pids[unmated], nearest[unmated]), fars, bootstrap, rng),
        n_mated=int(mated.sum()),
        n_unmated=int(unmated.sum()),
        dropped={} if known.all() else {NO_IDENTITY: int((~known).sum())},
        mated=right[mated],
        unmated=nearest[unmated],
        protocol={
            "metric": metric,
            "rank": rank,
            "cross-camera": protocol.describe()["cross-camera"],
            "gallery": len(protocol.kept),
            "junk": rules.gallery_size - len(rules.kept),
            "identities taken out of the gallery": len(removed),
            "accepted": "distance below the threshold",
            "seed": seed,
        },
    )


def _points(
    mated: tuple[Integers, Floats],
    unmated: tuple[Integers, Floats],
    fars: Sequence[float],
    draws: int,
    rng: np.random.Generator,
) -> tuple[RatePoint, ...]:
    """Return DIR at each FAR with its interval; `mated` and `unmated` are the pids and distances of the queries."""
    sides = []
    for pids, scores in (mated, unmated):
        person = np.unique(pids, return_inverse=True)[1]
        order = np.argsort(scores, kind="stable")
        sides.append((person[order], scores[order], int(person.max()) + 1))
    (person_m, found, n_m), (person_u, alarms, n_u) = sides
    drawn: list[list[float]] = [[] for _ in fars]
    for _ in range(draws):
        weight_m = rng.multinomial(n_m, np.full(n_m, 1 / n_m))[person_m]
        below = np.cumsum(rng.multinomial(n_u, np.full(n_u, 1 / n_u))[person_u])
        reached = np.concatenate([[0], np.cumsum(weight_m)])
        for values, far in zip(drawn, fars, strict=True):
            over = int(np.searchsorted(below, far * below[-1] * (1 + 1e-12), "right"))
            threshold = alarms[min(over, len(alarms) - 1)]
            values.append(float(reached[np.searchsorted(found, threshold, "left")] / reached[-1]))
    points = []
    for far, values in zip(fars, drawn, strict=True):
        threshold = float(alarms[int(np.floor(far * len(alarms) * (1 + 1e-12)))])
        interval = np.percentile(values, [2.5, 97.5]).tolist() if values else (None, None)
        point = RatePoint(far, threshold, float((found < threshold).mean()), *interval)
        points.append(RatePoint.without_rate(far, "queries who are not in the gallery", len(alarms)) or point)
    return tuple(points)
