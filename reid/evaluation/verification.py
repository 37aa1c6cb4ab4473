"""Are these two the same person? ROC, EER, TAR at FAR over all pairs, and identification when some are not enrolled.

Pairs are counted into fine bins of distance, block by block; no list of pairs and no N×N matrix is held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.core.errors import ReidError
from reid.evaluation.features import MEMORY_LIMIT, Features, Metric, distance_blocks, prepare_features, prepare_one
from reid.evaluation.protocol import JUNK, NO_IDENTITY, Protocol, column

BINS = 2**16
"""Bins of distance between 0 and the largest that can be."""

DISTRACTOR = 0
"""The pid that Market-1501 gives to everybody whom it did not label: not one identity."""

PAIRS_PER_ERROR = 10
"""A rate f is estimated from no fewer than `PAIRS_PER_ERROR / f` pairs: ten errors are expected among them."""

FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)

_BLOCK = 2**21
"""Distances counted at a time: few enough for the processor's cache, enough to share among its cores."""

_GROUPS = 200
_LEVELS_PER_DECADE = 8


@dataclass(frozen=True, eq=False)
class PairCounts:
    """How many pairs stand at which distance.

    Attributes:
        edges: `[B + 1]` float64, ascending from 0. Bin b holds the distances `edges[b] ≤ d < edges[b + 1]`, to the
            rounding of a float32 product (about 1e-7; of a Euclidean distance, near 0, its square root); the last bin
            takes its upper edge too.
        genuine: `[B]` int64, pairs of one identity.
        impostor: `[B]` int64, pairs of two identities.
        metric: "cosine" (1 − cosine similarity, 0..2) or "euclidean" (‖a − b‖).
        pairs: which pairs were counted, in words.
        images: how many items were paired.
        identities: how many identities they show; every distractor counts as one of its own.
    """

    edges: NDArray[np.float64]
    genuine: NDArray[np.int64]
    impostor: NDArray[np.int64]
    metric: str
    pairs: str
    images: int = 0
    identities: int = 0

    @property
    def n_genuine(self) -> int:
        """All genuine pairs."""
        return int(self.genuine.sum())

    @property
    def n_impostor(self) -> int:
        """All impostor pairs."""
        return int(self.impostor.sum())


