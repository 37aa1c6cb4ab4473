"""Every solver on synthetic pedestrians, offline and online, with and without the travel times of `cameras.yaml`.

reid data synthesize --out WORLD seed=7 ids=400 cameras=10 stills=8
reid match --tracks WORLD/tracks --videos WORLD/stills --model MODEL --out MATCHED
python -m benchmarks.matching_synthetic WORLD MATCHED/embeddings.parquet
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from benchmarks.measure import Benchmark
from reid.config import MatchSettings, StreamSettings
from reid.embedding.table import Embeddings
from reid.mtmc import Tracklets, Tracks, match, score_tracks, true_ids
from reid.mtmc.cameras import read_cameras
from reid.mtmc.online import match_online
from reid.mtmc.results import tracklet_of_boxes
from reid.mtmc.solvers import SOLVERS
from reid.mtmc.track_files import read_tracks


def show(description: str, truth: Tracks, tracks: Tracks, tracklets: Tracklets, identity, seconds: float) -> None:
    ids = identity[tracklet_of_boxes(tracklets, tracks)]
    # Only the true identities can meet in a frame: where a tracker swapped ids, two tracks are mostly one person.
    _, once = np.unique(np.stack([tracks.camera, tracks.frame, ids]), axis=1, return_index=True)
    found = score_tracks(truth, tracks.take(np.sort(once)).with_ids(ids[np.sort(once)]))
    print(
        f"| {description} | {100 * found.overall.IDF1:.1f} | {100 * found.overall.HOTA:.1f} | "
        f"{100 * found.multi_camera.IDF1:.1f} | {found.tracklets.pair_f1:.3f} | {found.tracklets.b3_f1:.3f} | "
        f"{len(np.unique(identity))} | {seconds:.1f} |",
        flush=True,
    )


def true_identities(truth: Tracks, tracks: Tracks, tracklets: Tracklets) -> np.ndarray:
    """Return the person that most boxes of each tracklet's track show; a false track is a separate person."""
    camera, track, person = true_ids(truth, tracks)
    whose = dict(zip(zip(camera.tolist(), track.tolist(), strict=True), person.tolist(), strict=True))
    free = int(truth.track.max()) + 1 + np.arange(len(tracklets))
    keys = zip(tracklets.camera.tolist(), tracklets.track.tolist(), strict=True)
    return np.array([p if (p := whose.get(key, -1)) >= 0 else free[row] for row, key in enumerate(keys)])


@click.command(cls=Benchmark)
@click.argument("world", type=click.Path(exists=True, path_type=Path))
@click.argument("embeddings", type=click.Path(exists=True, path_type=Path))
def main(world: Path, embeddings: Path) -> None:
    """Match synthetic tracks with every solver, offline and online."""
    tracks, truth = read_tracks(world / "tracks"), read_tracks(world / "truth")
    cameras = read_cameras(world / "cameras.yaml", tracks.camera_names)
    table = Embeddings.load(embeddings)
    tracklets = Tracklets.from_tracks(tracks, table, cameras, camera_names=dict(enumerate(tracks.camera_names)))
    print(
        f"{len(tracks):,} boxes, {len(tracklets)} tracklets of {len(np.unique(truth.track))} people in "
        f"{len(tracks.camera_names)} cameras, {len(table):,} crops of {table.meta.get('model')}\n"
    )
    print("| | IDF1 | HOTA | IDF1, people in ≥ 2 cameras | pair F1 | B³ F1 | identities | s |")
    print("|---|---|---|---|---|---|---|---|")
    show("local ids as they are", truth, tracks, tracklets, np.arange(1, len(tracklets) + 1), 0)
    show("true identity of each tracklet", truth, tracks, tracklets, true_identities(truth, tracks, tracklets), 0)
    for description, known in (("with travel times", cameras), ("without", replace(cameras, transition_times={}))):
        for solver in SOLVERS:
            began = time.perf_counter()
            found = match(tracklets, cameras=known, settings=MatchSettings(solver=solver))
            seconds = time.perf_counter() - began
            identity = found.identity
            show(f"{solver}, {description}", truth, tracks, found.tracklets, identity, seconds)
        for period in (30.0, 60.0):
            began = time.perf_counter()
            live = match_online(tracklets, cameras=known, stream=StreamSettings(period=period))
            name = f"online, {description} (delay {live.delay:g} s)"
            show(name, truth, tracks, tracklets, live.identity, time.perf_counter() - began)


if __name__ == "__main__":
    main()
