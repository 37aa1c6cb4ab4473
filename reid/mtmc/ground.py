"""Space as evidence: positions on the ground, distances between simultaneous tracklets, and walks over gaps."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.core.arrays import concatenated_ranges
from reid.data.tracks import Floats, Integers
from reid.mtmc.solvers import Clusters
from reid.mtmc.tracklets import Tracklets

CORRELATION_SECONDS = 2.0
"""Errors of positions within this time count as one: a box that is too short stays too short for a while."""

MAX_INDEPENDENT = 4.0
"""Most independent positions that a pair counts as; two people who walk side by side stay close for long."""

MAX_LOG_RATIO = 20.0
"""Limit of the log-likelihood ratio of one pair, before `candidates.limit_ratio`."""

FAR_APART = 4.0
"""Pairs whose feet are, in the median, more than this many standard deviations apart are called far apart."""

MIN_SAMPLES = 5
"""Simultaneous positions that are needed to call two tracklets far apart."""

SPEED = 1.0
"""Standard deviation of a pedestrian's velocity in each direction, m/s: 1.4 m/s of walking, divided by √2."""

TURN_SECONDS = 2.0
"""Seconds after which a pedestrian's velocity is forgotten (by a factor of e)."""

MAX_GAP = 10.0
"""Longest gap in seconds over which a walk is extrapolated."""

MOTION_SECONDS = 1.5
"""Seconds at the end of a path from which position and velocity are estimated."""

MAX_SPEED = 2.5
"""Largest velocity in m/s that is extrapolated."""

FASTEST = 3.0
"""Speed in m/s that no one needs to walk from one tracklet to the next."""

DEFAULT_SPREAD = 5.0
"""Spread of people in metres where too few simultaneous pairs of one camera are known to measure it."""

MAX_SAMPLES = 128
"""Most positions of a pair that are compared, evenly spaced: errors of neighbouring boxes are similar."""

_MIN_PAIRS = 20
_MAX_CELLS = 1_000_000


@dataclass(frozen=True, eq=False)
class GroundEvidence:
    """Evidence from simultaneous positions in two cameras.

    Attributes:
        first, second: `[P]` rows of pairs with shared time and known positions, `first < second`, sorted.
        log_ratio: `[P]` log-likelihood ratio, one person against two people.
        distance: `[P]` median distance in metres.
        far_apart: `[P]` bool, whether the pair is farther apart than errors explain.
        spread: Standard deviation in metres, in each direction, of where people are.
        too_fast: `[Q, 2]` rows of pairs that one person could only be by moving faster than `FASTEST`.
    """

    first: Integers
    second: Integers
    log_ratio: Floats
    distance: Floats
    far_apart: NDArray[np.bool_]
    spread: float
    too_fast: Integers

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.first)


