from __future__ import annotations

import numpy as np
import pytest

from reid.tracks import Tracks, score
from tests.oracles import trackeval_scores

OURS = {
    "HOTA": ("HOTA", "HOTA"), "DetA": ("HOTA", "DetA"), "AssA": ("HOTA", "AssA"), "LocA": ("HOTA", "LocA"),
    "DetRe": ("HOTA", "DetRe"), "DetPr": ("HOTA", "DetPr"), "AssRe": ("HOTA", "AssRe"), "AssPr": ("HOTA", "AssPr"),
    "MOTA": ("CLEAR", "MOTA"), "MOTP": ("CLEAR", "MOTP"), "TP": ("CLEAR", "CLR_TP"), "FP": ("CLEAR", "CLR_FP"),
    "FN": ("CLEAR", "CLR_FN"), "IDSW": ("CLEAR", "IDSW"), "MT": ("CLEAR", "MT"), "PT": ("CLEAR", "PT"),
    "ML": ("CLEAR", "ML"), "Frag": ("CLEAR", "Frag"),
    "IDF1": ("Identity", "IDF1"), "IDP": ("Identity", "IDP"), "IDR": ("Identity", "IDR"),
    "IDTP": ("Identity", "IDTP"), "IDFP": ("Identity", "IDFP"), "IDFN": ("Identity", "IDFN"),
}  # fmt: skip
"""Our name: trackeval's metric and field."""


def agrees(ours, theirs):
    for name, (metric, field) in OURS.items():
        expected = theirs[metric][field]
        assert getattr(ours, name) == pytest.approx(np.mean(expected), abs=1e-9), name
        if metric == "HOTA":
            assert ours.per_alpha[name] == pytest.approx(expected, abs=1e-9), name


def crowd(rng, cameras=2, frames=12, people=5, *, present=0.7, noise=4.0, miss=0.2, swap=0.2, false=0.3, grid=None):
    """Truth and predictions with misses, false boxes and ids that change; `grid` rounds boxes so that IoUs tie."""
    rows = {"truth": [], "predicted": []}
    for camera in range(cameras):
        places = rng.uniform(0, 60, (people, 2))
        names = rng.permutation(people) if rng.random() < 0.5 else np.arange(people)
        for frame in rng.choice(np.arange(1, 3 * frames), frames, replace=False):
            taken = set()
            if rng.random() < swap:
                names = rng.permutation(names)
            for person in np.flatnonzero(rng.random(people) < present):
                box = [*(places[person] + rng.normal(0, noise, 2)), 20.0, 40.0]
                if rng.random() > 0.05:
                    rows["truth"].append((camera, 10 + person, frame, box))
                if rng.random() > miss:
                    near = [*(np.array(box[:2]) + rng.normal(0, noise, 2)), *rng.uniform(15, 45, 2)]
                    rows["predicted"].append((camera, 3 * int(names[person]), frame, near))
                    taken.add(3 * int(names[person]))
            if rng.random() < false:
                box = [*rng.uniform(0, 60, 2), 20.0, 40.0]
                rows["predicted"].append((camera, 1000 + int(rng.integers(3)), frame, box))
    sides = []
    for side in rows.values():
        boxes = np.array([row[3] for row in side]).reshape(-1, 4)
        if grid:
            boxes = np.maximum(np.round(boxes / grid), 1) * grid
        ids = [np.array([row[i] for row in side], dtype=np.int64) for i in range(3)]
        sides.append(Tracks.of([f"cam{i + 1}" for i in range(cameras)], *ids, boxes))
    return sides


@pytest.mark.parametrize("seed", range(60))
def test_equals_trackeval_on_random_tracks(seed):
    rng = np.random.default_rng(seed)
    truth, predicted = crowd(
        rng,
        cameras=int(rng.integers(1, 4)),
        frames=int(rng.integers(1, 16)),
        people=int(rng.integers(1, 15)),
        noise=float(rng.choice([0, 2, 6])),
        grid=[None, 5, 20][seed % 3],
    )
    iou = float(rng.choice([0.5, 0.3, 0.75]))
    scores = score(truth, predicted, iou=iou)
    agrees(scores.overall, trackeval_scores(truth, predicted, iou))
    for number, name in enumerate(truth.camera_names):
        theirs = trackeval_scores(truth.take(truth.camera == number), predicted.take(predicted.camera == number), iou)
        agrees(scores.per_camera[name], theirs)
