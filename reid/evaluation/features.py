"""Features as the caller has them, made ready for distances; distances in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.core.errors import ReidError, did_you_mean

Metric = Literal["cosine", "euclidean"]
Features = ArrayLike | Tensor

MEMORY_LIMIT = 128 * 2**20
"""Bytes that a block of distances may take when the caller does not say."""


def prepare_features(query: Features, gallery: Features, metric: str) -> tuple[Tensor, Tensor]:
    """Check both sets of features and return them as float32, of length 1 each when the metric is cosine.

    Args:
        query: `[Q, D]` numbers of any type, NumPy or torch on any device.
        gallery: `[G, D]` likewise; moved to the query's device.
        metric: "cosine" or "euclidean".

    Raises:
        ReidError: a shape does not fit, a set is empty, a row holds NaN or infinity, or (cosine) a row is zero.
            The rows are named.
    """
    if metric not in ("cosine", "euclidean"):
        raise ReidError(f"Unknown metric {metric!r}.{did_you_mean(metric, ('cosine', 'euclidean'))}")
    prepared_query = prepare_one(query, "query", metric, None)
    prepared_gallery = prepare_one(gallery, "gallery", metric, prepared_query.device)
    if prepared_query.shape[1] != prepared_gallery.shape[1]:
        raise ReidError(
            f"Query features have {prepared_query.shape[1]} numbers each and gallery features "
            f"{prepared_gallery.shape[1]}: both must come from one model."
        )
    return prepared_query, prepared_gallery


def prepare_one(features: Features, name: str, metric: str, device: torch.device | None) -> Tensor:
    """One set of `prepare_features`, which its errors call `name`, on `device` (None: where it is)."""
    given: Any = features if isinstance(features, Tensor) else _from_array(features, name)
    if given.ndim != 2 or 0 in given.shape:
        raise ReidError(f"{name.capitalize()} features have shape {tuple(given.shape)}; expected [items, numbers].")
    ready: Tensor = given.detach().to(device=device, dtype=torch.float32)
    norms = torch.linalg.vector_norm(ready, dim=1)
    _refuse_rows(~torch.isfinite(norms.square()), name, "hold NaN, infinity or numbers too large for float32")
    if metric == "cosine":
        _refuse_rows(norms == 0, name, "are all zeros, which have no direction for the cosine metric")
        ready = ready / norms[:, None]
    return ready


def _from_array(features: ArrayLike, name: str) -> Tensor:
    array = np.asarray(features)
    if array.dtype.kind not in "fiub":
        raise ReidError(f"{name.capitalize()} features are of type {array.dtype}, not numbers.")
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))


def _refuse_rows(bad: Tensor, name: str, what: str) -> None:
    rows = torch.nonzero(bad).flatten().tolist()
    if rows:
        shown = ", ".join(map(str, rows[:10])) + (", …" if len(rows) > 10 else "")
        raise ReidError(
            f"{len(rows)} of {len(bad)} {name} features {what} (rows {shown}). "
            "Look at those images and at the model, or leave those rows out."
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread. Thousands of small steps on several wait for each other wherever another process is busy.

    A step that takes milliseconds alone was seen to take 40 times as long on two threads of which one had no core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def rows_per_block(columns: int, memory_limit: int) -> int:
    """How many float32 rows of `columns` fit in `memory_limit` bytes; at least one."""
    return max(1, int(memory_limit) // (4 * max(1, columns)))


def distance_blocks(
    query: Tensor, gallery: Tensor, metric: str, memory_limit: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield `(first row, [b, G] distances)` over all query rows, in order, for features from `prepare_features`.

    Cosine: `1 − q·g`. Euclidean: the *squared* distance `|q|² + |g|² − 2 q·g`, which may come out a rounding error
    below zero. The product runs on the features' device, the blocks arrive on the CPU. A yielded block is the
    caller's to change, until the next one is asked for.
    """
    rows = rows_per_block(len(gallery), memory_limit)
    gallery_squares = gallery.square().sum(dim=1) if metric == "euclidean" else None
    base = torch.ones(1, device=query.device) if gallery_squares is None else gallery_squares
    buffer = torch.empty(min(rows, len(query)), len(gallery), device=query.device)
    for start in range(0, len(query), rows):
        part = query[start : start + rows]
        alpha = -1 if gallery_squares is None else -2
        block = torch.addmm(base, part, gallery.T, alpha=alpha, out=buffer[: len(part)])
        if gallery_squares is not None:
            block.add_(part.square().sum(dim=1, keepdim=True))
        yield start, block.cpu().numpy()
