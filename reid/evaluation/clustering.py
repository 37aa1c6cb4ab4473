"""Group items without labels: candidate pairs, average linkage, and the threshold by the silhouette."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import correlate1d

from reid.evaluation.neighbour_search import find_neighbours
from reid.evaluation.neighbours import Neighbours

MAX_THRESHOLD = 0.96
"""Largest threshold that is tried, as a fraction of `far`; random features have distance `far`."""

_STEP = 0.01
_MIN_THRESHOLD = 0.2
_MAX_SAMPLE = 10_000
_RESAMPLES = 1000
_WEIGHTS = np.array([1, 2, 3, 2, 1]) / 9  # of neighbouring thresholds, over which silhouettes are averaged
_NEIGHBOURS = 15  # candidates of each item where the size of identities is estimated

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Features = NDArray[np.float32]
Mask = NDArray[np.bool_]


MISLEADING = 0.03
"""Fraction of evidence that is of the other kind than it seems: people side by side, tracks that mix two people."""


def limit_ratio(log_ratio: NDArray[np.floating] | float) -> Floats:
    """Log-likelihood ratio if the evidence misleads with probability ε: `log(((1 − ε) r + ε) / (1 − ε + ε r))`."""
    r = np.exp(np.clip(log_ratio, -50, 50))
    return np.asarray(np.log(((1 - MISLEADING) * r + MISLEADING) / (1 - MISLEADING + MISLEADING * r)))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs of tracklets that are similar enough to be considered: each once, `first < second`, sorted.

    Attributes:
        first, second: `[L]` int64 rows.
        distance: `[L]` float32.
        far: Distance of every pair that is not a candidate.
        tracklets: T.
        log_ratio: `[L]` log-likelihood ratio of one person by other evidence (positions on the ground); NaN without.
            `distance` is lowered by `weight · limit_ratio(log_ratio)`. None: no pair has one.
        weight: Distance that log-odds of 1 are worth.
    """

    first: Integers
    second: Integers
    distance: Features
    far: float
    tracklets: int
    log_ratio: Floats | None = field(default=None, kw_only=True)
    weight: float = field(default=0.0, kw_only=True)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.first)

    def take(self, rows: NDArray[np.integer] | Mask) -> Candidates:
        """Return the candidates of the given rows or mask."""
        log_ratio = None if self.log_ratio is None else self.log_ratio[rows]
        columns = (self.first[rows], self.second[rows], self.distance[rows])
        return Candidates(*columns, self.far, self.tracklets, log_ratio=log_ratio, weight=self.weight)

    @property
    def space(self) -> tuple[Floats, Floats]:
        """Log-likelihood ratio of each pair by positions (0 without), and 1 where there is one, `[L]` each."""
        ratio = np.full(len(self), np.nan) if self.log_ratio is None else self.log_ratio
        return np.nan_to_num(ratio), np.isfinite(ratio).astype(np.float64)

    @property
    def looks(self) -> Floats:
        """Distance of each pair without the evidence of positions, `[L]`."""
        return self.distance.astype(np.float64) + self.weight * limit_ratio(self.space[0])


@dataclass(frozen=True, eq=False)
class Joins:
    """Joins of clusters, sorted by distance: mean distance, and the number of the kept and of the removed cluster."""

    distance: Floats
    kept: Integers
    removed: Integers

    def __len__(self) -> int:
        """Number of joins."""
        return len(self.distance)


def cosine_candidates(features: Features, neighbours: Neighbours) -> Candidates:
    """Pairs in which one tracklet is a neighbour of the other, with their cosine distance.

    `far` is 1, the distance of random features after centring.
    """
    n = len(features)
    other = neighbours.nearest
    rows = np.repeat(np.arange(n), other.shape[1])
    other = other.reshape(-1)
    keep = (rows != other) & (other >= 0)
    code = np.unique(np.minimum(rows, other)[keep] * n + np.maximum(rows, other)[keep])
    first, second = code // n, code % n
    return Candidates(first, second, cosine_distances(features, first, second), 1.0, n)


