"""Speed from crops to batches: packing, reading and augmenting on one core.

Each size is packed in a temporary folder, then read and augmented in one thread, in P x K batches of 16 x 4.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import click
import cv2
import numpy as np
import torch

from benchmarks.measure import Benchmark
from reid.config import AugmentConfig
from reid.core.console import console
from reid.data.augment import Augment
from reid.data.crops import Crops
from reid.data.layouts import load_benchmark
from reid.data.loader import LoaderOptions, TrainLoader
from reid.data.samplers import IdentitySampler
from reid.data.store import FileStore, PackedStore


@click.command(cls=Benchmark)
@click.argument("source", required=False, metavar="[LAYOUT:ROOT]")
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(1), help="Epochs; the median counts.")
@click.option("--crops", "n_crops", default=4000, show_default=True, type=click.IntRange(256), help="Crops of noise.")
def main(source: str | None, epochs: int, n_crops: int) -> None:
    """Time packing, reading and augmenting crops on one core (on noise without a data set)."""

    def noise(folder: Path, n: int) -> Crops:
        rng = np.random.default_rng(0)
        paths = [folder / f"{i}.jpg" for i in range(n)]
        for path in paths:
            cv2.imwrite(str(path), rng.integers(0, 256, (128, 64, 3), dtype=np.uint8))
        return Crops.from_columns(paths, np.arange(n) // 16, np.arange(n) % 4)

    def rate(store: PackedStore | FileStore, augment: Augment) -> float:
        sampler = IdentitySampler(crops.pids, crops.camids)
        batches = TrainLoader(store, crops.labels()[0], crops, sampler, augment, LoaderOptions(prefetch=0))
        rates = []
        for epoch in range(epochs):
            batches.set_epoch(epoch)
            start = time.perf_counter()
            n = sum(len(batch.labels) for batch in batches)
            rates.append(n / (time.perf_counter() - start))
        return statistics.median(rates)

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        crops = load_benchmark(source).train if source else noise(folder, n_crops)
        for size in ((128, 64), (256, 128)):
            console.print(f"{size[0]}×{size[1]}, {len(crops):,} crops")
            for workers in (1, 2):
                start = time.perf_counter()
                store = PackedStore.build(crops, folder / f"{size[0]}-{workers}", size=size, workers=workers)
                console.print(f"  pack with {workers} threads: {time.perf_counter() - start:.2f} s")
            start = time.perf_counter()
            PackedStore.build(crops, folder / f"{size[0]}-2", size=size)
            console.print(f"  open again: {time.perf_counter() - start:.3f} s")
            jitter = Augment(size, AugmentConfig(brightness=0.2, contrast=0.15, saturation=0.1))
            files = FileStore(crops, size=size, workers=1)
            for description, source_store, augment in (
                ("packed, augmented", store, Augment(size)),
                ("packed, augmented with colour", store, jitter),
                ("JPEG files, augmented", files, Augment(size)),
            ):
                console.print(f"  {description}: {rate(source_store, augment):,.0f} crops a second")


if __name__ == "__main__":
    main()