@dataclass(frozen=True)
class TarPoint:
    """The share of genuine pairs accepted where at most `far` of the impostor pairs are.

    `threshold` is the largest bin edge at which no more than `far` of the impostor pairs have a smaller distance, and
    `tar` the share of genuine pairs with a smaller one; `low` and `high` bound it (95 %). All are nan, and `note`
    says why, where there are too few pairs.
    """

    far: float
    threshold: float
    tar: float
    low: float
    high: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class VerificationResult:
    """How well distances tell pairs of one person from pairs of two. See `verify`.

    Attributes:
        counts: the pairs by distance, from which all else is.
        auc: area under the ROC.
        auc_within: `auc` is that of the unbinned distances to at most this.
        eer, eer_threshold: where the share of impostor pairs accepted equals that of genuine pairs rejected.
        tar: one point for each false-accept rate asked for.
        protocol: the rules in words and plain values.
    """

    counts: PairCounts
    auc: float
    auc_within: float
    eer: float
    eer_threshold: float
    tar: tuple[TarPoint, ...]
    protocol: dict[str, Any]

    def roc(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """False-accept rate, true-accept rate and threshold, `[P]` each, ascending, from (0, 0) to (1, 1).

        A pair is accepted when its distance is below the threshold. Only thresholds at which a rate changes are kept.
        """
        accepted_impostor, accepted_genuine = _below(self.counts.impostor), _below(self.counts.genuine)
        kept = np.concatenate([[0], np.flatnonzero(self.counts.impostor + self.counts.genuine) + 1])
        return (
            accepted_impostor[kept] / accepted_impostor[-1],
            accepted_genuine[kept] / accepted_genuine[-1],
            self.counts.edges[kept],
        )

    def rates_at(self, threshold: float) -> tuple[float, float]:
        """False- and true-accept rate of a threshold, exact to a bin of `counts`."""
        far, tar, thresholds = self.roc()
        place = max(0, int(np.searchsorted(thresholds, threshold, "right")) - 1)
        return float(far[place]), float(tar[place])

    def precision_recall(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Precision, recall and threshold, `[P]` each, by ascending threshold.

        Precision is the share of genuine pairs among the accepted ones, and so depends on how many impostor pairs
        there are to a genuine one; recall is the true-accept rate. Starts where the first pair is accepted.
        """
        kept = np.flatnonzero(self.counts.impostor + self.counts.genuine) + 1
        genuine, impostor = _below(self.counts.genuine)[kept], _below(self.counts.impostor)[kept]
        return genuine / (genuine + impostor), genuine / self.counts.n_genuine, self.counts.edges[kept]

    def as_dict(self, points: int = 200) -> dict[str, Any]:
        """The scores as plain Python, ready for JSON; of the ROC some `points`, even in log FAR. nan is None."""
        far, tar, threshold = self.roc()
        wanted = np.concatenate([[0], np.geomspace(1 / self.counts.n_impostor, 1, points)])
        at = np.unique(np.searchsorted(far, wanted * (1 + 1e-12), "right") - 1)
        return {
            "auc": self.auc,
            "auc_within": self.auc_within,
            "eer": self.eer,
            "eer_threshold": self.eer_threshold,
            "tar": [_plain(point) for point in self.tar],
            "genuine_pairs": self.counts.n_genuine,
            "impostor_pairs": self.counts.n_impostor,
            "roc": {"far": far[at].tolist(), "tar": tar[at].tolist(), "threshold": threshold[at].tolist()},
            "protocol": dict(self.protocol),
        }


def count_pairs(
    features: Features,
    pids: ArrayLike,
    camids: ArrayLike | None = None,
    *,
    metric: Metric = "cosine",
    cross_camera: bool = True,
    distractor: int | None = DISTRACTOR,
    memory_limit: int = MEMORY_LIMIT,
) -> PairCounts:
    """Count all unordered pairs of items by distance, those of one identity and those of two apart.

    Corner cases:
    1. Items of pid -1 (junk) are left out.
    2. Two items of the pid `distractor` (0, as Market-1501 numbers everybody unlabelled) may or may not show one
       person: such pairs are left out. Paired with anybody else, they are impostors. None: there is no such pid.
    3. `cross_camera` counts pairs of different cameras only, as retrieval is scored.

    Args:
        features: `[N, D]` numbers of any type, NumPy or torch on any device; computed with in float32.
        pids: `[N]` integers.
        camids: `[N]` integers in any coding, or None with `cross_camera=False`.
        metric: "cosine" or "euclidean".
        cross_camera: leave pairs of one camera out.
        distractor: the pid that is no identity.
        memory_limit: bytes a block of distances may take (one row at least).

    Raises:
        ReidError: shapes do not fit; a feature is NaN, infinite or (cosine) zero; fewer than two items are left.
    """
    pairs = LabelledPairs.of(features, pids, camids, metric, cross_camera, distractor)
    genuine, impostor = np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64)
    for _, _, own, others in pairs.by_cameras(memory_limit):
        genuine += own
        impostor += others
    return pairs.counts(genuine, impostor)


def verify(
    features: Features,
    pids: ArrayLike,
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
    """Score the decision "same person when the distance is below a threshold" over all pairs (see `count_pairs`).

    With FAR(t) and TAR(t) the shares of impostor and of genuine pairs at a distance below t:

    - AUC: the chance that a genuine pair is nearer than an impostor pair, ties counting one half. Distances in one bin
      are ties; this moves it by at most ½ Σ_b g_b i_b / (G I), which is `auc_within`.
    - EER: FAR where it equals 1 − TAR, straight lines drawn between bin edges.
    - TAR at FAR f: TAR(t) at the largest bin edge t with FAR(t) ≤ f. It needs 10/f impostor pairs, else nan.
    - The interval of a TAR: percentiles 2.5 and 97.5 of a bootstrap over identities. Pairs that share a person are not
      independent, so people are drawn, not pairs: with weights w (how often each was drawn), a genuine pair of person a
      counts w_a times and an impostor pair of a and b w_a·w_b times; both TAR and the threshold are made anew in each
      of the `bootstrap` draws. With more than 200 identities they are first dealt at random into 200 groups of equal
      size, which are drawn instead (an impostor pair within group a then counts w_a times). Between thresholds, which
      stand 8 to a decade of FAR, straight lines in log FAR are drawn.

    Args:
        fars: false-accept rates, each above 0 and below 1.
        bootstrap: draws; 0 leaves intervals out (nan).
        seed: of the draws and groups.
        (the others): as in `count_pairs`.

    Raises:
        ReidError: as `count_pairs`; or there is no genuine or no impostor pair, and the message says why.
    """
    if any(not 0 < far < 1 for far in fars):
        raise ReidError(f"False-accept rates lie between 0 and 1, not {', '.join(map(str, fars))}.")
    pairs = LabelledPairs.of(features, pids, camids, metric, cross_camera, distractor)
    genuine, impostor = np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64)
    for _, _, own, others in pairs.by_cameras(memory_limit):
        genuine += own
        impostor += others
    counts = pairs.counts(genuine, impostor)
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
    intervals_in_words: str = "none were made",
) -> VerificationResult:
    """The scores of pairs already counted; see `verify`. `intervals` are (low, high) of the TAR by FAR."""
    n_genuine, n_impostor = counts.n_genuine, counts.n_impostor
    accepted_genuine, accepted_impostor = _below(counts.genuine), _below(counts.impostor)
    points = []
    for far in fars:
        if far * n_impostor < PAIRS_PER_ERROR:
            need = int(np.ceil(PAIRS_PER_ERROR / far))
            note = f"a FAR of {far:g} needs {need:,} impostor pairs; there are {n_impostor:,}"
            points.append(TarPoint(far, np.nan, np.nan, np.nan, np.nan, note))
            continue
        edge = _last_edge(accepted_impostor, far)
        low, high = (intervals or {}).get(far, (np.nan, np.nan))
        points.append(TarPoint(far, float(counts.edges[edge]), float(accepted_genuine[edge] / n_genuine), low, high))
    product = float(n_genuine) * float(n_impostor)
    nearer = accepted_genuine[:-1] + counts.genuine / 2
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
            "intervals": intervals_in_words,
        },
    )


def _below(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many stand below each edge, `[B + 1]`."""
    return np.concatenate([[0], np.cumsum(counts)])


def _last_edge(accepted: NDArray[np.int64], rate: float) -> int:
    """The last edge below which stand at most `rate` of all."""
    allowed = np.floor(rate * float(accepted[-1]) * (1 + 1e-12))
    return int(np.searchsorted(accepted, allowed, "right")) - 1


def _equal_error(counts: PairCounts) -> tuple[float, float]:
    far = _below(counts.impostor) / counts.n_impostor
    frr = 1 - _below(counts.genuine) / counts.n_genuine
    after = int(np.argmax(far >= frr))
    before = after - 1
    gap_before, gap_after = frr[before] - far[before], far[after] - frr[after]
    share = gap_before / (gap_before + gap_after)
    eer = far[before] + share * (far[after] - far[before])
    return float(eer), float(counts.edges[before] + share * (counts.edges[after] - counts.edges[before]))


def _plain(point: Any) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value
        for key, value in vars(point).items()
    }


@dataclass(frozen=True, eq=False)
class Block:
    """Bins `[b, n]` of the distances of items `rows.start…` to items `columns.start…`; flat positions of some."""

    bins: Tensor
    rows: slice
    columns: slice
    genuine: Tensor
    left_out: Tensor


@dataclass(frozen=True, eq=False)
class LabelledPairs:
    """Labelled items ready to be counted in pairs: sorted by camera, then identity.

    `unit [N]` numbers the identities from 0, every distractor one of its own; `order [N]` is where each item stood in
    what was given.
    """

    features: Tensor
    pids: NDArray[np.int64]
    camids: NDArray[np.int64]
    unit: NDArray[np.int64]
    order: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    metric: Metric
    largest: float
    cross_camera: bool
    n_junk: int

    @classmethod
    def of(
        cls,
        features: Features,
        pids: ArrayLike,
        camids: ArrayLike | None,
        metric: Metric,
        cross_camera: bool,
        distractor: int | None = DISTRACTOR,
    ) -> LabelledPairs:
        """Check and sort; see `count_pairs`."""
        people = column(pids, "pids")
        if cross_camera and camids is None:
            raise ReidError("Pairs across cameras need camera ids. Without cameras, set cross_camera=False.")
        cameras = np.zeros(len(people), dtype=np.int64) if camids is None else column(camids, "camids")
        ready = prepare_one(features, "item", metric, None)
        if not len(ready) == len(people) == len(cameras):
            raise ReidError(f"There are {len(ready)} features, {len(people)} pids and {len(cameras)} camids.")
        kept = np.flatnonzero(people != JUNK)
        if len(kept) < 2:
            raise ReidError(f"Pairs need at least 2 items with an identity; there are {len(kept)} (pid -1 is none).")
        order = kept[np.lexsort((people[kept], cameras[kept]))]
        ready = ready[torch.from_numpy(order).to(ready.device)]
        people, cameras = people[order], cameras[order]
        largest = 2.0
        if metric == "euclidean":
            ready = ready - ready.mean(dim=0)
            largest = 2 * float(torch.linalg.vector_norm(ready, dim=1).max()) * (1 + 1e-6) or 1.0
        labelled = np.ones(len(people), dtype=bool) if distractor is None else people != distractor
        unit = np.unique(people, return_inverse=True)[1]
        strangers = np.flatnonzero(~labelled)
        unit[strangers] = unit.max() + 1 + np.arange(len(strangers))
        return cls(
            features=ready,
            pids=people,
            camids=cameras,
            unit=np.unique(unit, return_inverse=True)[1],
            order=order,
            labelled=labelled,
            metric=metric,
            largest=largest,
            cross_camera=cross_camera,
            n_junk=len(np.asarray(pids)) - len(kept),
        )

    @property
    def n_units(self) -> int:
        """Identities, every distractor counting as one."""
        return int(self.unit.max()) + 1

    @property
    def edges(self) -> NDArray[np.float64]:
        """`[BINS + 1]` bin edges."""
        return np.linspace(0, self.largest, BINS + 1)

    def counts(self, genuine: NDArray[np.int64], impostor: NDArray[np.int64]) -> PairCounts:
        """The counts with what was counted, in words."""
        words = "all pairs of different cameras" if self.cross_camera else "all pairs, of whatever cameras"
        if self.n_junk:
            words += f"; {self.n_junk:,} junk items (pid -1) left out"
        strangers = int((~self.labelled).sum())
        if strangers > 1:
            words += f"; pairs among {strangers:,} distractors (pid {self.pids[~self.labelled][0]}) left out"
        return PairCounts(self.edges, genuine, impostor, self.metric, words, len(self.pids), self.n_units)

    def require_both(self, counts: PairCounts) -> None:
        """Refuse, with the reason, counts that lack one kind of pair."""
        if counts.n_genuine and counts.n_impostor:
            return
        kind = "impostor" if counts.n_genuine else "genuine"
        cameras = len(np.unique(self.camids))
        reason = f"{counts.images:,} items show {counts.identities:,} identities"
        if self.cross_camera:
            reason += f" in {cameras} camera{'s' if cameras != 1 else ''}, and only pairs of different cameras count"
        mend = "Give more labelled items" + (
            ", or count pairs of any cameras (cross_camera=False, --any-camera)." if self.cross_camera else "."
        )
        raise ReidError(f"There is no {kind} pair to score: {reason}. {mend}")

    def by_cameras(self, memory_limit: int) -> Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (camera, camera, genuine `[BINS]`, impostor `[BINS]`) of each pair of cameras, the lower id first."""
        for first, second, blocks in self.blocks(memory_limit):
            genuine = np.zeros(BINS, dtype=np.int64)
            every = np.zeros(BINS, dtype=np.int64)
            for block in blocks:
                flat = block.bins.reshape(-1)
                own = histogram(flat[block.genuine], BINS)
                genuine += own
                every += histogram(flat, BINS)
                every -= histogram(flat[block.left_out], BINS)
            yield first, second, genuine, every - genuine

    def blocks(self, memory_limit: int) -> Iterator[tuple[int, int, Iterator[Block]]]:
        """Yield (camera, camera, blocks of all their pairs) of each pair of cameras, the lower id first."""
        cameras, starts = np.unique(self.camids, return_index=True)
        stops = np.append(starts[1:], len(self.camids))
        for i, first in enumerate(cameras):
            for j in range(i + self.cross_camera, len(cameras)):
                yield (
                    int(first),
                    int(cameras[j]),
                    self._blocks_between((starts[i], stops[i]), (starts[j], stops[j]), memory_limit),
                )

    def _blocks_between(self, rows: tuple[int, int], columns: tuple[int, int], memory_limit: int) -> Iterator[Block]:
        step = max(1, min(_BLOCK, memory_limit // 16) // (columns[1] - columns[0]))
        for start in range(rows[0], rows[1], step):
            stop = min(start + step, rows[1])
            left = start if rows == columns else columns[0]
            bins = self._bins(slice(start, stop), slice(left, columns[1]))
            genuine, left_out = self._special(np.arange(start, stop), left, columns[1], triangle=rows == columns)
            device = bins.device
            yield Block(
                bins,
                slice(start, stop),
                slice(left, columns[1]),
                torch.from_numpy(genuine).to(device),
                torch.from_numpy(left_out).to(device),
            )

    def _bins(self, rows: slice, columns: slice) -> Tensor:
        query, gallery = self.features[rows], self.features[columns]
        scale = BINS / self.largest
        if self.metric == "cosine":
            base = torch.full((1,), scale, device=query.device)
            scaled = torch.addmm(base, query, gallery.T, alpha=-scale)
        else:
            squares = torch.addmm(gallery.square().sum(dim=1), query, gallery.T, alpha=-2)
            scaled = squares.add_(query.square().sum(dim=1, keepdim=True)).clamp_(min=0).sqrt_().mul_(scale)
        return scaled.clamp_(0, BINS - 1).long()

    def _special(
        self, rows: NDArray[np.int64], left: int, right: int, *, triangle: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Flat positions, in the block of `rows` × `left…right`, of genuine pairs and of those that do not count."""
        width = right - left
        offset = (rows - rows[0]) * width - left
        low = left + np.searchsorted(self.pids[left:right], self.pids[rows], "left")
        high = left + np.searchsorted(self.pids[left:right], self.pids[rows], "right")
        known = self.labelled[rows]
        if not triangle:
            return _ranges((offset + low)[known], (high - low)[known]), _ranges(
                (offset + low)[~known], (high - low)[~known]
            )
        # Of the square on the diagonal only what lies right of it counts once.
        after = np.maximum(low, rows + 1)
        genuine = _ranges((offset + after)[known], np.maximum(high - after, 0)[known])
        strangers = _ranges((offset + after)[~known], np.maximum(high - after, 0)[~known])
        return genuine, np.concatenate([strangers, _ranges(offset + left, rows + 1 - left)])


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, … for each start, `length` of them, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - ends + lengths, lengths)


