"""Self-calibration of cameras from tracks: errors of the maps, and matching with none, estimated and true maps.

    python -m benchmarks.self_calibration [--scene SCENE] [--seeds N]

Scenes of the synthetic grid (`benchmarks.matching_grid`, odd seeds, the half for reporting); the clock of camera 2 is
set 0.6 s ahead. Cameras without overlap, and a one-way corridor, must be refused. SCENE is a real scene with
overlapping cameras: a folder with tracks/, truth/ and cameras.yaml.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.matching_grid import TRACKERS, cameras_of, scene
from benchmarks.measure import Benchmark
from reid.data.tracks import Tracks
from reid.embedding.table import Embeddings
from reid.mtmc import Cameras, Tracklets, match, read_cameras, read_tracks, score_tracks
from reid.mtmc.results import global_tracks
from reid.mtmc.self_calibration import SelfCalibration, calibrate_from_tracks, simultaneous_matches
from reid.synthetic import simulate_embeddings

SHIFT = 0.6
LAYOUTS = (
    "2 cameras, overlap 0.5",
    "2 cameras, overlap 1",
    "4 cameras, overlap 0.7",
    "2 cameras, overlap 0",
    "corridor, 3 cameras, overlap 0",
)


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map image points by a homography."""
    mapped = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return mapped[:, :2] / mapped[:, 2:]


def map_error(tracks: Tracks, found: Cameras, true: Cameras, names: tuple[str, str]) -> np.ndarray:
    """Metres by which people of the first camera are misplaced in the second one's image, where it can see them."""
    boxes = tracks.boxes[tracks.camera == tracks.camera_names.index(names[0])]
    feet = np.column_stack([boxes[:, 0] + boxes[:, 2] / 2, boxes[:, 1] + boxes[:, 3]])
    first, second = (found[name].homography for name in names)
    ground, back = (true[name].homography for name in names)
    right = project(ground, true[names[0]].undistort(feet))
    x, y = project(np.linalg.inv(back), right).T
    width, height = true[names[1]].size or (0, 0)
    seen = (x > 0) & (x < width) & (y > 0) & (y < height)
    missed = project(back, project(np.linalg.inv(second), project(first, feet))) - right
    return np.linalg.norm(missed[seen], axis=1)


def without_geometry(cameras: Cameras, shift: float) -> Cameras:
    """Remove homographies and overlaps; set the clock of the second camera ahead."""
    second = sorted(cameras.cameras)[1]
    return Cameras({
        name: camera.model_copy(update={"homography": None, "offset": camera.offset + shift * (name == second)})
        for name, camera in cameras.cameras.items()
    })  # fmt: skip


def score(truth: Tracks, tracks: Tracks, table: Embeddings | None, cameras: Cameras) -> float:
    """IDF1 in percent after matching."""
    matches = match(Tracklets.from_tracks(tracks, table, cameras), cameras=cameras)
    return 100 * score_tracks(truth, global_tracks(matches, tracks)).overall.IDF1


def calibrate(tracks: Tracks, table: Embeddings | None, cameras: Cameras) -> tuple[SelfCalibration, float]:
    """Calibrate as `reid match` does; return the result and its seconds of CPU time."""
    tracklets = Tracklets.from_tracks(tracks, table, cameras)
    likely = np.zeros((0, 2), np.int64)
    if table is not None:
        likely = simultaneous_matches(match(tracklets, cameras=cameras))
    began = time.process_time()
    found = calibrate_from_tracks(tracks, tracklets, likely, cameras)
    return found, time.process_time() - began


def show(name: str, truth: Tracks, tracks: Tracks, table: Embeddings | None, true: Cameras, shift: float) -> None:
    """Calibrate one scene and print its row."""
    given = without_geometry(true, shift)
    found, seconds = calibrate(tracks, table, given)
    none = "refused" if table is None else f"{score(truth, tracks, table, given):.1f}"
    estimated, errors, clock = "", "", ""
    accepted = [(one.first, one.second) for one in found.alignments if one.accepted]
    if found.cameras is not None:
        estimated = f"{score(truth, tracks, table, found.cameras):.1f}"
        values = np.concatenate([map_error(tracks, found.cameras, true, pair) for pair in found.residuals])
        errors = f"{np.median(values):.2f} / {np.quantile(values, 0.9):.2f}"
        offsets = [
            found.cameras[a].offset - found.cameras[b].offset - true[a].offset + true[b].offset
            for a, b in found.residuals
        ]
        clock = f"{max(map(abs, offsets)):.2f}"
    known = score(truth, tracks, table, true)
    print(
        f"| {name} | {len(accepted)} of {len(true.overlapping)} | {errors} | {clock} | {none} | {estimated} | "
        f"{known:.1f} | {seconds:.1f} |",
        flush=True,
    )
    for pair in accepted:
        if frozenset(pair) not in true.overlapping:
            print(f"WRONG: {' and '.join(pair)} do not overlap", flush=True)


@click.command(cls=Benchmark)
@click.option("--scene", "scenes", multiple=True, type=click.Path(exists=True, path_type=Path), help="Real scene.")
@click.option("--seeds", default=1, show_default=True, help="Scenes of each cell; 0: real scenes only.")
@click.option("--people", multiple=True, default=(8, 15), show_default=True, help="People. Repeatable.")
@click.option("--tracker", type=click.Choice(list(TRACKERS)), default="many errors", show_default=True, help="Tracker.")
def main(scenes: tuple[Path, ...], seeds: int, people: tuple[int, ...], tracker: str) -> None:
    """Calibrate every scene and print a table."""
    print(
        "| scene | pairs accepted | map error, m (median / 90 %) | clock error, s | IDF1 none | estimated | true | s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for folder in scenes:
        truth, tracks = read_tracks(folder / "truth"), read_tracks(folder / "tracks")
        show(folder.name, truth, tracks, None, read_cameras(folder / "cameras.yaml", tracks.camera_names), 0.0)
    models = {"strong": 0.5, "weak": 1.5, "no appearance": None}
    for layout, n, (model, noise), seed in itertools.product(LAYOUTS, people, models.items(), range(seeds)):
        recording = scene((n, layout, model, tracker), 2 * seed + 1)
        table = None if noise is None else simulate_embeddings(recording, noise=noise)
        name = f"{layout}, {n} people, {model}"
        show(name, recording.truth, recording.tracks, table, cameras_of(recording), SHIFT)


if __name__ == "__main__":
    main()
