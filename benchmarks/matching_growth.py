"""How time and memory of `match` grow with the number of tracklets: `python -m benchmarks.matching_growth [N ...]`.

Made, seeded features: people of 512 numbers seen 10 times each over 100 cameras, with camera bias and noise; times over
a day. Each size runs in a separate process, so that its peak of memory is measured alone. Identities are used for the
score only.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import click
import numpy as np

from benchmarks.measure import Benchmark
from reid.config import MatchSettings
from reid.core.arrays import unit_rows
from reid.mtmc import Tracklets, cluster_scores, match

VISITS, CAMERAS, DIMENSION, DAY = 10, 100, 512, 86_400.0


def synthetic_tracklets(n: int, seed: int = 0) -> tuple[Tracklets, np.ndarray]:
    rng = np.random.default_rng(seed)
    person = np.arange(n) // VISITS
    looks = rng.standard_normal((n // VISITS + 1, DIMENSION), dtype=np.float32)
    camera = rng.integers(0, CAMERAS, n)
    bias = rng.standard_normal((CAMERAS, DIMENSION), dtype=np.float32)
    made = np.empty((n, DIMENSION), np.float32)
    for rows in np.array_split(np.arange(n), max(1, n // 10_000)):
        noise = np.float32(1.3) * rng.standard_normal((len(rows), DIMENSION), dtype=np.float32)
        made[rows] = unit_rows(looks[person[rows]] + bias[camera[rows]] + noise)
    start = rng.uniform(0, DAY, n)
    order = np.lexsort((start, camera))
    names = tuple(f"cam{number:03d}" for number in range(1, CAMERAS + 1))
    unknown = np.full((n, 2), np.nan)
    start = start[order]
    tracklets = Tracklets(
        camera_names=names,
        camera=camera[order],
        track=np.arange(n),
        start=start,
        end=start + 8,
        frames=np.full(n, 200),
        features=made[order],
        has_feature=np.ones(n, bool),
        quality=np.ones(n),
        first_frame=np.round(start * 25).astype(np.int64),
        last_frame=np.round(start * 25).astype(np.int64) + 200,
        entry=unknown,
        exit=unknown,
        previous_track=np.full(n, -1),
    )
    return tracklets, person[order]


def measure(n: int, solver: str) -> None:
    tracklets, person = synthetic_tracklets(n)
    before = time.perf_counter(), time.process_time()
    result = match(tracklets, settings=MatchSettings(solver=solver))
    wall, processor = time.perf_counter() - before[0], time.process_time() - before[1]
    scores = cluster_scores(person, result.identity)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cells = (f"{n:,}", solver, f"{wall:.1f}", f"{processor:.1f}", f"{peak:.2f}", f"{len(result.links):,}")
    print(f"| {' | '.join(cells)} | {scores.pair_f1:.3f} |", flush=True)


@click.command(cls=Benchmark)
@click.argument("sizes", nargs=-1, metavar="[TRACKLETS[:SOLVER]...]")
@click.option("--one", type=(int, str), default=None, hidden=True)
def main(sizes: tuple[str, ...], one: tuple[int, str] | None) -> None:
    """Time matching at several numbers of tracklets, 1000 to 30000 by default."""
    if one is not None:
        measure(*one)
        return
    print("| tracklets | solver | seconds | of processor | peak GiB | candidate pairs | pairwise F1 |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for n in sizes or ["1000", "3000", "10000", "30000"]:
        size, _, solver = n.partition(":")
        command = [sys.executable, "-m", "benchmarks.matching_growth", "--one", size, solver or "agglomerative"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