def histogram(values: Tensor, bins: int) -> NDArray[np.int64]:
    """How often each of 0…bins − 1 stands among the values."""
    return torch.bincount(values, minlength=bins).cpu().numpy()


def _intervals(
    pairs: LabelledPairs, counts: PairCounts, fars: Sequence[float], draws: int, seed: int, memory_limit: int
) -> dict[float, tuple[float, float]]:
    """The 95 % interval of TAR at each FAR; see `verify`."""
    rng = np.random.default_rng(seed)
    group = _deal(pairs, rng)
    levels = _levels(counts, fars)
    genuine, impostor, every = _count_by_group(pairs, group, levels, memory_limit)
    n_groups = len(every)
    weights = np.concatenate(
        [np.ones((1, n_groups)), rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), draws)]
    )
    total = _weighted(every, weights)
    far = np.stack([_weighted(below, weights) for below in impostor], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        far = far / total[:, None]
        tar = (weights @ genuine[:, :-1]) / (weights @ genuine[:, -1])[:, None]
        place = np.log(far)
    accepted_genuine, accepted_impostor = _below(counts.genuine), _below(counts.impostor)
    found = {}
    for wanted in fars:
        drawn = np.array([_read(np.log(wanted), place[i], tar[i]) for i in range(len(weights))])
        exact = accepted_genuine[_last_edge(accepted_impostor, wanted)] / counts.n_genuine
        usable = drawn[1:][np.isfinite(drawn[1:])] + (exact - drawn[0])
        if len(usable):
            low, high = np.percentile(usable, [2.5, 97.5])
            found[wanted] = (float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1)))
    return found


