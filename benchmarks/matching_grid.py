"""Matching on a grid of small synthetic scenes: people × cameras and overlap × model quality × tracker errors.

    python -m benchmarks.matching_grid --out grid.json
    python -m benchmarks.matching_grid --from grid.json --scene SCENE ...

Scenes of even seeds are the half for choosing parameters (`choose`), those of odd seeds the half for reporting
(`report`). Every scene is scored before matching (each local track is one identity), after `match` at its defaults,
and with the true identity of each tracklet (the bound). The calibration of p(same) and of the confidence (of identities
with two tracklets or more) is measured on the same scenes; a monotone map is fitted on the half for choosing and
measured on the other. SCENE is a real scene: a folder with tracks/, truth/ and features.parquet.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from benchmarks.measure import Benchmark
from reid.core.console import progress_bar
from reid.core.errors import ReidError
from reid.mtmc import Tracklets, match, score_tracks, true_ids
from reid.mtmc.cameras import Cameras, read_cameras
from reid.mtmc.confidence import confidence_parts
from reid.mtmc.track_files import read_tracks
from reid.mtmc.tracklets import tracklet_of_boxes
from reid.pipelines.match import match_files
from reid.pipelines.settings import MatchFiles
from reid.synthetic import Recording, SyntheticSettings, TrackerFaults, record, simulate_embeddings

PEOPLE = (4, 8, 15)
LAYOUTS: dict[str, dict[str, Any]] = {
    "1 camera": {"site": "floor", "cameras": 1},
    "2 cameras, overlap 0": {"site": "floor", "cameras": 2, "floor": {"overlap": 0.0}},
    "2 cameras, overlap 0.5": {"site": "floor", "cameras": 2, "floor": {"overlap": 0.5}},
    "2 cameras, overlap 1": {"site": "floor", "cameras": 2, "floor": {"overlap": 1.0}},
    "4 cameras, overlap 0.7": {"site": "floor", "cameras": 4, "floor": {"overlap": 0.7}},
    "corridor, 3 cameras, overlap 0": {"site": "corridor", "cameras": 3, "floor": {"overlap": 0.0}},
}
MODELS: dict[str, float | None] = {"strong": 0.5, "usual": 1.0, "weak": 1.5, "no appearance": None}
TRACKERS = {
    "few errors": TrackerFaults(miss=0.02, split=0.05, switch=0.05, false_tracks=0.02),
    "many errors": TrackerFaults(miss=0.1, blind=0.5, jitter=0.03, split=0.4, switch=0.5, false_tracks=0.2),
}
FACTORS = ("people", "layout", "model", "tracker")
BINS = 10


def scene(cell: tuple[int, str, str, str], seed: int) -> Recording:
    """Simulate the scene of a cell: people, layout, model, tracker."""
    people, layout, _, tracker = cell
    settings = {**LAYOUTS[layout], "tracker": TRACKERS[tracker], "difficulty": {"crowd": max(2.0, people / 3)}}
    return record(SyntheticSettings(seed=seed, ids=people + 2, train_fraction=0.0, **settings))


def cameras_of(recording: Recording) -> Cameras:
    """Read the recording's cameras through the file format that users write."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cameras.yaml"
        path.write_text(yaml.safe_dump(recording.cameras), encoding="utf-8")
        return read_cameras(path, recording.tracks.camera_names)


def people_of(recording: Recording, tracklet: np.ndarray, n: int) -> np.ndarray:
    """Return the person in most boxes of each tracklet; a false tracklet is a person of its own (below 0)."""
    votes = np.zeros((n, int(recording.person.max(initial=0)) + 2))
    np.add.at(votes, (tracklet, recording.person), 1)
    person = votes.argmax(axis=1)
    return np.where(person == votes.shape[1] - 1, -1 - np.arange(n), person)


def idf1(recording: Recording, ids: np.ndarray) -> float:
    """Score the identity of each box over all cameras; where two boxes of a frame share one, the first counts."""
    tracks = recording.tracks
    _, once = np.unique(np.stack([tracks.camera, tracks.frame, ids]), axis=1, return_index=True)
    rows = np.sort(once)
    return score_tracks(recording.truth, tracks.take(rows).with_ids(ids[rows])).overall.IDF1


