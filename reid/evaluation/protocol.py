"""Who counts: the right matches of each query, what is left out for it, and why a query has nothing to be ranked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.core.errors import ReidError

JUNK = -1
"""The pid of gallery items that count neither as right nor as wrong, and of queries that nobody labelled."""

NO_IDENTITY = "no identity (pid -1)"
NOT_IN_GALLERY = "identity not in gallery"
OWN_CAMERA_ONLY = "only in the query's own camera"
EXCLUDED = "all its matches are in the exclusion mask"

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Some (query, gallery item) pairs, by query and then in gallery order.

    Attributes:
        query: `[M]` int64, never falling.
        item: `[M]` int64; positions in `Protocol.kept`.
        first: `[Q + 1]` int64; the pairs of query i are `first[i]` to `first[i + 1]`.
    """

    query: Integers
    item: Integers
    first: Integers

    @classmethod
    def of(cls, query: Integers, item: Integers, n_query: int) -> Pairs:
        """Pairs in order, with the places where each query's begin."""
        return cls(query, item, np.concatenate([[0], np.bincount(query, minlength=n_query).cumsum()]))

    @property
    def counts(self) -> Integers:
        """`[Q]`: how many pairs each query has."""
        return np.diff(self.first)

    def items_of(self, query: int) -> Integers:
        """The items of one query."""
        return self.item[self.first[query] : self.first[query + 1]]

    def where(self, chosen: NDArray[np.bool_]) -> Pairs:
        """The pairs of a mask `[M]`."""
        return Pairs.of(self.query[chosen], self.item[chosen], len(self.first) - 1)

    def of_queries(self, start: int, stop: int) -> Pairs:
        """The pairs of the queries from `start` to `stop`, which are numbered from 0."""
        part = slice(self.first[start], self.first[stop])
        return Pairs(self.query[part] - start, self.item[part], self.first[start : stop + 1] - self.first[start])


