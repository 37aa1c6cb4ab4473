"""Space as evidence: positions on the ground, distances between simultaneous tracklets, and walks over gaps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.data.tracks import Floats, Integers
from reid.mtmc.solvers import Clusters
from reid.mtmc.tracklets import Tracklets

MAX_LOG_RATIO = 20.0
"""Limit of the log-likelihood ratio of one pair."""

FAR_APART = 4.0
"""Pairs whose feet are, in the median, more than this many standard deviations apart are different people."""

MIN_SAMPLES = 5
"""Simultaneous positions that are needed to call two tracklets far apart."""

CORRELATION_SECONDS = 2.0
"""Errors of positions within this time count as one: a box that is too short stays too short for a while."""

MAX_INDEPENDENT = 4.0
"""Most independent positions that a pair counts as; two people who walk side by side stay close for long."""

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

_MIN_PAIRS = 20


@dataclass(frozen=True, eq=False)
class GroundEvidence:
    """Evidence from simultaneous positions in two cameras.

    Attributes:
        first, second: `[P]` rows of pairs with shared time and known positions, `first < second`.
        log_ratio: `[P]` log-likelihood ratio, one person against two people.
        distance: `[P]` median distance in metres.
        far_apart: `[P]` bool, whether the pair is too far apart to be one person.
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
    """Compare the paths of all tracklets of different cameras that share time.

    The distance of two paths is compared with its standard deviation s (both positions' errors) at every box of the
    shorter tracklet; the other path is interpolated. The median z of distance / s and the median of s describe the
    whole shared time, so a moment in which two people cross decides nothing. With both errors normal,
    `log p(z | one) / p(z | two) = log(spread² / s²) − z² / 2`. The distance of two people is assumed to be that of two
    whom one camera sees simultaneously: `spread` is their median distance / 1.177 / √2. The ratio counts once for each
    `CORRELATION_SECONDS` of shared time, at most `MAX_INDEPENDENT` times, and is limited to ±`MAX_LOG_RATIO`.
    """
    rows = np.array([row for row in range(len(tracklets)) if len(tracklets.paths[row])], np.int64)
    rows = rows[np.argsort(tracklets.start[rows], kind="stable")]
    found: list[tuple[int, int, float, float, float, int, float]] = []
    apart: list[float] = []
    for place, a in enumerate(rows.tolist()):
        for b in rows[place + 1 :].tolist():
            if tracklets.start[b] > tracklets.end[a]:
                break
            z, s, distance, samples, seconds = _compare(tracklets.paths[a], tracklets.paths[b])
            if samples and tracklets.camera[a] == tracklets.camera[b]:
                apart.append(distance)
            elif samples:
                found.append((min(a, b), max(a, b), z, s, distance, samples, seconds))
    spread = DEFAULT_SPREAD if len(apart) < _MIN_PAIRS else float(np.median(apart)) / 1.177 / np.sqrt(2)
    columns = np.array(sorted(found), np.float64).reshape(-1, 7).T
    z, s, distance, samples, seconds = columns[2:]
    ratio = 2 * np.log(np.sqrt(2) * spread / np.maximum(s, 1e-9)) - z**2 / 2
    ratio = ratio * np.minimum(1 + seconds / CORRELATION_SECONDS, MAX_INDEPENDENT)
    return GroundEvidence(
        columns[0].astype(np.int64),
        columns[1].astype(np.int64),
        np.clip(ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO),
        distance,
        (z > FAR_APART) & (samples >= MIN_SAMPLES),
        spread,
        _too_fast(tracklets, rows, 6 * spread / FASTEST),
    )


def _too_fast(tracklets: Tracklets, rows: Integers, window: float) -> Integers:
    """Pairs of rows `[Q, 2]` that are farther apart than a person gets between them, `FAR_APART` errors allowed."""
    if len(rows) == 0:
        return np.zeros((0, 2), np.int64)
    ends = [_edge(tracklets.paths[row], end=True) for row in rows]
    begins = [_edge(tracklets.paths[row], end=False) for row in rows]
    begin = np.array([edge.seconds for edge in begins])
    place, error = np.array([edge.position for edge in begins]), np.array([edge.error for edge in begins])
    order = np.argsort(begin, kind="stable")
    found = [np.zeros((0, 2), np.int64)]
    for number, end in enumerate(ends):
        low, high = np.searchsorted(begin[order], [end.seconds, end.seconds + window], "right")
        later = order[low:high]
        possible = FASTEST * (begin[later] - end.seconds) + FAR_APART * np.hypot(error[later], end.error)
        later = rows[later[np.linalg.norm(place[later] - end.position, axis=1) > possible]]
        found.append(np.stack([np.minimum(later, rows[number]), np.maximum(later, rows[number])], axis=1))
    return np.concatenate(found)


def _compare(path: Floats, other: Floats) -> tuple[float, float, float, int, float]:
    """Median of distance / error, of error and of distance, number of samples, and seconds shared by two paths."""
    if len(other) < len(path):
        path, other = other, path
    time = other[:, 0]
    step = float(np.median(np.diff(time))) if len(other) > 1 else 0.1
    after = np.searchsorted(time, path[:, 0]).clip(1, max(len(other) - 1, 1))
    gap = np.minimum(np.abs(time[np.minimum(after, len(other) - 1)] - path[:, 0]), np.abs(time[after - 1] - path[:, 0]))
    inside = path[gap <= step / 2 + 1e-6]  # Not interpolated where the track is interrupted.
    if len(inside) == 0:
        return 0.0, 0.0, 0.0, 0, 0.0
    x, y, error = (np.interp(inside[:, 0], other[:, 0], other[:, column]) for column in (1, 2, 3))
    distance = np.hypot(inside[:, 1] - x, inside[:, 2] - y)
    s = np.hypot(inside[:, 3], error)
    seconds = float(inside[-1, 0] - inside[0, 0])
    return float(np.median(distance / s)), float(np.median(s)), float(np.median(distance)), len(inside), seconds


