"""The odds of one person at each distance, learned without labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from reid.data.tracks import Floats
from reid.mtmc.pooling import Mask

PREFERRED_THRESHOLD = 0.78
"""Threshold on re-ranked distances that worked on many small sets; used where the silhouette does not decide."""


def fit_odds(distance: NDArray[np.floating], joined: Mask, threshold: float) -> tuple[float, float]:
    """Intercept and slope of the log-odds of one person at each distance.

    Logistic regression of "same identity" on the distance of the candidate pairs that no rule forbids.

    The run's own identities are the labels, so the odds describe how sharply the distance decides, not how often the
    decision is right. One artificial pair at distance 0 (one person) and one at 1 (two people) ensure a solution. With
    fewer than 10 pairs of either kind: odds 0 at the threshold, slope −20. The Newton steps are limited so that
    separable data also converges; scikit-learn's solvers warn there.
    """
    if min(int(joined.sum()), int((~joined).sum())) < 10:
        return 20.0 * threshold, -20.0
    x = np.append(np.asarray(distance, np.float64), [0.0, 1.0])
    y = np.append(joined.astype(np.float64), [1.0, 0.0])
    design = np.stack([np.ones(len(x)), x], axis=1)
    weights = np.array([10.0 * threshold, -10.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, design.T @ (y - p))
        step *= min(1.0, 10.0 / max(float(np.abs(step).max()), 1e-12))
        weights += step
        if np.abs(step).max() < 1e-8:
            break
    return float(weights[0]), float(min(weights[1], -1e-3))


def fit_slope(margin: Floats, target: Floats, prior: float) -> float:
    """Slope b of the log-odds `b · margin` of one person, by logistic regression on pairs known from elsewhere.

    Both kinds count equally, whatever their number, at most as much as the rarer kind has pairs. `(2 log(b / prior))²`
    is added to the loss, so few pairs change little.

    Args:
        margin: `[n]` threshold − distance.
        target: `[n]` 0..1, probability that the pair is one person.
        prior: Slope that is expected, and returned with no pair of either kind.
    """
    one, two = float(target.sum()), float((1 - target).sum())
    count = min(one, two)
    if count <= 0:
        return prior
    weights = count / one * target, count / two * (1 - target)

    def loss(log_slope: float) -> float:
        odds = np.exp(log_slope) * margin
        fit = weights[0] @ np.logaddexp(0, -odds) + weights[1] @ np.logaddexp(0, odds)
        return float(fit + (2 * (log_slope - np.log(prior))) ** 2)

    limits = np.log(prior) + np.array([-2.0, 2.0])
    return float(np.exp(minimize_scalar(loss, bounds=tuple(limits), method="bounded").x))
