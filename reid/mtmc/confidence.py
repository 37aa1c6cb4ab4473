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
    return _parts(_Candidates(identity, links))


def mean_p_same(identity: Integers, links: Links) -> Floats:
    """Mean p(same) of each tracklet over its candidates in its identity, `[T]`; 0.5 without any.

    For a tracklet alone: 1 − the largest p(same) of its candidates; 1 without candidates.
    """
    return _Candidates(identity, links).mean


def tracklet_confidence(identity: Integers, links: Links) -> Floats:
    """Confidence of each tracklet's identity, `[T]` 0..1: the probability that most of its tracklets are of its person.

    Logistic in `confidence_parts`, with `COEFFICIENTS`. For a tracklet alone: 1 − the largest p(same) of its
    candidates; 1 without candidates.
    """
    found = _Candidates(identity, links)
    odds = COEFFICIENTS[0] + _parts(found) @ COEFFICIENTS[1:]
    return np.where(found.others == 0, found.mean, expit(odds))


class _Candidates:
    """Of each tracklet `[T]`: the others of its identity, its candidates among them, its mean and rival p(same)."""

    def __init__(self, identity: Integers, links: Links) -> None:
        n = len(identity)
        row = np.concatenate([links.first, links.second])
        p, joined = np.tile(links.probability, 2), np.tile(links.joined, 2)
        self.others = np.bincount(identity, minlength=1)[identity] - 1
        self.count = np.bincount(row[joined], minlength=n)
        self.rival = np.zeros(n)
        np.maximum.at(self.rival, row[~joined], p[~joined])
        inside = np.bincount(row[joined], p[joined], minlength=n) / np.maximum(self.count, 1)
        self.mean = np.where(self.others == 0, 1 - self.rival, np.where(self.count > 0, inside, 0.5))


def _parts(found: _Candidates) -> Floats:
    odds = [logit(np.clip(values, _LEAST, 1 - _LEAST)) for values in (found.mean, found.rival)]
    return np.stack([*odds, found.count / np.maximum(found.others, 1)], axis=1)
