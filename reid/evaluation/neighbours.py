"""Exact nearest neighbours of every item of a set, in one pass over half of the N×N distances."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.core.arrays import UNKNOWN, concatenated_ranges, different_cameras
from reid.evaluation.features import distance_blocks, pair_distances, rows_per_block, squared_lengths

ROUNDING = 1e-5
"""Error bound of a squared distance from a float32 product, relative to the squared lengths of the two items."""

MOST_CANDIDATES = 512
"""Largest number of neighbours of an item that are measured again; beyond it their order is that of the product."""

_SLABS = 32
"""Largest number of equal parts (slabs) of a row, whose minima are compared first."""

_ROWS = 1024
"""Largest number of rows of a block."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Nearest items of each of N items.

    Attributes:
        nearest: `[N, k]` int64, the item itself first, then its nearest others; equal distances in item order.
        largest: `[N]` float32, the largest squared distance from the item to any other.
    """

    nearest: NDArray[np.int64]
    largest: NDArray[np.float32]


def nearest_items(features: Tensor, k: int, memory_limit: int, corner: NDArray[np.float32] | None = None) -> Neighbours:
    """Return each item and its `k` nearest others, by squared Euclidean distance of features `[N, D]`.

    Neighbours that float32 rounding could confuse are measured again from the features. If `corner [Q, G]` is given,
    the squared distances of the first Q items to the last G = N − Q are written to it.
    """
    n = len(features)

    def absorb(found: _Found, start: int, block: Tensor) -> None:
        found.raise_largest(start, block)
        found.lists[0].absorb_both_ways(block, start, start)
        if corner is not None and start < len(corner):
            ahead = len(corner) - start
            corner[start : start + len(block)] = block[:ahead, ahead:].cpu().numpy()

    found = _search(features, [min(k + 1, n)], np.array([0, n]), memory_limit, absorb)
    return Neighbours(found.lists[0].nearest(np.arange(n)), found.largest.cpu().numpy())


class Edges(NamedTuple):
    """Pairs from a part of all pairs, with squared distances, that may be among the nearest: columns of E rows.

    Attributes:
        item, other: `[E]` int32, numbers of the items; an item is also paired with itself.
        value: `[E]` float32, the squared distance from a float32 product.
        largest: `[N]` float32, the largest squared distance of each item in the part; 0 without any.
    """

    item: NDArray[np.int32]
    other: NDArray[np.int32]
    value: NDArray[np.float32]
    largest: NDArray[np.float32]


def nearest_in_part(features: Tensor, k: int, part: int, parts: int, memory_limit: int) -> Edges:
    """Return the edges of one of `parts` parts of all pairs, for `merge_edges`. See `nearest_items`."""
    n = len(features)

    def absorb(found: _Found, start: int, block: Tensor) -> None:
        found.raise_largest(start, block)
        found.lists[0].absorb_both_ways(block, start, start)

    found = _search(features, [min(k + 1, n)], np.array([0, n]), memory_limit, absorb, (part, parts))
    return Edges(*found.lists[0].edges(), found.largest.cpu().numpy())


def merge_edges(features: Tensor, k: int, parts: Sequence[Edges]) -> Neighbours:
    """Return each item and its `k` nearest others from the edges of all parts, as `nearest_items` does."""
    n = len(features)
    lists = _Lists(features, min(k + 1, n))
    lists.candidates = [part[:3] for part in parts]
    item, _, value = (np.concatenate(columns) for columns in zip(*lists.candidates, strict=True))
    order = np.lexsort((value, item))
    item, value = item[order], value[order]
    place = np.arange(len(item)) - np.searchsorted(item, item)
    first = place < lists.k
    least = np.full((n, lists.k), np.inf, np.float32)
    least[item[first], place[first]] = value[first]
    lists.least = torch.from_numpy(least).to(features.device)
    return Neighbours(lists.nearest(np.arange(n)), np.max([part.largest for part in parts], axis=0))


def nearest_items_by_camera(
    features: Tensor, cameras: NDArray[np.int64], k_own: int, k_other: int, memory_limit: int
) -> tuple[Neighbours, NDArray[np.int64]]:
    """Return each item and its `k_own` nearest others of its camera, and its `k_other` nearest of all other cameras.

    Both lists are padded with −1 where there are fewer.

    Args:
        features: `[N, D]`, centred.
        cameras: `[N]` integers; an unknown camera (-1) is never the same as another.
        k_own: neighbours in the item's camera, without the item itself.
        k_other: neighbours in other cameras.
        memory_limit: bytes of a block of distances (at least one row).
    """
    n = len(features)
    order = np.argsort(cameras, kind="stable")
    edges = np.concatenate([[0], np.flatnonzero(np.diff(cameras[order])) + 1, [n]])
    features = features[torch.from_numpy(order).to(features.device)]
    sizes = np.diff(edges)

    def absorb(found: _Found, start: int, block: Tensor) -> None:
        end = edges[np.searchsorted(edges, start, "right")] - start
        found.raise_largest(start, block)
        if cameras[order[start]] == UNKNOWN:
            block.fill_diagonal_(torch.inf)
            end = 0
        found.lists[0].absorb_both_ways(block[:, :end], start, start)
        found.lists[1].absorb_both_ways(block[:, end:], start, start + end)

    unknown = cameras[order] == UNKNOWN
    counts = [min(k_own + 1, sizes.max()), min(k_other, n - (1 if unknown.any() else sizes.min()))]
    found = _search(features, counts, edges, memory_limit, absorb)
    own, other = (lists.nearest(order) for lists in found.lists)
    own[unknown, 0] = order[unknown]
    back = np.argsort(order)
    return Neighbours(own[back], found.largest.cpu().numpy()[back]), other[back]


def nearest_across(
    query: Tensor,
    gallery: Tensor,
    k: int,
    memory_limit: int,
    cameras: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> NDArray[np.int64]:
    """Return the `k` gallery items `[Q, k]` nearest to each query by Euclidean distance; −1 if there are fewer.

    Args:
        query: `[Q, D]` features.
        gallery: `[G, D]` features.
        k: number of neighbours.
        memory_limit: bytes of a block of distances (at least one row).
        cameras: `[Q]` and `[G]`; if given, items of the query's own camera are ignored.
    """
    n_query, n = len(query), len(query) + len(gallery)
    lists = _Lists(torch.cat([query, gallery]), min(k, len(gallery)))
    if cameras is not None:
        of_query, of_gallery = (torch.from_numpy(camera).to(query.device) for camera in cameras)
    for start, block in distance_blocks(query, gallery, "euclidean", memory_limit):
        values = torch.from_numpy(block).to(query.device)
        if cameras is not None:
            values[~different_cameras(of_query[start : start + len(values), None], of_gallery)] = torch.inf
        lists.absorb(values, start, n_query)
    return lists.nearest(np.arange(-n_query, n - n_query))[:n_query]


def workers(
    most: int | None = None, set_threads: Sequence[Callable[[int], object]] = (torch.set_num_threads,)
) -> ThreadPoolExecutor:
    """Return a pool of as many threads as torch may use (at most `most`), each of which computes alone.

    Args:
        most: number of threads.
        set_threads: of the libraries that are used; each is called with 1 in every thread.
    """

    def compute_alone() -> None:
        for set_threads_of_library in set_threads:
            set_threads_of_library(1)

    count = torch.get_num_threads() if most is None else min(torch.get_num_threads(), most)
    return ThreadPoolExecutor(max(1, count), initializer=compute_alone)


@dataclass(frozen=True, eq=False)
class _Found:
    """Result of one worker: lists of neighbours, and the largest squared distance `[N]` of each item."""

    lists: list[_Lists]
    largest: Tensor

    def raise_largest(self, start: int, block: Tensor) -> None:
        """Update `largest` with a block of `_search`."""
        for part, dim in ((self.largest[start : start + len(block)], 1), (self.largest[start:], 0)):
            torch.maximum(part, block.amax(dim=dim), out=part)


def _search(
    features: Tensor,
    counts: list[int],
    edges: NDArray[np.int64],
    memory_limit: int,
    absorb: Callable[[_Found, int, Tensor], None],
    part: tuple[int, int] | None = None,
) -> _Found:
    """Compute half of the squared distances in blocks and pass each to `absorb`; on a CPU with several workers.

    Args:
        features: `[N, D]`.
        counts: number of neighbours in each list of `_Found`.
        edges: items that no block crosses, from 0 to N.
        memory_limit: bytes of the blocks of all workers together (at least one row each).
        absorb: called with the first row of a block and the block `[b, N − start]`: distances from b items to
            themselves and all later items. The block is overwritten afterwards.
        part: number i and count n: only every n-th block from the i-th on, with one worker.
    """
    n = len(features)
    squares = squared_lengths(features)[:, None]
    ones = torch.ones_like(squares)
    # With two more columns the product itself is |xᵢ|² + |xⱼ|² − 2 xᵢ·xⱼ.
    columns = torch.cat([features, squares, ones], dim=1)
    several = max(1, min(torch.get_num_threads(), n // _ROWS)) if features.device.type == "cpu" and not part else 1
    room = n * min(_ROWS, rows_per_block(n, memory_limit // several), n)
    blocks = itertools.islice(_blocks(edges, room), *((part[0], None, part[1]) if part else (None,)))
    lock = Lock()

    def work(_: int) -> _Found:
        found = _Found([_Lists(features, k) for k in counts], features.new_zeros(n))
        buffer = features.new_empty(room)
        while True:
            with lock:
                start, stop = next(blocks, (n, n))
            if start == n:
                return found
            rows = torch.cat([-2 * features[start:stop], ones[start:stop], squares[start:stop]], dim=1)
            out = buffer[: (stop - start) * (n - start)].view(stop - start, n - start)
            absorb(found, start, torch.mm(rows, columns[start:].T, out=out))

    with workers(several) as pool:
        parts = list(pool.map(work, range(several)))
    lists = [_Lists.merged(same) for same in zip(*(part.lists for part in parts), strict=True)]
    return _Found(lists, torch.stack([part.largest for part in parts]).amax(dim=0))


def _blocks(edges: NDArray[np.int64], room: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last row of blocks that reach to the last item and have at most `room` elements."""
    n = int(edges[-1])
    for low, high in itertools.pairwise(edges.tolist()):
        start = low
        while start < high:
            stop = min(start + min(_ROWS, room // (n - start)), high)
            yield start, stop
            start = stop


class _Lists:
    """The k nearest of each of N items, updated with blocks of distances.

    `least [N, k]` contains k of the smallest values so far, each of another pair; its largest is an upper bound of the
    k-th smallest distance. Every distance within the bound plus the rounding error is kept as a candidate.
    """

    def __init__(self, features: Tensor, k: int) -> None:
        self.features = features
        self.k = k
        self.squares = squared_lengths(features)
        self.least = features.new_full((len(features), k), torch.inf)
        self.candidates: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]] = []
        self.n_candidates = 0
        self.room = 4 * len(features) * k

    @classmethod
    def merged(cls, parts: tuple[_Lists, ...]) -> _Lists:
        """Merge lists of the same items that were updated with different pairs."""
        whole = parts[0]
        if len(parts) > 1:
            least = torch.cat([part.least for part in parts], dim=1)
            whole.least = least.topk(whole.k, largest=False, sorted=False).values
            whole.candidates = [candidates for part in parts for candidates in part.candidates]
        return whole

    def absorb_both_ways(self, values: Tensor, rows: int, columns: int) -> None:
        """Update with distances `[b, c]` of the items from `rows` on to those from `columns` on, in both directions.

        Items that are in the rows and in the columns are updated once.
        """
        if not self.k or not values.numel():
            return
        self.absorb(values, rows, columns)
        new = max(rows + len(values) - columns, 0)
        if new < values.shape[1]:
            self.absorb(values[:, new:].T, columns + new, rows)

    def absorb(self, values: Tensor, rows: int, columns: int) -> None:
        """Update the items from `rows` on with distances `[b, c]` to those from `columns` on; inf means no pair.

        Rows are cut in slabs, and only positions whose minimum over slabs is within the bound are examined.
        """
        size = values.shape[1]
        slabs = max(1, min(_SLABS, size // (4 * self.k)))
        width = -(-size // slabs)
        minima = values[:, :width].clone()
        for slab in range(width, size, width):
            part = values[:, slab : slab + width]
            torch.minimum(minima[:, : part.shape[1]], part, out=minima[:, : part.shape[1]])
        items = rows + torch.arange(len(values), device=values.device)
        touched = (minima.amin(dim=1) <= self._bound(items)).nonzero().flatten()
        items, minima = items[touched], minima[touched]
        least = torch.cat([self.least[items], minima], dim=1)
        self.least[items] = least.topk(self.k, largest=False, sorted=False).values
        bound = self._bound(items)
        near = minima <= bound[:, None]
        crowded = near.sum(dim=1) > MOST_CANDIDATES
        near[crowded] = False
        row, first = near.nonzero(as_tuple=True)
        column = first[:, None] + width * torch.arange(slabs, device=values.device)
        value = values[touched[row, None], column.clamp(max=size - 1)]
        kept = (value <= bound[row, None]) & (column < size)
        row, column, value = row[:, None].expand_as(column)[kept], column[kept], value[kept]
        crowded |= torch.bincount(row, minlength=len(items)) > MOST_CANDIDATES
        kept = ~crowded[row]
        self._keep(items[row[kept]], columns + column[kept], value[kept])
        for part in crowded.nonzero().flatten().split(64):
            self._keep_first(values[touched[part]], items[part], columns)

    def _keep_first(self, values: Tensor, rows: Tensor, columns: int) -> None:
        """Keep the k smallest of each row, and of equal values the first."""
        own = rows - columns
        inside = (own >= 0) & (own < values.shape[1])
        values[inside.nonzero().flatten(), own[inside]] = -torch.inf
        k = min(self.k, values.shape[1])
        farthest = values.topk(k, largest=False).values[:, -1:]
        below, level = values < farthest, values == farthest
        level &= level.cumsum(dim=1) <= k - below.sum(dim=1, keepdim=True)
        row, column = (below | level).nonzero(as_tuple=True)
        self._keep(rows[row], columns + column, values[row, column])

    def _keep(self, items: Tensor, others: Tensor, values: Tensor) -> None:
        self.candidates.append((items.int().cpu().numpy(), others.int().cpu().numpy(), values.cpu().numpy()))
        self.n_candidates += len(items)
        if self.n_candidates > self.room:
            self._prune()

    def _bound(self, items: Tensor | slice) -> Tensor:
        """Return upper bounds `[n]` of the k-th smallest distance by the product, rounding included."""
        bound, squares = self.least[items].amax(dim=1), self.squares[items]
        # |xⱼ|² ≤ 2 |xᵢ|² + 2 d² bounds the lengths of near items.
        return bound + ROUNDING * (3 * squares + 2 * bound.clamp(min=0))

    def _prune(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        """Remove the candidates that are beyond the bounds now, and return the others."""
        item, other, value = (np.concatenate(parts) for parts in zip(*self.candidates, strict=True))
        kept = (value <= self._bound(slice(None)).cpu().numpy()[item]) & (value < np.inf)
        self.candidates = [(item[kept], other[kept], value[kept])]
        self.n_candidates = int(kept.sum())
        self.room = max(self.room, 2 * self.n_candidates)
        return self.candidates[0]

    def edges(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        """Return the candidates that are within the bounds: item, other item, and distance by the product."""
        none = np.zeros(0, np.int32)
        return self._prune() if self.candidates else (none, none, none.astype(np.float32))

    def nearest(self, names: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the names `[N, k]` of the nearest items: the item itself first, equal distances by name."""
        nearest = np.full(self.least.shape, -1, dtype=np.int64)
        if not self.candidates:
            return nearest
        item, other, value = self._prune()
        counts = np.bincount(item, minlength=len(nearest))
        measured = counts[item] <= MOST_CANDIDATES
        value[measured] = pair_distances(self.features, item[measured], other[measured])
        value[item == other] = -np.inf
        order = np.lexsort((names[other], value, item))
        rank = concatenated_ranges(np.zeros_like(counts), counts)
        order, rank = order[rank < self.k], rank[rank < self.k]
        nearest[item[order], rank] = names[other[order]]
        return nearest
