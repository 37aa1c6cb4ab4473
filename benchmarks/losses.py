"""Speed of the triplet loss against pytorch-metric-learning and loops over anchors, on synthetic features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.measure import Benchmark, at_median, peak_above_inputs
from reid.core.console import console
from reid.core.errors import ReidError
from reid.losses import TripletLoss

MARGIN = 0.3
CROPS_PER_ID = 4

LOOP_UP_TO = 512
"""Batch up to which the loops are run: their graph has a matrix for every anchor."""

Loss = Callable[[Tensor, Tensor], Tensor]

# Semi-hard of pytorch-metric-learning is all semi-hard triplets, or one an anchor; reid's and the loop's is one a pair.
ROWS = {
    "batch-hard": ("reid", "pml", "loop"),
    "batch-all": ("reid", "pml", "loop"),
    "semi-hard": ("reid", "pml", "pml, one an anchor", "loop"),
}
LABELS = {
    "reid": "reid",
    "pml": "pytorch-metric-learning",
    "pml, one an anchor": "  the same, one triplet an anchor",
    "loop": "loop over anchors",
}


@click.command(cls=Benchmark)
@click.option(
    "--size", "sizes", default=(64, 512, 4096), show_default=True, multiple=True, type=click.IntRange(5),
    help="Crops in a batch, four of each identity; may be repeated.",
)  # fmt: skip
@click.option("--dimension", default=2048, show_default=True, type=click.IntRange(1), help="Length of a feature.")
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Rounds; the median counts.")
def main(sizes: tuple[int, ...], dimension: int, runs: int) -> None:
    """Time forward and backward of the triplet loss on synthetic features."""
    _pml("batch-hard")
    for size in sizes:
        console.print(
            f"{size:,} crops, {dimension}-d, {torch.get_num_threads()} threads, forward and backward, median of {runs}"
        )
        for mining, names in ROWS.items():
            _bench_one(mining, [n for n in names if n != "loop" or size <= LOOP_UP_TO], size, dimension, runs)


def _bench_one(mining: str, names: Sequence[str], size: int, dimension: int, runs: int) -> None:
    peaks = {name: _peak(mining, name, size, dimension) for name in names}
    steps = {name: _step(mining, name, size, dimension) for name in names if peaks[name]}
    results = {name: step() for name, step in steps.items()}
    same = [value for name, value in results.items() if mining != "semi-hard" or name in ("reid", "loop")]
    if max(same) - min(same) > 1e-3 * results["reid"]:
        raise ReidError(f"The losses of {mining} differ: {results}.")
    times: dict[str, list[float]] = {name: [] for name in steps}
    repeats = max(1, 1024 // size)
    for _ in range(runs):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            times[name].append((time.perf_counter() - start) / repeats)
    for name in steps:
        ratio = "" if name == "reid" else f"{at_median(times[name], times['reid']):8.2f} ×"
        console.print(
            f"  {mining:10} {LABELS[name]:34} {1000 * at_median(times[name]):10.2f} ms {ratio:10} "
            f"{peaks[name] / 2**20:8.0f} MiB",
            highlight=False,
        )


def _peak(mining: str, name: str, size: int, dimension: int) -> int:
    """Return the bytes above the inputs; 0, with a message, if there is too little memory."""
    try:
        return peak_above_inputs(_step, mining, name, size, dimension)
    except ReidError as error:
        console.print(f"  {mining:10} {LABELS[name]:34} does not run. {error}", highlight=False)
        return 0


def _step(mining: str, name: str, size: int, dimension: int) -> Callable[[], float]:
    """Forward and backward of synthetic features, so close that about half of all triplets are active.

    Where none is, pytorch-metric-learning has no backward pass to make.
    """
    generator = torch.Generator().manual_seed(0)
    pids = torch.arange(size) // CROPS_PER_ID
    features = torch.randn(size, dimension, generator=generator)
    features += 0.1 * torch.randn(int(pids[-1]) + 1, dimension, generator=generator)[pids]
    loss = {"reid": _reid, "loop": _loop}.get(name, _pml)(mining, *(["anchor"] if "anchor" in name else []))

    def step() -> float:
        leaf = features.detach().requires_grad_()
        value = loss(leaf, pids)
        value.backward()
        return value.item()

    return step


def _reid(mining: str) -> Loss:
    return TripletLoss(MARGIN, mining.replace("-", "_"), reduction="active")


def _pml(mining: str, per: str = "pair") -> Loss:
    try:
        from pytorch_metric_learning import distances, losses, miners
    except ImportError as error:
        raise ReidError(
            "This compares with pytorch-metric-learning, which is not installed: pip install pytorch-metric-learning."
        ) from error
    distance = distances.LpDistance(normalize_embeddings=False)
    criterion = losses.TripletMarginLoss(margin=MARGIN, distance=distance)
    if mining == "batch-all":
        return lambda features, pids: criterion(features, pids)
    miner: Any
    if mining == "batch-hard":
        miner = miners.BatchHardMiner(distance=distance)
    elif per == "pair":
        miner = miners.TripletMarginMiner(MARGIN, "semihard", distance=distance)
    else:
        miner = miners.BatchEasyHardMiner("hard", "semihard", distance=distance)
    return lambda features, pids: criterion(features, pids, miner(features, pids))


def _loop(mining: str) -> Loss:
    """Process one anchor at a time; all distances are computed together."""

    def loss(features: Tensor, pids: Tensor) -> Tensor:
        distances = torch.cdist(features, features)
        parts: list[Tensor] = []
        for anchor in range(len(pids)):
            same = pids == pids[anchor]
            negatives = distances[anchor][~same]
            same[anchor] = False
            positives = distances[anchor][same]
            if mining == "batch-hard":
                parts.append((positives.max() - negatives.min() + MARGIN).relu())
            elif mining == "batch-all":
                parts += [(positive - negatives + MARGIN).relu() for positive in positives]
            else:
                for positive in positives:
                    beyond = negatives[negatives > positive]
                    parts.append((positive - (beyond.min() if len(beyond) else negatives.max()) + MARGIN).relu())
        losses = torch.cat([part.flatten() for part in parts])
        return losses.sum() / (losses > 0).sum().clamp(min=1)

    return loss


if __name__ == "__main__":
    main()
