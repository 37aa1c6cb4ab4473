"""Transition times between cameras, learned from a first matching, and clock offsets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from reid.data.tracks import Floats, Integers
from reid.mtmc.cameras import Cameras
from reid.mtmc.tracklets import Tracklets

MIN_PAIRS = 20
"""Pairs of sightings of one identity that an ordered pair of cameras needs before its times are used."""

_PAIRS_PER_BIN = 5
_MAX_BINS = 20
_PRIOR_PAIRS = 10.0
_MAX_LOG_RATIO = 3.0
_MAX_WALK_SECONDS = 600.0
_MIN_OFFSET_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class Transition:
    """Times learned for one ordered pair of cameras.

    Attributes:
        edges: `[B − 1]` seconds. A gap g belongs to bin `searchsorted(edges, g)` of B bins.
        log_ratio: `[B]` log-likelihood ratio of a gap in each bin, same person against different people.
        median: Seconds from the end of a sighting to the start of the next sighting of the same identity.
        spread: Seconds, half the distance between the 16 % and 84 % quantiles.
        links: Number of consecutive sightings that `median` and `spread` are computed from.
    """

    edges: Floats
    log_ratio: Floats
    median: float
    spread: float
    links: int


@dataclass(frozen=True, eq=False)
class TransitionModel:
    """Learned transitions, by camera numbers (from, to). Pairs of cameras with too few links are absent."""

    transitions: dict[tuple[int, int], Transition]

    def __len__(self) -> int:
        """Number of ordered camera pairs with learned times."""
        return len(self.transitions)

    def log_ratios(self, tracklets: Tracklets, first: Integers, second: Integers) -> Floats:
        """Log-likelihood ratio of each pair's time gap; 0 where nothing was learned for its cameras."""
        earlier, later = tracklets.in_time_order(first, second)
        gap = tracklets.start[later] - tracklets.end[earlier]
        ratios = np.zeros(len(gap))
        for cameras, rows in group_by_cameras(tracklets, earlier, later).items():
            learned = self.transitions.get(cameras)
            if learned is not None:
                ratios[rows] = learned.log_ratio[np.searchsorted(learned.edges, gap[rows])]
        return ratios


