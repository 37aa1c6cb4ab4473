"""`reid bench`: speed claims that anyone can measure again."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("bench")
def command() -> None:
    """Measure speed on this machine; docs/benchmarks.md has ours."""


@command.command()
@click.argument("source", required=False, metavar="[LAYOUT:ROOT]")
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(1), help="Of which the median counts.")
def loader(source: str | None, epochs: int) -> None:
    """How fast crops become batches on one core; without a data set, on noise.

    Each size is packed in a temporary folder, then read and augmented in one thread, P x K batches of 16 x 4.
    """
    import statistics
    import tempfile
    import time
    from pathlib import Path

    import cv2
    import numpy as np
    import torch

    from reid.core.console import console
    from reid.data.augment import Augment
    from reid.data.crops import Crops
    from reid.data.loader import TrainLoader
    from reid.data.samplers import IdentitySampler
    from reid.data.sources import load_source
    from reid.data.store import FileStore, PackedStore

    def noise(folder: Path, n: int = 4000) -> Crops:
        rng = np.random.default_rng(0)
        paths = [folder / f"{i}.jpg" for i in range(n)]
        for path in paths:
            cv2.imwrite(str(path), rng.integers(0, 256, (128, 64, 3), dtype=np.uint8))
        return Crops.from_columns(paths, np.arange(n) // 16, np.arange(n) % 4)

    def rate(store: PackedStore | FileStore, augment: Augment) -> float:
        sampler = IdentitySampler(crops.pids, crops.camids)
        batches = TrainLoader(store, crops.labels()[0], crops, sampler, augment, prefetch=0)
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
        crops = load_source(source).train if source else noise(folder)
        for size in ((128, 64), (256, 128)):
            console.print(f"{size[0]}×{size[1]}, {len(crops):,} crops")
            for workers in (1, 2):
                start = time.perf_counter()
                store = PackedStore.build(crops, folder / f"{size[0]}-{workers}", size=size, workers=workers)
                console.print(f"  pack with {workers} threads: {time.perf_counter() - start:.2f} s")
            start = time.perf_counter()
            PackedStore.build(crops, folder / f"{size[0]}-2", size=size)
            console.print(f"  open again: {time.perf_counter() - start:.3f} s")
            jitter = Augment(size, brightness=0.2, contrast=0.15, saturation=0.1)
            files = FileStore(crops, size=size, workers=1)
            for words, source_store, augment in (
                ("packed, augmented", store, Augment(size)),
                ("packed, augmented with colour", store, jitter),
                ("JPEG files, augmented", files, Augment(size)),
            ):
                console.print(f"  {words}: {rate(source_store, augment):,.0f} crops a second")


@command.command()
@click.option("--size", default="market", show_default=True, type=click.Choice(["market", "msmt17"]))
@click.option("--dimension", default=2048, show_default=True, type=click.IntRange(1), help="Numbers in a feature.")
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Of which the median counts.")
def evaluate(size: str, dimension: int, runs: int) -> None:
    """Ranking against one matrix product and against sorting every row, on made features."""
    from benchmarks.ranking import bench_evaluate

    bench_evaluate(size, dimension, runs)


@command.command()
@click.option("--size", default="market", show_default=True, type=click.Choice(["market", "msmt17"]))
@click.option("--dimension", default=2048, show_default=True, type=click.IntRange(1), help="Numbers in a feature.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1), help="Of which the median counts.")
def rerank(size: str, dimension: int, runs: int) -> None:
    """Exact re-ranking against one product of all items, and against the dense form, on made features."""
    from benchmarks.reranking import bench_rerank

    bench_rerank(size, dimension, runs)


@command.command()
@click.argument("source", required=False, metavar="[LAYOUT:ROOT]")
@click.option(
    "--model", "models", multiple=True, type=click.Choice(["resnet50", "osnet_x1_0", "osnet_x0_25"]),
    help="May be repeated.  [default: all three]",
)  # fmt: skip
@click.option("--peer", type=click.Path(path_type=Path), help="A copy of deep-person-reid's source, for the baseline.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1), help="Of every way.")
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0), help="A way in each round, about.")
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1), help="Of whose ratios the median counts."
)
def embed(
    source: str | None, models: tuple[str, ...], peer: Path | None, threads: int, seconds: float, rounds: int
) -> None:
    """From JPEG files to embeddings: torchreid's extractor (or a plain loop), and our runtimes, on the CPU.

    Without a data set, made pictures; weights are random. int8 is timed whatever it does to the embeddings.
    """
    from benchmarks.embedding import bench_embed

    bench_embed(source, models or ("resnet50", "osnet_x1_0", "osnet_x0_25"), peer, threads, seconds, rounds)


@command.command()
@click.option("--size", "sizes", default=(64, 512, 4096), show_default=True, multiple=True, type=click.IntRange(5))
@click.option("--dimension", default=2048, show_default=True, type=click.IntRange(1), help="Numbers in a feature.")
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), help="Of which the median counts.")
def losses(sizes: tuple[int, ...], dimension: int, runs: int) -> None:
    """The triplet loss against pytorch-metric-learning and loops over anchors, on made features.

    A --size is the crops in a batch; give it more than once for several.
    """
    from benchmarks.losses import bench_losses

    bench_losses(sizes, dimension, runs)


@command.command()
@click.option("--backbone", default="resnet50", show_default=True)
@click.option("--size", type=(int, int), default=(256, 128), show_default=True, help="Height and width in pixels.")
@click.option("--steps", default=5, show_default=True, type=click.IntRange(1), help="Of which the median counts.")
@click.option("--torchreid", type=click.Path(), metavar="FOLDER", help="Source tree of torchreid, to time its step.")
def step(backbone: str, size: tuple[int, int], steps: int, torchreid: str | None) -> None:
    """A training step of 16 x 4 crops on the CPU against a plain torch loop, and against torchreid's engine."""
    from benchmarks.training_step import bench_step

    bench_step(backbone, size, steps, torchreid)
