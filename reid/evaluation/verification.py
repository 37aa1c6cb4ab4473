"""Verification: decide whether two crops show the same person. ROC, EER and TAR at FAR over all pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from reid.core.arrays import separate_unknown
from reid.core.errors import check_number
from reid.evaluation.features import MEMORY_LIMIT, EmbeddingTable, Features, Metric
from reid.evaluation.pairs import (
    BINS,
    DISTRACTOR,
    PAIRS_PER_ERROR,
    LabelledPairs,
    PairCounts,
    RatePoint,
    histogram,
    last_edge,
    pairs_below,
)
from reid.evaluation.protocol import Integers

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Default false-accept rates of `verify`."""

_GROUPS = 200
_LEVELS_PER_DECADE = 8

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VerificationResult:
    """How well distances separate genuine from impostor pairs. See `verify`.

    Attributes:
        counts: histograms of the pairs, from which all scores are computed.
        auc: area under the ROC.
        auc_within: error bound of `auc` caused by the bins.
        eer, eer_threshold: equal error rate (accepted impostor pairs equal rejected genuine pairs) and its distance.
        tar: one point for each false-accept rate.
        protocol: the rules behind the scores, as plain values.
    """

    counts: PairCounts
    auc: float
    auc_within: float
    eer: float
    eer_threshold: float
    tar: tuple[RatePoint, ...]
    protocol: dict[str, Any]

    def roc(self) -> tuple[Floats, Floats, Floats]:
        """Return false-accept rate, true-accept rate and threshold, `[P]` each, ascending, from (0, 0) to (1, 1).

        A pair is accepted if its distance is below the threshold. Only thresholds at which a rate changes are kept.
        """
        impostor, genuine = pairs_below(self.counts.impostor), pairs_below(self.counts.genuine)
        kept = np.concatenate([[0], np.flatnonzero(self.counts.impostor + self.counts.genuine) + 1])
        return impostor[kept] / impostor[-1], genuine[kept] / genuine[-1], self.counts.edges[kept]

    def rates_at(self, threshold: float) -> tuple[float, float]:
        """Return the false- and the true-accept rate of a threshold, accurate to one bin."""
        far, tar, thresholds = self.roc()
        at = max(0, int(np.searchsorted(thresholds, threshold, "right")) - 1)
        return float(far[at]), float(tar[at])

    def precision_recall(self) -> tuple[Floats, Floats, Floats]:
        """Return precision, recall and threshold, `[P]` each, by ascending threshold.

        Precision is the fraction of genuine pairs among the accepted ones, so it depends on the ratio of impostor to
        genuine pairs. Recall is the true-accept rate. Starts where the first pair is accepted.
        """
        kept = np.flatnonzero(self.counts.impostor + self.counts.genuine) + 1
        genuine, impostor = pairs_below(self.counts.genuine)[kept], pairs_below(self.counts.impostor)[kept]
        return genuine / (genuine + impostor), genuine / self.counts.n_genuine, self.counts.edges[kept]

    def as_dict(self, points: int = 200) -> dict[str, Any]:
        """Return the scores as plain Python, ready for JSON; of the ROC about `points`, evenly spaced in log FAR."""
        far, tar, threshold = self.roc()
        wanted = np.concatenate([[0], np.geomspace(1 / self.counts.n_impostor, 1, points)])
        at = np.unique(np.searchsorted(far, wanted * (1 + 1e-12), "right") - 1)
        return {
            **{name: getattr(self, name) for name in ("auc", "auc_within", "eer", "eer_threshold")},
            "tar": [asdict(point) for point in self.tar],
            "genuine_pairs": self.counts.n_genuine,
            "impostor_pairs": self.counts.n_impostor,
            "roc": {"far": far[at].tolist(), "tar": tar[at].tolist(), "threshold": threshold[at].tolist()},
            "protocol": dict(self.protocol),
        }


