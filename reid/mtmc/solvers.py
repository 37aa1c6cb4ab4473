"""Solvers that turn candidate pairs into identities. A join is made only if the rules allow all pairs of members."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import get_args

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from reid.config import Solver
from reid.core.arrays import concatenated_ranges
from reid.core.errors import ConfigError
from reid.data.tracks import Floats, Integers
from reid.evaluation.clustering import Candidates, Joins, average_linkage, mean_distances, sum_by_cluster_pair
from reid.mtmc.constraints import Rules
from reid.mtmc.pooling import Mask
from reid.mtmc.transitions import group_by_cameras

SOLVERS: tuple[str, ...] = get_args(Solver)
"""Names of the solvers."""

_MAX_PASSES = 5
_MIN_GAIN = 1e-9
_PAIRS_PER_BLOCK = 2**20


class Clusters:
    """The current clusters of tracklets, by number.

    Args:
        rules: Rules of the tracklets.
        labels: `[T]` cluster of each tracklet; each tracklet alone if not given.
    """

    def __init__(self, rules: Rules, labels: Integers | None = None) -> None:
        n = len(rules.tracklets)
        self.rules = rules
        self.labels = np.arange(n) if labels is None else labels.copy()
        self.pinned: set[int] = set()
        """Rows that were joined beforehand and are not moved individually."""
        self._members: list[Integers] | None = None

    @property
    def members(self) -> list[Integers]:
        """Rows of each cluster."""
        if self._members is None:
            order, begins, _ = self._by_cluster()
            self._members = np.split(order, begins[1:])
        return self._members

    def _by_cluster(self) -> tuple[Integers, Integers, Integers]:
        """Rows in order of their cluster, and the first place and the size of each cluster, `[T]`."""
        size = np.bincount(self.labels, minlength=len(self.labels))
        return np.argsort(self.labels, kind="stable"), np.cumsum(size) - size, size

    def may_join(self, a: int, b: int) -> bool:
        """Whether the rules allow every member of a with every member of b."""
        return self.rules.allow(self.members[a], self.members[b])

    def join_rows(self, first: int, second: int) -> bool:
        """Join the clusters of two tracklets if allowed; return whether they are in one cluster."""
        a, b = int(self.labels[first]), int(self.labels[second])
        if a == b or not self.may_join(a, b):
            return a == b
        self.join(a, b)
        return True

    def may_join_each(self, a: Integers, b: Integers) -> Mask:
        """`may_join` of each pair of clusters, `[n]`."""
        order, begins, size = self._by_cluster()
        pairs = size[a] * size[b]
        allowed = np.empty(len(a), bool)
        for part in np.split(np.arange(len(a)), np.flatnonzero(np.diff(np.cumsum(pairs) // _PAIRS_PER_BLOCK)) + 1):
            if len(part):
                one, other = a[part], b[part]
                times = np.repeat(size[other], size[one])
                first = np.repeat(order[concatenated_ranges(begins[one], size[one])], times)
                second = order[concatenated_ranges(np.repeat(begins[other], size[one]), times)]
                starts = np.cumsum(pairs[part]) - pairs[part]
                allowed[part] = ~np.logical_or.reduceat(self.rules.violations(first, second) != 0, starts)
        return allowed

    def join_each(self, kept: Integers, removed: Integers) -> Mask:
        """`join` the pairs of clusters that the rules allow, and return which, `[n]`. Each cluster is in one pair."""
        allowed = self.may_join_each(kept, removed)
        self.join_all(kept[allowed], removed[allowed])
        return allowed

    def join_all(self, kept: Integers, removed: Integers) -> None:
        """`join` the pairs of clusters. Each cluster is in one pair."""
        label = np.arange(len(self.labels))
        label[removed] = kept
        self.labels, self._members = label[self.labels], None

    def join(self, kept: int, removed: int) -> None:
        """Move all members of the second cluster into the first."""
        members = self.members
        self.labels[members[removed]] = kept
        members[kept] = np.concatenate([members[kept], members[removed]])
        members[removed] = np.zeros(0, np.int64)

    def move(self, row: int, to: int) -> None:
        """Move one tracklet into another cluster, which may be empty."""
        source, members = int(self.labels[row]), self.members
        members[source] = members[source][members[source] != row]
        members[to] = np.append(members[to], row)
        self.labels[row] = to


def apply_must_links(clusters: Clusters) -> None:
    """Join the must-linked tracklets.

    Raises:
        ConfigError: A must-link breaks a rule.
    """
    for first, second in clusters.rules.must_link:
        if not clusters.join_rows(first, second):
            names = [clusters.rules.tracklets.describe(int(row)) for row in (first, second)]
            raise ConfigError(
                f"{names[0]} and {names[1]} are must-linked, but a rule separates them or tracklets that are already "
                "joined with them (same camera and time, too fast, or a cannot-link). Remove one of the constraints."
            )
    clusters.pinned.update(clusters.rules.must_link.reshape(-1).tolist())


def apply_stitching(clusters: Clusters) -> None:
    """Join each tracklet to the last part of the track that it continues (`Tracklets.previous_track`), if allowed."""
    t = clusters.rules.tracklets
    stitched = np.flatnonzero(t.previous_track >= 0).tolist()
    if not stitched:
        return
    parts: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(t.camera.tolist(), t.track.tolist(), strict=True)):
        parts.setdefault(key, []).append(row)
    for row in stitched:
        earlier = parts.get((int(t.camera[row]), int(t.previous_track[row])))
        if earlier:
            last = max(earlier, key=lambda part: t.end[part])
            if clusters.join_rows(last, row):
                clusters.pinned |= {last, row}


def agglomerative(candidates: Candidates, clusters: Clusters, threshold: float) -> Joins:
    """`average_linkage` of the clusters. A join is made only if the rules allow every pair of members."""
    allowed = clusters.rules.violations(candidates.first, candidates.second) == 0
    has_feature = clusters.rules.tracklets.has_feature
    return average_linkage(candidates, threshold, clusters.labels, has_feature, allowed, clusters.join_each)


def decision_distances(candidates: Candidates, identity: Integers, start: Clusters) -> Floats:
    """Distance by which average linkage decides each candidate pair, given the final identities, `[L]`.

    For two tracklets of one identity: the mean distance at which their groups are joined by average linkage within the
    identity; 0 if they were joined beforehand. For tracklets of two identities: the mean distance between these.

    Args:
        candidates: L pairs of T tracklets.
        identity: `[T]`, without violations.
        start: Clusters before the first join by distance (must-links, stitched tracks).
    """
    first, second, n = candidates.first, candidates.second, candidates.tracklets
    same = identity[first] == identity[second]
    labels = np.unique(identity * n + start.labels, return_inverse=True)[1].reshape(-1)
    joins = agglomerative(candidates.take(same), Clusters(start.rules, labels), np.finfo(np.float64).max)
    heights = np.append(joins.distance, 0.0)
    parent, time = np.arange(n), np.full(n, len(joins))
    parent[joins.removed], time[joins.removed] = joins.kept, np.arange(len(joins))
    a, b = labels[first[same]], labels[second[same]]
    joined_at = np.full(len(a), -1)
    while (differ := a != b).any():  # Climb to the join that both have in common, the earlier removal first.
        swap = time[a] > time[b]
        a, b = np.where(swap, b, a), np.where(swap, a, b)
        joined_at[differ] = time[a[differ]]
        a = np.where(differ, parent[a], a)
    has_feature = start.rules.tracklets.has_feature
    size = np.bincount(identity, has_feature, minlength=int(identity.max(initial=0)) + 1)
    extra = (~(has_feature[first] & has_feature[second])).astype(np.float64)
    columns = np.stack([candidates.far - candidates.looks, extra, *candidates.space])
    low, high, sums = sum_by_cluster_pair(identity[first], identity[second], columns, len(size))
    mean = mean_distances(candidates, sums, size[low] * size[high])
    code = np.minimum(identity[first], identity[second]) * len(size) + np.maximum(identity[first], identity[second])
    distance = np.zeros(len(candidates))
    distance[same] = heights[joined_at]
    distance[~same] = mean[np.searchsorted(low * len(size) + high, code[~same])]
    return distance


def correlation(costs: Candidates, clusters: Clusters) -> None:
    """Correlation clustering: minimise the sum of `costs` within identities; needs no threshold.

    A cost is −log p/(1 − p), where p is the probability that two tracklets show one person, so it is negative for
    likely pairs. Greedy contraction (GAEC, Keuper et al. 2015) joins the two clusters with the lowest sum of costs
    while it is below 0. Then single tracklets move to where they lower the sum most, for at most 5 passes.

    Stored for each pair of clusters: S = Σ (far − cost) over its candidate pairs. The total is `pairs · far − S`, and
    a join adds two such sums.
    """
    links: list[dict[int, float]] = [{} for _ in clusters.members]
    similarity = costs.far - costs.distance.astype(np.float64)
    first, second = clusters.labels[costs.first].tolist(), clusters.labels[costs.second].tolist()
    for i, j, pair_similarity in zip(first, second, similarity.tolist(), strict=True):
        if i != j:
            links[i][j] = links[j][i] = links[i].get(j, 0.0) + pair_similarity
    size = [len(rows) for rows in clusters.members]
    heap: list[tuple[float, int, int]] = []

    def push(a: int, b: int) -> None:
        gain = links[a][b] - size[a] * size[b] * costs.far
        if gain >= _MIN_GAIN:
            heapq.heappush(heap, (-gain, min(a, b), max(a, b)))

    for number, cluster_links in enumerate(links):
        for other in cluster_links:
            if number < other:
                push(number, other)
    while heap:
        total, a, b = heapq.heappop(heap)
        if b not in links[a] or links[a][b] - size[a] * size[b] * costs.far != -total:
            continue  # One of the two clusters has changed since.
        allowed = clusters.may_join(a, b)
        keep, gone = (a, b) if len(links[a]) >= len(links[b]) else (b, a)
        del links[a][b], links[b][a]
        if not allowed:
            continue
        clusters.join(keep, gone)
        size[keep] += size[gone]
        for other, value in links[gone].items():
            links[keep][other] = links[other][keep] = links[keep].get(other, 0.0) + value
            del links[other][gone]
        links[gone] = {}
        for other in links[keep]:
            push(keep, other)
    move_single_tracklets(costs, clusters, lambda total, count: -total)


def reassign(candidates: Candidates, clusters: Clusters, threshold: float) -> int:
    """Move single tracklets to the identity of smallest mean distance, or out if theirs is beyond `threshold`.

    Returns:
        The number of moves.
    """
    return move_single_tracklets(candidates, clusters, lambda total, count: threshold - total / count)


def single_linkage(candidates: Candidates, clusters: Clusters, threshold: float) -> None:
    """Single linkage: join over every candidate pair within `threshold`, nearest first, where the rules allow it."""
    within = np.flatnonzero(candidates.distance <= threshold)
    for row in within[np.argsort(candidates.distance[within], kind="stable")]:
        clusters.join_rows(candidates.first[row], candidates.second[row])


def hungarian(candidates: Candidates, clusters: Clusters, threshold: float) -> None:
    """Assignment in time: each tracklet has at most one successor, and is at most one successor, in each camera.

    For every ordered pair of cameras (a, b; b may equal a), tracklets of a are assigned to later tracklets of b with
    minimal total distance. Only candidates within `threshold` are used, and no successor costs `threshold`. "Later" is
    by start, ties by row. The links of all camera pairs are then joined, nearest first, where the rules allow it.
    """
    t = clusters.rules.tracklets
    rows = np.flatnonzero(candidates.distance <= threshold)
    rows = rows[clusters.rules.violations(candidates.first[rows], candidates.second[rows]) == 0]
    within = candidates.take(rows)
    first, second = t.in_time_order(within.first, within.second)
    links: list[Integers] = []
    for part in group_by_cameras(t, first, second).values():
        rows, i = np.unique(first[part], return_inverse=True)
        columns, j = np.unique(second[part], return_inverse=True)
        # An extra column for each row means "no successor". A stored 0 would mean "no edge", hence + 1.
        alone = np.arange(len(rows))
        costs = np.concatenate([within.distance[part], np.full(len(rows), threshold)]) + 1.0
        matrix = sparse.csr_matrix(
            (costs, (np.concatenate([i, alone]), np.concatenate([j, len(columns) + alone]))),
            shape=(len(rows), len(columns) + len(rows)),
        )
        chosen_row, chosen_column = min_weight_full_bipartite_matching(matrix)
        links.append(part[chosen_column[np.argsort(chosen_row)][i] == j])
    if links:
        single_linkage(within.take(np.concatenate(links)), clusters, threshold)


def move_single_tracklets(candidates: Candidates, clusters: Clusters, value: Callable[[float, int], float]) -> int:
    """Local search: move one tracklet at a time, in row order, to its best allowed cluster; at most 5 passes.

    Args:
        candidates: Distances (or costs); pairs that are not candidates count as `far`.
        clusters: Changed in place.
        value: Value of a tracklet in a cluster, from the sum of its distances to the other members and their number.
            Being alone has value 0. Ties: the tracklet stays; then the lower cluster number.

    Returns:
        The number of moves.
    """
    n = candidates.tracklets
    pairs = np.concatenate([[candidates.first, candidates.second], [candidates.second, candidates.first]], axis=1)
    known = sparse.csr_array((np.tile(candidates.distance.astype(np.float64), 2), pairs), shape=(n, n))
    moves = 0
    for _ in range(_MAX_PASSES):
        before = moves
        for row in range(n):
            part = slice(known.indptr[row], known.indptr[row + 1])
            if part.start == part.stop or row in clusters.pinned:
                continue
            current = int(clusters.labels[row])
            groups, index = np.unique(np.append(clusters.labels[known.indices[part]], current), return_inverse=True)
            total, count = (
                np.bincount(index[:-1], known.data[part], len(groups)),
                np.bincount(index[:-1], None, len(groups)),
            )
            values: dict[int, float] = {}
            for group, known_sum, known_count in zip(groups.tolist(), total.tolist(), count.tolist(), strict=True):
                others = len(clusters.members[group]) - (group == current)
                values[group] = value(known_sum + (others - known_count) * candidates.far, others) if others else 0.0
            stay = values.pop(current)
            better = (
                group
                for group in sorted(values, key=lambda group: (-values[group], group))
                if values[group] > max(stay, 0.0) + _MIN_GAIN
                and clusters.rules.allow(np.array([row]), clusters.members[group])
            )
            target = next(better, None)
            if target is None and stay < -_MIN_GAIN and len(clusters.members[current]) > 1:
                target = next(number for number in (row, *range(n)) if len(clusters.members[number]) == 0)
            if target is not None:
                clusters.move(row, target)
                moves += 1
        if moves == before:
            break
    return moves
