"""Count the pairs of labelled items by distance, block by block, without a list of pairs or an N×N matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.core.arrays import UNKNOWN, concatenated_ranges, integer_column
from reid.core.errors import DataError
from reid.evaluation.features import (
    MEMORY_LIMIT,
    EmbeddingTable,
    Features,
    Metric,
    measure_near_pairs,
    prepare_one,
    squared_lengths,
    unpack_tables,
)
from reid.evaluation.protocol import JUNK, Integers

BINS = 2**16
"""Number of bins between 0 and the largest possible distance."""

DISTRACTOR = 0
"""Pid of everyone who is not labelled in Market-1501: many people, not one identity."""

PAIRS_PER_ERROR = 10
"""A rate f is estimated from at least `PAIRS_PER_ERROR / f` pairs, so that ten errors are expected among them."""

_BLOCK = 2**21
"""Distances that are counted together: few enough for the processor's cache, enough for all its cores."""


@dataclass(frozen=True, eq=False)
class PairCounts:
    """Histograms of the distances of genuine and impostor pairs.

    Attributes:
        edges: `[B + 1]` float64, ascending from 0. Bin b contains the distances `edges[b] ≤ d < edges[b + 1]`, up to
            the rounding of a float32 product (about 1e-7; for Euclidean distances near 0, its square root). The last
            bin includes its upper edge.
        genuine: `[B]` int64, pairs of one identity.
        impostor: `[B]` int64, pairs of two identities.
        metric: "cosine" (1 − cosine similarity, 0..2) or "euclidean" (‖a − b‖).
        pairs: description of the pairs that were counted.
        images: number of items.
        identities: number of identities; every distractor counts as one.
    """

    edges: NDArray[np.float64]
    genuine: Integers
    impostor: Integers
    metric: str
    pairs: str
    images: int = 0
    identities: int = 0

    @property
    def n_genuine(self) -> int:
        """Number of genuine pairs."""
        return int(self.genuine.sum())

    @property
    def n_impostor(self) -> int:
        """Number of impostor pairs."""
        return int(self.impostor.sum())


@dataclass(frozen=True)
class RatePoint:
    """Recognition rate at a false-accept rate.

    Attributes:
        far: largest fraction of impostor pairs, or of queries who are not in the gallery, that is accepted.
        threshold: distance below which a pair or a query's nearest match is accepted.
        rate: fraction of genuine pairs that are accepted (TAR), or of queries that are identified (DIR).
        low, high: 95 % interval of `rate`; None without a bootstrap.
        note: why threshold, rate and interval are None, if the error rate needs more pairs or queries.
    """

    far: float
    threshold: float | None = None
    rate: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @classmethod
    def without_rate(cls, far: float, needed: str, n: int) -> RatePoint | None:
        """Return a point with a note if `n` cases are too few for the rate `far`, else None."""
        least = int(np.ceil(PAIRS_PER_ERROR / far))
        if far * n >= PAIRS_PER_ERROR:
            return None
        return cls(far, note=f"a FAR of {far:g} needs {least:,} {needed}; there are {n:,}")


def count_pairs(
    features: Features | EmbeddingTable,
    pids: ArrayLike | None = None,
    camids: ArrayLike | None = None,
    *,
    metric: Metric = "cosine",
    cross_camera: bool = True,
    distractor: int | None = DISTRACTOR,
    memory_limit: int = MEMORY_LIMIT,
) -> PairCounts:
    """Count all unordered pairs of items by distance: genuine pairs (one identity) and impostor pairs (two).

    Corner cases:
    1. Items of pid -1 (junk) are ignored.
    2. Two items of the pid `distractor` (0 in Market-1501: everyone unlabelled) may or may not show one person: such
       pairs are ignored. A pair of a distractor and another item is an impostor pair. None: there is no such pid.
    3. `cross_camera` counts only pairs of different cameras, as in retrieval. An unknown camera (-1) differs from
       every other, also from another unknown one.

    Args:
        features: `[N, D]` numbers of any type, NumPy or torch on any device; computed in float32. Or an `Embeddings`
            table with pids and camids.
        pids: `[N]` integers.
        camids: `[N]` integers (-1: unknown), or None with `cross_camera=False`.
        metric: "cosine" or "euclidean".
        cross_camera: ignore pairs of one camera.
        distractor: the pid that is not an identity. There is none in tables whose pids have names.
        memory_limit: bytes of a block of distances (at least one row).

    Raises:
        DataError: shapes that do not fit; a feature that is NaN, infinite or (cosine) zero; fewer than two items.

    Example:
        >>> import numpy as np
        >>> counts = count_pairs(np.eye(4), [1, 1, 2, 2], cross_camera=False)
        >>> counts.n_genuine, counts.n_impostor
        (2, 4)
    """
    return LabelledPairs(features, pids, camids, metric, cross_camera, distractor).count(memory_limit)


