"""The matcher on real tracklets: `python -m benchmarks.matching_market FILE.npz [...] [--baselines] [--halves]`.

Each file holds embeddings of the Market-1501 test split (gallery_features, _pids, _camids, _sequences, _frames). A
tracklet is the gallery crops of one pid (above 0), camera and sequence, cut where frames jump by more than 250. The pid
makes the tracklets and the scores; the matcher never sees it. Times are frame / 25 plus 10⁶ s a sequence. With
--halves, instead: the tracklets of half of the people, matched with a calibration from the crops of the other half.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np

from benchmarks.measure import Benchmark
from reid.config import MatchSettings
from reid.evaluation.calibration import calibrate
from reid.mtmc import Tracklets, cluster_scores, match
from reid.mtmc.solvers import SOLVERS

JUMP = 250
SEQUENCE = 1e6


def market_tracklets(path: str | Path) -> tuple[Tracklets, np.ndarray]:
    """5,406 tracklets of 750 people, and who each is."""
    with np.load(path) as arrays:
        columns = [arrays[f"gallery_{name}"] for name in ("features", "pids", "camids", "sequences", "frames")]
    keep = columns[1] > 0
    features, pid, camera, sequence, frame = (column[keep] for column in columns)
    order = np.lexsort((frame, sequence, camera, pid))
    features, pid, camera, sequence, frame = (column[order] for column in (features, pid, camera, sequence, frame))
    pid, camera, sequence, frame = (column.astype(np.int64) for column in (pid, camera, sequence, frame))
    fresh = np.ones(len(pid), bool)
    same = (np.diff(pid) == 0) & (np.diff(camera) == 0) & (np.diff(sequence) == 0)
    fresh[1:] = ~same | (np.diff(frame) > JUMP)
    track = np.cumsum(fresh) - 1
    names = [f"cam{number:02d}" for number in range(1, camera.max() + 1)]
    tracklets = Tracklets.from_features(
        names, camera - 1, track, frame, features.astype(np.float32), frame / 25 + sequence * SEQUENCE
    )
    return tracklets, pid[fresh][tracklets.track]


def row(name: str, person: np.ndarray, identity: np.ndarray, more: str) -> None:
    scores = cluster_scores(person, identity)
    print(
        f"| {name} | {scores.pair_f1:.3f} | {scores.pair_precision:.3f} | {scores.pair_recall:.3f} "
        f"| {scores.b3_f1:.3f} | {scores.found_identities} | {more} |",
        flush=True,
    )


def score_baselines(tracklets: Tracklets, person: np.ndarray) -> None:
    """Mean-pooled features, at the threshold that is best by the truth."""
    from scipy.cluster.hierarchy import fcluster, linkage

    features = tracklets.features
    distance = 1 - features @ features.T
    condensed = distance[np.triu_indices(len(distance), 1)].astype(np.float64)
    for method, name in (("average", "average linkage"), ("single", "components")):
        tree = linkage(condensed, method)
        tried = np.quantile(tree[:, 2], np.linspace(0.2, 0.99, 80))
        found = [fcluster(tree, threshold, "distance") for threshold in tried]
        best = max(range(len(found)), key=lambda place: cluster_scores(person, found[place]).pair_f1)
        row(f"{name}, best threshold", person, found[best], f"{tried[best]:.3f} (by the truth) | |")


def halves(path: str | Path) -> None:
    tracklets, person = market_tracklets(path)
    with np.load(path) as arrays:
        features, pid, camera = (arrays[f"gallery_{name}"] for name in ("features", "pids", "camids"))
    both = np.array_split(np.random.default_rng(0).permutation(np.unique(person)), 2)
    for number, (mine, others) in enumerate((both, both[::-1]), start=1):
        rows = np.flatnonzero(np.isin(person, mine))
        crops = np.isin(pid, others)
        part = tracklets.take(rows)
        row(f"half {number}, label-free", person[rows], match(part).identity, "| |")
        for rate in (1e-2, 1e-3, 1e-4):
            known = calibrate(features[crops].astype(np.float32), pid[crops], camera[crops], fmr=rate)
            result = match(part, calibration=known)
            more = f"{result.threshold:.2f} | {result.fmr:.2%} |"
            row(f"half {number}, calibrated at {rate:g}", person[rows], result.identity, more)


@click.command(cls=Benchmark)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="FILE.npz...")
@click.option("--baselines", is_flag=True, help="Add baselines whose threshold is the best by the truth.")
@click.option("--halves", "by_halves", is_flag=True, help="Match half of the people, calibrated on the other half.")
def main(files: tuple[Path, ...], baselines: bool, by_halves: bool) -> None:
    """Match real tracklets of the Market-1501 test gallery with every solver."""
    for path in files:
        tracklets, person = market_tracklets(path)
        print(f"\n{Path(path).stem}: {len(tracklets)} tracklets of {len(np.unique(person))} people\n")
        print("| | F1 | precision | recall | B³ F1 | identities | threshold | FMR | seconds |")
        print("|---|---|---|---|---|---|---|---|---|")
        if by_halves:
            halves(path)
            continue
        if baselines:
            score_baselines(tracklets, person)
        for travel in (True, False):
            for solver in SOLVERS:
                before = time.perf_counter()
                result = match(tracklets, settings=MatchSettings(solver=solver, transitions=travel))
                seconds = time.perf_counter() - before
                name = solver + ("" if travel else ", without travel times")
                row(name, person, result.identity, f"{result.threshold:.2f} | {result.fmr:.2%} | {seconds:.1f}")


if __name__ == "__main__":
    main()
