"""Speed of ranking against one matrix product and against sorting every row, on synthetic features."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import Benchmark, at_median, peak_above_inputs
from reid.core.console import console
from reid.evaluation import evaluate, evaluate_distances
from reid.evaluation.features import MEMORY_LIMIT, distance_blocks, prepare_features, rows_per_block

SIZES = {"market": (3_368, 15_913, 750, 6), "msmt17": (11_659, 82_161, 3_060, 15), "small": (40, 400, 20, 4)}
"""Queries, gallery items, identities and cameras, as in the test splits of Market-1501 and MSMT17; small for tests."""

Arrays = tuple[Any, Any, Any, Any, Any, Any]


def synthetic_features(size: str, dimension: int, clustered: bool = True, seed: int = 0) -> Arrays:
    """The six arguments of `evaluate`: one cluster per person, with some outliers; or random points."""
    n_query, n_gallery, n_ids, n_cameras = SIZES[size]
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n_ids, dimension), dtype=np.float32)
    columns: list[NDArray[np.int64]] = []
    features: list[NDArray[np.float32]] = []
    for n in (n_query, n_gallery):
        pids = rng.integers(0, n_ids, n)
        rows = rng.standard_normal((n, dimension), dtype=np.float32)
        rows *= 3 * (dimension / 2048) ** 0.25 * rng.lognormal(0, 0.35, (n, 1)).astype(np.float32)
        for start in range(0, n if clustered else 0, 4096):
            rows[start : start + 4096] += centres[pids[start : start + 4096]]
        features.append(rows)
        columns.append(pids)
    cameras = [rng.integers(1, n_cameras + 1, n) for n in (n_query, n_gallery)]
    return (features[0], features[1], columns[0], columns[1], cameras[0], cameras[1])


def evaluate_by_sorting(
    distances: NDArray[np.float32],
    query_pids: NDArray[np.int64],
    gallery_pids: NDArray[np.int64],
    query_camids: NDArray[np.int64],
    gallery_camids: NDArray[np.int64],
    kind: Literal["quicksort", "stable"],
) -> tuple[float, float]:
    """mAP and rank-1 the usual way: every row of `[Q, G]` sorted, then looked at whole."""
    order = np.argsort(distances, axis=1, kind=kind)
    right = gallery_pids[order] == query_pids[:, None]
    first, aps = [], []
    for query, ranked in enumerate(order):
        kept = ~(right[query] & (gallery_camids[ranked] == query_camids[query]))
        hits = right[query][kept]
        if hits.any():
            found = hits.cumsum()
            first.append(hits[0])
            aps.append(((found / np.arange(1, len(hits) + 1)) * hits).sum() / found[-1])
    return float(np.mean(aps)), float(np.mean(first))


@click.command(cls=Benchmark)
@click.option("--size", default="market", show_default=True, type=click.Choice(list(SIZES)))
@click.option("--dimension", default=2048, show_default=True, type=click.IntRange(1), help="Length of a feature.")
@click.option(
    "--features", default="clustered", show_default=True, type=click.Choice(["clustered", "random"]),
    help="random: the last match of a query is far down its list, the slow case of ranking.",
)  # fmt: skip
@click.option("--processor-time", is_flag=True, help="Measure CPU time, which other processes disturb less.")
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Runs; the median counts.")
def main(size: str, dimension: int, features: str, runs: int, processor_time: bool) -> None:
    """Time ranking on synthetic features."""
    clustered = features == "clustered"
    arrays = synthetic_features(size, dimension, clustered)
    query, gallery = prepare_features(arrays[0], arrays[1], "cosine")
    rows = rows_per_block(len(gallery), MEMORY_LIMIT)
    out = torch.empty(rows, len(gallery))

    def product() -> None:
        for start in range(0, len(query), rows):
            part = query[start : start + rows]
            torch.mm(part, gallery.T, out=out[: len(part)])

    def plain_squares() -> None:
        for start in range(0, len(query), rows):
            part = query[start : start + rows]
            block = torch.addmm(gallery.square().sum(dim=1), part, gallery.T, alpha=-2, out=out[: len(part)])
            block.add_(part.square().sum(dim=1, keepdim=True))

    def exact_squares() -> None:
        for _ in distance_blocks(query, gallery, "euclidean", MEMORY_LIMIT):
            pass

    # Sorting stores whole rows of indices, so some hundred queries are timed and their time is scaled.
    sample = min(len(query), 1024)
    distances = next(iter(distance_blocks(query[:sample], gallery, "cosine", 4 * sample * len(gallery))))[1]
    labels = (arrays[2][:sample], arrays[3], arrays[4][:sample], arrays[5])

    def ranking() -> object:
        return evaluate_distances(distances, *labels)

    steps: dict[str, Callable[[], object]] = {
        "product": product,
        "plain squares": plain_squares,
        "exact squares": exact_squares,
        "evaluate": lambda: evaluate(*arrays),
        "ranking": ranking,
        "sorting": lambda: evaluate_by_sorting(distances, *labels, "quicksort"),
        "stable sorting": lambda: evaluate_by_sorting(distances, *labels, "stable"),
    }
    clock = time.process_time if processor_time else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    n_query, n_gallery = len(query), len(gallery)
    console.print(
        f"{n_query:,} × {n_gallery:,}, {dimension}-d, {features}, {torch.get_num_threads()} threads, "
        f"median of {runs} runs"
    )
    result = evaluate(*arrays)
    console.print(f"  mAP {100 * result.mAP:.2f}, mINP {100 * result.mINP:.2f}, rank-1 {100 * result.rank(1):.2f}")
    console.print(f"  one matrix product           {at_median(times['product']):8.3f} s")
    console.print(f"  evaluate, the whole call     {at_median(times['evaluate']):8.3f} s")
    console.print(
        f"    of the product             {at_median(times['evaluate'], times['product']):8.2f} ×", highlight=False
    )
    ratio = at_median(times["exact squares"], times["plain squares"])
    console.print(f"  Euclidean distances          {at_median(times['exact squares']):8.3f} s")
    console.print(f"    of the float32 formula     {ratio:8.2f} ×", highlight=False)
    scale = n_query / sample
    console.print(f"  evaluate_distances           {scale * at_median(times['ranking']):8.3f} s")
    for kind, description in (
        ("sorting", "sorting every row           "),
        ("stable sorting", "the same, ties in their order"),
    ):
        console.print(f"  {description} {scale * at_median(times[kind]):8.3f} s")
        console.print(f"    ranking is faster by       {at_median(times[kind], times['ranking']):8.1f} ×")
    peak = peak_above_inputs(_evaluate_synthetic, size, dimension, clustered)
    console.print(f"  peak memory above the inputs {peak / 2**20:8.0f} MiB")


def _evaluate_synthetic(size: str, dimension: int, clustered: bool) -> Callable[[], object]:
    arrays = synthetic_features(size, dimension, clustered)
    return lambda: evaluate(*arrays)


if __name__ == "__main__":
    main()
