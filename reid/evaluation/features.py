"""Check features and compute their distances in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reid.core.errors import DataError, check_choice, first_few

Metric = Literal["cosine", "euclidean"]
Features = ArrayLike | Tensor

METRICS = ("cosine", "euclidean")

MEMORY_LIMIT = 128 * 2**20
"""Default size of a block of distances, in bytes."""


@runtime_checkable
class EmbeddingTable(Protocol):
    """Features `[N, D]` with the identities and cameras `[N]` of their rows, if known, such as `reid.Embeddings`."""

    features: NDArray[np.float32]
    pids: NDArray[np.int64] | None
    camids: NDArray[np.int64] | None


Labels = Sequence[ArrayLike | None]


def unpack_tables(given: Sequence[Features | EmbeddingTable], labels: Labels) -> tuple[list[Features], Labels]:
    """Return the features and the labels of one set, or of queries and gallery.

    Args:
        given: tables, or arrays, which are returned unchanged with their labels.
        labels: the pids of each set, then the camids of each set; all None with tables.

    Raises:
        DataError: one set is a table and the other is not, or tables come with separate columns.
    """
    tables = [one for one in given if isinstance(one, EmbeddingTable)]
    if not tables:
        return list(given), labels  # type: ignore[arg-type]
    if len(tables) < len(given) or any(label is not None for label in labels):
        raise DataError(
            "Embeddings and separate columns are mixed. Pass Embeddings only, or arrays only: features, pids and "
            "camids of queries and gallery."
        )
    return [one.features for one in tables], [*(one.pids for one in tables), *(one.camids for one in tables)]


def prepare_features(query: Features, gallery: Features, metric: str) -> tuple[Tensor, Tensor]:
    """Check two sets of features and return them as float32, L2-normalised if the metric is cosine.

    Args:
        query: `[Q, D]` numbers of any type, NumPy or torch on any device.
        gallery: `[G, D]`; moved to the query's device.
        metric: "cosine" or "euclidean".

    Raises:
        ConfigError: unknown metric.
        DataError: wrong shape, an empty set, or rows with NaN, infinity or (cosine) only zeros. The rows are named.
    """
    prepared_query = prepare_one(query, "query", metric)
    prepared_gallery = prepare_one(gallery, "gallery", metric, prepared_query.device)
    if prepared_query.shape[1] != prepared_gallery.shape[1]:
        raise DataError(
            f"Query features have {prepared_query.shape[1]} dimensions and gallery features "
            f"{prepared_gallery.shape[1]}. Use features of one model."
        )
    return prepared_query, prepared_gallery


def prepare_one(features: Features, name: str, metric: str, device: torch.device | None = None) -> Tensor:
    """Prepare one set of features as `prepare_features` does. `name` is used in error messages."""
    check_choice("metric", metric, METRICS)
    given: Any = features
    if not isinstance(features, Tensor):
        array = np.asarray(features)
        if array.dtype.kind not in "fiub":
            raise DataError(f"{name.capitalize()} features are of type {array.dtype}. Pass numbers.")
        given = torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
    if given.ndim != 2 or 0 in given.shape:
        raise DataError(f"{name.capitalize()} features have shape {list(given.shape)}; expected [N, D].")
    ready: Tensor = given.detach().to(device=device, dtype=torch.float32)
    norms = torch.linalg.vector_norm(ready, dim=1)
    _refuse_rows(~torch.isfinite(norms.square()), name, "contain NaN, infinity or numbers too large for float32")
    if metric == "cosine":
        _refuse_rows(norms == 0, name, "contain only zeros, which have no direction for the cosine metric")
        ready = ready / norms[:, None]
    return ready


def _refuse_rows(bad: Tensor, name: str, problem: str) -> None:
    rows = torch.nonzero(bad).flatten().tolist()
    if rows:
        raise DataError(
            f"{len(rows)} of {len(bad)} {name} features {problem} (rows {first_few(rows)}). "
            "Check the images of these rows and the model, or remove the rows."
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread inside the context.

    Many small operations on several threads wait for each other when another process is busy: an operation that
    takes milliseconds alone took 40 times as long on two threads of which one had no core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def rows_per_block(columns: int, memory_limit: int) -> int:
    """Return how many float32 rows of `columns` fit in `memory_limit` bytes; at least one."""
    return max(1, int(memory_limit) // (4 * max(1, columns)))


def distance_blocks(
    query: Tensor, gallery: Tensor, metric: str, memory_limit: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield `(first row, distances [b, G])` over all query rows in order, for features from `prepare_features`.

    Cosine: `1 − q·g`. Euclidean: the *squared* distance `|q|² + |g|² − 2 q·g`, which rounding may make slightly
    negative. The product is computed on the features' device; blocks are on the CPU. The caller may change a block in
    place; it is overwritten when the next one is requested.
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
