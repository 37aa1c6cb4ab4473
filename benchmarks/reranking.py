"""Speed of exact re-ranking against one product of all items and against the dense form, on synthetic features."""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import Benchmark, at_median, peak_above_inputs
from benchmarks.ranking import SIZES, synthetic_features
from reid.core.console import console
from reid.evaluation import rerank, rerank_blocks
from reid.evaluation.features import MEMORY_LIMIT, Features, prepare_features, rows_per_block

_LARGEST_RESULT = 2**30
"""Results of more bytes are taken a block at a time."""

_DENSE_ITEMS = 3000
"""Items of the comparison with the dense form, whose memory and time grow with their square."""


@click.command(cls=Benchmark)
@click.option("--size", default="market", show_default=True, type=click.Choice(list(SIZES)))
@click.option("--dimension", default=2048, show_default=True, type=click.IntRange(1), help="Length of a feature.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="Runs; the median counts.")
def main(size: str, dimension: int, runs: int) -> None:
    """Time re-ranking on synthetic features with k1=20, k2=6, lambda=0.3."""
    query, gallery = prepare_features(*synthetic_features(size, dimension)[:2], "cosine")
    n = len(query) + len(gallery)
    together = torch.cat([query, gallery])
    rows = min(n, rows_per_block(n, MEMORY_LIMIT))
    out = torch.empty(rows, n)
    some = min(len(query), _DENSE_ITEMS // 4)
    few = query[:some].numpy(), gallery[: _DENSE_ITEMS - some].numpy()

    def product() -> None:
        for start in range(0, n, rows):
            part = together[start : start + rows]
            torch.mm(part, together.T, out=out[: len(part)])

    steps: dict[str, Callable[[], object]] = {
        "product": product,
        "rerank": lambda: _rerank(query, gallery),
        "few": lambda: rerank(*few),
        "dense": lambda: rerank_densely(*few),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    median = f"median of {runs} runs" if runs > 1 else "one run"
    console.print(
        f"{len(query):,} + {len(gallery):,} items, {dimension}-d, {torch.get_num_threads()} threads, {median}"
    )
    console.print(f"  product of all {n:,} items    {at_median(times['product']):8.2f} s")
    console.print(f"  re-ranking, the whole call   {at_median(times['rerank']):8.2f} s")
    console.print(
        f"    of the product             {at_median(times['rerank'], times['product']):8.2f} ×", highlight=False
    )
    console.print(f"  {_DENSE_ITEMS:,} of the items            {at_median(times['few']):8.2f} s")
    console.print(f"  the same in the dense form   {at_median(times['dense']):8.2f} s")
    console.print(f"    of the sparse one          {at_median(times['dense'], times['few']):8.2f} ×", highlight=False)
    peak = peak_above_inputs(_rerank_synthetic, size, dimension)
    n_bytes = len(query) * len(gallery) * 4
    form = "the result in memory" if n_bytes <= _LARGEST_RESULT else "the result in blocks"
    console.print(f"  peak memory above the inputs {peak / 2**20:8.0f} MiB ({form}: {n_bytes / 2**20:,.0f} MiB)")


def _rerank(query: Features, gallery: Features) -> None:
    n_bytes = len(query) * len(gallery) * 4  # type: ignore[arg-type]
    if n_bytes <= _LARGEST_RESULT:
        rerank(query, gallery)
    else:
        for _ in rerank_blocks(query, gallery):
            pass


def _rerank_synthetic(size: str, dimension: int) -> Callable[[], object]:
    query, gallery = prepare_features(*synthetic_features(size, dimension)[:2], "cosine")
    return lambda: _rerank(query, gallery)


def rerank_densely(
    query: NDArray[np.float32], gallery: NDArray[np.float32], k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> NDArray[np.float32]:
    """The definition of `rerank` the usual way: N×N distances, N×N ranks, N×N encodings, a loop over items."""
    features = np.concatenate([query, gallery])
    n, n_query = len(features), len(query)
    squares = (features**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * features @ features.T, 0)
    np.fill_diagonal(distances, 0)
    distances /= distances.max(axis=1, keepdims=True)
    ranks = np.argsort(distances, axis=1, kind="stable")

    def reciprocal(item: int, k: int) -> NDArray[np.int64]:
        forward = ranks[item, : k + 1]
        return forward[(ranks[forward, : k + 1] == item).any(axis=1)]

    encoding = np.zeros((n, n), dtype=np.float32)
    for item in range(n):
        neighbours = reciprocal(item, k1)
        expanded = neighbours
        for other in neighbours:
            their_neighbours = reciprocal(other, round(k1 / 2))
            if 3 * len(np.intersect1d(their_neighbours, neighbours)) > 2 * len(their_neighbours):
                expanded = np.append(expanded, their_neighbours)
        expanded = np.unique(expanded)
        weights = np.exp(-distances[item, expanded])
        encoding[item, expanded] = weights / weights.sum()
    encoding = np.stack([encoding[ranks[item, :k2]].mean(axis=0) for item in range(n)])
    rows_of = [np.flatnonzero(column) for column in encoding.T]
    out = np.empty((n_query, n - n_query), dtype=np.float32)
    for item in range(n_query):
        overlap = np.zeros(n, dtype=np.float32)
        for column in np.flatnonzero(encoding[item]):
            rows = rows_of[column]
            overlap[rows] += np.minimum(encoding[item, column], encoding[rows, column])
        out[item] = 1 - (overlap / (2 - overlap))[n_query:]
    return (1 - lambda_value) * out + lambda_value * distances[:n_query, n_query:]


if __name__ == "__main__":
    main()