def fit_transitions(tracklets: Tracklets, identity: Integers, first: Integers, second: Integers) -> TransitionModel:
    """Learn the time gaps of each ordered pair of cameras that has `MIN_PAIRS` pairs within identities.

    All pairs of one identity are used, not only consecutive sightings, because candidate pairs are not always
    consecutive. Their gaps are cut at quantiles into bins of 5 or more, at most 20 bins, open at both ends. The
    log-likelihood ratio of a bin is `log((c + α q) / (n + α) / q)`: c of the n pairs of one identity and the fraction q
    of the pairs of different identities fall into it, and α = 10 keeps it small where pairs are few. It is limited to
    ±3. For a camera and itself, the short gaps are those between the parts of an interrupted track.

    Args:
        tracklets: T tracklets.
        identity: `[T]` identities of a first matching.
        first, second: `[L]` candidate pairs. Pairs of different identities represent different people.
    """
    earlier, later = tracklets.in_time_order(first, second)
    gap = tracklets.start[later] - tracklets.end[earlier]
    same = identity[earlier] == identity[later]
    before, after = consecutive_sightings(tracklets, identity)
    direct_gap = tracklets.start[after] - tracklets.end[before]
    direct_rows = group_by_cameras(tracklets, before, after)
    transitions = {}
    for cameras, rows in group_by_cameras(tracklets, earlier, later).items():
        within, between = gap[rows[same[rows]]], gap[rows[~same[rows]]]
        if len(within) < MIN_PAIRS or len(between) < MIN_PAIRS or cameras not in direct_rows:
            continue
        direct = direct_gap[direct_rows[cameras]]
        bins = int(np.clip(len(within) // _PAIRS_PER_BIN, 2, _MAX_BINS))
        edges = np.unique(np.quantile(within, np.linspace(0, 1, bins + 1)))
        count = np.bincount(np.searchsorted(edges, within), minlength=len(edges) + 1)
        fraction = np.bincount(np.searchsorted(edges, between), minlength=len(edges) + 1) + 1.0
        fraction /= fraction.sum()
        ratio = np.log((count + _PRIOR_PAIRS * fraction) / (len(within) + _PRIOR_PAIRS) / fraction)
        low, median, high = np.quantile(direct, [0.16, 0.5, 0.84])
        transitions[cameras] = Transition(
            edges, np.clip(ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO), float(median), float(high - low) / 2, len(direct)
        )
    return TransitionModel(transitions)


def consecutive_sightings(tracklets: Tracklets, identity: Integers) -> tuple[Integers, Integers]:
    """Rows (earlier, later) of sightings of one identity with no other sighting between them, by start."""
    order = np.lexsort((np.arange(len(identity)), tracklets.start, identity))
    same = identity[order][1:] == identity[order][:-1]
    return order[:-1][same], order[1:][same]


def group_by_cameras(tracklets: Tracklets, earlier: Integers, later: Integers) -> dict[tuple[int, int], Integers]:
    """Group pairs of rows by their cameras (from, to): the places of each group's pairs, in order."""
    cameras = len(tracklets.camera_names)
    code = tracklets.camera[earlier] * cameras + tracklets.camera[later]
    order = np.argsort(code, kind="stable")
    codes, first = np.unique(code[order], return_index=True)
    parts = np.split(order, first[1:])
    return {divmod(number, cameras): part for number, part in zip(codes.tolist(), parts, strict=False)}


def clock_offsets(
    tracklets: Tracklets, identity: Integers, cameras: Cameras | None = None, *, min_links: int = MIN_PAIRS
) -> dict[str, float]:
    """Estimate the seconds by which each camera's clock is ahead, by camera name.

    Offsets are relative to the first camera of each connected group. Only consecutive sightings of one identity at
    most 600 s apart are used, in two forms:

    - Cameras that are said to overlap: a person is in both simultaneously, so the median lag between the middles of the
      two sightings is the offset.
    - Other pairs with `min_links` transitions in each direction: assuming that both directions take the same time,
      the offset is half of (median gap a→b − median gap b→a). An offset that reverses the order of sightings cannot be
      seen in this way, and transitions in one direction only give nothing.

    The pairwise offsets are combined by least squares, weighted by the number of links. The result is empty unless
    some pairwise offset exceeds half a second and three standard errors of its median (1.25 σ/√n).
    """
    names = tracklets.camera_names
    before, after = consecutive_sightings(tracklets, identity)
    gap = tracklets.start[after] - tracklets.end[before]
    short = gap <= _MAX_WALK_SECONDS
    before, after, gap = before[short], after[short], gap[short]
    middle = (tracklets.start + tracklets.end) / 2
    lag = middle[after] - middle[before]
    rows_of = group_by_cameras(tracklets, before, after)
    none = np.zeros(0, np.int64)
    offsets: list[tuple[int, int, float, int]] = []
    significant = False
    for x in range(len(names)):
        for y in range(x + 1, len(names)):
            forward, backward = rows_of.get((x, y), none), rows_of.get((y, x), none)
            overlap = cameras is not None and frozenset((names[x], names[y])) in cameras.overlapping
            lags = np.concatenate([lag[forward], -lag[backward]])
            count = len(lags) if overlap else min(len(forward), len(backward))
            if count < min_links:
                continue
            if overlap:
                offset, error = float(np.median(lags)), _median_error(lags)
            else:
                offset = float(np.median(gap[forward]) - np.median(gap[backward])) / 2
                error = float(np.hypot(_median_error(gap[forward]), _median_error(gap[backward]))) / 2
            offsets.append((x, y, offset, count))
            significant |= abs(offset) > max(_MIN_OFFSET_SECONDS, 3 * error)
    return _combine_offsets(names, offsets) if significant else {}


def _median_error(values: Floats) -> float:
    """Standard error of the median, from the quartiles."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float(1.25 * (high - low) / 1.349 / np.sqrt(len(values)))


def _combine_offsets(names: tuple[str, ...], offsets: list[tuple[int, int, float, int]]) -> dict[str, float]:
    """Least-squares offsets from pairwise ones (from, to, seconds, weight); the first camera of each group has 0."""
    x, y, seconds, weight = (np.array(column) for column in zip(*offsets, strict=True))
    _, group = connected_components(coo_array((weight, (x, y)), shape=(len(names), len(names))), directed=False)
    design = np.zeros((len(x), len(names)))
    line = np.arange(len(x))
    design[line, y], design[line, x] = np.sqrt(weight), -np.sqrt(weight)
    solution = np.linalg.lstsq(design, np.sqrt(weight) * seconds, rcond=None)[0]
    combined = {}
    for number in np.unique(group[x]).tolist():
        rows = np.flatnonzero(group == number)
        combined.update({names[row]: float(solution[row] - solution[rows[0]]) for row in rows.tolist()})
    return combined
