"""Exact search: inner products with a float16 matrix, in float32, block by block."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reid.core.workers import available_cores

if TYPE_CHECKING:
    import torch

_BLOCK = 1024
"""Rows that a thread converts to float32 at once: 2 MB at 512 dimensions, which fits into caches."""

_ROWS_PER_THREAD = 20_000


def distances(
    matrix: NDArray[np.float16], queries: NDArray[np.float32], rows: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Return the smallest cosine distance of each row to any of the queries, `[R]`.

    The products of float16 features are summed in float32, so ranks do not depend on approximations.

    Args:
        matrix: `[N, D]` unit rows.
        queries: `[Q, D]` unit rows.
        rows: `[R]` rows to compare; all N by default.

    Example:
        >>> distances(np.eye(3, dtype=np.float16), np.eye(3, dtype=np.float32)[:1]).tolist()
        [0.0, 1.0, 1.0]
    """
    import torch

    n = len(matrix) if rows is None else len(rows)
    nearest = np.empty(n, np.float32)
    if n == 0:
        return nearest
    wanted, stored, found = torch.from_numpy(queries), torch.from_numpy(matrix), torch.from_numpy(nearest)
    picked = None if rows is None else torch.from_numpy(rows)
    threads = max(1, min(available_cores(), n // _ROWS_PER_THREAD))
    bounds = np.linspace(0, n, threads + 1).astype(int).tolist()

    def work(thread: int) -> None:
        buffer = torch.empty(_BLOCK, matrix.shape[1])
        for start in range(bounds[thread], bounds[thread + 1], _BLOCK):
            end = min(start + _BLOCK, bounds[thread + 1])
            part = stored[start:end] if picked is None else stored[picked[start:end]]
            _best(buffer[: end - start].copy_(part), wanted, found[start:end])

    if threads == 1:
        work(0)
    else:
        list(_pool().map(work, range(threads)))
    return np.subtract(1, nearest, out=nearest)


def _best(block: torch.Tensor, queries: torch.Tensor, out: torch.Tensor) -> None:
    import torch

    if len(queries) == 1:
        torch.mv(block, queries[0], out=out)
    else:
        torch.amax(block @ queries.T, dim=1, out=out)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(available_cores(), "reid-scan")
