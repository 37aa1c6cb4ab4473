"""Speed and memory of a gallery against NumPy, in one run on the same clustered features.

NumPy's search is a product of a float32 matrix with the photo and `argpartition`; filtered, of the rows of the filter.
The two are measured in turns, so that another load on the machine affects both. Medians.
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pyarrow as pa

from benchmarks.measure import Benchmark
from reid import Embeddings, Gallery
from reid.core.console import console
from reid.gallery import GallerySettings, Scope
from reid.gallery.milvus_store import connect, parse_address
from reid.gallery.scan import distances

CAMERAS = 10


def clustered(n: int, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """Return unit rows around n / 20 centres."""
    centres = rng.standard_normal((max(n // 20, 1), dimension), dtype=np.float32)
    rows = centres[np.arange(n) % len(centres)]
    rows += 0.5 * rng.standard_normal((n, dimension), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def memory() -> float:
    """Return the resident bytes of this process."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def medians(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """Return the median seconds of functions that are called in turns."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, values in zip(functions, times, strict=True):
            began = time.perf_counter()
            function()
            values.append(time.perf_counter() - began)
    return [float(np.median(values)) for values in times]


def open_once(folder: str) -> None:
    """Print the seconds and the bytes of opening a gallery in this process."""
    gallery = Gallery.open(folder)
    len(gallery)  # imports and connects
    before, began = memory(), time.perf_counter()
    index = gallery.index()
    seconds, held = time.perf_counter() - began, memory() - before
    assert len(index)
    print(seconds, held)


def compare_proposals(gallery: Gallery, matrix: np.ndarray, photo: np.ndarray, scope: Scope, repeats: int) -> None:
    """Print the time and the recall of searches by a server against NumPy."""
    rows = np.flatnonzero(np.arange(len(matrix)) % CAMERAS == 0)
    for name, where, part in (("search", Scope(), None), ("filtered to 10%", scope, rows)):
        products = (matrix if part is None else matrix[part]) @ photo[0]
        expected = 1 - np.sort(products)[::-1][:10]
        _, _, found = gallery.nearest(photo, where, 10, None)
        recall = np.mean(np.abs(np.array([distance for distance, _ in found]) - expected) < 1e-5)
        plain, served = medians(
            repeats,
            lambda part=part: np.argpartition((matrix if part is None else matrix[part]) @ photo[0], -10)[-10:],
            lambda where=where: gallery.nearest(photo, where, 10, None),
        )
        console.print(
            f"{name}: NumPy {1e3 * plain:.1f} ms; Milvus {1e3 * served:.1f} ms, {served / plain:.2f} x; recall of 10 "
            f"{recall:.2f}"
        )


@click.command(cls=Benchmark)
@click.option("--rows", default=186_000, show_default=True)
@click.option("--dimension", default=512, show_default=True)
@click.option("--repeats", default=15, show_default=True)
@click.option("--batch", default=200_000, show_default=True, help="Rows of one addition.")
@click.option("--store", help="Milvus address of a new collection for the rows; dropped at the end.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for the gallery.  [default: a temporary one]")
def main(rows: int, dimension: int, repeats: int, batch: int, store: str | None, work: Path | None) -> None:
    """Add, open and search ROWS rows; print ratios to NumPy."""
    rng = np.random.default_rng(0)
    kept: list[np.ndarray] = []
    with tempfile.TemporaryDirectory(dir=work) as folder, contextlib.ExitStack() as end:
        gallery = Gallery.create(Path(folder) / "g", GallerySettings(audit=False, store=store))
        if store is not None:
            end.callback(lambda: connect(store).drop_collection(parse_address(store).name))
        seconds = 0.0
        for number, start in enumerate(range(0, rows, batch)):
            features = clustered(min(batch, rows - start), dimension, rng)
            camids = np.arange(len(features)) % CAMERAS
            table = Embeddings(features, camids=camids, tracks=np.arange(len(features)), frames=camids)
            began = time.perf_counter()
            gallery.add(table, source=str(number))
            seconds += time.perf_counter() - began
            kept += [] if store is None else [features.astype(np.float16)]
            del table, features
        console.print(f"add: {rows / seconds:,.0f} rows/s")
        code = f"from benchmarks.gallery_speed import open_once; open_once({str(gallery.path.absolute())!r})"
        root = Path(__file__).resolve().parents[1]
        printed = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root)
        seconds, held = map(float, printed.split()[-2:])
        console.print(
            f"open in a new process: {seconds:.2f} s, {200_000 * seconds / rows:.2f} s per 200,000 rows; memory "
            f"{held / 1e6:,.0f} MB, {held / (2 * rows * dimension):.2f} x the float16 matrix"
        )
        index = Gallery.open(gallery.path).index()
        photo = clustered(1, dimension, rng)
        scope = Scope((index.cameras[0],))
        chosen = index.rows_in(scope)
        assert chosen is not None
        if store is not None:
            compare_proposals(gallery, np.concatenate(kept).astype(np.float32), photo, scope, repeats)
        elif rows <= 500_000:
            matrix = index.matrix.astype(np.float32)
            plain, ours, whole, plain_part, ours_part, whole_part = medians(
                repeats,
                lambda: np.argpartition(matrix @ photo[0], -10)[-10:],
                lambda: distances(index.matrix, photo),
                lambda: index.nearest(photo, index.rows_in(Scope()), 10, None),
                lambda: np.argpartition(matrix[chosen] @ photo[0], -10)[-10:],
                lambda: distances(index.matrix, photo, chosen),
                lambda: index.nearest(photo, index.rows_in(scope), 10, None),
            )
            console.print(
                f"search: NumPy {1e3 * plain:.1f} ms; scan {ours / plain:.2f} x; with the best tracklets "
                f"{whole / plain:.2f} x"
            )
            console.print(
                f"filtered to {len(chosen) / rows:.0%}: NumPy {1e3 * plain_part:.1f} ms; scan "
                f"{ours_part / plain_part:.2f} x; with filter and best tracklets {whole_part / plain_part:.2f} x"
            )
        opened = Gallery.open(gallery.path)
        opened.search(photo)
        (seconds,) = medians(repeats, lambda: opened.search(photo))
        console.print(f"Gallery.search with all columns of 10 hits: {1e3 * seconds:.1f} ms")


if __name__ == "__main__":
    main()
