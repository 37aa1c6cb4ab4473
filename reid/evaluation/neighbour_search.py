"""Nearest neighbours of every item of a set: exact, or approximate with FAISS for large sets."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice, pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reid.core.arrays import concatenated_ranges
from reid.core.errors import ConfigError, check_choice
from reid.evaluation.features import MEMORY_LIMIT, centred, pair_distances, prepare_one, squared_lengths
from reid.evaluation.neighbours import Neighbours, nearest_items, workers

NeighbourSearch = Literal["auto", "exact", "faiss"]

SEARCHES: tuple[str, ...] = get_args(NeighbourSearch)

EXACT_UP_TO = 30_000
"""Items up to which `auto` compares all pairs."""

FLAT_UP_TO = 10_000
"""Items up to which FAISS compares all pairs too: fewer are hardly faster to search in cells."""

CELLS_PER_ROOT = 4
"""Cells of a partition, times √N."""

PARTITIONS = 4
"""Independent partitions into cells."""

PROBES = 8
"""Cells of each partition whose items are compared with an item."""

ROUNDS = 2
"""Rounds in which neighbours of neighbours are compared."""

_TRAINING_ITEMS = 32  # per cell, from which its centre is found
_ITERATIONS = 4  # of k-means
_LINKS = 5  # nearest items, and items that are nearest to, whose neighbours are compared
_SMALLEST_CELL = 64  # items in a cell, on average, below which there are fewer cells
_SAMPLE = 512  # evenly spaced items among which the farthest is searched
_ROWS = 2048

Ids = NDArray[np.int64]
Distances = NDArray[np.float32]


def find_neighbours(
    features: NDArray[np.floating], k: int, how: str = "exact", *, memory_limit: int = MEMORY_LIMIT
) -> Neighbours:
    """Return each item and its `k` nearest others, by Euclidean distance of features `[N, D]`.

    Args:
        features: `[N, D]` numbers.
        k: number of neighbours besides the item itself; all others if there are fewer.
        how: "exact", "faiss" or "auto": see `search_neighbours`.
        memory_limit: bytes of a block of distances in the exact search (at least one row).

    Raises:
        DataError: a feature is NaN or infinite.
        ConfigError: an unknown name, or FAISS is not installed.

    Example:
        >>> import numpy as np
        >>> features = np.array([[0, 1], [1, 0], [1, 0.1]], np.float32)
        >>> find_neighbours(features, 1).nearest.tolist()
        [[0, 2], [1, 2], [2, 1]]
    """
    x = centred(prepare_one(features, "item", "euclidean").clone())
    return search_neighbours(x, min(k, len(x) - 1), how, memory_limit)


def search_neighbours(
    features: Tensor, k: int, how: str, memory_limit: int, squared: NDArray[np.float32] | None = None
) -> Neighbours:
    """Return each item and its `k` nearest others, by squared Euclidean distance of centred features `[N, D]`.

    Args:
        features: on any device.
        k: number of neighbours besides the item itself, at most N − 1.
        how: "exact" (`nearest_items`), "faiss" (`approximate_nearest_items`), or "auto" (`chosen_search`).
        memory_limit: bytes of a block of distances in the exact search.
        squared: for the exact search, as in `nearest_items`.
    """
    if chosen_search(how, len(features), features.device.type) == "exact":
        return nearest_items(features, k, memory_limit, squared)
    return approximate_nearest_items(features, k)


def chosen_search(how: str, n: int, device: str = "cpu") -> str:
    """Return "exact" or "faiss": "auto" is exact for up to `EXACT_UP_TO` items, on GPUs, and without FAISS."""
    check_choice("neighbour_search", how, SEARCHES)
    if how != "auto":
        return how
    return "exact" if n <= EXACT_UP_TO or device != "cpu" or _faiss() is None else "faiss"


def approximate_nearest_items(features: Tensor, k: int) -> Neighbours:
    """Return each item and about its `k` nearest others, by squared Euclidean distance of features `[N, D]`.

    K-means of FAISS divides the items into `4 √N` cells (an inverted file: Jégou, Douze, Schmid 2011), and each item is
    compared with the items of its 8 nearest cells. Where features have no structure but identities, two items of one
    identity often have none of these cells in common. More cells help little; therefore this is done with 4 independent
    partitions. In two further rounds, each item is compared with its neighbours' neighbours in both directions (as in
    NN-descent: Dong, Charikar, Li 2011).

    Up to 10,000 items (`FLAT_UP_TO`) there is one cell, so all pairs are compared.

    Distances are measured from the features at the end, and equal ones are in item order. The result is the same in
    every run. `largest` is the largest distance to 512 evenly spaced items (with one cell, to all), hence a lower
    bound. An item for which fewer than k others are found has −1 at the end of its list. Time grows with N^1.5, memory
    with N.

    Args:
        features: `[N, D]` float32; on a GPU, they are copied to the CPU.
        k: number of neighbours besides the item itself.

    Raises:
        ConfigError: FAISS is not installed.
    """
    faiss = _faiss()
    if faiss is None:
        raise ConfigError(
            "neighbour_search=faiss needs FAISS. Run: pip install 'reid-toolkit[faiss]', or use neighbour_search=exact."
        )
    x = features.detach().cpu().contiguous()
    n = len(x)
    k = min(k, n - 1)
    cells = 1 if n <= FLAT_UP_TO else max(1, min(round(CELLS_PER_ROOT * n**0.5), n // _SMALLEST_CELL))
    with workers(set_threads=(faiss.omp_set_num_threads, torch.set_num_threads)) as pool:
        seeds = range(PARTITIONS if cells > 1 else 1)
        centres = list(pool.map(partial(_centres, faiss, x.numpy(), cells), seeds))
        nearest, distance = _search_cells(faiss, pool, x.numpy(), k + 1, centres[0])
        for own in centres[1:]:
            _merge(pool, nearest, distance, *_search_cells(faiss, pool, x.numpy(), k + 1, own))
        for _ in range(ROUNDS if cells > 1 else 0):
            nearest, distance = _with_neighbours_of_neighbours(pool, x, nearest, distance)
        list(pool.map(partial(_sort, x, nearest), _blocks(n)))
        sample = x if cells == 1 else x[torch.linspace(0, n - 1, min(_SAMPLE, n)).long()]
        largest = list(pool.map(partial(_largest, x, sample), _blocks(n)))
    return Neighbours(nearest, np.concatenate(largest))


def _faiss() -> Any:
    """The module, or None if it is not installed."""
    try:
        import faiss
    except ModuleNotFoundError:
        return None
    return faiss


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS))


def _centres(faiss: Any, x: Distances, cells: int, seed: int) -> Distances:
    """Return the centres `[cells, D]` of one partition."""
    means = faiss.Kmeans(
        x.shape[1],
        cells,
        niter=_ITERATIONS,
        max_points_per_centroid=_TRAINING_ITEMS,
        min_points_per_centroid=1,
        seed=seed,
    )
    means.train(x)
    centres: Distances = means.centroids
    return centres


def _search_cells(
    faiss: Any, pool: ThreadPoolExecutor, x: Distances, k: int, centres: Distances
) -> tuple[Ids, Distances]:
    """Return the k nearest `[N, k]` of each item in its nearest cells of one partition (−1: none), and distances."""
    n, cells = len(x), len(centres)
    probes = min(PROBES, cells)
    assigned = pool.map(lambda rows: faiss.knn(x[rows], centres, probes)[1].astype(np.int32), _blocks(n))
    cell = np.concatenate(list(assigned))
    heap = faiss.ResultHeap(n, k)

    def compare(members: Ids, asked: Ids) -> tuple[Ids, Distances, Ids]:
        distance, place = faiss.knn(x[asked], x[members], min(k, len(members)))
        return asked, distance, members[place]

    pairs = zip(_by_cell(cell[:, :1], cells), _by_cell(cell, cells), strict=True)
    found = (pool.submit(compare, members, asked) for members, asked in pairs if len(members))
    for job in _ahead(found):  # in the order of the cells, so that equal distances do not depend on threads
        heap.add_result_subset(*job.result())
    heap.finalize()
    heap.I[np.finfo(np.float32).max == heap.D] = -1
    return heap.I, heap.D


def _ahead(jobs: Iterator[Future[Any]]) -> Iterator[Future[Any]]:
    """Yield jobs in order while the next ones run, a few at a time."""
    waiting = deque(islice(jobs, 4 * torch.get_num_threads()))
    while waiting:
        yield waiting.popleft()
        waiting.extend(islice(jobs, 1))


def _by_cell(cell: NDArray[np.integer], cells: int) -> list[Ids]:
    """Return the items of each cell, from the cells `[N, p]` of each item."""
    order = np.argsort(cell, axis=None, kind="stable")
    ends = np.append(0, np.cumsum(np.bincount(cell.ravel(), minlength=cells)))
    order //= cell.shape[1]
    return [order[low:high] for low, high in pairwise(ends.tolist())]


def _closest(ids: Ids, distance: Distances, k: int) -> tuple[Ids, Distances]:
    """Return the k closest different items of each row of `[b, m]`; equal distances in item order, −1 (none) last."""
    order = np.argsort(ids, axis=1, kind="stable")
    ids, distance = np.take_along_axis(ids, order, 1), np.take_along_axis(distance, order, 1)
    distance[:, 1:][ids[:, 1:] == ids[:, :-1]] = np.inf
    distance[ids < 0] = np.inf
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    ids, distance = np.take_along_axis(ids, order, 1), np.take_along_axis(distance, order, 1)
    ids[np.isinf(distance)] = -1
    return ids, distance


def _merge(pool: ThreadPoolExecutor, ids: Ids, distance: Distances, others: Ids, other_distance: Distances) -> None:
    """Merge lists `[N, k]` of other items into those of `ids`."""

    def merge(rows: slice) -> None:
        both = np.hstack([ids[rows], others[rows]]), np.hstack([distance[rows], other_distance[rows]])
        ids[rows], distance[rows] = _closest(*both, ids.shape[1])

    list(pool.map(merge, _blocks(len(ids))))


def _with_neighbours_of_neighbours(
    pool: ThreadPoolExecutor, x: Tensor, nearest: Ids, distance: Distances
) -> tuple[Ids, Distances]:
    """Return the lists `[N, k]` after comparing each item with the items that its links reach in one or two steps."""
    n, k = nearest.shape
    links = _links(nearest, distance)
    result = np.empty_like(nearest), np.empty_like(distance)

    def compare(rows: slice) -> None:
        own = np.arange(rows.start, rows.stop)[:, None]
        one = links[rows]
        two = links[one]
        two[one < 0] = -1
        known = np.hstack([own, nearest[rows]])
        ids = np.hstack([known, one, two.reshape(len(own), -1)])
        order = np.argsort(ids, axis=1, kind="stable")
        ids = np.take_along_axis(ids, order, 1)
        new = (order >= known.shape[1]) & (ids >= 0)
        new[:, 1:] &= ids[:, 1:] != ids[:, :-1]
        row, place = np.nonzero(new)
        item = ids[row, place]
        value = pair_distances(x, own[row, 0], item)
        counts = np.bincount(row, minlength=len(own))
        more = np.full((len(own), counts.max(initial=0)), -1)
        measured = np.full(more.shape, np.inf, np.float32)
        column = concatenated_ranges(np.zeros_like(counts), counts)
        more[row, column], measured[row, column] = item, value
        ids = np.hstack([nearest[rows], more])
        result[0][rows], result[1][rows] = _closest(ids, np.hstack([distance[rows], measured]), k)

    list(pool.map(compare, _blocks(n)))
    return result


def _links(nearest: Ids, distance: Distances) -> Ids:
    """Return the nearest items of each, then the closest of those to which it is among the nearest; −1 pads."""
    n = len(nearest)
    other = nearest != np.arange(n)[:, None]
    order = np.argsort(~(other & (nearest >= 0)), axis=1, kind="stable")[:, :_LINKS]
    forward, value = np.take_along_axis(nearest, order, 1), np.take_along_axis(distance, order, 1)
    forward[forward == np.arange(n)[:, None]] = -1
    row, column = np.nonzero(forward >= 0)
    target = forward[row, column]
    order = np.lexsort((row, value[row, column], target))
    target, row = target[order], row[order]
    counts = np.bincount(target, minlength=n)
    place = concatenated_ranges(np.zeros_like(counts), counts)
    links = np.full((n, 2 * _LINKS), -1)
    links[:, : forward.shape[1]] = forward
    first = place < _LINKS
    links[target[first], _LINKS + place[first]] = row[first]
    return links


def _sort(x: Tensor, nearest: Ids, rows: slice) -> None:
    """Sort some lists of `[N, k]` by measured distance, the item itself first, equal distances in item order."""
    own = np.arange(rows.start, rows.stop)[:, None]
    ids = np.hstack([own, np.where(nearest[rows] == own, -1, nearest[rows])])
    distance = np.full(ids.shape, np.inf, np.float32)
    known = ids >= 0
    distance[known] = pair_distances(x, np.broadcast_to(own, ids.shape)[known], ids[known])
    distance[:, 0] = -1
    nearest[rows] = _closest(ids, distance, nearest.shape[1])[0]


def _largest(x: Tensor, sample: Tensor, rows: slice) -> Distances:
    """Return the largest squared distance of some items to a sample."""
    part = x[rows]
    largest = (squared_lengths(sample) - 2 * part @ sample.T).amax(dim=1) + squared_lengths(part)
    return largest.clamp(min=0).numpy()
