"""Evaluation protocol: which gallery items are right matches, which are ignored, and why a query is dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.core.arrays import concatenated_ranges, different_cameras, integer_column
from reid.core.errors import DataError
from reid.evaluation.features import EmbeddingTable, Features, Labels, distance_blocks, prepare_features, unpack_tables

JUNK = -1
"""Pid of gallery items that count neither as right nor as wrong, and of queries without a label."""

NO_IDENTITY = "no identity (pid -1)"
NOT_IN_GALLERY = "identity not in gallery"
OWN_CAMERA_ONLY = "only in the query's own camera"
EXCLUDED = "all its matches are in the exclusion mask"

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pairs:
    """A list of (query, gallery item) pairs, sorted by query and then by gallery order.

    Attributes:
        query: `[M]` int64, ascending.
        item: `[M]` int64; positions in `Protocol.kept`.
        first: `[Q + 1]` int64; the pairs of query i are `first[i]` to `first[i + 1]`.
    """

    query: Integers
    item: Integers
    first: Integers

    @classmethod
    def from_columns(cls, query: Integers, item: Integers, n_queries: int) -> Pairs:
        """Make `first` from sorted columns."""
        return cls(query, item, np.concatenate([[0], np.bincount(query, minlength=n_queries).cumsum()]))

    @property
    def counts(self) -> Integers:
        """`[Q]`: the number of pairs of each query."""
        return np.diff(self.first)

    def items_of(self, query: int) -> Integers:
        """Return the items of one query."""
        return self.item[self.first[query] : self.first[query + 1]]

    def select(self, mask: NDArray[np.bool_]) -> Pairs:
        """Return the pairs where `mask [M]` is true."""
        return Pairs.from_columns(self.query[mask], self.item[mask], len(self.first) - 1)

    def of_queries(self, start: int, stop: int) -> Pairs:
        """Return the pairs of the queries `start` to `stop`, renumbered from 0."""
        part = slice(self.first[start], self.first[stop])
        return Pairs(self.query[part] - start, self.item[part], self.first[start : stop + 1] - self.first[start])


class Protocol:
    """Identities and cameras of queries and gallery, and what follows from them under the rules of `evaluate`.

    Attributes:
        query_pids, query_camids: `[Q]` int64; gallery_pids, gallery_camids: `[G′]`, of `kept` only.
        gallery_size: G, junk included.
        kept: `[G′]` int64, the gallery items that are not junk. All other item indices are positions in it.
        matches: the right matches that count.
        ignored: pairs of the query's own identity in its own camera.
        cross_camera: whether such pairs are ignored.
        has_cameras: False if no camera ids were given (they are all 0 then).
        mask: `[Q, G]` bool, further pairs to ignore, or None.

    Raises:
        DataError: a column is missing, not integers or of another length, or the mask does not fit.
    """

    def __init__(self, labels: Labels, cross_camera: bool, excluded: ArrayLike | None = None) -> None:
        query_pids, gallery_pids, query_camids, gallery_camids = labels
        if query_pids is None or gallery_pids is None:
            raise DataError(
                f"The {'query' if query_pids is None else 'gallery'} has no pids. Pass query_pids and gallery_pids, or "
                "Embeddings with pids."
            )
        self.cross_camera = cross_camera
        self.has_cameras = query_camids is not None and gallery_camids is not None
        if cross_camera and not self.has_cameras:
            raise DataError(
                "Cross-camera evaluation needs camera ids. Pass query_camids and gallery_camids (or Embeddings with "
                "camids), or set cross_camera=False."
            )
        q_pids, g_pids = integer_column("query_pids", query_pids), integer_column("gallery_pids", gallery_pids)
        q_cams, g_cams = (
            np.zeros(len(pids), np.int64) if camids is None else integer_column(f"{side}_camids", camids, len(pids))
            for side, camids, pids in (("query", query_camids, q_pids), ("gallery", gallery_camids, g_pids))
        )
        self.query_pids, self.query_camids, self.gallery_size = q_pids, q_cams, len(g_pids)
        self.kept = np.flatnonzero(g_pids != JUNK)
        self.gallery_pids, self.gallery_camids = g_pids[self.kept], g_cams[self.kept]
        self.mask = None if excluded is None else _mask(excluded, len(q_pids), len(g_pids))
        by_pid = np.argsort(self.gallery_pids, kind="stable")
        ordered = self.gallery_pids[by_pid]
        first = np.searchsorted(ordered, q_pids, "left")
        counts = np.searchsorted(ordered, q_pids, "right") - first
        query = np.repeat(np.arange(len(q_pids)), counts)
        same = Pairs.from_columns(query, by_pid[concatenated_ranges(first, counts)], len(q_pids))
        own_camera = cross_camera & ~different_cameras(self.gallery_camids[same.item], q_cams[same.query])
        masked = False if self.mask is None else self.mask[same.query, self.kept[same.item]]
        self.matches, self.ignored = same.select(~own_camera & ~np.asarray(masked)), same.select(own_camera)

    def check_lengths(self, n_query: int, n_gallery: int) -> None:
        """Raise an error if there are not as many features or distances as labels.

        Raises:
            DataError: naming the side and both numbers.
        """
        for name, rows, labels in (("query", n_query, len(self.query_pids)), ("gallery", n_gallery, self.gallery_size)):
            if rows != labels:
                raise DataError(f"There are {rows} {name} items but {labels} {name}_pids.")

    def hide(self, distances: NDArray[Any], start: int) -> None:
        """Set ignored pairs to inf, in place, in rows `[b, G′]` of the queries from `start` on."""
        ignored = self.ignored.of_queries(start, start + len(distances))
        distances[ignored.query, ignored.item] = np.inf
        if self.mask is not None:
            masked = self.mask[start : start + len(distances)]
            distances[masked if len(self.kept) == self.gallery_size else masked[:, self.kept]] = np.inf

    def dropped(self) -> dict[str, int]:
        """Count the queries without a right match, by reason."""
        return dict(Counter(self._reason(int(query)) for query in np.flatnonzero(self.matches.counts == 0)))

    def _reason(self, query: int) -> str:
        if self.query_pids[query] == JUNK:
            return NO_IDENTITY
        same = self.gallery_pids == self.query_pids[query]
        if not same.any():
            return NOT_IN_GALLERY
        return OWN_CAMERA_ONLY if self.ignored.counts[query] == same.sum() else EXCLUDED

    def require_matches(self) -> None:
        """Raise an error if every query would be dropped.

        Raises:
            DataError: with the number of queries by reason, and the fix.
        """
        if len(self.matches.item):
            return
        reasons = self.dropped()
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        message = f"None of the {len(self.query_pids)} queries has a right match in the gallery ({counts}). "
        if EXCLUDED in reasons:
            message += "The mask `excluded` removes every right match. Set it to True only for pairs to ignore."
        elif OWN_CAMERA_ONLY in reasons:
            cameras = np.unique(np.concatenate([self.query_camids, self.gallery_camids]))
            if len(cameras) == 1:
                message += f"All items are of one camera ({cameras[0]}). "
            message += (
                "The cross-camera rule ignores gallery items of the query's own identity and camera. Check the camera "
                "ids, or set cross_camera=False if cameras are unknown or irrelevant."
            )
        else:
            message += (
                "Check that query_pids and gallery_pids use the same numbers for the same people (pid -1 means "
                "unlabelled), and that both belong to one data set."
            )
        raise DataError(message)

    def describe(self) -> dict[str, Any]:
        """Return the rules and the sizes, for `RankingResult.protocol`."""
        rules = {
            "cross-camera": (
                "gallery items of the query's own identity and camera are ignored"
                if self.cross_camera
                else "off: no item is ignored because of its camera"
            ),
            "ties": "gallery order",
            "queries": len(self.query_pids),
            "gallery": len(self.kept),
            "junk": self.gallery_size - len(self.kept),
        }
        if self.mask is not None:
            rules["excluded by mask"] = f"{int(self.mask.sum())} query-gallery pairs"
        return rules


class Search:
    """Query and gallery features with their protocol: the checked arguments of `evaluate` and its relatives.

    Args:
        query, gallery: features or tables.
        labels: query_pids, gallery_pids, query_camids, gallery_camids; all None with tables.
        metric, cross_camera, excluded: as in `evaluate`.

    Attributes:
        protocol: the rules.
        query: `[Q, D]` float32; gallery: `[G′, D]`, without junk.
        metric: "cosine" or "euclidean".

    Raises:
        ReidError: as `evaluate`.
    """

    def __init__(
        self,
        query: Features | EmbeddingTable,
        gallery: Features | EmbeddingTable,
        labels: Labels,
        metric: str,
        cross_camera: bool,
        excluded: ArrayLike | None = None,
    ) -> None:
        (query_features, gallery_features), columns = unpack_tables((query, gallery), labels)
        self.protocol = Protocol(columns, cross_camera, excluded)
        self.metric = metric
        self.query, self.gallery = prepare_features(query_features, gallery_features, metric)
        self.protocol.check_lengths(len(self.query), len(self.gallery))
        if len(self.protocol.kept) < len(self.gallery):
            self.gallery = self.gallery[torch.from_numpy(self.protocol.kept).to(self.gallery.device)]

    def blocks(self, memory_limit: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield `(first row, distances [b, G′])` as `distance_blocks`, with ignored pairs at inf."""
        for start, block in distance_blocks(self.query, self.gallery, self.metric, memory_limit):
            self.protocol.hide(block, start)
            yield start, block


def _mask(excluded: ArrayLike, n_query: int, n_gallery: int) -> NDArray[np.bool_]:
    mask = np.asarray(excluded.cpu() if isinstance(excluded, Tensor) else excluded)
    if mask.shape != (n_query, n_gallery) or mask.dtype != np.bool_:
        raise DataError(
            f"excluded must be a boolean for each pair, [{n_query}, {n_gallery}]; got shape {list(mask.shape)} of "
            f"type {mask.dtype}."
        )
    return mask
