"""Open-set search on real embeddings: is "nobody here" right at the asked rate, and how many people are found?

The Market-1501 test identities are split in two: half A calibrates (and chose `LOOKS_EXPONENT`), half B is searched.
The people of the searched half are split again into two galleries. Each query crop is searched in the gallery that has
its person and in the other one. Tracklets are the crops of one person in one sequence of one camera.

Scopes: all cameras but that of the query (the cross-camera rule), or one camera alone (--camera): for a person who is
there, one that saw them; for the other gallery the same camera.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.measure import Benchmark
from reid import Embeddings, Gallery, calibrate
from reid.core.arrays import unit_rows
from reid.core.console import console
from reid.gallery import Scope
from reid.gallery.answers import Evidence
from reid.gallery.index import LOOKS_EXPONENT

RATES = (0.1, 0.01)
EXPONENTS = (0.0, 0.15, 0.3, 0.5, 1.0)


class Data:
    """Query and gallery crops of one embeddings file, as columns."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as arrays:
            both = {
                name: np.concatenate([arrays[f"query_{name}"], arrays[f"gallery_{name}"]])
                for name in ("features", "pids", "camids", "sequences")
            }
            self.is_query = np.arange(len(both["pids"])) < len(arrays["query_pids"])
        self.features = unit_rows(both["features"].astype(np.float32))
        self.pids, self.camids = both["pids"].astype(np.int64), both["camids"].astype(np.int64)
        self.sequences = both["sequences"].astype(np.int64)

    def gallery(self, folder: Path, people: np.ndarray, distractors: bool) -> Gallery:
        """Return a gallery of the gallery crops of some people."""
        rows = ~self.is_query & (np.isin(self.pids, people) | (distractors & (self.pids == 0)))
        pids = self.pids[rows]
        tracks = np.where(pids == 0, -1, self.sequences[rows])  # a distractor is a tracklet of its own
        table = Embeddings(self.features[rows], pids=pids, camids=self.camids[rows], tracks=tracks)
        gallery = Gallery.create(folder)
        gallery.add(table, source="market")
        return gallery


def measure(
    data: Data, people: np.ndarray, calibration: Any, scope: str, distractors: bool, exponents: tuple
) -> dict[float, dict]:
    """Search every query of some people in both galleries; return rates by exponent."""
    rng = np.random.default_rng(1)
    halves = np.array_split(rng.permutation(people), 2)
    rows: list[tuple[bool, bool, int, list[float], list[int]]] = []
    with tempfile.TemporaryDirectory() as folder:
        galleries = [data.gallery(Path(folder) / str(side), half, distractors) for side, half in enumerate(halves)]
        indexes = [gallery.index() for gallery in galleries]
        owners = [gallery.details(gallery.index().tracklets.to_pylist()) for gallery in galleries]
        sizes = [np.bincount(index.tracklet)[index.tracklet] for index in indexes]
        for row in np.flatnonzero(data.is_query & np.isin(data.pids, people)).tolist():
            pid, camid = int(data.pids[row]), int(data.camids[row])
            seen = np.unique(data.camids[~data.is_query & (data.pids == pid) & (data.camids != camid)])
            if not len(seen):
                continue
            cameras = [int(rng.choice(seen))] if scope == "one camera" else [c for c in range(1, 7) if c != camid]
            names = Scope(tuple(f"cam{camera:02d}" for camera in cameras))
            for side, half in enumerate(halves):
                index = indexes[side]
                chosen = index.rows_in(names)
                nearest = index.nearest(data.features[row : row + 1], chosen, 20, None)
                strangers = []
                for exponent in exponents:
                    looks = replace(index, looks=(sizes[side] ** (exponent - 1.0)).astype(np.float32))
                    by_camera = looks.looks_by_camera(chosen).tolist()
                    numbers = [int(name[3:]) for name in index.cameras]
                    evidence = Evidence(calibration, dict(zip([*numbers, None], by_camera, strict=True)), camid)
                    strangers.append([evidence.strangers(distance) for distance, _ in nearest])
                right = owners[side][nearest[0][1]]["identity"] == pid
                rows.append((pid in half, right, len(np.unique(index.tracklet[chosen])), strangers))
    return {exponent: summarise(rows, place) for place, exponent in enumerate(exponents)}


def summarise(rows: list, place: int) -> dict[str, float]:
    """Return rates of the searches: with the person absent, and present."""
    present, right = (np.array([row[column] for row in rows]) for column in (0, 1))
    nearest = [np.array(row[3][place]) for row in rows]
    best = np.array([values[0] for values in nearest])
    alarms = np.sort(best[~present])
    result = {"searches": len(alarms), "tracklets": float(np.mean([row[2] for row in rows]))}
    for rate in RATES:
        threshold = alarms[int(rate * len(alarms))]
        counts = [(values <= rate).sum() for values, there in zip(nearest, present, strict=True) if not there]
        result[f"alarms {rate}"] = (alarms <= rate).mean()
        result[f"hits {rate}"] = float(np.mean(counts))
        result[f"found {rate}"] = (right & (best <= rate))[present].mean()
        result[f"DIR {rate}"] = (right & (best < threshold))[present].mean()
    result["rank-1"] = right[present].mean()
    return result


@click.command(cls=Benchmark)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--choose", is_flag=True, help="Compare exponents on half A instead of reporting half B.")
def main(files: tuple[Path, ...], choose: bool) -> None:
    """Measure open-set search on embedding FILES (.npz of the Market-1501 test split)."""
    for file in files:
        data = Data(file)
        people = np.random.default_rng(0).permutation(np.unique(data.pids[data.pids > 0]))
        half_a, half_b = np.array_split(people, 2)
        rows = np.isin(data.pids, half_a)
        calibration = calibrate(
            data.features[rows], data.pids[rows], data.camids[rows], fmr=1e-3, cross_camera=False, distractor=None
        )
        console.print(f"{file.stem}: calibrated on {rows.sum():,} crops of {len(half_a)} people")
        for scope in ("other cameras", "one camera"):
            for distractors in (False,) if choose else (False, True):
                exponents = EXPONENTS if choose else (LOOKS_EXPONENT,)
                people = half_a if choose else half_b
                results = measure(data, people, calibration, scope, distractors, exponents)
                for exponent in exponents:
                    values = "  ".join(f"{key} {value:.4g}" for key, value in results[exponent].items())
                    console.print(f"{scope}, distractors {distractors}, exponent {exponent}: {values}")


if __name__ == "__main__":
    main()
