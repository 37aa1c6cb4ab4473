"""Threshold selection without labels, and the odds of one person at each distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from reid.data.tracks import Floats, Integers
from reid.mtmc.candidates import Candidates
from reid.mtmc.pooling import Mask
from reid.mtmc.solvers import Join

MAX_THRESHOLD = 0.96
"""Largest threshold that is tried, as a fraction of `far`; random features have distance `far`."""

PREFERRED_THRESHOLD = 0.78
"""Threshold on re-ranked distances that worked on many small sets; used where the silhouette does not decide."""

_STEP = 0.01
_MIN_THRESHOLD = 0.2
_MAX_SAMPLE = 10_000


@dataclass(frozen=True, eq=False)
class ThresholdSelection:
    """A selected threshold and its evidence.

    Attributes:
        threshold: Largest mean distance of a join.
        silhouette: Mean silhouette at the threshold, −1..1.
        identity_size: Mean number of tracklets in a tracklet's identity, Σ n² / Σ n: the geometric mean of the values
            at `threshold` and at the largest silhouette.
        thresholds, silhouettes: Thresholds that were tried, and their mean silhouettes.
    """

    threshold: float
    silhouette: float
    identity_size: float
    thresholds: Floats
    silhouettes: Floats


def select_threshold(
    candidates: Candidates, start: Integers, joins: list[Join], preferred: float | None = None
) -> ThresholdSelection:
    """Select the threshold of average linkage by the mean silhouette (Rousseeuw 1987).

    The silhouette of a tracklet in a cluster of 2 or more is `(b − a) / max(a, b)`: a is its mean distance to the other
    members, b the smallest mean distance to another cluster. A tracklet alone has 0. Pairs that are not candidates
    count as `far`. The thresholds 0.20, 0.21, … 0.96 (times `far`) are tried.

    The largest threshold whose mean silhouette is within one standard error (σ/√T) of the best is selected. The best
    itself is slightly too small, because a tracklet that is rightly alone also counts 0. If `preferred` is given, the
    threshold closest to it within 1.5 standard errors is selected instead: with few tracklets, many thresholds are
    equally good, and the largest of them joins too much. Of thresholds with equal clusters, the middle is returned.
    Above 10,000 tracklets the mean is over 10,000 evenly spaced ones.

    Args:
        candidates: Distances.
        start: `[T]` cluster of each tracklet before the joins.
        joins: Joins of `agglomerative` up to `MAX_THRESHOLD`.
        preferred: A threshold known to be good for such distances.
    """
    n = candidates.tracklets
    with_link = np.unique(np.concatenate([candidates.first, candidates.second]))
    sample = with_link
    if len(sample) > _MAX_SAMPLE:
        sample = sample[np.linspace(0, len(sample) - 1, _MAX_SAMPLE).astype(np.int64)]
    similarity = candidates.far - candidates.distance.astype(np.float64)
    half = sparse.csr_matrix((similarity, (candidates.first, candidates.second)), shape=(n, n))
    rows = (half + half.T).tocsr()[sample]
    thresholds = np.arange(_MIN_THRESHOLD, MAX_THRESHOLD + _STEP / 2, _STEP) * candidates.far
    lengths = np.searchsorted([join[0] for join in joins], thresholds, side="right")
    silhouettes, errors, sizes = np.zeros(len(thresholds)), np.zeros(len(thresholds)), np.ones(len(thresholds))
    parent, done = np.arange(n), 0
    for length in np.unique(lengths).tolist():
        tried = lengths == length
        for _, kept, removed in joins[done:length]:
            parent[removed] = kept
        done = length
        while (parent != parent[parent]).any():
            parent = parent[parent]
        labels = parent[start]
        each = _silhouettes(rows, sample, labels, candidates.far)
        if len(each):
            silhouettes[tried], errors[tried] = each.mean(), each.std() / np.sqrt(len(each))
        count = np.bincount(labels[with_link], minlength=n)
        sizes[tried] = float((count.astype(np.float64) ** 2).sum() / max(count.sum(), 1))
    best = int(silhouettes.argmax())
    slack = errors[best] if preferred is None else 1.5 * errors[best]
    good = np.flatnonzero(silhouettes >= silhouettes[best] - slack)
    selected = int(good[-1] if preferred is None else good[np.abs(thresholds[good] - preferred).argmin()])
    return ThresholdSelection(
        threshold=float(thresholds[lengths == lengths[selected]].mean()),
        silhouette=float(silhouettes[selected]),
        identity_size=float(np.sqrt(sizes[selected] * sizes[best])),
        thresholds=thresholds,
        silhouettes=silhouettes,
    )


def _silhouettes(rows: sparse.csr_matrix, sample: Integers, labels: Integers, far: float) -> Floats:
    """Silhouettes of the tracklets in `sample`; `rows` contains their similarities (far − distance) to all."""
    n = len(labels)
    size = np.bincount(labels, minlength=n)
    member = sparse.csr_matrix((np.ones(n), (np.arange(n), labels)), shape=(n, n))
    total = (rows @ member).tocsr()
    owner = np.repeat(np.arange(len(sample)), np.diff(total.indptr))
    inside = total.indices == labels[sample][owner]
    others = size[labels[sample]] - 1
    inside_total = np.bincount(owner[inside], total.data[inside], minlength=len(sample))
    a = far - inside_total / np.maximum(others, 1)
    b = np.full(len(sample), far)
    np.minimum.at(b, owner[~inside], far - total.data[~inside] / size[total.indices[~inside]])
    largest = np.maximum(np.maximum(a, b), 1e-12)
    return np.where(others > 0, (b - a) / largest, 0.0)


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
