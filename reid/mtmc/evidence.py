"""Evidence of each link: the log-odds of one person by looks, by time and by space."""

from __future__ import annotations

import numpy as np

from reid.data.tracks import Floats
from reid.evaluation.clustering import Candidates, limit_ratio
from reid.mtmc.candidates import pair_distances
from reid.mtmc.ground import GroundEvidence
from reid.mtmc.pooling import Mask

EVIDENCE = ("looks", "time", "space")
"""Names of the kinds of evidence."""


def link_evidence(
    final: Candidates, looks: Candidates, space: GroundEvidence, has_feature: Mask, threshold: float, weight: float
) -> dict[str, Floats]:
    """Divide the decision about each candidate pair into log-odds by kind.

    Every unit of log-odds lowers a distance by `weight`, and a distance equal to the threshold is neutral. So for each
    pair, `looks + time + space = (threshold − distance) / weight`, where a missing kind counts as 0.

    Args:
        final: L candidates with the distances that the solver used.
        looks: Candidates with distances of appearance only; other pairs have its `far`.
        space: Simultaneous positions.
        has_feature: `[T]`.
        threshold: Largest distance at which two tracklets are joined.
        weight: Distance that log-odds of 1 are worth.

    Returns:
        `[L]` log-odds by name, NaN where there is no evidence of that kind: `looks` needs two features, `space`
        simultaneous positions, and `time` (as far as it changed the distance) learned transition times.
    """
    n = final.tracklets
    parts = {name: np.full(len(final), np.nan) for name in EVIDENCE}
    both = has_feature[final.first] & has_feature[final.second]
    distance = pair_distances(looks, final.first[both], final.second[both])
    parts["looks"][both] = (threshold - distance) / weight
    code = final.first * n + final.second
    parts["space"][np.searchsorted(code, space.first * n + space.second)] = limit_ratio(space.log_ratio)
    total = (threshold - final.distance.astype(np.float64)) / weight
    rest = total - np.nan_to_num(parts["looks"]) - np.nan_to_num(parts["space"])
    parts["time"] = np.where(np.abs(rest) > 1e-4, rest, np.nan)
    return parts
