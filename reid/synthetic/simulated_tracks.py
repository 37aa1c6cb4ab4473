"""Tracks of a synthetic recording: the truth, and the output of a simulated single-camera tracker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from reid.data.tracks import Tracks
from reid.synthetic.camera_models import Camera
from reid.synthetic.settings import TrackerFaults
from reid.synthetic.trajectories import Sighting

Floats = NDArray[np.float64]
Part = tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats, NDArray[np.int64]]
"""Frames `[T]`, ids `[T]`, boxes `[T, 4]`, confidences `[T]` and people `[T]` (−1: no one) in one camera."""


def clip_boxes(boxes: Floats, size: tuple[int, int]) -> Floats:
    """Clip boxes `[T, 4]` at the border of the frame."""
    low = np.clip(boxes[:, :2], 0, size)
    high = np.clip(boxes[:, :2] + boxes[:, 2:], 0, size)
    return np.concatenate([low, high - low], axis=1)


def _join(parts: Iterable[Part]) -> Part:
    none = np.empty(0, np.int64)
    columns = zip((none, none, np.empty((0, 4)), np.empty(0), none), *parts, strict=True)
    frames, ids, boxes, confidence, person = (np.concatenate(column) for column in columns)
    return frames, ids, boxes, confidence, person


def make_tracks(cameras: Sequence[Camera], parts: Sequence[Part]) -> tuple[Tracks, NDArray[np.int64]]:
    """Return the rows of all cameras as tracks (boxes and confidences of two decimals), and the person in each row."""
    camera = np.repeat(np.arange(len(cameras)), [len(part[0]) for part in parts])
    frames, ids, boxes, confidence, person = _join(parts)
    names = [one.name for one in cameras]
    tracks = Tracks.from_columns(names, camera, ids, frames, boxes.round(2), confidence.round(2))
    return tracks, person[np.lexsort((ids, frames, camera))]


def true_boxes(camera: Camera, seen: Sequence[Sighting]) -> Part:
    """Return the true boxes of one camera; a person's global id is the index plus 1."""
    parts: list[Part] = []
    for sighting in seen:
        who = np.full(len(sighting.frames), sighting.walk.person)
        boxes = clip_boxes(sighting.boxes, camera.size)
        parts.append((sighting.frames, who + 1, boxes, np.ones(len(who)), who))
    return _join(parts)


def tracked_boxes(camera: Camera, seen: Sequence[Sighting], faults: TrackerFaults, rng: np.random.Generator) -> Part:
    """Return the boxes of an imperfect tracker: local ids from 1, with misses, splits, switches and false tracks."""
    parts: list[Part] = []
    count = 0
    for sighting in seen:
        n = len(sighting.frames)
        found = (rng.random(n) >= faults.miss) & (sighting.hidden < faults.blind)
        height = sighting.boxes[:, 3:]
        boxes = clip_boxes(sighting.boxes + faults.jitter * height * rng.normal(0, 1, (n, 4)), camera.size)
        found &= (boxes[:, 2] > 4) & (boxes[:, 3] > 8)
        label = np.full(n, count)
        count += 1
        if n > 12 and rng.random() < faults.split:
            at = int(rng.integers(n // 4, 3 * n // 4))
            found[at : at + int(rng.integers(2, 9))] = False
            label[at:] = count
            count += 1
        conf = np.clip(0.92 - 0.5 * sighting.hidden + rng.normal(0, 0.05, n), 0.05, 1.0)
        who = np.full(int(found.sum()), sighting.walk.person)
        parts.append((sighting.frames[found], label[found], boxes[found], conf[found], who))
    for j, i in sorted(combinations(range(len(parts)), 2), key=lambda pair: pair[::-1]):
        shared, in_i, in_j = np.intersect1d(parts[i][0], parts[j][0], return_indices=True)
        a, b = parts[i][2][in_i], parts[j][2][in_j]
        offset = np.abs(a[:, 0] + a[:, 2] / 2 - b[:, 0] - b[:, 2] / 2)
        meet = np.flatnonzero((offset < 0.4 * a[:, 2]) & (np.abs(a[:, 3] - b[:, 3]) < 0.3 * a[:, 3]))
        if len(meet) and rng.random() < faults.switch:
            k = int(meet[len(meet) // 2])
            first, second = int(parts[i][1][in_i[k]]), int(parts[j][1][in_j[k]])
            # Exchanged in all parts, so that no frame has a label twice.
            for frames, label, *_ in parts:
                later = frames >= shared[k]
                firsts, seconds = later & (label == first), later & (label == second)
                label[firsts], label[seconds] = second, first
    for _ in range(int(rng.poisson(faults.false_tracks * len(seen)))):
        template = seen[int(rng.integers(len(seen)))]
        n = int(rng.integers(4, 20))
        box = template.boxes[len(template.boxes) // 2] * rng.uniform(0.7, 1.1)
        box[0] = rng.uniform(0, camera.size[0] - 30)
        frames = int(template.frames[0]) + np.arange(n)
        boxes = clip_boxes(np.tile(box, (n, 1)) + rng.normal(0, 1.5, (n, 4)), camera.size)
        good = (boxes[:, 2] > 4) & (boxes[:, 3] > 8)
        conf = np.clip(rng.normal(0.4, 0.1, n), 0.05, 1)
        label = np.full(int(good.sum()), count)
        parts.append((frames[good], label, boxes[good], conf[good], np.full(len(label), -1)))
        count += 1
    frames, label, boxes, conf, who = _join(parts)
    order = np.lexsort((label, frames))
    _, first_row, code = np.unique(label[order], return_index=True, return_inverse=True)
    return frames[order], np.argsort(np.argsort(first_row))[code] + 1, boxes[order], conf[order], who[order]
