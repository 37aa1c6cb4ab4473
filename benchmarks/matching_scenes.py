"""Matching on real scenes with open trackers: `python -m benchmarks.matching_scenes SCENES [--pairs]`.

SCENES has the folders one_camera, two_cameras and overlapping, each with scenes that contain tracks/, truth/,
cameras.yaml and, except for overlapping cameras, features.parquet. Default settings; IDF1 and HOTA in percent.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.measure import Benchmark
from reid.core.errors import ReidError
from reid.data.tracks import Tracks
from reid.mtmc import Tracklets, match, read_cameras, read_tracks, score_tracks
from reid.mtmc.results import global_tracks
from reid.pipelines.match import read_appearance


def show(name: str, truth: Tracks, tracks: Tracks, scene: Path) -> None:
    """Match, and print one row of the table."""
    began = time.perf_counter()
    cameras = read_cameras(scene / "cameras.yaml", tracks.camera_names)
    features = scene / "features.parquet"
    embeddings = read_appearance(features, tracks).embeddings if features.is_file() else None
    names = dict(enumerate(tracks.camera_names))
    matches = match(Tracklets.from_tracks(tracks, embeddings, cameras, camera_names=names), cameras=cameras)
    before, after = score_tracks(truth, tracks), score_tracks(truth, global_tracks(matches, tracks))
    lost = [
        f"{camera} {100 * (after.per_camera[camera].IDF1 - scores.IDF1):.1f}"
        for camera, scores in before.per_camera.items()
        if after.per_camera[camera].IDF1 < scores.IDF1
    ]
    print(
        f"| {name} | {100 * before.overall.IDF1:.1f} → {100 * after.overall.IDF1:.1f} | "
        f"{100 * before.overall.HOTA:.1f} → {100 * after.overall.HOTA:.1f} | {len(matches.tracklets)} | "
        f"{int(matches.identity.max(initial=0))} | {', '.join(lost)} | {time.perf_counter() - began:.1f} |",
        flush=True,
    )


def cameras_of(tracks: Tracks, names: tuple[str, ...]) -> Tracks:
    """Return the boxes of some of the cameras."""
    numbers = [tracks.camera_names.index(name) for name in names]
    rows = np.isin(tracks.camera, numbers)
    camera = np.searchsorted(numbers, tracks.camera[rows])
    columns = (tracks.track[rows], tracks.frame[rows], tracks.boxes[rows], tracks.confidence[rows])
    return Tracks.from_columns(names, camera, *columns)


@click.command(cls=Benchmark)
@click.argument("scenes", type=click.Path(exists=True, path_type=Path))
@click.option("--pairs", is_flag=True, help="Also match each pair of overlapping cameras.")
def main(scenes: Path, pairs: bool) -> None:
    """Match every scene with default settings and print a table."""
    print("| | IDF1 | HOTA | tracklets | identities | cameras that lose IDF1 | s |\n|---|---|---|---|---|---|---|")
    for kind in ("one_camera", "two_cameras", "overlapping"):
        for scene in sorted((scenes / kind).glob("*")):
            truth, tracks = read_tracks(scene / "truth"), read_tracks(scene / "tracks")
            try:
                show(f"{kind} {scene.name}", truth, tracks, scene)
                for names in itertools.combinations(tracks.camera_names, 2) if pairs and kind == "overlapping" else ():
                    show(" + ".join(names), cameras_of(truth, names), cameras_of(tracks, names), scene)
            except ReidError as error:
                print(f"| {kind} {scene.name} | {error} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