def walk_variance(gap: float) -> float:
    """Variance in m², in each direction, of a pedestrian's position after a gap in seconds.

    The velocity at the start is known, and is forgotten as an Ornstein–Uhlenbeck process: with τ = `TURN_SECONDS`,
    `SPEED² τ² (2 g/τ − 3 + 4 e^(−g/τ) − e^(−2g/τ))`. For a short gap that is about (2/3) SPEED² g³ / τ.
    """
    g = gap / TURN_SECONDS
    return float((SPEED * TURN_SECONDS) ** 2 * (2 * g - 3 + 4 * np.exp(-g) - np.exp(-2 * g)))


@dataclass(frozen=True, eq=False)
class Edge:
    """Time, position `[2]`, velocity `[2]` and error of one end of a path."""

    seconds: float
    position: Floats
    velocity: Floats
    error: float


def _edge(path: Floats, end: bool) -> Edge:
    """Return the end (or start) of a path, by a weighted straight-line fit to `MOTION_SECONDS`."""
    moment = path[-1, 0] if end else path[0, 0]
    part = path[np.abs(path[:, 0] - moment) <= MOTION_SECONDS]
    time, weight = part[:, 0] - moment, 1 / part[:, 3]
    position, velocity = np.average(part[:, 1:3], axis=0, weights=weight), np.zeros(2)
    if len(np.unique(time)) >= MIN_SAMPLES:
        design = np.stack([np.ones(len(time)), time], axis=1)
        position, velocity = np.linalg.lstsq(design * weight[:, None], part[:, 1:3] * weight[:, None], rcond=None)[0]
        velocity = velocity * min(1.0, MAX_SPEED / max(float(np.hypot(*velocity)), 1e-9))
    return Edge(float(moment), position, velocity, float(np.median(part[:, 3])))


def gap_log_ratio(end: Edge, begin: Edge, spread: float) -> float | None:
    """Log-likelihood ratio that a path that begins continues one that ends; None outside −1 s to `MAX_GAP`.

    The person walks on with the mean of both velocities v, which is forgotten with time: `v τ (1 − e^(−g/τ))`. The
    error e has the variance of both positions and of `walk_variance`. Another person would appear anywhere:
    `log(2 spread² / σ²) − e² / 2σ²`.
    """
    gap = begin.seconds - end.seconds
    if not -1.0 <= gap <= MAX_GAP:
        return None
    gap = max(gap, 0.0)
    moved = (end.velocity + begin.velocity) / 2 * TURN_SECONDS * (1 - np.exp(-gap / TURN_SECONDS))
    missed = float(np.hypot(*(end.position + moved - begin.position)))
    variance = end.error**2 + begin.error**2 + walk_variance(gap)
    return float(np.log(2 * spread**2 / variance) - missed**2 / (2 * variance))


@dataclass(frozen=True, eq=False)
class GapJoin:
    """Two groups of rows that were joined over a gap, and `gap_log_ratio` of their paths."""

    first: Integers
    second: Integers
    log_ratio: float


def join_over_gaps(
    clusters: Clusters, spread: float, appearance: Callable[[Integers, Integers], Floats]
) -> list[GapJoin]:
    """Join identities whose paths continue each other, the most likely first; return the joins.

    The path of an identity contains the positions of all its tracklets. Two identities are joined if the rules allow
    it, and `gap_log_ratio` plus the mean log-odds of their appearance is above 0. After each join the paths are
    compared again, because a longer path is known better.

    Args:
        clusters: Changed in place.
        spread: As in `GroundEvidence`.
        appearance: Log-odds of pairs of rows, 0 where unknown.
    """
    tracklets = clusters.rules.tracklets
    edges: dict[int, tuple[Edge, Edge]] = {}
    ratios: dict[tuple[int, int], float] = {}
    joins: list[GapJoin] = []

    def measure(number: int) -> None:
        paths = [tracklets.paths[row] for row in clusters.members[number].tolist()]
        path = np.concatenate(paths)
        path = path[np.argsort(path[:, 0], kind="stable")]
        edges[number] = _edge(path, end=False), _edge(path, end=True)

    def compare(a: int, b: int) -> None:
        ratio = gap_log_ratio(edges[a][1], edges[b][0], spread)
        if ratio is not None:
            first, second = clusters.members[a], clusters.members[b]
            ratio += float(appearance(np.repeat(first, len(second)), np.tile(second, len(first))).mean())
            if ratio > 0:
                ratios[a, b] = ratio

    known = [row for row in range(len(tracklets)) if len(tracklets.paths[row])]
    for number in np.unique(clusters.labels[known]).tolist():
        measure(number)
    for a in edges:
        for b in edges:
            if a != b:
                compare(a, b)
    while ratios:
        kept, removed = max(ratios, key=lambda pair: (ratios[pair], -pair[0], -pair[1]))
        del ratios[kept, removed]
        if not clusters.may_join(kept, removed):
            continue
        ratio = gap_log_ratio(edges[kept][1], edges[removed][0], spread)
        joins.append(GapJoin(clusters.members[kept], clusters.members[removed], ratio or 0.0))
        clusters.join(kept, removed)
        del edges[removed]
        ratios = {pair: ratio for pair, ratio in ratios.items() if not {kept, removed} & set(pair)}
        measure(kept)
        for other in edges:
            if other != kept:
                compare(kept, other)
                compare(other, kept)
    return joins
