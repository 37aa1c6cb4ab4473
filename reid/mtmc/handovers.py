"""Handovers: people who leave one camera where they enter another, learned from the tracks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from reid.core.arrays import concatenated_ranges
from reid.data.tracks import Floats, Integers
from reid.mtmc.pooling import Mask
from reid.mtmc.tracklets import Tracklets

EARLIEST, LATEST = -1.0, 3.0
"""Seconds from the end of a tracklet to the start of its continuation in the other camera."""

MAX_LAG = 1.5
"""Largest mean lag in seconds of a common border. Where it is longer, many true handovers are later than `LATEST`."""

MIN_HANDOVERS = 8.0
"""Expected number of handovers that a pair of cameras needs."""

MAX_TRACKLETS = 1000
"""With more tracklets nothing is looked for: looks alone show the size of identities then, and it would take long."""

_PRIOR_PAIRS = 5.0  # weight of "no relation" in the covariance
_PRIOR_SECONDS = 0.5  # standard deviation of the lag that is expected
_ROUNDS = 30
_SHIFTS = 19
_MIN_Z = 4.0


@dataclass(frozen=True, eq=False)
class Handovers:
    """Tracklets that continue a tracklet of another camera.

    Attributes:
        earlier, later: `[n]` rows, the most likely first. A row is in each column at most once.
        log_odds: `[n]` log-odds of one person, by time, position, size, velocity, and appearance where known.
        borders: By pair of camera names: expected number of handovers, and their mean lag in seconds.
    """

    earlier: Integers
    later: Integers
    log_odds: Floats
    borders: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of handovers."""
        return len(self.earlier)

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Return the borders as plain JSON values."""
        return {
            f"{a} and {b}": {"expected": round(count, 1), "lag_s": round(lag, 2)}
            for (a, b), (count, lag) in self.borders.items()
        }


def find_handovers(tracklets: Tracklets, allowed: Callable[[Integers, Integers], Mask]) -> Handovers:
    """Find pairs of cameras with a common border, and the tracklets that continue each other there.

    For each pair of cameras, every end of a tracklet in one is compared with every start in the other from `EARLIEST`
    to `LATEST` seconds later. A pair is a column z: position of the feet, logarithm of the height and velocity (in
    heights per second) on either side, in standard deviations of the camera's tracklets, and the cosine distance of
    both features. Unrelated pairs are N(0, I), at any lag. Handovers have their own mean, covariance (shrunk towards
    I with the weight of 5 pairs) and normal lag, fitted by expectation maximisation, in which an end or a start has at
    most one partner. Both directions have the same ones, because people cross a border at one place.

    The cameras have a common border if 8 or more handovers are expected, their mean lag is at most `MAX_LAG`, and their
    total log-likelihood ratio exceeds that at 19 wrong times of one camera (shifted circularly) by 4 standard
    deviations. Cameras that both have ground positions are left out, because the walk over a gap is known better there
    (`ground.join_over_gaps`).

    Args:
        tracklets: T tracklets. Without `edges`, or of more than `MAX_TRACKLETS`, there are no handovers.
        allowed: Whether rules allow pairs of rows to be one person, `[n]`.
    """
    grounded = np.zeros(len(tracklets.camera_names), bool)
    grounded[tracklets.camera[tracklets.has_path]] = True
    found, borders = [np.zeros((3, 0))], {}
    known = np.isfinite(tracklets.edges.sum(axis=2)).any(axis=1)
    cameras = np.unique(tracklets.camera[known]).tolist() if len(tracklets) <= MAX_TRACKLETS else []
    for a, b in itertools.combinations(cameras, 2):
        if grounded[a] and grounded[b]:
            continue
        border = _Border(tracklets, a, b, allowed)
        model = border.fit(0.0)
        if model is None or model.expected < MIN_HANDOVERS or abs(model.lag) > MAX_LAG:
            continue
        wrong: list[float] = []
        for shift in np.random.default_rng(0).uniform(0.1, 0.9, _SHIFTS) * border.length:
            other = border.fit(shift)
            wrong.append(0.0 if other is None else other.evidence)
            if wrong[-1] >= model.evidence:
                break
        if model.evidence > max(max(wrong), np.mean(wrong) + _MIN_Z * np.std(wrong)):
            likely = (model.posterior > 0.5) & (model.log_odds > 0)
            found.append(np.stack([model.earlier, model.later, model.log_odds])[:, likely])
            borders[tracklets.camera_names[a], tracklets.camera_names[b]] = (model.expected, model.lag)
    earlier, later, log_odds = np.concatenate(found, axis=1)
    order = np.lexsort((later, earlier, -log_odds))
    kept = order
    for column in (earlier, later):
        kept = kept[np.sort(np.unique(column[kept], return_index=True)[1])]
    return Handovers(earlier[kept].astype(np.int64), later[kept].astype(np.int64), log_odds[kept], borders)


@dataclass(frozen=True, eq=False)
class _Model:
    """Pairs of one border: rows, posterior probability and log-odds of a handover; their number, lag and evidence."""

    earlier: Integers
    later: Integers
    posterior: Floats
    log_odds: Floats
    expected: float
    lag: float
    evidence: float


class _Border:
    """Ends and starts of the tracklets of two cameras."""

    def __init__(self, tracklets: Tracklets, a: int, b: int, allowed: Callable[[Integers, Integers], Mask]) -> None:
        self.tracklets, self.a, self.b, self.allowed = tracklets, a, b, allowed
        self.states = tracklets.edges.copy()
        self.length = float(np.ptp(np.append(tracklets.start, tracklets.end)))
        self.origin = float(tracklets.start.min())
        for camera in (a, b):
            rows = tracklets.camera == camera
            known = self.states[rows].reshape(-1, 5)
            known = known[np.isfinite(known).all(axis=1)]
            if len(known):
                self.states[rows] = (self.states[rows] - known.mean(axis=0)) / np.maximum(known.std(axis=0), 1e-9)
        known = np.isfinite(self.states).all(axis=2)
        self.starts, self.ends = (
            [np.flatnonzero((tracklets.camera == camera) & known[:, side]) for camera in (a, b)] for side in (0, 1)
        )
        others = [np.flatnonzero((tracklets.camera == camera) & tracklets.has_feature) for camera in (a, b)]
        features = [tracklets.features[rows[:: max(1, len(rows) // 1000)]] for rows in others]
        distance = 1 - features[0] @ features[1].T
        self.typical = (float(distance.mean()), max(float(distance.std()), 1e-9)) if distance.size else (0.0, 1.0)

    def _shifted(self, seconds: Floats, shift: float) -> Floats:
        return (seconds - self.origin + shift) % (self.length + LATEST) + self.origin if shift else seconds

    def _pairs(self, ends: Integers, starts: Integers, times: tuple[Floats, Floats]) -> Integers:
        """Rows `[2, n]` of ends and starts at a possible lag."""
        order = np.argsort(times[1], kind="stable")
        low, high = (np.searchsorted(times[1][order], times[0] + limit) for limit in (EARLIEST, LATEST))
        count = high - low
        return np.stack([np.repeat(ends, count), starts[order[concatenated_ranges(low, count)]]])

    def fit(self, shift: float) -> _Model | None:
        """Fit handovers with the times of the second camera shifted; None with fewer than 8 possible pairs."""
        t = self.tracklets
        end, start = t.end.copy(), t.start.copy()
        second = t.camera == self.b
        end[second], start[second] = (self._shifted(seconds[second], shift) for seconds in (end, start))
        both = [
            self._pairs(ends, starts, (end[ends], start[starts]))
            for ends, starts in ((self.ends[0], self.starts[1]), (self.ends[1], self.starts[0]))
        ]
        earlier, later = np.concatenate(both, axis=1)
        forward = np.repeat([True, False], [both[0].shape[1], both[1].shape[1]])
        if not shift and len(earlier):
            free = self.allowed(earlier, later)
            earlier, later, forward = earlier[free], later[free], forward[free]
        if len(earlier) < MIN_HANDOVERS:
            return None
        left, right = self.states[earlier, 1], self.states[later, 0]
        forward = forward[:, None]
        looks = np.zeros((len(earlier), 1))
        seen = t.has_feature[earlier] & t.has_feature[later]
        cosine = 1 - np.einsum("nd,nd->n", t.features[earlier[seen]], t.features[later[seen]])
        looks[seen, 0] = (cosine - self.typical[0]) / self.typical[1]
        z = np.concatenate([np.where(forward, left, right), np.where(forward, right, left), looks], axis=1)
        return _Model(earlier, later, *_fit_handovers(z, start[later] - end[earlier], earlier, later))


def _fit_handovers(
    z: Floats, lag: Floats, earlier: Integers, later: Integers
) -> tuple[Floats, Floats, float, float, float]:
    """Expectation maximisation of `find_handovers`: posterior and log-odds `[n]`, number, mean lag, evidence."""
    n, span = len(z), LATEST - EARLIEST
    (_, end), (_, begin) = (np.unique(rows, return_inverse=True) for rows in (earlier, later))
    unrelated = (z**2).sum(axis=1) / 2 + np.log(span)
    ratio = np.log(span / 2 / _PRIOR_SECONDS) - np.abs(lag) / _PRIOR_SECONDS
    prior, posterior, mean = np.log(0.2), np.zeros(n), 0.0
    for _ in range(_ROUNDS):
        odds = np.exp(np.clip(prior + ratio, -50, 50))
        rivals = np.bincount(end, odds)[end] + np.bincount(begin, odds)[begin] - odds
        before, posterior = posterior, odds / (1 + rivals)
        expected = float(posterior.sum())
        if np.abs(posterior - before).max() < 0.01:
            break
        centred = z - posterior @ z / (expected + _PRIOR_PAIRS)
        covariance = (centred * posterior[:, None]).T @ centred + _PRIOR_PAIRS * np.eye(z.shape[1])
        covariance /= expected + _PRIOR_PAIRS
        mean = float(posterior @ lag) / max(expected, 1e-9)
        variance = posterior @ (lag - mean) ** 2 + _PRIOR_PAIRS * _PRIOR_SECONDS**2
        variance = max(variance / (expected + _PRIOR_PAIRS), 0.01)
        ratio = unrelated - (centred * np.linalg.solve(covariance, centred.T).T).sum(axis=1) / 2
        ratio -= np.linalg.slogdet(covariance)[1] / 2 + (lag - mean) ** 2 / variance / 2
        ratio -= np.log(2 * np.pi * variance) / 2
        prior = np.log(np.clip(expected / max(n - expected, 1.0), 0.01, 2.0))
    return posterior, prior + ratio, expected, mean, float(posterior @ ratio)
