"""What the answers of a person are worth: match tracklets with answers to the most doubtful pairs, simulated by truth.

reid embed --model runs/demo/run --data market1501:ROOT --split train --out train.parquet
python -m benchmarks.adaptation_answers train.parquet
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from benchmarks.measure import Benchmark
from reid import Embeddings
from reid.data.crops import Crops
from reid.mtmc import cluster_scores, match
from reid.mtmc.constraints import Constraints
from reid.pipelines.tracked_crops import tracklets_of

COUNTS = (50, 200, 1000)


def show(answers: int, truth: np.ndarray, found: np.ndarray) -> None:
    """Print the scores of a match."""
    scores = cluster_scores(truth, found)
    print(
        f"{answers:5} answers: {found.max():5} identities, pairs {scores.pair_precision:.3f} / "
        f"{scores.pair_recall:.3f} / F1 {scores.pair_f1:.3f}, B3 {scores.b3_f1:.3f}"
    )


@click.command(cls=Benchmark)
@click.argument("file", type=click.Path(path_type=Path))
def main(file: Path) -> None:
    """Print the scores with 0, 50, 200 and 1,000 answers; FILE: embeddings with pid, camid, track, frame and path."""
    table = Embeddings.load(file)
    paths = [] if table.paths is None else list(table.paths)
    tracked = tracklets_of(Crops.from_columns(paths, table.pids, table.camids, table.tracks, table.frames))
    tracklets = tracked.tracklets(table.features)
    pids = np.zeros(len(tracked), np.int64)
    pids[tracked.crops.tracks] = tracked.crops.pids
    truth = pids[tracklets.track]
    found = match(tracklets)
    show(0, truth, found.identity)
    links = found.links
    allowed = np.flatnonzero(links.forbidden_by == "")
    order = allowed[np.argsort(np.abs(links.margin[allowed]), kind="stable")]
    keys = [(tracklets.camera_names[c], t, -1) for c, t in zip(tracklets.camera, tracklets.track.tolist(), strict=True)]
    for count in COUNTS:
        rows = order[:count]
        pairs = [(keys[a], keys[b]) for a, b in zip(links.first[rows], links.second[rows], strict=True)]
        same = truth[links.first[rows]] == truth[links.second[rows]]
        must = tuple(pair for pair, one in zip(pairs, same, strict=True) if one)
        cannot = tuple(pair for pair, one in zip(pairs, same, strict=True) if not one)
        show(count, truth, match(tracklets, constraints=Constraints(cannot, must)).identity)


if __name__ == "__main__":
    main()
