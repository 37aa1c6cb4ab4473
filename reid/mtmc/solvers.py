"""From candidate pairs to identities: four ways, each of which joins only what the rules allow for all members."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from reid.core.errors import ReidError
from reid.mtmc.candidates import Candidates
from reid.mtmc.constraints import Rules

SOLVERS = ("agglomerative", "single_linkage", "hungarian", "correlation")

_PASSES = 5
_BETTER = 1e-9
_PAIRS_AT_ONCE = 2**20


class Clusters:
    """Who is joined so far. A cluster is known by a number; joining makes one number stand for both."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.members: list[NDArray[np.int64]] = [np.array([row], np.int64) for row in range(len(rules.tracklets))]
        self.of = np.arange(len(rules.tracklets))
        self.bound: set[int] = set()
        """Rows that were joined from the start and are not moved singly."""

    def may_join(self, a: int, b: int) -> bool:
        """Whether the rules allow every member of a with every member of b."""
        return self.rules.allow(self.members[a], self.members[b])

    def may_join_each(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.bool_]:
        """`may_join` of each of the pairs of clusters `[n]`."""
        sides = [(self.members[one], self.members[other]) for one, other in zip(a.tolist(), b.tolist(), strict=True)]
        pairs = np.array([len(one) * len(other) for one, other in sides], np.int64)
        allowed = np.empty(len(a), bool)
        for part in np.split(np.arange(len(a)), np.flatnonzero(np.diff(np.cumsum(pairs) // _PAIRS_AT_ONCE)) + 1):
            if len(part):
                first = np.concatenate([np.repeat(sides[k][0], len(sides[k][1])) for k in part])
                second = np.concatenate([np.tile(sides[k][1], len(sides[k][0])) for k in part])
                begins = np.cumsum(pairs[part]) - pairs[part]
                allowed[part] = ~np.logical_or.reduceat(self.rules.stops(first, second) != 0, begins)
        return allowed

    def join(self, keep: int, gone: int) -> None:
        """Put the second cluster into the first."""
        self.of[self.members[gone]] = keep
        self.members[keep] = np.concatenate([self.members[keep], self.members[gone]])
        self.members[gone] = np.zeros(0, np.int64)

    def move(self, row: int, to: int) -> None:
        """Take one tracklet out of its cluster and put it into another, which may be empty."""
        own = int(self.of[row])
        self.members[own] = self.members[own][self.members[own] != row]
        self.members[to] = np.append(self.members[to], row)
        self.of[row] = to


def apply_must_links(clusters: Clusters) -> None:
    """Join what must be joined.

    Raises:
        ReidError: that breaks a rule.
    """
    for first, second in clusters.rules.must:
        a, b = int(clusters.of[first]), int(clusters.of[second])
        if a == b:
            continue
        if not clusters.may_join(a, b):
            names = [clusters.rules.tracklets.name(int(row)) for row in (first, second)]
            raise ReidError(
                f"{names[0]} and {names[1]} are to be one person, but a rule stops them or what is already joined "
                "with them (seen at once, too fast, or split by a constraint). Take one of the two back."
            )
        clusters.join(a, b)
    clusters.bound.update(clusters.rules.must.reshape(-1).tolist())


def apply_stitching(clusters: Clusters) -> None:
    """Join each tracklet that goes on another track (`Tracklets.previous_track`) to that one's last part, where
    allowed."""
    t = clusters.rules.tracklets
    parts: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(t.camera.tolist(), t.track.tolist(), strict=True)):
        parts.setdefault(key, []).append(row)
    for row in np.flatnonzero(t.previous_track >= 0).tolist():
        earlier = parts.get((int(t.camera[row]), int(t.previous_track[row])))
        if earlier:
            last = max(earlier, key=lambda part: t.end[part])
            a, b = int(clusters.of[last]), int(clusters.of[row])
            if a != b and clusters.may_join(a, b):
                clusters.join(a, b)
                clusters.bound |= {last, row}


def agglomerative(candidates: Candidates, clusters: Clusters, threshold: float) -> list[tuple[float, int, int]]:
    """Average linkage: join the two clusters of least mean distance, while that is at most `threshold`.

    The mean is over all pairs of members; one that is no candidate counts as `far`. A join is made only if the rules
    allow every pair. Ties: lower cluster numbers first; the lower number stands for both.

    All pairs of clusters that are each other's nearest are joined at once, then again: a join never brings a third
    cluster nearer than the nearer of the two was (nor does a forbidden pair become allowed), so the joins are those
    that are made one by one. For the same reason a cluster whose nearest is beyond `threshold` is out for good.

    Returns:
        The joins by mean distance: (mean distance, kept, gone).
    """
    far, n = candidates.far, len(clusters.of)
    free = clusters.rules.stops(candidates.first, candidates.second) == 0
    # Of each pair of clusters S = Σ (far − distance) over its candidate pairs is held: the total is `pairs · far − S`.
    nearness = np.where(free, far - candidates.distance.astype(np.float64), -np.inf)
    size = np.array([len(rows) for rows in clusters.members], np.int64)
    height = np.zeros(n)
    low, high, nearness = _between(clusters.of[candidates.first], clusters.of[candidates.second], nearness, n)
    joins: list[tuple[float, int, int]] = []
    while True:
        value = far - nearness / (size[low] * size[high])
        least = np.full(n, np.inf)
        np.minimum.at(least, low, value)
        np.minimum.at(least, high, value)
        alive = np.flatnonzero((least[low] <= threshold) & (least[high] <= threshold))
        if len(alive) == 0:
            return sorted(joins, key=lambda join: join[0])
        low, high, nearness, value = low[alive], high[alive], nearness[alive], value[alive]
        partner = np.full(n, n)
        for one, other in ((low, high), (high, low)):
            best = value == least[one]
            np.minimum.at(partner, one[best], other[best])
        mutual = np.flatnonzero((partner[low] == high) & (partner[high] == low))
        allowed = clusters.may_join_each(low[mutual], high[mutual])
        nearness[mutual[~allowed]] = -np.inf
        made = mutual[allowed]
        keep, gone = low[made], high[made]
        height[keep] = np.maximum(value[made], np.maximum(height[keep], height[gone]))
        for join in zip(height[keep].tolist(), keep.tolist(), gone.tolist(), strict=True):
            clusters.join(join[1], join[2])
            joins.append(join)
        size[keep] += size[gone]
        number = np.arange(n)
        number[gone] = keep
        changed = np.zeros(n, bool)
        changed[keep] = changed[gone] = True
        touched = changed[low] | changed[high]
        new = _between(number[low[touched]], number[high[touched]], nearness[touched], n)
        low, high, nearness = (
            np.concatenate([old[~touched], fresh]) for old, fresh in zip((low, high, nearness), new, strict=True)
        )


def _between(
    a: NDArray[np.int64], b: NDArray[np.int64], nearness: NDArray[np.float64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Sums over equal pairs of two different clusters of n: lower number, higher number, sum."""
    code, index = np.unique(np.minimum(a, b) * n + np.maximum(a, b), return_inverse=True)
    total = np.bincount(index, nearness, minlength=len(code))
    low, high = np.divmod(code, n)
    apart = low != high
    return low[apart], high[apart], total[apart]


def correlation(costs: Candidates, clusters: Clusters) -> None:
    """Correlation clustering: the sum of `costs` within identities is made small; no threshold.

    A cost is −log p/(1 − p) of two tracklets being one person: below 0 where they rather are. Greedy contraction
    (Keuper et al. 2015, GAEC) joins the two clusters between which the sum of costs is lowest while it is below 0,
    then single tracklets move where they lower the sum most, or out, until none does (5 passes at most).
    """
    _contract(costs, clusters)
    move_single_tracklets(costs, clusters, lambda total, count: -total)


def reassign(candidates: Candidates, clusters: Clusters, threshold: float) -> int:
    """Move each tracklet to the identity of least mean distance, or out where its own is beyond `threshold`.

    Returns:
        How many moves were made.
    """
    return move_single_tracklets(candidates, clusters, lambda total, count: threshold - total / count)


def single_linkage(candidates: Candidates, clusters: Clusters, threshold: float) -> None:
    """Threshold and components: join over every candidate pair of at most `threshold`, nearest first, where allowed."""
    near = np.flatnonzero(candidates.distance <= threshold)
    for row in near[np.argsort(candidates.distance[near], kind="stable")]:
        a, b = int(clusters.of[candidates.first[row]]), int(clusters.of[candidates.second[row]])
        if a != b and clusters.may_join(a, b):
            clusters.join(a, b)


def hungarian(candidates: Candidates, clusters: Clusters, threshold: float) -> None:
    """Chains in time: each tracklet gets at most one successor in each camera and is that of at most one there.

    For every ordered pair of cameras (a, b; b may be a), tracklets of a and later ones of b that are candidates of at
    most `threshold` are assigned to each other at least total distance, where being left alone costs `threshold`.
    "Later" is by start, ties by row. The links of all camera pairs are then joined, nearest first, where allowed.
    """
    t = clusters.rules.tracklets
    near = np.flatnonzero(candidates.distance <= threshold)
    near = near[clusters.rules.stops(candidates.first[near], candidates.second[near]) == 0]
    first, second = candidates.first[near], candidates.second[near]
    swap = (t.start[second] < t.start[first]) | ((t.start[second] == t.start[first]) & (second < first))
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    distance = candidates.distance[near]
    way = t.camera[first] * len(t.camera_names) + t.camera[second]
    order = np.argsort(way, kind="stable")
    links: list[NDArray[np.int64]] = []
    for part in np.split(order, np.flatnonzero(np.diff(way[order])) + 1):
        if len(part) == 0:
            continue
        rows, i = np.unique(first[part], return_inverse=True)
        columns, j = np.unique(second[part], return_inverse=True)
        # One more column for each row, in which it is left alone. The matching takes 0 for "no edge".
        alone = np.arange(len(rows))
        costs = np.concatenate([distance[part], np.full(len(rows), threshold)]) + 1.0
        matrix = sparse.csr_matrix(
            (costs, (np.concatenate([i, alone]), np.concatenate([j, len(columns) + alone]))),
            shape=(len(rows), len(columns) + len(rows)),
        )
        chosen_row, chosen_column = min_weight_full_bipartite_matching(matrix)
        wanted = set(zip(chosen_row.tolist(), chosen_column.tolist(), strict=True))
        taken = [place for place, a, b in zip(part, i, j, strict=True) if (int(a), int(b)) in wanted]
        links.append(np.array(taken, np.int64))
    if not links:
        return
    kept = near[np.concatenate(links)]
    single_linkage(
        replace(
            candidates,
            first=candidates.first[kept],
            second=candidates.second[kept],
            distance=candidates.distance[kept],
        ),
        clusters,
        threshold,
    )


def _contract(costs: Candidates, clusters: Clusters) -> None:
    """Join the two clusters between which the total of costs is lowest again and again, while it is below 0.

    Of each pair of clusters only S = Σ (far − cost) over their candidate pairs is held, since the total is
    `pairs · far − S`; a join adds two such sums.
    """
    far = costs.far
    links: list[dict[int, float]] = [{} for _ in clusters.members]
    of = clusters.of
    nearness = far - costs.distance.astype(np.float64)
    for i, j, near in zip(of[costs.first].tolist(), of[costs.second].tolist(), nearness.tolist(), strict=True):
        if i != j:
            links[i][j] = links[j][i] = links[i].get(j, 0.0) + near
    size = [len(rows) for rows in clusters.members]
    version = [0] * len(size)
    heap: list[tuple[float, int, int, int, int, int]] = []

    def push_best(owner: int) -> None:
        """Put the best link of a cluster on the heap. That of its partner is there by itself."""
        mine, partner, best = size[owner], -1, -np.inf
        for other, near in links[owner].items():
            value = near - mine * size[other] * far
            if value > best or (value == best and other < partner):
                best, partner = value, other
        if best >= _BETTER:
            low, high = (owner, partner) if owner < partner else (partner, owner)
            heapq.heappush(heap, (-best, low, high, owner, version[owner], version[partner]))

    for number, near_ones in enumerate(links):
        if near_ones:
            push_best(number)
    while heap:
        # A join never brings a third cluster's links below its best one, or the join's own entry has it, so an entry
        # that is out of date is looked at again only when it comes up.
        _, a, b, owner, seen_owner, seen_partner = heapq.heappop(heap)
        partner = b if owner == a else a
        if version[owner] != seen_owner:
            continue
        if version[partner] != seen_partner or partner not in links[owner]:
            push_best(owner)
            continue
        if not clusters.may_join(a, b):
            del links[a][b], links[b][a]
            push_best(owner)
            continue
        keep, gone = (a, b) if len(links[a]) >= len(links[b]) else (b, a)
        clusters.join(keep, gone)
        size[keep] += size[gone]
        version[keep] += 1
        version[gone] = -1
        del links[keep][gone], links[gone][keep]
        mine = links[keep]
        for other, near in links[gone].items():
            mine[other] = links[other][keep] = mine.get(other, 0.0) + near
            del links[other][gone]
        links[gone] = {}
        push_best(keep)


def move_single_tracklets(candidates: Candidates, clusters: Clusters, worth: Callable[[float, int], float]) -> int:
    """Let one tracklet after the other (in row order) go where it is worth most, as far as the rules allow.

    Args:
        candidates: distances (or costs); pairs that are not there count as `far`.
        clusters: changed in place.
        worth: of a tracklet in a cluster, from the total of its distances to the others there and their number; being
            alone is worth 0. Ties: it stays; then the lower number.

    Returns:
        How many moves were made, over 5 passes at most.
    """
    n = candidates.tracklets
    near, start, distance = _neighbour_lists(candidates)
    moves = 0
    for _ in range(_PASSES):
        before = moves
        for row in range(n):
            part = slice(start[row], start[row + 1])
            if start[row] == start[row + 1] or row in clusters.bound:
                continue
            own = int(clusters.of[row])
            groups, index = np.unique(clusters.of[near[part]], return_inverse=True)
            total = np.bincount(index, distance[part])
            known = np.bincount(index)
            values: list[tuple[float, int]] = []
            stay = 0.0
            for group, sum_known, count_known in zip(groups.tolist(), total.tolist(), known.tolist(), strict=True):
                others = len(clusters.members[group]) - (group == own)
                gain = worth(sum_known + (others - count_known) * candidates.far, others)
                if group == own:
                    stay = gain
                else:
                    values.append((-gain, group))
            if own not in groups and len(clusters.members[own]) > 1:
                others = len(clusters.members[own]) - 1
                stay = worth(others * candidates.far, others)
            best = next(
                (
                    (-loss, group)
                    for loss, group in sorted(values)
                    if -loss > max(stay, 0.0) + _BETTER
                    and clusters.rules.allow(np.array([row]), clusters.members[group])
                ),
                None,
            )
            if best is not None:
                clusters.move(row, best[1])
                moves += 1
            elif stay < -_BETTER and len(clusters.members[own]) > 1:
                empty = next(number for number in (row, *range(n)) if len(clusters.members[number]) == 0)
                clusters.move(row, empty)
                moves += 1
        if moves == before:
            break
    return moves


def _neighbour_lists(
    candidates: Candidates,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Each tracklet's candidates one after the other: rows `[2 L]`, where each one's begin `[T + 1]`, distances."""
    i = np.concatenate([candidates.first, candidates.second])
    j = np.concatenate([candidates.second, candidates.first])
    order = np.lexsort((j, i))
    start = np.searchsorted(i[order], np.arange(candidates.tracklets + 1))
    return j[order], start, np.concatenate([candidates.distance, candidates.distance])[order].astype(np.float64)