def measure_distances(tracklets: Tracklets) -> GroundEvidence:
    """Compare the paths of all tracklets of different cameras that overlap in time.

    The distance of two paths is compared with its standard deviation s (both positions' errors) at every box of the
    shorter tracklet; the other path is interpolated. The median z of distance / s and the median of s describe the
    whole shared time, so a moment in which two people cross decides nothing. With both errors normal,
    `log p(z | one) / p(z | two) = log(2 spread² / s²) − z² / 2`. The distance of two people is assumed to be that of
    two whom one camera sees simultaneously: `spread` is their median distance / 1.177 / √2. The ratio counts once for
    each `CORRELATION_SECONDS` of shared time, at most `MAX_INDEPENDENT` times, and is limited to ±`MAX_LOG_RATIO`.
    """
    paths = _Paths(tracklets.paths)
    first, second = _simultaneous(tracklets, paths.rows)
    z, s, distance, samples, seconds = _compare(paths, first, second)
    met = samples > 0
    same_camera = tracklets.camera[first] == tracklets.camera[second]
    separation = distance[met & same_camera]
    spread = DEFAULT_SPREAD if len(separation) < _MIN_PAIRS else float(np.median(separation)) / 1.177 / np.sqrt(2)
    rows = np.flatnonzero(met & ~same_camera)
    low, high = np.minimum(first, second)[rows], np.maximum(first, second)[rows]
    order = np.lexsort((high, low))
    rows, low, high = rows[order], low[order], high[order]
    z, s, distance, samples, seconds = (values[rows] for values in (z, s, distance, samples, seconds))
    ratio = 2 * np.log(np.sqrt(2) * spread / np.maximum(s, 1e-9)) - z**2 / 2
    ratio = ratio * np.minimum(1 + seconds / CORRELATION_SECONDS, MAX_INDEPENDENT)
    ratio = np.clip(ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    far_apart = (z > FAR_APART) & (samples >= MIN_SAMPLES)
    return GroundEvidence(low, high, ratio, distance, far_apart, spread, _too_fast(paths, 6 * spread / FASTEST))


class _Paths:
    """Paths of the rows that have one, as flat columns.

    Attributes:
        rows: `[R]` rows with a path.
        begin: `[T + 1]` place of each row's first position among all.
        points: `[M, 4]` positions of all rows, as in `Tracklets.paths`.
        key: `[M]` sorted; `row * period + (seconds - earliest)`, so that one search finds a moment of a row.
        step: `[T]` median seconds between a row's positions.
    """

    def __init__(self, paths: NDArray[np.object_]) -> None:
        count = np.array([len(path) for path in paths], np.int64)
        self.rows = np.flatnonzero(count)
        self.begin = np.append(0, np.cumsum(count))
        self.points = np.concatenate([np.zeros((0, 4)), *paths])
        owner = np.repeat(np.arange(len(paths)), count)
        self.earliest = float(self.points[:, 0].min(initial=np.inf)) if len(self.points) else 0.0
        self.period = float(self.points[:, 0].max(initial=self.earliest)) - self.earliest + 4.0
        self.key = owner * self.period + (self.points[:, 0] - self.earliest)
        inside = np.diff(owner) == 0
        self.step = np.full(len(paths), 0.1)
        several = np.flatnonzero(count > 1)
        self.step[several] = _grouped_median(np.diff(self.points[:, 0])[inside], owner[1:][inside], len(paths))[several]

    def place(self, row: Integers, seconds: Floats) -> Integers:
        """Place of the first position of each row at or after these seconds, within the row or just after it."""
        seconds = np.clip(seconds - self.earliest, -1.0, self.period - 3.0)
        found = np.searchsorted(self.key, row * self.period + seconds - 1e-6)
        return np.clip(found, self.begin[row], self.begin[row + 1])


def _grouped_median(values: Floats, group: Integers, groups: int) -> Floats:
    """Median of the values of each group, `[groups]`; 0 for a group without values."""
    order = np.lexsort((values, group))
    count = np.bincount(group, minlength=groups)
    ordered = np.append(values[order], 0.0)
    begin = np.cumsum(count) - count
    low, high = begin + np.maximum(count - 1, 0) // 2, begin + count // 2
    return np.where(count > 0, (ordered[np.minimum(low, len(values))] + ordered[np.minimum(high, len(values))]) / 2, 0)


def _simultaneous(tracklets: Tracklets, rows: Integers) -> tuple[Integers, Integers]:
    """Pairs of these rows that overlap in time, the one that starts first (ties: the lower row) first."""
    order = rows[np.argsort(tracklets.start[rows], kind="stable")]
    later = np.searchsorted(tracklets.start[order], tracklets.end[order], "right")
    count = np.maximum(later - np.arange(len(order)) - 1, 0)
    first = np.repeat(np.arange(len(order)), count)
    second = concatenated_ranges(np.arange(len(order)) + 1, count)
    return order[first], order[second]


def _too_fast(paths: _Paths, window: float) -> Integers:
    """Pairs of rows `[Q, 2]` that are farther apart than a person gets between them, `FAR_APART` errors allowed."""
    rows = paths.rows
    if len(rows) == 0:
        return np.zeros((0, 2), np.int64)
    place = np.repeat(np.arange(len(rows)), np.diff(paths.begin)[rows])
    ends, begins = (fit_edges(paths.points, place, len(rows), end) for end in (True, False))
    order = np.argsort(begins.seconds, kind="stable")
    low = np.searchsorted(begins.seconds[order], ends.seconds, "right")
    high = np.searchsorted(begins.seconds[order], ends.seconds + window, "right")
    count = high - low
    first = np.repeat(np.arange(len(rows)), count)
    second = order[concatenated_ranges(low, count)]
    possible = FASTEST * (begins.seconds[second] - ends.seconds[first])
    possible += FAR_APART * np.hypot(begins.error[second], ends.error[first])
    fast = np.linalg.norm(begins.position[second] - ends.position[first], axis=1) > possible
    return np.sort(rows[np.stack([first[fast], second[fast]], axis=1)], axis=1)


def _compare(paths: _Paths, first: Integers, second: Integers) -> tuple[Floats, ...]:
    """Compare pairs of rows: median of distance / error, of error and of distance, positions compared, seconds shared.

    Every column is `[P]`. Where both paths have positions within half a step, at most `MAX_SAMPLES` of the shorter
    path's are compared, evenly spaced over the shared time.
    """
    length = np.diff(paths.begin)
    swap = length[second] < length[first]
    short, long = np.where(swap, second, first), np.where(swap, first, second)
    columns = [np.zeros(len(first)) for _ in range(5)]
    block = max(1, _MAX_CELLS // MAX_SAMPLES)
    for start in range(0, len(first), block):
        part = slice(start, start + block)
        a, b = short[part], long[part]
        reach = paths.step[b] / 2 + 1e-6
        low = paths.place(a, paths.points[paths.begin[b], 0] - reach)
        high = paths.place(a, paths.points[paths.begin[b + 1] - 1, 0] + reach + 2e-6)
        count = np.clip(high - low, 0, MAX_SAMPLES)
        pair = np.repeat(np.arange(len(a)), count)
        number = concatenated_ranges(np.zeros_like(count), count)
        at = low[pair] + (number * np.maximum(high - low - 1, 0)[pair]) // np.maximum(count - 1, 1)[pair]
        position, other = paths.points[at], b[pair]
        after = np.clip(
            paths.place(other, position[:, 0]),
            paths.begin[other] + 1,
            np.maximum(paths.begin[other + 1] - 1, paths.begin[other] + 1),
        )
        after = np.minimum(after, paths.begin[other + 1] - 1)
        before = np.maximum(after - 1, paths.begin[other])
        left, right = paths.points[before], paths.points[after]
        gap = np.minimum(np.abs(right[:, 0] - position[:, 0]), np.abs(left[:, 0] - position[:, 0]))
        kept = np.flatnonzero(gap <= reach[pair])  # Not interpolated where the track is interrupted.
        position, left, right, pair = position[kept], left[kept], right[kept], pair[kept]
        duration = right[:, 0] - left[:, 0]
        weight = np.clip((position[:, 0] - left[:, 0]) / np.where(duration > 0, duration, 1), 0, 1)[:, None]
        partner = left + weight * (right - left)
        distance = np.hypot(position[:, 1] - partner[:, 1], position[:, 2] - partner[:, 2])
        s = np.hypot(position[:, 3], partner[:, 3])
        for column, values in zip(columns, (distance / s, s, distance), strict=False):
            column[part] = _grouped_median(values, pair, len(a))
        columns[3][part] = np.bincount(pair, minlength=len(a))
        lowest, highest = np.full(len(a), np.inf), np.full(len(a), -np.inf)
        np.minimum.at(lowest, pair, position[:, 0])
        np.maximum.at(highest, pair, position[:, 0])
        columns[4][part] = np.where(columns[3][part] > 0, highest - lowest, 0)
    return tuple(columns)


def walk_variance(gap: NDArray[np.floating] | float) -> Floats:
    """Variance in m², in each direction, of a pedestrian's position after a gap in seconds.

    The velocity at the start is known, and is forgotten as an Ornstein–Uhlenbeck process: with τ = `TURN_SECONDS`,
    `SPEED² τ² (2 g/τ − 3 + 4 e^(−g/τ) − e^(−2g/τ))`. For a short gap that is about (2/3) SPEED² g³ / τ.
    """
    g = gap / TURN_SECONDS
    return np.asarray((SPEED * TURN_SECONDS) ** 2 * (2 * g - 3 + 4 * np.exp(-g) - np.exp(-2 * g)))


@dataclass(frozen=True, eq=False)
class Edges:
    """Time `[n]`, position `[n, 2]`, velocity `[n, 2]` and error `[n]` of one end of n paths."""

    seconds: Floats
    position: Floats
    velocity: Floats
    error: Floats

    def take(self, rows: Integers) -> Edges:
        """Return the given rows."""
        return Edges(self.seconds[rows], self.position[rows], self.velocity[rows], self.error[rows])

    def put(self, row: int, other: Edges) -> None:
        """Replace a row by the only row of others."""
        for name, values in vars(self).items():
            values[row] = getattr(other, name)[0]


def fit_edges(points: Floats, group: Integers, groups: int, end: bool) -> Edges:
    """Return the ends (or starts) of n paths, by weighted straight-line fits to `MOTION_SECONDS`.

    Args:
        points: `[M, 4]` as in `Tracklets.paths`.
        group: `[M]` path of each position; every path has one or more.
        groups: n.
        end: Whether the ends are wanted.
    """
    moment = np.full(groups, -np.inf if end else np.inf)
    (np.maximum if end else np.minimum).at(moment, group, points[:, 0])
    rows = np.flatnonzero(np.abs(points[:, 0] - moment[group]) <= MOTION_SECONDS)
    group, part = group[rows], points[rows]
    time, weight = part[:, 0] - moment[group], 1 / part[:, 3]

    def total(values: Floats) -> Floats:
        return np.bincount(group, values, minlength=groups).astype(np.float64)

    by_time = np.lexsort((time, group))
    new = np.append(True, (np.diff(time[by_time]) != 0) | (np.diff(group[by_time]) != 0))[: len(by_time)]
    moves = np.bincount(group[by_time][new], minlength=groups) >= MIN_SAMPLES
    position, velocity = np.zeros((groups, 2)), np.zeros((groups, 2))
    square = weight**2
    middle = total(square * time) / total(square)
    spread = total(square * (time - middle[group]) ** 2)
    moves &= spread > 0
    for axis in (0, 1):
        place = part[:, 1 + axis]
        mean = total(square * place) / total(square)
        slope = total(square * (time - middle[group]) * (place - mean[group])) / np.where(moves, spread, 1)
        position[:, axis] = np.where(moves, mean - slope * middle, total(weight * place) / total(weight))
        velocity[:, axis] = np.where(moves, slope, 0)
    velocity *= np.minimum(1.0, MAX_SPEED / np.maximum(np.hypot(*velocity.T), 1e-9))[:, None]
    return Edges(moment, position, velocity, _grouped_median(part[:, 3], group, groups))


def gap_log_ratios(ends: Edges, begins: Edges, spread: float) -> Floats:
    """Log-likelihood ratio that each path that begins continues the one that ends; −inf outside −1 s to `MAX_GAP`.

    The person walks on with the mean of both velocities v, which is forgotten with time: `v τ (1 − e^(−g/τ))`. The
    error e has the variance of both positions and of `walk_variance`. Another person would appear anywhere:
    `log(2 spread² / σ²) − e² / 2σ²`.
    """
    gap = begins.seconds - ends.seconds
    possible = (gap >= -1.0) & (gap <= MAX_GAP)
    gap = np.clip(gap, 0.0, MAX_GAP)
    moved = (ends.velocity + begins.velocity) / 2 * (TURN_SECONDS * (1 - np.exp(-gap / TURN_SECONDS)))[:, None]
    missed = np.hypot(*(ends.position + moved - begins.position).T)
    variance = ends.error**2 + begins.error**2 + walk_variance(gap)
    return np.where(possible, np.log(2 * spread**2 / variance) - missed**2 / (2 * variance), -np.inf)


@dataclass(frozen=True, eq=False)
class GapJoin:
    """Two groups of rows that were joined over a gap, and `gap_log_ratios` of their paths."""

    first: Integers
    second: Integers
    log_ratio: float


def join_over_gaps(
    clusters: Clusters, spread: float, appearance: Callable[[Integers, Integers], Floats]
) -> list[GapJoin]:
    """Join identities whose paths continue each other, the most likely first; return the joins.

    The path of an identity contains the positions of all its tracklets. Two identities are joined if the rules allow
    it, and `gap_log_ratios` plus the mean log-odds of their appearance is above 0. After each join the paths are
    compared again, because a longer path is known better.

    Args:
        clusters: Changed in place.
        spread: As in `GroundEvidence`.
        appearance: Log-odds of pairs of rows, 0 where unknown.
    """
    tracklets = clusters.rules.tracklets
    known = tracklets.has_path
    numbers, place = np.unique(clusters.labels[known], return_inverse=True)
    points = np.concatenate([np.zeros((0, 4)), *tracklets.paths[known]])
    place = np.repeat(place, [len(path) for path in tracklets.paths[known]])
    begins, ends = (fit_edges(points, place, len(numbers), end) for end in (False, True))
    alive = np.ones(len(numbers), bool)
    version = np.zeros(len(numbers), np.int64)
    heap: list[tuple[float, int, int, float, int]] = []

    def compare(first: Integers, second: Integers) -> None:
        ratios = gap_log_ratios(ends.take(first), begins.take(second), spread)
        possible = np.flatnonzero(np.isfinite(ratios) & alive[first] & alive[second] & (first != second))
        if len(possible) == 0:
            return
        first, second, ratios = first[possible], second[possible], ratios[possible]
        sides = [[clusters.members[number] for number in numbers[side].tolist()] for side in (first, second)]
        pairs = np.array([len(a) * len(b) for a, b in zip(*sides, strict=True)], np.int64)
        odds = appearance(
            np.concatenate([np.repeat(a, len(b)) for a, b in zip(*sides, strict=True)]),
            np.concatenate([np.tile(b, len(a)) for a, b in zip(*sides, strict=True)]),
        )
        total = ratios + np.add.reduceat(odds, np.cumsum(pairs) - pairs) / pairs
        stamp = version[first] + version[second]
        for row in np.flatnonzero(total > 0).tolist():
            a, b = int(first[row]), int(second[row])
            heapq.heappush(heap, (-float(total[row]), a, b, float(ratios[row]), int(stamp[row])))

    order = np.argsort(begins.seconds, kind="stable")
    low = np.searchsorted(begins.seconds[order], ends.seconds - 1.0)
    count = np.searchsorted(begins.seconds[order], ends.seconds + MAX_GAP, "right") - low
    first = np.repeat(np.arange(len(numbers)), count)
    compare(first, order[concatenated_ranges(low, count)])
    joins: list[GapJoin] = []
    while heap:
        _, a, b, ratio, stamp = heapq.heappop(heap)
        if not (alive[a] and alive[b]) or stamp != version[a] + version[b]:
            continue  # One of the two has changed since.
        kept, removed = int(numbers[a]), int(numbers[b])
        if not clusters.may_join(kept, removed):
            continue
        joins.append(GapJoin(clusters.members[kept], clusters.members[removed], ratio))
        clusters.join(kept, removed)
        alive[b] = False
        version[a] += 1
        path = np.concatenate([tracklets.paths[row] for row in clusters.members[kept].tolist()])
        for side, end in ((begins, False), (ends, True)):
            side.put(a, fit_edges(path, np.zeros(len(path), np.int64), 1, end))
        others = np.flatnonzero(alive)
        compare(np.full(len(others), a), others)
        compare(others, np.full(len(others), a))
    return joins
