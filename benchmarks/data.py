"""How fast crops become batches: `python benchmarks/data.py [LAYOUT ROOT]`; without a data set, on noise.

Each size is packed in a temporary folder, then read and augmented in this thread, one OpenCV thread; the best of five
epochs counts, since other work on the machine only slows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from reid.data.augment import Augment
from reid.data.crops import Crops
from reid.data.layouts import load_benchmark
from reid.data.loader import TrainLoader
from reid.data.packed import FileStore, PackedStore
from reid.data.samplers import IdentitySampler

EPOCHS = 5


def noise(folder: Path, n: int = 4000) -> Crops:
    """`n` JPEG files of 128×64 noise, 16 an identity."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.jpg" for i in range(n)]
    for path in paths:
        cv2.imwrite(str(path), rng.integers(0, 256, (128, 64, 3), dtype=np.uint8))
    return Crops.of(paths, np.arange(n) // 16, np.arange(n) % 4)


def best_rate(crops: Crops, store: PackedStore | FileStore, augment: Augment) -> float:
    """Augmented crops a second, the best of `EPOCHS`."""
    sampler = IdentitySampler(crops.pids, crops.camids)
    loader = TrainLoader(store, crops.labels()[0], crops, sampler, augment, prefetch=0)
    rates = []
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        start = time.perf_counter()
        n = sum(len(batch.labels) for batch in loader)
        rates.append(n / (time.perf_counter() - start))
    return max(rates)


def main() -> None:
    """Print one line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layout", nargs="?")
    parser.add_argument("root", nargs="?")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        crops = load_benchmark(arguments.layout, arguments.root).train if arguments.root else noise(folder)
        for size in ((128, 64), (256, 128)):
            name = f"{size[0]}×{size[1]}"
            for workers in (1, 2):
                start = time.perf_counter()
                store = PackedStore.build(crops, folder / f"{name}-{workers}", size=size, workers=workers)
                took = time.perf_counter() - start
                rate = len(crops) / took
                print(f"{name} pack {len(crops):,} crops, {workers} threads: {took:.2f} s, {rate:,.0f} a second")
            start = time.perf_counter()
            PackedStore.build(crops, folder / f"{name}-2", size=size)
            print(f"{name} open again: {time.perf_counter() - start:.3f} s")
            print(f"{name} packed, augmented: {best_rate(crops, store, Augment(size)):,.0f} crops a second")
            jitter = Augment(size, brightness=0.2, contrast=0.15, saturation=0.1)
            print(f"{name} packed, augmented with colour: {best_rate(crops, store, jitter):,.0f} crops a second")
            files = FileStore(crops, size=size, workers=1)
            print(f"{name} files, augmented: {best_rate(crops, files, Augment(size)):,.0f} crops a second")


if __name__ == "__main__":
    main()
