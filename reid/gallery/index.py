"""The rows of one version in memory: the columns that searches filter by, and the features of the embedded engine."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reid.gallery.engines import Store
from reid.gallery.milvus_store import KEY, MilvusStore
from reid.gallery.rows import UNKNOWN_TIME, feature_matrix
from reid.gallery.scan import distances
from reid.gallery.scope import Scope

LOOKS_EXPONENT = 0.3
"""A tracklet of p prototypes counts as p^0.3 strangers: its looks resemble each other. Chosen on half A of the
Market-1501 test identities, by the number of false hits (docs/results.md)."""

_COLUMNS = ("tracklet", "features", "camera", "start", "end", "expires")


@dataclass(frozen=True, eq=False)
class Index:
    """N rows of T tracklets.

    Attributes:
        version: of the table.
        matrix: `[N, D]` float16; `[0, D]` if the engine keeps the features.
        tracklet: `[N]` int32, index into `tracklets`.
        tracklets: `[T]` ids.
        camera: `[N]` int32, index into `cameras`; -1 where unknown.
        cameras: names.
        start, end: `[N]` milliseconds since 1970; `UNKNOWN_TIME` where unknown.
        expires: `[N]` milliseconds since 1970 from which a row is not searched; `UNKNOWN_TIME`: never.
        looks: `[N]` float32; a tracklet of p rows has p^0.3 in total.
        keys: `[N]` numbers of the rows in the engine that keeps the features, ascending; else None.
        store: that engine.
    """

    version: int
    matrix: NDArray[np.float16]
    tracklet: NDArray[np.int32]
    tracklets: pa.Array
    camera: NDArray[np.int32]
    cameras: tuple[str, ...]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    expires: NDArray[np.int64]
    looks: NDArray[np.float32]
    keys: NDArray[np.int64] | None = None
    store: MilvusStore | None = None

    @classmethod
    def load(cls, store: Store, dimension: int, hidden: Collection[str] = ()) -> Index:
        """Read the newest version of a table.

        Args:
            store: of the gallery.
            dimension: D.
            hidden: tracklets to leave out, because their erasure is not finished.
        """
        version = store.version()
        own = store if isinstance(store, MilvusStore) else None
        names = [name for name in _COLUMNS if own is None or name != "features"] + [KEY] * (own is not None)
        n, most = 0, store.count() if own is None else 0
        matrix = np.empty((most, dimension), np.float16)
        columns: dict[str, list[pa.Array]] = {name: [] for name in names if name != "features"}
        for batch in store.read(names):
            if own is None:
                part = feature_matrix(batch["features"])
                if n + len(batch) > len(matrix):  # another process added rows since they were counted
                    matrix = np.concatenate([matrix[:n], np.empty((len(batch) + n, dimension), np.float16)])
                matrix[n : n + len(batch)] = part
                n += len(batch)
            everything = pa.array(np.arange(len(batch)))
            for name, parts in columns.items():  # copies: one column would keep its whole batch in memory
                parts.append(batch.column(name).take(everything))
        texts = {name: _encode(columns[name], pa.string()) for name in ("tracklet", "camera")}
        tracklet, tracklets = texts["tracklet"]
        camera, cameras = texts["camera"]
        size = np.bincount(tracklet, minlength=len(tracklets))
        looks = (size ** (LOOKS_EXPONENT - 1.0))[tracklet].astype(np.float32)
        start, end, expires = (_times(columns[name]) for name in ("start", "end", "expires"))
        keys = None if own is None else pa.chunked_array(columns[KEY], pa.int64()).to_numpy()
        texts_of = tuple(cameras.to_pylist())
        index = cls(version, matrix[:n], tracklet, tracklets, camera, texts_of, start, end, expires, looks, keys, own)
        return index.without(hidden) if hidden else index

    def __len__(self) -> int:
        """Return N."""
        return len(self.tracklet)

    def without(self, hidden: Collection[str]) -> Index:
        """Return the rows of other tracklets."""
        codes = np.flatnonzero(np.isin(np.array(self.tracklets.to_pylist(), object), list(hidden)))
        rows = np.flatnonzero(~np.isin(self.tracklet, codes))
        times = (self.start[rows], self.end[rows], self.expires[rows])
        columns = (self.tracklet[rows], self.tracklets, self.camera[rows], self.cameras, *times, self.looks[rows])
        matrix = self.matrix[rows] if self.keys is None else self.matrix
        return Index(self.version, matrix, *columns, None if self.keys is None else self.keys[rows], self.store)

    def rows_in(self, scope: Scope) -> NDArray[np.int64] | None:
        """Return the rows in a scope that have not expired; None for all."""
        expired = (self.expires != UNKNOWN_TIME) & (self.expires <= 1000 * time.time())
        if scope.is_all and not expired.any():
            return None
        mask = ~expired
        if scope.cameras is not None:
            mask &= np.isin(self.camera, [code for code, name in enumerate(self.cameras) if name in scope.cameras])
        if scope.after is not None or scope.before is not None:
            mask &= self.start != UNKNOWN_TIME
        if scope.after is not None:
            mask &= self.end >= scope.after
        if scope.before is not None:
            mask &= self.start <= scope.before
        return np.flatnonzero(mask)

    def count_without_time(self, scope: Scope) -> int:
        """Return the number of rows that a filter by time leaves out because their time is unknown."""
        is_timed = scope.after is not None or scope.before is not None
        return int((self.start == UNKNOWN_TIME).sum()) if is_timed else 0

    def looks_by_camera(self, rows: NDArray[np.int64] | None) -> NDArray[np.float64]:
        """Return the sum of `looks` of the rows of each camera, and of unknown cameras at the end."""
        camera, looks = (self.camera, self.looks) if rows is None else (self.camera[rows], self.looks[rows])
        codes = np.where(camera < 0, len(self.cameras), camera)
        return np.bincount(codes, weights=looks, minlength=len(self.cameras) + 1).astype(np.float64)

    def nearest(
        self,
        queries: NDArray[np.float32],
        rows: NDArray[np.int64] | None,
        top: int,
        within: float | None,
        scope: Scope | None = None,
    ) -> list[tuple[float, str]]:
        """Return the distances and ids of the nearest tracklets, the nearest first; ties by id.

        Args:
            queries: `[Q, D]` unit rows. The distance of a tracklet is that of its nearest row to the nearest query.
            rows: to search; None for all.
            top: largest number of tracklets.
            within: largest distance.
            scope: that the rows are in, for an engine that filters itself; everything by default.

        Raises:
            RowsChanged: rows were removed from that engine since they were read.
        """
        enough = top * int(np.bincount(self.tracklet).max(initial=1))
        if self.store is not None and self.keys is not None:
            allowed = np.full(len(self), rows is None)
            allowed[[] if rows is None else rows] = True
            candidates, found = self.store.nearest(self.keys, allowed, queries, scope or Scope(), enough, within)
        else:
            found = distances(self.matrix, queries, rows)
            candidates = np.arange(len(found)) if rows is None else rows
            if enough < len(found):
                chosen = np.flatnonzero(found <= np.partition(found, enough - 1)[enough - 1])
                candidates, found = candidates[chosen], found[chosen]
        if within is not None:
            candidates, found = candidates[found <= within], found[found <= within]
        best: dict[int, float] = {}
        for which, distance in zip(self.tracklet[candidates].tolist(), found.tolist(), strict=True):
            best[which] = min(distance, best.get(which, distance))
        named = zip(best.values(), self.tracklets.take(pa.array(best, pa.int64())).to_pylist(), strict=True)
        return sorted(named)[:top]


def _encode(parts: list[pa.Array], kind: pa.DataType) -> tuple[NDArray[np.int32], pa.Array]:
    """Return the codes of texts, -1 for missing ones, and the different texts."""
    encoded = pa.chunked_array(parts, kind).combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32), encoded.dictionary


def _times(parts: list[pa.Array]) -> NDArray[np.int64]:
    column = pa.chunked_array(parts, pa.timestamp("ms", "UTC")).cast(pa.int64())
    return column.fill_null(UNKNOWN_TIME).to_numpy().astype(np.int64)
