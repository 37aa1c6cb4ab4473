"""Handovers between adjacent cameras: IDF1 without and with them on synthetic scenes without geometry.

    python -m benchmarks.matching_handovers

Scenes of the synthetic grid (`benchmarks.matching_grid`), even seeds for choosing and odd ones for reporting.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import click
import numpy as np

from benchmarks.matching_grid import MODELS, TRACKERS, cameras_of, idf1, scene
from benchmarks.measure import Benchmark
from benchmarks.self_calibration import without_geometry
from reid.mtmc import Tracklets, match
from reid.mtmc.tracklets import tracklet_of_boxes
from reid.synthetic import simulate_embeddings

LAYOUTS = ("2 cameras, overlap 0", "corridor, 3 cameras, overlap 0", "2 cameras, overlap 0.5")


def score(people: int, layout: str, tracker: str, seed: int, model: str) -> tuple[float, float]:
    """IDF1 in percent of one scene, without and with handovers."""
    recording = scene((people, layout, model, tracker), seed)
    cameras = without_geometry(cameras_of(recording), 0.0)
    table = simulate_embeddings(recording, noise=MODELS[model] or 0.0)
    tracklets = Tracklets.from_tracks(recording.tracks, table, cameras)
    without = replace(tracklets, edges=np.full_like(tracklets.edges, np.nan))
    tracklet = tracklet_of_boxes(tracklets, recording.tracks)
    first, second = (
        100 * idf1(recording, match(side, cameras=cameras).identity[tracklet]) for side in (without, tracklets)
    )
    return first, second


@click.command(cls=Benchmark)
def main() -> None:
    """Print the mean of both halves for each model."""
    print("| half | model | scenes | without | with |\n|---|---|---|---|---|")
    for half, model in itertools.product((0, 1), ("strong", "usual", "weak")):
        cells = itertools.product((8, 15), LAYOUTS, TRACKERS, (half, half + 2))
        values = np.array([score(*cell, model) for cell in cells])
        name = "reporting" if half else "choosing"
        print(
            f"| {name} | {model} | {len(values)} | {values[:, 0].mean():.1f} | {values[:, 1].mean():.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
