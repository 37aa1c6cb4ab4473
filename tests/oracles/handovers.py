"""Handovers between two cameras, one pair of tracklets at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np

from reid.mtmc.handovers import EARLIEST, LATEST, MAX_LAG, MIN_HANDOVERS


def handovers_loop(tracklets, allowed):
    """({(earlier, later): log-odds}, {(camera, camera): (expected, lag)}) as `find_handovers` describes them."""
    t = tracklets
    length = float(max(t.start.max(), t.end.max()) - min(t.start.min(), t.end.min()))
    found, borders = [], {}
    for a, b in itertools.combinations(sorted(set(t.camera.tolist())), 2):
        if all(any(len(t.paths[row]) for row in np.flatnonzero(t.camera == camera)) for camera in (a, b)):
            continue
        columns = _standardised(t, a, b)
        typical = _typical_distance(t, a, b)
        pairs = _pairs(t, a, b, 0.0, length, columns, typical, allowed)
        model = _expectation_maximisation(pairs) if len(pairs) >= MIN_HANDOVERS else None
        if model is None or model["expected"] < MIN_HANDOVERS or abs(model["lag"]) > MAX_LAG:
            continue
        evidence = []
        for shift in np.random.default_rng(0).uniform(0.1, 0.9, 19) * length:
            wrong = _pairs(t, a, b, shift, length, columns, typical, lambda *_: True)
            evidence.append(_expectation_maximisation(wrong)["evidence"] if len(wrong) >= MIN_HANDOVERS else 0.0)
        if model["evidence"] > max(*evidence, np.mean(evidence) + 4 * np.std(evidence)):
            borders[t.camera_names[a], t.camera_names[b]] = model["expected"], model["lag"]
            for (i, j, _, _), p, odds in zip(pairs, model["posterior"], model["log_odds"], strict=True):
                if p > 0.5 and odds > 0:
                    found.append((odds, i, j))
    best = {}
    for odds, i, j in sorted(found, key=lambda item: (-item[0], item[1], item[2])):
        if all(i != earlier and j != later for earlier, later in best):
            best[i, j] = odds
    return best, borders


def _standardised(t, a, b):
    """{(row, side): 5 numbers} of the edges that are known, in standard deviations of their camera."""
    result = {}
    for camera in (a, b):
        keys = [(row, side) for row in np.flatnonzero(t.camera == camera).tolist() for side in (0, 1)]
        keys = [(row, side) for row, side in keys if np.isfinite(t.edges[row, side]).all()]
        for column in range(5):
            values = [float(t.edges[row, side, column]) for row, side in keys]
            mean = sum(values) / max(len(values), 1)
            spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(len(values), 1))
            for key, value in zip(keys, values, strict=True):
                result.setdefault(key, []).append((value - mean) / max(spread, 1e-9))
    return result


def _typical_distance(t, a, b):
    sides = [[row for row in np.flatnonzero(t.camera == camera).tolist() if t.has_feature[row]] for camera in (a, b)]
    values = [1 - float(t.features[i] @ t.features[j]) for i, j in itertools.product(*sides)]
    return (np.mean(values), max(np.std(values), 1e-9)) if values else (0.0, 1.0)


def _pairs(t, a, b, shift, length, columns, typical, allowed):
    """(earlier, later, lag, 11 numbers) of each pair at a possible lag."""
    origin = float(t.start.min())

    def moved(row, seconds):
        if shift and t.camera[row] == b:
            return (seconds - origin + shift) % (length + LATEST) + origin
        return seconds

    pairs = []
    for first, second in ((a, b), (b, a)):
        for i in np.flatnonzero(t.camera == first).tolist():
            for j in np.flatnonzero(t.camera == second).tolist():
                end, start = moved(i, float(t.end[i])), moved(j, float(t.start[j]))
                if (i, 1) not in columns or (j, 0) not in columns or not end + EARLIEST <= start < end + LATEST:
                    continue
                if not allowed(i, j):
                    continue
                looks = 0.0
                if t.has_feature[i] and t.has_feature[j]:
                    looks = (1 - float(t.features[i] @ t.features[j]) - typical[0]) / typical[1]
                sides = columns[i, 1], columns[j, 0]
                z = np.array([*sides[first != a], *sides[first == a], looks])
                pairs.append((i, j, start - end, z))
    return pairs


def _expectation_maximisation(pairs):
    n, dimensions, span = len(pairs), 11, LATEST - EARLIEST
    prior, mean, posterior = math.log(0.2), 0.0, [0.0] * n
    ratio = [math.log(span / 2 / 0.5) - abs(lag) / 0.5 for _, _, lag, _ in pairs]
    for _ in range(30):
        odds = [math.exp(min(max(prior + value, -50), 50)) for value in ratio]
        of_end, of_start = {}, {}
        for value, (i, j, _, _) in zip(odds, pairs, strict=True):
            of_end[i] = of_end.get(i, 0.0) + value
            of_start[j] = of_start.get(j, 0.0) + value
        before = posterior
        posterior = [
            value / (1 + of_end[i] + of_start[j] - value) for value, (i, j, _, _) in zip(odds, pairs, strict=True)
        ]
        expected = sum(posterior)
        if max(abs(p - q) for p, q in zip(posterior, before, strict=True)) < 0.01:
            break
        weight = expected + 5
        centre = sum(p * z for p, (_, _, _, z) in zip(posterior, pairs, strict=True)) / weight
        covariance = 5 * np.eye(dimensions)
        for p, (_, _, _, z) in zip(posterior, pairs, strict=True):
            covariance = covariance + p * np.outer(z - centre, z - centre)
        covariance = covariance / weight
        inverse, volume = np.linalg.inv(covariance), np.linalg.slogdet(covariance)[1]
        mean = sum(p * lag for p, (_, _, lag, _) in zip(posterior, pairs, strict=True)) / max(expected, 1e-9)
        variance = sum(p * (lag - mean) ** 2 for p, (_, _, lag, _) in zip(posterior, pairs, strict=True))
        variance = max((variance + 5 * 0.5**2) / weight, 0.01)
        ratio = []
        for _, _, lag, z in pairs:
            handover = -(z - centre) @ inverse @ (z - centre) / 2 - volume / 2
            handover += -((lag - mean) ** 2) / variance / 2 - math.log(2 * math.pi * variance) / 2
            ratio.append(float(handover) - (-(z @ z) / 2 - math.log(span)))
        prior = math.log(min(max(expected / max(n - expected, 1.0), 0.01), 2.0))
    evidence = sum(p * value for p, value in zip(posterior, ratio, strict=True))
    log_odds = [prior + value for value in ratio]
    return {"posterior": posterior, "log_odds": log_odds, "expected": expected, "lag": mean, "evidence": evidence}
