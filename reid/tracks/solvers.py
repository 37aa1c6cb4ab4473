"""From candidate pairs to identities: four ways, each of which joins only what the rules allow for all members."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from reid.errors import ReidError
from reid.tracks.candidates import Candidates
from reid.tracks.constraints import Rules

SOLVERS = ("agglomerative", "threshold", "hungarian", "correlation")


class Clusters:
    """Who is joined so far. A cluster is known by a number; joining makes one number stand for both."""

    def __init__(self, rules: Rules, tracklets: int) -> None:
        self.rules = rules
        self.members: list[NDArray[np.int64]] = [np.array([row], np.int64) for row in range(tracklets)]
        self.of = np.arange(tracklets)

    def may_join(self, a: int, b: int) -> bool:
        """Whether the rules allow every member of a with every member of b."""
        return self.rules.allow(self.members[a], self.members[b])

    def join(self, keep: int, gone: int) -> None:
        """Put all of `gone` into `keep`."""
        self.of[self.members[gone]] = keep
        self.members[keep] = np.concatenate([self.members[keep], self.members[gone]])
        self.members[gone] = np.zeros(0, np.int64)


def join_musts(clusters: Clusters) -> None:
    """Join what must be joined.

    Raises:
        ReidError: that breaks a rule.
    """
    for first, second in clusters.rules.must:
        a, b = int(clusters.of[first]), int(clusters.of[second])
        if a == b:
            continue
        if not clusters.may_join(a, b):
            tracklets = clusters.rules.tracklets
            names = [
                f"camera {tracklets.camera_names[tracklets.camera[row]]}, track {tracklets.track[row]}"
                for row in (first, second)
            ]
            raise ReidError(
                f"{names[0]} and {names[1]} are to be one person, but a rule stops them or what is already joined "
                "with them (seen at once, too fast, or split by a constraint). Take one of the two back."
            )
        clusters.join(*sorted((a, b)))


def agglomerative(candidates: Candidates, clusters: Clusters, threshold: float) -> None:
    """Average linkage: join the two clusters of least mean distance, while that is at most `threshold`.

    The mean is over all pairs of members; one that is no candidate counts as `far`. A join is made only if the rules
    allow every pair. Ties: lower cluster numbers first.
    """
    links: list[dict[int, tuple[float, int]]] = [{} for _ in clusters.members]
    of = clusters.of
    for i, j, distance in zip(
        of[candidates.first].tolist(), of[candidates.second].tolist(), candidates.distance.tolist(), strict=True
    ):
        if i == j:
            continue
        total, count = links[i].get(j, (0.0, 0))
        links[i][j] = links[j][i] = (total + distance, count + 1)
    size = [len(rows) for rows in clusters.members]
    version = [0] * len(size)
    far = candidates.far

    def mean(a: int, b: int) -> float:
        total, count = links[a][b]
        pairs = size[a] * size[b]
        return (total + (pairs - count) * far) / pairs

    heap: list[tuple[float, int, int, int, int]] = []
    for a, near in enumerate(links):
        heap += [(value, a, b, 0, 0) for b in near if a < b and (value := mean(a, b)) <= threshold]
    heapq.heapify(heap)
    while heap:
        _, a, b, seen_a, seen_b = heapq.heappop(heap)
        if version[a] != seen_a or version[b] != seen_b:
            continue
        if not clusters.may_join(a, b):
            del links[a][b], links[b][a]
            continue
        keep, gone = (a, b) if len(links[a]) >= len(links[b]) else (b, a)
        clusters.join(keep, gone)
        size[keep] += size[gone]
        version[keep] += 1
        version[gone] = -1
        del links[keep][gone], links[gone][keep]
        mine = links[keep]
        for other, (total, count) in links[gone].items():
            had, had_count = mine.get(other, (0.0, 0))
            mine[other] = links[other][keep] = (had + total, had_count + count)
            del links[other][gone]
        links[gone] = {}
        for other in mine:
            value = mean(keep, other)
            if value <= threshold:
                low, high = (keep, other) if keep < other else (other, keep)
                heapq.heappush(heap, (value, low, high, version[low], version[high]))


def single_links(candidates: Candidates, clusters: Clusters, threshold: float) -> None:
    """Threshold and components: join over every candidate pair of at most `threshold`, nearest first, where allowed."""
    near = np.flatnonzero(candidates.distance <= threshold)
    for row in near[np.argsort(candidates.distance[near], kind="stable")]:
        a, b = int(clusters.of[candidates.first[row]]), int(clusters.of[candidates.second[row]])
        if a != b and clusters.may_join(a, b):
            clusters.join(*((a, b) if len(clusters.members[a]) >= len(clusters.members[b]) else (b, a)))