def measure(cell: tuple[int, str, str, str], seed: int) -> dict[str, Any]:
    """Match one scene and return its scores, and p(same) and confidence with what is true."""
    recording = scene(cell, seed)
    noise = MODELS[cell[2]]
    table = None if noise is None else simulate_embeddings(recording, noise=noise)
    cameras = cameras_of(recording)
    tracklets = Tracklets.from_tracks(recording.tracks, table, cameras)
    tracklet = tracklet_of_boxes(tracklets, recording.tracks)
    person = people_of(recording, tracklet, len(tracklets))
    row: dict[str, Any] = {
        **dict(zip(FACTORS, cell, strict=True)),
        "seed": seed,
        "tracklets": len(tracklets),
        "before": idf1(recording, tracklet + 1),
        "bound": idf1(recording, np.where(person < 0, 1000 - person, person + 1)[tracklet]),
    }
    try:
        result = match(tracklets, cameras=cameras)
    except ReidError as error:
        return {**row, "after": row["before"], "refused": str(error)}
    # `match` may cut tracklets; its own are the ones that have identities.
    final = result.tracklets
    tracklet = tracklet_of_boxes(final, recording.tracks)
    person = people_of(recording, tracklet, len(final))
    links = result.links
    free = links.forbidden_by == ""
    members = [person[result.identity == identity] for identity in result.identity]
    right = [bool((who == own).mean() > 0.5) for who, own in zip(members, person, strict=True)]
    several = np.unique(result.identity, return_inverse=True, return_counts=True)
    shared = several[2][several[1]] > 1
    return {
        **row,
        "after": idf1(recording, result.identity[tracklet]),
        "p_same": links.probability[free].round(5).tolist(),
        "same": (person[links.first[free]] == person[links.second[free]]).tolist(),
        "confidence": result.confidence[shared].round(5).tolist(),
        "parts": confidence_parts(result.identity, links)[shared].round(5).tolist(),
        "right": np.array(right)[shared].tolist(),
    }


def bins(probability: np.ndarray, true: np.ndarray) -> list[tuple[float, float, int]]:
    """Return mean probability, fraction of true and number of each occupied bin of equal width."""
    number = np.minimum((probability * BINS).astype(int), BINS - 1)
    groups = [number == b for b in range(BINS)]
    return [(float(probability[g].mean()), float(true[g].mean()), int(g.sum())) for g in groups if g.any()]


def calibration_error(probability: np.ndarray, true: np.ndarray) -> float:
    """Return the expected calibration error: mean |probability − fraction of true| over bins, weighted by number."""
    return sum(abs(p - t) * n for p, t, n in bins(probability, true)) / max(len(true), 1)


def show_scores(rows: Sequence[dict[str, Any]]) -> None:
    """Print the mean IDF1 of the reporting half by level of each factor, and of each layout and model."""
    print("\n| | scenes | before | after | bound | worse than before |\n|---|---|---|---|---|---|")
    groups = [(f"{factor}: {level}", [r for r in rows if r[factor] == level])
              for factor in FACTORS for level in dict.fromkeys(r[factor] for r in rows)]  # fmt: skip
    cells = dict.fromkeys((r["layout"], r["model"]) for r in rows)
    groups += [(f"{a}; {b}", [r for r in rows if (r["layout"], r["model"]) == (a, b)]) for a, b in cells]
    for name, group in [("**all**", list(rows)), *groups]:
        before, after, bound = (100 * np.mean([r[key] for r in group]) for key in ("before", "after", "bound"))
        worse = sum(r["after"] < r["before"] - 1e-9 for r in group)
        print(f"| {name} | {len(group)} | {before:.1f} | {after:.1f} | {bound:.1f} | {worse} |")


def show_calibration(rows: Sequence[dict[str, Any]], probability: str, true: str) -> None:
    """Print the reliability of a probability on both halves, as it is and after a monotone map of the first half."""
    halves = [[r for r in rows if r["seed"] % 2 == half and probability in r] for half in (0, 1)]
    values = [(np.concatenate([r[probability] for r in half]), np.concatenate([r[true] for r in half]).astype(float))
              for half in halves]  # fmt: skip
    fitted = IsotonicRegression(y_min=0.001, y_max=0.999, out_of_bounds="clip").fit(*values[0])
    mapped = fitted.predict(values[1][0])
    errors = [calibration_error(*half) for half in values]
    print(f"\n{probability}: ECE {errors[0]:.3f} (choose), {errors[1]:.3f} (report), "
          f"{calibration_error(mapped, values[1][1]):.3f} (report, mapped); {len(mapped):,} values")  # fmt: skip
    print("| as it is: mean | true | n | mapped: mean | true | n |\n|---|---|---|---|---|---|")
    for raw, after in itertools.zip_longest(bins(*values[1]), bins(mapped, values[1][1])):
        cells = [f"{one[0]:.3f} | {one[1]:.3f} | {one[2]:,}" if one else " | | " for one in (raw, after)]
        print(f"| {cells[0]} | {cells[1]} |")