def cosine_distances(features: Features, first: Integers, second: Integers) -> Features:
    """Cosine distance `1 − f_i · f_j` of each pair, computed in blocks."""
    distance = np.empty(len(first), np.float32)
    step = max(1, 2**20 // (4 * features.shape[1]))
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        distance[part] = 1 - np.einsum("nd,nd->n", features[first[part]], features[second[part]])
    return distance


def average_linkage(
    candidates: Candidates,
    threshold: float,
    labels: Integers | None = None,
    has_feature: Mask | None = None,
    allowed: Mask | None = None,
    join: Callable[[Integers, Integers], Mask] | None = None,
) -> Joins:
    """Average linkage: join the two clusters of smallest mean distance while it is at most `threshold`.

    The mean is over all pairs of members that are candidates or have a feature each; pairs that are not candidates
    count as `far`. It is lowered by the evidence of positions (`mean_distances`). A join is made only if `allowed` and
    `join` permit it. Ties: lower cluster numbers first; the lower number is kept.

    All pairs of clusters that are each other's nearest are joined in one round. This gives the same joins as one at a
    time, because a join never brings a third cluster closer than the closer of the two was, and never makes a
    forbidden pair allowed. For the same reason a cluster whose nearest cluster is beyond `threshold` is finished.
    (With positions a join can, rarely, bring a third cluster closer. It is then joined in a later round.)

    Args:
        candidates: L pairs of T tracklets (or other items).
        threshold: Largest mean distance of a join.
        labels: `[T]` cluster of each tracklet at the start, 0 to T − 1; each tracklet alone if not given.
        has_feature: `[T]`; all if not given.
        allowed: `[L]` whether a candidate pair may be in one cluster; all if not given.
        join: Joins pairs of clusters (kept, removed) where possible, and returns where it did `[n]`; all if not given.

    Returns:
        The joins, sorted by mean distance.
    """
    far, n = candidates.far, candidates.tracklets
    labels = np.arange(n) if labels is None else labels
    has_feature = np.ones(n, bool) if has_feature is None else has_feature
    allowed = np.ones(len(candidates), bool) if allowed is None else allowed
    # Stored for each pair of clusters: S = Σ (far − distance) over its candidate pairs; the total is `pairs · far − S`.
    # Then the number of these without two features, and the sum and number of their log-likelihood ratios by positions.
    similarity = np.where(allowed, far - candidates.looks, -np.inf)
    size = np.bincount(labels, has_feature, minlength=n).astype(np.int64)
    height = np.full(n, -np.inf)
    a, b = labels[candidates.first], labels[candidates.second]
    # Candidate pairs without two features are counted one by one, the others by the sizes.
    extra = (~(has_feature[candidates.first] & has_feature[candidates.second])).astype(np.float64)
    low, high, sums = sum_by_cluster_pair(a, b, np.stack([similarity, extra, *candidates.space]), n)
    joins: list[tuple[Floats, Integers, Integers]] = [(np.zeros(0), *np.zeros((2, 0), np.int64))]
    while True:
        value = mean_distances(candidates, sums, size[low] * size[high])
        least = np.full(n, np.inf)
        np.minimum.at(least, low, value)
        np.minimum.at(least, high, value)
        alive = np.flatnonzero((least[low] <= threshold) & (least[high] <= threshold))
        if len(alive) == 0:
            distance, kept, removed = (np.concatenate(columns) for columns in zip(*joins, strict=True))
            order = np.argsort(distance, kind="stable")
            return Joins(distance[order], kept[order], removed[order])
        low, high, sums, value = low[alive], high[alive], sums[:, alive], value[alive]
        partner = np.full(n, n)
        for one, other in ((low, high), (high, low)):
            best = value == least[one]
            np.minimum.at(partner, one[best], other[best])
        mutual = np.flatnonzero((partner[low] == high) & (partner[high] == low))
        joined = np.ones(len(mutual), bool) if join is None else join(low[mutual], high[mutual])
        sums[0, mutual[~joined]] = -np.inf
        made = mutual[joined]
        keep, gone = low[made], high[made]
        height[keep] = np.maximum(value[made], np.maximum(height[keep], height[gone]))
        joins.append((height[keep], keep, gone))
        size[keep] += size[gone]
        number = np.arange(n)
        number[gone] = keep
        changed = np.zeros(n, bool)
        changed[keep] = changed[gone] = True
        touched = changed[low] | changed[high]
        new = sum_by_cluster_pair(number[low[touched]], number[high[touched]], sums[:, touched], n)
        low, high = np.append(low[~touched], new[0]), np.append(high[~touched], new[1])
        sums = np.concatenate([sums[:, ~touched], new[2]], axis=1)


def mean_distances(candidates: Candidates, sums: Floats, pairs: Integers) -> Floats:
    """Mean distance of n pairs of clusters, from the sums `[4, n]` of `average_linkage` and the pairs with features.

    The mean of appearance is lowered by the evidence of positions: the mean of the n known log-likelihood ratios, of
    which a fraction misleads (`limit_ratio`), times n / (n + 1). More pairs are more certain, but they are not
    independent, so they are not added up. Pairs without shared positions do not weaken it.
    """
    similarity, extra, ratio, known = sums
    distance = candidates.far - similarity / (pairs + extra)
    if candidates.log_ratio is not None:
        distance -= candidates.weight * limit_ratio(ratio / np.maximum(known, 1)) * known / (known + 1)
    return distance


def sum_by_cluster_pair(a: Integers, b: Integers, columns: Floats, n: int) -> tuple[Integers, Integers, Floats]:
    """Sum columns `[k, L]` by pair of different clusters, of n clusters: lower number, higher number, sums `[k, P]`."""
    code, index = np.unique(np.minimum(a, b) * n + np.maximum(a, b), return_inverse=True)
    total = np.array([np.bincount(index, values, minlength=len(code)) for values in columns], np.float64)
    low, high = np.divmod(code, n)
    different = low != high
    return low[different], high[different], total[:, different]


@dataclass(frozen=True, eq=False)
class ThresholdSelection:
    """A selected threshold and its evidence.

    Attributes:
        threshold: Largest mean distance of a join.
        silhouette: Mean silhouette at the threshold, −1..1.
        identity_size: Mean number of tracklets in a tracklet's identity, Σ n² / Σ n: the geometric mean of the values
            at `threshold` and at the largest silhouette.
        thresholds, silhouettes: Thresholds that were tried, and their mean silhouettes.
        interval: Thresholds between which 90 % of those lie that are selected from resampled clusters.
    """

    threshold: float
    silhouette: float
    identity_size: float
    thresholds: Floats
    silhouettes: Floats
    interval: tuple[float, float]


def select_threshold(
    candidates: Candidates, start: Integers, joins: Joins, preferred: float | None = None
) -> ThresholdSelection:
    """Select the threshold of average linkage by the mean silhouette (Rousseeuw 1987).

    The silhouette of a tracklet in a cluster of 2 or more is `(b − a) / max(a, b)`: a is its mean distance to the other
    members, b the smallest mean distance to another cluster. A tracklet alone has 0. Pairs that are not candidates
    count as `far`. The thresholds 0.20, 0.21, … 0.96 (times `far`) are tried.

    The mean silhouette is smoothed over neighbouring thresholds (weights 1, 2, 3, 2, 1), because a single join moves it
    as much as 0.02 of threshold do. The largest threshold at which it is within one standard error (σ/√T) of the best
    is selected, between two that were tried by linear interpolation. The best itself is slightly too small, because a
    tracklet that is rightly alone also counts 0. If `preferred` is given, the threshold closest to it within 1.5
    standard errors is selected instead: with few tracklets, many thresholds are equally good, and the largest of them
    joins too much. Of thresholds with equal clusters, the middle is returned. Above 10,000 tracklets the mean is over
    10,000 evenly spaced ones.

    The interval repeats the selection 1,000 times, each with as many clusters as there are, drawn with replacement (a
    bootstrap by cluster, because tracklets of one person are not independent). With fewer draws its ends are by
    chance.

    Args:
        candidates: Distances.
        start: `[T]` cluster of each tracklet before the joins.
        joins: Joins of `average_linkage` up to `MAX_THRESHOLD`.
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
    lengths = np.searchsorted(joins.distance, thresholds, side="right")
    silhouettes, errors, sizes = np.zeros(len(thresholds)), np.zeros(len(thresholds)), np.ones(len(thresholds))
    parent, done = np.arange(n), 0
    column = start  # cluster of each column of `rows`; from the first threshold on, a column is a cluster
    each = np.zeros((len(thresholds), len(sample)), np.float32)
    clusters = np.zeros((len(thresholds), len(sample)), np.int32)
    for length in np.unique(lengths).tolist():
        tried = lengths == length
        parent[joins.removed[done:length]] = joins.kept[done:length]
        done = length
        while (parent != parent[parent]).any():
            parent = parent[parent]
        labels = parent[start]
        rows = (rows @ sparse.csr_matrix((np.ones(n), parent[column], np.arange(n + 1)), shape=(n, n))).tocsr()
        column = np.arange(n)
        values = _silhouettes(rows, sample, labels, candidates.far)
        each[tried], clusters[tried] = values, labels[sample]
        if len(values):
            silhouettes[tried], errors[tried] = values.mean(), values.std() / np.sqrt(len(values))
        count = np.bincount(labels[with_link], minlength=n)
        sizes[tried] = float((count.astype(np.float64) ** 2).sum() / max(count.sum(), 1))
    smooth = correlate1d(each, _WEIGHTS, axis=0, mode="nearest") if each.size else each
    curve = smooth.mean(axis=1, dtype=np.float64)[None] if each.size else np.zeros((1, len(thresholds)))
    selected = _select(curve, errors, thresholds, preferred)
    best = int(curve.argmax())
    group = np.unique(clusters[np.abs(thresholds - selected).argmin()], return_inverse=True)[1]
    drawn = np.append(selected, _select(_resample(smooth, group), errors, thresholds, preferred))
    # The middle of the thresholds that give the same clusters.
    edges = np.concatenate([thresholds[:1], joins.distance.clip(*thresholds[[0, -1]]), thresholds[-1:]])
    place = np.searchsorted(edges, drawn, side="right").clip(1, len(edges) - 1)
    drawn = (edges[place - 1] + edges[place]) / 2
    low, high = np.quantile(drawn, [0.05, 0.95])
    return ThresholdSelection(
        interval=(min(float(low), float(drawn[0])), max(float(high), float(drawn[0]))),
        threshold=float(drawn[0]),
        silhouette=float(np.interp(drawn[0], thresholds, silhouettes)),
        identity_size=float(np.sqrt(np.interp(selected[0], thresholds, sizes) * sizes[best])),
        thresholds=thresholds,
        silhouettes=silhouettes,
    )


def _select(curves: Floats, errors: Floats, thresholds: Floats, preferred: float | None) -> Floats:
    """Threshold selected by each of n curves of mean silhouettes `[n, t]`, by the rule of `select_threshold`, `[n]`."""
    if preferred is None:
        slack, target = errors, thresholds[-1]
    else:
        slack, target = 1.5 * errors, preferred
    above = curves - curves.max(axis=1, keepdims=True) + slack[curves.argmax(axis=1), None]
    every, place = np.arange(len(curves)), np.where(above >= 0, np.abs(thresholds - target), np.inf).argmin(axis=1)
    following = (place + np.sign(target - thresholds[place]).astype(np.int64)).clip(0, len(thresholds) - 1)
    inside, outside = above[every, place], np.minimum(above[every, following], 0)
    fraction = np.where(outside < 0, inside / np.maximum(inside - outside, 1e-12), 1.0)
    found = thresholds[place] + fraction * (thresholds[following] - thresholds[place])
    return np.where(np.abs(found - thresholds[place]) < np.abs(target - thresholds[place]), found, target)


def _resample(each: Features, group: Integers) -> Floats:
    """Mean silhouettes of `_RESAMPLES` draws of the groups with replacement, `[draws, t]`, from those of each item."""
    if not each.size:
        return np.zeros((0, len(each)))
    groups = int(group.max()) + 1
    sums = np.stack([np.bincount(group, values, groups) for values in each])
    size, rng, drawn = np.bincount(group).astype(np.float64), np.random.default_rng(0), []
    for _ in range(_RESAMPLES):
        count = np.bincount(rng.integers(0, groups, groups), minlength=groups).astype(np.float64)
        drawn.append(sums @ count / (size @ count))
    return np.stack(drawn)


def _silhouettes(total: sparse.csr_matrix, sample: Integers, labels: Integers, far: float) -> Floats:
    """Silhouettes of the tracklets in `sample`; `total` contains the sums of their similarities to each cluster."""
    size = np.bincount(labels, minlength=len(labels))
    owner = np.repeat(np.arange(len(sample)), np.diff(total.indptr))
    inside = total.indices == labels[sample][owner]
    others = size[labels[sample]] - 1
    inside_total = np.bincount(owner[inside], total.data[inside], minlength=len(sample))
    a = far - inside_total / np.maximum(others, 1)
    b = np.full(len(sample), far)
    np.minimum.at(b, owner[~inside], far - total.data[~inside] / size[total.indices[~inside]])
    largest = np.maximum(np.maximum(a, b), 1e-12)
    return np.where(others > 0, (b - a) / largest, 0.0)


def estimate_identity_size(features: NDArray[np.floating] | torch.Tensor) -> float:
    """Estimate how many items an identity has, from features `[N, D]` without labels: the mean Σ n² / Σ n over items.

    The features are centred and L2-normalised. Each item's nearest others are candidates, which average linkage joins
    up to the threshold of the best silhouette (`select_threshold`). Items without any neighbour of their identity make
    it too large (about 3 where every item is alone), and large identities too small (10 for 23); see
    docs/reranking.md. 1 for fewer than three items.
    """
    x = torch.as_tensor(features).detach().cpu().double()
    x = x - x.mean(dim=0)
    x = (x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-12)).float()
    if len(x) < 3:
        return 1.0
    rows = x.numpy()
    candidates = cosine_candidates(rows, find_neighbours(rows, _NEIGHBOURS))
    joins = average_linkage(candidates, MAX_THRESHOLD * candidates.far)
    return select_threshold(candidates, np.arange(len(rows)), joins).identity_size
