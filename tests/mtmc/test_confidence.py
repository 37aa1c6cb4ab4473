"""The confidence of identities."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from reid.mtmc.confidence import COEFFICIENTS, tracklet_confidence


def confidence_loop(identity, links):
    """One tracklet at a time."""
    pairs = list(zip(links.first, links.second, links.probability, links.joined, strict=True))
    result = []
    for row in range(len(identity)):
        own = [(p, joined) for i, j, p, joined in pairs if row in (i, j)]
        inside, outside = [p for p, joined in own if joined], [p for p, joined in own if not joined]
        others = int((identity == identity[row]).sum()) - 1
        if others == 0:
            result.append(1 - max(outside, default=0.0))
            continue
        mean, rival = sum(inside) / len(inside) if inside else 0.5, max(outside, default=0.0)
        m, r = (math.log(p / (1 - p)) for p in (min(max(value, 0.001), 0.999) for value in (mean, rival)))
        odds = COEFFICIENTS[0] + COEFFICIENTS[1] * m + COEFFICIENTS[2] * r + COEFFICIENTS[3] * len(inside) / others
        result.append(1 / (1 + math.exp(-odds)))
    return result


@pytest.mark.parametrize("seed", range(5))
def test_confidence_equals_a_loop_over_tracklets(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    identity = rng.integers(1, 8, n)
    kept = rng.random((n, n)) < 0.4
    first, second = np.nonzero(np.triu(kept, 1))
    probability = rng.choice([0.0, 0.2, 0.5, 0.97, 1.0], len(first))
    joined = identity[first] == identity[second]
    links = SimpleNamespace(first=first, second=second, probability=probability, joined=joined)
    found = tracklet_confidence(identity, links)
    assert found == pytest.approx(confidence_loop(identity, links))
    assert ((found >= 0) & (found <= 1)).all()


def test_confidence_falls_where_evidence_disagrees():
    def of(inside, rival):
        columns = np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([inside, rival, rival])
        links = SimpleNamespace(**dict(zip(("first", "second", "probability"), columns, strict=True)))
        links.joined = np.array([True, False, False])
        return float(tracklet_confidence(np.array([1, 1, 2]), links)[0])

    assert of(0.99, 0.01) > of(0.6, 0.01) > of(0.6, 0.45)


def test_no_tracklets_have_no_confidence():
    none = np.zeros(0, np.int64)
    links = SimpleNamespace(first=none, second=none, probability=np.zeros(0), joined=np.zeros(0, bool))
    assert len(tracklet_confidence(none, links)) == 0