def show_confidence(rows: Sequence[dict[str, Any]]) -> None:
    """Print the coefficients of the confidence, fitted on the half for choosing (`reid.mtmc.confidence`)."""
    half = [r for r in rows if r["seed"] % 2 == 0 and r.get("parts")]
    parts, right = (np.concatenate([r[key] for r in half]) for key in ("parts", "right"))
    if len(np.unique(right)) < 2:
        print("\nconfidence: not enough data, all identities are right or all are wrong")
        return
    fitted = LogisticRegression(C=10).fit(parts, right)
    print(f"\nconfidence: coefficients {np.append(fitted.intercept_, fitted.coef_).round(2).tolist()}")


def show_groups(rows: Sequence[dict[str, Any]]) -> None:
    """Print the calibration error of p(same) in the reporting half by level of each factor."""
    print("\n| | links | ECE of p(same) |\n|---|---|---|")
    rows = [r for r in rows if r["seed"] % 2 and "p_same" in r]
    for factor in FACTORS:
        for level in dict.fromkeys(r[factor] for r in rows):
            group = [r for r in rows if r[factor] == level]
            p, true = (np.concatenate([r[key] for r in group]) for key in ("p_same", "same"))
            print(f"| {factor}: {level} | {len(p):,} | {calibration_error(p, true.astype(float)):.3f} |")


def show_scenes(folders: Sequence[Path]) -> None:
    """Print the calibration error of p(same) on real scenes, of pairs of tracklets with known people."""
    print("\n| scene | links | same person | ECE of p(same) |\n|---|---|---|---|")
    values = []
    for folder in folders:
        files = MatchFiles(tracks=folder / "tracks", embeddings=folder / "features.parquet")
        with tempfile.TemporaryDirectory() as out:
            matches = match_files(files, Path(out) / "matched").matches
        tracks, t = read_tracks(folder / "tracks"), matches.tracklets
        camera, track, who = (column.tolist() for column in true_ids(read_tracks(folder / "truth"), tracks))
        whose = dict(zip(zip(camera, track, strict=True), who, strict=True))
        keys = zip(t.camera.tolist(), t.track.tolist(), strict=True)
        person = np.array([whose.get(key, -1) for key in keys])
        links = matches.links
        first, second = person[links.first], person[links.second]
        known = (links.forbidden_by == "") & (first >= 0) & (second >= 0)
        values.append((links.probability[known], (first == second)[known].astype(float)))
        print(
            f"| {folder.name} | {known.sum():,} | {values[-1][1].mean():.2f} | {calibration_error(*values[-1]):.3f} |"
        )
    p, true = (np.concatenate(column) for column in zip(*values, strict=True))
    print(f"| all | {len(p):,} | {true.mean():.2f} | {calibration_error(p, true):.3f} |")


@click.command(cls=Benchmark)
@click.option("--seeds", default=2, show_default=True, help="Scenes of each cell; half are for choosing.")
@click.option("--people", multiple=True, type=int, default=PEOPLE, show_default=True, help="People. Repeatable.")
@click.option("--layout", "layouts", multiple=True, type=click.Choice(list(LAYOUTS)), default=list(LAYOUTS),
              help="Cameras and overlap; default: all. Repeatable.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=None, help="JSON file of all scenes to write.")
@click.option("--from", "source", type=click.Path(exists=True, path_type=Path), help="Show the scenes of a JSON file.")
@click.option("--scene", "scenes", multiple=True, type=click.Path(exists=True, path_type=Path),
              help="Real scene for the calibration of p(same). Repeatable.")  # fmt: skip
def main(
    seeds: int,
    people: tuple[int, ...],
    layouts: tuple[str, ...],
    out: Path | None,
    source: Path | None,
    scenes: tuple[Path, ...],
) -> None:
    """Match every scene of the grid, or read an earlier run, and print the tables of the reporting half."""
    if source:
        rows = json.loads(source.read_text("utf-8"))
    else:
        cells = list(itertools.product(people, layouts, MODELS, TRACKERS))
        with progress_bar() as bar:
            rows = [measure(cell, seed) for cell, seed in bar.track(list(itertools.product(cells, range(seeds))))]
    if out:
        out.write_text(json.dumps(rows), encoding="utf-8")
    refused = {
        r["refused"]: sum(other.get("refused") == r["refused"] for other in rows) for r in rows if "refused" in r
    }
    for message, n in refused.items():
        print(f"{n} scenes were refused and count as unchanged: {message}")
    show_scores([r for r in rows if r["seed"] % 2])
    show_calibration(rows, "p_same", "same")
    show_calibration(rows, "confidence", "right")
    show_confidence(rows)
    show_groups(rows)
    if scenes:
        show_scenes(scenes)


if __name__ == "__main__":
    main()