def verify(
    features: Features | EmbeddingTable,
    pids: ArrayLike | None = None,
    camids: ArrayLike | None = None,
    *,
    metric: Metric = "cosine",
    cross_camera: bool = True,
    distractor: int | None = DISTRACTOR,
    fars: Sequence[float] = FARS,
    bootstrap: int = 1000,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
) -> VerificationResult:
    """Score the decision "same person if the distance is below a threshold" over all pairs (see `count_pairs`).

    With FAR(t) and TAR(t) the fractions of impostor and of genuine pairs at a distance below t:

    - AUC: probability that a genuine pair is nearer than an impostor pair; ties count one half. Distances in one bin
      are ties. This changes the AUC by at most ½ Σ_b g_b i_b / (G I), which is `auc_within`.
    - EER: FAR where it equals 1 − TAR, interpolated linearly between bin edges.
    - TAR at FAR f: TAR(t) at the largest bin edge t with FAR(t) ≤ f. It needs 10/f impostor pairs, else None.
    - Interval of a TAR: percentiles 2.5 and 97.5 of a bootstrap over identities. Pairs that share a person are not
      independent, so identities are drawn, not pairs. With w the number of times that each was drawn, a genuine pair
      of identity a counts w_a times and an impostor pair of a and b counts w_a·w_b times; TAR and threshold are
      computed again in each of the `bootstrap` draws. More than 200 identities are first assigned at random to 200
      groups of equal size, and groups are drawn (an impostor pair within group a then counts w_a times). TAR is
      computed at 8 thresholds per decade of FAR and interpolated linearly in log FAR.

    Args:
        features, pids, camids, metric, cross_camera, distractor, memory_limit: as in `count_pairs`.
        fars: false-accept rates, each above 0 and below 1.
        bootstrap: number of draws; 0 for no intervals.
        seed: of draws and groups.

    Raises:
        DataError: as `count_pairs`; or there is no genuine or no impostor pair.
        ConfigError: a rate out of range.

    Example:
        >>> import numpy as np
        >>> features = np.repeat(np.eye(5), 4, axis=0)
        >>> result = verify(features, np.repeat([1, 2, 3, 4, 5], 4), cross_camera=False, fars=(0.1,))
        >>> result.auc, result.tar[0].rate
        (1.0, 1.0)
    """
    for far in fars:
        check_number("A false-accept rate", far, 0, 1, above=True, below=True)
    pairs = LabelledPairs(features, pids, camids, metric, cross_camera, distractor)
    counts = pairs.count(memory_limit)
    pairs.require_both(counts)
    reachable = [far for far in fars if far * counts.n_impostor >= PAIRS_PER_ERROR]
    if not bootstrap or not reachable:
        return score_counts(counts, fars)
    units = "identities" if pairs.n_units <= _GROUPS else f"{_GROUPS} random groups of identities"
    intervals = _intervals(pairs, counts, reachable, bootstrap, seed, memory_limit)
    return score_counts(counts, fars, intervals, f"95 %, {bootstrap} draws of {units}, seed {seed}")


def score_counts(
    counts: PairCounts,
    fars: Sequence[float] = FARS,
    intervals: Mapping[float, tuple[float, float]] | None = None,
    intervals_method: str = "none",
) -> VerificationResult:
    """Return the scores of counted pairs; see `verify`. `intervals` are (low, high) of the TAR by FAR."""
    n_genuine, n_impostor = counts.n_genuine, counts.n_impostor
    genuine_below, impostor_below = pairs_below(counts.genuine), pairs_below(counts.impostor)
    points = []
    for far in fars:
        edge, interval = last_edge(impostor_below, far), (intervals or {}).get(far, (None, None))
        point = RatePoint(far, float(counts.edges[edge]), float(genuine_below[edge] / n_genuine), *interval)
        points.append(RatePoint.without_rate(far, "impostor pairs", n_impostor) or point)
    product = float(n_genuine) * float(n_impostor)
    nearer = genuine_below[:-1] + counts.genuine / 2
    eer, eer_threshold = _equal_error(counts)
    return VerificationResult(
        counts=counts,
        auc=float((counts.impostor * nearer).sum() / product),
        auc_within=float((counts.genuine * counts.impostor.astype(np.float64)).sum() / product / 2),
        eer=eer,
        eer_threshold=eer_threshold,
        tar=tuple(points),
        protocol={
            "metric": counts.metric,
            "pairs": counts.pairs,
            "images": counts.images,
            "identities": counts.identities,
            "bin width": float(counts.edges[1] - counts.edges[0]),
            "accepted": "distance below the threshold",
            "intervals": intervals_method,
        },
    )


def _equal_error(counts: PairCounts) -> tuple[float, float]:
    far = pairs_below(counts.impostor) / counts.n_impostor
    frr = 1 - pairs_below(counts.genuine) / counts.n_genuine
    after = int(np.argmax(far >= frr))
    before = after - 1
    gap_before, gap_after = frr[before] - far[before], far[after] - frr[after]
    fraction = gap_before / (gap_before + gap_after)
    eer = far[before] + fraction * (far[after] - far[before])
    return float(eer), float(counts.edges[before] + fraction * (counts.edges[after] - counts.edges[before]))


def _intervals(
    pairs: LabelledPairs, counts: PairCounts, fars: Sequence[float], draws: int, seed: int, memory_limit: int
) -> dict[float, tuple[float, float]]:
    """Return the 95 % interval of TAR at each FAR; see `verify`."""
    rng = np.random.default_rng(seed)
    genuine_below, impostor_below = pairs_below(counts.genuine), pairs_below(counts.impostor)
    lowest, highest = np.log10(min(fars)) - 0.75, min(np.log10(max(fars)) + 0.25, 0)
    grid = 10 ** np.linspace(lowest, highest, 1 + int(np.ceil((highest - lowest) * _LEVELS_PER_DECADE)))
    levels = np.unique([last_edge(impostor_below, far) for far in grid])
    genuine, impostor, total_pairs = _count_by_group(pairs, _assign_groups(pairs, rng), levels, memory_limit)
    n_groups = len(total_pairs)
    weights = np.concatenate(
        [np.ones((1, n_groups)), rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), draws)]
    )
    total = _weighted(total_pairs, weights)
    far = np.stack([_weighted(below, weights) for below in impostor], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        tar = (weights @ genuine[:, :-1]) / (weights @ genuine[:, -1])[:, None]
        log_far = np.log(far / total[:, None])
    found = {}
    for wanted in fars:
        drawn = np.array([_interpolate(np.log(wanted), log_far[i], tar[i]) for i in range(len(weights))])
        exact = genuine_below[last_edge(impostor_below, wanted)] / counts.n_genuine
        usable = drawn[1:][np.isfinite(drawn[1:])] + (exact - drawn[0])
        if len(usable):
            low, high = np.percentile(usable, [2.5, 97.5])
            found[wanted] = (float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))
    return found


