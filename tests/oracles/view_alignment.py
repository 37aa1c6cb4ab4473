"""The log-likelihood ratio of two cameras' placement, as a loop."""

from __future__ import annotations

import math

import numpy as np

from reid.mtmc.view_alignment import CORRELATION_SECONDS, MISSED, SLACK, STEP, Pair, Similarity


def log_ratio(pair: Pair, similarity: Similarity) -> float:
    total = 0.0
    ticks = pair.second.tick.tolist()
    for tick, place, error in zip(pair.first.tick.tolist(), pair.first.place, pair.first.error, strict=True):
        then = tick + similarity.offset
        if not ticks or not min(ticks) <= then <= max(ticks):
            continue
        at = similarity.turn * complex(*place) + similarity.shift
        x, y, depth = np.linalg.inv(pair.view.homography) @ [at.real, at.imag, 1]
        ahead = (np.linalg.inv(pair.view.homography) @ [0, 1, 1])[2]
        width, height = pair.view.size
        if depth * ahead <= 0 or not 0.05 < x / depth / width < 0.95 or not 0.05 < y / depth / height < 0.95:
            continue
        densities = []
        for other in range(len(ticks)):
            if ticks[other] == then:
                variance = (abs(similarity.turn) * error) ** 2 + pair.second.error[other] ** 2 + SLACK**2
                square = abs(at - complex(*pair.second.place[other])) ** 2
                densities.append(math.exp(-square / (2 * variance)) / (2 * math.pi * variance))
        mean = sum(densities) / len(densities) if densities else 0.0
        total += math.log(MISSED + (1 - MISSED) * pair.area * mean) * STEP / CORRELATION_SECONDS
    return total
