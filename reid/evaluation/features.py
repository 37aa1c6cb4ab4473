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


_NEAR = 1 / 16
"""Squared distance, relative to the squared lengths, below which a product in float32 is too inexact."""

_FEW = 1 / 64
"""Fraction of near pairs up to which computing them one by one is faster than float64 for all."""

_SAME = 1e-13
"""Squared distance, relative to the squared lengths, below which two items are equal for a product in float64."""

_FAR = 4.0
"""Squared distance of the mean from the origin, in units of the variance, from which features are moved."""


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
        DataError: one set is a table and the other is not, tables come with separate columns, or their pids or camids
            cannot be compared (`Embeddings.share_codes`).
    """
    tables = [one for one in given if isinstance(one, EmbeddingTable)]
    if not tables:
        return list(given), labels  # type: ignore[arg-type]
    if len(tables) < len(given) or any(label is not None for label in labels):
        raise DataError(
            "Embeddings and separate columns are mixed. Pass Embeddings only, or arrays only: features, pids and "
            "camids of queries and gallery."
        )
    if share := getattr(tables[0], "share_codes", None):  # numbers of pids and camids may differ between files
        tables = share(tables)
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


def squared_lengths(features: Tensor) -> Tensor:
    """Return squared lengths `[N]` without a copy of the features."""
    return torch.cat([part.square().sum(dim=1) for part in features.split(4096)])


def item_at_the_centre(features: Tensor) -> Tensor:
    """Return the item `[D]` nearest the mean. Subtract it, not the mean: integers and equal distances stay so."""
    return features[(squared_lengths(features) - 2 * features @ features.mean(dim=0)).argmin()]


def centred(features: Tensor) -> Tensor:
    """Subtract the item at the centre, in place. Distances stay the same and lose less precision in float32."""
    return features.sub_(item_at_the_centre(features).clone())


def pair_distances(
    features: Tensor, first: NDArray[np.integer], second: NDArray[np.integer], others: Tensor | None = None
) -> NDArray[np.float32]:
    """Return squared distances `[P]` of the pairs (first[p], second[p]) from the differences of their features.

    `second` indexes `others`, or the features themselves without others.
    """
    out = np.empty(len(first), dtype=np.float32)
    gathered = 2**20 if features.device.type == "cpu" else 2**26  # bytes: fits in a cache; enough for a GPU
    step = max(1, gathered // (4 * features.shape[1]))
    with one_thread():
        for start in range(0, len(first), step):
            part = slice(start, start + step)
            i, j = (torch.from_numpy(np.ascontiguousarray(side[part])).to(features.device) for side in (first, second))
            difference = features.index_select(0, i)
            difference -= (features if others is None else others).index_select(0, j)
            out[part] = difference.square_().sum(dim=1).cpu().numpy()
    return out


def distance_blocks(
    query: Tensor, gallery: Tensor, metric: str, memory_limit: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield `(first row, distances [b, G])` over all query rows in order, for features from `prepare_features`.

    Cosine: `1 − q·g`. Euclidean: the *squared* distance, accurate to about 4e-6 of its value. The product is computed
    on the features' device; blocks are on the CPU. The caller may change a block in place; it is overwritten when the
    next one is requested.
    """
    rows = rows_per_block(len(gallery), memory_limit)
    squares = None
    if metric == "euclidean":
        squares, offset = squared_lengths(gallery), gallery.mean(dim=0).square().sum()
        if offset > _FAR * (squares.mean() - offset):
            centre = item_at_the_centre(gallery)
            query, gallery = query - centre, gallery - centre
            squares = squared_lengths(gallery)
    base = torch.ones(1, device=query.device) if squares is None else squares
    buffer = torch.empty(min(rows, len(query)), len(gallery), device=query.device)
    for start in range(0, len(query), rows):
        part = query[start : start + rows]
        block = torch.addmm(base, part, gallery.T, alpha=-1 if squares is None else -2, out=buffer[: len(part)])
        if squares is not None:
            measure_near_pairs(block.add_(squared_lengths(part)[:, None]), part, gallery)
        yield start, block.cpu().numpy()


def measure_near_pairs(squared: Tensor, query: Tensor, gallery: Tensor) -> None:
    """Replace the squared distances `[b, G]` of near pairs, whose digits a product in float32 has lost, in place.

    They are computed from the differences of the features if they are few, else in float64.
    """
    limit = 3 * _NEAR * squared_lengths(query)  # |q − g|² ≤ _NEAR · (|q|² + |g|²) is below it
    rows = (squared.amin(dim=1) <= limit).nonzero().flatten()
    for some in rows.split(64):
        near = squared[some] <= limit[some, None]
        if near.sum() <= _FEW * near.numel() or squared.device.type == "mps":  # MPS has no float64
            row, column = (part.cpu().numpy() for part in near.nonzero(as_tuple=True))
            measured = torch.from_numpy(pair_distances(query[some], row, column, gallery))
            squared[some[row], column] = measured.to(squared.device)
            continue
        for columns in torch.arange(len(gallery), device=squared.device).split(4096):
            a, b = query[some].double(), gallery[columns].double()
            norms = squared_lengths(a)[:, None] + squared_lengths(b)
            exact = torch.addmm(norms, a, b.T, alpha=-2)
            squared[some[:, None], columns] = exact.masked_fill_(exact <= _SAME * norms, 0).float()
