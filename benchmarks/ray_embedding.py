"""`embed_to_parquet` on Ray against the same in one process: `python -m benchmarks.ray_embedding [--crops N]`.

JPEG files of 128 × 64 pixels are embedded with an untrained `light10`, one worker against one thread, first a fifth of
the files and then all. The difference of the two is the steady state: opening the model and starting Ray cancel out.
The time of Ray is that of all its processes.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import click
import cv2
import numpy as np

from benchmarks.measure import Benchmark
from reid import Embedder, Embeddings
from reid.embedding.ray_cluster import RayCluster
from reid.embedding.stream import embed_to_parquet
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint


class ProcessorTime:
    """Seconds of processor time of this process and of all processes that it started, while it is open."""

    def __init__(self) -> None:
        self._start: dict[tuple[int, str], float] = {}
        self._last: dict[tuple[int, str], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProcessorTime:
        self._start = self._sample()
        self._last = dict(self._start)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._last |= self._sample()

    @property
    def seconds(self) -> float:
        return sum(value - self._start.get(key, 0.0) for key, value in self._last.items())

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self._last |= self._sample()

    @staticmethod
    def _sample() -> dict[tuple[int, str], float]:
        """Return the time of each process by its number and start."""
        parent, found = {}, {}
        for entry in os.listdir("/proc"):
            if not entry.isdecimal():
                continue
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parent[int(entry)] = int(fields[1])
            found[int(entry)] = (fields[19], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))

        def is_own(process: int) -> bool:
            while process > 1:
                if process == os.getpid():
                    return True
                process = parent.get(process, 0)
            return False

        return {(process, start): value for process, (start, value) in found.items() if is_own(process)}


def draw(folder: Path, n: int) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{number:06d}.jpg") for number in range(n)]
    for path in paths:
        small = rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)
        cv2.imwrite(path, cv2.resize(small, (64, 128), interpolation=cv2.INTER_CUBIC))
    return paths


@click.command(cls=Benchmark)
@click.option("--crops", "n", default=25_600, help="Files to embed.")
def main(n: int) -> None:
    """Compare the processor time of `embed --engine ray` with that of one process, per crop."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "crops").mkdir()
        paths = draw(folder / "crops", n)
        model = str(folder / "model.pt")
        save_checkpoint(model, build_model("light10", height=128, width=64))
        open_embedder = partial(Embedder, model, device="cpu", threads=1)
        sizes = (n // 5, n)
        ray.init(num_cpus=4, object_store_memory=500_000_000, include_dashboard=False, log_to_driver=False)
        spent: dict[str, list[float]] = {"loop": [], "Ray": []}
        for how, cluster in (("Ray", RayCluster(open_embedder, workers=1)), ("loop", None)):
            for size in sizes:
                out = folder / f"{how}-{size}.parquet"
                begin = time.perf_counter()
                with ProcessorTime() as used:
                    done = embed_to_parquet(open_embedder(), paths[:size], out, cluster=cluster)
                assert done is not None
                spent[how].append(used.seconds)
                wall = time.perf_counter() - begin
                print(f"{how}: {done.rows:,} crops, {used.seconds:.1f} s of processor time, {wall:.0f} s", flush=True)
        ray.shutdown()
        steady = {how: (all_of - few) / (sizes[1] - sizes[0]) * 1e3 for how, (few, all_of) in spent.items()}
        ratio = steady["Ray"] / steady["loop"]
        print(f"steady state per crop: loop {steady['loop']:.3f} ms, Ray {steady['Ray']:.3f} ms, ratio {ratio:.3f}")
        one, other = (Embeddings.load(folder / f"{how}-{n}.parquet") for how in ("loop", "Ray"))
        assert one.paths is not None
        assert other.paths is not None
        assert one.paths.tolist() == other.paths.tolist()
        print(f"largest difference of the features: {np.abs(one.features - other.features).max():.1e}")


if __name__ == "__main__":
    main()