@dataclass(frozen=True, eq=False)
class Protocol:
    """Identities and cameras of both sides, under the rules of `evaluate`.

    Attributes:
        query_pids, query_camids: `[Q]` int64; gallery_pids, gallery_camids: `[G′]`, of `kept` only.
        gallery_size: G, junk included.
        kept: `[G′]` int64, the gallery items that are not junk. Every other item index is a position in it.
        matches: right matches that count.
        left_out: pairs that are taken out of a query's ranking: its own identity in its own camera.
        cross_camera: whether that rule holds.
        has_cameras: False where nobody gave camera ids, which are all 0 then.
        mask: `[Q, G]` bool, further pairs to take out, or None.
    """

    query_pids: Integers
    query_camids: Integers
    gallery_pids: Integers
    gallery_camids: Integers
    gallery_size: int
    kept: Integers
    matches: Pairs
    left_out: Pairs
    cross_camera: bool
    has_cameras: bool
    mask: NDArray[np.bool_] | None

    @classmethod
    def of(
        cls,
        query_pids: ArrayLike,
        gallery_pids: ArrayLike,
        query_camids: ArrayLike | None,
        gallery_camids: ArrayLike | None,
        cross_camera: bool,
        excluded: ArrayLike | None = None,
    ) -> Protocol:
        """Check the columns and find the matches.

        Raises:
            ReidError: a column is not integers or of another length, cameras are missing, or the mask does not fit.
        """
        if cross_camera and (query_camids is None or gallery_camids is None):
            raise ReidError("Cross-camera evaluation needs camera ids. Without cameras, set cross_camera=False.")
        q_pids, g_pids = column(query_pids, "query_pids"), column(gallery_pids, "gallery_pids")
        has_cameras = query_camids is not None and gallery_camids is not None
        q_cams = column(np.zeros(len(q_pids), int) if query_camids is None else query_camids, "query_camids")
        g_cams = column(np.zeros(len(g_pids), int) if gallery_camids is None else gallery_camids, "gallery_camids")
        for name, pids, cams in (("query", q_pids, q_cams), ("gallery", g_pids, g_cams)):
            if len(pids) != len(cams):
                raise ReidError(f"There are {len(pids)} {name}_pids but {len(cams)} {name}_camids.")
        kept = np.flatnonzero(g_pids != JUNK)
        mask = None if excluded is None else _mask(excluded, len(q_pids), len(g_pids))
        by_pid = np.argsort(g_pids[kept], kind="stable")
        ordered = g_pids[kept][by_pid]
        first = np.searchsorted(ordered, q_pids, "left")
        counts = np.searchsorted(ordered, q_pids, "right") - first
        query = np.repeat(np.arange(len(q_pids)), counts)
        place = np.arange(len(query)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        same = Pairs.of(query, by_pid[place], len(q_pids))
        own = g_cams[kept][same.item] == q_cams[same.query] if cross_camera else np.zeros(len(query), bool)
        masked = np.zeros(len(query), bool) if mask is None else mask[same.query, kept[same.item]]
        return cls(
            query_pids=q_pids,
            query_camids=q_cams,
            gallery_pids=g_pids[kept],
            gallery_camids=g_cams[kept],
            gallery_size=len(g_pids),
            kept=kept,
            matches=same.where(~own & ~masked),
            left_out=same.where(own),
            cross_camera=cross_camera,
            has_cameras=has_cameras,
            mask=mask,
        )

    def check_lengths(self, n_query: int, n_gallery: int) -> None:
        """Refuse features or distances of another number than the labels.

        Raises:
            ReidError: naming the side and both numbers.
        """
        for name, rows, labels in (
            ("query", n_query, len(self.query_pids)),
            ("gallery", n_gallery, self.gallery_size),
        ):
            if rows != labels:
                raise ReidError(f"There are {rows} {name} items but {labels} {name}_pids.")

    def hide(self, distances: NDArray[Any], start: int) -> None:
        """Set what is left out of the rankings to inf, in place, in rows `[b, G′]` of the queries from `start` on."""
        out = self.left_out.of_queries(start, start + len(distances))
        distances[out.query, out.item] = np.inf
        if self.mask is not None:
            masked = self.mask[start : start + len(distances)]
            distances[masked if len(self.kept) == self.gallery_size else masked[:, self.kept]] = np.inf

    def dropped(self) -> dict[str, int]:
        """How many queries have no right match, by reason."""
        reasons: dict[str, int] = {}
        for query in np.flatnonzero(self.matches.counts == 0):
            reason = self._reason(int(query))
            reasons[reason] = reasons.get(reason, 0) + 1
        return reasons

    def _reason(self, query: int) -> str:
        if self.query_pids[query] == JUNK:
            return NO_IDENTITY
        same = self.gallery_pids == self.query_pids[query]
        if not same.any():
            return NOT_IN_GALLERY
        if self.left_out.counts[query] == same.sum():
            return OWN_CAMERA_ONLY
        return EXCLUDED

    def require_some_match(self) -> None:
        """Say what is the matter when every query would be dropped.

        Raises:
            ReidError: with the reasons counted, what the protocol does, and the mend.
        """
        if len(self.matches.item):
            return
        reasons = self.dropped()
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        message = f"None of the {len(self.query_pids)} queries has a right match to be ranked ({counts}). "
        if EXCLUDED in reasons:
            message += "The mask `excluded` takes every right match out: True means that a pair does not count."
        elif OWN_CAMERA_ONLY in reasons:
            cameras = np.unique(np.concatenate([self.query_camids, self.gallery_camids]))
            if len(cameras) == 1:
                message += f"All items are of one camera ({cameras[0]}). "
            message += (
                "The cross-camera protocol leaves out gallery items of the query's own identity and camera. "
                "If cameras are unknown or do not matter here, set cross_camera=False; else check the camera ids."
            )
        else:
            message += (
                "Queries are matched by identity: query_pids and gallery_pids must number the same people alike, "
                "and pid -1 means unlabelled. Check that both come from one data set."
            )
        raise ReidError(message)

    def describe(self) -> dict[str, Any]:
        """The rules and the sizes, for `RankingResult.protocol`."""
        words = {
            "cross-camera": (
                "gallery items of the query's own identity and camera are left out"
                if self.cross_camera
                else "off: nothing is left out by camera"
            ),
            "ties": "gallery order",
            "queries": len(self.query_pids),
            "gallery": len(self.kept),
            "junk": self.gallery_size - len(self.kept),
        }
        if self.mask is not None:
            words["excluded by mask"] = f"{int(self.mask.sum())} query-gallery pairs"
        return words


def column(values: ArrayLike, name: str) -> Integers:
    """One column of integers as `[N]` int64.

    Raises:
        ReidError: another shape or type, naming the column.
    """
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iub"):
        raise ReidError(f"{name} must be one column of integers, not shape {array.shape} of type {array.dtype}.")
    return array.astype(np.int64)


def _mask(excluded: ArrayLike, n_query: int, n_gallery: int) -> NDArray[np.bool_]:
    mask = np.asarray(excluded.cpu() if isinstance(excluded, Tensor) else excluded)
    if mask.shape != (n_query, n_gallery) or mask.dtype != np.bool_:
        raise ReidError(
            f"excluded must be true or false for each pair, [{n_query}, {n_gallery}], "
            f"not shape {list(mask.shape)} of type {mask.dtype}."
        )
    return mask
