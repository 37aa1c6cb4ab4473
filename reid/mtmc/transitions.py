"""What confident identities tell of time: how long ways between cameras take, and clocks that disagree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from reid.mtmc.tracklets import Tracklets

if TYPE_CHECKING:
    from reid.mtmc.cameras import Cameras

Number = TypeVar("Number", np.int64, np.float64)

ENOUGH = 20
"""Ordered pairs of sightings of one identity that a way needs before it is evidence."""

_A_BIN = 5
_MOST_BINS = 20
_PRIOR = 10.0
_MOST_EVIDENCE = 3.0
_LONGEST_WALK = 600.0
_LEAST_OFFSET = 0.5


@dataclass(frozen=True, eq=False)
class Way:
    """What was learned of one ordered pair of cameras.

    Attributes:
        edges: `[B − 1]` seconds; gap g falls into bin `searchsorted(edges, g)` of B.
        evidence: `[B]` log of how much likelier a gap in that bin is for one person than for two.
        median, spread: seconds from the end of a sighting to the start of the next of the same identity, and half the
            distance between the 16 % and 84 % quantiles.
        links: such sightings it rests on, with none between them.
    """

    edges: NDArray[np.float64]
    evidence: NDArray[np.float64]
    median: float
    spread: float
    links: int


Ways = dict[tuple[int, int], Way]
"""By camera numbers (from, to)."""


def ordered(
    tracklets: Tracklets, first: NDArray[np.int64], second: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Each pair with the earlier start first (ties: the lower row), and the gap `start − end` in seconds."""
    start = tracklets.start
    swap = (start[second] < start[first]) | ((start[second] == start[first]) & (second < first))
    i, j = np.where(swap, second, first), np.where(swap, first, second)
    return i, j, start[j] - tracklets.end[i]