@dataclass(frozen=True, eq=False)
class Block:
    """Distance bins `[b, n]` of the items `rows` to the items `columns`.

    `genuine` and `ignored` are flat positions in `bins`.
    """

    bins: Tensor
    rows: slice
    columns: slice
    genuine: Tensor
    ignored: Tensor


class LabelledPairs:
    """Labelled items, sorted by camera and then by identity, whose pairs can be counted; see `count_pairs`.

    Attributes:
        features: `[N, D]` float32, without junk; pids, camids: `[N]` int64.
        order: `[N]` int64, the position of each item in the input.
        labelled: `[N]` bool, False for distractors.
        unit: `[N]` int64, numbers the identities from 0, with every distractor as one.
        largest: upper bound of the distances.
        n_junk: number of ignored items.
    """

    def __init__(
        self,
        features: Features | EmbeddingTable,
        pids: ArrayLike | None,
        camids: ArrayLike | None,
        metric: Metric = "cosine",
        cross_camera: bool = True,
        distractor: int | None = DISTRACTOR,
    ) -> None:
        if getattr(features, "meta", {}).get("pid_names"):  # pids are codes of names: 0 is the first name
            distractor = None
        (features,), (pids, camids) = unpack_tables([features], [pids, camids])
        if pids is None:
            raise DataError("There are no pids. Pass the identity of each row, or Embeddings with pids.")
        if cross_camera and camids is None:
            raise DataError("Pairs across cameras need camera ids. Pass camids, or set cross_camera=False.")
        ready = prepare_one(features, "item", metric)
        people = integer_column("pids", pids, len(ready))
        cameras = np.zeros(len(people), np.int64) if camids is None else integer_column("camids", camids, len(ready))
        kept = np.flatnonzero(people != JUNK)
        if len(kept) < 2:
            raise DataError(f"Pairs need at least 2 items with an identity; there are {len(kept)} (pid -1 means none).")
        self.metric, self.cross_camera, self.n_junk = metric, cross_camera, len(people) - len(kept)
        self.order = kept[np.lexsort((people[kept], cameras[kept]))]
        self.pids, self.camids = people[self.order], cameras[self.order]
        self.features = ready[torch.from_numpy(self.order).to(ready.device)]
        self.largest = 2.0
        if metric == "euclidean":
            self.features = self.features - self.features.mean(dim=0)
            self.largest = 2 * float(torch.linalg.vector_norm(self.features, dim=1).max()) * (1 + 1e-6) or 1.0
        self.labelled = np.ones(len(self.pids), dtype=bool) if distractor is None else self.pids != distractor
        unit = np.unique(self.pids, return_inverse=True)[1]
        distractors = np.flatnonzero(~self.labelled)
        unit[distractors] = unit.max() + 1 + np.arange(len(distractors))
        self.unit = np.unique(unit, return_inverse=True)[1]

    @property
    def n_units(self) -> int:
        """Number of identities, with every distractor as one."""
        return int(self.unit.max()) + 1

    @property
    def edges(self) -> NDArray[np.float64]:
        """`[BINS + 1]` bin edges."""
        return np.linspace(0, self.largest, BINS + 1)

    def count(self, memory_limit: int) -> PairCounts:
        """Count all pairs."""
        genuine, impostor = np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64)
        for _, _, one, two in self.count_by_cameras(memory_limit):
            genuine += one
            impostor += two
        return self.describe_counts(genuine, impostor)

    def describe_counts(self, genuine: Integers, impostor: Integers) -> PairCounts:
        """Return histograms with a description of the pairs."""
        pairs = "all pairs of different cameras" if self.cross_camera else "all pairs, of any cameras"
        if self.n_junk:
            pairs += f"; {self.n_junk:,} junk items (pid -1) ignored"
        distractors = int((~self.labelled).sum())
        if distractors > 1:
            pairs += f"; pairs among {distractors:,} distractors (pid {self.pids[~self.labelled][0]}) ignored"
        return PairCounts(self.edges, genuine, impostor, self.metric, pairs, len(self.pids), self.n_units)

    def require_both(self, counts: PairCounts) -> None:
        """Raise an error if there is no genuine or no impostor pair.

        Raises:
            DataError: with the reason.
        """
        if counts.n_genuine and counts.n_impostor:
            return
        kind = "impostor" if counts.n_genuine else "genuine"
        cameras = len(np.unique(self.camids))
        reason = f"{counts.images:,} items show {counts.identities:,} identities"
        fix = "Add labelled items"
        if self.cross_camera:
            reason += f" in {cameras} camera{'s' if cameras != 1 else ''}, and only pairs of different cameras count"
            fix += ", or count pairs of any cameras (cross_camera=False, --any-camera)"
        raise DataError(f"There is no {kind} pair to score: {reason}. {fix}.")

    def count_by_cameras(self, memory_limit: int) -> Iterator[tuple[int, int, Integers, Integers]]:
        """Yield (camera, camera, genuine `[BINS]`, impostor `[BINS]`) of each pair of cameras, the lower id first."""
        for first, second, blocks in self.blocks(memory_limit):
            genuine = np.zeros(BINS, dtype=np.int64)
            counted = np.zeros(BINS, dtype=np.int64)
            for block in blocks:
                flat = block.bins.reshape(-1)
                genuine += histogram(flat[block.genuine], BINS)
                counted += histogram(flat, BINS)
                counted -= histogram(flat[block.ignored], BINS)
            yield first, second, genuine, counted - genuine

    def blocks(self, memory_limit: int) -> Iterator[tuple[int, int, Iterator[Block]]]:
        """Yield (camera, camera, blocks of all their pairs) of each pair of cameras, the lower id first."""
        cameras, starts = np.unique(self.camids, return_index=True)
        ends = [*zip(starts.tolist(), [*starts[1:].tolist(), len(self.camids)], strict=True)]
        for i, first in enumerate(cameras):
            within = not self.cross_camera or first == UNKNOWN  # two unknown cameras are not the same camera
            for j in range(i if within else i + 1, len(cameras)):
                yield int(first), int(cameras[j]), self._blocks_between(ends[i], ends[j], memory_limit)

    def _blocks_between(self, rows: tuple[int, int], columns: tuple[int, int], memory_limit: int) -> Iterator[Block]:
        step = max(1, min(_BLOCK, memory_limit // 16) // (columns[1] - columns[0]))
        for start in range(rows[0], rows[1], step):
            some_rows = slice(start, min(start + step, rows[1]))
            some_columns = slice(start if rows == columns else columns[0], columns[1])
            bins = self._bins(some_rows, some_columns)
            genuine, ignored = self._positions(some_rows, some_columns, triangle=rows == columns)
            on_device = (torch.from_numpy(positions).to(bins.device) for positions in (genuine, ignored))
            yield Block(bins, some_rows, some_columns, *on_device)

    def _bins(self, rows: slice, columns: slice) -> Tensor:
        query, gallery = self.features[rows], self.features[columns]
        scale = BINS / self.largest
        if self.metric == "cosine":
            base = torch.full((1,), scale, device=query.device)
            scaled = torch.addmm(base, query, gallery.T, alpha=-scale)
        else:
            scaled = torch.addmm(squared_lengths(gallery), query, gallery.T, alpha=-2)
            measure_near_pairs(scaled.add_(squared_lengths(query)[:, None]), query, gallery)
            scaled.sqrt_().mul_(scale)
        return scaled.clamp_(0, BINS - 1).long()

    def _positions(self, row_slice: slice, columns: slice, *, triangle: bool) -> tuple[Integers, Integers]:
        """Return the flat positions, in a block, of genuine pairs and of ignored pairs.

        `triangle`: rows and columns are of one camera, and only pairs right of the diagonal count.
        """
        rows, left = np.arange(row_slice.start, row_slice.stop), columns.start
        offset = (rows - rows[0]) * (columns.stop - left) - left
        low = left + np.searchsorted(self.pids[columns], self.pids[rows], "left")
        high = left + np.searchsorted(self.pids[columns], self.pids[rows], "right")
        if triangle:
            low = np.maximum(low, rows + 1)
        known, lengths = self.labelled[rows], np.maximum(high - low, 0)
        genuine, distractors = (concatenated_ranges((offset + low)[mask], lengths[mask]) for mask in (known, ~known))
        below = concatenated_ranges(offset + left, rows + 1 - left) if triangle else np.zeros(0, np.int64)
        return genuine, np.concatenate([distractors, below])


def histogram(values: Tensor, bins: int) -> Integers:
    """Return how often each of 0…bins − 1 occurs among the values."""
    return torch.bincount(values, minlength=bins).cpu().numpy()


def pairs_below(counts: Integers) -> Integers:
    """Return the number of pairs below each bin edge, `[B + 1]`."""
    return np.concatenate([[0], np.cumsum(counts)])


def last_edge(below: Integers, rate: float) -> int:
    """Return the index of the last edge below which at most the fraction `rate` of all pairs are."""
    allowed = np.floor(rate * float(below[-1]) * (1 + 1e-12))
    return int(np.searchsorted(below, allowed, "right")) - 1
