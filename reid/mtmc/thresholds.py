"""When is near enough? A threshold chosen without labels, and p(same) at each distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from reid.mtmc.candidates import Candidates
from reid.mtmc.solvers import Clusters

LIMIT = 0.96
"""Joins are followed up to this mean distance; features at random have 1."""

USUAL = 0.78
"""The threshold on re-ranked distances that was good on many small sets: where the silhouette leaves it open, this."""

_STEP = 0.01
_FROM = 0.2
_SAMPLE = 10_000
_LARGEST_ODDS = 12.0


@dataclass(frozen=True, eq=False)
class Choice:
    """A threshold and what it rests on.

    Attributes:
        threshold: largest mean distance of a join.
        silhouette: mean silhouette there, −1..1.
        size: identities' mean number of tracklets, as a tracklet sees it, Σ n² / Σ n: the geometric mean of that at
            `threshold` and that at the largest silhouette.
        tried, values: thresholds and their silhouettes.
    """

    threshold: float
    silhouette: float
    size: float
    tried: NDArray[np.float64]
    values: NDArray[np.float64]


def joins_within(joins: list[tuple[float, int, int]], threshold: float) -> int:
    """How many of the joins of `agglomerative`, run with a larger threshold, it makes with this one."""
    highest = np.maximum.accumulate(np.array([value for value, _, _ in joins] or [np.inf]))
    return min(int(np.searchsorted(highest, threshold, side="right")), len(joins))


def replay(clusters: Clusters, joins: list[tuple[float, int, int]]) -> None:
    """Make the joins again in fresh clusters."""
    for _, keep, gone in joins:
        clusters.join(keep, gone)


def select_threshold(
    candidates: Candidates,
    start: NDArray[np.int64],
    joins: list[tuple[float, int, int]],
    usual: float | None = None,
) -> Choice:
    """The threshold at which clusters are farthest apart for how wide they are (Rousseeuw 1987).

    For a tracklet of a cluster of 2 or more, a is its mean distance to the others of its cluster, b the least mean
    distance to another cluster, and its silhouette `(b − a) / max(a, b)`; a tracklet that is alone has 0. Pairs that
    are no candidates count as `far`. Of the thresholds 0.20, 0.21, … 0.96, the largest is taken whose mean silhouette
    is within one standard error (σ/√T) of the largest mean: what is alone counts 0 even where it is rightly alone,
    and so the best mean itself is a little too careful. Where `usual` is given, it is the one nearest to that within
    1.5 standard errors: with few tracklets many thresholds are as good, and the largest of them joins too much. Of
    thresholds that make the same clusters it is the middle. Above 10,000 tracklets the mean is over that many, evenly
    spaced.

    Args:
        candidates: distances.
        start: `[T]` cluster of each tracklet before the joins.
        joins: of `agglomerative` up to `LIMIT`.
        usual: a threshold that is known to be good for such distances.
    """
    n = candidates.tracklets
    with_link = np.unique(np.concatenate([candidates.first, candidates.second]))
    sample = with_link
    if len(sample) > _SAMPLE:
        sample = sample[np.linspace(0, len(sample) - 1, _SAMPLE).astype(np.int64)]
    nearness = candidates.far - candidates.distance.astype(np.float64)
    half = sparse.csr_matrix((nearness, (candidates.first, candidates.second)), shape=(n, n))
    rows = (half + half.T).tocsr()[sample]
    highest = np.maximum.accumulate(np.array([value for value, _, _ in joins] or [np.inf]))
    tried = np.arange(_FROM, LIMIT + _STEP / 2, _STEP) * candidates.far
    lengths = np.searchsorted(highest, tried, side="right").clip(max=len(joins))
    values = np.zeros(len(tried))
    errors = np.zeros(len(tried))
    sizes = np.ones(len(tried))
    of, made = start.copy(), 0
    parent = np.arange(n)
    for place, length in enumerate(lengths.tolist()):
        if place and length == lengths[place - 1]:
            values[place], errors[place], sizes[place] = values[place - 1], errors[place - 1], sizes[place - 1]
            continue
        for _, keep, gone in joins[made:length]:
            parent[gone] = keep
        made = length
        while (parent != parent[parent]).any():
            parent = parent[parent]
        of = parent[start]
        each = _silhouettes(rows, sample, of, candidates.far)
        if len(each):
            values[place], errors[place] = each.mean(), each.std() / np.sqrt(len(each))
        count = np.bincount(of[with_link], minlength=n)
        sizes[place] = float((count.astype(np.float64) ** 2).sum() / max(count.sum(), 1))
    top = int(values.argmax())
    slack = errors[top] if usual is None else 1.5 * errors[top]
    good = np.flatnonzero(values >= values[top] - slack)
    best = int(good[-1] if usual is None else good[np.abs(tried[good] - usual).argmin()])
    threshold = float(tried[lengths == lengths[best]].mean())
    return Choice(threshold, float(values[best]), float(np.sqrt(sizes[best] * sizes[top])), tried, values)


def _silhouettes(
    rows: sparse.csr_matrix, sample: NDArray[np.int64], of: NDArray[np.int64], far: float
) -> NDArray[np.float64]:
    """Silhouettes of the tracklets `sample`, whose nearness (far − distance) to all is in `rows`."""
    n = len(of)
    size = np.bincount(of, minlength=n)
    member = sparse.csr_matrix((np.ones(n), (np.arange(n), of)), shape=(n, n))
    total = (rows @ member).tocsr()
    owner = np.repeat(np.arange(len(sample)), np.diff(total.indptr))
    mine = total.indices == of[sample][owner]
    others = size[of[sample]] - 1
    own_total = np.bincount(owner[mine], total.data[mine], minlength=len(sample))
    a = far - own_total / np.maximum(others, 1)
    b = np.full(len(sample), far)
    np.minimum.at(b, owner[~mine], far - total.data[~mine] / size[total.indices[~mine]])
    largest = np.maximum(np.maximum(a, b), 1e-12)
    return np.where(others > 0, (b - a) / largest, 0.0)


@dataclass(frozen=True)
class Odds:
    """log p/(1 − p) of being one person: `intercept + slope · distance`, kept within ±12."""

    intercept: float
    slope: float

    def log_odds(self, distance: NDArray[np.floating]) -> NDArray[np.float64]:
        """Of each distance, any shape."""
        odds: NDArray[np.float64] = np.clip(
            self.intercept + self.slope * np.asarray(distance, np.float64), -_LARGEST_ODDS, _LARGEST_ODDS
        )
        return odds


def fit_odds(distance: NDArray[np.floating], joined: NDArray[np.bool_], threshold: float) -> Odds:
    """Logistic regression of "in one identity" on the distance of candidate pairs that no rule stops.

    The pairs' own outcome stands for the truth, so it tells how sharply the distance decides here, not how often the
    outcome is right. Both counts get one made-up pair more at distance 0 (one person) and at 1 (two), so that it always
    has a solution. With fewer than 10 pairs of either kind: odds 0 at the threshold, slope −20.
    """
    if min(int(joined.sum()), int((~joined).sum())) < 10:
        return Odds(20.0 * threshold, -20.0)
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
    intercept, slope = float(weights[0]), float(min(weights[1], -1e-3))
    return Odds(intercept, slope)
