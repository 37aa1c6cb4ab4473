"""How likely each tracklet's identity is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit, logit

from reid.data.tracks import Floats, Integers

if TYPE_CHECKING:
    from reid.mtmc.matching import Links

COEFFICIENTS = (-0.81, 0.29, -0.26, 1.72)
"""Constant, and weights of the columns of `confidence_parts`: a logistic regression on the half for choosing of the
synthetic grid (`python -m benchmarks.matching_grid`, which prints them)."""

_LEAST = 1e-3


def confidence_parts(identity: Integers, links: Links) -> Floats:
    """What the confidence of each tracklet is computed from, `[T, 3]`.

    The columns are the log-odds of its mean p(same) over its candidates in its identity (0 without any), the log-odds
    of its largest p(same) of a candidate in another identity, and the fraction of the other tracklets of its identity
    that are its candidates. Probabilities are limited to 0.001..0.999.
    """
    n = len(identity)
    rival, count = np.zeros(n), np.zeros(n, np.int64)
    for side in (links.first, links.second):
        np.maximum.at(rival, side[~links.joined], links.probability[~links.joined])
        count += np.bincount(side[links.joined], minlength=n)
    others = np.bincount(identity, minlength=1)[identity] - 1 if n else count
    odds = [logit(np.clip(values, _LEAST, 1 - _LEAST)) for values in (mean_p_same(identity, links), rival)]
    return np.stack([*odds, count / np.maximum(others, 1)], axis=1)


def mean_p_same(identity: Integers, links: Links) -> Floats:
    """Mean p(same) of each tracklet over its candidates in its identity, `[T]`; 0.5 without any.

    For a tracklet alone: 1 − the largest p(same) of its candidates; 1 without candidates.
    """
    n = len(identity)
    row = np.concatenate([links.first, links.second])
    p, joined = np.tile(links.probability, 2), np.tile(links.joined, 2)
    count = np.bincount(row[joined], minlength=n)
    mean = np.bincount(row[joined], p[joined], minlength=n) / np.maximum(count, 1)
    largest = np.zeros(n)
    np.maximum.at(largest, row[~joined], p[~joined])
    alone = np.bincount(identity, minlength=1)[identity] == 1 if n else np.zeros(0, bool)
    return np.where(alone, 1 - largest, np.where(count > 0, mean, 0.5))


def tracklet_confidence(identity: Integers, links: Links) -> Floats:
    """Confidence of each tracklet's identity, `[T]` 0..1: the probability that most of its tracklets are of its person.

    Logistic in `confidence_parts`, with `COEFFICIENTS`. For a tracklet alone: 1 − the largest p(same) of its
    candidates; 1 without candidates.
    """
    parts = confidence_parts(identity, links)
    alone = np.bincount(identity, minlength=1)[identity] == 1 if len(identity) else np.zeros(0, bool)
    return np.where(alone, mean_p_same(identity, links), expit(COEFFICIENTS[0] + parts @ COEFFICIENTS[1:]))