def _deal(pairs: LabelledPairs, rng: np.random.Generator) -> NDArray[np.int64]:
    """A group for each item: one an identity, or `_GROUPS` of as many identities and as many distractors each."""
    if pairs.n_units <= _GROUPS:
        return pairs.unit
    people, strangers = (np.unique(pairs.unit[mask]) for mask in (pairs.labelled, ~pairs.labelled))
    group_of_unit = np.empty(pairs.n_units, dtype=np.int64)
    order = np.concatenate([rng.permutation(people), rng.permutation(strangers)])
    group_of_unit[order] = np.arange(len(order)) % _GROUPS
    return group_of_unit[pairs.unit]


def _levels(counts: PairCounts, fars: Sequence[float]) -> NDArray[np.int64]:
    """Edges (their indices) at which the draws are counted: a grid of FAR around those asked for."""
    low, high = np.log10(min(fars)) - 0.75, min(np.log10(max(fars)) + 0.25, 0)
    grid = 10 ** np.linspace(low, high, 1 + int(np.ceil((high - low) * _LEVELS_PER_DECADE)))
    accepted = _below(counts.impostor)
    return np.unique([_last_edge(accepted, far) for far in grid])


def _count_by_group(
    pairs: LabelledPairs, group: NDArray[np.int64], levels: NDArray[np.int64], memory_limit: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Pairs below each of L levels: genuine `[K, L + 1]` (last column: all), impostor `[L, K, K]`; all `[K, K]`.

    An impostor pair of two groups is counted once, at either of its two places.
    """
    n_groups, n_levels = int(group.max()) + 1, len(levels)
    device = pairs.features.device
    level_of_bin = torch.from_numpy(np.searchsorted(levels, np.arange(BINS), "right")).to(device)
    group_on = torch.from_numpy(group).to(device)
    genuine = np.zeros(n_groups * (n_levels + 1), dtype=np.int64)
    cells = torch.zeros(n_groups * n_groups * n_levels, dtype=torch.int64, device=device)
    one = torch.ones(1, dtype=torch.int64, device=device)
    last = int(levels[-1])
    for _, _, blocks in pairs.blocks(memory_limit):
        for block in blocks:
            flat = block.bins.reshape(-1)
            rows, columns = group_on[block.rows], group_on[block.columns]
            own_rows = rows[block.genuine // len(columns)]
            genuine += histogram(own_rows * (n_levels + 1) + level_of_bin[flat[block.genuine]], len(genuine))
            flat[block.genuine] = BINS
            flat[block.left_out] = BINS
            near = torch.nonzero(flat < last).flatten()
            place = rows[near // len(columns)] * n_groups + columns[near % len(columns)]
            place = place * n_levels + level_of_bin[flat[near]]
            cells.index_add_(0, place, one.expand(len(place)))
    below = cells.cpu().numpy().reshape(n_groups, n_groups, n_levels).transpose(2, 0, 1).astype(np.float64)
    own = np.cumsum(genuine.reshape(n_groups, n_levels + 1), axis=1).astype(np.float64)
    return own, np.cumsum(below, axis=0), _all_impostors(pairs, group, own[:, -1])


def _all_impostors(pairs: LabelledPairs, group: NDArray[np.int64], genuine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Impostor pairs between and within groups `[K, K]`, each in the upper triangle once."""
    camera = np.unique(pairs.camids, return_inverse=True)[1]

    def within(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        seen = np.zeros((int(group.max()) + 1, int(camera.max()) + 1))
        np.add.at(seen, (group[mask], camera[mask]), 1)
        total = seen.sum(axis=1)
        ordered = np.outer(total, total) - (seen @ seen.T if pairs.cross_camera else np.diag(total))
        return np.triu(ordered, 1) + np.diag(np.diag(ordered)) / 2

    return within(np.ones(len(group), dtype=bool)) - within(~pairs.labelled) - np.diag(genuine)


def _weighted(pairs: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ_{g≠h} w_g w_h P_gh + Σ_g w_g P_gg for each row of `weights [R, K]`."""
    inside = np.diag(pairs)
    return ((weights @ pairs) * weights).sum(axis=1) - weights**2 @ inside + weights @ inside


def _read(wanted: float, place: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    usable = np.isfinite(place) & np.isfinite(values)
    return float(np.interp(wanted, place[usable], values[usable])) if usable.any() else np.nan


@dataclass(frozen=True)
class DirPoint:
    """Detection and identification at a false-alarm rate; see `open_set`. nan with a note where too few queries."""

    far: float
    threshold: float
    dir: float
    low: float
    high: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class OpenSetResult:
    """How well a gallery is searched for people of whom some are not in it. See `open_set`.

    Attributes:
        points: one for each false-alarm rate asked for.
        n_mated, n_unmated: queries with somebody to be found, and with nobody.
        dropped: queries left out, by reason.
        mated: `[n_mated]` float64, the distance of each mated query's nearest right match; inf where its rank is too
            low.
        unmated: `[n_unmated]` float64, the distance of each other query's nearest gallery item.
        protocol: the rules in words and plain values.
    """

    points: tuple[DirPoint, ...]
    n_mated: int
    n_unmated: int
    dropped: dict[str, int]
    mated: NDArray[np.float64]
    unmated: NDArray[np.float64]
    protocol: dict[str, Any]

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """False-alarm rate, DIR and threshold, `[P]` each, ascending: at every threshold where the former changes."""
        threshold = np.append(np.unique(self.unmated), np.inf)
        far = np.searchsorted(np.sort(self.unmated), threshold, "left") / self.n_unmated
        found = np.searchsorted(np.sort(self.mated[np.isfinite(self.mated)]), threshold, "left") / self.n_mated
        return far, found, threshold

    def as_dict(self) -> dict[str, Any]:
        """The scores as plain Python, ready for JSON; nan is None."""
        return {
            "dir": [_plain(point) for point in self.points],
            "mated_queries": self.n_mated,
            "unmated_queries": self.n_unmated,
            "dropped": dict(self.dropped),
            "protocol": dict(self.protocol),
        }


def open_set(
    query_features: Features,
    gallery_features: Features,
    query_pids: ArrayLike,
    gallery_pids: ArrayLike,
    query_camids: ArrayLike | None = None,
    gallery_camids: ArrayLike | None = None,
    *,
    metric: Metric = "cosine",
    cross_camera: bool = True,
    rank: int = 1,
    fars: Sequence[float] = (1e-1, 1e-2, 1e-3),
    unenrolled: float = 0.0,
    bootstrap: int = 1000,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
) -> OpenSetResult:
    """DIR at FAR: search a gallery for people of whom some are not in it (Phillips, Grother, Micheals, 2011, ch. 21).

    What counts in the gallery is as in `evaluate`: junk (pid -1) is out for all, and with `cross_camera` a query's own
    identity in its own camera is out for that query. A query is *mated* when the rest holds its identity, else
    *unmated*. With d₁(q) the distance to the nearest item, and d⁺(q), r⁺(q) the distance and rank of the nearest right
    match (equal distances rank by gallery order):

    - FAR(t): share of unmated queries with d₁ < t.
    - DIR(t): share of mated queries with r⁺ ≤ `rank` and d⁺ < t.
    - DIR at FAR f: DIR(t) at the largest d₁ of an unmated query that keeps FAR(t) ≤ f. It needs 10/f unmated queries,
      else nan.
    - Intervals: percentiles 2.5 and 97.5 over draws of query identities with replacement, mated and unmated apart.

    Corner cases:
    1. A query whose identity the gallery holds in its own camera only is unmated: what is left does not hold it.
    2. A query of pid -1 is dropped: nobody knows whether it is enrolled.
    3. Where everybody is enrolled (as in Market-1501) there is no false alarm to count: `unenrolled=0.5` takes a
       random half of the query identities out of the gallery.

    Args:
        rank: how far down the list the right match may stand.
        fars: false-alarm rates, each above 0 and below 1.
        unenrolled: share of the query identities to take out of the gallery, 0 ≤ share < 1.
        bootstrap: draws; 0 leaves intervals out (nan).
        seed: of the draws and of who is taken out.
        (the others): as in `evaluate`. Distances: 1 − cosine similarity, or ‖q − g‖.

    Raises:
        ReidError: as `evaluate`; or no query is mated, or all are.
    """
    if rank < 1:
        raise ReidError(f"Ranks count from 1, not {rank}.")
    if any(not 0 < far < 1 for far in fars):
        raise ReidError(f"False-alarm rates lie between 0 and 1, not {', '.join(map(str, fars))}.")
    if not 0 <= unenrolled < 1:
        raise ReidError(f"unenrolled is a share of the query identities, 0 or more and below 1, not {unenrolled}.")
    rng = np.random.default_rng(seed)
    enrolled = column(gallery_pids, "gallery_pids")
    identities = np.setdiff1d(column(query_pids, "query_pids"), [JUNK])
    out = rng.permutation(identities)[: round(unenrolled * len(identities))]
    searched = np.where(np.isin(enrolled, out), JUNK, enrolled)
    labels = Protocol.of(query_pids, searched, query_camids, gallery_camids, cross_camera)
    query, gallery = prepare_features(query_features, gallery_features, metric)
    labels.check_lengths(len(query), len(gallery))
    if not len(labels.kept):
        raise ReidError(
            "The gallery holds no item with an identity (all are of pid -1), so there is nothing to search."
        )
    gallery = gallery[torch.from_numpy(labels.kept).to(gallery.device)]
    people = labels.query_pids
    known = people != JUNK

    nearest, right = np.full(len(query), np.inf), np.full(len(query), np.inf)
    mated = np.zeros(len(query), dtype=bool)
    for start, block in distance_blocks(query, gallery, metric, memory_limit):
        labels.hide(block, start)
        for row, distances in enumerate(block, start):
            matches = labels.matches.items_of(row)
            nearest[row] = distances.min()
            if len(matches):
                mated[row] = True
                best = matches[np.argmin(distances[matches])]
                ahead = np.count_nonzero(distances < distances[best])
                ahead += np.count_nonzero(distances[:best] == distances[best])
                if ahead < rank:
                    right[row] = distances[best]
    if metric == "euclidean":
        nearest, right = np.sqrt(np.maximum(nearest, 0)), np.sqrt(np.maximum(right, 0))
    unmated = known & ~mated
    mated &= known
    if not mated.any() or not unmated.any():
        raise ReidError(
            f"Open-set scores need queries who are in the gallery and queries who are not: of {int(known.sum()):,} "
            f"with an identity, {int(mated.sum()):,} are. "
            + (
                "Give queries of people who are not enrolled, or unenrolled=0.5 to take half out of the gallery."
                if mated.any()
                else "Check that query and gallery number people alike, and the cross-camera rule."
            )
        )
    found, alarms = right[mated], nearest[unmated]
    draws = _dir_draws(people, right, nearest, mated, unmated, fars, bootstrap, rng)
    points = []
    for far, drawn in zip(fars, draws, strict=True):
        if far * len(alarms) < PAIRS_PER_ERROR:
            need = int(np.ceil(PAIRS_PER_ERROR / far))
            note = f"a FAR of {far:g} needs {need:,} queries who are not in the gallery; there are {len(alarms):,}"
            points.append(DirPoint(far, np.nan, np.nan, np.nan, np.nan, note))
            continue
        threshold = _alarm_threshold(alarms, far)
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
        points.append(DirPoint(far, threshold, float((found < threshold).mean()), float(low), float(high)))
    return OpenSetResult(
        points=tuple(points),
        n_mated=len(found),
        n_unmated=len(alarms),
        dropped={} if known.all() else {NO_IDENTITY: int((~known).sum())},
        mated=found,
        unmated=alarms,
        protocol={
            "metric": metric,
            "rank": rank,
            "cross-camera": labels.describe()["cross-camera"],
            "gallery": len(labels.kept),
            "junk": int((enrolled == JUNK).sum()),
            "identities taken out of the gallery": len(out),
            "accepted": "distance below the threshold",
            "seed": seed,
        },
    )


def _alarm_threshold(alarms: NDArray[np.float64], far: float) -> float:
    allowed = int(np.floor(far * len(alarms) * (1 + 1e-12)))
    return float(np.partition(alarms, allowed)[allowed])


def _dir_draws(
    pids: NDArray[np.int64],
    right: NDArray[np.float64],
    nearest: NDArray[np.float64],
    mated: NDArray[np.bool_],
    unmated: NDArray[np.bool_],
    fars: Sequence[float],
    draws: int,
    rng: np.random.Generator,
) -> list[list[float]]:
    """DIR at each FAR in each draw of identities."""
    out: list[list[float]] = [[] for _ in fars]
    sides = []
    for mask, scores in ((mated, right), (unmated, nearest)):
        person = np.unique(pids[mask], return_inverse=True)[1]
        order = np.argsort(scores[mask], kind="stable")
        sides.append((person[order], scores[mask][order], int(person.max()) + 1))
    (person_m, score_m, n_m), (person_u, score_u, n_u) = sides
    for _ in range(draws):
        weight_m = rng.multinomial(n_m, np.full(n_m, 1 / n_m))[person_m]
        below = np.cumsum(rng.multinomial(n_u, np.full(n_u, 1 / n_u))[person_u])
        reached = np.concatenate([[0], np.cumsum(weight_m)])
        for place, far in enumerate(fars):
            over = int(np.searchsorted(below, far * below[-1] * (1 + 1e-12), "right"))
            threshold = score_u[min(over, len(score_u) - 1)]
            out[place].append(float(reached[np.searchsorted(score_m, threshold, "left")] / reached[-1]))
    return out
