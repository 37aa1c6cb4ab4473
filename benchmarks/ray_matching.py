"""Matching with neighbours found on Ray against one process: `python -m benchmarks.ray_matching [TRACKLETS]`.

The tracklets of `matching_growth`, exact neighbours, two Ray workers on this machine. Prints whether the identities are
equal, and the time of the search and of everything else.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from pathlib import Path

import click
import numpy as np

from benchmarks.matching_growth import synthetic_tracklets
from benchmarks.measure import Benchmark
from benchmarks.ray_embedding import ProcessorTime
from reid.config import MatchSettings
from reid.evaluation.neighbour_search import find_neighbours
from reid.mtmc import match
from reid.mtmc.ray_neighbours import find_neighbours_on_ray


@click.command(cls=Benchmark)
@click.argument("tracklets", default=10_000)
def main(tracklets: int) -> None:
    """Match synthetic tracklets with neighbours found by one process and by two Ray workers, and compare."""
    made, _ = synthetic_tracklets(tracklets)
    identities = []
    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory() as folder:
        on_ray = partial(find_neighbours_on_ray, folder=Path(folder) / "neighbours", workers=2)
        for name, find in (("one process", find_neighbours), ("Ray", on_ray)):
            spent = list[float]()

            def search(features: np.ndarray, k: int, find=find, spent=spent):  # type: ignore[no-untyped-def]
                begin = time.perf_counter()
                with ProcessorTime() as used:
                    found = find(features, k)
                spent[:] = time.perf_counter() - begin, used.seconds
                return found

            begin = time.perf_counter()
            with ProcessorTime() as used:
                result = match(made, settings=MatchSettings(neighbour_search="exact"), search=search)
            identities.append(result.identity)
            wall = time.perf_counter() - begin
            print(
                f"{name}: {wall:.0f} s, {used.seconds:.1f} s of processor time; search {spent[0]:.0f} s, "
                f"{spent[1]:.1f} s of processor time; {result.identity.max():,} identities",
                flush=True,
            )
    print(f"identities are {'equal' if np.array_equal(*identities) else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
