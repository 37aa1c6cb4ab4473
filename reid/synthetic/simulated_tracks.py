"""Track files of the made world: the truth, and what an imperfect single-camera tracker would have written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reid.synthetic.camera_models import Camera
from reid.synthetic.trajectories import Sighting, Travel

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TrackerFaults:
    """How the made tracker errs.

    Attributes:
        miss: chance that a box of a frame is missed.
        blind: hidden share of a person, 0..1, above which no box is found.
        jitter: σ of each box edge, share of the box's height.
        split: chance that a walk is broken in two tracks.
        switch: chance that two tracks whose boxes meet swap their ids from there on.
        false: false tracks per true walk.
    """

    miss: float = 0.03
    blind: float = 0.7
    jitter: float = 0.012
    split: float = 0.12
    switch: float = 0.15
    false: float = 0.06


def cut(boxes: Floats, size: tuple[int, int]) -> Floats:
    """Boxes `[T, 4]` cut at the frame's border."""
    low = np.clip(boxes[:, :2], 0, size)
    high = np.clip(boxes[:, :2] + boxes[:, 2:], 0, size)
    return np.concatenate([low, high - low], axis=1)


def mot_text(rows: Sequence[tuple[int, int, Floats, float]]) -> str:
    """MOTChallenge lines `frame,id,x,y,w,h,conf,-1,-1,-1`, sorted by frame, then id."""
    lines = []
    for frame, track, (x, y, w, h), conf in sorted(rows, key=lambda row: row[:2]):
        lines.append(f"{frame},{track},{x:.2f},{y:.2f},{w:.2f},{h:.2f},{conf:.2f},-1,-1,-1\n")
    return "".join(lines)


def true_rows(camera: Camera, seen: Sequence[Sighting], ids: Sequence[int]) -> list[tuple[int, int, Floats, float]]:
    """The truth of one camera; `ids` gives each person's global id."""
    rows = []
    for sighting in seen:
        boxes = cut(sighting.boxes, camera.size)
        rows += [(int(f), ids[sighting.one.person], b, 1.0) for f, b in zip(sighting.frames, boxes, strict=True)]
    return rows


def tracked_rows(
    camera: Camera, seen: Sequence[Sighting], faults: TrackerFaults, rng: np.random.Generator
) -> list[tuple[int, int, Floats, float]]:
    """What a tracker makes of it: local ids from 1, with misses, splits, switches and false tracks."""
    parts: list[tuple[NDArray[np.int64], Floats, Floats]] = []
    labels: list[NDArray[np.int64]] = []
    count = 0
    for sighting in seen:
        n = len(sighting.frames)
        found = (rng.random(n) >= faults.miss) & (sighting.hidden < faults.blind)
        height = sighting.boxes[:, 3:]
        boxes = cut(sighting.boxes + faults.jitter * height * rng.normal(0, 1, (n, 4)), camera.size)
        found &= (boxes[:, 2] > 4) & (boxes[:, 3] > 8)
        label = np.full(n, count)
        count += 1
        if n > 12 and rng.random() < faults.split:
            at = int(rng.integers(n // 4, 3 * n // 4))
            found[at : at + int(rng.integers(2, 9))] = False
            label[at:] = count
            count += 1
        conf = np.clip(0.92 - 0.5 * sighting.hidden + rng.normal(0, 0.05, n), 0.05, 1.0)
        parts.append((sighting.frames[found], boxes[found], conf[found]))
        labels.append(label[found])
    for i, (frames, boxes, _) in enumerate(parts):
        for j in range(i):
            shared, in_i, in_j = np.intersect1d(frames, parts[j][0], return_indices=True)
            if not len(shared):
                continue
            a, b = boxes[in_i], parts[j][1][in_j]
            apart = np.abs(a[:, 0] + a[:, 2] / 2 - b[:, 0] - b[:, 2] / 2)
            meet = np.flatnonzero((apart < 0.4 * a[:, 2]) & (np.abs(a[:, 3] - b[:, 3]) < 0.3 * a[:, 3]))
            if len(meet) and rng.random() < faults.switch:
                k = int(meet[len(meet) // 2])
                _swap(parts, labels, int(labels[i][in_i[k]]), int(labels[j][in_j[k]]), int(shared[k]))
    for _ in range(int(rng.poisson(faults.false * max(len(seen), 1)))):
        if not seen:
            break
        like = seen[int(rng.integers(len(seen)))]
        n = int(rng.integers(4, 20))
        box = like.boxes[len(like.boxes) // 2] * rng.uniform(0.7, 1.1)
        box[0] = rng.uniform(0, camera.size[0] - 30)
        frames = int(like.frames[0]) + np.arange(n)
        boxes = cut(np.tile(box, (n, 1)) + rng.normal(0, 1.5, (n, 4)), camera.size)
        good = (boxes[:, 2] > 4) & (boxes[:, 3] > 8)
        parts.append((frames[good], boxes[good], np.clip(rng.normal(0.4, 0.1, n), 0.05, 1)[good]))
        labels.append(np.full(int(good.sum()), count))
        count += 1
    rows: list[tuple[int, int, Floats, float]] = []
    for (frames, boxes, conf), label in zip(parts, labels, strict=True):
        rows += [(int(f), int(t), b, float(c)) for f, t, b, c in zip(frames, label, boxes, conf, strict=True)]
    rows.sort(key=lambda row: row[:2])
    order: dict[int, int] = {}
    return [(f, order.setdefault(t, len(order) + 1), b, c) for f, t, b, c in rows]


def _swap(
    parts: Sequence[tuple[NDArray[np.int64], Floats, Floats]],
    labels: list[NDArray[np.int64]],
    one: int,
    other: int,
    frame: int,
) -> None:
    """Exchange two labels from a frame on, wherever they stand, so that no frame has a label twice."""
    for (frames, _, _), label in zip(parts, labels, strict=True):
        later = frames >= frame
        ones, others = later & (label == one), later & (label == other)
        label[ones], label[others] = other, one


def cameras_yaml(cameras: Sequence[Camera], travels: Sequence[Travel], fps: float) -> dict[str, object]:
    """What the track files' reader must know: clocks, sizes, places, and the travel times of each ordered pair."""
    return {
        "cameras": {
            one.name: {
                "fps": fps,
                "offset": one.offset,
                "size": list(one.size),
                "position": [round(v, 2) for v in one.position],
                "azimuth": round(one.azimuth, 4),
            }
            for one in cameras
        },
        "pairs": [
            {
                "from": cameras[t.source].name,
                "to": cameras[t.target].name,
                "min": round(t.least - 0.01, 2),
                "max": None if t.most is None else round(t.most + 0.01, 2),
            }
            for t in travels
        ],
    }
