"""Split impure tracks: cut them where their appearance changes from one person to another."""

from __future__ import annotations

import numpy as np

from reid.core.arrays import unit_rows
from reid.data.tracks import Floats, Integers
from reid.mtmc.negatives import Spans, certain_negative_distance
from reid.mtmc.pooling import Features, pool_features

MIN_CROPS = 6
"""Crops that each side of a cut needs."""

_SHUFFLES = 99
_MAX_SHUFFLED = 64


def change_points(features: Features, track: Integers, frame: Integers, spans: Spans) -> tuple[Integers, Integers]:
    """Find where tracks change to another person: the track and first frame of each new part, sorted.

    A tracker that swaps two people makes a track with two appearances. In each track with 12 crops or more, the best
    cut has 6 crops or more on either side and the largest `|Σa|²/n_a + |Σb|²/n_b` of normalised crops. The track is cut
    there if both are true:

    1. None of 99 random orders of its crops reaches the value (p ≤ 0.01; seeded by the track's number). Of more than
       64 crops, 64 evenly spaced ones are tested.
    2. The cosine distance between the means of both sides is at least `certain_negative_distance`. If that is unknown,
       nothing is cut.

    Both sides are then examined in the same way. Consecutive crops of one track are similar, so the first test alone
    would cut far too often.

    Args:
        features: `[N, D]` of crops.
        track: `[N]` number of each crop's track.
        frame: `[N]`.
        spans: Of the T tracks.
    """
    pooled = pool_features(features, track, len(spans.camera))
    min_distance = certain_negative_distance(spans, pooled)
    found: list[tuple[int, int]] = []
    rows = np.flatnonzero(pooled.usable)
    rows = rows[np.lexsort((frame[rows], track[rows]))]
    owners, first = np.unique(track[rows], return_index=True)
    for owner, whole in zip(owners.tolist(), np.split(rows, first[1:]), strict=False):
        rng = np.random.default_rng(owner)
        parts = [whole]
        while min_distance is not None and parts:
            part = parts.pop()
            cut = _cut(unit_rows(features[part]).astype(np.float64), frame[part], min_distance, rng)
            if cut:
                found.append((owner, int(frame[part[cut]])))
                parts += [part[cut:], part[:cut]]
    cuts = np.array(sorted(found), np.int64).reshape(-1, 2)
    return cuts[:, 0], cuts[:, 1]


def _cut(crops: Floats, frame: Integers, min_distance: float, rng: np.random.Generator) -> int:
    """Number of crops before the cut, of the crops of one track in order; 0 without a cut."""
    if len(crops) < 2 * MIN_CROPS:
        return 0
    cut = _best_cut(crops)[0]
    a, b = crops[:cut].sum(axis=0), crops[cut:].sum(axis=0)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0 or 1 - float(a @ b) / lengths < min_distance or frame[cut] == frame[cut - 1]:
        return 0
    crops = crops[np.linspace(0, len(crops) - 1, min(len(crops), _MAX_SHUFFLED)).astype(np.int64)]
    gain = _best_cut(crops)[1]
    by_chance = any(_best_cut(crops[rng.permutation(len(crops))])[1] >= gain for _ in range(_SHUFFLES))
    return 0 if by_chance else cut


def _best_cut(crops: Floats) -> tuple[int, float]:
    """Number of crops before the best cut, and its value."""
    n = len(crops)
    sums = np.cumsum(crops, axis=0)
    before = np.arange(MIN_CROPS, n - MIN_CROPS + 1)
    left = sums[before - 1]
    right = sums[-1] - left
    gain = (left**2).sum(axis=1) / before + (right**2).sum(axis=1) / (n - before)
    best = int(gain.argmax())
    return int(before[best]), float(gain[best])
