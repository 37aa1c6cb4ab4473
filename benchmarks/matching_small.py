"""The threshold found without labels, on few people: `python -m benchmarks.matching_small FILE.npz … [WORLD PARQUET]`.

The files are those of `measure_market`, WORLD and PARQUET those of `measure_streets`. Of the people seen twice or
more 10, 25 and 50 are drawn six times each: mean pairwise F1 and B³ at the threshold found, and by how much the F1 of
the best by the truth of 0.5, 0.6 … 0.9 is higher, from the least to the most. Of all people likewise, without that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from benchmarks.matching_market import market_tracklets
from benchmarks.matching_synthetic import true_identities
from benchmarks.measure import Benchmark
from reid.config import MatchSettings
from reid.embedding.table import Embeddings
from reid.mtmc import Cameras, Tracklets, cluster_scores, match
from reid.mtmc.cameras import read_cameras
from reid.mtmc.track_files import read_tracks

PEOPLE, DRAWS = (10, 25, 50, None), 6

People = tuple[str, Tracklets, np.ndarray, Cameras | None]


def sources(paths: list[str]) -> Iterator[People]:
    for before, path in zip(["", *paths], paths, strict=False):
        if path.endswith(".npz"):
            yield Path(path).stem, *market_tracklets(path), None
        elif path.endswith(".parquet"):
            world = Path(before)
            tracks, truth = read_tracks(world / "tracks"), read_tracks(world / "truth")
            cameras = read_cameras(world / "cameras.yaml", tracks.camera_names)
            names = dict(enumerate(tracks.camera_names))
            tracklets = Tracklets.from_tracks(tracks, Embeddings.load(path), cameras, camera_names=names)
            yield "streets", tracklets, true_identities(truth, tracks, tracklets), cameras


@click.command(cls=Benchmark)
@click.argument("files", nargs=-1, required=True, metavar="FILE.npz... [WORLD PARQUET]")
def main(files: tuple[str, ...]) -> None:
    """Match small groups of people and compare the automatic threshold with the best one."""
    print("| | people | F1 | B³ F1 | best threshold's F1 is higher by |\n|---|---|---|---|---|")
    for name, tracklets, person, cameras in sources(list(files)):
        for people in PEOPLE:
            found, missed = [], []
            for seed in range(DRAWS if people else 1):
                who = np.unique(person)
                if people:
                    who = np.random.default_rng(seed).permutation(who)[:people]
                rows = np.flatnonzero(np.isin(person, who))
                part = tracklets.take(rows)
                scores = cluster_scores(person[rows], match(part, cameras=cameras).identity)
                found.append((scores.pair_f1, scores.b3_f1))
                if people is None:
                    break
                others = [
                    match(part, cameras=cameras, settings=MatchSettings(threshold=threshold))
                    for threshold in np.arange(0.5, 0.96, 0.1)
                ]
                best = max(cluster_scores(person[rows], other.identity).pair_f1 for other in others)
                missed.append(max(best - scores.pair_f1, 0.0))
            f1, b3 = np.mean(found, axis=0)
            more = f"{min(missed):.3f} to {max(missed):.3f}" if missed else ""
            print(f"| {name} | {people or 'all'} | {f1:.3f} | {b3:.3f} | {more} |", flush=True)


if __name__ == "__main__":
    main()
