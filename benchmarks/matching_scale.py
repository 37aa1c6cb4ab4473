"""Time reading and scoring a million boxes: `python -m benchmarks.matching_scale [--boxes N] [--crowd N]`."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.measure import Benchmark
from reid.mtmc import Tracks, score_tracks
from reid.mtmc.track_files import read_tracks
from reid.mtmc.track_writers import write_tracks


def synthetic_tracks(boxes: int, cameras: int, crowd: int, seed: int = 0) -> tuple[Tracks, Tracks]:
    """People that walk through every camera in turn, `crowd` at a time; predictions jitter, miss and swap ids."""
    rng = np.random.default_rng(seed)
    frames = boxes // (cameras * crowd)
    stay = 200
    camera, place, frame = np.meshgrid(np.arange(cameras), np.arange(crowd), np.arange(frames), indexing="ij")
    camera, place, frame = camera.ravel(), place.ravel(), frame.ravel()
    walk = frame // stay
    turns = int(walk.max()) + 1
    person = 1 + (walk + 3 * camera) % (turns + 3 * cameras) * crowd + place
    start = rng.uniform(0, 1800, (cameras, crowd, turns))[camera, place, walk]
    x = start + 0.5 * (frame % stay)
    y = rng.uniform(200, 900, (cameras, crowd, turns))[camera, place, walk]
    box = np.stack([x, y, np.full(len(x), 50.0), np.full(len(x), 120.0)], axis=1)
    names = [f"cam{i + 1:02d}" for i in range(cameras)]
    truth = Tracks.from_columns(names, camera, person, frame + 1, box.round(2))
    wrong = np.where(rng.random((cameras, crowd, turns)) < 0.2, 10_000_000 + camera.max(), 0)[camera, place, walk]
    found = rng.random(len(x)) > 0.05
    moved = box + rng.normal(0, 3, box.shape) * [1, 1, 0.5, 0.5]
    ids = person + wrong + (frame % stay > 120) * (place % 7 == 0) * 20_000_000
    predicted = Tracks.from_columns(
        names, camera[found], ids[found], frame[found] + 1, moved[found].round(2), rng.random(found.sum()).round(3)
    )
    return truth, predicted


@click.command(cls=Benchmark)
@click.option("--boxes", default=1_000_000, show_default=True, type=click.IntRange(1))
@click.option("--cameras", default=20, show_default=True, type=click.IntRange(1))
@click.option("--crowd", default=10, show_default=True, type=click.IntRange(1), help="People in a frame.")
@click.option("--format", "form", default="mot", show_default=True, help="Track file format.")
def main(boxes: int, cameras: int, crowd: int, form: str) -> None:
    """Time reading and scoring many boxes."""
    with tempfile.TemporaryDirectory() as folder:
        truth, predicted = synthetic_tracks(boxes, cameras, crowd)
        write_tracks(truth, Path(folder) / "truth", form)
        write_tracks(predicted, Path(folder) / "predicted", form)
        cpu, begin = time.process_time(), time.perf_counter()
        truth, predicted = read_tracks(Path(folder) / "truth"), read_tracks(Path(folder) / "predicted")
        read = time.perf_counter()
        scores = score_tracks(truth, predicted)
        end, cpu = time.perf_counter(), time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(truth):,} true and {len(predicted):,} predicted boxes, {cameras} cameras, "
        f"{crowd} people a frame, {scores.overall.truth_ids:,} people: "
        f"read {read - begin:.1f} s, scored {end - read:.1f} s "
        f"({cpu:.1f} s of processor time together), "
        f"peak {peak:.2f} GiB. IDF1 {scores.overall.IDF1:.3f}, HOTA {scores.overall.HOTA:.3f}."
    )


if __name__ == "__main__":
    main()
