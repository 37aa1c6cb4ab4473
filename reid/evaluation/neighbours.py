"""The nearest items of every item of one set, exactly, in one pass over blocks of the N×N distances."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.evaluation.features import rows_per_block

ROUNDING = 1e-5
"""Squared distances from a float32 product are trusted to this part of the squared lengths of the two items."""

MOST_CANDIDATES = 512
"""Beyond so many neighbours that rounding cannot tell apart, their order is the product's."""

_SLABS = 32
"""A row is searched through the minima of this many equal parts of it."""

_ROWS = 1024
"""Rows of a block where memory allows more: enough for the speed of the product, few enough for the cache."""

_GATHERED = 2**23
"""Bytes of features gathered at a time to measure pairs: about what stays in a cache."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest items of each of N items.

    Attributes:
        nearest: `[N, k]` int64, the item itself first, then its nearest others; equal distances in item order.
        largest: `[N]` float32, the largest squared distance from the item to any other.
    """

    nearest: NDArray[np.int64]
    largest: NDArray[np.float32]


def centred(features: Tensor) -> Tensor:
    """Move the origin to the item nearest the mean, in place; distances stay, and float32 loses less of them.

    The origin is an item, not the mean, so that whole numbers stay whole and equal distances equal.
    """
    lengths = features.square().sum(dim=1)
    nearest = (lengths - 2 * features @ features.mean(dim=0)).argmin()
    return features.sub_(features[nearest].clone())