def consecutive(tracklets: Tracklets, identity: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of sightings of one identity with none between them, by start; earlier and later."""
    order = np.lexsort((np.arange(len(identity)), tracklets.start, identity))
    same = identity[order][1:] == identity[order][:-1]
    return order[:-1][same], order[1:][same]


def learn_ways(
    tracklets: Tracklets,
    identity: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
) -> Ways:
    """Learn the gaps of all ordered pairs of cameras that have `ENOUGH` pairs in one identity.

    Of a camera to itself this is what joins the parts of a broken track, whose gaps are short.

    The gaps of pairs of one identity (all pairs, not only consecutive ones, since that is what a candidate pair is)
    are cut at their quantiles into bins of 5 or more, at most 20, open at both ends. The evidence of a bin is
    `log((c + α q) / (n + α) / q)`: c of the n pairs of one identity lie in it, and the share q of pairs of different
    identities, α = 10. So few pairs say little. It is kept within ±3.

    Args:
        tracklets, identity: `[T]`.
        first, second: candidate pairs; those of different identities stand for strangers.
    """
    i, j, gap = ordered(tracklets, first, second)
    same = identity[i] == identity[j]
    cameras = len(tracklets.camera_names)
    before, after = consecutive(tracklets, identity)
    walked = tracklets.start[after] - tracklets.end[before]
    direct_gaps = _by_way(tracklets.camera[before] * cameras + tracklets.camera[after], walked)
    ways: Ways = {}
    by_way = _by_way(tracklets.camera[i] * cameras + tracklets.camera[j], np.arange(len(i)))
    for code, rows in by_way.items():
        own, strangers = gap[rows[same[rows]]], gap[rows[~same[rows]]]
        direct = direct_gaps.get(code)
        if len(own) < ENOUGH or len(strangers) < ENOUGH or direct is None:
            continue
        bins = int(np.clip(len(own) // _A_BIN, 2, _MOST_BINS))
        edges = np.unique(np.quantile(own, np.linspace(0, 1, bins + 1)))
        count = np.bincount(np.searchsorted(edges, own), minlength=len(edges) + 1)
        share = np.bincount(np.searchsorted(edges, strangers), minlength=len(edges) + 1) + 1.0
        share /= share.sum()
        evidence = np.log((count + _PRIOR * share) / (len(own) + _PRIOR) / share)
        low, median, high = np.quantile(direct, [0.16, 0.5, 0.84])
        evidence = np.clip(evidence, -_MOST_EVIDENCE, _MOST_EVIDENCE)
        ways[divmod(code, cameras)] = Way(edges, evidence, float(median), float(high - low) / 2, len(direct))
    return ways


def _by_way(way: NDArray[np.int64], values: NDArray[Number]) -> dict[int, NDArray[Number]]:
    """The values of each way, in their order."""
    order = np.argsort(way, kind="stable")
    codes, first = np.unique(way[order], return_index=True)
    parts = np.split(values[order], first[1:])
    return dict(zip(codes.tolist(), parts, strict=False))


def evidence_of(
    ways: Ways, tracklets: Tracklets, first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float64]:
    """What the gap of each pair says, added to its log odds; 0 where nothing was learned of its way."""
    i, j, gap = ordered(tracklets, first, second)
    cameras = len(tracklets.camera_names)
    total = np.zeros(len(i))
    for code, rows in _by_way(tracklets.camera[i] * cameras + tracklets.camera[j], np.arange(len(i))).items():
        learned = ways.get(divmod(code, cameras))
        if learned is not None:
            total[rows] = learned.evidence[np.searchsorted(learned.edges, gap[rows])]
    return total


def clock_offsets(
    tracklets: Tracklets, identity: NDArray[np.int64], cameras: Cameras | None = None, *, least_links: int = ENOUGH
) -> dict[str, float]:
    """Seconds by which each camera's clock seems ahead of that of the first camera it is tied to, by name.

    Two ways to tell a clock from a walk, both from consecutive sightings of one identity at most 600 s apart:

    - cameras said to overlap: a person is in both at one time, so the median lag between the middles of the two
      sightings is the clocks' difference;
    - other pairs that are walked both ways, `least_links` times each: if both ways take the same time, the difference
      is half of (median gap a→b − median gap b→a). An offset so large that it turns the order of sightings around
      cannot be seen so, and a one-way street gives nothing.

    Differences are joined over all cameras by least squares, weighted by the number of links; each connected group
    of cameras is tied to its first. Cameras that nothing ties are not in the answer, and the answer is empty unless
    some difference is above half a second and above three standard errors of its median (1.25 σ/√n).
    """
    names = tracklets.camera_names
    before, after = consecutive(tracklets, identity)
    gap = tracklets.start[after] - tracklets.end[before]
    near = gap <= _LONGEST_WALK
    before, after, gap = before[near], after[near], gap[near]
    middle = (tracklets.start + tracklets.end) / 2
    lag = middle[after] - middle[before]
    code = tracklets.camera[before] * len(names) + tracklets.camera[after]
    rows_of = _by_way(code, np.arange(len(before)))
    none = np.zeros(0, np.int64)
    ties: list[tuple[int, int, float, int]] = []
    certain = False
    for x in range(len(names)):
        for y in range(x + 1, len(names)):
            there, back = rows_of.get(x * len(names) + y, none), rows_of.get(y * len(names) + x, none)
            if cameras is not None and frozenset((names[x], names[y])) in cameras.overlapping:
                lags = np.concatenate([lag[there], -lag[back]])
                if len(lags) < least_links:
                    continue
                ties.append((x, y, float(np.median(lags)), len(lags)))
                error = _error(lags)
            elif min(len(there), len(back)) >= least_links:
                difference = float(np.median(gap[there]) - np.median(gap[back])) / 2
                ties.append((x, y, difference, min(len(there), len(back))))
                error = float(np.hypot(_error(gap[there]), _error(gap[back]))) / 2
            else:
                continue
            certain |= abs(ties[-1][2]) > max(_LEAST_OFFSET, 3 * error)
    return _least_squares(names, ties) if certain else {}


def _error(values: NDArray[np.float64]) -> float:
    """Standard error of the median, from the quartiles."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float(1.25 * (high - low) / 1.349 / np.sqrt(len(values)))


def _least_squares(names: tuple[str, ...], ties: list[tuple[int, int, float, int]]) -> dict[str, float]:
    """Offsets whose differences come nearest to the ties (from, to, seconds, weight)."""
    group = list(range(len(names)))
    for x, y, _, _ in ties:
        low, high = sorted((group[x], group[y]))
        group = [low if number == high else number for number in group]
    offsets: dict[str, float] = {}
    for root in sorted({group[x] for x, _, _, _ in ties}):
        rows = [number for number in range(len(names)) if group[number] == root]
        mine = [tie for tie in ties if group[tie[0]] == root]
        design = np.zeros((len(mine) + 1, len(rows)))
        wanted = np.zeros(len(mine) + 1)
        design[-1, 0] = 1e3
        for line, (x, y, seconds, weight) in enumerate(mine):
            design[line, rows.index(y)] += np.sqrt(weight)
            design[line, rows.index(x)] -= np.sqrt(weight)
            wanted[line] = np.sqrt(weight) * seconds
        solution = np.linalg.lstsq(design, wanted, rcond=None)[0]
        offsets.update({names[row]: float(value) for row, value in zip(rows, solution - solution[0], strict=True)})
    return offsets
