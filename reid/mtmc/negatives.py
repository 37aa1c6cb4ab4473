"""Certain negatives: tracks that one camera sees simultaneously are different people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reid.data.tracks import Floats, Integers
from reid.mtmc.pooling import Mask, PooledFeatures

_MAX_PAIRS = 200_000
_MIN_NEGATIVES = 20
_QUANTILE = 0.1


@dataclass(frozen=True, eq=False)
class Spans:
    """Camera, local id and first and last second of T tracks or tracklets, columns of length T."""

    camera: Integers
    track: Integers
    start: Floats
    end: Floats

    def in_time_order(self, first: Integers, second: Integers) -> tuple[Integers, Integers]:
        """Order each pair of rows by start (ties: lower row first): earlier, later."""
        start = self.start
        swap = (start[second] < start[first]) | ((start[second] == start[first]) & (second < first))
        return np.where(swap, second, first), np.where(swap, first, second)


def simultaneous_rows(spans: Spans, wanted: Mask) -> Integers:
    """Certain negatives `[n, 2]`: wanted rows of one camera that overlap in time; at most 200,000, evenly spaced."""
    rows = np.flatnonzero(wanted)
    order = rows[np.lexsort((spans.start[rows], spans.camera[rows]))]
    found = [np.zeros((0, 2), np.int64)]
    step = 1
    alive = np.arange(len(order))
    while len(alive := alive[alive + step < len(order)]):
        a, b = order[alive], order[alive + step]
        together = (spans.camera[a] == spans.camera[b]) & (spans.start[b] <= spans.end[a])
        alive = alive[together]
        found.append(np.stack([a[together], b[together]], axis=1))
        step += 1
    pairs = np.concatenate(found)
    return pairs if len(pairs) <= _MAX_PAIRS else pairs[np.linspace(0, len(pairs) - 1, _MAX_PAIRS).astype(np.int64)]


def certain_negative_distance(spans: Spans, pooled: PooledFeatures) -> float | None:
    """Cosine distance that 90 % of the certain negatives exceed; None with fewer than 20 of them."""
    pairs = simultaneous_rows(spans, pooled.has_feature)
    if len(pairs) < _MIN_NEGATIVES:
        return None
    distance = 1 - np.einsum("nd,nd->n", pooled.features[pairs[:, 0]], pooled.features[pairs[:, 1]])
    return float(np.quantile(distance, _QUANTILE))