def pair_distances(features: Tensor, first: NDArray[np.integer], second: NDArray[np.integer]) -> NDArray[np.float32]:
    """Squared distances `[P]` of the pairs (first[p], second[p]), from the differences of their features."""
    out = np.empty(len(first), dtype=np.float32)
    step = max(1, _GATHERED // (4 * features.shape[1]))
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        i, j = (torch.from_numpy(np.ascontiguousarray(side[part])).to(features.device) for side in (first, second))
        difference = features.index_select(0, i)
        difference -= features.index_select(0, j)
        out[part] = difference.square_().sum(dim=1).cpu().numpy()
    return out


def nearest_items(features: Tensor, k: int, memory_limit: int) -> Neighbours:
    """The item itself and its `k` nearest others, by squared Euclidean distance of centred features `[N, D]`.

    Neighbours that float32 rounding could confuse are measured again from the features.
    """
    n = len(features)
    nearest = np.empty((n, min(k + 1, n)), dtype=np.int64)
    largest = np.empty(n, dtype=np.float32)
    names = np.arange(n)
    for start, block in _blocks(features, np.array([0, n]), memory_limit):
        rows = slice(start, start + len(block.values))
        largest[rows] = block.largest()
        nearest[rows] = block.smallest(slice(0, n), nearest.shape[1], names)
    return Neighbours(nearest, largest)


def nearest_items_by_camera(
    features: Tensor, cameras: NDArray[np.int64], k_own: int, k_other: int, memory_limit: int
) -> tuple[Neighbours, NDArray[np.int64]]:
    """The item itself and its `k_own` nearest others of its camera; and its `k_other` nearest of all other cameras.

    Both lists are padded with −1 where a camera has fewer.

    Args:
        features: `[N, D]`, centred.
        cameras: `[N]` integers.
        k_own: neighbours within the camera, the item itself not counted.
        k_other: neighbours in other cameras.
        memory_limit: bytes a block of distances may take (one row at least).
    """
    n = len(features)
    order = np.argsort(cameras, kind="stable")
    edges = np.flatnonzero(np.diff(cameras[order], prepend=cameras[order[:1]] - 1, append=cameras[order[-1:]] + 1))
    sizes = np.diff(edges)
    own = np.full((n, min(k_own + 1, sizes.max())), -1, dtype=np.int64)
    other = np.full((n, min(k_other, n - sizes.min())), -1, dtype=np.int64)
    largest = np.empty(n, dtype=np.float32)
    for start, block in _blocks(features[torch.from_numpy(order).to(features.device)], edges, memory_limit):
        rows = order[start : start + len(block.values)]
        camera = np.searchsorted(edges, start, "right") - 1
        mine = slice(edges[camera], edges[camera + 1])
        largest[rows] = block.largest()
        k = min(own.shape[1], sizes[camera])
        own[rows, :k] = block.smallest(mine, k, order)
        k = min(other.shape[1], n - sizes[camera])
        if k:
            block.values[:, mine] = torch.inf
            other[rows, :k] = block.smallest(slice(0, n), k, order)
    return Neighbours(own, largest), other


def _blocks(features: Tensor, edges: NDArray[np.int64], memory_limit: int) -> Iterator[tuple[int, _Block]]:
    """Blocks of rows that cross none of the `edges`."""
    n = len(features)
    squares = features.square().sum(dim=1)
    # With |xⱼ|² as one more number of each item, the product itself gives |xⱼ|² − 2 xᵢ·xⱼ.
    columns = torch.cat([features, squares[:, None]], dim=1)
    step = min(_ROWS, rows_per_block(n, memory_limit), n)
    buffer = torch.empty(step, n, device=features.device)
    for low, high in itertools.pairwise(edges.tolist()):
        for start in range(low, high, step):
            stop = min(start + step, high)
            rows = torch.cat([-2 * features[start:stop], features.new_ones(stop - start, 1)], dim=1)
            values = torch.mm(rows, columns.T, out=buffer[: stop - start])
            yield start, _Block(features, squares, start, values)


@dataclass(frozen=True, eq=False)
class _Block:
    """`values [b, N]`: for rows i from `start`, the squared distances to all items less |xᵢ|²."""

    features: Tensor
    squares: Tensor
    start: int
    values: Tensor

    @property
    def _own_squares(self) -> Tensor:
        return self.squares[self.start : self.start + len(self.values)]

    def largest(self) -> NDArray[np.float32]:
        return (self.values.amax(dim=1) + self._own_squares).cpu().numpy()

    def smallest(self, columns: slice, k: int, names: NDArray[np.int64]) -> NDArray[np.int64]:
        """Names `[b, k]` of the k nearest of the items in `columns`; equal distances in the order of the names.

        Finite values of the row must be k or more. Each row is cut in slabs; the k-th smallest of the minima over
        slabs is no less than the k-th smallest of all, so everything beyond it, and beyond the rounding, is out.
        """
        values = self.values[:, columns]
        size = values.shape[1]
        slabs = max(1, min(_SLABS, size // (4 * k)))
        width = -(-size // slabs)
        minima = values[:, :width].clone()
        for slab in range(width, size, width):
            part = values[:, slab : slab + width]
            torch.minimum(minima[:, : part.shape[1]], part, out=minima[:, : part.shape[1]])
        bound = minima.topk(k, dim=1, largest=False, sorted=False).values.amax(dim=1)
        # |xⱼ|² ≤ 2 |xᵢ|² + 2 d² bounds the lengths of whatever may be near.
        bound += ROUNDING * (3 * self._own_squares + 2 * (bound + self._own_squares).clamp_(min=0))
        near = minima <= bound[:, None]
        crowded = near.sum(dim=1) > MOST_CANDIDATES
        near[crowded] = False
        row, first = near.nonzero(as_tuple=True)
        column = first[:, None] + width * torch.arange(slabs, device=values.device)
        value = values[row[:, None], column.clamp(max=size - 1)]
        kept = (value <= bound[row, None]) & (column < size) & (value < torch.inf)
        out = np.empty((len(values), k), dtype=np.int64)
        self._order(
            row[:, None].expand_as(column)[kept].cpu().numpy(),
            (column[kept] + columns.start).cpu().numpy(),
            value[kept].cpu().numpy(),
            names,
            out,
        )
        for r in crowded.nonzero().flatten().tolist():
            out[r] = _nearest_in_row(values[r].cpu().numpy(), self.start + r - columns.start, k, names[columns])
        return out

    def _order(
        self,
        row: NDArray[np.int64],
        column: NDArray[np.int64],
        value: NDArray[np.float32],
        names: NDArray[np.int64],
        out: NDArray[np.int64],
    ) -> None:
        """Write the first k of each row's candidates into `out [b, k]`, for the rows that have candidates."""
        counts = np.bincount(row, minlength=len(out))
        measured = counts[row] <= MOST_CANDIDATES
        value[measured] = pair_distances(self.features, self.start + row[measured], column[measured])
        value[column == self.start + row] = -np.inf
        sorted_names = names[column[np.lexsort((names[column], value, row))]]
        some = np.flatnonzero(counts)
        firsts = (np.cumsum(counts) - counts)[some]
        out[some] = sorted_names[firsts[:, None] + np.arange(out.shape[1])]


def _nearest_in_row(values: NDArray[np.float32], item: int, k: int, names: NDArray[np.int64]) -> NDArray[np.int64]:
    """Names of the `k` smallest of one row `values [n]`, the item itself, if it is there, before all others."""
    values = values.copy()
    if 0 <= item < len(values) and np.isfinite(values[item]):
        values[item] = -np.inf
    farthest = np.partition(values, k - 1)[k - 1]
    below, level = np.flatnonzero(values < farthest), np.flatnonzero(values == farthest)
    below = below[np.lexsort((names[below], values[below]))]
    return np.concatenate([names[below], np.sort(names[level])])[:k]