def _assign_groups(pairs: LabelledPairs, rng: np.random.Generator) -> Integers:
    """Return the group of each item: its identity, or one of `_GROUPS` with equally many identities and distractors."""
    if pairs.n_units <= _GROUPS:
        return pairs.unit
    labelled, distractors = (np.unique(pairs.unit[mask]) for mask in (pairs.labelled, ~pairs.labelled))
    group_of_unit = np.empty(pairs.n_units, dtype=np.int64)
    order = np.concatenate([rng.permutation(labelled), rng.permutation(distractors)])
    group_of_unit[order] = np.arange(len(order)) % _GROUPS
    return group_of_unit[pairs.unit]


def _count_by_group(
    pairs: LabelledPairs, group: Integers, levels: Integers, memory_limit: int
) -> tuple[Floats, Floats, Floats]:
    """Count pairs below each of L levels by group.

    Returns:
        genuine `[K, L + 1]` (last column: all genuine pairs), impostor `[L, K, K]`, all impostor pairs `[K, K]`. An
        impostor pair of two groups is counted once, at either of its two positions.
    """
    n_groups, n_levels = int(group.max()) + 1, len(levels)
    device = pairs.features.device
    level_of_bin = torch.from_numpy(np.searchsorted(levels, np.arange(BINS), "right")).to(device)
    group_on_device = torch.from_numpy(group).to(device)
    genuine = np.zeros(n_groups * (n_levels + 1), dtype=np.int64)
    cells = torch.zeros(n_groups * n_groups * n_levels, dtype=torch.int64, device=device)
    one = torch.ones(1, dtype=torch.int64, device=device)
    last = int(levels[-1])
    for _, _, blocks in pairs.blocks(memory_limit):
        for block in blocks:
            flat = block.bins.reshape(-1)
            rows, columns = group_on_device[block.rows], group_on_device[block.columns]
            genuine_rows = rows[block.genuine // len(columns)]
            genuine += histogram(genuine_rows * (n_levels + 1) + level_of_bin[flat[block.genuine]], len(genuine))
            flat[block.genuine] = BINS
            flat[block.ignored] = BINS
            near = torch.nonzero(flat < last).flatten()
            cell = rows[near // len(columns)] * n_groups + columns[near % len(columns)]
            cell = cell * n_levels + level_of_bin[flat[near]]
            cells.index_add_(0, cell, one.expand(len(cell)))
    below = cells.cpu().numpy().reshape(n_groups, n_groups, n_levels).transpose(2, 0, 1).astype(np.float64)
    genuine_below = np.cumsum(genuine.reshape(n_groups, n_levels + 1), axis=1).astype(np.float64)
    return genuine_below, np.cumsum(below, axis=0), _all_impostors(pairs, group, genuine_below[:, -1])


def _all_impostors(pairs: LabelledPairs, group: Integers, genuine: Floats) -> Floats:
    """Return the number of impostor pairs between and within groups `[K, K]`, each once, in the upper triangle."""
    camera = np.unique(separate_unknown(pairs.camids), return_inverse=True)[1]

    def within(mask: NDArray[np.bool_]) -> Floats:
        items = np.zeros((int(group.max()) + 1, int(camera.max()) + 1))
        np.add.at(items, (group[mask], camera[mask]), 1)
        total = items.sum(axis=1)
        ordered = np.outer(total, total) - (items @ items.T if pairs.cross_camera else np.diag(total))
        return np.triu(ordered, 1) + np.diag(np.diag(ordered)) / 2

    return within(np.ones(len(group), dtype=bool)) - within(~pairs.labelled) - np.diag(genuine)


def _weighted(pairs: Floats, weights: Floats) -> Floats:
    """Return Σ_{g≠h} w_g w_h P_gh + Σ_g w_g P_gg for each row of `weights [R, K]`."""
    inside = np.diag(pairs)
    return ((weights @ pairs) * weights).sum(axis=1) - weights**2 @ inside + weights @ inside


def _interpolate(wanted: float, x: Floats, y: Floats) -> float:
    usable = np.isfinite(x) & np.isfinite(y)
    return float(np.interp(wanted, x[usable], y[usable])) if usable.any() else np.nan
