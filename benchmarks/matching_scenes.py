"""Matching on real scenes with open trackers: `python -m benchmarks.matching_scenes SCENES [--pairs] [--purity]`.

SCENES has the folders one_camera, two_cameras and overlapping, each with scenes that contain tracks/, truth/,
cameras.yaml and, except for overlapping cameras, features.parquet. Default settings; IDF1 and HOTA in percent. With
--purity, instead: tracklets, their purity (fraction of the boxes of people that are of the person in most boxes of
their tracklet) and the IDF1 of each tracklet's true identity, without and with splitting.
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
from reid.mtmc import Tracklets, match, read_cameras, read_tracks, score_tracks, true_ids
from reid.mtmc.box_pairs import common_cameras, pair_boxes
from reid.mtmc.results import global_tracks
from reid.mtmc.tracklets import tracklet_of_boxes
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


def show_purity(name: str, truth: Tracks, tracks: Tracks, scene: Path) -> None:
    """Print tracklets, purity and bound without and with splitting."""
    cameras = read_cameras(scene / "cameras.yaml", tracks.camera_names)
    embeddings = read_appearance(scene / "features.parquet", tracks).embeddings
    names, columns = dict(enumerate(tracks.camera_names)), []
    for split in (False, True):
        tracklets = Tracklets.from_tracks(tracks, embeddings, cameras, camera_names=names, split=split)
        cut = tracks.with_ids(tracklet_of_boxes(tracklets, tracks))
        person, tracklet = pair_boxes(truth, cut, common_cameras(truth, cut)[1]).matched_ids(0.5)
        count = np.zeros((int(tracklet.max()) + 1, int(person.max()) + 1))
        np.add.at(count, (tracklet, person), 1)
        _, number, who = true_ids(truth, cut)
        identity = np.zeros(len(tracklets), np.int64)
        identity[number] = np.where(who >= 0, who, truth.track.max() + 1 + number)
        ids = identity[cut.track]
        once = np.sort(np.unique(np.stack([tracks.camera, tracks.frame, ids]), axis=1, return_index=True)[1])
        bound = score_tracks(truth, tracks.take(once).with_ids(ids[once])).overall.IDF1
        columns += [len(tracklets), f"{100 * count.max(axis=1).sum() / len(person):.1f}", f"{100 * bound:.1f}"]
    print(f"| {name} | {' | '.join(map(str, columns))} |", flush=True)


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
@click.option("--purity", is_flag=True, help="Purity of tracklets without and with splitting instead.")
def main(scenes: Path, pairs: bool, purity: bool) -> None:
    """Match every scene with default settings and print a table."""
    if purity:
        print("| | tracklets | purity | bound | split | purity | bound |\n|---|---|---|---|---|---|---|")
        for features in sorted(scenes.glob("*/*/features.parquet")):
            scene = features.parent
            truth, tracks = read_tracks(scene / "truth"), read_tracks(scene / "tracks")
            show_purity(f"{scene.parent.name} {scene.name}", truth, tracks, scene)
        return
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
